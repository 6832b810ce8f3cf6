"""Colours, type and marks of all figures."""

from __future__ import annotations

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
STYLE = {
    "svg.hashsalt": "fitspace",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
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
WIDTH = 4.0  # inches; a phone shows it at about its own size
MARKERS = "osD^vPX*"
# Lines differ in marker, and in colour or dash, so that they work in print and for any vision.
LINES = [
    {"color": (MAIN, SECOND, THIRD, INK)[i % 4], "ls": "-" if i < 4 else (0, (3, 2)), "marker": m}
    for i, m in enumerate(MARKERS)
]
