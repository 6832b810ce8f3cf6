"""Diagnostics of the fitted model: normality, spread and influence."""

from __future__ import annotations

from statistics import linear_regression

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from scipy.special import betaincinv, ndtri

from fitspace.report import words
from fitspace.report.figures.axes import label_points, label_y, new, number_axis
from fitspace.report.figures.names import scaled, short
from fitspace.report.figures.output import Figure, figure, having, of_table
from fitspace.report.figures.style import MAIN, MUTED, SECOND
from fitspace.report.results import Results
from fitspace.stats.digits import on_scale

MOST_NAMED = 3
_MARK = {"marker": "o", "ms": 3.6, "mfc": "none", "mec": MAIN, "mew": 1, "ls": "none"}


def diagnostics(found: Results) -> list[Figure]:
    """The diagnostics of the primary response, unless its residuals are all zero."""
    rows = found.rows("residuals.csv", response=found.primary)
    if not np.any(rows["residual"]):
        return []
    influence = having(found, "residuals.csv", "cooks_distance", response=found.primary)
    more = [_influence(found, influence)] if len(influence) else []
    return [_quantiles(found, rows), _against_fitted(found, rows), *more]


def _quantiles(found: Results, rows: pd.DataFrame) -> Figure:
    response = found.primary
    rows = rows.sort_values("residual", kind="stable")
    middle, low, high = order_statistics(len(rows))
    slope, centre = linear_regression(middle.tolist(), rows["residual"].tolist())
    line = {"low": centre + slope * low, "high": centre + slope * high}
    # Otherwise the middle quantile, which is 0, and limits near it would show only rounding.
    line = {name: on_scale(values, max(abs(values))) for name, values in line.items()}
    rows = rows.assign(normal_quantile=on_scale(middle, middle[-1]), **line)
    canvas, axes = new(2.7)
    axes.fill_between(middle, rows["low"], rows["high"], color=MUTED, alpha=0.15, lw=0)
    axes.plot(middle, centre + slope * middle, color=MUTED, lw=0.9, ls="--")
    axes.plot(middle, rows["residual"], **_MARK)
    axes.set_xlabel("normal quantile")
    label_y(axes, scaled(found, response, "residual"))
    number_axis(axes, "y")
    axes.grid()
    label = words.named(response)
    caption = (
        f"Residuals of the model for {label} against normal quantiles; the band contains each "
        "residual of a normal sample with 95% probability."
    )
    data = of_table("residuals.csv", rows, ["run", "normal_quantile", "residual", "low", "high"])
    alt = f"Normal quantile plot of {len(rows)} residuals of {label}; see residuals.csv."
    return figure(canvas, f"qq-{response}", "diagnostics", caption, alt, data)


def order_statistics(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Median and central 95% limits of each order statistic of n normal values, each (n,).

    The i-th of n uniform values is Beta(i, n + 1 - i).
    """
    i = np.arange(1, n + 1)
    middle, low, high = (ndtri(betaincinv(i, n + 1 - i, p)) for p in (0.5, 0.025, 0.975))
    return middle, low, high


def _against_fitted(found: Results, rows: pd.DataFrame) -> Figure:
    response = found.primary
    canvas, axes = new(2.7)
    axes.axhline(0, color=MUTED, lw=0.9, ls="--")
    axes.plot(rows["fitted"], rows["residual"], **_MARK)
    axes.set_xlabel(scaled(found, response, "fitted value"))
    label_y(axes, scaled(found, response, "residual"))
    number_axis(axes, "x", 5)
    number_axis(axes, "y")
    axes.grid()
    label = words.named(response)
    caption = (
        f"Residuals of the model for {label} against its fitted values; a funnel indicates "
        "unequal variances, a curve a wrong scale or a missing interaction."
    )
    alt = f"Scatter plot of {len(rows)} residuals of {label} by fitted value; see residuals.csv."
    data = of_table("residuals.csv", rows, ["run", "fitted", "residual"])
    return figure(canvas, f"residuals-{response}", "diagnostics", caption, alt, data)


def _influence(found: Results, rows: pd.DataFrame) -> Figure:
    """Cook's distance of every run (in a balanced design all runs have the same leverage)."""
    response = found.primary
    at = pd.Series(range(1, len(rows) + 1), rows.index)
    limit = 4 / len(rows)
    canvas, axes = new(2.7)
    axes.vlines(at, 0, rows["cooks_distance"], color=MAIN, lw=0.7, alpha=0.4)
    axes.plot(at, rows["cooks_distance"], **_MARK)
    axes.axhline(limit, color=SECOND, lw=1, ls="--")
    axes.set_ylim(0, max(rows["cooks_distance"].max(), limit) * 1.15)
    axes.set_xlim(0.5 - 0.02 * len(rows), len(rows) * 1.02 + 0.5)
    axes.set_xlabel("run, in the order of the table")
    label_y(axes, "Cook's distance")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    number_axis(axes, "y")
    axes.grid(axis="y")
    largest = rows.nlargest(MOST_NAMED, "cooks_distance").index
    names = [(at[i], rows["cooks_distance"][i], _run_name(found, rows["run"][i])) for i in largest]
    label_points(axes, names, list(zip(at, rows["cooks_distance"], strict=True)))
    label = words.named(response)
    caption = (
        f"Cook's distance of each run in the model for {label}: how far all fitted values move "
        "without it. Dashed: four over the number of runs, above which a run deserves a look."
    )
    alt = (
        f"Cook's distance of {len(rows)} runs; largest {_run_name(found, rows['run'][largest[0]])} "
        f"with {words.number(rows['cooks_distance'].max())}. The numbers are in residuals.csv."
    )
    data = of_table("residuals.csv", rows, ["run", "cooks_distance", "leverage"])
    return figure(canvas, f"influence-{response}", "diagnostics", caption, alt, data)


def _run_name(found: Results, run: str) -> str:
    """A run's name: its cell, its task if there are several, and its seed."""
    row = found.runs[found.runs["run"] == run].iloc[0]
    parts = [short(found.label(row), 24)]
    parts += [short(row["task"], 12)] if found.runs["task"].nunique() > 1 else []
    return ", ".join([*parts, f"seed {row['seed']}"])
