"""Axes, ticks, legends and labels that all figures share."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from fitspace.report.figures.names import short
from fitspace.report.figures.style import FACE, MAIN, MUTED, WIDTH
from fitspace.report.results import Results


def new(height: float) -> tuple[Canvas, Axes]:
    """A canvas of this height [inch] with one pair of axes."""
    canvas = Canvas(figsize=(WIDTH, height))
    return canvas, canvas.subplots()


def metric_axis(axes: Axes, found: Results, response: str, which: str, ticks: int = 4) -> None:
    """An axis for a metric; logarithmic if the metric was analysed on the log scale."""
    if found.scale(response) == "log":
        getattr(axes, f"set_{which}scale")("log")
    number_axis(axes, which, ticks)


def number_axis(axes: Axes, which: str, ticks: int = 4) -> None:
    """A few round ticks with plain numbers; call it after everything is drawn."""
    axis = getattr(axes, f"{which}axis")
    low, high = axis.get_view_interval()
    if axis.get_scale() == "log" and high / low > 8:  # else no power of ten may be in sight
        axis.set_major_locator(LogLocator(subs=(1,) if high / low > 30 else (1, 3)))
    else:
        axis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.10g}".replace("-", "−")))


def label_x(axes: Axes, text: str) -> None:
    """A label that grows to the left, because long names of levels leave little width."""
    axes.set_xlabel(text, x=1, ha="right")


def label_y(axes: Axes, text: str) -> None:
    """A horizontal label above the axis, which takes no width."""
    axes.set_title(text, loc="left", fontsize=8.5, pad=6)


def level_ticks(axes: Axes, levels: Sequence[str], *, top: bool = False) -> None:
    """The levels of a factor along x, slanted if they would collide."""
    names = [short(level, 14) for level in levels]
    axes.set_xticks(range(len(levels)), names)
    if sum(map(len, names)) > 42:
        axes.tick_params(axis="x", labelrotation=35)
        for tick in axes.get_xticklabels():
            tick.set(ha="left" if top else "right", rotation_mode="anchor")


def row_ticks(axes: Axes, names: Sequence[str], longest: int = 28) -> None:
    """Named rows from the top down, without a line along them."""
    axes.set_yticks(range(len(names)), [short(name, longest) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)


def interval(axes: Axes, y: int, limits: Sequence[float], at: float, filled: bool) -> None:
    """A difference with its limits along a row; filled where a claim is shown."""
    colour, face = (MAIN, MAIN) if filled else (MUTED, FACE)
    axes.plot(limits, [y, y], color=colour, lw=1.4)
    axes.plot(at, y, "o", ms=4.8, mfc=face, mec=colour, mew=1.1)


def legend(canvas: Canvas, handles: Sequence, title: str | None = None) -> None:
    """A legend below the axes, in as many columns as the names allow; the canvas grows."""
    longest = max(len(handle.get_label()) for handle in handles)
    columns = min(4, len(handles), max(1, 56 // (longest + 6)))
    canvas.legend(
        handles=handles,
        title=title,
        loc="outside lower center",
        ncols=columns,
        handletextpad=0.4,
        columnspacing=1.2,
    )
    lines = -(-len(handles) // columns) + (title is not None)
    canvas.set_size_inches(WIDTH, canvas.get_figheight() + 0.05 + 0.17 * lines)


_SIDES = [
    ((5, 0), "left", "center"),
    ((-5, 0), "right", "center"),
    ((0, 5), "center", "bottom"),
    ((0, -5), "center", "top"),
    ((4, 4), "left", "bottom"),
    ((-4, -4), "right", "top"),
    ((4, -4), "left", "top"),
    ((-4, 4), "right", "bottom"),
]


def label_points(
    axes: Axes,
    labels: Sequence[tuple[float, float, str]],
    others: Sequence[tuple[float, float]] = (),
) -> None:
    """Name points (x, y, name), in order, on the first side where nothing is in the way.

    ``others`` are marks to keep clear of. A name without room is left out; the data has it.
    """
    axes.figure.get_layout_engine().execute(axes.figure)  # places are then what they will be
    marks = axes.transData.transform([(x, y) for x, y, _ in labels] + list(others))
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in marks]
    for x, y, name in labels:
        for offset, ha, va in _SIDES:
            note = axes.annotate(
                name,
                (x, y),
                xytext=offset,
                textcoords="offset points",
                ha=ha,
                va=va,
                fontsize=7.5,
            )
            note.set_in_layout(False)
            box = note.get_window_extent().padded(2, 0)
            inside = axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max)
            if inside and not box.count_overlaps(taken):
                taken.append(box)
                break
            note.remove()
