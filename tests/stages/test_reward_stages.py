"""Rewards in a study: keys, refusals, and trainings of a U-Net by words and of a DiT by images."""

from __future__ import annotations

import copy
import json
import shutil

import dit_study as dit
import pipelines
import pytest
import tiny_judge
import torch
import yaml
from control_study import ROOT, build_images, content
from torch.utils.flop_counter import FlopCounterMode

from fitspace import bases, stages
from fitspace.audit.again import elsewhere
from fitspace.core import devices, hub
from fitspace.core.errors import UserError
from fitspace.core.files import sha256
from fitspace.metrics import identity
from fitspace.plan import build_plan, checked, footprint
from fitspace.results import lineage
from fitspace.stages.train import folds
from fitspace.study import Study

REWARD = {"model": "rewarder", "weight": 0.5, "below": 1.0}
PLAIN = {"name": "pairs", "source": "folder", "path": "images"}
LORA = {"method": "lora", "settings": {"rank": 2}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Stable Diffusion, a tiny DiT, their images, and a copy of the rewarding model."""
    made = tmp_path_factory.mktemp("rewards")
    shutil.move(pipelines.stable_diffusion(made / "sd", pipelines.clip), made / "base")
    build_images(made / "images")
    dit.build_base(made / "dit")
    dit.build_images(made / "known", dit.LABELS["known"])
    tiny_judge.write(made / "rewarder", [f"a {word}" for word in ("cat", "car", "house", "tree")])
    shutil.copytree(made / "rewarder", made / "copied")
    # Other words about the same weights.
    judge = shutil.copytree(ROOT / "models/emoji-clip", made / "judge-in-disguise")
    config = json.loads((judge / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["interpolation"] = "bilinear"
    (judge / "open_clip_config.json").write_text(json.dumps(config))
    shutil.copy(judge / "open_clip_model.safetensors", made / "disguised.safetensors")
    return made


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def written(reward=REWARD, arms=(LORA,), **changes):
    """A study whose trainings have a reward, as its file says it."""
    found = content([*copy.deepcopy(arms)], [PLAIN], **changes)
    del found["metrics"]
    if reward is not None:
        found["train"] = found["train"] | {"reward": dict(reward)}
    return found


def trainings(content):
    plan = build_plan(Study.model_validate(content))
    return {run.point.name: run.train for run in plan.runs}


def test_a_key_has_the_model_by_its_content_and_only_where_one_rewards(here):
    (plain,) = trainings(written(None)).values()
    (own,) = trainings(written()).values()
    assert "reward" not in plain.material["train"]
    expected = REWARD | {"model": identity(REWARD["model"])["judge"], "against": "caption"}
    assert own.material["train"] == plain.material["train"] | {"reward": expected}
    (copied,) = trainings(written(REWARD | {"model": "copied"})).values()
    assert copied.key == own.key
    changed = [{"weight": 0.6}, {"below": 0.9}, {"against": "target"}]
    keys = {next(iter(trainings(written(REWARD | own)).values())).key for own in changed}
    assert len(keys | {own.key, plain.key}) == 5


def test_the_weight_is_a_factor_whose_level_0_is_the_objective_alone(here):
    (plain,) = trainings(written(None)).values()
    (own,) = trainings(written()).values()
    arm = LORA | {"factors": {"train.reward.weight": [0, 0.5, 2.0]}}
    analysis = {"factors": ["train.reward.weight"], "responses": ["fd_effnet"]}
    found = trainings(written(arms=[arm], analysis=analysis))
    assert list(found) == [f"lora.rank2.reward.weight{level}" for level in (0, 0.5, 2.0)]
    assert [stage.key for stage in found.values()][:2] == [plain.key, own.key]
    without = {"name": "alone", **LORA, "train": {"reward": None}}
    found = trainings(written(arms=[LORA, without]))
    assert list(found) == ["lora.rank2.reward0.5", "lora.rank2.rewardNone"]
    assert [stage.key for stage in found.values()] == [own.key, plain.key]


DRAWN = REWARD | {"through": 1, "steps": 3, "guidance": 2.0}


def test_a_key_has_of_a_reward_only_what_has_an_effect(here):
    def material(**changes):
        (stage,) = trainings(written(REWARD | changes)).values()
        return stage.material["train"]["reward"]

    plain = material()
    assert material(steps=20, guidance=5.0) == plain and "through" not in plain
    drawn = material(**DRAWN | {"below": 0.9})
    assert drawn == plain | {"through": 1, "steps": 3, "guidance": 2.0, "below": 0.3}
    assert material(**DRAWN | {"steps": 10, "guidance": 1.0}) == material(through=1)


def test_how_far_gradients_go_back_is_a_factor(here):
    (own,) = trainings(written()).values()
    (drawn,) = trainings(written(DRAWN)).values()
    arm = LORA | {"factors": {"train.reward.through": [0, 1, 2]}}
    analysis = {"factors": ["train.reward.through"], "responses": ["fd_effnet"]}
    found = trainings(written(DRAWN | {"through": 2}, arms=[arm], analysis=analysis))
    assert [stage.key for stage in found.values()][:2] == [own.key, drawn.key]
    assert len({stage.key for stage in found.values()}) == 3
    assert list(found) == [f"lora.rank2.reward.through{k}" for k in (0, 1, 2)]
    both = {"train.reward.weight": [0.5, 1.0], "train.reward.through": [0, 1]}
    found = trainings(written(DRAWN, arms=[LORA | {"factors": both}]))
    assert len(found) == 4 and own.key in {stage.key for stage in found.values()}


def test_a_study_pins_the_rewarding_model(here):
    value = identity(REWARD["model"])["judge"]
    plan = build_plan(Study.model_validate(written() | {"reward_sha256": value}))
    assert plan.models.held["reward_sha256"] == value
    assert f"reward_sha256: {value}" in build_plan(Study.model_validate(written())).models.pins
    assert "reward_sha256" not in build_plan(Study.model_validate(written(None))).models.held
    with pytest.raises(UserError, match=f"reward_sha256: {'0' * 64}; 'rewarder' here is {value}"):
        build_plan(Study.model_validate(written() | {"reward_sha256": "0" * 64}))


def test_the_judge_never_rewards_by_its_hub_id(here, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "cached", lambda *_: here / "judge-in-disguise")
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(written(REWARD | {"model": "hf-hub:org/judge"})))
    with pytest.raises(UserError, match="weights of 'judge', which evaluates"):
        checked(file)


HUB = "hf-hub:org/judge"
FACTOR = LORA | {"factors": {"train.reward.weight": [0.5, -1]}}
BACK = LORA | {"factors": {"train.reward.through": [0, 11]}}
CROSSED = LORA | {"factors": {"train.reward.weight": [0, 0.5], "train.reward.through": [0, 1]}}
REFUSED = {
    "the judge": (REWARD | {"model": str(ROOT / "models/emoji-clip")}, {}, "has the weights of"),
    "its weights": (REWARD | {"model": "judge-in-disguise"}, {}, "weights of 'judge', which eval"),
    "another extractor's": (
        REWARD | {"model": "RN50@disguised.safetensors"},
        {"dreamsim": "disguised.safetensors", "metrics": ["dreamsim"], "inception": "nowhere"},
        "weights of 'dreamsim', which eval",
    ),
    "the judge, not here": (REWARD | {"model": HUB}, {"judge": HUB}, "weights of 'judge', which"),
    "more steps back than there are": (
        DRAWN | {"through": 4},
        {},
        "train.reward.through: 4; allowed: at most train.reward.steps, 3",
    ),
    "a level of more": (REWARD, {"arms": [BACK]}, r"reward.through\[1\]: 11; allowed: at most"),
    "no step back": (REWARD | {"through": -1}, {}, "train.reward.through: -1"),
    "steps back without a reward": (REWARD, {"arms": [CROSSED]}, "reward.through changes nothing"),
    "a pin of nothing": (None, {"reward_sha256": "0" * 64}, "the study has no reward"),
    "no model": (REWARD | {"model": "nowhere"}, {}, "train.reward.model: 'nowhere' is not"),
    "no weight": (REWARD | {"weight": 0.0}, {}, "train.reward.weight: 0.0"),
    "no bound": (REWARD | {"below": 0.0}, {}, "train.reward.below: 0.0"),
    "no goal": (REWARD | {"against": "style"}, {}, "train.reward.against: 'style'"),
    "a level": (REWARD, {"arms": [FACTOR]}, r"factors.train.reward.weight\[1\]: -1"),
    "a factor of nothing": (
        None,
        {"arms": [LORA | {"factors": {"train.reward.weight": [0, 1.0]}}]},
        "the study has no reward; needed: train.reward",
    ),
    "words": (
        REWARD,
        {"base": "dit", "tasks": [dit.task("known")]},
        "told classes, not words; allowed: target",
    ),
}


@pytest.mark.parametrize(("reward", "changes", "said"), REFUSED.values(), ids=REFUSED)
def test_rewards_that_are_refused(here, tmp_path, reward, changes, said):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(written(reward) | changes))
    with pytest.raises(UserError, match=said):
        checked(file)


def losses(content):
    """Of the first run's training, made through its stages."""
    study = Study.model_validate(content)
    run = build_plan(study).runs[0]
    for name in ("prepare", "train"):
        if not getattr(run, name).sidecar.exists():
            stages.function(name)(study, run)
    rows = (run.train.folder / "history.csv").read_text().splitlines()[1:]
    return [float(row.split(",")[1]) for row in rows]


TOLD = {"base": "dit", "tasks": [dit.task("known")]}
OF = [
    pytest.param({}, REWARD, id="a U-Net, by words", marks=pytest.mark.slow),
    pytest.param({}, DRAWN, id="a U-Net's samples, by words", marks=pytest.mark.slow),
    pytest.param(TOLD, REWARD, id="a DiT, by images"),
    pytest.param(TOLD, DRAWN, id="a DiT's samples, by images"),
]


@pytest.mark.parametrize(("changes", "reward"), OF)
def test_a_training_is_rewarded_through_its_stages(here, changes, reward):
    by_images = {"against": "target"} if changes else {}
    plain = losses(written(None) | changes)
    found = losses(written(reward | by_images) | changes)
    heavier = losses(written(reward | by_images | {"weight": 5.0}) | changes)
    # Of the first step all are of the same model: the reward's part is linear in its weight.
    assert found[0] != plain[0]
    ratio = (heavier[0] - plain[0]) / (found[0] - plain[0])
    assert ratio == pytest.approx(10, rel=1e-3)
    if changes and reward is REWARD:  # an image is like its own estimate
        assert found[0] < plain[0]


def test_runs_of_other_rewards_do_not_fold(here, monkeypatch):
    monkeypatch.setattr(devices, "device", lambda: "cuda")
    arm = LORA | {"factors": {"train.reward.weight": [0, 0.5]}}
    plan = build_plan(Study.model_validate(written(arms=[arm], seeds=[0, 1])))
    without, own, _, other_seed = plan.runs
    assert folds(own, other_seed)
    assert not folds(own, without)
    assert folds(without, plan.runs[2])
    drawn = build_plan(Study.model_validate(written(DRAWN, seeds=[0, 1]))).runs
    assert not folds(*drawn)


def test_a_plan_counts_what_a_reward_costs(here):
    arm = LORA | {"factors": {"train.reward.weight": [0, 0.5]}}
    wide, narrow = (
        Study.model_validate(written(REWARD | {"below": below}, arms=[arm])) for below in (1.0, 0.5)
    )
    plan = build_plan(wide)
    without, own = (footprint.of(wide, run.point, run.task) for run in plan.runs)
    half = footprint.of(narrow, build_plan(narrow).runs[1].point, narrow.tasks[0])
    assert own.step - without.step == pytest.approx(2 * (half.step - without.step), abs=1)
    assert (own.forward, own.trainable) == (without.forward, without.trainable)
    import open_clip

    judge = open_clip.create_model(f"local-dir:{REWARD['model']}")
    parts = (judge, bases.load_vae(here / "base"))
    assert own.beside == 4 * sum(p.numel() for part in parts for p in part.parameters())
    settings = plan.runs[1].point.train
    assert own.training(settings) - without.training(settings) > own.beside
    # Gradients of what is frozen cost one more pass back: twice the FLOPs, but for the first layer.
    decoder = FlopCounterMode(display=False)
    with decoder, torch.no_grad():
        images = parts[1].decode(torch.zeros(1, 4, 8, 8)).sample
        judge.eval().encode_image(torch.zeros(1, 3, 32, 32))
    assert images.shape[-1] == 16
    added = own.step - without.step
    assert 1.8 * decoder.get_total_flops() < added < 2.2 * decoder.get_total_flops()


def test_a_plan_counts_what_drawn_images_cost(here):
    def of(**changes):
        study = Study.model_validate(written(REWARD | changes))
        run = build_plan(study).runs[0]
        return footprint.of(study, run.point, run.task)

    estimate, one, two, three = of(), of(through=1), of(through=2), of(through=2, steps=12)
    without = Study.model_validate(written(None))
    run = build_plan(without).runs[0]
    plain = footprint.of(without, run.point, run.task)
    backward = plain.step - plain.forward
    assert one.step - estimate.step == 10 * plain.forward + backward
    assert two.step - one.step == backward and three.step - two.step == 2 * plain.forward
    assert two.activations - one.activations == plain.activations
    told = of(through=2, guidance=2.0)
    assert told.step - two.step == 10 * plain.forward + 2 * backward


def test_lineage_and_audits_know_the_rewarding_model(here, tmp_path):
    told = written(REWARD | {"model": "copied"})
    plan = build_plan(Study.model_validate(told))
    text = lineage.text(lineage.collect(plan))
    found = lineage.of_content(json.loads(text), here / lineage.NAME).models
    assert found["reward"]["path"] == "copied"
    path = here / "copied/open_clip_model.safetensors"
    assert found["reward"]["files"][path.name] == sha256(path)
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(told))
    assert yaml.safe_load(elsewhere(file))["train"]["reward"]["model"] == str(here / "copied")
