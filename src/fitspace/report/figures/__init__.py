"""The figures of a report, as SVG that takes its colours and typeface from the page."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib

from fitspace.report.figures.against import against
from fitspace.report.figures.agreement import agreement
from fitspace.report.figures.by_task import by_task
from fitspace.report.figures.contrasts import half_normal
from fitspace.report.figures.cost import costs
from fitspace.report.figures.diagnostics import diagnostics
from fitspace.report.figures.drawn import drawn
from fitspace.report.figures.equivalence import equivalence
from fitspace.report.figures.explained import against_sensitivity, anatomies, sensitivities
from fitspace.report.figures.factors import forests, left_out, omegas
from fitspace.report.figures.heatmap import heat_maps
from fitspace.report.figures.interactions import interactions
from fitspace.report.figures.names import arm_label, point_names
from fitspace.report.figures.output import Figure
from fitspace.report.figures.power import power
from fitspace.report.figures.rated import preferred
from fitspace.report.figures.runs import dots
from fitspace.report.figures.sample_size import against_n
from fitspace.report.figures.style import STYLE
from fitspace.report.figures.trends import trends
from fitspace.report.figures.tuned import curves
from fitspace.report.results import Results

__all__ = ["Figure", "arm_label", "draw_all", "point_names", "styled"]

# Each draws the figures that its tables allow, in the order of the page.
_DRAWN = (
    curves,
    preferred,
    against,
    heat_maps,
    dots,
    omegas,
    half_normal,
    left_out,
    forests,
    trends,
    drawn,
    interactions,
    by_task,
    equivalence,
    costs,
    sensitivities,
    against_sensitivity,
    anatomies,
    power,
    diagnostics,
    against_n,
    agreement,
)


def draw_all(found: Results) -> list[Figure]:
    """Every figure that the results allow."""
    with styled():
        return [figure for draw in _DRAWN for figure in draw(found)]


@contextmanager
def styled() -> Iterator[None]:
    """The settings with which all figures are drawn and written."""
    plain = {k: v for k, v in matplotlib.rcParamsDefault.items() if "backend" not in k}
    with warnings.catch_warnings(), matplotlib.rc_context(plain | STYLE):
        warnings.filterwarnings("ignore", "constrained_layout not applied")
        yield
