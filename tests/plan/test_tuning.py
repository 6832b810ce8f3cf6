"""What a study's tuning is as a study, what its runs choose, and what that does to the plan."""

from __future__ import annotations

import copy
import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from fitspace.cli import main
from fitspace.core.errors import UserError
from fitspace.core.hub import NotHere
from fitspace.plan import Models, build_plan, checked, planned
from fitspace.plan.tuning import chosen
from fitspace.results import tuning
from fitspace.study import Study
from fitspace.study.tuning import derived

ROOT = Path(__file__).parents[2]
RATES = [0.001, 0.01, 0.1]
STUDY = {
    "name": "mine",
    "title": "Mine",
    "base": str(ROOT / "models/emoji-unet"),
    "judge": str(ROOT / "models/emoji-clip"),
    "tasks": [{"name": "own", "source": "folder", "path": "images"}],
    "arms": [
        {"method": "lora", "factors": {"rank": [2, 4], "sample.guidance": [2.0, 3.0]}},
        {"method": "full"},
        {"method": "none"},
    ],
    "seeds": [0],
    "train": {"steps": 3, "batch_size": 2, "lr": 1.0e-3, "checkpoints": [2]},
    "sample": {"prompts": 4, "steps": 2, "guidance": 2.0},
    "explain": {},
    "tuning": {
        "tasks": [{"name": "other", "source": "folder", "path": "others"}],
        "factors": {"train.lr": RATES},
        "seeds": [7, 8],
        "response": "clip_i",
    },
    "analysis": {
        "factors": ["arm"],
        "responses": ["prompt_sensitivity", "clip_t", "clip_i", "fd_effnet"],
        "transform": {"fd_effnet": "log"},
        "margins": {"clip_i": 0.1},
        "contrasts": {"rank or full": {"arm": {"lora": 1, "full": -1}}},
    },
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two folders of twelve images, six of them held out; an empty project."""
    monkeypatch.chdir(tmp_path)
    for shift, name in enumerate(("images", "others")):
        images, lines = tmp_path / name, []
        images.mkdir()
        for i in range(12):
            shade = np.full((40, 40, 3), 20 * i + shift, np.uint8)
            Image.fromarray(shade).save(images / f"{i}.png")
            split = "test" if i < 6 else "train"
            lines.append({"file_name": f"{i}.png", "text": f"a thing {i}", "split": split})
        (images / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def study(**tuning) -> Study:
    content = copy.deepcopy(STUDY)
    content["tuning"] |= tuning
    return Study.model_validate(content)


def write(own: Study, values: dict, path: str = "reports/mine-tuning/runs.csv") -> None:
    """The table of the tuning's runs. ``values``: (arm or rank, rate) -> the response of both
    seeds, None where a run diverged; others have 0.5."""
    plan = build_plan(derived(own))
    rows = []
    for run in plan.runs:
        factors = run.point.factors
        what = factors.get("rank", run.point.arm)
        both = values.get((what, factors.get("train.lr")), [0.5, 0.5])
        value = both[own.tuning.seeds.index(run.seed)]
        identity = {"run": run.name, "arm": run.point.arm, "task": run.task.name, "seed": run.seed}
        factors = {name: factors.get(name, "") for name in plan.factors}
        status = "failed" if value is None else "ok"
        rows.append(
            identity
            | factors
            | {"status": status, "evaluate_key": run.evaluate.key}
            | {own.tuning.response: "" if value is None else value}
        )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


# --- the study that it is -----------------------------------------------------------------


def test_its_study_crosses_every_trained_cell_with_every_level_and_asks_nothing_else(folder):
    own = derived(study())
    assert (own.name, own.seeds, [task.name for task in own.tasks]) == (
        "mine-tuning",
        [7, 8],
        ["other"],
    )
    assert [(arm.method, arm.factors) for arm in own.arms] == [
        ("lora", {"rank": [2, 4], "train.lr": RATES}),
        ("full", {"train.lr": RATES}),
    ]
    assert own.tuning is own.explain is own.train.checkpoints is None
    assert own.analysis.factors == ["arm", "train.lr"]
    assert own.analysis.responses == ["clip_i", "clip_t", "fd_effnet"]
    assert own.analysis.transform == {"fd_effnet": "log"}
    assert not own.analysis.margins and not own.analysis.contrasts
    assert len(build_plan(own).runs) == 3 * len(RATES) * 2


def test_captions_of_validation_are_left_out_with_the_checkpoints_they_choose_among(folder):
    content = copy.deepcopy(STUDY)
    content["sample"]["validation"] = 4
    content["arms"][1]["train"] = {"checkpoints": None, "batch_size": 4}
    own = derived(Study.model_validate(content))
    assert own.sample.validation == 0 and own.sample.prompts == 4
    assert own.arms[1].train == {"batch_size": 4} and own.train.checkpoints is None


def test_what_only_an_untrained_arm_needs_is_left_out(folder):
    content = copy.deepcopy(STUDY)
    for task in (*content["tasks"], *content["tuning"]["tasks"]):
        task["given"] = {"degraded": "mask"}
    content["arms"][0]["control"] = "concat"
    content["arms"][2] |= {"control": "img2img", "factors": {"sample.noised": [0.5, 1.0]}}
    content["sample"] |= {"given_guidance": 1.5, "noised": 0.5}
    content["train"]["given_dropout"] = 0.05
    del content["explain"]
    content["analysis"]["responses"].remove("prompt_sensitivity")
    Path("study.yaml").write_text(yaml.safe_dump(content))
    own = derived(checked("study.yaml")[0])
    assert own.sample.model_fields_set >= {"given_guidance"}
    assert "noised" not in own.sample.model_fields_set
    Path("tuning.yaml").write_text(yaml.safe_dump(own.model_dump(mode="json", exclude_unset=True)))
    checked("tuning.yaml")


def test_metrics_beside_the_untouched_base_are_left_out_with_its_arm(folder):
    content = copy.deepcopy(STUDY) | {"metrics": ["drift_effnet", "vendi_effnet"]}
    del content["arms"][0]["factors"]["sample.guidance"]  # which the arm of none would need
    content["analysis"]["responses"].append("drift_judge")
    own = derived(Study.model_validate(content))
    assert own.metrics == ["vendi_effnet"]
    assert own.analysis.responses == ["clip_i", "clip_t", "fd_effnet"]


def test_every_point_has_as_many_runs_as_any_other(folder):
    counts: dict = {}
    for run in build_plan(derived(study())).runs:
        cell = (run.point.arm, run.point.factors.get("rank"))
        counts[cell] = counts.get(cell, 0) + 1
    assert len(counts) == 3 and set(counts.values()) == {len(RATES) * 2}


REFUSED = {
    "a reported task": (
        {"tuning": {"tasks": [{"name": "other", "source": "folder", "path": "images"}]}},
        "is a task of the study, by its images",
    ),
    "a reported name": (
        {"tuning": {"tasks": [{"name": "own", "source": "folder", "path": "others"}]}},
        "tuning.tasks[0].name: 'own' is another task's",
    ),
    "a rate of an arm's own": (
        {"arms": [{"method": "full", "train": {"lr": 0.1}}]}, "arms[0]: train.lr: is chosen by",
    ),
    "a rate that is a factor": (
        {"arms": [{"method": "full", "factors": {"train.lr": [0.1, 0.2]}}]}, "is chosen by tuning",
    ),
    "a subset": (
        {"arms": [{"method": "lora", "factors": {"rank": [2, 4]}, "subset": 2}]}, "arms[0].subset",
    ),
    "nothing trained": ({"arms": [{"method": "none"}]}, "no arm is trained"),
    "what shares a training": (
        {"tuning": {"factors": {"sample.guidance": [1.0, 2.0]}}}, "varies within a training",
    ),
    "no metric": ({"tuning": {"response": "beauty"}}, "tuning.response: 'beauty' is no metric"),
    "a metric beside the untouched base": (
        {"tuning": {"response": "drift_effnet"}}, "tuning.response: 'drift_effnet': compares with",
    ),
    "a seed twice": ({"tuning": {"seeds": [1, 1]}}, "tuning.seeds: 1 stands more than once"),
    "one level": ({"tuning": {"factors": {"train.lr": [0.1]}}}, "tuning.factors.train.lr"),
    "three settings": (
        {"tuning": {"factors": {f"train.{n}": [0, 1] for n in ("lr", "ema", "grad_clip")}}},
        "tuning.factors",
    ),
    "an impossible level": (
        {"tuning": {"factors": {"train.lr": [0.1, -1.0]}}}, "tuning: arms[0].factors.train.lr[1]",
    ),
    "an unknown setting": (
        {"tuning": {"factors": {"speed": [1, 2]}}}, "tuning: arms[0].factors.speed",
    ),
    "too few images": (
        {"sample": STUDY["sample"] | {"prompts": 8}}, "sample.prompts: 8",
    ),
    "a long name": ({"name": "a" * 36}, "name: "),
}  # fmt: skip


@pytest.mark.parametrize("changes, said", REFUSED.values(), ids=REFUSED)
def test_a_tuning_that_cannot_be_is_refused_before_anything_runs(folder, changes, said):
    content = copy.deepcopy(STUDY)
    content["tuning"] |= changes.get("tuning", {})
    content |= {key: value for key, value in changes.items() if key != "tuning"}
    if "arms" in changes:
        content |= {"explain": None}
        content["analysis"] = {"factors": ["arm"], "responses": ["clip_t", "clip_i"]}
    Path("mine.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError) as refused:
        checked("mine.yaml")
    assert said in str(refused.value)


def test_tune_writes_a_file_that_is_the_study_and_never_over_one_of_the_users(folder, capsys):
    Path("mine.yaml").write_text(yaml.safe_dump(STUDY))
    assert main(["tune", "mine.yaml"]) == 0
    assert "--config study=mine-tuning.yaml" in capsys.readouterr().out
    own, _ = checked("mine-tuning.yaml")
    assert own == derived(study())
    assert "&id" not in Path("mine-tuning.yaml").read_text()
    assert main(["tune", "mine.yaml"]) == 0  # its own it writes anew
    Path("mine-tuning.yaml").write_text("name: theirs\n")
    assert main(["tune", "mine.yaml"]) == 2
    assert "move it away first" in capsys.readouterr().err
    assert Path("mine-tuning.yaml").read_text() == "name: theirs\n"
    Path("plain.yaml").write_text(yaml.safe_dump({k: v for k, v in STUDY.items() if k != "tuning"}))
    assert main(["tune", "plain.yaml"]) == 2


# --- what is chosen -----------------------------------------------------------------------

CHOICES = {  # response, values, the rate of rank 2
    "the highest": ("clip_i", {(2, 0.01): [0.6, 0.5]}, 0.01),
    "the lowest": ("fd_effnet", {(2, 0.1): [0.4, 0.5]}, 0.1),
    "the first of equals": ("clip_i", {}, 0.001),
    "by the mean, not the best seed": ("clip_i", {(2, 0.01): [0.9, 0], (2, 0.1): [0.5, 0.6]}, 0.1),
    "by logarithms": (
        "fd_effnet", {(2, 0.001): [1, 100], (2, 0.01): [40, 40], (2, 0.1): [90, 90]}, 0.001,
    ),
    "never where a run diverged": ("clip_i", {(2, 0.01): [0.9, None], (2, 0.1): [0.6, 0.6]}, 0.1),
}  # fmt: skip


@pytest.mark.parametrize("response, values, rate", CHOICES.values(), ids=CHOICES)
def test_each_point_takes_the_level_with_its_best_mean(folder, response, values, rate):
    own = study(response=response)
    write(own, values | {("full", 0.1): [0.01, 0.01] if response == "fd_effnet" else [0.99, 0.99]})
    found = chosen(own, "unet")
    assert found["lora", json.dumps({"rank": 2}, separators=(",", ":"))] == {"train.lr": rate}
    assert found["full", "{}"] == {"train.lr": 0.1}


def test_what_is_chosen_is_in_the_plan_and_its_keys(folder):
    own = study()
    write(own, {(2, 0.1): [0.9, 0.9], ("full", 0.01): [0.9, 0.9]})
    rates = {p.name: (p.train or {}).get("lr") for p in build_plan(own).points}
    assert (
        rates["lora.rank2.guidance2.0.checkpoint3"]
        == rates["lora.rank2.guidance3.0.checkpoint3"]
        == 0.1
    )
    assert rates["full.checkpoint2"] == 0.01
    assert rates["none"] is None
    before = {run.train.key for run in build_plan(own).runs if run.train}
    write(own, {(2, 0.01): [0.9, 0.9], ("full", 0.01): [0.9, 0.9]})
    after = {run.train.key for run in build_plan(own).runs if run.train}
    assert len(before - after) == 1  # rank 2's alone


def test_a_second_setting_is_chosen_with_the_rate(folder):
    content = copy.deepcopy(STUDY)
    content["arms"] = [{"method": "lora", "settings": {"rank": 2}}, {"method": "none"}]
    content["analysis"] = {"factors": ["arm"], "responses": ["clip_t", "clip_i"]}
    content["tuning"]["factors"] = {"train.lr": [0.001, 0.01], "alpha": [1, 4]}
    own = Study.model_validate(content)
    plan = build_plan(derived(own))
    assert len({run.train.key for run in plan.runs}) == len(plan.runs) == 8
    write(own, {("lora", 0.01): [0.9, 0.9]})
    (point, *_) = build_plan(own).points
    assert (point.train["lr"], point.settings["alpha"]) == (0.01, 1)


def test_without_its_runs_a_study_is_valid_and_cannot_be_run_yet(folder, capsys):
    Path("mine.yaml").write_text(yaml.safe_dump(STUDY))
    own, models = checked("mine.yaml")
    assert any("fitspace tune" in said for said in models.absent)
    assert {p.train["lr"] for p in models.points[0] if p.train} == {0.001}
    with pytest.raises(UserError, match="fitspace tune"):
        planned("mine.yaml")
    assert main(["check", "mine.yaml"]) == 0
    assert "not here yet" in capsys.readouterr().err


def test_runs_that_are_missing_are_counted(folder):
    own = study()
    write(own, {})
    path = Path("reports/mine-tuning/runs.csv")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-2]))
    with pytest.raises(NotHere, match="lacks 2 runs, such as full other 8 train.lr=0.01"):
        chosen(own, "unet")


def test_runs_of_another_tuning_are_refused(folder):
    own = study()
    write(own, {})
    shade = Image.fromarray(np.full((40, 40, 3), 99, np.uint8))
    shade.save("others/0.png")  # the images that they were tuned on are others now
    with pytest.raises(UserError, match="18 of its 18 runs were made with other settings"):
        build_plan(own)


BROKEN = {
    "no table": ("\0\n", "no column"),
    "no number": (("0.5", "half"), "clip_i is 'half'"),
    "not finite": (("0.5", "inf"), "clip_i is 'inf'"),
    "no response": (("clip_i", "clip_j"), "no column 'clip_i'"),
}


@pytest.mark.parametrize("change, said", BROKEN.values(), ids=BROKEN)
def test_a_broken_table_is_refused_by_name(folder, change, said):
    own = study()
    write(own, {})
    path = Path("reports/mine-tuning/runs.csv")
    path.write_text(change if isinstance(change, str) else path.read_text().replace(*change, 1))
    assert any(said in problem for problem in Models(own).problems)
    with pytest.raises(UserError) as refused:
        build_plan(own)
    assert said in str(refused.value)


def test_a_point_that_diverges_at_every_level_is_named(folder):
    own = study()
    write(own, {(2, rate): [0.5, None] for rate in RATES})
    with pytest.raises(UserError, match="lora .*rank.: 2.*diverged at every level"):
        chosen(own, "unet")


# --- the table of the report --------------------------------------------------------------


def test_the_report_gets_every_level_by_its_points_name_with_its_edge(folder):
    own = study()
    write(own, {(2, 0.1): [0.9, 0.8], (2, 0.01): [0.7, 0.4], ("full", 0.01): [0.9, None]})
    found = tuning.table(build_plan(own))
    assert list(dict.fromkeys(found["point"])) == [
        "lora.rank2.guidance2.0.checkpoint3",
        "lora.rank4.guidance2.0.checkpoint3",
        "full.checkpoint3",
    ]
    taken = found[found["best"]].set_index("point")
    assert taken["train.lr"].tolist() == ["0.1", "0.001", "0.001"]
    assert taken["edge"].tolist() == [True, True, True]
    rows = found[found["point"].str.startswith("lora.rank2")].set_index("train.lr")
    assert rows["mean"].tolist() == pytest.approx([0.5, 0.55, 0.85])
    assert rows["worse"].tolist() == pytest.approx([0.35, 0.3, 0])
    diverged = found[(found["arm"] == "full") & (found["train.lr"] == "0.01")].iloc[0]
    assert diverged["runs"] == 1 and not diverged["tied"] and math.isnan(diverged["mean"])
    tuning.write(build_plan(own), folder)
    tuning.write(build_plan(own.model_copy(update={"tuning": None})), folder)
    assert not (folder / "tuning.csv").exists()
