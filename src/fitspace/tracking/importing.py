"""Import a study's finished runs into MLflow.

Files and sidecars are the source of truth; MLflow is a view of them that can be deleted and
imported again. A run is identified by its evaluate key within its study's experiment. It counts as
imported if it has ended and its content tag matches the files. The next import therefore completes
what an interrupted import left, and adds files that came later.
"""

from __future__ import annotations

import csv
import fcntl
import getpass
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fitspace.core.errors import UserError
from fitspace.core.files import digest
from fitspace.plan import Plan
from fitspace.stages.sidecars import now
from fitspace.tracking.entries import (
    DIVERGED,
    Entry,
    entries_of,
)
from fitspace.tracking.sending import LIVE, SEEN
from fitspace.tracking.server import (
    client_uri,
    database_of,
    experiment_of,
    library,
    tracking_uri,
    without_password,
)

STUDY_RUN = "study"  # the key of the run that the others are children of
KEY, CONTENT, FILES = "fitspace.key", "fitspace.content", "fitspace.files"
IMPORTER = "fitspace.importer"
PARENT, NOTE = "mlflow.parentRunId", "mlflow.note.content"
# An import of another machine, or a live run, of which nothing was heard for so long is dead.
DEAD_AFTER = timedelta(minutes=10)


@dataclass(frozen=True)
class Tracked:
    """Result of an import: numbers of the plan's runs in MLflow, new, updated and unfinished.

    ``uri`` is the address without a password.
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


def track(plan: Plan) -> Tracked:
    """Import a plan's finished runs as children of its study's run, each run once.

    Raises
    ------
    UserError : changed files (nothing is imported then), or an error of MLflow.
    """
    uri = tracking_uri()
    entries = entries_of(plan)
    mlflow = library()
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with _alone(uri):
            store = Store(mlflow.MlflowClient(tracking_uri=client_uri(uri)), uri, plan)
            new, updated = store.bring(entries)
    except (mlflow.MlflowException, SQLAlchemyError, OSError) as error:
        why = str(error).splitlines()[0]
        raise UserError(
            f"MLFLOW_TRACKING_URI: {without_password(uri)}: {without_password(why)}"
        ) from None
    unfinished = len(plan.runs) - len(entries)
    return Tracked(plan.study.name, without_password(uri), len(entries), new, updated, unfinished)


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Allow one import at a time: per database file, or per user and machine for a server."""
    database = database_of(uri)
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


class Store:
    """A study's experiment in MLflow, as one importer sees it."""

    def __init__(self, client: Any, uri: str, plan: Plan):
        self.client, self.plan = client, plan
        self.experiment = experiment_of(client, uri, plan.study.name)
        self.host = f"{user()}@{socket.gethostname()}"

    def bring(self, entries: list[Entry]) -> tuple[int, int]:
        """Import missing runs and delete incomplete ones; returns (new, updated)."""
        from tqdm import tqdm

        there = self._runs()
        parent = self._parent(there, entries)
        known = {run.data.tags[KEY] for run in there if not self._unfinished(run)}
        whole = self.whole(entries, there)
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
        """The runs that imports made, in the same order for all importers."""
        found = [run for run in self._search() if KEY in run.data.tags]
        return sorted(found, key=lambda run: run.info.run_id)

    @staticmethod
    def _unfinished(run: Any) -> bool:
        return run.info.status not in ("FINISHED", "FAILED") or CONTENT not in run.data.tags

    def whole(self, entries: list[Entry], there: list[Any]) -> dict[str, list[Any]]:
        """Key of an entry -> the runs that contain all of it, those with the most files first.

        A run with more files than are present stays, because another machine pulled more.
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
        # People open a run to look at its samples, so the small sheet is copied. Adapters and
        # samples are large and are only named, with their SHA-256.
        if "sheet.png" in entry.files:
            self.client.log_artifact(run, str(entry.files["sheet.png"]))
        self.client.log_dict(run, {"files": entry.references}, "references.json")
        self.client.set_tag(run, CONTENT, entry.content)
        status = "FAILED" if DIVERGED in entry.tags else "FINISHED"
        self.client.set_terminated(run, status, entry.finished)

    def _clear(self, there: list[Any], entries: list[Entry], parent: str) -> None:
        """Delete unfinished and outdated runs and duplicates.

        Every importer keeps the same one of two equal runs: the first by run id.
        """
        keep = {key: runs[0] for key, runs in self.whole(entries, there).items() if runs}
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
        """Whether nobody writes an unfinished run any more: on this machine we hold the lock."""
        host, _, time = run.data.tags.get(IMPORTER, "").partition(" ")
        return host == self.host or _long_ago(time)

    def _close_live(self, entries: list[Entry]) -> None:
        """Delete live runs whose curves are imported; end those whose training has ended.

        A killed run cannot report its end. It counts as killed if its training is not finished
        and there was no news from it for ``DEAD_AFTER``.
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
        """Write the facts of the study's run as tags, which can be changed, unlike parameters."""
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


def _curves(entry: Entry, metric: type) -> list[Any]:
    """Loss and learning rate of every step, with evenly spaced times."""
    with entry.files["history.csv"].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    pace = 1000 * entry.seconds / max(1, len(rows))
    return [
        metric(name, float(row[name]), entry.started + round(pace * (i + 1)), int(row["step"]))
        for i, row in enumerate(rows)
        for name in ("loss", "lr")
    ]


def user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without an entry in passwd
        return f"uid{os.getuid()}"


def _long_ago(time: str) -> bool:
    try:
        return datetime.now(UTC) - datetime.fromisoformat(time) > DEAD_AFTER
    except ValueError:
        return True
