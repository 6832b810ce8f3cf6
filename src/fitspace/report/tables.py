"""Tables for the page: every number with its file, row and column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from fitspace.report import words
from fitspace.report.words import Value

# A row of all columns takes 5 kB of the page; browsers are slow with ten thousand rows.
MOST_RUNS = 1000
_WRITERS: dict[str, Callable[[float], str]] = {
    "number": words.number,
    "four": lambda value: words.number(value, 4),
    "p": words.p_value,
    "count": words.count,
}


@dataclass(frozen=True)
class Column:
    """A shown column: ``kind`` text, code, number, four, aligned, p or count.

    ``limits`` adds the interval from the columns ``<name>_low`` and ``<name>_high`` (or the
    two named).
    """

    name: str
    title: str
    kind: str = "number"
    limits: tuple[str, str] | None = None
    note: str = ""

    @property
    def names(self) -> list[str]:
        return [self.name, *(self.limits or ())]


@dataclass(frozen=True)
class Table:
    """``rows`` hold, per column, a list of texts and `Value`s."""

    file: str
    caption: str
    columns: list[Column]
    rows: list[list[list[object]]]


def table(file: str, rows: pd.DataFrame, columns: Sequence[Column], caption: str) -> Table:
    """Show rows of a file; their index is their row in the file, from 0."""
    columns = [column for column in columns if column.name in rows.columns]
    write = [_writer(column, rows) for column in columns]
    cells = [
        [_cell(file, index, row, column, w) for column, w in zip(columns, write, strict=True)]
        for index, row in zip(rows.index, rows.to_dict("records"), strict=True)
    ]
    return Table(file, caption, columns, cells)


def _writer(column: Column, rows: pd.DataFrame) -> Callable[[float], str]:
    if column.kind != "aligned":
        return _WRITERS.get(column.kind, str)
    decimals = words.aligned(pd.to_numeric(rows[column.name], errors="coerce").dropna())
    return lambda value: words.fixed(value, decimals)


def _cell(
    file: str, index: int, row: dict, column: Column, write: Callable[[float], str]
) -> list[object]:
    if column.kind in ("text", "code"):
        return [words.NONE if pd.isna(row[column.name]) else str(row[column.name])]
    shown = [_value(file, index, row, name, write) for name in column.names]
    if column.limits and not pd.isna(row[column.limits[0]]):
        return [shown[0], " [", shown[1], ", ", shown[2], "]"]
    return shown[:1]


def _value(file: str, index: int, row: dict, name: str, write: Callable) -> Value:
    raw = row[name]
    if pd.isna(raw):
        return Value(words.NONE, "", file, index + 1, name)
    return Value(write(float(raw)), str(raw), file, index + 1, name)


def of_runs(text: pd.DataFrame, factors: Sequence[str]) -> Table:
    """runs.csv, each column formatted by its content; only the first rows of a long table."""
    caption = "Every run, as in runs.csv."
    if len(text) > MOST_RUNS:
        caption = f"The first {MOST_RUNS:,} of {len(text):,} runs; runs.csv has all."
        text = text[:MOST_RUNS]
    columns = [
        Column(name, name, "text") if name in factors else _column_of(text[name])
        for name in text.columns
    ]
    return table("runs.csv", text, columns, caption)


def _column_of(cells: pd.Series) -> Column:
    name = str(cells.name)
    filled = cells.dropna()
    if name == "run" or name.endswith("_key") or name == "point":
        return Column(name, name, "code")
    if name in ("seed", "arm", "method", "task", "status") or filled.empty:
        return Column(name, name, "text")
    numbers = pd.to_numeric(filled, errors="coerce")
    if numbers.isna().any() or (numbers.abs() == float("inf")).any():
        return Column(name, name, "text")
    whole = filled.str.fullmatch(r"-?\d+").all()
    return Column(name, name, "count" if whole else "aligned")
