"""Interaction lines: the mean response over one factor, a line per level of another."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fitspace.report import words
from fitspace.report.figures.axes import label_y, legend, level_ticks, metric_axis, new
from fitspace.report.figures.names import metric_label, short
from fitspace.report.figures.output import Figure, figure, numbered
from fitspace.report.figures.style import LINES
from fitspace.report.results import Results

MOST_PAIRS = 3
FONT = 8


def interactions(found: Results) -> list[Figure]:
    """A figure for each of the first pairs of factors.

    With more than two factors, only if every cell exists; otherwise the mean over the other
    factors would cover different cells for each level.
    """
    factors = found.analysis.factors
    if len(factors) > 2 and not found.analysis.interactions:
        return []
    count = {name: len(found.levels[name]) for name in factors}
    pairs = [sorted(pair, key=count.get) for pair in combinations(factors, 2)]
    pairs = [pair for pair in pairs if count[pair[0]] <= len(LINES)]
    return [_lines(found, lines, across) for lines, across in pairs[:MOST_PAIRS]]


def _lines(found: Results, factor: str, across: str) -> Figure:
    response, label = found.primary, words.named(found.primary)
    data = _means(found, factor, across)
    grid = data.pivot(index=factor, columns=across, values="mean")
    names, levels = (
        [level for level in found.levels[of] if level in there]
        for of, there in ((factor, grid.index), (across, grid.columns))
    )
    grid = grid[levels]
    canvas, axes = new(2.5)
    for level, style in zip(names, LINES, strict=False):
        axes.plot(range(len(levels)), grid.loc[level], ms=4.5, lw=1.2, **style)
    metric_axis(axes, found, response, "y")
    label_y(axes, metric_label(response))
    level_ticks(axes, levels)
    axes.set_xlabel(short(across))
    axes.margins(x=0.06)
    axes.grid(axis="y")
    _name_lines(axes, names, factor)
    scale = found.scale(response)
    tested = "" if scale in ("identity", "log") else f" The test is on the {scale} scale."
    others = [name for name in found.analysis.factors if name not in (factor, across)]
    over = f", averaged over {words.listed(others)}" if others else ""
    caption = (
        f"Mean {label} over {across}, one line per level of {factor}{over}. Parallel lines: "
        f"no interaction; a gap: no such cell.{tested}"
    )
    alt = (
        f"Lines of the mean {label} over the levels of {across} for each level of {factor}; "
        "the numbers are in cells.csv."
    )
    name = f"interaction-{response}-{factor}-{across}"
    return figure(canvas, name, "interactions", caption, alt, data)


def _means(found: Results, factor: str, across: str) -> pd.DataFrame:
    """The means of the analysed cells, averaged evenly over the levels of all other factors."""
    cells = found.rows("cells.csv", response=found.primary, component=0).dropna(subset="mean")
    rows = [
        {"table": "cells.csv", "row": numbered(ours), factor: one, across: two}
        | {"mean": ours["mean"].mean()}
        for (one, two), ours in cells.groupby([factor, across], sort=False)
    ]
    return pd.DataFrame(rows)


def _name_lines(axes: Axes, names: list[str], factor: str) -> None:
    """Name the lines at their ends if all names fit without collision; else in a legend below."""
    axes.figure.get_layout_engine().execute(axes.figure)
    points = 72 / axes.figure.dpi
    ends = [axes.transData.transform(line.get_xydata()[-1])[1] * points for line in axes.lines]
    if np.isfinite(ends).all() and min(np.diff(np.sort(ends)), default=FONT) >= FONT:
        for line, name in zip(axes.lines, names, strict=True):
            axes.annotate(
                short(name, 14),
                line.get_xydata()[-1],
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=FONT,
                color=line.get_color(),
                annotation_clip=False,
            )
        return
    handles = [
        Line2D([], [], label=short(name, 20), ms=4.5, lw=1.2, **style)
        for name, style in zip(names, LINES, strict=False)
    ]
    legend(axes.figure, handles, short(factor))
