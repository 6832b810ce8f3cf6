"""A look at all images of a task before anything runs: what is usable, converted and refused."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitspace.core.files import digest, remember, remembered, sha256
from fitspace.data import pixels, sources
from fitspace.data.examples import leaks

if TYPE_CHECKING:
    from fitspace.study import Task

# Images are decoded for it, minutes for many: once, for as long as they stay what they are.
CACHE = Path("results/.cache/looked.json")
MOST = 12  # lines of one kind


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes
    ----------
    usable, held_out : numbers of images, the second among the first.
    converted : what was done to images, a line a kind.
    refused : why images cannot be used, a line a kind.
    notes : what is to be known of the task.
    """

    usable: int
    held_out: int
    converted: list[str]
    refused: list[str]
    notes: list[str]


def survey(
    task: Task, identity: dict[str, Any], size: int, known: Collection[str] | None = None
) -> Survey:
    """Decode every image of a folder or hub task, as squares of ``size`` pixels.

    ``identity``: what determines its examples; ``known``: the classes of a
    class-conditional base.
    Remembered in `CACHE`.

    Raises
    ------
    UserError : every problem but those of images, which the survey tells.
    """
    code = [sha256(path) for path in sorted(Path(__file__).parent.glob("*.py"))]
    readers = [*pixels.formats(), version("pillow")]
    key = digest([identity, size, None if known is None else sorted(known), code, readers])
    found = remembered(CACHE).get(key)
    if found is None:
        found = asdict(_surveyed(task, size, known))
        remember(CACHE, remembered(CACHE) | {key: found})
    return Survey(**found)


def _surveyed(task: Task, size: int, known: Collection[str] | None) -> Survey:
    found, notes = sources.look(task, size)
    examples, digests, done = [], [], []
    refused: dict[str, list[str]] = {}
    for looked in found:
        done += [f"{looked.name}: {what}" for what in looked.done]
        if looked.example is None:
            refused.setdefault(looked.problem, []).append(looked.where)
            continue
        example = looked.example
        digests.append(hashlib.sha256(example.image.tobytes()).hexdigest())
        examples.append(example.told(known is not None))
    reasons = sorted(refused.items(), key=lambda item: -len(item[1]))
    lines = [
        f"{len(where)} image{'s' * (len(where) > 1)} refused: {why}: {', '.join(where[:5])}"
        + ", ..." * (len(where) > 5)
        for why, where in reasons[:MOST]
    ]
    if len(reasons) > MOST:
        rest = sum(len(where) for _, where in reasons[MOST:])
        lines.append(f"{rest} more images refused, for {len(reasons) - MOST} other reasons")
    return Survey(
        usable=len(examples),
        held_out=sum(example.split == "test" for example in examples),
        converted=kinds(done),
        refused=lines,
        notes=notes + leaks(examples, digests, known),
    )


def kinds(notes: Iterable[str]) -> list[str]:
    """Notes on images (``name: what was done``), counted by what was done: the most first."""
    counts = Counter(_kind(note.partition(": ")[2]) for note in notes)
    lines = [f"{count} {what}" for what, count in counts.most_common()]
    more = len(lines) - MOST
    return lines[:MOST] + ([f"and {more} more kinds"] if more > 0 else [])


def _kind(what: str) -> str:
    """What was done, without the sizes and names that differ from image to image."""
    for pattern, plain in (
        (r"central \d+x\d+ of .*", "cut to their central square"),
        (r"(reduced|enlarged|squashed) from .*", r"\1"),
        (r"EXIF orientation \d applied", "turned upright by EXIF"),
        (r"ICC profile '.*' to sRGB", "ICC profile to sRGB"),
        (r"(EXIF|ICC profile|EXIF orientation) ignored.*", r"\1 ignored"),
    ):
        what, found = re.subn(f"^{pattern}$", plain, what, flags=re.S)
        if found:
            return what
    return what
