"""The best step of a training by validation captions, and what stopping there gains."""

from __future__ import annotations

import pandas as pd
import pytest
import report_study as made_up
from scipy import stats

from fitspace.report.drawn import best_steps, gains

STUDY = made_up.study(
    factors={"width": [4, 8]}, train=made_up.TRAIN | {"checkpoints": [40, 80]},
    sample={"prompts": 96, "validation": 16},
)  # fmt: skip


def table(response: str, validation: dict[int, float], reported: dict[int, float], trainings=3):
    """Runs of some trainings, each a little better than the one before."""
    return pd.DataFrame([
        {
            "run": f"r{seed}.{step}", "point": "adapter.4", "arm": "adapter", "method": "adapter",
            "task": "t", "seed": seed, "status": "ok", "steps": 120, "checkpoint": str(step),
            "train_key": f"k{seed}", response: reported[step] + 0.01 * seed * step / 40,
            f"{response}_validation": validation[step],
        }
        for seed in range(trainings)
        for step in validation
    ])  # fmt: skip


RISING = {40: 0.3, 80: 0.4, 120: 0.5}
PEAK = {40: 0.3, 80: 0.6, 120: 0.5}
CASES = {  # response, validation, reported, best step, gain of the first training
    "higher is better": ("clip_t", PEAK, RISING, 80, -0.1),
    "the last is best": ("clip_t", RISING, PEAK, 120, 0.0),
    "lower is better": ("fd_effnet", PEAK, RISING, 40, 0.2),
    "chosen by validation alone": ("clip_t", {40: 0.9, 80: 0.1, 120: 0.2}, PEAK, 40, -0.2),
}


@pytest.mark.parametrize("response, validation, reported, step, gain", CASES.values(), ids=CASES)
def test_the_step_is_the_validations_and_the_gain_the_reported_captions(
    response, validation, reported, step, gain
):
    found = best_steps(STUDY, table(response, validation, reported), response)
    assert found["step"].tolist() == [step] * 3 and found["last"].tolist() == [120] * 3
    assert found["gain"].iloc[0] == pytest.approx(gain)


def test_limits_of_the_mean_gain_are_students():
    found = best_steps(STUDY, table("clip_t", PEAK, RISING), "clip_t")
    row = gains(found).iloc[0]
    mean, se = found["gain"].mean(), stats.sem(found["gain"])
    assert (row["low"], row["high"]) == pytest.approx(stats.t.interval(0.95, 2, mean, se))
    assert (row["trainings"], row["earlier"]) == (3, 3)
    assert gains(found[:1]).empty


def test_a_training_without_its_last_step_is_left_out():
    rows = table("clip_t", PEAK, RISING)
    rows.loc[(rows["seed"] == 1) & (rows["checkpoint"] == "120"), "status"] = "failed"
    assert best_steps(STUDY, rows, "clip_t")["seed"].tolist() == [0, 2]


def test_without_validation_there_is_nothing():
    rows = table("clip_t", PEAK, RISING).drop(columns="clip_t_validation")
    assert best_steps(STUDY, rows, "clip_t").empty
