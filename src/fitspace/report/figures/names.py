"""The names of levels, points, metrics and scales in figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pandas as pd

from fitspace.report import words
from fitspace.report.results import Results

MOST_LABELLED = 60


def short(text: object, longest: int = 30) -> str:
    """User text as a printable label of limited length."""
    text = "".join(c if c.isprintable() else "�" for c in str(text))
    return text if len(text) <= longest else text[: longest - 1] + "…"


def metric_label(response: str) -> str:
    metric = words.metric(response)
    return f"{short(metric.label, 44)} ({'lower' if metric.lower else 'higher'} is better)"


def scaled(found: Results, response: str, what: str) -> str:
    """A quantity of the analysis with its scale, unless the scale is the measured one."""
    scale = found.scale(response)
    return what if scale == "identity" else f"{what} ({scale} scale)"


def arm_label(arm: str, method: str) -> str:
    """The usual name of a baseline, unless the study names its arm differently."""
    return words.METHODS.get(method, arm) if arm == method else arm


def cells_of(table: pd.DataFrame, factors: Sequence[str]) -> pd.Series:
    """The cell of every row: its levels as texts."""
    return pd.Series(list(zip(*(table[f].astype(str) for f in factors), strict=True)), table.index)


def point_names(found: Results) -> dict[str, str]:
    """The names of the points: levels for a cell, the arm for a baseline."""
    points = found.tables["points.csv"]
    names = {}
    for row in points.to_dict("records"):
        cell = words.cell_name(found.factors, [row[f] for f in found.factors])
        names[row["point"]] = cell if row["in_design"] else arm_label(row["arm"], row["method"])
    used = Counter(names.values())
    return {point: name if used[name] == 1 else point for point, name in names.items()}
