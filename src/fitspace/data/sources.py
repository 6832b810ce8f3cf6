"""Where a task's captioned images come from, and what identifies them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fitspace.data.examples import Example
    from fitspace.study import Task


def identity(task: Task, by_class: bool = False) -> dict[str, Any]:
    """What determines a task's examples, for its key: no image is decoded for it.

    ``by_class``: of examples for a class-conditional base, which is told their categories.

    Raises UserError when a folder of images or its captions are not there;
    :class:`fitspace.core.hub.NotHere` when a hub data set is not.
    """
    if task.source == "openmoji":
        from fitspace.data import openmoji

        found = {"openmoji": task.style, "packages": openmoji.source_version(by_class)}
        if task.subject is not None:
            found["figure"] = openmoji.group_of(task.subject)
        return found
    if task.source == "hub":
        from fitspace.data import hub

        return hub.identity(task)
    from fitspace.data import folder

    if task.dreambooth is not None:
        return {"pictures": folder.pictures_digest(Path(task.path))}
    return {"folder": folder.content_digest(Path(task.path))}


def fetch(task: Task) -> None:
    """Download a hub data set's images, unless they are here; other tasks have nothing to fetch.

    Raises UserError when there is no network, or nothing in it can be read.
    """
    if task.source == "hub":
        from fitspace.data import hub

        hub.fetch(task)


def load_examples(task: Task, size: int) -> tuple[list[Example], list[str], str]:
    """A task's examples, notes on conversions made, and the attribution its images ask for."""
    if task.source == "openmoji":
        from fitspace.data import openmoji

        found = openmoji.examples(task.style, size, figure=task.subject)
        return list(found), [], openmoji.ATTRIBUTION
    from fitspace.data import folder, hub

    path = hub.laid_out(task) if task.source == "hub" else Path(task.path)
    read = folder.examples if task.dreambooth is None else folder.pictures
    found, notes = read(path, size)
    return found, notes, ""
