"""Figures of explanations: sensitivity by time step, block and cell; what parameters changed."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fitspace.report import explained, words
from fitspace.report.figures.axes import (
    label_points,
    label_y,
    legend,
    metric_axis,
    new,
    number_axis,
)
from fitspace.report.figures.names import metric_label, point_names, short
from fitspace.report.figures.output import Figure, figure, of_table
from fitspace.report.figures.sample_size import telling
from fitspace.report.figures.style import INK, LINES, MAIN
from fitspace.report.results import Results

SECTION = "explain"
BASE = "untouched model"
# Part of the anatomy -> column, name of the file and of the axis, and what it is.
PARTS = {
    "relative": ("relative", "change of weights, relative to the base's (Frobenius norm)"),
    "added": ("value", "norm of the parameters that were added"),
    "gamma": ("value", "mean |γ − 1|"),
    "rank": ("value", "effective rank of the change"),
}


def sensitivities(found: Results) -> list[Figure]:
    """Sensitivity over time steps and over blocks, for the extreme cells and the baselines."""
    figures = []
    for file, column, what in (
        ("sensitivity_steps.csv", "step", "time step"),
        ("sensitivity_blocks.csv", "depth", "block, in the order of computing"),
    ):
        data = _told(found, file, column)
        if len(data):
            figures.append(_over(data, file, column, what))
    return figures


def _told(found: Results, file: str, column: str) -> pd.DataFrame:
    """The rows of the drawn points, and of the untouched model beside the first of them."""
    rows, parts = found.rows(file), []
    if rows.empty:
        return rows
    rows = rows.dropna(subset=["ratio"])
    points = {name: runs["point"].iloc[0] for name, runs in telling(found).items()}
    for name, point in points.items():
        ours = rows[(rows["point"] == point) & (rows["model"] == "tuned")]
        parts.append(of_table(file, ours, [column, "ratio"]).assign(of=name))
    first = rows[(rows["point"] == next(iter(points.values()))) & (rows["model"] == "untouched")]
    # A study with an arm of the untouched base has drawn it already.
    if not (found.runs["method"] == "none").any():
        parts.append(of_table(file, first, [column, "ratio"]).assign(of=BASE))
    return pd.concat(parts, ignore_index=True)


def _over(data: pd.DataFrame, file: str, column: str, what: str) -> Figure:
    canvas, axes = new(2.5)
    _lines(axes, data, column, "ratio")
    label_y(axes, "prompt sensitivity" if column == "step" else "sensitivity of hidden states")
    axes.set_xlabel(what)
    names = _legend(canvas, data)
    by = "predicted noise" if column == "step" else "hidden states at each block's output"
    caption = (
        f"How far the {by} moves with what was taught, over the {what}: squared distance between "
        "both conditions, relative to the second."
    )
    alt = f"Lines of sensitivity over the {what} for {words.listed(names)}; see {file}."
    return figure(canvas, f"sensitivity-{column}", SECTION, caption, alt, data)


def _lines(axes: Axes, data: pd.DataFrame, x: str, y: str) -> None:
    for (_, rows), style in zip(data.groupby("of", sort=False), LINES, strict=False):
        axes.plot(rows[x], rows[y], ms=4, lw=1.2, **style)
    if (data[y] > 0).all() and data[y].max() > 8 * data[y].min():
        axes.set_yscale("log")
    number_axis(axes, "y")
    number_axis(axes, "x", 6)
    if x == "depth":
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(axis="y")


def _legend(canvas, data: pd.DataFrame) -> list[str]:
    names = list(data["of"].unique())
    handles = [
        Line2D([], [], label=short(name, 44), ms=4, lw=1.2, **style)
        for name, style in zip(names, LINES, strict=False)
    ]
    legend(canvas, handles)
    return names


def against_sensitivity(found: Results) -> list[Figure]:
    """The outcome against sensitivity, a mark for each cell."""
    response, sensitivity = explained.outcome(found.responses), explained.SENSITIVITY
    if found.rows("correlation.csv").empty or response is None:
        return []
    points = found.tables["points.csv"]
    points = points[points["in_design"]].dropna(subset=[response, sensitivity])
    canvas, axes = new(2.6)
    axes.plot(points[sensitivity], points[response], "o", ms=4.5, mfc="none", mec=MAIN, mew=1.1)
    base = found.rows("points.csv", method="none").dropna(subset=[response, sensitivity])
    axes.plot(base[sensitivity], base[response], "s", ms=5, color=INK)
    metric_axis(axes, found, response, "y")
    number_axis(axes, "x", 5)
    label_y(axes, metric_label(response))
    axes.set_xlabel("prompt sensitivity")
    axes.margins(0.1)
    axes.grid()
    names = point_names(found)
    shown = pd.concat([points, base])
    at = zip(shown[sensitivity], shown[response], shown["point"], strict=True)
    label_points(axes, [(x, y, short(names[point], 22)) for x, y, point in at])
    label = words.metric(response).label
    caption = (
        f"{label} against prompt sensitivity, one mark per cell (mean of its runs); square: the "
        "untouched base. Names are shown if there is room."
    )
    alt = f"Scatter plot of {label} against prompt sensitivity; the numbers are in points.csv."
    data = of_table("points.csv", shown, ["point", sensitivity, response])
    return [figure(canvas, f"sensitivity-{response}", SECTION, caption, alt, data)]


def anatomies(found: Results) -> list[Figure]:
    """What the parameters changed, over the blocks, for the points that have such a part."""
    rows = found.rows("anatomy_points.csv")
    if rows.empty:
        return []
    rows = rows.dropna(subset=["depth"])
    changes = rows[rows["part"] == "change"]
    parts = {
        "relative": changes.dropna(subset=["relative"]),
        "added": changes[changes["relative"].isna()],
        "gamma": rows[rows["part"] == "gamma"],
        "rank": rows[rows["part"] == "rank"],
    }
    return [_anatomy(found, name, own) for name, own in parts.items() if len(own)]


def _anatomy(found: Results, name: str, rows: pd.DataFrame) -> Figure:
    """The largest of a block's kinds of layers, for as many points as there are styles of line."""
    column, what = PARTS[name]
    names, there = point_names(found), set(rows["point"])
    order = [p for p in found.best_points if p in there][: len(LINES)]
    rows = rows[rows["point"].isin(order)]
    largest = rows.loc[rows.groupby(["point", "block"], sort=False)[column].idxmax()]
    parts = [
        of_table(
            "anatomy_points.csv", largest[largest["point"] == point], ["depth", "kind", column]
        ).assign(of=names[point])
        for point in order
    ]
    data = pd.concat([part.sort_values("depth", kind="stable") for part in parts])
    canvas, axes = new(2.5)
    _lines(axes, data, "depth", column)
    label_y(axes, what)
    axes.set_xlabel("block, in the order of computing")
    shown = _legend(canvas, data)
    of = " Of each block the kind of layer that changed most." if name == "relative" else ""
    caption = f"Over the blocks: {what}.{of} Best points first, as many as can be told apart."
    alt = f"Lines over the blocks, {what}, for {words.listed(shown)}; see anatomy_points.csv."
    return figure(canvas, f"anatomy-{name}", SECTION, caption, alt, data)
