"""Factors that vary within a training: every training's line, and the mean of all."""

from __future__ import annotations

import pandas as pd

from fitspace.report import words
from fitspace.report.drawn import LEVELS, UNIT, compared, rows_of
from fitspace.report.figures.axes import label_y, level_ticks, metric_axis, new
from fitspace.report.figures.names import short
from fitspace.report.figures.output import Figure, figure, of_table
from fitspace.report.figures.style import MAIN, MUTED
from fitspace.report.results import Results

MOST_LINES = 200


def drawn(found: Results) -> list[Figure]:
    """A figure for each factor that varies within a training, of each response."""
    rows = found.rows(LEVELS)
    if not len(rows):
        return []
    asked = rows[["response", "factor"]].drop_duplicates().itertuples(index=False)
    return [_lines(found, response, factor) for response, factor in asked]


def _lines(found: Results, response: str, factor: str) -> Figure:
    metric, means = words.metric(response), found.rows(LEVELS, response=response, factor=factor)
    levels = means["level"].astype(str)
    numbers = pd.to_numeric(levels, errors="coerce")
    at = numbers if numbers.notna().all() else pd.Series(range(len(levels)), levels.index)
    place = dict(zip(levels, at, strict=True))
    rows = rows_of(found.study, found.drawn, factor).dropna(subset=response)
    rows = rows[rows[factor].astype(str).isin(place)]
    inside = compared(rows, found.factors).rows
    lines = [own for _, own in inside.groupby(UNIT, sort=False) if len(own) == len(levels)]
    others = rows[~rows.index.isin(inside.index)]
    shown = lines if len(lines) <= MOST_LINES else []
    canvas, axes = new(2.5)
    for own in shown:
        x = own[factor].astype(str).map(place)
        axes.plot(x, own[response], color=MUTED, lw=0.6, alpha=0.45)
    for arm, own in others.groupby("arm", sort=False):
        mean = own.groupby(own[factor].astype(str).map(place))[response].mean().sort_index()
        axes.plot(mean.index, mean, "--", color=MUTED, lw=1.2)
        axes.annotate(short(str(arm), 14), (mean.index[-1], mean.iloc[-1]), xytext=(3, 0),
                      textcoords="offset points", va="center", fontsize=7, color=MUTED)  # fmt: skip
    axes.fill_between(at, means["low"], means["high"], color=MAIN, alpha=0.2, lw=0)
    axes.plot(at, means["mean"], "o-", color=MAIN, lw=1.6, ms=4.2)
    if numbers.notna().all():
        axes.set_xticks(at, list(levels))
        axes.minorticks_off()
    else:
        level_ticks(axes, list(levels))
    metric_axis(axes, found, response, "y")
    label_y(axes, short(metric.label, 44))
    axes.set_xlabel(short(factor))
    axes.grid(axis="y")
    each = "a thin line for each training, " if shown else ""
    dashed = ", and dashed the means of other arms" if len(others) else ""
    caption = (
        f"{metric.label} over {factor}, which varies within a training: {each}the mean of "
        f"{int(means['units'].iloc[0])} trainings, and 95% limits from what varies within "
        f"trainings alone: they compare levels, not points{dashed}."
    )
    alt = f"Lines of {metric.label} over {factor}; the numbers are in {LEVELS}."
    data = [of_table(LEVELS, means, ["level", "mean", "low", "high"])]
    data += [of_table("runs.csv", own, [factor, response]) for own in (*shown, others) if len(own)]
    name = f"within-{response}-{factor.replace('.', '-')}"
    return figure(canvas, name, "within", caption, alt, pd.concat(data, ignore_index=True))
