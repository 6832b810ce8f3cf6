"""Quality against cost: trainable parameters, training time and memory."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fitspace.report import words
from fitspace.report.figures import baselines
from fitspace.report.figures.axes import (
    label_points,
    label_y,
    legend,
    metric_axis,
    new,
    number_axis,
)
from fitspace.report.figures.names import arm_label, metric_label, point_names, short
from fitspace.report.figures.output import Figure, figure, of_table
from fitspace.report.figures.style import MAIN, MUTED
from fitspace.report.results import Results

COSTS = {
    "trainable": "trainable parameters",
    "train_seconds": "training time (s)",
    "peak_memory_mb": "peak memory of training (MiB)",
}


def costs(found: Results) -> list[Figure]:
    """The primary response against each measured cost."""
    points = found.tables["points.csv"]
    figures = []
    for column in COSTS:
        if column in points:
            known = points.dropna(subset=[column, found.primary])
            figures += _cost(found, known[known[column] > 0], column)
    return figures


def _cost(found: Results, points: pd.DataFrame, column: str) -> list[Figure]:
    if len(points) < 2:
        return []
    response, metric, label = found.primary, words.metric(found.primary), COSTS[column]
    front = on_front(points, column, response, metric.lower)
    canvas, axes = new(2.6)
    if points[column].max() / points[column].min() > 8:
        axes.set_xscale("log")
    handles = _scatter(axes, found, points, column)
    corners = points[front].sort_values(column, kind="stable")
    style = {"color": MUTED, "lw": 0.9, "ls": "--"}
    axes.plot(corners[column], corners[response], zorder=1, **style)
    metric_axis(axes, found, response, "y")
    label_y(axes, metric_label(response))
    number_axis(axes, "x", 5)
    axes.set_xlabel(label)
    axes.margins(0.1)
    axes.grid()
    legend(canvas, [Line2D([], [], label="front", **style), *handles])
    # Cells of several factors have long names: only those on the front then.
    named = points[points["in_design"] & (front | (len(found.factors) == 1))]
    names = point_names(found)
    labels = [short(names[point], 22) for point in named["point"]]
    at = zip(named[column], named[response], labels, strict=True)
    label_points(axes, list(at), points[[column, response]].to_numpy().tolist())
    caption = (
        f"{metric.label} against {label}, one mark per point (mean of its runs; cost: median). "
        "The dashed front joins the points that no cheaper point beats; names are shown if there "
        "is room."
    )
    alt = f"Scatter plot of {metric.label} against {label}, {len(points)} points; see points.csv."
    data = of_table("points.csv", points, ["point", column, response]).assign(front=front)
    return [figure(canvas, f"cost-{column}", "cost", caption, alt, data)]


def _scatter(axes: Axes, found: Results, points: pd.DataFrame, column: str) -> list[Line2D]:
    """A mark per point, and a legend of the kinds of marks."""
    cells = {"ls": "none", "marker": "o", "ms": 4.5, "mfc": "none", "mec": MAIN, "mew": 1.1}
    inside = points[points["in_design"]]
    axes.plot(inside[column], inside[found.primary], **cells)
    handles = [Line2D([], [], label="cells", **cells)]
    labels = [
        arm_label(arm, method) for arm, method in zip(points["arm"], points["method"], strict=True)
    ]
    for one in baselines.of(found, found.primary):
        ours = points[~points["in_design"] & (np.array(labels) == one.label)]
        style = {"ls": "none", "marker": one.marker, "ms": 5.5, "color": one.colour}
        axes.plot(ours[column], ours[found.primary], **style)
        handles += [Line2D([], [], label=short(one.label, 22), **style)] if len(ours) else []
    return handles


def on_front(points: pd.DataFrame, cost: str, quality: str, lower: bool) -> pd.Series:
    """The points that are better than every other point of equal or lower cost."""
    ordered = points.sort_values([cost, quality], ascending=[True, lower], kind="stable")
    values = ordered[quality] if lower else -ordered[quality]
    best_before = values.cummin().shift(fill_value=float("inf"))
    return (values < best_before).reindex(points.index)
