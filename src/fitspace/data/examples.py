"""What every source of images yields: captioned RGB squares with a split and a group."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

HELD_OUT_PERCENT = 10


@dataclass(frozen=True)
class Example:
    """One captioned image.

    Attributes
    ----------
    name : the example's name within its source (a code point sequence, a file name).
    caption : the text that conditions the model.
    group : examples of one group share a split and are drawn as one item in training, so
        that a figure with six skin tones does not outweigh one without.
    split : ``"train"`` or ``"test"``; ``"class"`` for a DreamBooth task's class images.
    image : uint8 array, shape (size, size, 3), sRGB.
    category : what a class-conditional model is told instead of the caption; "": the caption.
    given : the image that is given beside the caption, as ``image``; None: none.
    """

    name: str
    caption: str
    group: str
    split: str
    image: np.ndarray
    category: str = ""
    given: np.ndarray | None = None

    def told(self, by_class: bool) -> Example:
        """Without its images, and with what a base is told of it as its caption."""
        caption = (by_class and self.category) or self.caption
        return replace(self, caption=caption, image=None, given=None)


@dataclass(frozen=True)
class Outline:
    """What is known of a task before an image of it is decoded.

    Attributes
    ----------
    images : how many there are.
    prompts : how many held-out images can be asked for: one of each group.
    told : all that a class-conditional base is told of them.
    notes : what was guessed, left out or is not read.
    """

    images: int
    prompts: int
    told: frozenset[str]
    notes: tuple[str, ...] = ()


def split_of(group: str, held_out_percent: int = HELD_OUT_PERCENT) -> str:
    """Assign a group to a split by a hash of its name: stable when examples come and go."""
    bucket = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") % 100
    return "test" if bucket < held_out_percent else "train"


def leaks(
    examples: Sequence[Example], digests: Sequence[str], known: Collection[str] | None
) -> list[str]:
    """Notes on what the splits of a task leave open.

    ``digests`` of the images, which need not be there any more: held-out images that are trained
    on too. ``known``: the classes of a class-conditional base, None for another base. Where it
    does not know all that it is told, they are numbered anew, and nothing trains those that are
    held out alone.
    """
    both = list(zip(examples, digests, strict=True))
    trained = {digest for example, digest in both if example.split == "train"}
    twins = sorted(e.name for e, digest in both if e.split == "test" and digest in trained)
    notes = []
    if twins:
        notes.append(f"held out and trained on as well, pixel for pixel: {_counted(twins)}")
    if known is not None:
        told = {s: {e.caption for e in examples if e.split == s} for s in ("train", "test")}
        strange = sorted(told["test"] - told["train"])
        if strange and not told["train"] | told["test"] <= set(known):
            notes.append(f"classes that are held out alone, never trained: {_counted(strange)}")
    return notes


def _counted(names: list[str]) -> str:
    return f"{', '.join(map(repr, names[:5]))}{', ...' * (len(names) > 5)} ({len(names)} in all)"
