"""Snakemake's progress as one line: what runs, what is done, about how long is left.

Snakemake finds this package by its name; ``profiles/default`` names it. Errors, warnings and
everything of a dry run are printed as Snakemake prints them. A job whose time nothing is known of,
such as a training of an embedded base, says itself how long it takes: the last line of its log.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from logging import WARNING, LogRecord
from pathlib import Path

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent
from tqdm import tqdm

from fitspace.core.errors import printable
from fitspace.core.paths import RESULTS
from fitspace.plan.table import STAGES
from fitspace.stages import running
from fitspace.stages.timeleft import EXPECTED, Progress

LOOK_SECONDS = 1.0  # between two looks at what processes work on
# Where nobody watches a terminal, a line now and then.
QUIET_SECONDS = 15.0
_NOT_JOBS = (
    "study", "all", "prepared", "trained", "sampled", "evaluated", "explained", "base", "total",
)  # fmt: skip
_SILENT = {
    LogEvent.PROGRESS,
    LogEvent.JOB_STARTED,
    LogEvent.SHELLCMD,
    LogEvent.WORKFLOW_STARTED,
    LogEvent.RULEGRAPH,
    LogEvent.DEBUG_DAG,
    LogEvent.GROUP_INFO,
}
_CHATTER = (
    "Building DAG", "Assuming unrestricted", "Using shell", "Provided ", "Rules claiming",
    "Select jobs", "Execute ", "host:", "Finished job", "Complete log", "Reports",
)  # fmt: skip

# Results are flagged update(), so that Snakemake deletes none; that it could put no older one back
# where a job failed is no news. Nor that another run's process has done a job's work before it.
_MEANS_NOTHING = ("Cannot restore ", "Warning: the following output files of rule ")


class LogHandler(LogHandlerBase):
    """One bar on a terminal, one line every while elsewhere."""

    writes_to_stream = True
    writes_to_file = False
    has_filter = False
    has_formatter = False
    needs_rulegraph = False

    def __post_init__(self) -> None:
        self.jobs: Counter[str] = Counter()  # to be done, by rule
        self.progress = Progress({})
        self.cores = 1
        self.running: dict[int, tuple[str, str]] = {}  # jobs under way
        self.logs: dict[int, Path] = {}  # of those that say themselves how long they take
        self.done = 0
        self.bar: tqdm | None = None
        self.said, self.shown = 0.0, ""
        self.lock = threading.RLock()  # events come from the driver, looks from a thread
        self.over = threading.Event()

    def emit(self, record: LogRecord) -> None:
        with self.lock:
            self._emit(record)

    def _emit(self, record: LogRecord) -> None:
        event = getattr(record, "event", None)
        if event == LogEvent.JOB_ERROR and (
            job := self.running.pop(getattr(record, "jobid", None), None)
        ):
            self.progress.fail(job)
        if record.getMessage().startswith(_MEANS_NOTHING):
            return
        if self.common_settings.dryrun or record.levelno >= WARNING:
            self._print(self.format(record))
        elif event == LogEvent.RESOURCES_INFO:
            # Told in several parts; on a cluster nodes are among them, and no cores.
            self.cores = getattr(record, "cores", None) or self.cores
        elif event == LogEvent.RUN_INFO:
            self._begin(record.stats)
        elif event == LogEvent.JOB_INFO:
            job = (record.rule_name, next(iter(getattr(record, "wildcards", {}).values()), ""))
            if job[0] in self.jobs:
                self.running[record.jobid] = job
                if job[0] in EXPECTED:
                    self.progress.begin(time.monotonic(), job)
                elif record.log:
                    self.logs[record.jobid] = Path(record.log[0])
            self._show()
        elif event == LogEvent.JOB_FINISHED:
            self._finish(record.job_id)
        elif event not in _SILENT and not self._is_chatter(record):
            self._print(self.format(record))

    def close(self) -> None:
        self.over.set()
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        super().close()

    @staticmethod
    def _is_chatter(record: LogRecord) -> bool:
        text = record.getMessage().strip()
        return text in ("", "None") or text.startswith(_CHATTER)

    def _begin(self, stats: dict[str, int]) -> None:
        self.jobs = Counter({rule: n for rule, n in stats.items() if rule not in _NOT_JOBS})
        known = {rule: n for rule, n in self.jobs.items() if rule in EXPECTED}
        self.progress = Progress(known, self.cores)
        counts = ", ".join(f"{n} {rule}" for rule, n in self.jobs.items())
        self._print(f"{self.jobs.total()} jobs: {counts}")
        self.bar = tqdm(
            total=self.jobs.total(),
            disable=None,
            file=sys.stderr,
            bar_format="{n_fmt}/{total_fmt} {bar} {elapsed}{desc}",
        )
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """Look at what processes work on, until the driver is done."""
        while not self.over.wait(LOOK_SECONDS):
            with self.lock:
                self._look()
                self._show()

    def _look(self) -> None:
        now, held = time.monotonic(), running.at_work()
        for stage, folder in self.progress.held.keys() - held.keys():
            if (RESULTS / STAGES[stage].room / folder / f"{stage}.json").exists():
                self.progress.make(now, (stage, folder))
        self.progress.hold(now, held)

    def _finish(self, job_id: int) -> None:
        if job := self.running.pop(job_id, None):
            self._look()
            self.progress.end(time.monotonic(), job)
            self.done += 1
            if self.bar is not None:
                self.bar.update()
            self._show()

    def _show(self) -> None:
        doing = "; ".join(self._doing(number, *job) for number, job in self.running.items())
        if self.progress.jobs:
            left = tqdm.format_interval(self.progress.left(time.monotonic()))
            doing = f"about {left} left: {doing}"
        if self.bar is not None and not self.bar.disable:
            self.bar.set_description_str(f", {doing}"[:120])
        elif time.monotonic() - self.said > QUIET_SECONDS and self.running and doing != self.shown:
            self.said, self.shown = time.monotonic(), doing
            self._print(f"{self.done} of {self.jobs.total()} jobs done, {doing}")

    def _doing(self, number: int, rule: str, label: str) -> str:
        said = _last_line(self.logs[number]) if number in self.logs else ""
        return said or f"{rule} {label.rpartition('~')[0] or label}".strip()

    def _print(self, text: str) -> None:
        if text and text != "None":
            tqdm.write(text, file=sys.stderr)


def _last_line(log: Path) -> str:
    """The last whole line of a log, without control characters; empty if there is none."""
    try:
        lines = [line for line in log.read_text(errors="replace").split("\n")[:-1] if line.strip()]
    except OSError:
        return ""
    return printable(lines[-1]) if lines else ""
