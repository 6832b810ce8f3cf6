"""The rows of a table of runs, where several were drawn from one training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fitspace.study import CHECKPOINT, DRAWN, Study

if TYPE_CHECKING:
    import pandas as pd


def within_of(runs: pd.DataFrame) -> list[str]:
    """The factors that vary within a training, of those that a table has."""
    return [name for name in (*DRAWN, CHECKPOINT) if name in runs]


def own_rows(study: Study, runs: pd.DataFrame, but: str | None = None) -> pd.Series:
    """Which rows are drawn as the study's ``sample`` has it, from the last step.

    A table with the column ``checkpoint`` needs ``steps``. ``but``: whatever the level of this
    factor is.
    """
    import pandas as pd

    own = pd.Series(True, runs.index)
    for factor in within_of(runs):
        if factor != but:
            level = runs["steps"] if factor == CHECKPOINT else getattr(study.sample, DRAWN[factor])
            own &= runs[factor].isna() | _same(runs[factor], pd.Series(level, runs.index))
    return own


def _same(levels: pd.Series, wanted: pd.Series) -> pd.Series:
    """Whether cells hold a level, as a number where both are numbers."""
    import pandas as pd

    numbers = [pd.to_numeric(cells, errors="coerce") for cells in (levels, wanted)]
    texts = [cells.astype(str).str.strip() for cells in (levels, wanted)]
    return (numbers[0] == numbers[1]) | (texts[0] == texts[1])
