"""The half-normal plot (Daniel 1959) of a design without replicates."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from fitspace.report import words
from fitspace.report.figures.axes import label_points, label_y, new, number_axis
from fitspace.report.figures.names import scaled, short
from fitspace.report.figures.output import Figure, figure, having, of_table
from fitspace.report.figures.style import FACE, MAIN, MUTED, SECOND
from fitspace.report.results import Results


def half_normal(found: Results) -> list[Figure]:
    """The contrasts of every response against half-normal quantiles."""
    figures = []
    for response in found.responses:
        rows = having(found, "contrasts.csv", "estimate", response=response)
        if len(rows) and rows["estimate"].any():
            figures.append(_half_normal(found, response, rows))
    return figures


def _half_normal(found: Results, response: str, rows: pd.DataFrame) -> Figure:
    canvas, axes = new(3)
    size, active = rows["estimate"].abs(), rows["active"].eq(True)
    for ours, face in ((active, MAIN), (~active, FACE)):
        axes.plot(rows["quantile"][ours], size[ours], "o", ms=4.5, mfc=face, mec=MAIN, mew=1.1)
    axes.set_xlim(0, rows["quantile"].max() * 1.08)
    axes.set_ylim(0, max(size.max(), rows["simultaneous_margin"].max()) * 1.12)
    axes.set_xlabel("half-normal quantile")
    label_y(axes, scaled(found, response, "size of the contrast"))
    number_axis(axes, "y")
    axes.grid()
    _margin(axes, rows["margin"].iloc[0], MUTED, "--", "margin of error")
    _margin(axes, rows["simultaneous_margin"].iloc[0], SECOND, ":", "simultaneous margin of error")
    named = zip(rows["quantile"][active], size[active], rows["contrast"][active], strict=True)
    others = zip(rows["quantile"][~active], size[~active], strict=True)
    label_points(axes, [(x, y, short(name)) for x, y, name in named], list(others))
    label = words.named(response)
    caption = (
        f"Half-normal plot of the contrasts of {label}. Contrasts that are only noise lie "
        "near a line through the origin; filled: beyond Lenth's margin of error. Only contrasts "
        "beyond the simultaneous margin remain after correction for the number of contrasts."
    )
    beyond = list(rows["contrast"][active])
    more = ["others"] if len(beyond) > words.MOST_NAMED else []
    most = words.listed([*beyond[: words.MOST_NAMED], *more])
    alt = (
        f"Half-normal plot of {len(rows)} contrasts of {label}; beyond the margin of error: "
        f"{most or 'none'}. The numbers are in contrasts.csv."
    )
    columns = ["contrast", "quantile", "estimate", "margin", "simultaneous_margin", "active"]
    data = of_table("contrasts.csv", rows, columns)
    return figure(canvas, f"half-normal-{response}", "contrasts", caption, alt, data)


def _margin(axes: Axes, value: float, colour: str, dash: str, name: str) -> None:
    axes.axhline(value, color=colour, lw=1.1, ls=dash)
    axes.annotate(
        name,
        (0, value),
        xycoords=("axes fraction", "data"),
        xytext=(3, 2),
        textcoords="offset points",
        fontsize=7.5,
        color=colour,
    )
