"""Send a run's curves to a server while it trains."""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fitspace.core.errors import UserError
from fitspace.plan import Run
from fitspace.stages.sidecars import now
from fitspace.study import Study
from fitspace.tracking.entries import (
    milliseconds,
)
from fitspace.tracking.server import (
    experiment_of,
    library,
    tracking_uri,
    without_password,
)

LIVE, SEEN = "fitspace.live", "fitspace.seen"
LIVE_SECONDS = 5.0  # between two requests of a live run
REQUEST_SECONDS = 5  # that such a request may take
LAST_SECONDS = 10.0  # that a finished training waits for its last request


@contextmanager
def live(study: Study, run: Run) -> Iterator[Callable[[int, float, float], None] | None]:
    """Yield the function that training calls with each step, its loss and its learning rate.

    With FITSPACE_LIVE_TRACKING=1 the curves go to the server of MLFLOW_TRACKING_URI while a run
    trains; otherwise it yields None. A separate thread sends them, so a server that is slow or
    down costs a warning and delays no step. The next import replaces the live run by the finished
    one.

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
            f"MLFLOW_TRACKING_URI: {without_password(uri)}; with FITSPACE_LIVE_TRACKING=1 allowed: "
            "the address of a server, http://... or https://..."
        )
    reporter = _Reporter(uri, study.name, run)
    reporter.start()
    try:
        yield lambda step, loss, lr: reporter.steps.put((step, loss, lr, milliseconds(now())))
        reporter.status = "FINISHED"
    finally:
        reporter.ended.set()
        reporter.join(LAST_SECONDS)


class _Reporter(threading.Thread):
    """Sends a training run's curves, at most one request every ``LIVE_SECONDS``."""

    def __init__(self, uri: str, study: str, run: Run):
        super().__init__(daemon=True, name="fitspace-live")
        self.uri, self.study, self.planned = uri, study, run
        self.steps: queue.SimpleQueue = queue.SimpleQueue()
        self.ended = threading.Event()
        self.status = "FAILED"
        self.warned = False

    def run(self) -> None:
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(REQUEST_SECONDS)
        client = library().MlflowClient(tracking_uri=self.uri)
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
        """The live run of this training: that of an earlier attempt, else a new one."""
        experiment = experiment_of(client, self.uri, self.study)
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
            why = (
                without_password(str(error)).splitlines()[0] if str(error) else type(error).__name__
            )
            print(f"fitspace: live tracking: {why}; training goes on", file=sys.stderr)
