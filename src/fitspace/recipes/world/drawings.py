"""The world of the embedded models: every OpenMoji drawing, paired in all styles, drawn once.

A model's role decides what it sees. The base sees every figure in the source style. A model that
is adapted to another style sees only the figures of ``adaptation``. Autoencoder and judge are
instruments and see everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tqdm import tqdm

from fitspace.core.files import digest, read_tensors, replacing, write_json
from fitspace.data import openmoji
from fitspace.data.examples import split_of

SIZE = 64
SOURCE = openmoji.STYLES.index(openmoji.SOURCE_STYLE)
ALIKE = 2.0  # grey levels of 255: at 64 pixels less than half of one pixel from black to white
VERSION = 1  # of how a drawing is made from its SVG
_TENSORS = {
    "images": f"U8 n {len(openmoji.STYLES)} s s 3",
    "drawn": f"BOOL n {len(openmoji.STYLES)}",
}


@dataclass(frozen=True)
class Drawings:
    """Parallel arrays, one row per drawing; a figure's drawings differ only in skin tone.

    Attributes
    ----------
    images : uint8 (n, styles, size, size, 3), sRGB; the styles as in ``openmoji.STYLES``.
    drawn : bool (n, styles); False if the style leaves nothing (``flat`` without a fill).
    captions, figures : str (n,); a figure is named by its code points.
    key : identifies how they were made; equal keys give equal arrays.
    """

    images: np.ndarray
    drawn: np.ndarray
    captions: np.ndarray
    figures: np.ndarray
    key: str

    def __len__(self) -> int:
        return len(self.images)

    def alike(self, style: int) -> np.ndarray:
        """Which drawings look the same in a style: bool (n, n).

        They differ by less than ``ALIKE`` in the root mean square. OpenMoji draws some figures
        alike, such as a cook and a man cook, and without colours most flags are: nobody can tell
        by a picture which of them it shows.
        """
        if style not in self._alike:
            pixels = self.images[:, style].reshape(len(self), -1).astype(np.float64)
            squares = np.square(pixels).sum(1)
            distance = squares[:, None] + squares - 2 * pixels @ pixels.T
            self._alike[style] = distance < ALIKE**2 * pixels.shape[1]
        return self._alike[style]

    def look_alike(self, some: np.ndarray, others: np.ndarray, styles: Any) -> np.ndarray:
        """The same for pairs of rows, each in a style: bool (k,)."""
        apart = self.images[some, styles].astype(np.float64) - self.images[others, styles]
        return np.square(apart).mean((1, 2, 3)) < ALIKE**2

    @cached_property
    def _alike(self) -> dict[int, np.ndarray]:
        return {}

    def members(self) -> list[np.ndarray]:
        """Rows of each figure, the figures sorted by name."""
        _, number = np.unique(self.figures, return_inverse=True)
        return np.split(np.argsort(number, kind="stable"), np.cumsum(np.bincount(number))[:-1])

    def in_style(self, style: int) -> np.ndarray:
        """All drawings of one style, without blank ones: uint8 (m, size, size, 3)."""
        return self.images[self.drawn[:, style], style]


def part(figure: str) -> str:
    """``held out`` for a tenth of the figures, with all their skin tones, else ``adaptation``."""
    return {"train": "adaptation", "test": "held out"}[split_of(figure)]


def load(folder: Path, size: int = SIZE, rows: Sequence[int] | None = None) -> Drawings:
    """The drawings, from the cache in ``folder``; without one they are drawn, with a manifest.

    ``rows``: only these rows of the catalogue. Drawing all styles takes a minute and a half.
    """
    catalogue = openmoji.catalogue()
    chosen = [catalogue[i] for i in rows] if rows is not None else list(catalogue)
    made_of = {
        "drawings": [name for name, *_ in chosen],
        "packages": openmoji.source_version(),
        "size": size,
        "styles": openmoji.STYLES,
        "version": VERSION,
    }
    key = digest(made_of)[:12]
    path = folder / f"drawings~{key}.safetensors"
    if not path.exists():
        _draw(chosen, size, path)
        write_json(path.with_suffix(".json"), _manifest(chosen, key))
    found = read_tensors(path, _TENSORS, "np", n=len(chosen), s=size)
    names, captions, figures = (np.array([row[i] for row in chosen]) for i in range(3))
    return Drawings(found["images"], found["drawn"], captions, figures, key)


def _draw(chosen: Sequence[tuple[str, str, str, str]], size: int, path: Path) -> None:
    images = np.empty((len(chosen), len(openmoji.STYLES), size, size, 3), np.uint8)
    for row, (*_, svg) in enumerate(tqdm(chosen, desc="drawing", disable=None)):
        for column, style in enumerate(openmoji.STYLES):
            images[row, column] = openmoji.render(svg, style, size)
    drawn = (images != images[:, :, :1, :1]).any((2, 3, 4))
    with replacing(path) as temporary:
        save_file({"images": images, "drawn": drawn}, temporary)


def _manifest(chosen: Sequence[tuple[str, str, str, str]], key: str) -> dict[str, Any]:
    """The manifest: the part of each drawing."""
    return {
        "key": key,
        "attribution": openmoji.ATTRIBUTION,
        "packages": openmoji.source_version(),
        "roles": {
            "base": f"all drawings, style {openmoji.SOURCE_STYLE}",
            "adaptation": "drawings whose part is 'adaptation', one other style at a time",
            "autoencoder, judge": "all drawings in all styles: instruments",
        },
        "drawings": [
            {"name": name, "caption": caption, "figure": figure, "part": part(figure)}
            for name, caption, figure, _ in chosen
        ],
    }
