"""What `fitspace check` knows before anything runs: tasks, classes, analysis, names of points."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import embedded_base
import numpy as np
import pytest
import yaml
from PIL import Image

from fitspace.cli import main
from fitspace.core.errors import UserError
from fitspace.plan import (
    analysable,
    build_plan,
    checked,
    expand,
    looked,
    own_drawing,
    planned,
)
from fitspace.plan.counting import count
from fitspace.study import Study

ROOT = Path(__file__).parents[2]
STUDY = {
    "name": "mine",
    "title": "Mine",
    "base": str(ROOT / "models/emoji-unet"),
    "judge": str(ROOT / "models/emoji-clip"),
    "tasks": [{"name": "own", "source": "folder", "path": "images"}],
    "arms": [
        {"method": "lora", "factors": {"rank": [2, 4]}},
        {"method": "none"},
    ],
    "seeds": [0],
    "train": {"steps": 3, "batch_size": 2, "lr": 1.0e-3},
    "sample": {"prompts": 4, "steps": 2, "guidance": 2.0},
    "analysis": {"factors": ["rank"], "responses": ["clip_t"]},
}
DIT = {"base": str(ROOT / "models/emoji-dit")}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Twelve images, six of them held out, each with a label; an empty project."""
    monkeypatch.chdir(tmp_path)
    images = tmp_path / "images"
    images.mkdir()
    lines = []
    for i in range(12):
        Image.fromarray(np.full((40, 40, 3), 20 * i, np.uint8)).save(images / f"{i}.png")
        row = {"file_name": f"{i}.png", "text": f"a thing {i}", "label": "cat face"}
        lines.append(row | {"split": "test" if i < 6 else "train"})
    (images / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return images


def problems_of(changes: dict) -> list[str]:
    path = Path("study.yaml")
    path.write_text(yaml.safe_dump(copy.deepcopy(STUDY) | changes))
    try:
        plan = planned(path)
    except UserError as error:
        return [problem.partition(": ")[2] for problem in error.problems]
    try:
        analysable(plan)
    except UserError as error:
        return error.problems
    return []


def lora(**keys) -> dict:
    return {"method": "lora", "factors": {"rank": [2, 4]}} | keys


def sample(**keys) -> dict:
    return STUDY["sample"] | keys


def within(name: str, levels: list, **keys) -> dict:
    return lora(factors={"rank": [2, 4], f"sample.{name}": levels}, **keys)


OPENMOJI = {"tasks": [{"name": "emoji", "source": "openmoji", "style": "flat"}]}
WRONG = {
    "more prompts than held-out images": (
        {"sample": STUDY["sample"] | {"prompts": 80}},
        "sample.prompts: 80: task 'own' has only 6 held-out images (one of each group counts); "
        "allowed: 4 to 6",
    ),
    "more prompts than figures that are not blank": (
        OPENMOJI | {"sample": STUDY["sample"] | {"prompts": 222}},
        "sample.prompts: 222: task 'emoji' has only",
    ),
    "a longer warm-up than an arm's steps": (
        {"train": STUDY["train"] | {"warmup_steps": 3}, "arms": [lora(train={"steps": 2})]},
        "arms[0].train.warmup_steps: 3 of 2 steps; allowed: at most train.steps",
    ),
    "an arm's own warm-up": (
        {"arms": [lora(train={"warmup_steps": 4})]},
        "arms[0].train.warmup_steps: 4 of 3 steps; allowed: at most train.steps",
    ),
    "a factor's steps": (
        {"train": STUDY["train"] | {"warmup_steps": 2},
         "arms": [lora(factors={"rank": [2, 4], "train.steps": [1, 5]})]},
        "arms[0].train.warmup_steps: 2 of 1 steps; allowed: at most train.steps",
    ),
    "a factor's warm-up": (
        {"arms": [lora(factors={"rank": [2, 4], "train.warmup_steps": [0, 9]})]},
        "arms[0].train.warmup_steps: 9 of 3 steps; allowed: at most train.steps",
    ),
    "dropout of a batch that is taken apart": (
        {"train": STUDY["train"] | {"examples_at_once": 1},
         "arms": [lora(settings={"dropout": 0.1})]},
        "arms[0].train.examples_at_once: 1: a method with dropout draws its masks for all of a "
        "batch together; allowed: null, or no dropout",
    ),
    "factors that no arm shares": (
        {"arms": [lora(), {"method": "adapter", "settings": {"input": "CA_out", "width": 4},
                           "factors": {"output": ["FFN_in", "Trans_out"]}}],
         "analysis": {"factors": ["rank", "output"], "responses": ["clip_t"]}},
        "analysis.factors: rank, output: no arm that trains has all of them; allowed: factors that "
        "one arm has together, or arm, method",
    ),
    "one level": (
        {"arms": [lora(factors={"rank": [2]})]},
        "analysis.factors: rank: none has two levels that can be compared; allowed: at least one "
        "that has",
    ),
    "only the untouched base": (
        {"arms": [{"method": "none"}], "analysis": {"factors": ["arm"], "responses": ["clip_t"]}},
        "analysis.factors: arm: no arm that trains has all of them; allowed: factors that one arm "
        "has together, or arm, method",
    ),
    "a contrast of a level that is not there": (
        {"analysis": {"factors": ["rank"], "responses": ["clip_t"],
                      "contrasts": {"more": {"rank": {8: 1, 2: -1}}}}},
        "analysis.contrasts: 'more': no level '8' of rank; there are '2', '4'",
    ),
    "a scale of a factor of names": (
        {"arms": [lora(), {"method": "bitfit"}],
         "analysis": {"factors": ["arm"], "responses": ["clip_t"], "scales": {"arm": "log2"}}},
        "analysis.scales.arm: 'arm' has levels that are not numbers",
    ),
    "a factor within trainings is analysed": (
        {"train": STUDY["train"] | {"checkpoints": [1]},
         "analysis": {"factors": ["rank", "checkpoint"], "responses": ["clip_t"]}},
        "analysis.factors: 'checkpoint' varies within a training",
    ),
    "levels without the study's own": (
        {"arms": [within("guidance", [1.0, 5.0])]},
        "arms[0].factors.sample.guidance: [1.0, 5.0]: without 2.0, as the study's sample has it",
    ),
    "a strength where nothing is trained": (
        {"arms": [lora(), {"method": "none", "factors": {"sample.strength": [0, 1]}}]},
        "arms[1].factors.sample.strength: method 'none' adds nothing to the base",
    ),
    "a strength of what is not linear": (
        {"arms": [within("strength", [0.5, 1], settings={"dora": True})]},
        "arms[0].factors.sample.strength: method 'lora' with dora is not linear in its change",
    ),
    "a strength for all": (
        {"sample": STUDY["sample"] | {"strength": 0.5}},
        "sample.strength: 0.5; allowed: a factor sample.strength of the arms that train",
    ),
    "validation of nothing to choose": (
        {"sample": sample(validation=4)},
        "sample.validation: 4: chooses among train.checkpoints",
    ),
    "validation by too few": (
        {"sample": sample(validation=3), "train": STUDY["train"] | {"checkpoints": [1]}},
        "sample.validation: 3; allowed: 0, or 4 and more",
    ),
    "validation by captions that are reported": (
        {"sample": sample(validation=4), "train": STUDY["train"] | {"checkpoints": [1]}},
        "sample.prompts: 4 with sample.validation: 4: task 'own' has only 6 held-out images (one "
        "of each group counts); allowed: a task with 8 or more",
    ),
    "an unknown way to sample": (
        {"arms": [within("seed", [0, 1])]},
        "arms[0].factors.sample.seed: unknown; allowed: sample.guidance, sample.steps, "
        "sample.strength, sample.blocks",
    ),
    "a level out of range": (
        {"arms": [within("guidance", [2.0, 0.5])]},
        "arms[0].factors.sample.guidance[1]: 0.5",
    ),
    "a level of blocks that is no name": (
        {"arms": [within("blocks", ["all", "up blocks"])]},
        "arms[0].factors.sample.blocks[1]: 'up blocks'",
    ),
    "checkpoints out of order": (
        {"train": STUDY["train"] | {"checkpoints": [2, 1]}},
        "train.checkpoints: [2, 1]; allowed: each step once, in order",
    ),
    "checkpoints as a factor": (
        {"arms": [lora(factors={"rank": [2, 4], "train.checkpoints": [1]})]},
        "arms[0].factors.train.checkpoints",
    ),
    "levels that never meet": (
        {"arms": [
            lora(factors={"rank": [2]}), lora(name="other", factors={"rank": [4]}),
        ], "analysis": {"factors": ["arm", "rank"], "responses": ["clip_t"]}},
        "analysis.factors: arm, rank: none has two levels that can be compared; allowed: at least "
        "one that has",
    ),
}  # fmt: skip


SUBJECT = {
    "name": "own", "source": "folder", "path": "images",
    "dreambooth": {"noun": "cat", "prompts": ["{} in snow"], "prior_weight": 0},
}  # fmt: skip


@pytest.mark.parametrize("name, levels", [("guidance", [2.0, 3.0]), ("steps", [2, 3])])
def test_a_subjects_images_are_compared_with_the_bases_at_one_guidance(folder, name, levels):
    (found,) = problems_of({"arms": [within(name, levels)], "tasks": [SUBJECT]})
    assert "compares a run's images of its class with the base's" in found
    assert problems_of({"arms": [within("strength", [0, 1])], "tasks": [SUBJECT]}) == []


def test_without_its_caption_a_subject_is_not_asked_for(folder):
    (found,) = problems_of(
        {"sample": {"prompts": 4, "steps": 2, "guidance": 0}, "tasks": [SUBJECT]}
    )
    assert found == (
        "sample.guidance: 0: task 'own' asks for its subject by words; allowed: 1 and more"
    )


def test_levels_within_a_training_share_it_and_vary_one_at_a_time(folder):
    arm = within("guidance", [1.0, 2.0], train={})
    arm["factors"] |= {"sample.strength": [0, 1]}
    content = copy.deepcopy(STUDY) | {"arms": [arm, {"method": "none"}]}
    content["train"] |= {"checkpoints": [1, 2]}
    Path("study.yaml").write_text(yaml.safe_dump(content))
    plan = planned("study.yaml")
    of_two = [p for p in plan.points if p.factors.get("rank") == 2]
    assert [p.drawn for p in of_two] == [
        "guidance2.0.strength1.0.checkpoint3",
        "guidance1.0.strength1.0.checkpoint3",
        "guidance2.0.strength0.checkpoint3",
        "guidance2.0.strength1.0.checkpoint1",
        "guidance2.0.strength1.0.checkpoint2",
    ]
    assert [own_drawing(plan.study, p) for p in of_two] == [True, *[False] * 4]
    runs = [run for run in plan.runs if run.point in of_two]
    assert len({run.train.key for run in runs}) == 1
    assert len({run.sample.key for run in runs}) == len({run.name for run in runs}) == 5
    assert runs[0].train.material["train"]["checkpoints"] == [1, 2]
    assert "checkpoint" not in runs[0].sample.material["sample"]
    assert runs[3].sample.material["sample"]["checkpoint"] == 1
    assert plan.study.sample.model_dump().keys() == {"prompts", "steps", "guidance"}


def test_an_arm_can_do_without_checkpoints(folder):
    content = copy.deepcopy(STUDY)
    content["train"] |= {"checkpoints": [1]}
    content["arms"] = [lora(), {"method": "bitfit", "train": {"checkpoints": None}}]
    Path("study.yaml").write_text(yaml.safe_dump(content))
    points = planned("study.yaml").points
    assert [p.drawn for p in points] == ["checkpoint3", "checkpoint1"] * 2 + [""]


def test_blocks_that_the_denoiser_has_not_are_found_by_check(folder):
    arm = within("blocks", ["all", "up_blocks", "upper_blocks"])
    Path("study.yaml").write_text(yaml.safe_dump(copy.deepcopy(STUDY) | {"arms": [arm]}))
    with pytest.raises(UserError, match="no part 'upper_blocks'"):
        looked(*checked("study.yaml"))


@pytest.mark.parametrize("changes, problem", WRONG.values(), ids=WRONG)
def test_check_knows_what_would_fail_later(folder, changes, problem):
    (found,) = problems_of(changes)
    assert found.startswith(problem)


def test_a_sound_study_has_no_problems(folder):
    assert problems_of({}) == []


def test_new_classes_need_methods_that_train_them(folder):
    metadata = folder / "metadata.jsonl"
    assert problems_of(DIT | {"arms": [lora(), {"method": "none"}]}) == []  # the base knows them
    metadata.write_text(metadata.read_text().replace("cat face", "my cat"))
    plain = lora(name="plain", settings={"class_embedding": False})
    arms = [lora(settings={"class_embedding": True}), plain, {"method": "full"}, {"method": "none"}]
    found = problems_of(DIT | {"arms": arms})
    assert [p.partition(":")[0] for p in found] == ["arms[1]", "arms[3]"]
    assert all("task 'own' has classes that the base does not know ('my cat')" in p for p in found)


def test_prompts_are_counted_to_the_last_figure(folder):
    """In style flat some held-out figures are blank: exactly as many as are left may be asked."""
    from fitspace.data import openmoji

    most = openmoji.held_out("flat")
    assert most < openmoji.outline("flat").prompts
    for prompts, sound in ((most, True), (most + 1, False)):
        found = problems_of(OPENMOJI | {"sample": STUDY["sample"] | {"prompts": prompts}})
        assert (found == []) == sound
    assert f"only {most} held-out images" in found[0]


# --- one identity, one name ----------------------------------------------------------------


def points_of(*arms: dict) -> list:
    content = copy.deepcopy(STUDY) | {"arms": list(arms)}
    content["analysis"] = {"factors": ["arm"], "responses": ["clip_t"]}
    return expand(Study.model_validate(content))[0]


def test_arms_that_differ_in_training_alone_are_points_of_their_own():
    points = points_of(
        {"name": "full-low", "method": "full", "train": {"lr": 1.0e-5}},
        {"name": "full-high", "method": "full", "train": {"lr": 1.0e-2, "ema": 0.9}},
        {"method": "none"},
    )
    assert [p.name for p in points] == ["full.lr1e-05.emaNone", "full.lr0.01.ema0.9", "none"]


def test_a_point_that_no_other_is_called_like_keeps_its_name():
    points = points_of({"name": "slow", "method": "full", "train": {"lr": 1.0e-5}}, lora())
    assert [p.name for p in points] == ["full", "lora.rank2", "lora.rank4"]


def test_settings_are_compared_not_names_that_were_cut(folder, monkeypatch):
    from fitspace.plan import points

    monkeypatch.setattr(points, "_slug", lambda *given: "lora.long")
    found = points_of(lora(), lora(name="twin", settings={"alpha": 4}))
    assert len({p.identity for p in found}) == len({p.name for p in found}) == 4
    assert all(p.name.startswith("lora.long.") for p in found)


def test_a_name_does_not_depend_on_the_order_of_the_arms():
    arms = [
        {"name": "plain", "method": "full"},
        {"name": "heavy", "method": "full", "train": {"prior_weight": 2.0}},
    ]
    names = [{p.arm: p.name for p in points_of(*order)} for order in (arms, arms[::-1])]
    assert names[0] == names[1]
    assert names[0] == {"plain": "full.prior_weightNone", "heavy": "full.prior_weight2.0"}


def test_a_level_that_two_arms_write_in_two_ways_is_refused(folder):
    """In a table of runs they would be two levels, and no analysis could be made of it."""
    arms = [
        lora(factors={"rank": [2, 4], "train.weight_decay": [0, 0.1]}),
        lora(name="dora", settings={"dora": True}, factors={"train.weight_decay": [0.0, 0.1]}),
    ]
    analysis = STUDY["analysis"] | {"factors": ["arm", "train.weight_decay"]}
    assert problems_of({"arms": arms, "analysis": analysis}) == [
        "arms: factors.train.weight_decay: 0 and 0.0 are one number; write it one way"
    ]


def test_budgets_that_give_one_width_are_named(folder):
    own = count(STUDY["base"], "lora", {"rank": 4})["trainable"]
    budgets = {"match_trainable": [own, own + 1]}
    analysis = STUDY["analysis"] | {"factors": ["match_trainable"]}
    assert problems_of({"arms": [lora(factors=budgets)], "analysis": analysis}) == [
        "arms: the point 'lora.rank4' stands 2 times; each must be unique; match_trainable: "
        "budgets that are farther apart"
    ]


def test_the_same_point_in_two_arms_is_still_refused(folder):
    found = problems_of({"arms": [lora(), lora(name="again")]})
    assert found == [
        f"arms: the point 'lora.rank{rank}' stands 2 times; each must be unique" for rank in (2, 4)
    ]


# --- the command -------------------------------------------------------------------------


def say(capsys, changes: dict | None = None) -> tuple[int, list[str], list[str]]:
    Path("study.yaml").write_text(yaml.safe_dump(copy.deepcopy(STUDY) | (changes or {})))
    code = main(["check", "study.yaml"])
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("fitspace: ")]
    return code, said.out.splitlines(), errors


def test_check_says_what_is_usable_converted_and_left_beside(folder, capsys):
    for i in range(12):
        Image.fromarray(np.full((80, 80, 3), 20 * i, np.uint8)).save(folder / f"{i}.png")
    Image.fromarray(np.full((80, 90, 4), 120, np.uint8)).save(folder / "7.png")
    side = embedded_base.SIDE
    Image.fromarray(np.full((side, side, 3), 40, np.uint8)).save(folder / "2.png")
    (folder / "IMG_2.MOV").write_bytes(b"film")
    for _ in range(2):  # looked at, and remembered
        code, out, _ = say(capsys)
        assert code == 0
        assert out[1:] == [
            "  task own: 12 images usable, 6 held out",
            "  task own: converted: 11 reduced, 1 cut to their central square, 1 transparency put "
            "on white",
            "  task own: note: not read, beside the images: 'IMG_2.MOV' (1 in all)",
        ]


def test_check_decodes_every_image_once(folder, capsys, monkeypatch):
    from fitspace.data import folder as reader

    seen, load = [], reader.load_image
    monkeypatch.setattr(reader, "load_image", lambda p, *how: seen.append(p) or load(p, *how))
    assert say(capsys)[0] == 0 and len(seen) == 12
    assert say(capsys)[0] == 0 and len(seen) == 12
    Image.fromarray(np.full((9, 9, 3), 1, np.uint8)).save(folder / "3.png")
    assert say(capsys)[0] == 0 and len(seen) == 24


def test_check_counts_what_is_refused_and_says_why_on_one_screen(folder, capsys):
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    for i in range(8):
        frames[0].save(folder / f"{i}.png", "GIF", save_all=True, append_images=frames[1:])
    (folder / "9.png").write_bytes(b"nothing")
    code, out, err = say(capsys)
    assert code == 2 and out == []
    assert any("task own: 3 images usable" in line for line in err)
    (animated,) = [line for line in err if "8 images refused: animated" in line]
    assert animated.count("metadata.jsonl:") == 5 and animated.endswith(", ...")
    (odd,) = [line for line in err if "1 image refused: not an image" in line]
    assert "9.png" in odd
    assert len(err) < 10


def test_check_notes_held_out_images_that_are_trained_on(folder, capsys):
    (folder / "0.png").write_bytes((folder / "8.png").read_bytes())
    _, out, _ = say(capsys)
    twins = "held out and trained on as well, pixel for pixel: '0.png' (1 in all)"
    assert f"  task own: note: {twins}" in out


def test_check_notes_classes_that_are_held_out_alone(folder, capsys):
    metadata = folder / "metadata.jsonl"
    lines = metadata.read_text().replace('"a thing 1"', '"x"').splitlines()
    lines[1] = lines[1].replace("cat face", "my dog")
    metadata.write_text("\n".join(lines))
    arms = [lora(settings={"class_embedding": True}), {"method": "full"}]
    code, out, err = say(capsys, DIT | {"arms": arms})
    assert code == 0, err
    assert any(
        "classes that are held out alone, never trained: 'my dog' (1 in all)" in x for x in out
    )


def test_check_loads_the_weights(folder, capsys, tmp_path):
    import shutil

    from broken import lack

    base = shutil.copytree(STUDY["base"], tmp_path / "base")
    missing = lack(base / "unet/diffusion_pytorch_model.safetensors")
    code, _, err = say(capsys, {"base": str(base)})
    assert code == 2 and any(missing in line for line in err)
    judge = shutil.copytree(STUDY["judge"], tmp_path / "judge")
    lack(judge / "open_clip_model.safetensors")
    code, _, err = say(capsys, {"judge": str(judge)})
    assert code == 2 and any("judge: open_clip cannot load" in line for line in err)


def test_plan_and_check_give_runs_of_points_apart_other_rows(folder):
    arms = [{"name": f"full-{i}", "method": "full", "train": {"lr": lr}}
            for i, lr in enumerate((1.0e-5, 1.0e-2))]  # fmt: skip
    content = copy.deepcopy(STUDY) | {"arms": arms}
    content["analysis"] = {"factors": ["arm"], "responses": ["clip_t"]}
    plan = build_plan(Study.model_validate(content))
    assert len({run.point.name for run in plan.runs}) == 2


def test_plan_looks_at_models_and_expands_the_design_once(folder, capsys, monkeypatch):
    from fitspace import metrics
    from fitspace.plan import models as looked_at
    from fitspace.plan import points

    counts = {"expand": 0, "identity": 0, "digest": 0}

    def counted(name, function):
        def call(*arguments, **keys):
            counts[name] += 1
            return function(*arguments, **keys)

        return call

    monkeypatch.setattr(looked_at, "expand", counted("expand", points.expand))
    monkeypatch.setattr(metrics, "identity", counted("identity", metrics.identity))
    monkeypatch.setattr(looked_at.bases, "digest", counted("digest", looked_at.bases.digest))
    Path("study.yaml").write_text(yaml.safe_dump(STUDY))
    assert main(["plan", "study.yaml"]) == 0
    assert counts == {"expand": 1, "identity": 1, "digest": 1}
