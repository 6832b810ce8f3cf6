"""What people preferred: the points by ability, with their limits."""

from __future__ import annotations

from fitspace.report import rated
from fitspace.report.figures.axes import label_x, new, number_axis, row_ticks
from fitspace.report.figures.names import point_names
from fitspace.report.figures.output import Figure, figure, having, of_table
from fitspace.report.figures.style import MAIN, MUTED
from fitspace.report.results import Results

MOST = 40


def preferred(found: Results) -> list[Figure]:
    """Abilities, best first."""
    rows = having(found, rated.ABILITIES, "low")
    if rows.empty:
        return []
    rows = rows[:MOST]
    names = point_names(found)
    canvas, axes = new(0.7 + 0.19 * len(rows))
    for y, row in enumerate(rows.itertuples()):
        axes.plot([row.low, row.high], [y, y], color=MAIN, lw=1.4)
        axes.plot(row.ability, y, "o", ms=4.8, color=MAIN)
    axes.axvline(0, color=MUTED, lw=0.6)
    row_ticks(axes, [names.get(point, point) for point in rows["point"]])
    number_axis(axes, "x", 5)
    label_x(axes, "ability (log odds of being preferred), with 95% limits")
    axes.grid(axis="x")
    caption = (
        "What people preferred in blinded pairs, by Bradley and Terry's model with ties "
        "(Davidson). Of two points one unit apart the better wins 2.7 times as often as it loses."
    )
    alt = f"Points by ability with limits; the numbers are in {rated.ABILITIES}."
    data = of_table(rated.ABILITIES, rows, ["point", "ability", "low", "high"])
    return [figure(canvas, "ratings", "ratings", caption, alt, data)]
