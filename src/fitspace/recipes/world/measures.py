"""Distances between pictures: decibels, and perceptible differences of colour."""

from __future__ import annotations

import numpy as np

COLOURED = 20.0  # chroma in CIELAB from which a pixel counts as coloured

_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)  # of linear sRGB (IEC 61966-2-1)
_WHITE = _XYZ.sum(1)  # D65


def cielab(images: np.ndarray) -> np.ndarray:
    """L*, a*, b* of uint8 sRGB images, shape (..., 3), under D65 (CIE 15)."""
    table = np.arange(256) / 255
    linear = np.where(table <= 0.04045, table / 12.92, ((table + 0.055) / 1.055) ** 2.4)
    ratio = linear[images] @ _XYZ.T / _WHITE
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def colour_error(truth: np.ndarray, found: np.ndarray) -> float | None:
    """Mean difference of colour, CIE 1976, over the coloured pixels of ``truth``.

    Both uint8 (n, h, w, 3). A difference of 2 is just visible; black and white differ by 100. None
    without a coloured pixel.
    """
    true = cielab(truth)
    coloured = np.hypot(true[..., 1], true[..., 2]) > COLOURED
    if not coloured.any():
        return None
    return float(np.linalg.norm(true[coloured] - cielab(found[coloured]), axis=-1).mean())


def decibels(truth: np.ndarray, found: np.ndarray) -> float:
    """Peak signal-to-noise ratio of all uint8 images together [dB]."""
    error = np.square(truth.astype(np.float64) - found).mean()
    return float(10 * np.log10(255**2 / error)) if error else float("inf")
