"""What every source of images yields: captioned RGB squares with a split and a group."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

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
    """

    name: str
    caption: str
    group: str
    split: str
    image: np.ndarray
    category: str = ""


def split_of(group: str, held_out_percent: int = HELD_OUT_PERCENT) -> str:
    """Assign a group to a split by a hash of its name: stable when examples come and go."""
    bucket = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") % 100
    return "test" if bucket < held_out_percent else "train"
