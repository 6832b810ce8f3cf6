"""How long the rest of a study takes, from what has happened so far.

A :class:`Progress` is told events and looks at nothing itself, neither at a clock nor at a file.

It counts results, not jobs: a process that has started goes on to other runs, whose own jobs find
them finished and end at once. The time left is the work left over the number of processes at work.
A run of a stage costs what the finished ones took on average, from the claim to the result, so
that a process's imports are shared by the runs that it makes. As long as there are few of them,
what the table of stages expects counts too, scaled as the other stages turned out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from statistics import fmean

from fitspace.plan.table import STAGES

LAST = {"report": 16.0, "track": 12.0}  # beside each other, when all else is done
EXPECTED = {row.name: float(row.seconds) for row in STAGES.values()} | LAST
START = 0.8  # seconds that a job takes to start and to find its run finished, as EXPECTED
# What was expected counts as so many results: the first one has its process's imports in it.
SURE = 2
OF_RUNS = tuple(row.name for row in STAGES.values() if not row.by_task)

Job = tuple[str, str]  # rule, and the folder of its run


class Progress:
    """What is done of a study's jobs, and what it took.

    Parameters
    ----------
    jobs : rule -> how many of its jobs are to be done; the rules are among ``EXPECTED``.
    cores : of the machine that does them, as long as fewer processes were seen at work; 1 on a
        cluster.

    Examples
    --------
    Two of eight trainings are done by one process; each took ten seconds:

    >>> progress = Progress({"train": 8})
    >>> progress.hold(0.0, {("train", "a"): "process 7"})
    >>> progress.make(10.0, ("train", "a"))
    >>> progress.hold(10.0, {("train", "b"): "process 7"})
    >>> progress.make(20.0, ("train", "b"))
    >>> round(progress.left(20.0))
    66
    """

    def __init__(self, jobs: Mapping[str, int], cores: int = 1):
        self.jobs = Counter(jobs)
        self.made: set[Job] = set()
        self.abreast = cores  # most processes that may be, or were seen, at work at once
        self._spent: dict[str, list[float]] = {}  # seconds, of each result by rule
        self._begun: dict[Job, float] = {}  # jobs under way
        self._started = 0  # jobs that were begun
        self.held: dict[Job, str] = {}  # by whom
        self._since: dict[str, float] = {}  # process -> when it last took up or finished a run
        self._late: set[Job] = set()  # jobs under way whose run was finished before
        self._idle: list[float] = []  # seconds that those took

    def begin(self, at: float, job: Job) -> None:
        """The driver has started or submitted a job."""
        self._begun[job] = at
        self._started += 1
        if job in self.made:
            self._late.add(job)

    def hold(self, at: float, held: Mapping[Job, str]) -> None:
        """These processes are at work on these runs, and no others."""
        self.held = {
            job: who for job, who in held.items() if job[0] in self.jobs and job not in self.made
        }
        at_work = set(self.held.values())
        self._since = {who: self._since.get(who, at) for who in at_work}
        self.abreast = max(self.abreast, len(at_work))

    def make(self, at: float, job: Job) -> None:
        """A run's result is there."""
        if job in self.made or not self.left_of(job[0]):
            return
        self.made.add(job)
        who = self.held.pop(job, None)
        since = self._begun.get(job, at) if who is None else self._since[who]
        self._spent.setdefault(job[0], []).append(at - since)
        if who is not None:
            self._since[who] = at

    def end(self, at: float, job: Job) -> None:
        """A job is over."""
        self.make(at, job)
        begun = self._begun.pop(job, at)
        if job in self._late:
            self._late.remove(job)
            self._idle.append(at - begun)

    def fail(self, job: Job) -> None:
        """A job has failed; it may begin again."""
        self._started -= self._begun.pop(job, None) is not None
        self._late.discard(job)

    def left_of(self, rule: str) -> int:
        """How many of a rule's results are still to come."""
        return self.jobs[rule] - len(self._spent.get(rule, ()))

    def left(self, now: float) -> float:
        """Seconds until all is done."""
        cost = self._cost()
        work = sum(self.left_of(rule) * cost[rule] for rule in self.jobs if rule not in LAST)
        work += self._start() * (sum(self.jobs.values()) - self._started)
        at_work = {who: rule for (rule, _), who in self.held.items()}
        under_way = sum(min(now - self._since[w], cost[rule]) for w, rule in at_work.items())
        begun = {rule: at for (rule, _), at in self._begun.items() if rule in LAST}
        last = [
            max(cost[rule] - (now - begun.get(rule, now)), 0.0)
            for rule in LAST
            if self.left_of(rule) > 0
        ]
        return max(work - under_way, 0.0) / self.abreast + max(last, default=0.0)

    def _scale(self) -> float:
        """How much longer than expected the results took that are there."""
        of = [rule for rule in OF_RUNS if rule in self._spent] or [*self._spent]
        expected = sum(EXPECTED[rule] * len(self._spent[rule]) for rule in of)
        return sum(sum(self._spent[rule]) for rule in of) / expected if expected else 1.0

    def _cost(self) -> dict[str, float]:
        """Seconds of a result, by rule."""
        scale = self._scale()
        found = {}
        for rule in self.jobs:
            expected = EXPECTED[rule] * (1.0 if rule in LAST else scale)
            seen = self._spent.get(rule, [])
            found[rule] = (SURE * expected + sum(seen)) / (SURE + len(seen))
        return found

    def _start(self) -> float:
        return fmean(self._idle) if self._idle else START
