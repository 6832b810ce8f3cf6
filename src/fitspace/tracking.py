"""A study's finished runs, as MLflow shows them; the only module that imports mlflow.

Files and sidecars are the truth, MLflow a view of them that can be deleted and imported again.
A run is known by its evaluate key within its study's experiment. It counts as imported once it
has ended and its content tag is that of the files: whatever an interrupted import leaves, or
files that came later, are made good by the next import.
"""

from __future__ import annotations

import csv
import fcntl
import getpass
import logging
import os
import queue
import re
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fitspace import lineage, table
from fitspace.config import Study
from fitspace.design import Plan, Run
from fitspace.errors import UserError
from fitspace.files import canonical, digest, sha256
from fitspace.provenance import now

VERSION = 1  # raise it when the import says more or other things of a run: all come anew
DEFAULT_URI = "sqlite:///mlflow.db"
STUDY_RUN = "study"  # the key of the run that the others are children of
KEY, CONTENT, FILES = "fitspace.key", "fitspace.content", "fitspace.files"
DIVERGED = "fitspace.diverged"  # why; such a run is FAILED
IMPORTER, LIVE, SEEN = "fitspace.importer", "fitspace.live", "fitspace.seen"
KIND = "mlflow.experimentKind"  # else the pages take the study for one of language models
PARENT, COMMIT, NOTE = "mlflow.parentRunId", "mlflow.source.git.commit", "mlflow.note.content"
# An import of another machine, or a live run, of which nothing was heard for so long is dead.
DEAD_AFTER = timedelta(minutes=10)
LIVE_SECONDS = 5.0  # between two requests of a live run
ANSWER_SECONDS = 5  # that such a request waits for its answer
LAST_SECONDS = 10.0  # that a finished training waits for its last request
_IDENTITY = ("point", "arm", "method", "task", "seed")
_SYSTEM = ("train_seconds", "sample_seconds", "peak_memory_mb")
_NO_METRIC = ("run", "status", "steps", "train_key", "sample_key", "evaluate_key")


@dataclass(frozen=True)
class Tracked:
    """What an import did: the plan's runs now in MLflow, new and updated ones, those not finished.

    ``uri`` is where, without a password.
    """

    study: str
    uri: str
    runs: int
    new: int
    updated: int
    unfinished: int

    def __str__(self) -> str:
        local = self.uri.startswith("sqlite:")
        look = f"mlflow ui --backend-store-uri {self.uri} --host 127.0.0.1" if local else self.uri
        waiting = f"; {self.unfinished} not finished" if self.unfinished else ""
        return (
            f"{self.runs} runs of study {self.study} in {self.uri} ({self.new} new, "
            f"{self.updated} updated{waiting}); look: {look}"
        )


@dataclass(frozen=True)
class Entry:
    """One run as it is imported.

    ``metrics`` are (name, value, step), ``references`` the files behind the run, ``files`` those
    that are here to be shown. Times are in milliseconds since 1970.
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
        """SHA-256 of all of it but ``files``: what is here to be shown is no part of the run."""
        return digest({**asdict(replace(self, files={})), "version": VERSION})


def tracking_uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def track(plan: Plan) -> Tracked:
    """Import a plan's finished runs as children of its study's run; repeated, nothing new.

    Raises
    ------
    UserError : files that were changed (nothing is imported then), or what MLflow refused.
    """
    uri = tracking_uri()
    entries = _entries(plan)
    mlflow = _mlflow()
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with _alone(uri):
            store = _Store(mlflow.MlflowClient(tracking_uri=_client_uri(uri)), uri, plan)
            new, updated = store.bring(entries)
    except (mlflow.MlflowException, SQLAlchemyError, OSError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"MLFLOW_TRACKING_URI: {_shown(uri)}: {_shown(why)}") from None
    unfinished = len(plan.runs) - len(entries)
    return Tracked(plan.study.name, _shown(uri), len(entries), new, updated, unfinished)


def _mlflow() -> Any:
    """The library, without telemetry, and quiet but for warnings."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    for name, value in {
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_DISABLE_AGENT_HINT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        # A server that is not there is an error within seconds, not after minutes.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    }.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name, level in {
        "alembic": logging.WARNING,
        "urllib3.connectionpool": logging.ERROR,
    }.items():
        logging.getLogger(name).setLevel(level)
    return mlflow


def _shown(text: str) -> str:
    """An address without the password in it."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def _database(uri: str) -> Path | None:
    found = re.match(r"sqlite:///([^?]+)", uri)
    return Path(found[1]) if found else None


def _client_uri(uri: str) -> str:
    """MLflow remembers stores by their address: a relative one would be another folder's."""
    database = _database(uri)
    return uri if database is None else uri.replace(str(database), str(database.resolve()), 1)


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """One import at a time: of a database file, or of this user on this machine to a server."""
    database = _database(uri)
    if database is not None:
        path = database.with_name(f"{database.name}.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
    else:
        path = Path(tempfile.gettempdir()) / f"fitspace-{os.getuid()}-{digest(uri)[:12]}.lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


# --- what is imported -------------------------------------------------------------------


def _entries(plan: Plan) -> list[Entry]:
    finished = replace(plan, runs=[r for r in plan.runs if r.evaluate.sidecar.exists()])
    rows = table.collect(finished)
    curves: dict[str, list] = {}
    for curve in table.against_n(finished):
        curves.setdefault(curve.pop("run"), []).append(curve)
    folder = table.REPORTS / plan.study.name
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
    behind = {r.stage: r for r in found.behind(found.records["evaluate", run.evaluate.key])}
    own = [behind[name] for name in ("train", "sample", "evaluate") if name in behind]
    files = {}
    for stage, name in (("train", "history.csv"), ("sample", "sheet.png")):
        expected = behind[stage].outputs.get(name) if stage in behind else None
        if expected and (path := Path(behind[stage].folder) / name).exists():
            files[name] = _unchanged(path, expected)
    spans = [(_milliseconds(r.started), _milliseconds(r.finished)) for r in own if r.started]
    # Names and values are those of runs.csv. Bare names are the design's, all settings follow.
    factors = [name for name in run.point.factors if row[name] is not None]
    params = {name: row[name] for name in (*_IDENTITY, *factors)}
    params |= {f"settings.{name}": value for name, value in run.point.settings.items()}
    params |= {f"train.{name}": value for name, value in (run.point.train or {}).items()}
    params |= {f"sample.{name}": v for name, v in plan.study.sample.model_dump().items()}
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
        # MLflow shows a duration: that of the stages, without their waiting for each other.
        finished=min(spans)[0] + sum(end - start for start, end in spans),
        seconds=row.get("train_seconds", 0.0),
    )


def _unchanged(path: Path, expected: str) -> Path:
    if sha256(path) != expected:
        raise UserError(f"{path}: changed since it was written (SHA-256 differs from its sidecar)")
    return path


def _tags(plan: Plan, run: Run, behind: dict, environments: list[dict]) -> dict[str, str]:
    """Every digest behind the run, and the code and packages that its own stages ran with.

    Where these stages differ in one, the tag names each.
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
    """The prepared task. MLflow's own digests cover little: this one is of all of its files.

    MLflow keeps 36 characters of it; the tags of the run have the files' whole SHA-256.
    """
    return {
        "name": run.task.name,
        "digest": digest(record.outputs)[:36] if record else run.prepare.key,
        "source_type": "local",
        "source": canonical({"uri": run.prepare.folder.as_posix()}),
        "profile": canonical(run.prepare.material),
    }


def _milliseconds(time: str) -> int:
    return int(datetime.fromisoformat(time).timestamp() * 1000)


# --- the import -------------------------------------------------------------------------


class _Store:
    """A study's experiment in MLflow, by one importer."""

    def __init__(self, client: Any, uri: str, plan: Plan):
        self.client, self.plan = client, plan
        self.experiment = _experiment(client, uri, plan.study.name)
        self.host = f"{getpass.getuser()}@{socket.gethostname()}"

    def bring(self, entries: list[Entry]) -> tuple[int, int]:
        """Import what is not there yet, clear away what is not whole; returns (new, updated)."""
        from tqdm import tqdm

        there = self._runs()
        parent = self._parent(there, entries)
        known = {run.data.tags[KEY] for run in there if not self._unfinished(run)}
        whole = self._whole(entries, there)
        todo = [entry for entry in entries if not whole[entry.key]]
        for entry in tqdm(todo, desc=f"track {self.plan.study.name}", disable=None):
            self._import(entry, parent.info.run_id)
        if todo:  # another machine may have imported at the same time: one of each is kept
            there = self._runs()
            parent = self._parent(there, entries)
        self._clear(there, entries, parent.info.run_id)
        self._close_live(entries)
        self._finish(parent, entries)
        updated = sum(entry.key in known for entry in todo)
        return len(todo) - updated, updated

    def _search(self) -> Iterator[Any]:
        token = None
        while True:
            page = self.client.search_runs([self.experiment], max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _runs(self) -> list[Any]:
        """The runs that imports made, in an order on which all importers agree."""
        found = [run for run in self._search() if KEY in run.data.tags]
        return sorted(found, key=lambda run: run.info.run_id)

    @staticmethod
    def _unfinished(run: Any) -> bool:
        return run.info.status not in ("FINISHED", "FAILED") or CONTENT not in run.data.tags

    def _whole(self, entries: list[Entry], there: list[Any]) -> dict[str, list[Any]]:
        """By each entry's key the runs that say all of it, those with the most files first.

        A run with more files than are here stays: elsewhere more was pulled.
        """
        shown: dict[tuple[str, str], list] = {}
        for run in there:
            if not self._unfinished(run):
                of = run.data.tags[KEY], run.data.tags[CONTENT]
                shown.setdefault(of, []).append((run, set(run.data.tags.get(FILES, "").split())))
        found = {}
        for entry in entries:
            pairs = shown.get((entry.key, entry.content), [])
            fit = [(run, files) for run, files in pairs if files >= set(entry.files)]
            found[entry.key] = [run for run, _ in sorted(fit, key=lambda pair: -len(pair[1]))]
        return found

    def _parent(self, there: list[Any], entries: list[Entry]) -> Any:
        for run in there:
            if run.data.tags[KEY] == STUDY_RUN:
                return run
        study = self.plan.study
        return self.client.create_run(
            self.experiment,
            start_time=min((e.started for e in entries), default=None),
            run_name=study.name,
            tags={KEY: STUDY_RUN, IMPORTER: f"{self.host} {now()}"},
        )

    def _import(self, entry: Entry, parent: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

        tags = entry.tags | {
            KEY: entry.key,
            PARENT: parent,
            IMPORTER: f"{self.host} {now()}",
            FILES: " ".join(entry.files),
        }
        run = self.client.create_run(
            self.experiment, start_time=entry.started, run_name=entry.name, tags=tags
        ).info.run_id
        params = [Param(name, str(value)) for name, value in entry.params.items()]
        points = [Metric(name, v, entry.finished, step) for name, v, step in entry.metrics]
        if "history.csv" in entry.files:
            points += _curves(entry, Metric)
        self.client.log_batch(run, metrics=points, params=params)
        use = InputTag("mlflow.data.context", "training" if entry.train else "evaluation")
        self.client.log_inputs(run, [DatasetInput(Dataset(**entry.dataset), [use])])
        # One look at the samples is why people open a run: the sheet is small and copied.
        # Adapters and samples are large and stay where they are, named with their SHA-256.
        if "sheet.png" in entry.files:
            self.client.log_artifact(run, str(entry.files["sheet.png"]))
        self.client.log_dict(run, {"files": entry.references}, "references.json")
        self.client.set_tag(run, CONTENT, entry.content)
        status = "FAILED" if DIVERGED in entry.tags else "FINISHED"
        self.client.set_terminated(run, status, entry.finished)

    def _clear(self, there: list[Any], entries: list[Entry], parent: str) -> None:
        """Delete what an import left unfinished, outdated runs and duplicates.

        Which of two equal runs stays is the same for every importer: the first by run id.
        """
        keep = {key: runs[0] for key, runs in self._whole(entries, there).items() if runs}
        for run in there:
            key, number = run.data.tags[KEY], run.info.run_id
            if key == STUDY_RUN:
                doomed = number != parent
            elif self._unfinished(run):
                doomed = self._dead(run)
            else:
                doomed = key in keep and keep[key].info.run_id != number
            if doomed:
                self.client.delete_run(number)
            elif key != STUDY_RUN and run.data.tags.get(PARENT) != parent:
                self.client.set_tag(number, PARENT, parent)

    def _dead(self, run: Any) -> bool:
        """Nobody writes an unfinished run of this user and machine: we hold the lock."""
        host, _, time = run.data.tags.get(IMPORTER, "").partition(" ")
        return host == self.host or _long_ago(time)

    def _close_live(self, entries: list[Entry]) -> None:
        """Delete live runs whose curves are imported; end those whose training has ended.

        A run that was killed cannot say so: it counts as killed when its training is not
        finished and nothing was heard of it for ``DEAD_AFTER``.
        """
        shown = {e.train for e in entries if "history.csv" in e.files}
        trained = {r.train.key for r in self.plan.runs if r.train and r.train.sidecar.exists()}
        for run in [run for run in self._search() if LIVE in run.data.tags]:
            key, number = run.data.tags[LIVE], run.info.run_id
            if key in shown:
                self.client.delete_run(number)
            elif run.info.status == "RUNNING" and key in trained:
                self.client.set_terminated(number, "FINISHED")
            elif run.info.status == "RUNNING" and _long_ago(run.data.tags.get(SEEN, "")):
                self.client.set_terminated(number, "KILLED")

    def _finish(self, parent: Any, entries: list[Entry]) -> None:
        """What the study's run says: tags can be changed, parameters could not."""
        study, number = self.plan.study, parent.info.run_id
        note = "\n\n".join(text for text in (study.title, study.question) if text)
        tags = {
            NOTE: note,
            "fitspace.study": study.name,
            "fitspace.study.sha256": digest(study.model_dump(mode="json")),
            "fitspace.runs": f"{len(entries)} of {len(self.plan.runs)} finished",
            CONTENT: digest(sorted(e.content for e in entries)),
        }
        changed = {n: v for n, v in tags.items() if parent.data.tags.get(n) != v}
        for name, value in changed.items():
            self.client.set_tag(number, name, value)
        if changed or parent.info.status != "FINISHED":
            end = max((e.finished for e in entries), default=None)
            self.client.set_terminated(number, "FINISHED", end)


def _experiment(client: Any, uri: str, name: str) -> str:
    """The id of the study's experiment, made or taken out of the trash where need be."""
    from mlflow import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        database = _database(uri)
        place = database and (database.parent / "mlartifacts" / name).resolve().as_uri()
        try:
            return client.create_experiment(name, place, {KIND: "custom_model_development"})
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another one was faster
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def _curves(entry: Entry, metric: type) -> list[Any]:
    """Loss and learning rate of every step, at the times of an even pace."""
    with entry.files["history.csv"].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    pace = 1000 * entry.seconds / max(1, len(rows))
    return [
        metric(name, float(row[name]), entry.started + round(pace * (i + 1)), int(row["step"]))
        for i, row in enumerate(rows)
        for name in ("loss", "lr")
    ]


def _long_ago(time: str) -> bool:
    try:
        return datetime.now(UTC) - datetime.fromisoformat(time) > DEAD_AFTER
    except ValueError:
        return True


# --- live ---------------------------------------------------------------------------------


@contextmanager
def live(study: Study, run: Run) -> Iterator[Callable[[int, float, float], None] | None]:
    """What training calls with each step's loss and learning rate; None unless asked for.

    With FITSPACE_LIVE_TRACKING=1 the curves go to the server of MLFLOW_TRACKING_URI while a run
    trains. A thread of its own sends them: a server that is slow or down costs a warning and
    never a step. The next import puts the finished run in the live one's place.

    Raises
    ------
    UserError : the switch is neither 0 nor 1, or the address is not a server's.
    """
    asked = os.environ.get("FITSPACE_LIVE_TRACKING", "0")
    if asked not in ("0", "1"):
        raise UserError(f"FITSPACE_LIVE_TRACKING: {asked!r}; allowed: 0, 1")
    if asked == "0":
        yield None
        return
    uri = tracking_uri()
    if not uri.startswith(("http://", "https://")):
        raise UserError(
            f"MLFLOW_TRACKING_URI: {_shown(uri)}; with FITSPACE_LIVE_TRACKING=1 allowed: the "
            "address of a server, http://... or https://..."
        )
    reporter = _Reporter(uri, study.name, run)
    reporter.start()
    try:
        yield lambda step, loss, lr: reporter.steps.put((step, loss, lr, _milliseconds(now())))
        reporter.status = "FINISHED"
    finally:
        reporter.ended.set()
        reporter.join(LAST_SECONDS)


class _Reporter(threading.Thread):
    """Sends a training run's curves, a request every ``LIVE_SECONDS`` at most."""

    def __init__(self, uri: str, study: str, run: Run):
        super().__init__(daemon=True, name="fitspace-live")
        self.uri, self.study, self.planned = uri, study, run
        self.steps: queue.SimpleQueue = queue.SimpleQueue()
        self.ended = threading.Event()
        self.status = "FAILED"
        self.warned = False

    def run(self) -> None:
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(ANSWER_SECONDS)
        client = _mlflow().MlflowClient(tracking_uri=self.uri)
        number, waiting, ended = None, [], False
        while not ended:
            ended = self.ended.wait(LIVE_SECONDS)
            while not self.steps.empty():
                waiting.append(self.steps.get())
            try:
                number = number or self._begin(client)
                self._send(client, number, waiting)
                waiting = []
                if ended:
                    client.set_terminated(number, self.status)
            except Exception as error:  # whatever it is, training goes on
                self._warn(error)

    def _begin(self, client: Any) -> str:
        """The live run of this training, of an earlier attempt or new."""
        experiment = _experiment(client, self.uri, self.study)
        key = self.planned.train.key
        found = client.search_runs([experiment], f"tags.`{LIVE}` = '{key}'", max_results=1)
        if found:
            client.update_run(found[0].info.run_id, status="RUNNING")
            return found[0].info.run_id
        tags = {LIVE: key, SEEN: now()}
        name = self.planned.train.folder.name
        return client.create_run(experiment, run_name=name, tags=tags).info.run_id

    @staticmethod
    def _send(client: Any, number: str, steps: list) -> None:
        from mlflow.entities import Metric, RunTag

        points = [
            Metric(name, value, time, step)
            for step, loss, lr, time in steps
            for name, value in (("loss", loss), ("lr", lr))
        ]
        client.log_batch(number, metrics=points, tags=[RunTag(SEEN, now())])

    def _warn(self, error: Exception) -> None:
        if not self.warned:
            self.warned = True
            why = _shown(str(error)).splitlines()[0] if str(error) else type(error).__name__
            print(f"fitspace: live tracking: {why}; training goes on", file=sys.stderr)
