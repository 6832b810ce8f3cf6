"""The image that is given beside a caption: of another style, of a folder, or degraded."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from fitspace.core import rng
from fitspace.core.errors import UserError
from fitspace.core.texts import shown
from fitspace.data import folder
from fitspace.data.pixels import How, Unusable, load_image

if TYPE_CHECKING:
    from fitspace.data.examples import Example
    from fitspace.study import Given, Task

HIDDEN = 128  # grey, of what a mask hides


def identity(given: Given) -> dict[str, Any]:
    """What determines the given images beside the task's own; no image is decoded for it.

    Raises UserError when a folder of given images is not there.
    """
    if given.degraded is not None:
        return {"degraded": given.degraded, "amount": given.much}
    if given.style is not None:
        return {"style": given.style}
    return {"pictures": folder.pictures_digest(Path(given.path))}


def pairs(task: Task) -> dict[str, Path]:
    """Name of each image of a folder task -> the file that is given with it.

    Raises
    ------
    UserError : every image without one, or with several.
    """
    where = Path(task.given.path)
    found: dict[str, list[str]] = {}
    for name in folder.picture_names(where):
        found.setdefault(_stem(name), []).append(name)
    names = folder.names(Path(task.path))
    several = [name for name in names if len(found.get(_stem(name), [])) > 1]
    lacking = [name for name in names if _stem(name) not in found]
    problems = [
        f"given.path: {task.given.path}: {what}: {shown(wrong)}; allowed: one image of each name, "
        "whatever its ending"
        for what, wrong in (("no image for", lacking), ("several images for", several))
        if wrong
    ]
    if problems:
        raise UserError(problems)
    return {name: where / found[_stem(name)][0] for name in names}


def _stem(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()


def problems(task: Task, size: int) -> list[str]:
    """What is wrong with the images of a folder that are given, each decoded once; other tasks'
    images are made from their own."""
    if task.given is None or task.given.path is None:
        return []
    found = []
    for name, path in pairs(task).items():
        try:
            load_image(path, size)
        except Unusable as error:
            found.append(f"given with {name!r}: {error}")
    return found


def beside(
    task: Task, examples: Iterator[Example], size: int, how: How, notes: list[str]
) -> Iterator[Example]:
    """A task's examples, each with the image that is given with it: uint8, (size, size, 3).

    ``notes`` grows by what was converted, when the last example was taken.

    Raises
    ------
    UserError : unusable given images, all of them at once, when the last example was taken.
    """
    load = _loader(task, size, how)
    done, problems, blank = [], [], []
    for example in examples:
        try:
            image, converted = load(example)
        except Unusable as error:
            problems.append(f"given with {example.name!r}: {error}")
            continue
        done += [f"{example.name}: given: {what}" for what in converted]
        blank += [example.name] if (image == image[0, 0]).all() else []
        if not problems:
            yield replace(example, given=image)
    if problems:
        raise UserError(problems)
    notes += sorted(done)
    if blank:
        notes.append(f"given images of one colour alone: {shown(sorted(blank))}")


def _loader(task: Task, size: int, how: How) -> Callable[[Example], tuple[np.ndarray, list[str]]]:
    given = task.given
    if given.degraded is not None:
        degrade = DEGRADE[given.degraded]
        return lambda example: (degrade(example.image, given.much, example.name), [])
    if given.style is not None:
        from fitspace.data import openmoji

        drawings = {name: path for name, _, _, path in openmoji.catalogue()}
        return lambda example: (openmoji.render(drawings[example.name], given.style, size), [])
    files = pairs(task)
    return lambda example: load_image(files[example.name], size, how)


# --- degradations: a uint8 image (h, h, 3), an amount and the image's name -> the same form -----


def downscale(image: np.ndarray, amount: float, _: str) -> np.ndarray:
    """The side divided by ``amount`` by averaging, and brought back by a bicubic filter."""
    from PIL import Image

    side = len(image)
    small = max(1, round(side / amount))
    picture = Image.fromarray(image).resize((small, small), Image.Resampling.BOX)
    return np.array(picture.resize((side, side), Image.Resampling.BICUBIC))


def blur(image: np.ndarray, amount: float, _: str) -> np.ndarray:
    """A Gaussian whose standard deviation is this share of the side."""
    from scipy.ndimage import gaussian_filter

    sigma = amount * len(image)
    return _rounded(gaussian_filter(image.astype(np.float64), (sigma, sigma, 0), mode="nearest"))


def noise(image: np.ndarray, amount: float, name: str) -> np.ndarray:
    """Gaussian noise whose standard deviation is this share of white, clipped."""
    drawn = rng.generator(0, f"given/noise/{name}").standard_normal(image.shape)
    return _rounded(image + 255 * amount * drawn)


def jpeg(image: np.ndarray, amount: float, _: str) -> np.ndarray:
    """Saved as a JPEG of this quality."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=int(amount))
    with Image.open(buffer, formats=["JPEG"]) as picture:
        return np.array(picture.convert("RGB"))


def mask(image: np.ndarray, amount: float, name: str) -> np.ndarray:
    """A grey square of this share of the area, anywhere."""
    side = len(image)
    hidden = min(side, max(1, round(side * amount**0.5)))
    y, x = rng.generator(0, f"given/mask/{name}").integers(side - hidden + 1, size=2)
    found = image.copy()
    found[y : y + hidden, x : x + hidden] = HIDDEN
    return found


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.rint(values.clip(0, 255)).astype(np.uint8)


DEGRADE = {f.__name__: f for f in (downscale, blur, noise, jpeg, mask)}
