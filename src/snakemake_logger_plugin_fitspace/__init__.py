"""Snakemake's progress as one line: what runs, what is done, about how long is left.

Snakemake finds this package by its name; ``profiles/default`` names it. Errors, warnings and
everything of a dry run are printed as Snakemake prints them.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from logging import WARNING, LogRecord

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent
from tqdm import tqdm

from fitspace.plan.table import STAGES

# Seconds a job of a rule takes before any was seen; only their ratios matter for long.
EXPECTED = {row.name: row.seconds for row in STAGES.values()} | {"report": 6, "track": 5}
# Where nobody watches a terminal, a line now and then.
QUIET_SECONDS = 15.0
_NOT_JOBS = ("study", "all", "prepared", "trained", "sampled", "evaluated", "base", "total")
_SILENT = {
    LogEvent.PROGRESS,
    LogEvent.JOB_STARTED,
    LogEvent.SHELLCMD,
    LogEvent.RESOURCES_INFO,
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
        self.remaining: Counter[str] = Counter()
        self.running: dict[int, tuple[str, str, float]] = {}
        self.spent: dict[str, list[float]] = {}
        self.bar: tqdm | None = None
        self.said = 0.0
        self.abreast = 1  # most jobs seen at once

    def emit(self, record: LogRecord) -> None:
        event = getattr(record, "event", None)
        if event == LogEvent.JOB_ERROR:
            self.running.pop(getattr(record, "jobid", None), None)
        if record.getMessage().startswith(_MEANS_NOTHING):
            return
        if self.common_settings.dryrun or record.levelno >= WARNING:
            self._print(self.format(record))
        elif event == LogEvent.RUN_INFO:
            self._begin(record.stats)
        elif event == LogEvent.JOB_INFO:
            label = next(iter(getattr(record, "wildcards", {}).values()), "")
            self.running[record.jobid] = (record.rule_name, label, time.monotonic())
            self.abreast = max(self.abreast, len(self.running))
            self._show()
        elif event == LogEvent.JOB_FINISHED:
            self._finish(record.job_id)
        elif event not in _SILENT and not self._is_chatter(record):
            self._print(self.format(record))

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        super().close()

    @staticmethod
    def _is_chatter(record: LogRecord) -> bool:
        text = record.getMessage().strip()
        return text in ("", "None") or text.startswith(_CHATTER)

    def _begin(self, stats: dict[str, int]) -> None:
        self.remaining = Counter({r: n for r, n in stats.items() if r not in _NOT_JOBS})
        total = sum(self.remaining.values())
        counts = ", ".join(f"{n} {rule}" for rule, n in self.remaining.items())
        self._print(f"{total} jobs: {counts}")
        self.bar = tqdm(
            total=total,
            disable=None,
            file=sys.stderr,
            bar_format="{n_fmt}/{total_fmt} {bar} {elapsed}{desc}",
        )

    def _finish(self, job_id: int) -> None:
        rule, _, since = self.running.pop(job_id, ("", "", 0.0))
        if rule not in self.remaining:
            return
        self.remaining[rule] -= 1
        self.spent.setdefault(rule, []).append(time.monotonic() - since)
        if self.bar is not None:
            self.bar.update()
        self._show()

    def _seconds_left(self) -> float:
        """Jobs to come times their rule's mean so far, over how many run abreast."""
        seen = sum(EXPECTED.get(r, 60) * len(s) for r, s in self.spent.items())
        pace = sum(map(sum, self.spent.values())) / seen if seen else 1.0
        total = 0.0
        for rule, count in self.remaining.items():
            spent = self.spent.get(rule)
            total += count * (sum(spent) / len(spent) if spent else EXPECTED.get(rule, 60) * pace)
        now = time.monotonic()
        total -= sum(now - since for _, _, since in self.running.values())
        return max(0.0, total / self.abreast)

    def _show(self) -> None:
        left = tqdm.format_interval(self._seconds_left())
        doing = ", ".join(f"{rule} {label.rpartition('~')[0] or label}".strip()
                          for rule, label, _ in self.running.values())  # fmt: skip
        if self.bar is not None and not self.bar.disable:
            self.bar.set_description_str(f", about {left} left: {doing}"[:120])
        elif time.monotonic() - self.said > QUIET_SECONDS and doing:
            self.said = time.monotonic()
            done = sum(map(len, self.spent.values()))
            total = done + sum(self.remaining.values())
            self._print(f"{done} of {total} jobs done, about {left} left: {doing}")

    def _print(self, text: str) -> None:
        if text and text != "None":
            tqdm.write(text, file=sys.stderr)
