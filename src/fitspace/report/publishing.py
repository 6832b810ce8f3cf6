"""A report's tables and figures for a paper, with what says how they were made and from what."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fitspace.core.files import write_text
from fitspace.report import figures, inputs, page, paragraph, results
from fitspace.report.tables import Column, Table
from fitspace.report.tex import escaped
from fitspace.report.words import NONE, Value
from fitspace.study import Study

SKIPPED = ("runs",)  # runs.csv is a table already
FORMS = {"latex": "tex", "typst": "typ", "csv": "csv"}


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, and the number that it shows, empty if it shows none."""

    text: str
    raw: str = ""

    @property
    def is_number(self) -> bool:
        return (
            self.raw != ""
            and re.fullmatch(r"[−\d.,]+( × 10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?", self.text) is not None
        )


def export(study: Study, folder: Path, out: Path, form: str) -> list[Path]:
    """Write the tables of a report in one of `FORMS`, its figures as PDF, a paragraph on how the
    study was made, and references.bib with what it cites; returns the paths.

    ``folder`` is the report's. Every file tells, where its form has comments, how to verify it.

    Raises
    ------
    UserError : as :func:`fitspace.report.build`.
    """
    given = inputs.read(study, folder)
    found = results.analyse(study, given)
    written = []

    def write(name: str, text: str) -> None:
        write_text(out / name, text)
        written.append(out / name)

    for name, table in _flat(page.tables_of(given, found)):
        write(f"tables/{name}.{FORMS[form]}", _WRITERS[form](table, _command(folder, table.file)))
    with figures.styled():
        for figure in figures.draw_all(found):
            path = out / "figures" / f"{figure.name}.pdf"
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.write_pdf(path, _command(folder, f"figures/{figure.name}.csv"))
            written.append(path)
    said = paragraph.of(given, found, form)
    write(f"methods.{paragraph.FORMS[form]}", said.text)
    write("references.bib", paragraph.bibliography(said.cited))
    return written


def _command(folder: Path, file: str) -> str:
    return f"fitspace audit {(folder / file).as_posix()}"


def _flat(tables: object, name: str = "") -> Iterator[tuple[str, Table]]:
    """All tables with names of their own."""
    if isinstance(tables, Table):
        yield name, tables
    elif isinstance(tables, dict):
        for key, value in tables.items():
            if key not in SKIPPED:
                yield from _flat(value, f"{name}-{key}" if name else str(key))
    elif isinstance(tables, list):
        for number, value in enumerate(tables, 1):
            yield from _flat(value, f"{name}-{number}")


def _cells(table: Table) -> tuple[list[str], list[list[Cell]]]:
    """Titles and rows of cells; an interval is a column beside its number."""
    limited = [column.limits is not None for column in table.columns]
    titles = []
    for column, has_limits in zip(table.columns, limited, strict=True):
        titles += [column.title or column.name] + ["95% interval"] * has_limits
    rows = []
    for row in table.rows:
        cells = []
        for parts, has_limits in zip(row, limited, strict=True):
            cells.append(_cell(parts[:1] if has_limits else parts))
            if has_limits:
                cells.append(Cell("".join(map(str, parts[1:])).strip()))
        rows.append(cells)
    return titles, rows


def _cell(parts: list[object]) -> Cell:
    text = "".join(map(str, parts))
    number = parts[0] if len(parts) == 1 and isinstance(parts[0], Value) else None
    return Cell(text, number.raw if number else "")


def _numeric(rows: list[list[Cell]], column: int) -> bool:
    shown = [row[column] for row in rows if row[column].text != NONE]
    return bool(shown) and all(c.is_number or c.text.startswith("<") for c in shown)


# --- forms ----------------------------------------------------------------------------------


def latex(table: Table, command: str) -> str:
    """A table with booktabs, its numbers aligned by siunitx; needs both packages."""
    titles, rows = _cells(table)
    kinds = [_numeric(rows, i) for i in range(len(titles))]
    spec = " ".join(
        f"S[table-format={_format(rows, i)}]" if kind else "l" for i, kind in enumerate(kinds)
    )
    lines = [
        f"% Verify: {command}",
        "% Needs: \\usepackage{booktabs,siunitx}",
        "\\begin{table}",
        f"  \\caption{{{escaped(table.caption)}}}",
        f"  \\begin{{tabular}}{{{spec}}}",
        "    \\toprule",
        "    " + " & ".join(f"{{{escaped(title)}}}" for title in titles) + " \\\\",
        "    \\midrule",
    ]
    for row in rows:
        cells = [_of_latex(c, kind) for c, kind in zip(row, kinds, strict=True)]
        lines.append("    " + " & ".join(cells) + " \\\\")
    lines += ["    \\bottomrule", "  \\end{tabular}", "\\end{table}", ""]
    return "\n".join(lines)


def _of_latex(cell: Cell, numeric: bool) -> str:
    if not numeric:
        return escaped(cell.text)
    return _plain(cell) if cell.is_number else f"{{{escaped(cell.text)}}}"


def _plain(cell: Cell) -> str:
    """The number as siunitx reads it, with the digits that the page shows."""
    text = cell.text.replace(",", "").replace("−", "-")
    if "×" not in text:
        return text
    digits = len(re.sub(r"\D", "", text.partition(" ")[0]))
    return f"{float(cell.raw):.{digits - 1}e}"


def _format(rows: list[list[Cell]], column: int) -> str:
    """siunitx's table-format: most digits before and after the point, sign and exponent."""
    numbers = [_plain(row[column]) for row in rows if row[column].is_number]
    mantissas = [number.partition("e")[0] for number in numbers]
    before = max((len(m.lstrip("-").partition(".")[0]) for m in mantissas), default=1)
    after = max((len(m.partition(".")[2]) for m in mantissas), default=0)
    sign = "-" if any(m.startswith("-") for m in mantissas) else ""
    return f"{sign}{before}.{after}" + ("e-2" if any("e" in number for number in numbers) else "")


def typst(table: Table, command: str) -> str:
    """A figure of kind table for Typst. All text is in string literals, which read nothing."""
    titles, rows = _cells(table)
    right = [_numeric(rows, i) for i in range(len(titles))]
    align = ", ".join("right" if kind else "left" for kind in right)
    lines = [
        f"// Verify: {command}",
        "#figure(",
        f"  caption: {_literal(table.caption)},",
        "  table(",
        f"    columns: {len(titles)},",
        f"    align: ({align},),",
        "    stroke: none,",
        "    table.hline(),",
        f"    table.header({', '.join(map(_literal, titles))}),",
        "    table.hline(stroke: 0.5pt),",
        *(f"    {', '.join(_literal(cell.text) for cell in row)}," for row in rows),
        "    table.hline(),",
        "  ),",
        ")",
        "",
    ]
    return "\n".join(lines)


def _literal(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def as_csv(table: Table, _: str) -> str:
    """Numbers with all digits of the report's table, limits in columns of their own."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([title for column in table.columns for title in _names(column)])
    for row in table.rows:
        cells = []
        for parts, column in zip(row, table.columns, strict=True):
            values = [part.raw for part in parts if isinstance(part, Value)]
            count = len(_names(column))
            cells += (values or ["".join(map(str, parts))]) + [""] * (count - max(1, len(values)))
        writer.writerow(cells)
    return text.getvalue()


def _names(column: Column) -> list[str]:
    title = column.title or column.name
    return [title, f"{title}, low", f"{title}, high"] if column.limits else [title]


_WRITERS = {"latex": latex, "typst": typst, "csv": as_csv}
