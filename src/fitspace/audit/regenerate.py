"""The regenerate tier: make the report again from its inputs and compare it byte for byte."""

from __future__ import annotations

import csv
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fitspace import rating
from fitspace.audit.findings import Finding
from fitspace.core.errors import UserError
from fitspace.core.paths import UNCOMMITTED
from fitspace.plan import Plan
from fitspace.results import table, tuning
from fitspace.results.lineage import NAME
from fitspace.study import Study

INPUTS = (
    "runs.csv", "against_n.csv", table.SENSITIVITY, table.ANATOMY, "design.json", "gallery.json",
    table.DATA_NOTES, NAME, UNCOMMITTED, tuning.NAME,
)  # fmt: skip
_NUMBER = re.compile(
    r'<data value="([^"]*)" data-table="([^"]*)" data-row="([^"]*)" '
    r'data-column="([^"]*)" data-runs="([^"]*)">([^<]*)</data>'
)


def check(study: Study, plan: Plan | None, folder: Path) -> list[Finding]:
    """Files of a report that differ from those made again from its inputs.

    The design is made again from the study, and the gallery from the samples, where they are here;
    neither without a plan.
    """
    from fitspace.report import build

    with tempfile.TemporaryDirectory(prefix="fitspace-audit-") as name:
        again = Path(name) / folder.name
        again.mkdir()
        for file in INPUTS:
            if (folder / file).is_file():
                shutil.copy(folder / file, again / file)
        for name in ("gallery", "explained", rating.FOLDER):
            if (folder / name).is_dir():
                shutil.copytree(folder / name, again / name)
        try:
            build(study, again)
            if plan is not None:
                table.write_design(plan, again / "design.json")
                table.write_data_notes(plan, again)
                tuning.write(plan, again)
                _pictures(plan, again)
        except UserError as error:
            return [
                Finding("changed", folder.as_posix(), f"cannot be made again: {problem}")
                for problem in error.problems
            ]
        return list(_compare(folder, again))


def _pictures(plan: Plan, again: Path) -> None:
    """Draw the gallery again, and copy the pictures of explanations. Missing files are findings of
    the hash tier."""
    by_name = {run.name: run for run in plan.runs}
    with (again / "runs.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    shown = [row for row in rows if row["run"] in by_name]
    response, factors = plan.study.analysis.responses[0], plan.study.analysis.factors
    numbers = [
        row | {response: float(row[response])} | {f: row[f] or None for f in factors}
        for row in shown
        if row[response]
    ]
    stages = [s for row in shown for s in (by_name[row["run"]].sample, by_name[row["run"]].prepare)]
    if all(stage.sidecar.exists() for stage in stages):
        table.write_gallery(plan, numbers, again)
    table.write_pictures(plan, numbers, again)


def _compare(folder: Path, again: Path) -> Iterator[Finding]:
    names = {
        path.relative_to(root).as_posix()
        for root in (folder, again)
        for path in root.rglob("*")
        if path.is_file()
    }
    for name in sorted(names):
        here, made = folder / name, again / name
        subject = here.as_posix()
        if not here.exists():
            yield Finding("changed", subject, "is missing; made again, it is there")
        elif not made.exists():
            yield Finding("changed", subject, "is not part of the report made again")
        elif here.read_bytes() != made.read_bytes():
            yield from (
                Finding("changed", subject, message)
                for message in _differences(here, made) or ["differs from the one made again"]
            )


def _differences(here: Path, made: Path) -> list[str]:
    """The numbers by which two versions of a file differ."""
    readers = {".csv": _cells, ".html": _numbers}
    if here.suffix not in readers:
        return []
    read = readers[here.suffix]
    try:
        before, now = read(made), read(here)
    except (UnicodeDecodeError, csv.Error):
        return []
    found = []
    for where in dict.fromkeys([*before, *now]):
        ours, theirs = now.get(where, "missing"), before.get(where, "missing")
        if ours != theirs:
            found.append(f"{where} is {ours!r}; made again, it is {theirs!r}")
    return found


def _cells(path: Path) -> dict[str, str]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {f"{i}/{name}": row[name] for i, row in enumerate(rows, 1) for name in row if name}


def _numbers(path: Path) -> dict[str, str]:
    """Place on the page -> its text and value."""
    found: dict[str, str] = {}
    shown: Counter[str] = Counter()
    for value, file, row, column, runs, text in _NUMBER.findall(path.read_text(encoding="utf-8")):
        where = f"{file}#{row}/{column}"
        shown[where] += 1
        found[f"{where} (place {shown[where]} on the page)"] = f"{text} [{value}; runs {runs}]"
    return found
