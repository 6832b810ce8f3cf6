"""Numbers as they are written: those digits that every machine agrees on.

Libraries choose their kernels by the processor, and with them the order of sums: the last digits
of a float64 differ. What is written has fewer.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

# Enough for any comparison; rounding reaches the 13th at worst where it is taken off first.
DIGITS = 10
# Relative to the largest number of a computation, what is left where the result is 0.
NOISE = 1e-13


def significant(value: float) -> float:
    """A number with `DIGITS` significant digits."""
    return float(f"{value:.{DIGITS}g}")


def rounded(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose floats have `DIGITS` significant digits."""
    floats = table.select_dtypes("float").columns
    return table.assign(**{name: [significant(value) for value in table[name]] for name in floats})


def plain(content: Any) -> Any:
    """Nested lists and mappings for JSON: floats as in `rounded`, None where not finite."""
    if isinstance(content, dict):
        return {key: plain(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [plain(value) for value in content]
    value = content.item() if hasattr(content, "item") else content
    if not isinstance(value, float):
        return value
    return significant(value) if math.isfinite(value) else None


def on_scale(values: np.ndarray, scale: float) -> np.ndarray:
    """Values (n,) to the last of the `DIGITS` digits of what they were computed from.

    A difference of large numbers carries their rounding: to its own significant digits it would
    show noise, and where it is nothing but noise it is 0.
    """
    if not scale > 0:
        return values
    decimals = DIGITS - 1 - math.floor(math.log10(scale))
    return np.round(values, decimals) + 0.0  # no -0.0


def cleared(value: float, scale: float) -> float:
    """A value, 0 where it is no more than the rounding of what it was computed from."""
    return 0.0 if abs(value) <= NOISE * scale else value
