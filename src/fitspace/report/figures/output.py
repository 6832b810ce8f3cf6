"""A figure with its words and its data, and its drawing as SVG."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import StringIO
from urllib.parse import quote

import pandas as pd
from matplotlib.figure import Figure as Canvas

from fitspace.report.figures.style import THEME
from fitspace.report.results import Results


@dataclass(frozen=True)
class Figure:
    """A drawn figure: ``name`` of its file, the section it is for, its words and its data.

    ``data`` is what is drawn, in the units drawn. Its columns ``table`` and ``row`` (from 1;
    several, with spaces, for a mean of rows) say which CSV file each mark is from.
    """

    name: str
    section: str
    caption: str
    alt: str
    svg: str
    data: pd.DataFrame

    @property
    def csv(self) -> str:
        return self.data.to_csv(index=False, lineterminator="\n")

    @property
    def download(self) -> str:
        """The data as a link that needs no other file."""
        return "data:text/csv;charset=utf-8," + quote(self.csv, safe=",:.~-_")

    @property
    def inline(self) -> str:
        """The SVG element for the page: colours as variables, ids its own."""
        svg = self.svg[self.svg.index("<svg") :]
        svg = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", svg, count=1)
        # The figure beside it carries the words; a screen reader need not spell the drawing.
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
    text = StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    canvas.savefig(text, format="svg", metadata=nothing)
    svg = re.sub(r"<!DOCTYPE[^>]*>\n?|\s*<metadata>.*?</metadata>", "", text.getvalue(), flags=re.S)
    svg = _in_tags(svg, _plain)
    svg = "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", name)
    return Figure(name, section, caption, alt, svg, data)


def _plain(tag: str) -> str:
    tag = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", tag)  # matplotlib's own; clips and markers differ
    return re.sub(r"(['\"])DejaVu Sans\1", "system-ui, sans-serif", tag)


def _in_tags(svg: str, change: Callable[[str], str]) -> str:
    """Change the tags of an SVG, but no text between them: that is the user's."""
    return re.sub(r"<[^>]*>", lambda tag: change(tag[0]), svg)


def having(found: Results, file: str, column: str, **where: object) -> pd.DataFrame:
    """The rows of a table that have a value in a column; none where there is no such table."""
    rows = found.rows(file, **where)
    return rows.dropna(subset=column) if len(rows) else rows


def of_table(file: str, rows: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """Columns of a table's rows, each with the file and row it is from."""
    data = rows[list(dict.fromkeys(columns))].copy()
    data.insert(0, "table", file)
    data.insert(1, "row", rows.index + 1)
    return data


def numbered(rows: pd.DataFrame) -> str:
    """The rows of a table that a mark is the mean of, from 1."""
    return " ".join(str(row + 1) for row in rows.index)
