"""Factors whose levels are numbers: the means of their levels, and the curve through them."""

from __future__ import annotations

import pandas as pd

from fitspace.report import words
from fitspace.report.figures.axes import label_y, new, number_axis
from fitspace.report.figures.names import scaled, short
from fitspace.report.figures.output import Figure, figure, of_table
from fitspace.report.figures.style import FACE, MAIN, MUTED
from fitspace.report.results import Results


def trends(found: Results) -> list[Figure]:
    """A figure for each factor that has a trend, of the primary response."""
    rows = found.rows("trends.csv", response=found.primary)
    factors = list(rows["factor"].unique()) if len(rows) else []
    return [_curve(found, factor) for factor in factors]


def _curve(found: Results, factor: str) -> Figure:
    response, metric = found.primary, words.metric(found.primary)
    label = words.named(found.primary)
    rows = found.rows("effects.csv", response=response, factor=factor).dropna(subset="mean")
    curve = found.rows("curves.csv", response=response, factor=factor)
    levels = rows["level"].astype(float)
    canvas, axes = new(2.5)
    if (curve["scores"] == "log2").all():
        axes.set_xscale("log", base=2)
    axes.fill_between(curve["at"], curve["low"], curve["high"], color=MAIN, alpha=0.15, lw=0)
    axes.plot(curve["at"], curve["estimate"], color=MAIN, lw=1.3)
    axes.vlines(levels, rows["low"], rows["high"], color=MUTED, lw=1.2)
    axes.plot(levels, rows["mean"], "o", ms=4.8, mfc=FACE, mec=MUTED, mew=1.1)
    axes.set_xticks(levels, [f"{level:g}" for level in levels])
    axes.minorticks_off()
    number_axis(axes, "y")
    label_y(axes, scaled(found, response, short(metric.label, 44)))
    axes.set_xlabel(short(factor))
    axes.grid(axis="y")
    caption = (
        f"{metric.label} over {factor}: marginal means with 95% intervals, and the fitted "
        "second-degree curve with its 95% band (of each point by itself)."
    )
    alt = f"Curve of {label} over {factor} with its band; the numbers are in curves.csv."
    data = [
        of_table("curves.csv", curve, ["at", "estimate", "low", "high"]),
        of_table("effects.csv", rows, ["level", "mean", "low", "high"]),
    ]
    data = pd.concat(data, ignore_index=True)
    return figure(canvas, f"trend-{response}-{factor}", "trends", caption, alt, data)
