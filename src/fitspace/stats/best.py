"""Which levels or cells the data cannot tell from the best one."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from fitspace.stats.blocks import Blocks
from fitspace.stats.deciding import apart
from fitspace.stats.fits import LinearFit
from fitspace.stats.given import given
from fitspace.stats.linear import as_labels, with_cells
from fitspace.stats.means import marginal_means

ALPHA = 0.05
# Beyond this cells are not compared: their pairs would be a table that nobody reads.
MOST_CELLS = 24


def of_levels(every: pd.DataFrame, means: pd.DataFrame, lower: bool) -> list[bool]:
    """For each row of ``means`` (level, mean): not separable from the best level.

    ``every`` are all differences of two levels (see `apart`). The best level has the largest mean,
    or with ``lower`` the smallest. A level whose mean is not estimable is not said to be tied.
    """
    known = means.dropna(subset="mean")
    if known.empty:
        return [False] * len(means)
    tied = not_separable(known.set_index("level")["mean"], every, lower)
    return [level in tied for level in means["level"]]


def of_cells(
    table: pd.DataFrame,
    response: str,
    factors: Sequence[str],
    cells: pd.DataFrame,
    blocks: Blocks,
    lower: bool,
) -> pd.Series:
    """For each row of ``cells``, whether it is not separable from the best cell of ``table``.

    None where it was not compared: a cell that is not in ``table``, more than `MOST_CELLS`
    cells, no runs left over to estimate error, or one factor, whose levels the cells are.
    """
    none = pd.Series([None] * len(cells), index=cells.index, dtype=object)
    if len(factors) < 2:
        return none
    table, cell = with_cells(table[table[response].notna()], factors)
    if not 2 <= table[cell].nunique() <= MOST_CELLS:
        return none
    model = given(table, response, [cell], blocks.with_cells(cell)).model(table)
    if not model.df:
        return none
    means = marginal_means(LinearFit(model), cell).set_index("level")["mean"]
    if means.isna().all():
        return none
    first = means.idxmin() if lower else means.idxmax()
    every = apart(model, cell, control=first, adjust="tukey")
    tied = not_separable(means, every, lower)
    labels = [as_labels(cells[name]) for name in factors]
    names = [str(levels) for levels in zip(*labels, strict=True)]
    return pd.Series(
        [name in tied if name in means else None for name in names], cells.index, dtype=object
    )


def not_separable(means: pd.Series, every: pd.DataFrame, lower: bool) -> set[str]:
    """The best of ``means`` (by level) and all that are not shown to differ from it."""
    best = means.idxmin() if lower else means.idxmax()
    ours = every[(every["level"] == best) | (every["other"] == best)]
    separate = ours[ours["p_deciding"] < ALPHA]
    return set(means.index) - (set(separate["level"]) | set(separate["other"])) | {best}
