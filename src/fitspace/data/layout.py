"""What the names of folders say of the images in them: their split, or what they show.

As Hugging Face's ``imagefolder`` has it: a folder ``train`` (``test``, ``validation``, ...), at any
depth, is a split, and the folder that an image lies in is its class. Beyond it ``Train`` is
``train``, and folders are splits only where one is for training: a class may be called ``dev``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

_WORDS = dict.fromkeys(("train", "training"), "train") | dict.fromkeys(
    ("test", "testing", "eval", "evaluation", "validation", "valid", "val", "dev"), "test"
)


@dataclass(frozen=True)
class Layout:
    """Of images by path: their splits, and what their folders are called.

    Attributes
    ----------
    splits : path -> train or test, of images in a folder that is a split; empty: there are none.
    folders : path of a folder that is a split -> which.
    classes : path -> the name of the folder that shows what the image does.
    """

    splits: dict[str, str]
    folders: dict[str, str]
    classes: dict[str, str]


def read(names: Collection[str]) -> Layout:
    """The layout of images, by their paths from the folder on, with ``/``."""
    above = {name: name.split("/")[:-1] for name in names}
    places = _places(above)
    folders = {"/".join(above[n][: at + 1]): split for n, (split, at) in places.items()}
    classes, outer = {}, {}
    for name, parents in above.items():
        _, at = places.get(name, ("", None))
        if parents and at != len(parents) - 1:
            classes[name] = parents[-1]
        elif at:
            outer[name] = parents[at - 1]
    if len(set(outer.values())) > 1:  # cat/train/1.png, dog/train/2.png; not data/train/1.png
        classes |= outer
    return Layout({name: split for name, (split, _) in places.items()}, folders, classes)


def _places(above: dict[str, list[str]]) -> dict[str, tuple[str, int]]:
    """Path -> its split, and which of its folders says so."""
    found = {}
    for name, parents in above.items():
        at = next((i for i, folder in enumerate(parents) if folder.lower() in _WORDS), None)
        if at is not None:
            found[name] = (_WORDS[parents[at].lower()], at)
    if not found:  # train_images beside test_images
        said = {parents[0]: of_words([parents[0]]) for parents in above.values() if parents}
        if all(said.values()) and "test" in said.values():
            found = {name: (said[parents[0]], 0) for name, parents in above.items() if parents}
    return found if "train" in {split for split, _ in found.values()} else {}


def of_words(parts: Iterable[str]) -> str:
    """The split that one of the words of folders or of a file says, such as of
    ``validation-00000-of-00003.parquet``; else nothing."""
    words = (word for part in parts for word in re.split(r"[^a-z]+", part.lower()))
    return next((_WORDS[word] for word in words if word in _WORDS), "")
