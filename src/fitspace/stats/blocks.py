"""The blocks of a study: its tasks, and the seeds within each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import pandas as pd

from fitspace.stats.formula import Term, label, term_of
from fitspace.stats.linear import as_labels

TASK, SEED = "task", "seed"


@dataclass(frozen=True)
class Blocks:
    """Terms of a study's model beside its factors, as text: ``task``, ``task:seed``.

    ``common`` are those that all runs of a block share: runs of one task and seed share their
    random numbers. ``by_task`` are the factors' interactions with the task: what a factor does in
    single tasks is neither its effect on all of them nor error.
    """

    common: tuple[str, ...] = ()
    by_task: tuple[str, ...] = ()

    @property
    def terms(self) -> list[str]:
        return [*self.common, *self.by_task]

    def with_cells(self, cell: str) -> list[str]:
        """The terms where the cells of the factors, a column, stand for the factors."""
        return [*self.common, *([label((TASK, cell))] if self.by_task else [])]

    @property
    def names(self) -> list[str]:
        """The columns that make the blocks."""
        return list(dict.fromkeys(name for term in self.common for name in term_of(term)))


def blocks_of(runs: pd.DataFrame, factors: Sequence[str], *, interactions: bool = False) -> Blocks:
    """The blocks of a table of runs: ``y ~ task*arm + task:seed``, or the part of it that varies.

    >>> runs = pd.DataFrame([(t, a, s) for t in "uv" for a in "xyz" for s in (0, 1)])
    >>> runs.columns = ["task", "arm", "seed"]
    >>> blocks_of(runs, ["arm"]).terms
    ['task', 'task:seed', 'task:arm']
    >>> blocks_of(runs[runs["seed"] == 0], ["arm"]).terms
    ['task']

    With one run of each cell in each task, what factors do in single tasks is all the error there
    is, and stays in it.
    """
    varying = [n for n in (TASK, SEED) if n in runs and as_labels(runs[n]).nunique() > 1]
    common = (TASK, f"{TASK}:{SEED}") if varying == [TASK, SEED] else tuple(varying)
    if TASK not in varying:
        return Blocks(common)
    labels = pd.DataFrame({n: as_labels(runs[n]) for n in [TASK, *factors]}).dropna()
    left = len(labels) - len(labels.drop_duplicates())
    if SEED in varying:  # each task has a mean for each of its seeds
        seeds = pd.DataFrame({n: as_labels(runs[n]) for n in (TASK, SEED)}).drop_duplicates()
        left -= len(seeds) - seeds[TASK].nunique()
    if left < 1:
        return Blocks(common)
    terms: list[Term] = [(name,) for name in factors]
    terms += combinations(factors, 2) if interactions else []
    return Blocks(common, tuple(label((TASK, *term)) for term in terms))
