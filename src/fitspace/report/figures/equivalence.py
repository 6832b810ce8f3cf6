"""The points against full fine-tuning: differences with their intervals, and the margin."""

from __future__ import annotations

import pandas as pd

from fitspace.report import words
from fitspace.report.figures.axes import interval, label_x, new, number_axis, row_ticks
from fitspace.report.figures.names import MOST_LABELLED, point_names, short
from fitspace.report.figures.output import Figure, figure, having, of_table
from fitspace.report.figures.style import MAIN, MUTED
from fitspace.report.results import Results


def equivalence(found: Results) -> list[Figure]:
    """A figure for each response that has a margin."""
    figures = []
    for response in found.responses:
        rows = having(found, "equivalence.csv", "difference", response=response)
        figures += [_differences(found, response, rows)] if len(rows) else []
    return figures


def _differences(found: Results, response: str, rows: pd.DataFrame) -> Figure:
    metric, names = words.metric(response), point_names(found)
    label = words.named(response)
    rows = rows.sort_values("difference", ascending=metric.lower, kind="stable")
    labelled = len(rows) <= MOST_LABELLED
    canvas, axes = new(0.9 + (0.21 if labelled else 0.06) * len(rows))
    margin = rows["margin"].iloc[0]
    axes.axvspan(-margin, margin, color=MAIN, alpha=0.12, lw=0)
    axes.axvline(0, color=MUTED, lw=0.9)
    shown = rows["noninferior"].eq(True)
    for y, (row, filled) in enumerate(zip(rows.itertuples(), shown, strict=True)):
        interval(axes, y, [row.low, row.high], row.difference, filled)
    row_ticks(axes, [names[point] if labelled else "" for point in rows["point"]])
    axes.grid(axis="x")
    number_axis(axes, "x")
    if not labelled:
        axes.set_ylabel(f"{len(rows)} points, by their difference")
    label_x(axes, f"difference in {short(label, 40)}")
    better, worse = ("left", "right") if metric.lower else ("right", "left")
    for side, text in ((better, "better than full"), (worse, "worse")):
        arrow = f"← {text}" if side == "left" else f"{text} →"
        axes.set_title(arrow, loc=side, fontsize=8, color=MUTED, pad=4)
    caption = (
        f"{metric.label}: difference of each point to full fine-tuning, with simultaneous "
        "one-sided 95% limits. Shaded: within the margin that the study declares. Filled: "
        "non-inferior."
    )
    alt = (
        f"Differences in {label} to full fine-tuning of {len(rows)} points, "
        f"{int(shown.sum())} of them non-inferior; the numbers are in equivalence.csv."
    )
    columns = ["point", "difference", "low", "high", "margin", "noninferior"]
    data = of_table("equivalence.csv", rows, columns)
    return figure(canvas, f"equivalence-{response}", "equivalence", caption, alt, data)
