"""Baselines in a figure: the mean of each arm outside the design, beside the cells."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fitspace.report import words
from fitspace.report.figures.names import arm_label, short
from fitspace.report.figures.output import numbered
from fitspace.report.figures.style import INK, MARKERS, SECOND, THIRD
from fitspace.report.results import Results
from fitspace.stats import in_design

_COLOURS, _DASHES = (SECOND, THIRD, INK), ("--", ":", "-.")


@dataclass(frozen=True)
class Baseline:
    """An arm's finished runs that have the response, their mean and how it is drawn."""

    label: str
    runs: pd.DataFrame
    value: float
    index: int

    @property
    def colour(self) -> str:
        return _COLOURS[self.index % 3]

    @property
    def dash(self) -> str:
        return _DASHES[(self.index + self.index // 3) % 3]

    @property
    def marker(self) -> str:
        return MARKERS[::-1][self.index % len(MARKERS)]

    @property
    def handle(self) -> Line2D:
        return Line2D([], [], color=self.colour, ls=self.dash, lw=1.1, label=short(self.label))


def of(found: Results, response: str, task: str | None = None) -> list[Baseline]:
    """The baselines that have finished runs; each looks the same in every figure."""
    outside = found.runs[~in_design(found.runs, found.factors)]
    every = []
    for index, (arm, rows) in enumerate(outside.groupby("arm", sort=False)):
        label = arm_label(arm, rows["method"].iloc[0])
        rows = rows[(rows["status"] == "ok") & rows[response].notna()]
        rows = rows if task is None else rows[rows["task"] == task]
        if len(rows):
            every.append(Baseline(label, rows, rows[response].mean(), index))
    return every


def beside(data: pd.DataFrame, baselines: list[Baseline], column: str, **more) -> pd.DataFrame:
    """The drawn data with a row for each baseline, its mean in ``column``."""
    rows = [
        {"table": "runs.csv", "row": numbered(one.runs), "baseline": one.label, column: one.value}
        | more
        for one in baselines
    ]
    return pd.concat([data, pd.DataFrame(rows)], ignore_index=True) if rows else data


def mark(
    axes: Axes, baselines: list[Baseline], values: Iterable[float], *, named: bool = True
) -> float:
    """Mark baselines as lines across x, and those far from the values as arrows at the edge.

    Unless ``named``, only the arrows have a text, which is the number; a legend has the names.
    Returns the height of the texts above the axes [point].
    """
    values = [v for v in values if math.isfinite(v)]
    low, high = min(values), max(values)
    reach = (high - low) * 0.8 or abs(high) * 0.05 or 1
    near = [one.value for one in baselines if low - reach <= one.value <= high + reach]
    low, high = min([low, *near]), max([high, *near])
    pad = (high - low) * 0.06 or reach
    left = low - pad
    if axes.get_xscale() == "log":
        left = max(left, low / 1.5)
    axes.set_xlim(left, high + pad)
    lift = 3
    for one in baselines:
        inside = low <= one.value <= high
        if inside:
            axes.axvline(one.value, color=one.colour, lw=1.1, ls=one.dash)
        if named or not inside:
            label_mark(axes, one, (low, high), lift, named=named)
            lift += 10
    return lift


def label_mark(
    axes: Axes, one: Baseline, ends: tuple[float, float], lift: float, *, named: bool = True
) -> None:
    """A baseline's name above the axes, at its value or at the edge beyond which it lies."""
    left, right = axes.get_xlim()
    name = short(one.label) if named else ""
    label, x = name, min(max(one.value, left), right)
    if one.value > ends[1]:
        label, x = f"{name} {words.number(one.value)} →", right
    elif one.value < ends[0]:
        label, x = f"← {name} {words.number(one.value)}", left
    share = (x - left) / (right - left)
    axes.annotate(
        " ".join(label.split()),
        (x, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, lift),
        textcoords="offset points",
        ha="left" if share < 0.25 else "right" if share > 0.75 else "center",
        va="bottom",
        fontsize=8,
        color=one.colour,
        annotation_clip=False,
    )
