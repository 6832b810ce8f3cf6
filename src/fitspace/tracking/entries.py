"""A study's finished runs in the form in which they are imported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from fitspace.core import paths
from fitspace.core.errors import UserError
from fitspace.core.files import canonical, digest, sha256
from fitspace.plan import STAGES, Plan, Run
from fitspace.results import lineage, table

VERSION = 1  # raise it when the import says more or other things of a run: all come anew
DIVERGED = "fitspace.diverged"  # why; such a run is FAILED
COMMIT = "mlflow.source.git.commit"
_IDENTITY = ("point", "arm", "method", "task", "seed")
_SYSTEM = ("train_seconds", "sample_seconds", "peak_memory_mb")
_NO_METRIC = ("run", "status", "steps", "train_key", "sample_key", "explain_key", "evaluate_key")


@dataclass(frozen=True)
class Entry:
    """One run in the form in which it is imported.

    ``metrics`` are (name, value, step), ``references`` the files behind the run, ``files`` the
    present files that MLflow can show. Times are in milliseconds since 1970.
    """

    key: str
    train: str | None
    name: str
    params: dict[str, Any]
    metrics: list[tuple[str, float, int]]
    tags: dict[str, str]
    references: list[dict[str, str]]
    dataset: dict[str, str]
    files: dict[str, Path]
    started: int
    finished: int
    seconds: float

    @property
    def content(self) -> str:
        """SHA-256 of everything except ``files``, which depend on what was pulled."""
        return digest({**asdict(replace(self, files={})), "version": VERSION})


def entries_of(plan: Plan) -> list[Entry]:
    """The entries of a plan's finished runs, in the plan's order.

    Raises
    ------
    UserError : every file that was changed since it was written.
    """
    finished = replace(plan, runs=[r for r in plan.runs if r.finished])
    rows = table.collect(finished)
    curves: dict[str, list] = {}
    for curve in table.against_n(finished):
        curves.setdefault(curve.pop("run"), []).append(curve)
    folder = paths.REPORTS / plan.study.name
    known = lineage.read(folder) if (folder / lineage.NAME).exists() else None
    found = lineage.collect(plan, known)
    entries, problems = [], []
    for run, row in zip(finished.runs, rows, strict=True):
        try:
            entries.append(_entry(plan, run, row, curves.get(run.name, []), found))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    return entries


def _entry(plan: Plan, run: Run, row: dict, curves: list[dict], found: lineage.Lineage) -> Entry:
    behind = found.of_run(found.records["evaluate", run.evaluate.key])
    own = [behind[name] for name, row in STAGES.items() if name in behind and not row.by_task]
    files = {}
    shown = {"train": "history.csv", "sample": "sheet.png", "explain": "difference.png"}
    for stage, name in shown.items():
        expected = behind[stage].outputs.get(name) if stage in behind else None
        if expected and (path := Path(behind[stage].folder) / name).exists():
            files[name] = _unchanged(path, expected)
    spans = [(milliseconds(r.started), milliseconds(r.finished)) for r in own if r.started]
    # Names and values are those of runs.csv. The design's columns come first, then all settings.
    factors = [name for name in run.point.factors if row[name] is not None]
    params = {name: row[name] for name in (*_IDENTITY, *factors)}
    params |= {f"settings.{name}": value for name, value in run.point.settings.items()}
    params |= {f"train.{name}": value for name, value in (run.point.train or {}).items()}
    params |= {f"sample.{name}": v for name, v in run.point.sample.items()}
    params |= {"control": run.point.control} if run.point.control else {}
    metrics = [
        (f"system/{name}" if name in _SYSTEM else name, value, 0)
        for name, value in row.items()
        if name not in (*params, *_NO_METRIC) and isinstance(value, int | float)
    ]
    metrics += [
        (f"against_n/{name}", value, curve["n"])
        for curve in curves
        for name, value in curve.items()
        if name != "n"
    ]
    return Entry(
        key=run.evaluate.key,
        train=run.train.key if run.train else None,
        name=run.name,
        params=params,
        metrics=metrics,
        tags=_tags(plan, run, behind, [found.environments.get(r.environment, {}) for r in own])
        | ({DIVERGED: row["diverged"]} if "diverged" in row else {}),
        references=[
            {"stage": r.stage, "path": f"{r.folder}/{name}", "sha256": value}
            for r in behind.values()
            for name, value in r.files.items()
        ],
        dataset=_dataset(run, behind.get("prepare")),
        files=files,
        started=min(spans)[0],
        # MLflow shows a duration: the sum of the stages' times, without the waiting between them.
        finished=min(spans)[0] + sum(end - start for start, end in spans),
        seconds=row.get("train_seconds", 0.0),
    )


def _unchanged(path: Path, expected: str) -> Path:
    if sha256(path) != expected:
        raise UserError(f"{path}: changed since it was written (SHA-256 differs from its sidecar)")
    return path


def _tags(plan: Plan, run: Run, behind: dict, environments: list[dict]) -> dict[str, str]:
    """Every digest behind the run, and the code and packages of its own stages.

    If the stages differ in one of them, the tag names each value.
    """
    tags = {
        "fitspace.study": plan.study.name,
        "fitspace.base.digest": run.prepare.material["base"],
        "fitspace.judge.digest": run.reference.material["evaluator"]["judge"],
    }
    for stage in run.stages:
        tags[f"fitspace.{stage.name}.key"] = stage.key
        record = behind.get(stage.name)
        if record is not None:
            tags[f"fitspace.{stage.name}.sha256"] = record.sidecar
            for name, value in record.outputs.items():
                tags[f"fitspace.{stage.name}.{name}.sha256"] = value

    def each(name: str, of: Callable[[dict], str | None]) -> None:
        values = dict.fromkeys(value for e in environments if e and (value := of(e)))
        if values:
            tags[name] = " | ".join(values)

    each("fitspace.commit", _commit)
    each("fitspace.source.sha256", lambda e: e["source_sha256"])
    each("fitspace.packages", lambda e: " ".join(f"{n}=={v}" for n, v in e["packages"].items()))
    each("fitspace.device", lambda e: e.get("device"))
    if commits := [e["git"]["commit"] for e in environments if e and e["git"]]:
        tags[COMMIT] = commits[0]
    return tags


def _commit(environment: dict) -> str | None:
    git = environment["git"]
    return git and git["commit"] + ("-dirty" if git["dirty"] else "")


def _dataset(run: Run, record: lineage.Record | None) -> dict[str, str]:
    """The prepared task as an MLflow data set, with a digest over all of its files.

    MLflow's own digests cover less. MLflow stores 36 characters of the digest; the run's tags have
    the full SHA-256 of the files.
    """
    return {
        "name": run.task.name,
        "digest": digest(record.outputs)[:36] if record else run.prepare.key,
        "source_type": "local",
        "source": canonical({"uri": run.prepare.folder.as_posix()}),
        "profile": canonical(run.prepare.material),
    }


def milliseconds(time: str) -> int:
    return int(datetime.fromisoformat(time).timestamp() * 1000)
