"""Agreement between metrics: do they rank the points alike?"""

from __future__ import annotations

from itertools import combinations

import pandas as pd

from fitspace import stats
from fitspace.metrics import METRICS

NAME = "agreement.csv"
# A rank correlation whose interval stays below this is a disagreement: another metric would then
# often name another of two points as the better one.
ALIKE = 0.5


def table(runs: pd.DataFrame, primary: str) -> pd.DataFrame:
    """Spearman's correlation of each two metrics over the points, the primary response's first.

    Each value is a point's mean over seeds, less its task's mean, then over tasks: tasks are not
    points. Signs are turned so that higher is better; ``prompt_sensitivity`` and other numbers that
    judge nothing are left out. Limits by drawing points anew, none for fewer than eight. Empty for
    fewer than two metrics that vary, or fewer than four points.
    """
    finished = runs[runs["status"].eq("ok")]
    names = [n for n, row in METRICS.items() if n in finished and not row.explains]
    means = finished.groupby(["point", "task"], sort=False)[names].mean()
    means *= [-1 if METRICS[n].lower else 1 for n in names]
    means -= means.groupby(level="task").transform("mean")
    points = means.groupby(level="point", sort=False).mean()
    names = [n for n in names if points[n].nunique() > 1]
    ordered = [n for n in names if n == primary] + [n for n in names if n != primary]
    rows = []
    for one, other in combinations(ordered, 2):
        found = stats.correlation(points, one, other).set_index("measure").loc["Spearman"]
        row = {"metric": one, "other": other, "points": int(found["cells"])}
        rows.append(row | found[["estimate", "low", "high"]].to_dict())
    every = pd.DataFrame(rows)
    return every.dropna(subset="estimate").reset_index(drop=True) if rows else every


def disagreeing(rows: pd.DataFrame, primary: str) -> pd.DataFrame:
    """The metrics that do not rank the points as the primary one does; none without limits."""
    ours = rows[rows["metric"] == primary] if len(rows) else rows
    return ours[ours["high"] < ALIKE] if len(ours) else ours
