"""Points, runs, keys and paths: what changes a key, and what must not."""

import copy
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fitspace.core.errors import UserError
from fitspace.plan import build_plan
from fitspace.study import Study

ROOT = Path(__file__).parents[2]
GOOD = yaml.safe_load((ROOT / "tests/data/positions.yaml").read_text())
STAGES = ("prepare", "reference", "train", "sample", "evaluate")


@pytest.fixture(autouse=True)
def _root(monkeypatch):
    monkeypatch.chdir(ROOT)


def plan(**changes):
    return build_plan(Study.model_validate(copy.deepcopy(GOOD) | changes))


def keys(p):
    """Stage -> its folders."""
    return {name: {f for s, f in p.stages if s == name} for name in STAGES}


def test_default_study_has_the_legal_transformer_pairs_and_baselines():
    p = plan()
    cells = {(x.factors.get("input"), x.factors.get("output")) for x in p.points}
    assert len(cells - {(None, None)}) == 16 and len(p.points) == 18
    assert len(p.dropped) == 7 * 4 - 16
    assert len(p.runs) == 18 * 2 and len({r.name for r in p.runs}) == 36


def test_first_seed_of_every_point_comes_before_any_second():
    assert [r.seed for r in plan().runs] == [0] * 18 + [1] * 18


UNTOUCHED = {
    "training setting": ({"train": GOOD["train"] | {"steps": 7}}, {"prepare", "reference"}),
    "sampling setting": (
        {"sample": GOOD["sample"] | {"steps": 7}},
        {"prepare", "reference", "train"},
    ),
    "title, question, analysis": (
        {
            "title": "x",
            "question": "y",
            "analysis": {"factors": ["input"], "responses": ["clip_t"]},
        },
        set(STAGES),
    ),
    "name of the study": ({"name": "other"}, set(STAGES)),
    "order of seeds": ({"seeds": [1, 0]}, set(STAGES)),
    "style": ({"tasks": [GOOD["tasks"][0] | {"style": "night"}]}, set()),
}


@pytest.mark.parametrize("changes, same", UNTOUCHED.values(), ids=UNTOUCHED)
def test_a_change_touches_only_what_depends_on_it(changes, same):
    before, after = keys(plan()), keys(plan(**changes))
    for stage in STAGES:
        if stage in same:
            assert before[stage] == after[stage]
        elif stage == "train" or "train" in changes:
            # The untouched base is not trained: its samples stay.
            assert len(before[stage] & after[stage]) <= 2
        else:
            assert not before[stage] & after[stage]


def test_new_seed_or_level_adds_runs_and_keeps_the_others():
    before = keys(plan())
    more = keys(plan(seeds=[0, 1, 2]))
    assert all(before[s] <= more[s] for s in STAGES)
    assert len(more["train"]) == len(before["train"]) + 17
    fewer = copy.deepcopy(GOOD["arms"])
    fewer[0]["factors"]["input"] = ["CA_out"]
    assert keys(plan(arms=fewer))["train"] < before["train"]


def test_studies_share_runs_whatever_they_call_them():
    settings = GOOD["arms"][0]["settings"] | {"input": "CA_out", "output": "FFN_in"}
    arms = [{"name": "recipe", "method": "adapter", "settings": settings}]
    analysis = GOOD["analysis"] | {"factors": ["arm"], "margins": {}}
    other = keys(plan(name="other", arms=arms, analysis=analysis))
    assert other["train"] and other["evaluate"] < keys(plan())["evaluate"]


def test_defaults_written_out_or_left_out_give_the_same_key():
    arms = copy.deepcopy(GOOD["arms"])
    for name in ("activation", "scale", "init"):
        del arms[0]["settings"][name]
    assert keys(plan(arms=arms)) == keys(plan())


def test_an_integer_and_its_float_give_the_same_key():
    arms = copy.deepcopy(GOOD["arms"])
    arms[0]["settings"]["scale"] = 1
    assert keys(plan(arms=arms)) == keys(plan())


def test_paths_are_plain():
    for stage in plan().stages.values():
        name = stage.folder.name
        assert len(name) < 150 and all(c.isalnum() or c in "._-~+" for c in name)
        assert stage.key in name and stage.sidecar.parent == stage.folder


def test_training_factor_becomes_part_of_the_point():
    arms = [{"method": "full", "factors": {"train.lr": [1.0e-4, 1.0e-3]}}]
    p = plan(arms=arms, analysis=GOOD["analysis"] | {"factors": ["train.lr"], "margins": {}})
    assert [x.train["lr"] for x in p.points] == [1e-4, 1e-3]
    assert [x.name for x in p.points] == ["full.lr0.0001", "full.lr0.001"]
    assert len({r.train.key for r in p.runs if r.seed == 0}) == 2


def test_unknown_folder_is_named_with_what_is_allowed():
    with pytest.raises(UserError, match="train: 'nothing' is not in study 'emoji'"):
        plan().run_of("train", "nothing")


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    steps=st.integers(1, 10**6),
    lr=st.floats(1e-8, 10, allow_nan=False),
    seeds=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3, unique=True),
)
def test_keys_are_functions_of_content(steps, lr, seeds):
    changes = {"train": GOOD["train"] | {"steps": steps, "lr": lr}, "seeds": seeds}
    one, two = plan(**changes), plan(**changes)
    assert keys(one) == keys(two)
    assert len(keys(one)["train"]) == 17 * len(seeds)
