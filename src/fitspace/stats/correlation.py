"""How two metrics go together over the cells of a design."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fitspace.core.errors import UserError
from fitspace.stats.linear import missing_columns

NAN = float("nan")
FEWEST = 4  # cells
# With fewer cells drawing them anew tells nothing: few different draws, many of the same cells.
FEWEST_LIMITS = 8


def correlation(
    cells: pd.DataFrame,
    one: str,
    other: str,
    *,
    draws: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Pearson's and Spearman's correlation of two columns, with bootstrap intervals.

    >>> cells = pd.DataFrame({"seen": [1, 2, 3, 4, 5, 6], "score": [2, 1, 4, 5, 7, 6.5]})
    >>> correlation(cells, "seen", "score")[["measure", "cells", "estimate"]].round(3)
        measure  cells  estimate
    0   Pearson      6     0.923
    1  Spearman      6     0.886

    Rows are cells, drawn anew for the limits low and high (percentiles). Cells without one of the
    values do not count. Fewer than four cells, or a column without variation, give NaN, and fewer
    than eight no limits.

    Raises
    ------
    UserError : a missing column.
    """
    if problems := missing_columns(cells, [one, other]):
        raise UserError(problems)
    pairs = cells[[one, other]].astype(float).dropna().to_numpy()
    varying = len(pairs) >= FEWEST and (np.ptp(pairs, axis=0) > 0).all()
    tail, rows = (1 - confidence) / 2, []
    for measure, scored in (("Pearson", np.asarray), ("Spearman", _ranks)):
        row = {"measure": measure, "cells": len(pairs), "estimate": NAN, "low": NAN, "high": NAN}
        if varying:
            row["estimate"] = float(_pearson(*(scored(column) for column in pairs.T)))
        if varying and len(pairs) >= FEWEST_LIMITS:
            drawn = np.random.default_rng(seed).integers(len(pairs), size=(draws, len(pairs)))
            again = _pearson(*(scored(column[drawn]) for column in pairs.T))
            row["low"], row["high"] = np.nanquantile(again, [tail, 1 - tail])
        rows.append(row)
    return pd.DataFrame(rows)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks along the last axis, means of ranks where values are tied."""
    return pd.DataFrame(np.atleast_2d(values)).rank(axis=1).to_numpy().reshape(values.shape)


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Correlation along the last axis; NaN without variation."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    size = np.sqrt(np.sum(x**2, -1) * np.sum(y**2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(size > 0, np.sum(x * y, -1) / size, NAN)
