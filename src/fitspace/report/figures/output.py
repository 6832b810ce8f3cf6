"""A figure with its caption, its data and its drawing as SVG."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from urllib.parse import quote

import pandas as pd
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas

from fitspace.report.figures.style import THEME
from fitspace.report.results import Results


@dataclass(frozen=True)
class Figure:
    """A drawn figure: the ``name`` of its file, its section, its texts and its data.

    ``data`` has the drawn values in the drawn units. Its columns ``table`` and ``row`` (from 1;
    several, separated by spaces, for a mean of rows) name the origin of each mark.
    """

    name: str
    section: str
    caption: str
    alt: str
    svg: str
    data: pd.DataFrame
    canvas: Canvas = field(compare=False, repr=False)

    def write_pdf(self, path: Path, subject: str) -> None:
        """The drawing as PDF with its fonts, without dates; ``subject`` is among its properties."""
        nothing = dict.fromkeys(("Creator", "Producer", "CreationDate"))
        self.canvas.savefig(path, format="pdf", metadata=nothing | {"Subject": subject})

    @property
    def csv(self) -> str:
        return self.data.to_csv(index=False, lineterminator="\n")

    @property
    def download(self) -> str:
        """The data as a link that needs no other file."""
        return "data:text/csv;charset=utf-8," + quote(self.csv, safe=",:.~-_")

    @property
    def inline(self) -> str:
        """The SVG element for the page, with colours as variables and ids of its own."""
        svg = self.svg[self.svg.index("<svg") :]
        svg = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", svg, count=1)
        # The figure's label has the text; a screen reader need not read the drawing.
        svg = svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
        return _in_tags(svg, self._themed)

    def _themed(self, tag: str) -> str:
        for colour, name in THEME.items():
            tag = tag.replace(colour, f"var({name})")
        return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{self.name}-", tag)


def figure(
    canvas: Canvas, name: str, section: str, caption: str, alt: str, data: pd.DataFrame
) -> Figure:
    """The finished drawing as SVG without dates, versions and unused ids."""
    svg = re.sub(r"<!DOCTYPE[^>]*>\n?|\s*<metadata>.*?</metadata>", "", _drawn(canvas), flags=re.S)
    svg = _in_tags(svg, _plain)
    svg = "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", name)
    return Figure(name, section, caption, alt, svg, data, canvas)


def _drawn(canvas: Canvas) -> str:
    """The SVG that ``canvas.savefig`` writes, which draws everything once more for the layout."""
    text, dpi, layout = StringIO(), canvas.dpi, canvas.get_layout_engine()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    drawing = FigureCanvasSVG(canvas)
    canvas.dpi = drawing.fixed_dpi
    layout.execute(canvas)
    canvas.dpi = dpi
    canvas.set_layout_engine("none")
    drawing.print_svg(text, metadata=nothing)
    canvas.dpi = dpi
    canvas.set_layout_engine(layout)
    return text.getvalue()


def _plain(tag: str) -> str:
    tag = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", tag)  # ids of clips and markers stay
    return re.sub(r"(['\"])DejaVu Sans\1", "system-ui, sans-serif", tag)


def _in_tags(svg: str, change: Callable[[str], str]) -> str:
    """Change the tags of an SVG, but not the text between them, which is the user's."""
    return re.sub(r"<[^>]*>", lambda tag: change(tag[0]), svg)


def having(found: Results, file: str, column: str, **where: object) -> pd.DataFrame:
    """The rows of a table that have a value in a column; empty if there is no such table."""
    rows = found.rows(file, **where)
    return rows.dropna(subset=column) if len(rows) else rows


def of_table(file: str, rows: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """Columns of a table's rows, each row with its file and row number."""
    data = rows[list(dict.fromkeys(columns))].copy()
    data.insert(0, "table", file)
    data.insert(1, "row", rows.index + 1)
    return data


def numbered(rows: pd.DataFrame) -> str:
    """The numbers, from 1, of the table rows that a mark averages."""
    return " ".join(str(row + 1) for row in rows.index)
