"""The picture of a run: where its predictions differ between two conditions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fitspace.core.files import replacing

MOST = 3  # images shown
TILE = 0.95  # inches


def draw(
    path: Path,
    title: str,
    images: np.ndarray,
    steps: Sequence[int],
    differences: dict[str, np.ndarray],
    attention: dict[str, list[np.ndarray]],
    looked_for: str,
) -> None:
    """Write a picture, PNG: two rows for each image, the tuned model's above the untouched one's.

    Columns: the image; for each time step ``|ε_a − ε_b|``, mean over the latent's channels, on one
    scale from 0 in each column; where there is cross-attention, the share that falls on the words
    ``looked_for``, on one scale from 0 too.

    Parameters
    ----------
    images : uint8, shape (n, h, w, 3).
    differences : model -> maps (n, time steps, h, w).
    attention : model -> n maps (h, w); empty without cross-attention.
    """
    from matplotlib.figure import Figure

    shown, models = len(images), list(differences)
    columns = [f"t = {step}" for step in steps] + [looked_for] * bool(attention)
    size = (TILE * (1.4 + len(columns)), TILE * (0.6 + shown * len(models)))
    figure = Figure(figsize=size, dpi=100, facecolor="white", layout="constrained")
    figure.suptitle(title, fontsize=8)
    grid = figure.subplots(shown * len(models), 1 + len(columns), squeeze=False)
    for column in range(len(columns)):
        maps = {
            name: [_map(differences[name], attention.get(name, []), i, column, len(steps))
                   for i in range(shown)]
            for name in models
        }  # fmt: skip
        largest = max(float(np.max(m)) for each in maps.values() for m in each) or 1.0
        for row, (i, name) in enumerate((i, name) for i in range(shown) for name in models):
            axes = grid[row][1 + column]
            axes.imshow(maps[name][i], cmap="magma", vmin=0, vmax=largest, interpolation="nearest")
            if row == 0:
                axes.set_title(columns[column], fontsize=8)
    for row, (i, name) in enumerate((i, name) for i in range(shown) for name in models):
        grid[row][0].imshow(images[i], interpolation="nearest")
        grid[row][0].set_ylabel(name, fontsize=8)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _map(
    differences: np.ndarray, attention: Sequence[np.ndarray], image: int, column: int, steps: int
) -> np.ndarray:
    return differences[image, column] if column < steps else attention[image]


def blank(path: Path) -> None:
    """Write the picture of a run that diverged: there is nothing to see."""
    from PIL import Image

    with replacing(path) as temporary:
        Image.new("RGB", (1, 1), "white").save(temporary, "PNG")
