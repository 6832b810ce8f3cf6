"""Every run as a dot."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from fitspace.report import words
from fitspace.report.figures import baselines
from fitspace.report.figures.axes import label_x, legend, metric_axis, row_ticks
from fitspace.report.figures.names import MOST_LABELLED, cells_of, metric_label, short
from fitspace.report.figures.output import Figure, figure, of_table
from fitspace.report.figures.style import FACE, MAIN, MARKERS, WIDTH
from fitspace.report.results import Results
from fitspace.stats import in_design


def dots(found: Results) -> list[Figure]:
    """Every run as a dot in its cell's row, cells ordered by their mean; a panel per task."""
    response, metric = found.primary, words.metric(found.primary)
    label = words.named(found.primary)
    runs = found.runs[in_design(found.runs, found.factors)]
    runs = runs[(runs["status"] == "ok") & runs[response].notna()]
    order = list(cells_of(found.best_cells(response), found.factors))
    tasks = list(dict.fromkeys(runs["task"]))
    above = 0.14 * len(baselines.of(found, response))
    canvas, panels = _panels(len(order), len(tasks), above)
    data, heights = [], []
    for axes, task in zip(panels, tasks, strict=True):
        ours, outside = runs[runs["task"] == task], baselines.of(found, response, task)
        _rows(axes, found, ours, order)
        metric_axis(axes, found, response, "x", 4 if len(tasks) == 1 else 3)
        heights.append(baselines.mark(axes, outside, ours[response], named=len(tasks) == 1))
        drawn = of_table("runs.csv", ours, [*found.factors, "task", "seed", response])
        several = {"task": task} if len(tasks) > 1 else {}
        data.append(baselines.beside(drawn, outside, response, **several))
    if len(tasks) > 1:
        for axes, task in zip(panels, tasks, strict=True):
            title = {"fontsize": 8.5, "fontweight": "bold", "pad": max(heights)}
            axes.set_title(short(task, 18), loc="left", **title)
    _describe(canvas, panels, found, order, len(tasks))
    where = f" on {len(tasks)} tasks" if len(tasks) > 1 else ""
    caption = (
        f"Every run: {metric.label} by cell, one mark per seed, best mean on top"
        f"{'; a panel per task' if where else ''}."
    )
    alt = f"Dot plot of {label}{where}; {len(runs)} runs in {len(order)} cells."
    data = pd.concat(data, ignore_index=True)
    return [figure(canvas, f"runs-{response}", "cells", caption, alt, data)]


def _panels(rows: int, tasks: int, above: float) -> tuple[Canvas, list[Axes]]:
    """One panel over the whole width, or two per row that share the names of the cells.

    ``above`` is the room for the names of baselines above each panel [inch].
    """
    columns = min(tasks, 2)
    lines = -(-tasks // columns)
    row = (0.19 if tasks == 1 else 0.16) if rows <= MOST_LABELLED else 0.05
    canvas = Canvas(figsize=(WIDTH, 0.4 + lines * (0.5 + above + row * rows)))
    panels = canvas.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    for axes in panels[tasks:]:
        axes.remove()
    return canvas, list(panels[:tasks])


def _rows(axes: Axes, found: Results, runs: pd.DataFrame, order: list[tuple]) -> None:
    """The runs of one task; marks and fill distinguish the seeds."""
    row = cells_of(runs, found.factors).map({cell: at for at, cell in enumerate(order)})
    for index, seed in enumerate(dict.fromkeys(found.runs["seed"])):
        ours = runs["seed"] == seed
        axes.plot(runs.loc[ours, found.primary], row[ours], ls="none", **_mark(index))


def _mark(index: int) -> dict:
    face = MAIN if index % 2 == 0 else FACE
    marker = MARKERS[index % len(MARKERS)]
    return {"marker": marker, "ms": 4.2, "mfc": face, "mec": MAIN, "mew": 1}


def _describe(
    canvas: Canvas, panels: list[Axes], found: Results, order: list[tuple], tasks: int
) -> None:
    """Names of the rows, of the axis and, if needed, of the marks."""
    labelled = len(order) <= MOST_LABELLED
    names = [words.cell_name(found.factors, cell) for cell in order]
    for axes in panels:
        row_ticks(axes, names if labelled else [""] * len(order), 28 if tasks == 1 else 20)
        axes.grid(axis="y" if labelled else "x")
    if not labelled:
        panels[0].set_ylabel(f"{len(order)} cells, by their mean")
    if tasks == 1:
        label_x(panels[0], metric_label(found.primary))
    else:
        label = metric_label(found.primary)
        canvas.suptitle(label, x=0.01, ha="left", fontsize=8.5)
    seeds = list(dict.fromkeys(found.runs["seed"]))
    handles = [
        Line2D([], [], ls="none", label=f"seed {short(seed)}", **_mark(index))
        for index, seed in enumerate(seeds)
        if 1 < len(seeds) <= len(MARKERS)
    ]
    if tasks > 1:
        handles += [one.handle for one in baselines.of(found, found.primary)]
    if handles:
        legend(canvas, handles)
