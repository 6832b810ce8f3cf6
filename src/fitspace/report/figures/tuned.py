"""The curve of each point over the setting that was tuned."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import NullLocator

from fitspace.report import tuned, words
from fitspace.report.figures.axes import number_axis
from fitspace.report.figures.names import point_names, short
from fitspace.report.figures.output import Figure, figure, of_table
from fitspace.report.figures.style import FACE, LINES, MAIN, MUTED, WIDTH
from fitspace.report.results import Results

ACROSS, MOST = 3, 24
SECTION = "tuning"


def curves(found: Results) -> list[Figure]:
    """A panel for each point, the best first: the response over the first setting's levels."""
    table = found.rows(tuned.NAME)
    if table.empty:
        return []
    name, *others = sorted(found.study.tuning.factors, key=lambda n: n != "train.lr")
    lower = words.metric(table["response"].iloc[0]).lower
    best = table[table["best"]].sort_values("mean", ascending=lower, kind="stable")
    order = list(best["point"])
    shown = table[table["point"].isin(order[:MOST])]
    down = -(-len(order[:MOST]) // ACROSS)
    canvas = Canvas(figsize=(WIDTH, 0.5 + 1.15 * down))
    grid = canvas.subplots(down, ACROSS, squeeze=False, sharex=True, sharey=True)
    names = point_names(found)
    for axes in grid.flat[len(order[:MOST]) :]:
        axes.set_visible(False)
    for place, (axes, point) in enumerate(zip(grid.flat, order, strict=False)):
        _panel(axes, shown[shown["point"] == point], name, others)
        axes.tick_params(labelbottom=place + ACROSS >= len(order[:MOST]))
        axes.set_title(short(names.get(point, point), 24), loc="left", fontsize=7, pad=4)
    first = grid.flat[0]
    number_axis(first, "y", 3)
    canvas.supxlabel(name, fontsize=8.5)
    label = words.metric(table["response"].iloc[0]).label
    scale = "" if table["scale"].iloc[0] == "identity" else f" ({table['scale'].iloc[0]} scale)"
    rest = f" The first {MOST} of {len(order)} points." if len(order) > MOST else ""
    second = f" A line for each level of {others[0]}." if others else ""
    rim = "; with a rim: not separable from it" if table["low"].notna().any() else ""
    caption = (
        f"{label}{scale} over {name} on the tuning's tasks, mean of its runs, a panel for each "
        f"point. Filled: the level that was taken{rim}.{second}{rest}"
    )
    alt = (
        f"Curves of {label} over {name}, one panel for each point; the numbers are in {tuned.NAME}."
    )
    columns = ["point", name, *others, "mean", "best", "tied"]
    data = of_table(tuned.NAME, shown, columns)
    return [figure(canvas, "tuning", SECTION, caption, alt, data)]


def _panel(axes: Axes, rows: pd.DataFrame, name: str, others: list[str]) -> None:
    levels = pd.to_numeric(rows[name], errors="coerce")
    if levels.isna().any():  # names: in the order of the study file
        levels = pd.Series(pd.factorize(rows[name])[0], rows.index)
        axes.set_xticks(range(levels.max() + 1), rows[name].unique(), rotation=35, ha="right")
    elif levels.min() > 0 and levels.max() > 4 * levels.min():
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        every = sorted(set(levels))
        axes.set_xticks([every[0], every[-1]], [f"{every[0]:g}", f"{every[-1]:g}"])
        for tick, side in zip(axes.get_xticklabels(), ("left", "right"), strict=False):
            tick.set_ha(side)  # the labels of neighbouring panels do not meet
    groups = rows.groupby(others, sort=False) if others else [("", rows)]
    for (_, line), style in zip(groups, LINES, strict=False):
        axes.plot(levels[line.index], line["mean"], lw=1.0, color=style["color"], ls=style["ls"])
    for index, row in rows.iterrows():
        edge, face = (MAIN, MAIN if row["best"] else FACE) if row["tied"] else (MUTED, MUTED)
        size = 5 if row["tied"] else 2.5
        axes.plot(levels[index], row["mean"], "o", ms=size, mec=edge, mfc=face, mew=1.1)
    axes.margins(x=0.08)
    axes.grid(axis="y")
