"""The map of how alike metrics rank the points."""

from __future__ import annotations

from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.patches import Rectangle

from fitspace.report import words
from fitspace.report.agreement import NAME
from fitspace.report.figures.axes import new, row_ticks
from fitspace.report.figures.heatmap import ink_on
from fitspace.report.figures.names import short
from fitspace.report.figures.output import Figure, figure, of_table
from fitspace.report.figures.style import FACE
from fitspace.report.results import Results

# From disagreement to agreement through white: readable with any colour vision.
SIGNED = LinearSegmentedColormap.from_list("signed", ["#b35806", "#f7f7f7", "#14568a"])


def agreement(found: Results) -> list[Figure]:
    """Rank correlations of all metrics, below the diagonal; none for fewer than three metrics."""
    rows = found.rows(NAME)
    names = list(dict.fromkeys([*rows["metric"], *rows["other"]])) if len(rows) else []
    if len(names) < 3:
        return []
    canvas, axes = new(0.8 + 0.32 * len(names))
    norm = Normalize(-1, 1)
    for row in rows.to_dict("records"):
        x, y = names.index(row["metric"]), names.index(row["other"])
        face = SIGNED(norm(row["estimate"]))
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, lw=1.5, ec=FACE, fc=face))
        text = words.fixed(row["estimate"], 1)
        axes.text(x, y, text, ha="center", va="center", fontsize=6.5, color=ink_on(face))
    labels = [words.metric(name).label for name in names]
    row_ticks(axes, labels, 26)
    axes.set_xticks(range(len(names) - 1), [short(label, 14) for label in labels[:-1]])
    axes.tick_params(axis="x", labelrotation=35, length=0)
    for tick in axes.get_xticklabels():
        tick.set(ha="right", rotation_mode="anchor")
    axes.set(xlim=(-0.5, len(names) - 1.5))
    axes.set_ylim(len(names) - 0.5, 0.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    points = int(rows["points"].max())
    caption = (
        f"Rank correlation (Spearman) of the metrics over {points} points, each metric turned so "
        "that higher is better: 1 ranks them alike, -1 the other way round."
    ).replace("-1", "−1")
    alt = f"Map of the rank correlations of {len(names)} metrics; the numbers are in {NAME}."
    data = of_table(NAME, rows, ["metric", "other", "estimate", "low", "high"])
    return [figure(canvas, "agreement", "agreement", caption, alt, data)]
