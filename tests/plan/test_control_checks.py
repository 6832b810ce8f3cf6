"""Controls in study files: what is refused, what shares keys, what is counted and costed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from control_study import build_images, content, task

from fitspace.core.errors import UserError
from fitspace.plan import build_plan, checked, checks, cost, counting, footprint
from fitspace.study.reading import form

ROOT = Path(__file__).parents[2]
TEXT, DIT = str(ROOT / "models/emoji-unet"), str(ROOT / "models/emoji-dit")
LORA = {"method": "lora", "control": "controlnet"}
PLAIN = {"name": "pairs", "source": "folder", "path": "images"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build_images(tmp_path / "images")
    return tmp_path


def written(arms: list[dict], tasks: list[dict] | None = None, **changes) -> str:
    own = content(arms, tasks, **({"base": TEXT} | changes))
    Path("s.yaml").write_text(yaml.safe_dump(own))
    return "s.yaml"


def sample(**own) -> dict:
    return {"prompts": 4, "steps": 4, "guidance": 2.0} | own


def train(**own) -> dict:
    return {"steps": 3, "batch_size": 4, "lr": 0.01} | own


REFUSED = {
    "no given image": ([LORA], {"tasks": [PLAIN], "metrics": None}, "needed: the key given"),
    "a metric of it": (
        [{"method": "lora"}],
        {"tasks": [PLAIN], "metrics": ["edge_agreement"]},
        "metrics: 'edge_agreement': task 'pairs' gives no image",
    ),
    "a DiT": ([LORA], {"base": DIT}, "nobody here tells a DiT of an image so; allowed: img2img"),
    "nothing trained": (
        [{"method": "none", "control": "concat"}],
        {},
        "method 'none' trains nothing",
    ),
    "twice": (
        [LORA | {"factors": {"control": ["concat"]}}],
        {},
        "control: is also a factor of this arm",
    ),
    "no such control": (
        [{"method": "lora", "factors": {"control": ["concat", "t2i"]}}],
        {},
        "factors.control[1]",
    ),
    "strength of a copy": (
        [LORA | {"factors": {"sample.strength": [0.5, 1]}}],
        {},
        "zero convolutions",
    ),
    "another's factor": (
        [LORA | {"factors": {"sample.noised": [0.5, 0.8]}}],
        {},
        "has a meaning with control 'img2img' alone; this arm has controlnet",
    ),
    "guidance of nobody": (
        [LORA],
        {"sample": sample(given_guidance=2.0)},
        "sample.given_guidance: 2: no arm has control: concat",
    ),
    "guidance untrained": (
        [LORA | {"control": "concat"}],
        {"sample": sample(given_guidance=2.0)},
        "which train.given_dropout: 0 never trains",
    ),
    "dropout of nobody": (
        [LORA],
        {"train": train(given_dropout=0.1)},
        "train.given_dropout: 0.1: no arm has control: concat",
    ),
    "dropout of an arm": (
        [LORA | {"train": {"given_dropout": 0.1}}, LORA | {"name": "c", "control": "concat"}],
        {},
        "arms[0].train.given_dropout: no point has control: concat",
    ),
    "less than a step": (
        [LORA | {"control": "img2img"}],
        {"sample": sample(noised=0.2)},
        "sample.noised: 0.2 of 4 steps is less than one; allowed: at least 0.25",
    ),
    "explained": ([LORA], {"explain": {}}, "explain: asks a denoiser about its words alone"),
    "drift of img2img": (
        [LORA | {"control": "img2img"}, {"method": "none"}],
        {"metrics": ["drift_effnet"]},
        "an arm of method none with control: img2img",
    ),
}


@pytest.mark.parametrize(("arms", "changes", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_with_its_reason(folder, arms, changes, said):
    with pytest.raises(UserError) as error:
        checked(written(arms, **changes))
    assert any(said in problem for problem in error.value.problems), error.value.problems


def test_a_missing_pair_is_found_before_anything_runs(folder):
    (folder / "images-given/04.bmp").unlink()
    with pytest.raises(UserError, match="no image for: '04.png'"):
        checked(written([LORA]))


def test_levels_of_one_training_with_and_without_a_start_are_refused(folder):
    both = {"method": "lora", "factors": {"sample.guidance": [1.0, 2.0]}}
    with pytest.raises(UserError, match="sample.guidance varies in one training"):
        checked(written([both, both | {"name": "start", "control": "img2img"}]))


def test_what_a_control_does_not_concern_keeps_its_keys(folder):
    """Of the others: their training, and of img2img the training as well."""

    def runs(arms: list[dict], **changes) -> dict:
        plan = build_plan(*checked(written(arms, **changes)))
        return {run.point.control: run for run in plan.runs}

    lora = {"method": "lora", "factors": {"control": ["controlnet", "concat", "img2img"]}}
    both = [lora, {"method": "lora", "name": "alone"}]
    found = runs(both, train=train(given_dropout=0.1), sample=sample(given_guidance=1.5))
    assert found[None].train == found["img2img"].train
    keys = {run.train.key for run in found.values()}
    assert len(keys) == 3 and len({run.sample.key for run in found.values()}) == 4
    assert len({run.prepare.key for run in found.values()}) == 1
    assert "given_dropout" not in found["controlnet"].point.train
    assert "given_guidance" not in found["controlnet"].point.sample
    assert found["concat"].point.train["given_dropout"] == 0.1
    plain = runs([{"method": "lora", "name": "alone"}], tasks=[task()])
    assert plain[None].train.key == found[None].train.key
    assert plain[None].sample.key == found[None].sample.key
    bare = runs([{"method": "lora"}], tasks=[PLAIN], metrics=["psnr"])
    assert bare[None].prepare.key != plain[None].prepare.key


def test_levels_of_what_starts_share_a_training(folder):
    arms = [{"method": "lora", "control": "img2img", "factors": {"sample.noised": [0.5, 0.8]}}]
    plan = build_plan(*checked(written(arms)))
    assert len({run.train.key for run in plan.runs}) == 1
    assert [run.point.sample["noised"] for run in plan.runs] == [0.8, 0.5]
    assert [cost.passes(run.point) for run in plan.runs] == [2 * 3, 2 * 2]


def test_counts_are_those_of_the_copy_and_the_control(folder):
    """Of the embedded base, from its architecture and diffusers' own copy."""
    from diffusers import ControlNetModel

    from fitspace import bases

    unet = bases.from_config(TEXT)
    told = bases.control_for(TEXT, "controlnet")
    copy = ControlNetModel.from_unet(unet, "rgb", told.channels, load_weights_from_unet=False)
    whole = sum(p.numel() for p in copy.parameters())
    assert counting.count(TEXT, "full", {}, "controlnet")["trainable"] == whole
    own = sum(p.numel() for n, p in copy.named_parameters() if n.startswith("controlnet_"))
    lora = counting.count(TEXT, "lora", {"rank": 2}, "controlnet")
    assert 0 < lora["trainable"] - own < counting.count(TEXT, "lora", {"rank": 2})["trainable"]
    assert lora["total"] == sum(p.numel() for p in bases.from_config(TEXT).parameters())
    beside = counting.count(TEXT, "lora", {"rank": 2}, "concat")["trainable"]
    assert beside - counting.count(TEXT, "lora", {"rank": 2})["trainable"] == (
        unet.conv_in.weight.numel()
    )


def test_a_copy_costs_its_own_passes(folder):
    alone = footprint.measure(TEXT, "lora", {"rank": 2})
    copied = footprint.measure(TEXT, "lora", {"rank": 2}, control="controlnet")
    beside = footprint.measure(TEXT, "lora", {"rank": 2}, control="concat")
    assert 1.2 < copied.forward / alone.forward < 2.5
    assert 1 < beside.forward / alone.forward < 1.05
    assert copied.frozen > 1.2 * alone.frozen


@pytest.mark.parametrize("study", ["emoji-control", "sd15-controlnet"])
def test_the_studies_that_are_shipped_have_their_form(study):
    found = form(ROOT / f"params/{study}.yaml")
    assert all(t.given for t in found.tasks)
    assert {c for arm in found.arms for c in arm.controls} >= {"controlnet", "img2img", None}


def test_a_caption_that_is_not_told_costs_a_pass_less(folder):
    arm = {"method": "lora", "control": "concat", "factors": {"sample.guidance": [0, 2]}}
    for given, expected in {1.0: [1, 2], 1.5: [2, 3]}.items():
        own = sample(guidance=0, given_guidance=given)
        plan = build_plan(*checked(written([arm], train=train(given_dropout=0.1), sample=own)))
        assert [cost.passes(run.point) for run in plan.runs] == [4 * n for n in expected]


@pytest.mark.parametrize("distilled", [True, False])
def test_a_base_that_is_told_the_scale_is_told_its_caption(folder, distilled):
    arm = {"method": "lora", "factors": {"sample.guidance": [0, 2]}}
    written([arm], [task()], sample=sample())
    expected = ["arms[0].factors.sample.guidance: 0: the base is told its caption and the scale at "
                "once; allowed: 1 and more"]  # fmt: skip
    assert checks._untold(form("s.yaml"), distilled) == expected * distilled
