"""Tasks: where captioned images come from, and what identifies them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fitspace.config import Task
    from fitspace.data.examples import Example


def identity(task: Task) -> dict[str, Any]:
    """What determines a task's examples, for its key: no image is decoded for it.

    Raises UserError when a folder of images or its captions are not there.
    """
    if task.source == "openmoji":
        from fitspace.data import openmoji

        return {"openmoji": task.style, "packages": openmoji.source_version()}
    from fitspace.data import folder

    return {"folder": folder.content_digest(Path(task.path))}


def load_examples(task: Task, size: int) -> tuple[list[Example], list[str], str]:
    """A task's examples, notes on conversions made, and the attribution its images ask for."""
    if task.source == "openmoji":
        from fitspace.data import openmoji

        return list(openmoji.examples(task.style, size)), [], openmoji.ATTRIBUTION
    from fitspace.data import folder

    found, notes = folder.examples(Path(task.path), size)
    return found, notes, ""
