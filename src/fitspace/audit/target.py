"""The target of an audit: a study, its report, a table, or one value of a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fitspace.core.errors import UserError
from fitspace.core.files import read_json
from fitspace.core.reading import checked, read_yaml
from fitspace.study import Study
from fitspace.study.reading import form


@dataclass(frozen=True)
class Value:
    """One cell of a report's table: ``row`` counts from 1, ``cells`` is the whole row as text."""

    table: str
    row: int
    column: str
    cells: dict[str, str]

    @property
    def text(self) -> str:
        return self.cells[self.column]

    @property
    def content(self) -> dict[str, Any]:
        return {**self.__dict__, "text": self.text}


class _Origins(BaseModel):
    sets: dict[str, list[str]]
    rows: dict[str, list[str]]


@dataclass(frozen=True)
class Target:
    """A study file, its report's folder, and the keys of the runs in question (None: all)."""

    path: Path
    study: Study
    folder: Path
    table: str | None = None
    value: Value | None = None
    keys: tuple[str, ...] | None = None


def locate(target: Path | None, value: str | None = None) -> Target:
    """Find the study behind a study file, a report's folder, one of its files, or a value.

    ``value`` is ``TABLE.csv#ROW/COLUMN``. ROW is a number from 1, or ``column=text`` of cells that
    together only one row has, separated by commas.

    Raises
    ------
    UserError : no such file, no study file for it, no such table, row or column.
    """
    selector = None
    if value is not None:
        name, _, selector = value.partition("#")
        if not selector or "/" not in selector:
            raise UserError(f"--value: {value!r}; expected TABLE.csv#ROW/COLUMN")
        if target is not None and Path(name).parent == Path("."):
            name = str(_report_folder(_study(target)[1]) / name)
        target = Path(name)
    if target is None:
        raise UserError("audit: give a study file, a report or one of its tables, or --value")
    path, study = _study(target)
    folder = _report_folder(study)
    if target.suffix != ".csv":
        return Target(path, study, folder)
    rows = _rows(target)
    origins = _origins(folder, target.name)
    if selector is None:
        keys = dict.fromkeys(key for row in origins for key in row)
        return Target(path, study, folder, target.name, None, tuple(keys))
    found = _value(target, rows, selector)
    return Target(path, study, folder, target.name, found, tuple(origins[found.row - 1]))


def _report_folder(study: Study) -> Path:
    from fitspace.core.paths import REPORTS

    return REPORTS / study.name


def _study(target: Path) -> tuple[Path, Study]:
    if not target.exists():
        raise UserError(f"{target}: no such file; expected a study file, a report or its table")
    if target.suffix in (".yaml", ".yml"):
        return target, form(target)
    folder = target if target.is_dir() else target.parent
    for path in sorted(Path("params").glob("*.yaml")):
        try:
            named = read_yaml(path).get("name")
        except UserError:
            continue
        if named == folder.name:
            study = form(path)
            if _report_folder(study).resolve() == folder.resolve():
                return path, study
    raise UserError(
        f"{target}: no study file in params/ is named {folder.name!r}; "
        "expected a file of reports/<study>, or the study file itself"
    )


def _rows(path: Path) -> list[dict[str, str]]:
    from fitspace.stats.reading import read_text

    return read_text(path).fillna("").to_dict("records")


def _origins(folder: Path, table: str) -> list[list[str]]:
    """The keys of the runs behind each row of a table."""
    path = folder / "origins.json"
    content = checked(read_json(path), _Origins, path, "a report's origins")
    try:
        rows = content.rows[table]
        return [content.sets[name] for name in rows]
    except KeyError as error:
        if table in content.rows:
            raise UserError(f"{path}: not a report's origins (no set {error})") from None
        known = ", ".join(content.rows)
        raise UserError(f"{folder / table}: {path} does not name it; allowed: {known}") from None


def _value(path: Path, rows: list[dict[str, str]], selector: str) -> Value:
    which, _, column = selector.rpartition("/")
    if not rows or column not in rows[0]:
        allowed = ", ".join(rows[0]) if rows else "none: the table is empty"
        raise UserError(f"--value: {path} has no column {column!r}; allowed: {allowed}")
    if which.isdecimal():
        number = int(which)
        if not 1 <= number <= len(rows):
            raise UserError(f"--value: {path} has no row {number}; allowed: 1 to {len(rows)}")
    else:
        number = _only_row(path, rows, which)
    return Value(path.name, number, column, rows[number - 1])


def _only_row(path: Path, rows: list[dict[str, str]], which: str) -> int:
    wanted = dict(part.partition("=")[::2] for part in which.split(","))
    if unknown := [name for name in wanted if name not in rows[0]]:
        raise UserError(
            f"--value: {path} has no column {', '.join(map(repr, unknown))}; allowed: a row's "
            f"number, or column=text with {', '.join(rows[0])}"
        )
    found = [
        i for i, row in enumerate(rows, 1) if all(row[name] == wanted[name] for name in wanted)
    ]
    if len(found) != 1:
        listed = f" ({', '.join(map(str, found[:10]))})" if found else ""
        raise UserError(
            f"--value: {which!r} is in {len(found)} rows of {path}{listed}; expected: in one"
        )
    return found[0]
