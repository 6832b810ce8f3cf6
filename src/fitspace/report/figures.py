"""The figures of a report, as SVG that takes its colours and typeface from the page."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from io import StringIO

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from fitspace.report import words
from fitspace.report.results import Results
from fitspace.stats import in_design

INK, MUTED, GRID = "#1f2328", "#5b6570", "#d8dee4"
MAIN, SECOND, THIRD, FACE = "#0b67a8", "#c04a00", "#0a7a5c", "#fefefe"
# Written as plain colours into the SVG files, and as the page's variables into the page.
THEME = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    MAIN: "--c1",
    SECOND: "--c2",
    THIRD: "--c3",
    FACE: "--card",
}
# One hue from pale to dark: readable in grey, in print and with any colour vision.
HEAT = LinearSegmentedColormap.from_list(
    "heat", ["#f1f6fa", "#c3daea", "#84b3d3", "#3f82b1", "#14568a", "#08305c"]
)
WIDTH = 4.0
MOST_LABELLED = 60
BASELINES = (SECOND, THIRD)
_STYLE = {
    "svg.hashsalt": "fitspace",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "hatch.color": GRID,
    "hatch.linewidth": 1.0,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "figure.constrained_layout.use": True,
}
_MARKERS = "osD^vPX*<>"


@dataclass(frozen=True)
class Figure:
    """A drawn figure: ``name`` of its file, the section it is for, and its words."""

    name: str
    section: str
    caption: str
    alt: str
    svg: str

    @property
    def inline(self) -> str:
        """The SVG element for the page: colours as variables, ids its own."""
        svg = self.svg[self.svg.index("<svg") :]
        for colour, name in THEME.items():
            svg = svg.replace(colour, f"var({name})")
        svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{self.name}-", svg)
        svg = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", svg, count=1)
        # The figure beside it carries the words; a screen reader need not spell the drawing.
        return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)


def draw_all(found: Results) -> list[Figure]:
    """Every figure that the results allow, in the order of the page."""
    plain = {k: v for k, v in matplotlib.rcParamsDefault.items() if "backend" not in k}
    with warnings.catch_warnings(), matplotlib.rc_context(plain | _STYLE):
        warnings.filterwarnings("ignore", "constrained_layout not applied")
        figures = [*_heat_map(found), *_dots(found), *_forests(found)]
        return [*figures, *_omegas(found), *_costs(found), *_diagnostics(found)]


def _canvas(height: float, width: float = WIDTH) -> tuple[Canvas, Axes]:
    canvas = Canvas(figsize=(width, height))
    return canvas, canvas.subplots()


def _figure(canvas: Canvas, name: str, section: str, caption: str, alt: str) -> Figure:
    text = StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    canvas.savefig(text, format="svg", metadata=nothing)
    svg = re.sub(r"<!DOCTYPE[^>]*>\n?|\s*<metadata>.*?</metadata>", "", text.getvalue(), flags=re.S)
    svg = re.sub(
        r' id="(?:figure|axes|text|patch|line2d|matplotlib\.axis|xtick|ytick|legend|'
        r'PathCollection|LineCollection|QuadMesh|FillBetween\w*|PolyCollection)_\d+"',
        "",
        svg,
    )
    svg = re.sub(r"(['\"])DejaVu Sans\1", "system-ui, sans-serif", svg)
    svg = "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"
    return Figure(re.sub(r"[^A-Za-z0-9_-]+", "-", name), section, caption, alt, svg)


def _text(level: object, longest: int = 30) -> str:
    """User text as a label: printable and not too long."""
    text = "".join(c if c.isprintable() else "�" for c in str(level))
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _axis(axes: Axes, found: Results, response: str, which: str = "x") -> None:
    """Label an axis with a metric; a log axis where it was analysed on the log scale."""
    metric, axis = words.metric(response), getattr(axes, f"{which}axis")
    if found.scale(response) == "log":
        getattr(axes, f"set_{which}scale")("log")
    axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.10g}".replace("-", "−")))
    better = "lower" if metric.lower else "higher"
    axis.set_label_text(f"{_text(metric.label, 44)} ({better} is better)")
    if which == "x":  # Long names of levels leave little width: grow to the left instead.
        axis.label.set(x=1, ha="right")


def _baselines(
    found: Results, response: str, task: str | None = None
) -> list[tuple[str, float, str]]:
    """Label, mean and colour of every baseline arm with finished runs."""
    outside = found.runs[~in_design(found.runs, found.factors)]
    marks = []
    for index, (arm, rows) in enumerate(outside.groupby("arm", sort=False)):
        rows = rows[(rows["status"] == "ok") & (rows["task"].eq(task) if task else True)]
        mean = rows[response].mean()
        if math.isfinite(mean):
            label = arm_label(arm, rows["method"].iloc[0])
            marks.append((label, mean, BASELINES[index % len(BASELINES)]))
    return marks


def arm_label(arm: str, method: str) -> str:
    """The field's name of a baseline, unless the study gave its arm another."""
    return words.METHODS.get(method, arm) if arm == method else arm


def _marks(axes: Axes, baselines: list[tuple[str, float, str]], values: Iterable[float]) -> None:
    """Baselines as lines across x; those far from the data as arrows at the edge."""
    values = [v for v in values if math.isfinite(v)]
    low, high = min(values), max(values)
    reach = (high - low) * 0.8 or abs(high) * 0.05 or 1
    near = [v for _, v, _ in baselines if low - reach <= v <= high + reach]
    low, high = min([low, *near]), max([high, *near])
    pad = (high - low) * 0.06 or reach
    left = low - pad
    if axes.get_xscale() == "log":
        left = max(left, low / 1.5)
    axes.set_xlim(left, high + pad)
    for row, (name, value, colour) in enumerate(baselines):
        if low <= value <= high:
            axes.axvline(value, color=colour, lw=1.1, ls="--" if colour == SECOND else ":")
        _label_mark(axes, name, value, (low, high), 3 + 10 * row, colour)


def _label_mark(
    axes: Axes, name: str, value: float, ends: tuple[float, float], lift: float, colour: str
) -> None:
    """A baseline's name above the axes: at its value, or at the edge that it lies beyond."""
    left, right = axes.get_xlim()
    label, x = _text(name), min(max(value, left), right)
    if value > ends[1]:
        label, x = f"{label} {words.number(value)} →", right
    elif value < ends[0]:
        label, x = f"← {label} {words.number(value)}", left
    share = (x - left) / (right - left)
    axes.annotate(
        label,
        (x, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, lift),
        textcoords="offset points",
        ha="left" if share < 0.25 else "right" if share > 0.75 else "center",
        va="bottom",
        fontsize=8,
        color=colour,
        annotation_clip=False,
    )


# --- cells --------------------------------------------------------------------------------


def _heat_map(found: Results) -> list[Figure]:
    if len(found.factors) != 2:
        return []
    response = found.primary
    metric = words.metric(response)
    first, second = found.factors
    cells = found.rows("cells.csv", response=response).set_index([first, second])
    # The factor with more levels runs down the page: phones are narrow.
    rows, columns = found.levels[first], found.levels[second]
    turned = len(columns) > len(rows)
    down, across = (columns, rows) if turned else (rows, columns)
    means = cells["mean"].dropna()
    norm = (
        Normalize(means.min(), means.max())
        if means.min() < means.max()
        else Normalize(0, 2 * means.max() or 1)
    )
    colours = HEAT.reversed() if metric.lower else HEAT
    canvas, axes = _canvas(1.35 + 0.36 * len(down))
    decimals = words.aligned(means, 3)
    size = 8.5 if len(across) <= 6 else 7
    for y, one in enumerate(down):
        for x, two in enumerate(across):
            levels = (two, one) if turned else (one, two)
            box = {"xy": (x - 0.5, y - 0.5), "width": 1, "height": 1, "lw": 1.5, "ec": FACE}
            if levels not in cells.index or math.isnan(cells.loc[levels, "mean"]):
                if levels in found.planned:
                    axes.add_patch(Rectangle(**box | {"lw": 0}, fc="none"))
                    axes.text(x, y, "no run", ha="center", va="center", fontsize=7, color=MUTED)
                else:
                    axes.add_patch(
                        Rectangle(**box | {"lw": 0, "ec": GRID}, fc="none", hatch="////")
                    )
                continue
            cell = cells.loc[levels]
            colour = colours(norm(cell["mean"]))
            axes.add_patch(Rectangle(**box, fc=colour))
            dark = np.dot(colour[:3], [0.299, 0.587, 0.114]) < 0.55
            spread = cell["replicate_sd"]
            shift = 0.14 if math.isfinite(spread) else 0
            style = {"ha": "center", "va": "center", "color": "#ffffff" if dark else "#101418"}
            value = words.fixed(cell["mean"], decimals)
            weight = (
                "bold" if cell["mean"] == (means.min() if metric.lower else means.max()) else None
            )
            axes.text(x, y - shift, value, fontsize=size, fontweight=weight, **style)
            if shift:
                axes.text(x, y + 0.24, f"±{words.fixed(spread, decimals)}", fontsize=6.5, **style)
    axes.set(xlim=(-0.5, len(across) - 0.5), ylim=(len(down) - 0.5, -0.5))
    axes.set_xticks(range(len(across)), [_text(level, 14) for level in across])
    axes.set_yticks(range(len(down)), [_text(level, 18) for level in down])
    if sum(len(_text(level, 14)) for level in across) > 42:
        axes.tick_params(axis="x", labelrotation=35)
        for tick in axes.get_xticklabels():
            tick.set_ha("left")
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.tick_params(length=0)
    axes.set_xlabel(_text(first if turned else second), color=MUTED)
    axes.set_ylabel(_text(second if turned else first), color=MUTED)
    axes.spines[:].set_visible(False)
    _scale_bar(canvas, axes, norm, colours, found, response)
    best = found.best_cells(response).iloc[0]
    caption = (
        f"Mean {metric.label} of each cell; ± is the standard deviation over seeds. Darker is "
        "better, the best mean is bold; hatched cells cannot be built."
    )
    alt = (
        f"Heat map of {metric.label} by {first} and {second}: best {found.label(best)} with "
        f"{words.number(best['mean'])}, range {words.number(means.min())} to "
        f"{words.number(means.max())}. The numbers are in cells.csv."
    )
    return [_figure(canvas, f"heatmap-{response}", "cells", caption, alt)]


def _scale_bar(canvas, axes, norm, colours, found: Results, response: str) -> None:
    mappable = matplotlib.cm.ScalarMappable(norm, colours)
    bar = canvas.colorbar(
        mappable, ax=axes, orientation="horizontal", fraction=0.04, pad=0.1, aspect=40
    )
    bar.outline.set_visible(False)
    bar.ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    bar.ax.tick_params(length=2, labelsize=7.5, color=MUTED)
    bar.set_label(_text(words.metric(response).label, 44), fontsize=8)
    for row, (name, value, colour) in enumerate(_baselines(found, response)):
        if norm.vmin <= value <= norm.vmax:
            bar.ax.plot([value, value], [0, 1], color=colour, lw=2, clip_on=False)
        _label_mark(bar.ax, name, value, (norm.vmin, norm.vmax), 2 + 9 * row, colour)


def _dots(found: Results) -> list[Figure]:
    """Every run as a dot in its cell's row, the cells by their mean; one figure per task."""
    response = found.primary
    metric = words.metric(response)
    runs = found.runs[in_design(found.runs, found.factors)]
    runs = runs[(runs["status"] == "ok") & runs[response].notna()]
    ranked = found.best_cells(response)
    order = [tuple(cell) for cell in ranked[found.factors].astype(str).to_numpy()]
    cells = pd.Series([tuple(c) for c in runs[found.factors].astype(str).to_numpy()], runs.index)
    seeds = list(dict.fromkeys(found.runs["seed"]))
    figures = []
    for task, group in runs.groupby("task", sort=False):
        labelled = len(order) <= MOST_LABELLED
        canvas, axes = _canvas(1.1 + (0.19 if labelled else 0.05) * len(order))
        for index, seed in enumerate(seeds):
            ours = group[group["seed"] == seed]
            axes.plot(
                ours[response],
                [order.index(cells[i]) for i in ours.index],
                _MARKERS[index % len(_MARKERS)],
                ms=4.2,
                mfc=MAIN if index % 2 == 0 else FACE,
                mec=MAIN,
                mew=1,
                ls="none",
                label=f"seed {_text(seed)}",
            )
        axes.set_ylim(len(order) - 0.4, -0.6)
        names = [_text(words.cell_name(found.factors, cell), 28) for cell in order]
        axes.set_yticks(range(len(order)), names if labelled else [""] * len(order))
        if not labelled:
            axes.set_ylabel(f"{len(order)} cells, by their mean")
        axes.grid(axis="y" if labelled else "x")
        axes.spines["left"].set_visible(False)
        _axis(axes, found, response)
        _marks(axes, _baselines(found, response, task), group[response])
        if 1 < len(seeds) <= 8:
            canvas.legend(loc="outside lower center", ncols=4, handletextpad=0.1, columnspacing=1)
        where = f" on {task}" if runs["task"].nunique() > 1 else ""
        caption = f"Every run{where}: {metric.label} by cell, one mark per seed, best mean on top."
        alt = f"Dot plot of {metric.label}{where}; {len(group)} runs in {len(order)} cells."
        figures.append(_figure(canvas, f"runs-{response}-{task}", "cells", caption, alt))
    return figures


# --- factors ------------------------------------------------------------------------------


def _forests(found: Results) -> list[Figure]:
    figures = []
    for response in found.responses:
        for factor in found.analysis.factors:
            rows = found.rows("effects.csv", response=response, factor=factor)
            figures += _forest(found, response, factor, rows.dropna(subset="mean"))
    return figures


def _forest(found: Results, response: str, factor: str, rows: pd.DataFrame) -> list[Figure]:
    if rows.empty:
        return []
    metric = words.metric(response)
    canvas, axes = _canvas(1 + 0.24 * len(rows))
    for y, row in enumerate(rows.itertuples()):
        colour = MAIN if row.tied_with_best else MUTED
        if math.isfinite(row.low_measured):
            axes.plot([row.low_measured, row.high_measured], [y, y], color=colour, lw=1.6)
        face = colour if row.tied_with_best else FACE
        axes.plot(row.mean_measured, y, "o", ms=5.5, mfc=face, mec=colour, mew=1.2)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [_text(level, 24) for level in rows["level"]])
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    _axis(axes, found, response)
    ends = rows[["low_measured", "high_measured", "mean_measured"]].to_numpy().ravel()
    _marks(axes, _baselines(found, response), ends)
    above = 6 + 10 * len(_baselines(found, response))
    axes.set_title(_text(factor, 26), loc="left", fontsize=9, fontweight="bold", pad=above)
    caption = (
        f"{factor}: marginal mean of {metric.label} with its 95% interval. Filled: not separable "
        "from the best level (Tukey, 5%)."
    )
    alt = f"Forest plot of the marginal means of {metric.label} by {factor}; see effects.csv."
    return [_figure(canvas, f"means-{response}-{factor}", f"means-{response}", caption, alt)]


def _omegas(found: Results) -> list[Figure]:
    table = found.rows("anova.csv", test="type II").dropna(subset="omega2_p")
    table = table[table["source"].isin(found.analysis.factors)]
    if table.empty:
        return []
    several = len(found.responses) > 1
    canvas, axes = _canvas(
        0.75 + 0.3 * len(table) + (0.25 * len(found.responses) if several else 0)
    )
    y, ticks, names = 0.0, [], []
    for response, rows in table.groupby("response", sort=False):
        if several:
            axes.text(
                0.008, y - 0.1, _text(words.metric(response).label, 44), fontsize=8, color=MUTED
            )
            y += 0.75
        for row in rows.itertuples():
            shown = row.p_holm < 0.05
            axes.barh(y, row.omega2_p, 0.55, color=MAIN, alpha=0.6 if shown else 0.12)
            if math.isfinite(row.eta2_p_low):
                axes.plot([row.eta2_p_low, row.eta2_p_high], [y, y], color=INK, lw=1.1)
            ticks.append(y)
            names.append(_text(row.source))
            y += 1
        y += 0.35
    axes.set(ylim=(y - 0.6, -0.6), xlim=(0, 1), xlabel="partial ω²")
    axes.set_yticks(ticks, names)
    axes.grid(axis="x")
    caption = (
        "Partial ω² of each factor given the others; lines are 95% intervals from the noncentral "
        "F (the limits of partial η²). Strong: shown at 5% after Holm's correction; pale: not."
    )
    alt = "Bars of partial omega squared by factor and response; the numbers are in anova.csv."
    return [_figure(canvas, "omega2", "anova", caption, alt)]


# --- cost ---------------------------------------------------------------------------------


def _costs(found: Results) -> list[Figure]:
    axes_of = {
        "trainable": "trainable parameters",
        "train_seconds": "training time (s)",
    }
    figures = []
    for column, label in axes_of.items():
        if column in found.runs:
            figures += _cost(found, column, label)
    return figures


def _cost(found: Results, column: str, label: str) -> list[Figure]:
    response = found.primary
    metric = words.metric(response)
    runs = found.runs[found.runs["status"] == "ok"].dropna(subset=[response, column])
    runs = runs[runs[column] > 0]
    inside = in_design(runs, found.factors)
    points = runs.assign(inside=inside).groupby(["point", "arm", "method"], sort=False)
    points = points.agg(cost=(column, "mean"), y=(response, "mean"), inside=("inside", "all"))
    if len(points) < 2:
        return []
    points = points.reset_index()
    canvas, axes = _canvas(2.7)
    if points["cost"].max() / points["cost"].min() > 8:
        axes.set_xscale("log")
    _axis(axes, found, response, "y")
    axes.set_title(axes.get_ylabel(), loc="left", fontsize=8.5, pad=6)
    axes.set_ylabel("")
    cells, others = points[points["inside"]], points[~points["inside"]]
    axes.plot(cells["cost"], cells["y"], "o", ms=4.5, mfc="none", mec=MAIN, mew=1.1, label="cells")
    colours = {label: colour for label, _, colour in _baselines(found, response)}
    for row in others.itertuples():
        name = arm_label(row.arm, row.method)
        axes.plot(row.cost, row.y, "D", ms=5.5, color=colours[name], label=_text(name))
    front = _front(points, metric.lower)
    axes.plot(front["cost"], front["y"], color=MUTED, lw=0.9, ls="--", zorder=1, label="front")
    axes.set_xlabel(label)
    if axes.get_xscale() == "linear":
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.10g}"))
    axes.margins(0.08)
    axes.grid()
    canvas.legend(loc="outside lower center", ncols=4, handletextpad=0.3, columnspacing=1.2)
    caption = (
        f"{metric.label} against {label}, a mark per point (mean of its runs). The dashed front "
        "joins the points that nothing cheaper beats."
    )
    alt = f"Scatter plot of {metric.label} against {label} for {len(points)} points; see runs.csv."
    return [_figure(canvas, f"cost-{column}", "cost", caption, alt)]


def _front(points: pd.DataFrame, lower: bool) -> pd.DataFrame:
    ordered = points.sort_values(["cost", "y"], ascending=[True, lower], kind="stable")
    y = ordered["y"] if lower else -ordered["y"]
    best_before = y.cummin().shift(fill_value=float("inf"))
    return ordered[y < best_before]


# --- diagnostics --------------------------------------------------------------------------


def _diagnostics(found: Results) -> list[Figure]:
    from scipy.stats import norm, probplot

    response = found.primary
    rows = found.rows("residuals.csv", response=response)
    residuals = rows["residual"].to_numpy()
    if not np.any(residuals):
        return []
    scale = {"identity": ""}.get(found.scale(response), f", {found.scale(response)} scale")
    label = words.metric(response).label
    canvas, axes = _canvas(2.6)
    (theory, sample), (slope, middle, _) = probplot(residuals, dist=norm)
    axes.plot(theory, middle + slope * theory, color=MUTED, lw=0.9, ls="--")
    axes.plot(theory, sample, "o", ms=3.6, mfc="none", mec=MAIN, mew=1)
    axes.set(xlabel="normal quantile", ylabel=f"residual{scale}")
    axes.grid()
    caption = f"Residuals of the additive model for {label} against normal quantiles."
    qq = _figure(canvas, f"qq-{response}", "diagnostics", caption, caption)
    canvas, axes = _canvas(2.6)
    axes.axhline(0, color=MUTED, lw=0.9, ls="--")
    axes.plot(rows["fitted"], residuals, "o", ms=3.6, mfc="none", mec=MAIN, mew=1)
    axes.set(xlabel=f"fitted{scale}", ylabel=f"residual{scale}")
    axes.grid()
    caption = f"Residuals of the additive model for {label} against its fitted values."
    fitted = _figure(canvas, f"residuals-{response}", "diagnostics", caption, caption)
    return [qq, fitted]
