"""Where a task's captioned images come from, and what identifies them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitspace.data.pixels import CROPPED, How

if TYPE_CHECKING:
    from fitspace.data.examples import Example, Outline
    from fitspace.data.folder import Looked
    from fitspace.study import Task


def identity(task: Task) -> dict[str, Any]:
    """What determines a task's examples, for its key: no image is decoded for it.

    Raises UserError when a folder of images or its captions are not there;
    :class:`fitspace.core.hub.NotHere` when a hub data set is not.
    """
    found = _identity(task)
    if task.given is not None:
        from fitspace.data import given

        found["given"] = given.identity(task.given)
    return found


def _identity(task: Task) -> dict[str, Any]:
    if task.source == "openmoji":
        from fitspace.data import openmoji

        found = {"openmoji": task.style, "packages": openmoji.source_version()}
        if task.subject is not None:
            found["figure"] = openmoji.group_of(task.subject)
        return found
    if task.source == "hub":
        from fitspace.data import hub

        return hub.identity(task) | _told(task)
    from fitspace.data import folder

    if task.dreambooth is not None:
        return {"pictures": folder.pictures_digest(Path(task.path))} | _told(task)
    return {"folder": folder.content_digest(Path(task.path))} | _told(task)


def _how(task: Task) -> How:
    return How(task.fit, task.resample)


def _told(task: Task) -> dict[str, str]:
    """How images become squares, as far as it differs from what tasks did before they said so."""
    return {n: v for n, v in _how(task)._asdict().items() if v != getattr(CROPPED, n)}


def fetch(task: Task) -> None:
    """Download a hub data set's images, unless they are here; other tasks have nothing to fetch.

    Raises UserError when there is no network, or nothing in it can be read.
    """
    if task.source == "hub":
        from fitspace.data import hub

        hub.fetch(task)


def outline(task: Task) -> Outline | None:
    """What is known of a task before its images are decoded; None of a folder with one subject.

    Raises UserError as :func:`load_examples`, but for what decoding alone finds.
    """
    if task.source == "openmoji":
        from fitspace.data import openmoji

        return openmoji.outline(task.style, task.subject)
    from fitspace.data import folder, given

    if task.given is not None and task.given.path is not None:
        given.pairs(task)
    path, root, published = _folder(task)
    return folder.outline(path, root, published) if task.dreambooth is None else None


def most_prompts(task: Task, known: Outline, asked: int) -> int:
    """How many held-out images a task can be asked for; exactly, where it is near ``asked``."""
    if task.source != "openmoji" or asked > known.prompts or asked < known.prompts // 2:
        return known.prompts
    from fitspace.data import openmoji

    return openmoji.held_out(task.style)


def load_examples(task: Task, size: int) -> tuple[list[Example], list[str], str]:
    """A task's examples, notes on conversions made, and the attribution its images ask for."""
    if task.source == "openmoji":
        from fitspace.data import openmoji

        found = openmoji.examples(task.style, size, figure=task.subject)
        return list(found), [], openmoji.ATTRIBUTION
    if task.dreambooth is None:
        found, notes, attribution = stream(task, size)
        return sorted(found, key=lambda example: example.name), notes, attribution
    from fitspace.data import folder

    path, root, _ = _folder(task)
    found, notes = folder.pictures(path, size, root, _how(task))
    return found, _left_out(task, path) + notes, ""


def stream(task: Task, size: int) -> tuple[Iterator[Example], list[str], str]:
    """As :func:`load_examples` for a task with captions, one example after another.

    Those for training come first, then they are sorted by name. The notes are whole, and what is
    wrong with an image is raised, when the last was taken. Each has the image that is given with
    it, if the task gives one.
    """
    found, notes, attribution = _stream(task, size)
    if task.given is not None:
        from fitspace.data import given

        found = given.beside(task, found, size, _how(task), notes)
    return found, notes, attribution


def _stream(task: Task, size: int) -> tuple[Iterator[Example], list[str], str]:
    if task.source == "openmoji":
        from fitspace.data import openmoji

        found = openmoji.examples(task.style, size, train_first=True)
        return found, [], openmoji.ATTRIBUTION
    from fitspace.data import folder

    path, root, published = _folder(task)
    found, notes = folder.stream(path, size, root, published, _how(task))
    notes += _left_out(task, path)
    return found, notes, ""


def look(task: Task, size: int) -> tuple[Iterator[Looked], list[str]]:
    """Every image of a folder or hub task, decoded or refused; and notes on the task."""
    from fitspace.data import folder

    path, root, published = _folder(task)
    captions = task.dreambooth is None
    found, notes = folder.look(path, size, root, published, captions, _how(task))
    return found, _left_out(task, path) + notes


def _left_out(task: Task, path: Path) -> list[str]:
    if task.source != "hub":
        return []
    from fitspace.data import hub

    return hub.notes(path)


def _folder(task: Task) -> tuple[Path, Path, str]:
    """The folder of a task's images, the project, and the name of a published set."""
    if task.source != "hub":
        return Path(task.path), Path(), ""
    from fitspace.data import hub

    return hub.laid_out(task), Path(), hub.title(task)
