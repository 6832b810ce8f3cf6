"""Which level of a setting suits each unit best, and which levels the data cannot tell from it."""

from __future__ import annotations

import math

import pandas as pd

from fitspace.stats.digits import on_scale
from fitspace.stats.multiplicity import tukey_critical

ALPHA = 0.05


def best_levels(
    table: pd.DataFrame, response: str, unit: str, level: str, block: str, lower: bool = False
) -> pd.DataFrame:
    """Each unit's levels against its best one, in the blocks that all of its levels share.

    Parameters
    ----------
    table : one row per unit, level and block. A level that lacks a response in some block (a run
        that diverged) is never the best, and is compared with none.
    lower : whether the smallest mean is the best, not the largest.

    Returns
    -------
    One row per unit and level, in the table's order: ``unit``, ``level``, ``runs`` (with a
    response), ``mean``, ``worse`` (by how much the mean is worse than the best one), its limits
    ``low`` and ``high``, ``best``, and ``tied``: not separable from the best. Limits are Tukey's,
    simultaneous over the levels of a unit, with the error of all units together: what varies
    beyond level and block. They are NaN with one block, where nothing tells the error.
    ``attrs["sd"]`` is this error's standard deviation, ``attrs["df"]`` its degrees of freedom.

    Examples
    --------
    >>> y = {0.001: [5.0, 5.2, 5.4], 0.01: [7.0, 7.1, 7.5], 0.1: [6.9, 7.3, 7.3]}
    >>> rows = [("a", lr, seed, v) for lr, of in y.items() for seed, v in enumerate(of)]
    >>> table = pd.DataFrame(rows, columns=["point", "lr", "seed", "clip_i"])
    >>> found = best_levels(table, "clip_i", "point", "lr", "seed")
    >>> found[["lr", "worse", "best", "tied"]].round(3)
          lr  worse   best   tied
    0  0.001  2.000  False  False
    1  0.010  0.000   True   True
    2  0.100  0.033  False   True
    """
    units = {name: _wide(rows, response, level, block)
             for name, rows in table.groupby(unit, sort=False)}  # fmt: skip
    errors = [_error(wide.dropna()) for wide in units.values()]
    df = sum(freedom for _, freedom in errors)
    sd = math.sqrt(math.fsum(squares for squares, _ in errors) / df) if df else math.nan
    parts = []
    for name, wide in units.items():
        part = _against_best(wide, sd, df, lower).rename_axis(level).reset_index()
        part.insert(0, unit, name)
        parts.append(part)
    found = pd.concat(parts, ignore_index=True)
    found.attrs |= {"sd": sd, "df": df}
    return found


def _wide(rows: pd.DataFrame, response: str, level: str, block: str) -> pd.DataFrame:
    """A unit's responses, levels down in their order and blocks across."""
    wide = rows.pivot(index=level, columns=block, values=response)
    return wide.loc[list(dict.fromkeys(rows[level]))]


def _error(wide: pd.DataFrame) -> tuple[float, int]:
    """Sum of squares beyond level and block, and its degrees of freedom."""
    if wide.empty:
        return 0.0, 0
    y = wide.to_numpy()
    rest = y - y.mean(1, keepdims=True) - y.mean(0, keepdims=True) + y.mean()
    return float((rest**2).sum()), (y.shape[0] - 1) * (y.shape[1] - 1)


def _against_best(wide: pd.DataFrame, sd: float, df: int, lower: bool) -> pd.DataFrame:
    sound = wide.dropna()
    found = pd.DataFrame({"runs": wide.notna().sum(axis=1), "mean": sound.mean(axis=1)})
    means = found["mean"].dropna()
    names = ["worse", "low", "high", "best", "tied"]
    found = found.reindex(wide.index).assign(**dict.fromkeys(names[:3], math.nan))
    found["best"] = found["tied"] = False
    if means.empty:
        return found
    best = means.idxmin() if lower else means.idxmax()
    worse = (means - means[best]) * (1 if lower else -1)
    found["worse"] = pd.Series(on_scale(worse, float(means.abs().max())), means.index)
    reach = math.nan
    if df and len(means) > 1:
        reach = tukey_critical(len(means), df, ALPHA) * sd * math.sqrt(2 / sound.shape[1])
    others = found.index != best
    found["low"] = (found["worse"] - reach).where(others)
    found["high"] = (found["worse"] + reach).where(others)
    found["best"] = ~others
    found["tied"] = ~others | (found["low"] <= 0)
    return found
