"""`fitspace plan`: what it says of the shipped studies, of subsets, of a pilot, and of cost."""

import copy
import json
from pathlib import Path

import embedded_base
import pandas as pd
import pytest
import yaml

from fitspace import bases
from fitspace.cli import main
from fitspace.core.errors import UserError
from fitspace.plan import (
    build_plan,
    cost,
    counting,
    expand,
    footprint,
    load_study,
    overview,
    rendering,
)
from fitspace.plan.footprint import Footprint
from fitspace.study import Study

ROOT = Path(__file__).parents[2]
POSITIONS = ROOT / "tests/data/positions.yaml"
GOOD = yaml.safe_load(POSITIONS.read_text())


TAKEN = Footprint(forward=10**9, step=3 * 10**9, activations=5000, frozen=900, trainable=100)


@pytest.fixture(scope="module", autouse=True)
def counted_once():
    """Counting builds a model each time; here every form of it is counted once.

    And no step is measured: test_footprint.py does that.
    """
    counts, count = {}, counting.count

    def remembered(*arguments):
        key = json.dumps(arguments, sort_keys=True)
        if key not in counts:
            counts[key] = count(*arguments)
        return counts[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "count", remembered)
        patch.setattr(footprint, "measure", lambda *arguments: TAKEN)
        yield


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A folder with the models and the reports, and no results."""
    for name in ("models", "params", "reports"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def study(change=None, name="study.yaml") -> Path:
    content = copy.deepcopy(GOOD)
    if change:
        change(content)
    Path(name).write_text(yaml.safe_dump(content))
    return Path(name)


def plan(capsys, *arguments) -> dict:
    assert main(["plan", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def text(capsys, *arguments) -> str:
    assert main(["plan", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments) -> list[str]:
    assert main(["plan", *map(str, arguments)]) == 2
    return capsys.readouterr().err.splitlines()


# --- the shipped studies ----------------------------------------------------------------


def test_the_adapter_study_as_json(capsys):
    found = plan(capsys, POSITIONS)
    assert (len(found["points"]), len(found["runs"])) == (18, 36)
    assert [len(part) for part in found["components"]] == [16]
    assert [(e["effect"], e["df"], e["nominal_df"]) for e in found["effects"]] == [
        ("input", 6, 6), ("output", 3, 3), ("input:output", 6, 18)
    ]  # fmt: skip
    assert found["effects"][2]["aliased_with"] == ["input", "output"]
    (pair,) = found["association"]
    assert (pair["factor"], pair["other"]) == ("input", "output") and 0 < pair["canonical"] < 1
    power = found["power"]
    assert (power["response"], power["runs"], power["sigma"]["scale"]) == ("clip_i", 32, "identity")
    # Four and three seeds are needed at three sigma: with two the power is below the goal.
    rows = {row["factor"]: row for row in power["factors"]}
    assert list(rows["input"]["power"]) == ["0.5", "1", "1.5", "2", "3"]
    assert rows["input"]["power"]["3"] < rows["output"]["power"]["3"] < 0.8
    assert 3 < rows["output"]["detectable"] < rows["input"]["detectable"]
    assert power["at_delta"] is None and found["subsets"] == []


def test_the_adapter_study_as_text(capsys):
    said = text(capsys, POSITIONS, "--sigma", "0.01")
    for line in (
        "study emoji: 18 points × 1 tasks × 2 seeds = 36 runs",
        "12 illegal cells left out:",
        "input:output   6  18  the rest aliased with input, output",
        "input and output are associated: Cramér's V 0.41",
        "power with 32 runs by delta/sigma, for clip_i as measured:",
        "sigma 0.01, from --sigma",
        "smallest delta detected with 80% power: input 0.04716, output 0.03116",
    ):
        assert line in said
    assert max(len(line) for line in said.splitlines() if not line.startswith("  adapter (")) <= 100


def of_methods() -> dict:
    """The study of methods without its tuning, in the form in which an earlier one was run."""
    content = yaml.safe_load((ROOT / "params/emoji-methods.yaml").read_text())
    content["tasks"] += content.pop("tuning")["tasks"]
    content["analysis"] |= {"responses": ["fd_effnet", "clip_i", "diversity"], "margins": {}}
    return content


def test_the_study_of_methods(capsys, elsewhere):
    Path("methods.yaml").write_text(yaml.safe_dump(of_methods()))
    pilot = ROOT / "tests/data/methods.csv"
    found = plan(capsys, "methods.yaml", "--delta", 0.02, "--pilot", pilot)
    assert [(e["effect"], e["df"]) for e in found["effects"]] == [("arm", 13)]
    # The untouched base is no level: a baseline is not analysed.
    assert [len(part) for part in found["components"]] == [14]
    power = found["power"]
    assert (power["runs"], power["sigma"]["scale"]) == (14 * 7 * 2, "log")
    runs = pd.read_csv(pilot)
    assert power["sigma"]["df"] == len(runs[runs["method"] != "none"]) - 1 - 6 - 7 - 13 - 78
    (row,) = power["at_delta"]
    assert row["study_runs"] == row["seeds"] * 15 * 7
    assert row["power_at_high"] < row["power"] and row["seeds_at_high"] >= row["seeds"]
    said = text(capsys, "methods.yaml", "--delta", "0.1", "--pilot", pilot)
    assert "for fd_effnet on the scale log" in said and "at delta 0.1 and sigma's upper" in said


def test_bases_that_are_not_here(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", "hub")
    size = {"trainable": 1000, "total": 10_000, "percent": 10.0}
    monkeypatch.setattr(counting, "count", lambda *arguments: size)
    described = overview.describe(load_study("params/sd15-dreambooth.yaml"))
    said = rendering.render(described)
    assert "3 unconnected parts of 16, 3, 1 cells" in said
    assert "4 cell(s) outside the largest are left out" in said
    # By point, task and seed: 20 x 3000 and 800 steps of an image and a class image; 3 x 32 images
    # of 25 guided steps for 20 x 6 checkpoints of adapters, 2 of full fine-tuning, and the base.
    train, sample = (12 * n * 10**9 for n in (3 * 2 * 60_800, 123 * 3 * 32 * 50))
    assert described["cost"]["total"]["flop"] == {"train": train, "sample": sample, "explain": 0}
    assert f"hours: {train / 1e15:,.0f} PFLOP of training and 7 of sampling at 100" in said
    assert f"{(train + sample) / 1e14 / 3600:.2f}" in said
    assert {p["step_flop"] for p in described["points"]} == {6 * 10**9, None}
    # bf16 base; trainables, gradients, two moments and a bf16 copy; the untouched base in fp32.
    memory = {tuple(p["memory"].values()) for p in described["points"]}
    assert memory == {(2 * 900 + 18 * 100 + 5000, 4 * 1000), (None, 4 * 1000)}
    assert "sigma, the residual standard deviation, is not known: name a pilot" in said
    found = described["cost"]
    assert found["to_run"] is None and found["total"]["bytes"]["samples"] is None
    # 20 pairs and full fine-tuning, 4 bytes each, 4 tasks, 3 seeds; the base itself has none.
    assert found["total"]["bytes"]["adapters"] == 21 * 1000 * 4 * 4 * 3 * 6  # looks


# --- subsets ----------------------------------------------------------------------------


def _subset(n):
    return lambda content: content["arms"][0].update(subset=n)


def test_a_subset_has_the_runs_of_the_whole_study(capsys):
    whole = build_plan(load_study(study()))
    part = build_plan(load_study(study(_subset(12))))
    assert len(part.points) == 12 + 2
    assert part.stages.items() <= whole.stages.items()
    names = [p.name for p in part.points]
    assert names == [p.name for p in whole.points if p.name in names]
    assert part.dropped == whole.dropped
    # Again, and by another name, the same cells.
    assert [p.name for p in expand(load_study(study(_subset(12), "b.yaml")))[0]] == names


def test_without_a_subset_nothing_changes():
    every = build_plan(load_study(study(_subset(16))))
    whole = build_plan(load_study(study()))
    assert [run.name for run in every.runs] == [run.name for run in whole.runs]
    assert "subset" not in json.dumps(whole.study.model_dump(exclude_none=True))


SUBSETS = {
    "too small": (_subset(9), "arms[0].subset: 9; allowed: 10 (as many as the main effects need)"),
    "too large": (_subset(17), "arms[0].subset: 17; allowed: 10 (as many as the main effects"),
    "no cells": (_subset(0), "arms[0].subset: 0: input should be greater than or equal to 1"),
    "no number": (_subset("all"), "arms[0].subset: 'all': input should be a valid integer"),
    "no factors": (
        lambda content: content["arms"][1].update(subset=1),
        "arms[1].subset: 1: the arm has no factors; leave it out",
    ),
}


@pytest.mark.parametrize("name", SUBSETS)
def test_impossible_subsets_are_refused(name):
    change, message = SUBSETS[name]
    with pytest.raises(UserError) as error:
        load_study(study(change))
    (problem,) = error.value.problems
    assert problem.startswith(f"study.yaml: {message}")


def test_budgets_are_matched_in_the_chosen_cells_alone():
    def change(content):
        arm = content["arms"][0]
        arm["subset"], arm["match_trainable"] = 10, 12_000
        del arm["settings"]["width"]

    points, _ = expand(load_study(study(change)))
    assert [p.settings["width"] for p in points if p.arm == "adapter"] == [8] * 10


def test_a_preview_is_the_subset_itself(capsys):
    path = study()
    preview = plan(capsys, path, "--subset", 12)
    written = plan(capsys, study(_subset(12)))
    assert preview == written
    (subset,) = preview["subsets"]
    assert (subset["arm"], subset["legal"], len(subset["cells"])) == ("adapter", 16, 12)
    assert subset["d_efficiency"] == pytest.approx(0.959, abs=5e-4)
    said = text(capsys, path, "--subset", 12)
    assert "adapter: 12 of 16 legal cells, chosen D-optimally for the main effects" in said
    assert "  input=SA_in, output=SA_in\n" in said
    assert "input:output   2  18  the rest aliased with input, output" in said


def test_a_preview_says_what_a_fraction_aliases(capsys):
    def change(content):
        content["arms"][0]["factors"] = {
            "activation": ["relu", "silu"], "scale": [1.0, 2.0], "init": ["zero", "default"]
        }  # fmt: skip
        content["arms"][0]["settings"] = {"input": "CA_out", "output": "FFN_in", "width": 8}
        content["analysis"]["factors"] = ["activation", "scale", "init"]

    path = study(change)
    assert "all factors are orthogonal to each other" in text(capsys, path)
    found = plan(capsys, path, "--subset", 4)
    aliases = {e["effect"]: e["aliased_with"] for e in found["effects"]}
    assert aliases["activation"] == ["scale:init"] and aliases["scale:init"] == ["activation"]
    said = text(capsys, path, "--subset", 4)
    assert "aliased with scale:init; estimable if these are zero" in said


def test_a_preview_that_is_not_possible_is_refused(capsys):
    assert refused(capsys, study(), "--subset", 40) == [
        "fitspace: arms[0].subset: 40; allowed: 10 (as many as the main effects need) to 16 "
        "(all cells)"
    ]
    Path("methods.yaml").write_text(yaml.safe_dump(of_methods()))
    (line,) = refused(capsys, "methods.yaml", "--subset", 4)
    assert line == "fitspace: --subset: 4: no arm has a factor of two levels to choose cells from"


# --- sigma and delta --------------------------------------------------------------------


def test_sigma_and_delta_have_to_be_numbers_above_0(capsys):
    assert refused(capsys, study(), "--sigma", "-1", "--delta", "nan") == [
        "fitspace: --delta: nan; allowed: a finite number above 0",
        "fitspace: --sigma: -1.0; allowed: a finite number above 0",
    ]


def test_a_delta_needs_a_sigma(capsys):
    path = study(lambda content: content.update(name="new"))
    assert refused(capsys, path, "--delta", "0.1") == [
        "fitspace: --delta: 0.1: sigma is not known; give --sigma or --pilot"
    ]


def test_seeds_and_runs_at_a_delta(capsys):
    found = plan(capsys, study(), "--delta", 0.02, "--sigma", 0.02)["power"]["at_delta"]
    # One task: 33 seeds of 16 pairs (28 at 5%, before Holm), and of two baselines.
    assert [(r["factor"], r["seeds"], r["study_runs"]) for r in found] == [
        ("input", 33, 33 * 18), ("output", 16, 16 * 18)
    ]  # fmt: skip
    assert "power_at_high" not in found[0]


def test_a_named_pilot_that_cannot_be_used_is_an_error(capsys, elsewhere):
    path = study(lambda content: content.update(name="new"))
    runs = pd.read_csv("reports/emoji/runs.csv")
    bad = {
        "none.csv": (None, "none.csv: no such file"),
        "method.csv": (runs.drop(columns="method"), "method.csv: no column 'method'"),
        "response.csv": (runs.drop(columns="clip_i"), "response.csv: no column 'clip_i'"),
        "few.csv": (runs.head(3), "few.csv: clip_i: 0 residual degrees of freedom"),
    }
    for name, (table, message) in bad.items():
        if table is not None:
            table.to_csv(name, index=False)
        (line,) = refused(capsys, path, "--pilot", name)
        assert line.startswith(f"fitspace: {message}")


def test_sigma_is_that_of_one_look_at_each_training(capsys, elsewhere):
    runs = pd.read_csv("reports/emoji/runs.csv")
    halfway = runs.assign(checkpoint=runs["steps"] // 2, clip_i=runs["clip_i"] - 0.1)
    looks = pd.concat([runs.assign(checkpoint=runs["steps"]), halfway])
    found = []
    for rows in (looks, runs):
        rows.to_csv("pilot.csv", index=False)
        found.append(plan(capsys, study(), "--pilot", "pilot.csv")["power"]["sigma"])
    assert found[0] == found[1] and found[0]["sigma"] > 0


def test_an_old_report_of_the_study_that_cannot_tell_sigma_is_a_note(capsys):
    def change(content):
        content["arms"][0]["factors"]["scale"] = [1.0, 2.0]
        del content["arms"][0]["settings"]["scale"]
        content["analysis"]["factors"].append("scale")

    path = study(change)
    found = plan(capsys, path)
    assert found["power"]["sigma"]["sigma"] is None
    assert "reports/emoji/runs.csv: no column 'scale'" in found["power"]["sigma"]["note"]
    assert found["cost"]["total"]["seconds"] is not None
    (line,) = refused(capsys, path, "--delta", "0.1")
    assert "no column 'scale'" in line and "give --sigma or --pilot" in line


def test_a_study_with_nothing_to_compare_is_planned_all_the_same(capsys):
    def change(content):
        content["arms"] = [{"method": "bitfit"}]
        content["analysis"].pop("margins", None)
        content["analysis"]["factors"] = ["arm"]

    found = plan(capsys, study(change))
    assert found["effects"] == [] and found["power"]["factors"] == []
    assert "no factor of ['arm'] has two levels" in text(capsys, study(change))


# --- cost -------------------------------------------------------------------------------


def pilot() -> pd.DataFrame:
    """Two methods with known times: medians 0.2 and 0.5 s a step, 0.1 s an image."""
    rows = [
        {"method": m, "status": s, "steps": 10, "train_seconds": t, "n": 20, "sample_seconds": 2}
        for m, s, t in [
            ("adapter", "ok", 1), ("adapter", "ok", 2), ("adapter", "ok", 9),
            ("adapter", "failed", 500), ("full", "ok", 5),
        ]
    ]  # fmt: skip
    return pd.DataFrame(rows).astype(str)


def described(study_, points, plan_, trainable):
    times = cost.step_times(pilot())
    taken = cost.footprints(study_, points, times)
    return cost.describe(study_, points, plan_, trainable, times, taken)


def test_hours_are_of_the_methods_median_step_times():
    study_ = Study.model_validate(GOOD)
    assert cost.step_times(pilot()) == {
        "adapter": {"step": pytest.approx(0.2), "image": pytest.approx(0.1)},
        "full": {"step": pytest.approx(0.5), "image": pytest.approx(0.1)},
    }
    points, _ = expand(study_)
    trainable = dict.fromkeys((p.name for p in points), 1000)
    found = described(study_, points, None, trainable)["total"]
    # 70 steps and 80 images; the untouched base samples only, and its time is not recorded.
    assert found["seconds"] == {
        "train": pytest.approx(2 * 70 * (16 * 0.2 + 0.5)),
        "sample": pytest.approx(2 * 80 * 17 * 0.1),
        "explain": 0,
        "unknown": ["none"],
    }
    # Its 80 images of 10 guided steps, of two seeds, are counted instead; nothing else is.
    assert found["flop"] == {"train": 0, "sample": 2 * 80 * 10 * 2 * 10**9, "explain": 0}


def test_hours_of_explaining_are_those_of_its_passes():
    study_ = Study.model_validate(GOOD | {"explain": {"times": [0.2, 0.6], "images": 7}})
    points, _ = expand(study_)
    trainable = dict.fromkeys((p.name for p in points), 1000)
    plan_ = build_plan(study_)
    whole = described(study_, points, plan_, trainable)
    # Two times, seven images, two conditions; of the untouched base one model, of others two. An
    # image of 10 guided steps, of 20 passes, takes 0.1 s.
    assert whole["total"]["seconds"]["explain"] == pytest.approx(2 * 17 * 56 * 0.1 / 20)
    assert whole["total"]["flop"]["explain"] == 2 * 28 * 10**9
    stage = plan_.runs[0].explain
    stage.folder.mkdir(parents=True)
    stage.sidecar.write_text("{}")
    rest = described(study_, points, plan_, trainable)["to_run"]
    assert rest["seconds"]["explain"] == pytest.approx((2 * 17 - 1) * 56 * 0.1 / 20)


def test_levels_that_share_a_training_are_explained_once():
    arms = [{"method": "none", "factors": {"sample.guidance": [1.0, 3.0]}}]
    study_ = Study.model_validate(GOOD | {"explain": {}, "arms": [*GOOD["arms"][:2], *arms]})
    points, _ = expand(study_)
    todo = cost.jobs(study_, points, None)["total"]
    base = [job.explain for job in todo if job.point.method == "none"]
    assert sorted(base) == [0, 0, 80, 80]  # two seeds; 5 times, 8 images, 2 conditions


def test_the_hours_say_what_they_are_of(capsys):
    path = study(lambda content: content.update(name="new", explain={}))
    said = text(capsys, path)
    assert "hours: training, sampling and explaining, one job after another" in said
    assert "0 PFLOP of training, 0 of sampling and 0 of explaining at 100 TFLOP/s" in said


def test_memory_is_what_the_method_has_recorded_else_an_estimate(capsys, elsewhere):
    table = pilot().assign(peak_memory_mb=["100", "300", "200", "9000", ""])
    table.to_csv("pilot.csv", index=False)
    path = study(lambda content: content.update(name="new"))
    found = plan(capsys, path, "--pilot", "pilot.csv", "--sigma", 1)
    memory = {p["arm"]: tuple(p["memory"].values()) for p in found["points"]}
    assert memory == {"adapter": (200 * 2**20, None), "full": (None, None), "none": (None, 4000)}
    assert {p["step_flop"] for p in found["points"]} == {None}
    said = text(capsys, path, "--pilot", "pilot.csv", "--sigma", "1")
    assert "hours and memory: each method's medians in pilot.csv," in said
    assert "hours of none: 0 PFLOP" in said and "TFLOP per step" not in said


def test_only_what_is_still_to_run_counts(capsys):
    p = build_plan(Study.model_validate(GOOD))
    trainable = {point.name: 1000 for point in p.points}
    whole = described(p.study, p.points, p, trainable)
    assert whole["to_run"] == whole["total"]
    first = p.runs[0]
    for stage in (first.train, first.sample):
        stage.folder.mkdir(parents=True)
        stage.sidecar.write_text("{}")
    p.runs[1].train.folder.mkdir(parents=True)
    p.runs[1].train.sidecar.write_text("{}")
    rest = described(p.study, p.points, p, trainable)["to_run"]
    assert rest["runs"] == 35
    spared = whole["total"]["seconds"]["train"] - rest["seconds"]["train"]
    assert spared == pytest.approx(2 * 70 * 0.2)
    total = whole["total"]["bytes"]
    assert total["adapters"] - rest["bytes"]["adapters"] == 2 * 4000
    assert total["samples"] - rest["bytes"]["samples"] == 80 * embedded_base.SIDE**2 * 3


@pytest.mark.parametrize("file, kinds", [("tests/data/positions", 1), ("tests/data/dreambooth", 3)])
def test_bytes_of_samples(capsys, file, kinds):
    path = ROOT / f"{file}.yaml"
    found, study_ = plan(capsys, path), load_study(path)
    side = bases.image_size(Path(study_.base))
    images = len(found["runs"]) * study_.sample.prompts * kinds
    assert found["cost"]["total"]["bytes"]["samples"] == images * side * side * 3
    per_seed = sum(p["trainable"] for p in found["points"])
    assert found["cost"]["total"]["bytes"]["adapters"] == 2 * 4 * per_seed


def test_a_finer_task_has_larger_samples():
    content = of_methods()
    sizes = []
    for scale in (1, 2):
        content["tasks"] = [{"name": "x", "source": "openmoji", "style": "flat", "scale": scale}]
        study_ = Study.model_validate(content)
        points, _ = expand(study_)
        todo = cost.jobs(study_, points, None)["total"]
        sizes.append(cost.storage(study_, todo, dict.fromkeys((p.name for p in points), 0)))
    assert sizes[1]["samples"] == 4 * sizes[0]["samples"]


@pytest.mark.parametrize(
    "count, said",
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (38_700_000, "38.7 MB"), (5 * 10**15, "5e+03 TB")],
)
def test_bytes_for_a_person(count, said):
    assert rendering.in_bytes(count) == said
