"""What a factor does in each task: lines of the response less the task's mean."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from fitspace.report import words
from fitspace.report.figures.axes import label_y, legend, level_ticks, new, number_axis
from fitspace.report.figures.names import scaled, short
from fitspace.report.figures.output import Figure, figure, numbered
from fitspace.report.figures.style import LINES
from fitspace.report.results import Results


def by_task(found: Results) -> list[Figure]:
    """A figure for each factor that interacts with the tasks in the model."""
    terms = [term.split(":") for term in found.analysis.blocks.by_task]
    factors = [names[1] for names in terms if len(names) == 2]
    tasks = list(dict.fromkeys(found.runs["task"]))
    if len(tasks) > len(LINES):
        return []
    return [_lines(found, factor, tasks) for factor in factors]


def _lines(found: Results, factor: str, tasks: list[str]) -> Figure:
    response, metric = found.primary, words.metric(found.primary)
    named = words.named(found.primary)
    data = _means(found, factor)
    levels = [level for level in found.levels[factor] if level in set(data[factor])]
    canvas, axes = new(2.6)
    for task, style in zip(tasks, LINES, strict=False):
        line = data[data["task"] == task].set_index(factor)["difference"].reindex(levels)
        axes.plot(range(len(levels)), line, ms=3.8, lw=1.0, **style)
    number_axis(axes, "y")
    label_y(axes, scaled(found, response, "difference from the task's mean"))
    level_ticks(axes, levels)
    axes.set_xlabel(short(factor))
    axes.margins(x=0.04)
    axes.grid(axis="y")
    handles = [
        Line2D([], [], label=short(task, 16), ms=3.8, lw=1.0, **style)
        for task, style in zip(tasks, LINES, strict=False)
    ]
    legend(canvas, handles, "task")
    caption = (
        f"{metric.label} by {factor}, one line per task, each less the mean of its task. Parallel "
        f"lines: {factor} does the same in every task."
    )
    alt = (
        f"Lines of {named} over the levels of {factor}, one for each task; the numbers are "
        "means of runs.csv."
    )
    return figure(canvas, f"by-task-{response}-{factor}", "interactions", caption, alt, data)


def _means(found: Results, factor: str) -> pd.DataFrame:
    """Means of the analysed runs of each level in each task, less the mean of these in the task."""
    used = found.rows("residuals.csv", response=found.primary)["run"]
    runs = found.runs[found.runs["run"].isin(used)]
    values = found.analysis.fitted[found.primary].forward(runs[found.primary])
    runs = runs.assign(value=values)
    rows = [
        {"table": "runs.csv", "row": numbered(ours), "task": task, factor: str(level)}
        | {"difference": float(np.mean(ours["value"]))}
        for (task, level), ours in runs.groupby(["task", factor], sort=False, observed=True)
    ]
    data = pd.DataFrame(rows)
    data["difference"] -= data.groupby("task")["difference"].transform("mean")
    return data
