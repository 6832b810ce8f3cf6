"""The points against the untouched base: differences with their intervals, and by task."""

from __future__ import annotations

import pandas as pd
from matplotlib.lines import Line2D

from fitspace.report import words
from fitspace.report.figures.axes import interval, label_x, legend, new, number_axis, row_ticks
from fitspace.report.figures.names import MOST_LABELLED, point_names, scaled, short
from fitspace.report.figures.output import Figure, figure, having, of_table
from fitspace.report.figures.style import LINES, MUTED
from fitspace.report.results import Results
from fitspace.stats.best import ALPHA


def against(found: Results) -> list[Figure]:
    """A forest of differences from the untouched base for each response."""
    figures = []
    for response in found.responses:
        rows = having(found, "against.csv", "estimate", response=response, control="none")
        figures += [_forest(found, response, rows)] if len(rows) else []
    return figures


def _forest(found: Results, response: str, rows: pd.DataFrame) -> Figure:
    metric, names = words.metric(response), point_names(found)
    label = words.named(response)
    rows = rows.sort_values("estimate", ascending=metric.lower, kind="stable")
    by_task = having(found, "by_task.csv", "estimate", response=response)
    tasks = list(by_task["task"].unique()) if len(by_task) else []
    tasks = tasks if len(tasks) <= len(LINES) else []
    labelled = len(rows) <= MOST_LABELLED
    canvas, axes = new(0.9 + (0.21 if labelled else 0.06) * len(rows))
    axes.axvline(0, color=MUTED, lw=0.9)
    places = {point: y for y, point in enumerate(rows["level"])}
    for task, style in zip(tasks, LINES, strict=False):
        ours = by_task[(by_task["task"] == task) & by_task["point"].isin(places)]
        mark = {"marker": style["marker"], "mfc": "none", "mec": style["color"], "ls": "none"}
        axes.plot(ours["estimate"], ours["point"].map(places), ms=3.2, mew=0.8, alpha=0.8, **mark)
    for y, row in enumerate(rows.itertuples()):
        interval(axes, y, [row.low, row.high], row.estimate, row.p_deciding < ALPHA)
    row_ticks(axes, [names[point] if labelled else "" for point in rows["level"]])
    axes.grid(axis="x")
    number_axis(axes, "x")
    what = scaled(found, response, "difference")
    label_x(axes, f"{what}, {'lower' if metric.lower else 'higher'} is better")
    if tasks:
        marks = [
            Line2D([], [], label=short(t, 14), ls="none", marker=s["marker"], ms=3.5,
                   mfc="none", mec=s["color"])
            for t, s in zip(tasks, LINES, strict=False)
        ]  # fmt: skip
        legend(canvas, marks)
    caption = (
        f"Differences of each point from the untouched base in {label}, with simultaneous "
        "95% intervals that hold however the runs spread. Filled: shown to differ."
        + (" Small marks: the differences in each task." if tasks else "")
    )
    alt = (
        f"Forest plot of the differences in {label} from the untouched base; the numbers "
        "are in against.csv."
    )
    columns = ["level", "estimate", "low", "high", "p_deciding"]
    data = of_table("against.csv", rows, columns)
    if tasks:
        shown = by_task[by_task["point"].isin(places)]
        more = of_table("by_task.csv", shown, ["point", "task", "estimate"])
        more = more.rename(columns={"point": "level"})
        data = pd.concat([data, more], ignore_index=True)
    return figure(canvas, f"against-{response}", "against", caption, alt, data)
