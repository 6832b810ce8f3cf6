"""The heat map of two factors."""

from __future__ import annotations

import math
from itertools import product

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from fitspace.report import words
from fitspace.report.figures import baselines
from fitspace.report.figures.axes import level_ticks, new, row_ticks
from fitspace.report.figures.names import short
from fitspace.report.figures.output import Figure, figure, of_table
from fitspace.report.figures.style import FACE, GRID, MUTED
from fitspace.report.results import TASK_CELLS, Results

MOST_TASKS = 4
# One hue from pale to dark, which is readable in grey, in print and with any colour vision.
HEAT = LinearSegmentedColormap.from_list(
    "heat", ["#f1f6fa", "#c3daea", "#84b3d3", "#3f82b1", "#14568a", "#08305c"]
)


def heat_maps(found: Results) -> list[Figure]:
    """The mean of every cell of two factors, over all tasks and then on each of a few."""
    if len(found.factors) != 2:
        return []
    response = found.primary
    maps = [_heat_map(found, "cells.csv", found.rows("cells.csv", response=response), None)]
    by_task = found.rows(TASK_CELLS, response=response)
    tasks = dict.fromkeys(by_task["task"]) if len(by_task) else {}
    if len(tasks) <= MOST_TASKS:
        maps += [_heat_map(found, TASK_CELLS, by_task[by_task["task"] == t], t) for t in tasks]
    return maps


def _heat_map(found: Results, file: str, table: pd.DataFrame, task: str | None) -> Figure:
    """``table`` has the primary response's cells, on one task or over all; others are hatched."""
    response, metric = found.primary, words.metric(found.primary)
    named = words.named(found.primary)
    # The factor with more levels runs down the page, because phones are narrow.
    down, across = sorted(found.factors, key=lambda f: len(found.levels[f]), reverse=True)
    means = table["mean"].dropna()
    low, high = shades(means)
    norm = Normalize(low, high, clip=True)
    below, above = means.min() < low, means.max() > high
    ends = {(True, True): "both", (True, False): "min", (False, True): "max"}
    colours = HEAT.reversed() if metric.lower else HEAT
    outside = baselines.of(found, response, task)
    canvas, axes = new(1.1 + 0.36 * len(found.levels[down]) + 0.13 * len(outside))
    _fill(axes, found, table, (down, across), lambda mean: colours(norm(mean)))
    level_ticks(axes, found.levels[across], top=True)
    row_ticks(axes, found.levels[down], 18)
    axes.set(xlim=(-0.5, len(found.levels[across]) - 0.5))
    axes.set_ylim(len(found.levels[down]) - 0.5, -0.5)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.tick_params(length=0)
    axes.set_xlabel(short(across), color=MUTED)
    axes.set_ylabel(short(down), color=MUTED)
    axes.spines[:].set_visible(False)
    thickness = 0.28 / len(found.levels[down])  # the same for any number of rows
    mappable = matplotlib.cm.ScalarMappable(norm, colours)
    bar = canvas.colorbar(
        mappable, ax=axes, orientation="horizontal", fraction=thickness, pad=0.1, aspect=36,
        extend=ends.get((below, above), "neither"),
    )  # fmt: skip
    _scale(bar, short(metric.label, 44), outside)
    best = table.loc[means.idxmin() if metric.lower else means.idxmax()]
    of, where = ("of each cell", "") if task is None else (f"of each cell on {task}", f" on {task}")
    said = [f"Mean {named} {of}. Darker is better, the best mean is bold."]
    if table["replicate_sd"].notna().any():
        said.append("± is the standard deviation over seeds.")
    if any(at not in found.planned for at in product(*(found.levels[f] for f in found.factors))):
        said.append("Hatched cells cannot be built.")
    if below or above:
        said.append("Cells far from all others have the colour of the scale's end.")
    alt = (
        f"Heat map of {named} by {found.factors[0]} and {found.factors[1]}{where}: best "
        f"{found.label(best)} with {words.number(best['mean'])}, range "
        f"{words.number(means.min())} to {words.number(means.max())}. The numbers are in "
        f"{file}."
    )
    data = of_table(file, table, [*found.factors, "mean", "replicate_sd"])
    data = baselines.beside(data, outside, "mean")
    name = f"heatmap-{response}" if task is None else f"heatmap-{response}-{task}"
    return figure(canvas, name, "cells", " ".join(said), alt, data)


def shades(means: pd.Series) -> tuple[float, float]:
    """The ends of the colour scale: the least and the largest mean that are not far out (Tukey:
    three interquartile ranges beyond the quartiles), so that one cell does not take all shades."""
    first, third = means.quantile([0.25, 0.75])
    reach = 3 * (third - first)
    inside = means[(means >= first - reach) & (means <= third + reach)]
    low, high = inside.min(), inside.max()
    return (low, high) if low < high else (0, 2 * means.max() or 1)


def _fill(axes: Axes, found: Results, table: pd.DataFrame, sides: tuple[str, str], colour) -> None:
    """A box with its numbers for every pair of levels; ``sides`` are the factors (down, across)."""
    down, across = sides
    cells = table.set_index([down, across])
    best = cells["mean"].min() if words.metric(found.primary).lower else cells["mean"].max()
    decimals = words.aligned(cells["mean"], 3)
    digits = max(len(words.fixed(mean, decimals)) for mean in cells["mean"].dropna())
    # About three of the four inches are cells, and a digit is 0.62 of its height wide.
    size = min(8.5, max(6.5, 3 * 72 / len(found.levels[across]) / (0.62 * digits)))
    for y, one in enumerate(found.levels[down]):
        for x, two in enumerate(found.levels[across]):
            box = {"xy": (x - 0.5, y - 0.5), "width": 1, "height": 1}
            at = {down: one, across: two}
            if (one, two) in cells.index and math.isfinite(cells.loc[(one, two), "mean"]):
                cell = cells.loc[(one, two)]
                face = colour(cell["mean"])
                axes.add_patch(Rectangle(**box, lw=1.5, ec=FACE, fc=face))
                weight = "bold" if cell["mean"] == best else "normal"
                style = {"color": ink_on(face), "ha": "center", "va": "center"}
                _numbers(axes, (x, y), cell, decimals, size, style | {"fontweight": weight})
            elif tuple(at[name] for name in found.factors) in found.planned:
                axes.text(x, y, "no run", ha="center", va="center", fontsize=7, color=MUTED)
            else:
                axes.add_patch(Rectangle(**box, lw=0, ec=GRID, fc="none", hatch="////"))


def _numbers(axes: Axes, at: tuple[int, int], cell, decimals: int, size: float, style) -> None:
    (x, y), spread = at, cell["replicate_sd"]
    shift = 0.14 if math.isfinite(spread) else 0
    axes.text(x, y - shift, words.fixed(cell["mean"], decimals), fontsize=size, **style)
    if shift:
        style = style | {"fontweight": "normal", "fontsize": 6.5}
        axes.text(x, y + 0.24, f"±{words.fixed(spread, decimals)}", **style)


def ink_on(colour: tuple[float, ...]) -> str:
    """White on dark colours, black on pale ones, by their luma (Rec. 601)."""
    return "#ffffff" if np.dot(colour[:3], [0.299, 0.587, 0.114]) < 0.55 else "#101418"


def _scale(bar: Colorbar, label: str, outside: list[baselines.Baseline]) -> None:
    """Name the scale of the colours and mark the baselines on it."""
    bar.outline.set_visible(False)
    bar.ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    bar.ax.tick_params(length=2, labelsize=7.5, color=MUTED)
    bar.set_label(label, fontsize=8)
    for row, one in enumerate(outside):
        if bar.vmin <= one.value <= bar.vmax:
            bar.ax.plot([one.value] * 2, [0, 1], color=one.colour, lw=2, clip_on=False)
        baselines.label_mark(bar.ax, one, (bar.vmin, bar.vmax), 2 + 9 * row)
