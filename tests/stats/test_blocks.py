"""The blocks of a study, and the error that they leave."""

import itertools

import pandas as pd
import pytest

from fitspace.stats import anova
from fitspace.stats.blocks import blocks_of


def runs_of(tasks=1, arms=3, seeds=1, lost=()):
    rows = itertools.product(range(tasks), range(arms), range(seeds))
    table = pd.DataFrame(rows, columns=["task", "arm", "seed"]).astype(str)
    return table.drop(index=list(lost)).assign(y=lambda t: range(len(t)))


CASES = {
    "one of each": ({}, []),
    "seeds": ({"seeds": 2}, ["seed"]),
    "tasks, one seed": ({"tasks": 2}, ["task"]),
    "tasks and seeds": ({"tasks": 2, "seeds": 2}, ["task", "task:seed", "task:arm"]),
    "a lost run": ({"tasks": 2, "seeds": 2, "lost": [1]}, ["task", "task:seed", "task:arm"]),
    "two seeds on one task alone": (
        {"tasks": 2, "seeds": 2, "lost": [7, 9, 11]}, ["task", "task:seed", "task:arm"]
    ),
    "a second seed of one run alone": (
        {"tasks": 2, "seeds": 2, "lost": [3, 5, 7, 9, 11]}, ["task", "task:seed"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_blocks_of_a_table_of_runs(case):
    design, expected = case
    assert blocks_of(runs_of(**design), ["arm"]).terms == expected


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_effects_in_single_tasks_are_in_the_model_only_where_an_error_is_left(case):
    runs = runs_of(**case[0])
    found = blocks_of(runs, ["arm"])
    if found.by_task:
        rest = anova(runs.assign(y=runs["y"] ** 1.5), "y", "arm", block=found.terms).iloc[-1]
        assert rest["df"] > 0
    assert found.names == [name for name in ("task", "seed") if name in "".join(found.common)]


def test_interactions_of_two_factors_vary_over_tasks_too():
    rows = itertools.product("tu", "ab", "xy", "01")
    runs = pd.DataFrame(rows, columns=["task", "a", "b", "seed"])
    assert blocks_of(runs, ["a", "b"]).by_task == ("task:a", "task:b")
    whole = blocks_of(runs, ["a", "b"], interactions=True)
    assert whole.by_task == ("task:a", "task:b", "task:a:b")
