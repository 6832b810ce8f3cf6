"""The power curve: power of this design against the difference of two levels."""

from __future__ import annotations

from itertools import cycle

import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from fitspace.report import words
from fitspace.report.figures.axes import label_y, legend, new
from fitspace.report.figures.names import short
from fitspace.report.figures.output import Figure, figure, having, of_table
from fitspace.report.figures.style import LINES, MUTED
from fitspace.report.results import Results

GOAL = 0.8


def power(found: Results) -> list[Figure]:
    """Power against the difference of two levels, a line per factor."""
    response, label = found.primary, words.named(found.primary)
    table = having(found, "power.csv", "power", response=response)
    if table.empty:
        return []
    canvas, axes = new(2.4)
    axes.axhline(GOAL, color=MUTED, lw=0.9, ls="--")
    handles = []
    for (curve, factors), style in zip(_curves(table).items(), cycle(LINES), strict=False):
        style = style | {"ms": 3.5, "lw": 1.2}
        axes.plot(*zip(*curve, strict=True), **style)
        handles.append(Line2D([], [], label=short(words.listed(factors), 44), **style))
    axes.set(xlabel="difference of two levels / residual SD", ylim=(0, 1.02))
    axes.set_xlim(0, table["ratio"].max() * 1.02)
    axes.set_yticks([0, 0.2, 0.4, 0.6, GOAL, 1])
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    label_y(axes, "power")
    axes.grid()
    legend(canvas, handles)
    caption = (
        f"Power of each factor's test on {label} at 5%, before Holm, by the difference of "
        "two of its levels (the pair hardest to tell apart, the others at the mean). Dashed: 80%."
    )
    alt = f"Power curves of {words.listed(table['factor'].unique())}; see power.csv."
    data = of_table("power.csv", table, ["factor", "ratio", "delta", "power"])
    return [figure(canvas, f"power-{response}", "power", caption, alt, data)]


def _curves(table: pd.DataFrame) -> dict[tuple, list[str]]:
    """Each curve as pairs of (ratio, power), with the factors that share it."""
    curves: dict[tuple, list[str]] = {}
    for factor, rows in table.groupby("factor", sort=False):
        curve = tuple(zip(rows["ratio"], rows["power"], strict=True))
        curves.setdefault(curve, []).append(str(factor))
    return curves
