"""Figures of the factors: marginal means, and effect sizes with and without each task."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fitspace.report import words
from fitspace.report.figures import baselines
from fitspace.report.figures.axes import label_x, legend, metric_axis, new, row_ticks
from fitspace.report.figures.names import metric_label, short
from fitspace.report.figures.output import Figure, figure, having, of_table
from fitspace.report.figures.style import FACE, INK, MAIN, MUTED
from fitspace.report.results import Results
from fitspace.stats.best import ALPHA


def forests(found: Results) -> list[Figure]:
    """The marginal means of each factor, for every response."""
    figures = []
    for response in found.responses:
        for factor in found.analysis.factors:
            where = {"response": response, "factor": factor}
            rows = having(found, "effects.csv", "mean_measured", **where)
            figures += [_forest(found, response, factor, rows)] if len(rows) else []
    return figures


def _forest(found: Results, response: str, factor: str, rows: pd.DataFrame) -> Figure:
    label, outside = words.named(response), baselines.of(found, response)
    canvas, axes = new(1 + 0.24 * len(rows) + 0.14 * len(outside))
    best = rows["tied_with_best"].eq(True)  # an unknown mean is not the best
    for y, (row, tied) in enumerate(zip(rows.itertuples(), best, strict=True)):
        colour = MAIN if tied else MUTED
        axes.plot([row.low_measured, row.high_measured], [y, y], color=colour, lw=1.6)
        face = colour if tied else FACE
        axes.plot(row.mean_measured, y, "o", ms=5.5, mfc=face, mec=colour, mew=1.2)
    row_ticks(axes, list(rows["level"]), 24)
    axes.grid(axis="x")
    metric_axis(axes, found, response, "x")
    label_x(axes, metric_label(response))
    ends = rows[["low_measured", "high_measured", "mean_measured"]].to_numpy().ravel()
    above = baselines.mark(axes, outside, ends)
    axes.set_title(short(factor, 26), loc="left", fontsize=9, fontweight="bold", pad=above + 3)
    caption = (
        f"{factor}: marginal mean of {label} with its 95% interval. Filled: not separable "
        "from the best level (5%), marked where the factor has a shown effect."
    )
    alt = f"Forest plot of the marginal means of {label} by {factor}; see effects.csv."
    columns = ["level", "mean_measured", "low_measured", "high_measured", "tied_with_best"]
    data = baselines.beside(of_table("effects.csv", rows, columns), outside, "mean_measured")
    section = f"means-{response}"
    return figure(canvas, f"{section}-{factor}", section, caption, alt, data)


# --- effect sizes -------------------------------------------------------------------------


def omegas(found: Results) -> list[Figure]:
    """Partial omega squared of each tested source, as bars with intervals."""
    table = _tested(found)
    if table.empty:
        return []
    axes, heights = _by_response(found, table, "source")
    for y, row in zip(heights, table.itertuples(), strict=True):
        shown = row.p_deciding < ALPHA
        axes.barh(y, row.omega2_p, 0.55, color=MAIN, alpha=0.6 if shown else 0.12)
        axes.plot([row.omega2_p_low, row.omega2_p_high], [y, y], color=INK, lw=1.1)
    caption = (
        "Partial ω² of each source given the others; lines are 95% intervals from the noncentral "
        "F. Strong: shown at 5%, however the runs spread; pale: not."
    )
    alt = "Bars of partial omega squared by source and response; the numbers are in anova.csv."
    columns = ["response", "source", "omega2_p", "omega2_p_low", "omega2_p_high", "p_deciding"]
    data = of_table("anova.csv", table, columns)
    return [figure(axes.figure, "omega2", "anova", caption, alt, data)]


def left_out(found: Results) -> list[Figure]:
    """Partial omega squared of the factors, with all tasks and with each task left out."""
    table = having(found, "leave_one_out.csv", "omega2_p")
    if table.empty:
        return []
    file, every = _with_all_tasks(found)
    axes, heights = _by_response(found, every, "factor")
    without = {"ls": "none", "marker": "o", "ms": 4, "mfc": "none", "mec": MAIN, "mew": 1}
    whole = {"ls": "none", "marker": "|", "ms": 11, "mec": INK, "mew": 1.6}
    for y, row in zip(heights, every.itertuples(), strict=True):
        ours = table[(table["response"] == row.response) & (table["factor"] == row.factor)]
        axes.plot(ours["omega2_p"], [y] * len(ours), **without)
        axes.plot(row.omega2_p, y, **whole)
    lowest = min(table["omega2_p"].min(), every["omega2_p"].min())
    axes.set_xlim(min(0, lowest - 0.04), 1)  # below 0 where F < 1
    marks = {"all tasks": whole, "one task left out": without}
    legend(axes.figure, [Line2D([], [], label=name, **style) for name, style in marks.items()])
    caption = (
        "Partial ω² of each factor with all tasks and with each of them left out: how far it "
        "depends on a single task."
    )
    alt = "Dots of partial omega squared by factor, one per task left out; see leave_one_out.csv."
    columns = ["response", "factor", "omega2_p"]
    data = [
        of_table(file, every, columns),
        of_table("leave_one_out.csv", table, [*columns, "left_out"]),
    ]
    data = pd.concat(data, ignore_index=True)
    return [figure(axes.figure, "omega2-left-out", "ranking", caption, alt, data)]


def _with_all_tasks(found: Results) -> tuple[str, pd.DataFrame]:
    """The factors' effect sizes and their file; a single factor has no ranking."""
    table = having(found, "ranking.csv", "omega2_p")
    if len(table):
        return "ranking.csv", table
    return "anova.csv", _tested(found).rename(columns={"source": "factor"})


def _tested(found: Results) -> pd.DataFrame:
    """The rows of the analysis of variance that have an effect size, except the blocks."""
    table = having(found, "anova.csv", "omega2_p", test=found.test)
    table = table[~table["source"].isin(found.analysis.blocks.common)]
    decided = found.rows("robustness.csv", test="deciding")
    if decided.empty:
        return table.assign(p_deciding=float("nan"))
    # Holm's where a test is one of a family; of effects in single tasks its own.
    p = decided["p_holm"].fillna(decided["p"])
    known = dict(zip(zip(decided["response"], decided["source"], strict=True), p, strict=True))
    keys = zip(table["response"], table["source"], strict=True)
    return table.assign(p_deciding=[known.get(key, float("nan")) for key in keys])


def _by_response(found: Results, table: pd.DataFrame, column: str) -> tuple[Axes, list[float]]:
    """Axes for partial omega squared and the height of each row, under its response's name."""
    several = len(found.responses) > 1
    groups = table["response"].nunique() if several else 0
    canvas, axes = new(0.75 + 0.25 * len(table) + 0.3 * groups)
    y, heights, last = 0.0, [], None
    for row in table.itertuples():
        if several and row.response != last:
            y += 0.35 if last else 0
            label = short(words.metric(row.response).label, 44)
            at = {"transform": axes.get_yaxis_transform(), "fontsize": 8, "color": MUTED}
            axes.text(0.008, y - 0.1, label, **at)
            y, last = y + 0.75, row.response
        heights.append(y)
        y += 1
    row_ticks(axes, list(table[column]))
    axes.set_yticks(heights, [short(name) for name in table[column]])
    axes.set(ylim=(y - 0.4, -0.6), xlim=(0, 1), xlabel="partial ω²")
    axes.grid(axis="x")
    return axes, heights
