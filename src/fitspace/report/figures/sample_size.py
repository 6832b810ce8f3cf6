"""The bias of metrics: how they depend on the number of samples."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from fitspace.report import words
from fitspace.report.figures import baselines
from fitspace.report.figures.axes import label_y, legend, number_axis
from fitspace.report.figures.names import cells_of, short
from fitspace.report.figures.output import Figure, figure, numbered
from fitspace.report.figures.style import LINES, WIDTH
from fitspace.report.results import Results
from fitspace.stats import in_design

METRICS = {"fd_effnet": "Fréchet distance", "kid_effnet": "KID"}


def against_n(found: Results) -> list[Figure]:
    """Both distances against the number of samples, for the extreme cells and the baselines."""
    table = found.rows("against_n.csv")
    data = _curves(found, table) if len(table) else table
    if data.empty:
        return []
    canvas = Canvas(figsize=(WIDTH, 2))
    for axes, (column, title) in zip(canvas.subplots(1, 2), METRICS.items(), strict=True):
        _panel(axes, data, column, title)
    names = dict.fromkeys(data["of"])
    handles = [
        Line2D([], [], label=short(name, 44), ms=4, lw=1.2, **style)
        for name, style in zip(names, LINES, strict=False)
    ]
    legend(canvas, handles)
    caption = (
        "Distances of random subsets of the same samples. The Fréchet distance falls as n grows, "
        "by about c/n: compare only values of equal n. KID is unbiased and stays."
    )
    alt = (
        f"Lines of the Fréchet distance and of KID against the number of samples for "
        f"{words.listed(names)}; the numbers are in against_n.csv."
    )
    return [figure(canvas, "against-n", "bias", caption, alt, data)]


def _panel(axes: Axes, data: pd.DataFrame, column: str, title: str) -> None:
    axes.set_xscale("log")
    for (_, rows), style in zip(data.groupby("of", sort=False), LINES, strict=False):
        axes.plot(rows["n"], rows[column], ms=4, lw=1.2, **style)
    sizes = sorted(set(data["n"]))
    axes.set_ylim(min(0, data[column].min() * 1.1), data[column].max() * 1.08)
    number_axis(axes, "y")
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(sizes, [f"{n:,.0f}" for n in sizes])
    label_y(axes, title)
    axes.set_xlabel("samples n")
    axes.grid(axis="y")


def _curves(found: Results, table: pd.DataFrame) -> pd.DataFrame:
    """The distances at each n, averaged over the runs of each drawn line."""
    curves = []
    for name, runs in telling(found).items():
        ours = table[table["run"].isin(runs["run"])]
        for n, rows in ours.groupby("n"):
            if rows["run"].nunique() == ours["run"].nunique():  # else not of the same runs
                row = {"table": "against_n.csv", "row": numbered(rows), "of": name, "n": n}
                curves.append(row | {column: rows[column].mean() for column in METRICS})
    return pd.DataFrame(curves)


def telling(found: Results) -> dict[str, pd.DataFrame]:
    """The runs of the best and worst cell and of the baselines, up to the number of line styles."""
    cells = found.best_cells(found.primary)
    runs = found.runs[in_design(found.runs, found.factors)]
    of = cells_of(runs, found.factors)
    ends = {"best cell": cells.iloc[0], "worst cell": cells.iloc[-1]}
    named = {
        f"{name}: {found.label(row)}": runs[of == tuple(row[f] for f in found.factors)]
        for name, row in ends.items()
    }
    named |= {one.label: one.runs for one in baselines.of(found, found.primary)}
    return dict(list(named.items())[: len(LINES)])
