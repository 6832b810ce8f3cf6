"""Matching the budget: widths against closed forms, and what cannot be matched."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fitspace import methods
from fitspace.core.errors import UserError
from fitspace.methods import adapter
from fitspace.plan import budget, build_plan, expand
from fitspace.plan.checks import arm_problems
from fitspace.plan.counting import count
from fitspace.study import Study

ROOT = Path(__file__).parents[2]
EMOJI = yaml.safe_load((ROOT / "tests/data/positions.yaml").read_text())
CELLS = adapter.legal_cells()

# Channels at the inputs and outputs of Stable Diffusion 1.x's 22 ResNet blocks.
IN = [320, 320, 320, 640, 640, 1280, 1280, 1280, 1280, 1280,
      2560, 2560, 2560, 2560, 2560, 1920, 1920, 1280, 960, 960, 640, 640]  # fmt: skip
OUT = [320, 320, 640, 640, 1280, 1280, 1280, 1280, 1280, 1280,
       1280, 1280, 1280, 1280, 1280, 1280, 640, 640, 640, 320, 320, 320]  # fmt: skip
SIDES = {"Res_in": IN, "Res_out": OUT}


def closed_form(cell: tuple[str, str], width: int) -> int:
    """Parameters of an adapter on Stable Diffusion 1.x, from the architecture.

    Transformer: 16 blocks whose widths sum to 12,480. CA_c: 16 times the text's 768. ResNet:
    the norm's affine, two 3×3 convolutions and their biases.
    """
    if cell == ("CA_c", "CA_c"):
        return 16 * (2 * 768 * width + width + 768)
    if cell[0] in SIDES:
        sides = zip(SIDES[cell[0]], SIDES[cell[1]], strict=True)
        return sum(2 * a + 9 * a * width + width + 9 * width * b + b for a, b in sides)
    return 24_976 * width + 12_480


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    """The cache of counts lies in the working directory."""
    monkeypatch.chdir(tmp_path)


def width(cell, target):
    return budget.width("sd15", "adapter", {"input": cell[0], "output": cell[1]}, target)


@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_all_20_positions_match_5_46_million(cell):
    target = 5_460_000
    found = width(cell, target)
    error = abs(closed_form(cell, found) - target)
    assert error <= 0.01 * target
    assert all(abs(closed_form(cell, w) - target) >= error for w in (found - 1, found + 1))


@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_at_3_3_million_a_resnet_channel_is_too_coarse_for_one_position(cell):
    """One channel more is half a million parameters there: steps of 14%, 16% and 11%."""
    target = 3_300_000
    wide = min(range(1, 200), key=lambda w: abs(closed_form(cell, w) - target))
    if abs(closed_form(cell, wide) - target) <= 0.01 * target:
        assert width(cell, target) == wide
        return
    assert cell == ("Res_in", "Res_out")
    with pytest.raises(UserError) as caught:
        width(cell, target)
    assert caught.value.problems == [
        "match_trainable: 3,300,000: the nearest are 3,224,794 (width 7) and 3,674,096 (width 8); "
        "allowed: within 1%"
    ]


AROUND = {
    "between two": (lambda w: 10 * w + 5, 38, [[3, 35], [4, 45]]),
    "exactly": (lambda w: 10 * w + 5, 45, [[4, 45], [5, 55]]),
    "below the smallest": (lambda w: 10 * w + 5, 3, [[1, 15]]),
    "above the largest": (lambda w: 10 * w + 5, 9999, [[50, 505]]),
}


@pytest.mark.parametrize(("counts", "target", "expected"), AROUND.values(), ids=AROUND)
def test_nearest_values_of_an_affine_count(counts, target, expected):
    assert budget.around(counts, 1, 50, target) == expected


def test_a_count_that_is_not_affine_is_noticed():
    with pytest.raises(ArithmeticError, match="not affine: 121 at 11"):
        budget.around(lambda w: w * w, 1, 50, 31)


WIDE = [name for name in methods.METHODS if methods.knob(name)]


def test_methods_with_a_width():
    assert {name: methods.knob(name) for name in WIDE} == {
        "adapter": "width",
        "adaptformer": "width",
        "difffit": "width",
        "loha": "rank",
        "lora": "rank",
        "vpt": "prompts",
    }


@pytest.mark.parametrize("name", WIDE)
def test_every_declared_width_is_affine_and_found_again(name):
    needed = {"adapter": {"input": "FFN_in", "output": "FFN_in"}, "difffit": {"gamma": "mlp"}}
    own, base = needed.get(name, {}), "emoji-dit"
    target = count(base, name, own | {methods.knob(name): 7})["trainable"]
    assert budget.width(base, name, own, target) == 7


def test_a_width_that_the_settings_do_not_use_is_refused():
    with pytest.raises(UserError, match="width has no meaning with these settings"):
        budget.width("emoji-dit", "difffit", {"gamma": "branch"}, 5000)


def study(base=str(ROOT / "models/emoji-unet"), judge=str(ROOT / "models/emoji-clip"), **arm):
    arms = [{"method": "adapter", "illegal_cells": "drop"} | arm]
    content = copy.deepcopy(EMOJI) | {"base": base, "judge": judge, "arms": arms}
    content["analysis"] = {"factors": ["input"], "responses": ["clip_t"]}
    return Study.model_validate(content)


POSITIONS = {"input": ["SA_in", "CA_c", "Res_in", "Res_out"],
             "output": ["FFN_in", "CA_c", "Res_in", "Res_out"]}  # fmt: skip


def test_points_of_a_study_have_the_width_among_their_settings():
    points, _ = expand(
        study("CompVis/stable-diffusion-v1-4", factors=POSITIONS, match_trainable=5_460_000)
    )
    widths = {(p.factors["input"], p.factors["output"]): p.settings["width"] for p in points}
    assert widths == {
        ("SA_in", "FFN_in"): 218,
        ("CA_c", "CA_c"): 222,
        ("Res_in", "Res_in"): 10,
        ("Res_in", "Res_out"): 12,
        ("Res_out", "Res_out"): 15,
    }
    assert {p.slug for p in points} >= {"adapter.SA_in-FFN_in.width218"}


def test_keys_do_not_tell_a_matched_width_from_a_given_one():
    cell = {"input": ["CA_out"], "output": ["FFN_in"]}
    given = build_plan(study(factors=cell, settings={"width": 8}))
    target = count(str(ROOT / "models/emoji-unet"), "adapter", given.points[0].settings)
    matched = build_plan(study(factors=cell, match_trainable=target["trainable"] + 1))
    assert matched.points[0].settings["width"] == 8
    assert matched.stages.keys() == given.stages.keys()


def test_budgets_are_a_factor_whose_levels_are_points_of_their_own():
    cell = {"input": ["CA_out"], "output": ["FFN_in"]}
    counts = {
        wide: count(
            str(ROOT / "models/emoji-unet"), "adapter",
            {"input": "CA_out", "output": "FFN_in", "width": wide},
        )["trainable"]
        for wide in (4, 8, 16)
    }  # fmt: skip
    plan = build_plan(study(factors=cell | {"match_trainable": list(counts.values())}))
    assert [point.settings["width"] for point in plan.points] == [4, 8, 16]
    assert [point.factors["match_trainable"] for point in plan.points] == [*counts.values()]
    # What a point is does not depend on whether its width was given, or followed from a budget.
    given = build_plan(study(factors=cell | {"width": [4, 8, 16]}))
    assert given.stages.keys() == plan.stages.keys()


REFUSED = {
    "a factor and a setting": (
        dict(factors={"match_trainable": [5000, 9000]}, match_trainable=5000),
        "match_trainable: is also a factor of this arm; keep one of the two",
    ),
    "a width beside it": (
        dict(factors={"match_trainable": [5000, 9000]}, settings={"width": 8}),
        "settings.width: match_trainable sets it; keep one of the two",
    ),
    "a method without a width": (
        dict(method="bitfit", factors={"match_trainable": [5000, 9000]}),
        "match_trainable: method 'bitfit' has no width",
    ),
    "no number": (
        dict(factors={"match_trainable": ["many"]}),
        "factors.match_trainable[0]: 'many'",
    ),
    "a budget that no width meets": (
        dict(factors={"match_trainable": [5000]}),
        "match_trainable: 5,000: the nearest are",
    ),
}


@pytest.mark.parametrize("change, expected", REFUSED.values(), ids=REFUSED)
def test_budgets_that_cannot_be_a_factor(change, expected):
    positions = {} if "method" in change else {"input": ["CA_out"], "output": ["FFN_in"]}
    arm = change | {"factors": positions | change["factors"]}
    own = study(**arm)
    problems = arm_problems(enumerate(own.arms), own.base, None)
    assert any(expected in problem for problem in problems), problems


def test_a_second_look_counts_nothing(tmp_path):
    """Checks, plans and each job look again: seconds of imports that only the first pays."""
    assert width(("SA_in", "SA_in"), 1_511_040) == 60
    code = (
        "import sys; from fitspace.plan import budget;"
        " cell = {'input': 'SA_in', 'output': 'SA_in'};"
        "print(budget.width('sd15', 'adapter', cell, 1_511_040), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["60", "False"]
