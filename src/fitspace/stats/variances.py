"""Tests of equal variances, and of equal means without them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import fdtrc

from fitspace.stats.linear import as_list, read, with_cells

NAN = float("nan")


def levene(table: pd.DataFrame, response: str, factors: str | Sequence[str]) -> pd.DataFrame:
    """Levene's test: one-way F of the distances from the means of the cells.

    One row with the columns source, F, df1, df2, p; several factors are crossed.

    Raises
    ------
    UserError : a table that cannot be analysed.
    """
    return _distances(table, response, factors, np.mean)


def brown_forsythe(
    table: pd.DataFrame, response: str, factors: str | Sequence[str]
) -> pd.DataFrame:
    """Brown and Forsythe's test (1974): `levene` with distances from the medians."""
    return _distances(table, response, factors, np.median)


def welch(table: pd.DataFrame, response: str, factors: str | Sequence[str]) -> pd.DataFrame:
    """Welch's one-way test (1951) of equal means, without equal variances.

    One row with the columns source, F, df1, df2, p; several factors are crossed. NaN where a
    cell has one run or no spread.

    Raises
    ------
    UserError : a table that cannot be analysed.
    """
    source, groups = _groups(table, response, factors)
    return _row(source, *welch_ratio(groups))


def welch_ratio(groups: Sequence[np.ndarray]) -> tuple[float, int, float]:
    """Welch's F of groups of values and its two degrees of freedom."""
    k = len(groups)
    n = np.array([len(y) for y in groups], dtype=float)
    if n.min() < 2 or min(np.ptp(y) for y in groups) == 0:
        return NAN, k - 1, NAN
    means = np.array([y.mean() for y in groups])
    weights = n / np.array([y.var(ddof=1) for y in groups])
    share = weights / weights.sum()
    lost = np.sum((1 - share) ** 2 / (n - 1))
    between = np.sum(weights * (means - share @ means) ** 2) / (k - 1)
    F = between / (1 + 2 * (k - 2) / (k**2 - 1) * lost)
    return F, k - 1, (k**2 - 1) / (3 * lost)


def _groups(table: pd.DataFrame, response: str, factors) -> tuple[str, list[np.ndarray]]:
    factors = as_list(factors)
    table, cell = with_cells(table, factors)
    data = read(table, response, [cell])
    codes = data.codes[cell]
    return ":".join(factors), [data.y[codes == code] for code in range(codes.max() + 1)]


def _distances(table: pd.DataFrame, response: str, factors, centre) -> pd.DataFrame:
    source, groups = _groups(table, response, factors)
    distances = [np.abs(y - centre(y)) for y in groups]
    k, n = len(groups), sum(map(len, groups))
    overall = np.concatenate(distances).mean()
    between = sum(len(d) * (d.mean() - overall) ** 2 for d in distances)
    within = sum(np.sum((d - d.mean()) ** 2) for d in distances)
    # With two runs a cell both are as far from their median: what is left is rounding.
    spread = within > 1e-20 * sum(np.sum(d**2) for d in distances)
    F = between / (k - 1) / (within / (n - k)) if n > k and spread else NAN
    return _row(source, F, k - 1, n - k)


def _row(source: str, F: float, df1: float, df2: float) -> pd.DataFrame:
    row = {"source": source, "F": F, "df1": df1, "df2": df2, "p": float(fdtrc(df1, df2, F))}
    return pd.DataFrame([row])
