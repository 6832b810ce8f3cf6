"""What varies in the untouched base alone, compared over its tasks and seeds."""

from __future__ import annotations

import pandas as pd
import pytest
from control_study import study, task

from fitspace.report import drawn

LEVELS = (0.4, 0.6, 0.8)


def test_a_caption_told_or_not_is_compared_where_the_base_alone_draws_both():
    arms = [
        {"name": "untold", "method": "none", "factors": {"sample.guidance": [0, 2]}},
        {"method": "lora", "control": "concat"},
    ]
    chosen = study(arms, [task()], seeds=[0, 1], sample={"prompts": 4, "steps": 4, "guidance": 0})
    base = {"arm": "untold", "method": "none", "train_key": None}
    trained = {"arm": "lora", "method": "lora", "train_key": "k"}
    rows = [
        own | {"run": f"{level}{seed}", "task": "pairs", "seed": seed, "status": "ok",
               "steps": None, "sample.guidance": level, "ssim": (level or 0) + 0.1 * seed}
        for seed in (0, 1)
        for own, level in ((base, 0), (base, 2), (trained, None))
    ]  # fmt: skip
    tables, notes = drawn.tables(drawn.groups(chosen, pd.DataFrame(rows), ["arm"]), ["ssim"])
    assert tables[drawn.LEVELS]["mean"].tolist() == pytest.approx([0.05, 2.05])
    assert tables[drawn.LEVELS]["units"].tolist() == [2, 2] and notes == []
    with_both = [row | {"sample.guidance": row["sample.guidance"] or 0} for row in rows]
    found = drawn.groups(chosen, pd.DataFrame(with_both), ["arm"])["sample.guidance"]
    assert set(found.rows["arm"]) == {"lora"}  # what a training varies in is of trainings alone


def test_levels_of_the_untouched_base_are_a_split_plot_of_tasks_and_seeds():
    arms = [
        {"name": "start", "method": "none", "control": "img2img",
         "factors": {"sample.noised": [*LEVELS]}},
        {"method": "lora", "control": "concat"},
    ]  # fmt: skip
    chosen = study(arms, [task(), task(name="others")], seeds=[0, 1])
    rows = [
        {
            "run": f"{name}{t}{seed}{level}", "arm": name, "method": method, "task": t,
            "seed": seed, "status": "ok", "train_key": key and f"{key}{t}{seed}", "steps": None,
            "sample.noised": level, "ssim": (level or 0) + (t == "pairs") + 0.1 * seed + wobble,
        }
        for t in ("pairs", "others")
        for seed in (0, 1)
        for name, method, key, levels in (
            ("start", "none", None, LEVELS), ("lora", "lora", "k", (None,)),
        )
        for level, wobble in zip(levels, (0.0, 0.01 * seed, 0.02), strict=False)
    ]  # fmt: skip
    found = drawn.groups(chosen, pd.DataFrame(rows), ["arm"])
    (own,) = found.values()
    assert own.rows[drawn.UNIT].nunique() == 4 and set(own.rows["arm"]) == {"start"}
    tables, notes = drawn.tables(found, ["ssim"])
    levels = tables[drawn.LEVELS]
    assert levels["units"].tolist() == [4, 4, 4]
    expected = [level + 0.55 + w for level, w in zip(LEVELS, (0.0, 0.005, 0.02), strict=True)]
    assert levels["mean"].tolist() == pytest.approx(expected)
    (test,) = tables[drawn.TESTS].loc[lambda t: t["F"].notna()].itertuples()
    assert (test.num_df, test.den_df) == (2, 6) and notes == []
