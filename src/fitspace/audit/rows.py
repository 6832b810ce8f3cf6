"""Check that runs.csv has exactly the runs of the study, each with its own numbers."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from fitspace.audit.findings import Finding
from fitspace.audit.hashes import differences
from fitspace.core.errors import UserError
from fitspace.core.files import sha256
from fitspace.core.texts import cell
from fitspace.plan import STAGES, Plan, Run
from fitspace.results import table
from fitspace.results.lineage import Lineage, Record

RUNS = "runs.csv"
# Changes of these are reported once for their files, not for every key that depends on them.
_BY_FILES = ("base", "evaluator.judge")


def check(plan: Plan, folder: Path, lineage: Lineage, keys: Iterable[str] | None) -> list[Finding]:
    """Missing and unplanned rows, differing settings and cells, for some runs or for all."""
    path = folder / RUNS
    try:
        with path.open(encoding="utf-8", newline="") as file:
            listed = list(csv.DictReader(file))
        rows = {row["run"]: row for row in listed}
    except FileNotFoundError:
        return [Finding("absent", path.as_posix(), "not here")]
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        return [Finding("changed", path.as_posix(), f"is no table of runs ({error})")]
    planned = {run.name: run for run in plan.runs}
    counts = Counter(row["run"] for row in listed)
    findings = [
        Finding("changed", path.as_posix(), f"the run {name} stands {count} times")
        for name, count in counts.items()
        if count > 1
    ]
    findings += _other_runs(path, plan, rows, lineage)
    wanted = None if keys is None else set(keys)
    for name, row in rows.items():
        run = planned.get(name)
        if run is not None and (wanted is None or run.evaluate.key in wanted):
            findings += _cells(path, plan, run, row, lineage)
    for name, (stage, rows_of) in _LONG.items():
        findings += _long(plan, folder / name, stage, rows_of, lineage, wanted)
    return findings


# Tables with several rows of a run -> the stage that has them, and the rows of a run.
_LONG: dict[str, tuple[str, Callable[[Plan, Run], list[dict]]]] = {
    table.AGAINST_N: ("evaluate", lambda plan, run: table.curve(run)),
    table.SENSITIVITY: (
        "explain",
        lambda plan, run: table.explanation(plan, run)[table.SENSITIVITY],
    ),
    table.ANATOMY: ("explain", lambda plan, run: table.explanation(plan, run)[table.ANATOMY]),
}


def _long(
    plan: Plan,
    path: Path,
    stage: str,
    rows_of: Callable[[Plan, Run], list[dict]],
    lineage: Lineage,
    wanted: set[str] | None,
) -> list[Finding]:
    """Rows of a table that are not those of the runs' files that are here."""
    here: dict[str, list[dict]] = {}
    for run in plan.runs:
        own = run.own.get(stage)
        record = None if own is None else lineage.records.get((stage, own.key))
        asked = wanted is None or run.evaluate.key in wanted
        if record is not None and asked and _is_as_recorded(record):
            with suppress(UserError):  # A finding of the run's own row.
                here[run.name] = rows_of(plan, run)
    if not path.exists():
        lost = [name for name, rows in here.items() if rows]
        return [Finding("changed", path.as_posix(), "is missing")] if lost else []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            listed: dict[str, list[dict]] = {}
            for row in csv.DictReader(file):
                listed.setdefault(row["run"], []).append(row)
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        return [Finding("changed", path.as_posix(), f"is no table of runs ({error})")]
    findings = []
    for name, rows in here.items():
        expected = [{k: cell(v) for k, v in row.items()} for row in rows]
        if listed.get(name, []) != expected:
            message = f"its rows of {name} are not those of the run's {STAGES[stage].title}"
            findings.append(Finding("changed", path.as_posix(), message))
    return findings


def _other_runs(path: Path, plan: Plan, rows: dict, lineage: Lineage) -> list[Finding]:
    """Runs that only the plan or only the table has, with the settings that differ."""
    recorded = {_who(row): name for name, row in rows.items()}
    planned = {run.name for run in plan.runs}
    findings, otherwise = [], Counter()
    seen = set()
    for run in plan.runs:
        who = (run.point.name, run.task.name, str(run.seed))
        seen.add(who)
        if run.name in rows:
            continue
        if who not in recorded:
            findings.append(Finding("changed", path.as_posix(), f"the run {run.name} is missing"))
            continue
        otherwise.update(_otherwise(run, recorded[who], lineage))
    findings += [
        Finding("changed", path.as_posix(), f"the run {name} is not of this study")
        for who, name in recorded.items()
        if who not in seen and name not in planned
    ]
    for (what, before, now), runs in otherwise.items():
        message = f"{what} is {now!r} now; {runs} runs were made with {before!r}"
        findings.append(Finding("changed", path.as_posix(), message))
    return findings


def _who(row: dict[str, str]) -> tuple[str, str, str]:
    return row.get("point", ""), row.get("task", ""), row.get("seed", "")


def _otherwise(run: Run, name: str, lineage: Lineage) -> list[tuple[str, object, object]]:
    """The settings in which a run in the table differs from the study as it is now."""
    record = lineage.records.get(("evaluate", name.rpartition("~")[2]))
    if record is None:
        return [("key", name, run.name)]
    made = {name: r.material for name, r in lineage.of_run(record).items()}
    found = []
    for stage in run.stages:
        links = STAGES[stage.name].reads
        for what, before, now in differences(made.get(stage.name, {}), stage.material):
            if what not in links and what not in _BY_FILES:
                found.append((f"{stage.name}.{what}", str(before), str(now)))
    return found


def _cells(
    path: Path, plan: Plan, run: Run, row: dict[str, str], lineage: Lineage
) -> list[Finding]:
    """Cells that differ from the plan or, if it is present, from metrics.json."""
    keys = {f"{s.name}_key": s.key for s in run.stages if f"{s.name}_key" in row}
    record = lineage.records.get(("evaluate", run.evaluate.key))
    # Only the metrics of a finished run tell whether it diverged.
    ended = row.get("status") if row.get("status") in ("ok", "failed") else "ok"
    expected = table.identity(plan, run, "missing" if record is None else ended) | keys
    if record is not None and all(map(_is_as_recorded, [record, *lineage.beside(record)])):
        # If not, the changed file is a finding already.
        try:
            expected = table.row(plan, run)
        except UserError as error:
            return [Finding("changed", run.evaluate.folder.as_posix(), p) for p in error.problems]
    return [
        Finding(
            "changed",
            path.as_posix(),
            f"{column} of {run.name} is {row[column]!r}; the run has {cell(value)!r}",
        )
        for column, value in expected.items()
        if column in row and row[column] != cell(value)
    ] + [
        Finding("changed", path.as_posix(), f"has no column {column!r}")
        for column, value in expected.items()
        if column not in row and value is not None
    ]


def _is_as_recorded(record: Record) -> bool:
    folder = Path(record.folder)
    paths = {folder / name: value for name, value in record.files.items()}
    return all(path.is_file() and sha256(path) == value for path, value in paths.items())
