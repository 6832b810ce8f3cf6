"""The table of what a study's tuning tried and chose, in the folder of the study's report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fitspace import bases
from fitspace.core.files import canonical, write_text
from fitspace.core.texts import cell
from fitspace.metrics import METRICS
from fitspace.plan import Plan, own_drawing
from fitspace.plan.tuning import is_log, tried

if TYPE_CHECKING:
    import pandas as pd

NAME = "tuning.csv"


def write(plan: Plan, folder: Path) -> None:
    """Write tuning.csv; without a tuning there is none."""
    path = folder / NAME
    if plan.study.tuning is None:
        path.unlink(missing_ok=True)
        return
    from fitspace.stats.digits import rounded

    write_text(path, rounded(table(plan)).to_csv(index=False, lineterminator="\n"))


def table(plan: Plan) -> pd.DataFrame:
    """A row for each cell and level tried, cell by cell.

    Columns: ``point`` (as the study's own runs are called), ``arm``, its factors and the tuned
    settings as text, ``scale`` of the response, and what `fitspace.stats.best_levels` says of the
    level; ``edge``: whether the best level is the lowest or the highest of a setting's.
    """
    import pandas as pd

    from fitspace import stats

    own = plan.study.tuning
    parts = tried(plan.study, bases.family(plan.study.base).name)
    names = {
        (p.arm, canonical({k: v for k, v in p.factors.items() if k not in p.within})): p.name
        for p in plan.points
        if own_drawing(plan.study, p)
    }
    units, long = [], []
    for part in parts:
        point = names[part.arm, canonical(part.cell)]
        for number, (levels, values) in enumerate(part.values.items()):
            at = part.cell | dict(zip(own.factors, levels, strict=True))
            units.append({"point": point, "arm": part.arm} | {k: cell(v) for k, v in at.items()})
            long += [(point, number, block, value) for block, value in enumerate(values)]
    runs = pd.DataFrame(long, columns=["point", "level", "block", "y"]).astype({"y": float})
    lower = METRICS[own.response].lower
    found = stats.best_levels(runs, "y", "point", "level", "block", lower)
    found = found.drop(columns=["point", "level"])
    last = _ends(own.factors).items()
    ends = pd.Series([any(row[name] in levels for name, levels in last) for row in units])
    scale = "log" if is_log(plan.study) else "identity"
    left = pd.DataFrame(units).fillna("").assign(response=own.response, scale=scale)
    return pd.concat([left, found, (found["best"] & ends).rename("edge")], axis=1)


def _ends(factors: dict[str, list]) -> dict[str, set[str]]:
    """The lowest and the highest level of each setting that is a number, as text."""
    numbers = {n: of for n, of in factors.items() if all(type(v) in (int, float) for v in of)}
    return {name: {cell(min(levels)), cell(max(levels))} for name, levels in numbers.items()}
