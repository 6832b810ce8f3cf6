"""Tests of equal variances, and of equal means without them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.special import fdtrc

from fitspace.core.errors import UserError
from fitspace.stats.linear import Model, as_list, read, with_cells
from fitspace.stats.multiplicity import compared

NAN = float("nan")


def levene(table: pd.DataFrame, response: str, factors: str | Sequence[str]) -> pd.DataFrame:
    """Levene's test: one-way F of the distances from the means of the cells.

    >>> table = pd.DataFrame({"y": [4.1, 4.5, 4.0, 5.2, 7.0, 3.3], "arm": list("aaabbb")})
    >>> levene(table, "y", "arm").round(4)
      source       F  df1  df2       p
    0    arm  2.9473    1    4  0.1612

    One row with the columns source, F, df1, df2, p; several factors are crossed.

    Raises
    ------
    UserError : a table that cannot be analysed.
    """
    return _distances(table, response, factors, "mean")


def brown_forsythe(
    table: pd.DataFrame, response: str, factors: str | Sequence[str]
) -> pd.DataFrame:
    """Brown and Forsythe's test (1974): `levene` with distances from the medians.

    >>> table = pd.DataFrame({"y": [4.1, 4.5, 4.0, 5.2, 7.0, 3.3], "arm": list("aaabbb")})
    >>> brown_forsythe(table, "y", "arm").round(4)
      source       F  df1  df2       p
    0    arm  2.8764    1    4  0.1651
    """
    return _distances(table, response, factors, "median")


def levene_in_cells(
    table: pd.DataFrame, residual: str, factors: str | Sequence[str], cells: Sequence[str]
) -> pd.DataFrame:
    """Levene's test of the distances of runs from the mean of their cell, a column of residuals.

    >>> table = pd.DataFrame({"r": [0.1, -0.1, 0.3, -0.3, 1.0, -1.0, 1.4, -1.4]})
    >>> table["arm"], table["width"] = list("aaaabbbb"), list("ssttsstt")
    >>> levene_in_cells(table, "r", "arm", ["arm", "width"]).round(4)
      source     F  df1  df2       p
    0    arm  20.0    1    2  0.0465

    The first run of each cell is left out: the others determine its residual, and two runs are as
    far from their mean. Columns as in `levene`; NaN where no group has two distances left.

    Raises
    ------
    UserError : a table that cannot be analysed.
    """
    left = table[table.duplicated(list(cells))]
    if left.empty:
        return _row(":".join(as_list(factors)), NAN, NAN, NAN)
    source, groups = _groups(left.assign(**{residual: left[residual].abs()}), residual, factors)
    return _row(source, *_one_way(groups))


def welch(table: pd.DataFrame, response: str, factors: str | Sequence[str]) -> pd.DataFrame:
    """Welch's one-way test (1951) of equal means, without equal variances.

    >>> table = pd.DataFrame({"y": [4.1, 4.5, 4.0, 5.2, 7.0, 3.3], "arm": list("aaabbb")})
    >>> welch(table, "y", "arm").round(4)
      source       F  df1     df2       p
    0    arm  0.8025    1  2.0818  0.4617

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
    if min(map(len, groups)) < 2 or min(np.ptp(y) for y in groups) == 0:
        return NAN, k - 1, NAN
    from statsmodels.stats.oneway import anova_oneway

    found = anova_oneway(groups, use_var="unequal", welch_correction=True)
    return float(found.statistic), k - 1, float(found.df_denom)


def games_howell(
    table: pd.DataFrame, response: str, factor: str, *, confidence: float = 0.95
) -> pd.DataFrame:
    """All differences of two levels' means, each level with its own variance (1976).

    >>> table = pd.DataFrame(
    ...     {"y": [4.0, 4.5, 4.1, 5.0, 7.5, 6.1, 6.5, 6.0, 6.2], "arm": list("aaabbbccc")}
    ... )
    >>> games_howell(table, "y", "arm")[["contrast", "estimate", "df", "p", "p_adjusted"]].round(4)
      contrast  estimate      df       p  p_adjusted
    0    a - b   -2.0000  2.1780  0.1039      0.1862
    1    a - c   -2.0333  3.9900  0.0007      0.0015
    2    b - c   -0.0333  2.1611  0.9678      0.9989

    Columns as in `pairs`: Welch's t on Satterthwaite's degrees of freedom, p_adjusted and limits
    by the studentized range. A level with one run has no variance: NaN, with a note.

    Raises
    ------
    UserError : a table that cannot be analysed.
    """
    data = read(table, response, [factor])
    codes, names = data.codes[factor], data.levels[factor]
    count = np.bincount(codes)
    mean = np.bincount(codes, data.y) / count
    squares = np.bincount(codes, (data.y - mean[codes]) ** 2)
    rows, notes = [], []
    for k, name in enumerate(names):
        if count[k] > 1 and data.is_rounding(squares[k], count[k] - 1):
            squares[k] = 0.0
            notes.append(f"{factor} {name} has runs without spread")
        if count[k] == 1:
            squares[k] = NAN
            notes.append(f"{factor} {name} has one run, and so no variance")
    share = squares / np.maximum(count - 1, 1) / count
    for i, j in combinations(range(len(names)), 2):
        se2 = share[i] + share[j]
        used = [k for k in (i, j) if share[k] > 0]
        row = {"contrast": f"{names[i]} - {names[j]}", "estimate": mean[i] - mean[j]}
        df = se2**2 / sum(share[k] ** 2 / (count[k] - 1) for k in used) if se2 > 0 else NAN
        rows.append(row | {"se": se2**0.5, "df": df})
    result = compared(pd.DataFrame(rows), "tukey", levels=len(names), confidence=confidence)
    result.attrs["notes"] = data.notes + notes
    return result


# One term of a test: sum of squares (NaN), degrees of freedom, F, and those of its error.
Part = tuple[float, int, float, float]


def welch_part(model: Model) -> tuple[list[Part], list[str]]:
    """Welch's test of the one factor of a model, and why there is none."""
    ((name,),) = model.terms
    codes = model.data.codes[name]
    F, df1, df2 = welch_ratio([model.data.y[codes == code] for code in range(codes.max() + 1)])
    why = "no Welch test: a level has one run, or runs without spread"
    return [(NAN, df1, F, df2)], [why] if math.isnan(F) else []


def welch_james(model: Model) -> tuple[list[Part], list[str]]:
    """Johansen's test (1980) of each term on the means of all cells, each with its own variance.

    A term's hypothesis is that of type III: its sum contrasts of the cells' means, evenly over
    the other factors. Nothing is assumed of terms that the model leaves out.

    Raises
    ------
    UserError : a cell of the full factorial without runs.
    """
    data, names = model.data, list(dict.fromkeys(name for term in model.terms for name in term))
    shape = [len(data.levels[name]) for name in names]
    cell = np.ravel_multi_index([data.codes[name] for name in names], shape)
    cells, seen = math.prod(shape), len(np.unique(cell))
    if seen < cells:
        raise UserError(
            f"robust: 'welch-james' compares the means of all {cells} cells; {cells - seen} have "
            "no run"
        )
    counts = np.bincount(cell)
    means = np.bincount(cell, data.y) / counts
    rest = data.y - means[cell]
    squares = np.bincount(cell, rest**2)
    spread = counts > 1
    spread[spread] = ~np.array(
        [data.is_rounding(squares[c], counts[c] - 1) for c in np.flatnonzero(spread)], dtype=bool
    )
    if not spread.all():
        why = f"{np.sum(~spread)} of {len(counts)} cells have one run, or runs without spread"
        df = [math.prod(len(data.levels[n]) - 1 for n in term) for term in model.terms]
        return [(NAN, k, NAN, NAN) for k in df], [f"no Welch-James test: {why}"]
    variances = squares / (counts - 1) / counts
    parts = []
    for term in model.terms:
        sizes = zip(names, shape, strict=True)
        sides = [_sum_contrasts(k) if n in term else np.ones((1, k)) for n, k in sizes]
        parts.append(_johansen(reduce(np.kron, sides), means, variances, counts - 1))
    return parts, []


def _johansen(contrasts: np.ndarray, means, variances, df) -> Part:
    """Test that contrasts (k, cells) of means are 0, given the variances of the means."""
    k = len(contrasts)
    inverse = np.linalg.inv((contrasts * variances) @ contrasts.T)
    found = contrasts @ means
    share = variances * np.einsum("ia,ij,ja->a", contrasts, inverse, contrasts)
    lost = float(np.sum(share**2 / df))  # of each cell tr(Q)^2 = tr(Q^2): Q has rank 1
    scale = k + 2 * lost - 6 * lost / (k + 2)
    return NAN, k, float(found @ inverse @ found) / scale, k * (k + 2) / (3 * lost)


def _sum_contrasts(k: int) -> np.ndarray:
    return np.hstack([np.eye(k - 1), -np.ones((k - 1, 1))])


def _groups(table: pd.DataFrame, response: str, factors) -> tuple[str, list[np.ndarray]]:
    factors = as_list(factors)
    table, cell = with_cells(table, factors)
    data = read(table, response, [cell])
    codes = data.codes[cell]
    return ":".join(factors), [data.y[codes == code] for code in range(codes.max() + 1)]


def _distances(table: pd.DataFrame, response: str, factors, centre: str) -> pd.DataFrame:
    source, groups = _groups(table, response, factors)
    middle = np.median if centre == "median" else np.mean
    return _row(source, *_one_way([np.abs(y - middle(y)) for y in groups]))


def _one_way(distances: Sequence[np.ndarray]) -> tuple[float, int, int]:
    """F of groups of distances and its degrees of freedom; NaN without variation within groups."""
    from scipy.stats import f_oneway

    k, n = len(distances), sum(map(len, distances))
    within = sum(np.sum((d - d.mean()) ** 2) for d in distances)
    grand = np.concatenate(distances).mean()
    between = sum(len(d) * (d.mean() - grand) ** 2 for d in distances)
    # With two runs a cell both are as far from their median, and residuals of a model with all
    # interactions mirror each other: what is left is rounding.
    rounding = 1e-20 * sum(np.sum(d**2) for d in distances)
    if k < 2 or n <= k or within <= rounding:
        return NAN, k - 1, n - k
    return 0.0 if between <= rounding else float(f_oneway(*distances).statistic), k - 1, n - k


def _row(source: str, F: float, df1: float, df2: float) -> pd.DataFrame:
    row = {"source": source, "F": F, "df1": df1, "df2": df2, "p": float(fdtrc(df1, df2, F))}
    return pd.DataFrame([row])
