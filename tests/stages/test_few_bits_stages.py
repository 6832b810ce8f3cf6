"""A base in few bits in a study: keys, refusals, and runs through their stages."""

from __future__ import annotations

import json
import shutil

import dit_study as dit
import pipelines
import pytest
import tiny
import torch
import yaml
from control_study import build_images, content
from safetensors.torch import load_file

from fitspace import bases, methods, stages, training
from fitspace.bases import quantized
from fitspace.core import devices
from fitspace.core.errors import UserError
from fitspace.plan import build_plan, checked, footprint, usable
from fitspace.stages import train
from fitspace.study import Study

PLAIN = {"name": "pairs", "source": "folder", "path": "images"}
LORA = {"method": "lora", "settings": {"rank": 2}}
NF4 = LORA | {"train": {"base_weights": "nf4"}}
FORMS = ["whole", "int8", "nf4"]
FACTOR = LORA | {"factors": {"train.base_weights": FORMS}}
needs_package = pytest.mark.skipif(quantized.missing() is not None, reason="no bitsandbytes")
ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("bits")
    shutil.move(pipelines.stable_diffusion(made / "sd", pipelines.clip), made / "base")
    build_images(made / "images")
    dit.build_base(made / "dit")
    for name in ("own", "large"):
        dit.build_images(made / name, dit.LABELS[name])
    return made


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def written(*arms, **changes):
    found = content(list(arms), changes.pop("tasks", [PLAIN]), **changes)
    del found["metrics"]
    return found


def planned(*arms, **changes):
    study = Study.model_validate(written(*arms, **changes))
    return study, build_plan(study).runs


def test_a_key_says_how_the_base_is_stored_only_where_it_is_not_whole(here):
    _, (plain,) = planned(LORA)
    _, runs = planned(FACTOR, analysis={"factors": ["train.base_weights"], "responses": ["clip_t"]})
    assert [run.point.name for run in runs] == [f"lora.rank2.base_weights{f}" for f in FORMS]
    assert "base_weights" not in plain.train.material["train"]
    assert runs[0].train.key == plain.train.key and runs[0].sample.key == plain.sample.key
    for form, run in zip(FORMS[1:], runs[1:], strict=True):
        own = plain.train.material["train"] | {"base_weights": form}
        assert run.train.material == plain.train.material | {"train": own}
    assert len({run.sample.key for run in runs}) == 3


REFUSED = {
    "a number of bits": (LORA | {"train": {"base_weights": 4}}, r"train.base_weights: 4.*'nf4'"),
    "no layer left": ({"method": "full"}, "'full' trains every weight, so that none is left; "),
    "no layer left, as a factor": (
        FACTOR | {"method": "full", "settings": {}},
        r"arms\[0\].train.base_weights: 'int8': method 'full'",
    ),
    "singular vectors": ({"method": "svdiff"}, "'svdiff' holds them as singular vectors"),
    "DoRA": (LORA | {"settings": {"dora": True}}, "'lora' with dora reads the values of the base"),
    "a tuner": (
        {"method": "peft", "settings": {"peft_type": "HRA"}},
        "'peft' with peft_type HRA reads .* in every pass; allowed: whole",
    ),
}


@pytest.mark.parametrize("arm, said", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_in_few_bits_is_refused(here, tmp_path, arm, said):
    file = tmp_path / "study.yaml"
    own = {} if "train" in arm or "train.base_weights" in arm.get("factors", {}) else NF4["train"]
    file.write_text(yaml.safe_dump(written({"train": own} | arm)))
    with pytest.raises(UserError, match=said):
        checked(file)


ALLOWED = {
    "a part of full fine-tuning": {"method": "full", "settings": {"blocks": "mid_block"}},
    "a copy of the encoder": {"method": "full", "control": "controlnet"},
    "a rotation": {"method": "oft", "settings": {"block_size": 4}},
}


@pytest.mark.parametrize("arm", ALLOWED.values(), ids=ALLOWED)
def test_what_leaves_layers_alone_is_not_refused(here, tmp_path, arm):
    file = tmp_path / "study.yaml"
    tasks = [PLAIN | {"given": {"degraded": "blur"}}] if "control" in arm else [PLAIN]
    file.write_text(yaml.safe_dump(written({"train": NF4["train"]} | arm) | {"tasks": tasks}))
    checked(file)


def test_a_study_that_needs_bitsandbytes_says_so_before_anything_runs(here, monkeypatch):
    monkeypatch.setattr(quantized, "PACKAGE", "bitsandbytes_of_nobody")
    study, _ = planned(NF4)
    with pytest.raises(UserError, match=r"'nf4': needs .*pip install 'fitspace\[quantized\]'"):
        usable(build_plan(study))
    usable(build_plan(planned(LORA)[0]))


def test_such_runs_do_not_fold(here, monkeypatch):
    monkeypatch.setattr(devices, "device", lambda: "cuda")
    _, runs = planned(NF4, LORA | {"name": "whole"}, seeds=[0, 1])
    few, whole, few_too, whole_too = runs
    assert train.folds(whole, whole_too)
    assert not train.folds(few, few_too) and not train.folds(few, whole)


def test_a_plan_counts_the_smaller_weights(here):
    study, runs = planned(FACTOR, analysis={"factors": ["train.base_weights"],
                                            "responses": ["clip_t"]})  # fmt: skip
    found = [footprint.of(study, run.point, run.task) for run in runs]
    assert found[0] == found[1] == found[2]  # what differs is how they are stored
    whole, int8, nf4 = (f.training(r.point.train) for f, r in zip(found, runs, strict=True))
    linear = found[0].linear
    assert whole - int8 == 3 * linear - 4 * found[0].rows
    assert whole - nf4 == 4 * linear - linear // 2 - 4 * (linear // 64)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=ON_GPU)])
def device(request, monkeypatch):
    monkeypatch.setattr(devices, "device", lambda: request.param)
    return request.param


def quantize(*given):
    from fitspace.bases.quantized_layers import quantize

    return quantize(*given)


def made(study, run, *names):
    for name in names:
        if not getattr(run, name).sidecar.exists():
            stages.function(name)(study, run)
    return json.loads(getattr(run, names[-1]).sidecar.read_text())["facts"]


@needs_package
@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_a_run_goes_through_its_stages(here, device, form):
    arm = LORA | {"train": {"base_weights": form}, "settings": {"rank": 2, "init": "pissa"}}
    study, (run,) = planned(arm, seeds=[7 if device == "cpu" else 8], explain={"images": 2})
    facts = made(study, run, "prepare", "train")
    assert facts["prepared"][0].startswith(f"frozen linear layers in {form} by bitsandbytes ")
    adapter = run.train.folder / "adapter.safetensors"
    assert methods.read(adapter)[0]["metadata"]["base_weights"] == form
    assert all(v.dtype == torch.float32 for v in load_file(adapter).values())
    sampled = made(study, run, "sample")
    assert sampled["train"]["prepared"] == facts["prepared"]
    made(study, run, "reference", "evaluate")
    # Samples are of the weights that were trained on, not of the whole ones.
    images = load_file(run.sample.folder / "samples.safetensors")["images"]
    base = bases.resolve("base")
    drawn = {}
    for name in (form, "whole"):
        model = bases.load_denoiser(base)
        attachment = methods.load(model, adapter)
        if name != "whole":
            quantize(model, name, "cpu", attachment.frozen.values())
        drawn[name] = _drawn(study, run, model, base)
    if device == "cpu":
        assert torch.equal(images, torch.from_numpy(drawn[form]))
    assert not torch.equal(images, torch.from_numpy(drawn["whole"]))
    # The anatomy is of the whole weights.
    told = made(study, run, "explain") and json.loads(
        (run.explain.folder / "explanation.json").read_text()
    )
    assert {row["kind"] for row in told["anatomy"]["changes"]} == {
        "self-attention", "cross-attention",
    }  # fmt: skip
    assert told["tuned"]["by_time"] != told["untouched"]["by_time"]


def _drawn(study, run, model, base):
    from fitspace.core.rng import initial_noise
    from fitspace.data.prepared import load
    from fitspace.stages.common import generated

    task = load(run.prepare, base, 1, None)
    rows = task.prompts[: study.sample.prompts]
    noise = initial_noise(run.seed, len(rows), tuple(task.mean.shape[1:]))
    return generated(study, model, task, rows, noise, "by hand", run.point.sample)


@needs_package
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_it_resumes_to_the_same_bits(tmp_path, device, form, precision):
    class Stop(Exception):
        pass

    def interrupt(step):
        if step == 3:
            raise Stop

    def fit(path, **options):
        settings = tiny.SETTINGS | {"precision": precision, "steps": 6, "base_weights": form}
        model = tiny.unet()
        attachment = methods.attach(model, "difffit", {}, 0)
        quantize(model, form, device, attachment.frozen.values())
        devices.prepare(model, precision, **options.pop("how", {}))
        return training.fit(
            model, attachment.trainable, tiny.task(), tiny.process(), 0.5, settings, 0, path,
            **options,
        )  # fmt: skip

    whole = fit(tmp_path / "a")
    with pytest.raises(Stop):
        fit(tmp_path / "b", checkpoint_seconds=0, on_step=interrupt)
    for resumed in (
        fit(tmp_path / "b"),
        fit(tmp_path / "c", how={"gradient_checkpointing": True}),
    ):
        assert resumed.losses == whole.losses
        for name, value in whole.parameters.items():
            assert value.dtype == torch.float32 and torch.equal(value, resumed.parameters[name])
    assert whole.losses[-1] != whole.losses[0]


BESIDE = {
    "an image, by a ControlNet": ({**LORA, "control": "controlnet"}, PLAIN, "base"),
    "an image, by channels": ({"method": "bitfit", "control": "concat"}, PLAIN, "base"),
    "classes of its own": ({"method": "vpt"}, dit.task("own"), "dit"),
    "a larger image": ({"method": "difffit"}, dit.task("large"), "dit"),
}


@needs_package
@pytest.mark.parametrize("arm, task, base", BESIDE.values(), ids=BESIDE)
def test_what_a_task_adds_to_the_base_is_trained_beside_it(here, device, arm, task, base):
    task = task | ({"given": {"degraded": "blur"}} if "control" in arm else {})
    sample = {"prompts": 4, "steps": 2, "guidance": 1.0}
    study, (run,) = planned(
        arm | {"train": {"base_weights": "int8"}}, tasks=[task], base=base, sample=sample,
        seeds=[1 if device == "cpu" else 2],
    )  # fmt: skip
    made(study, run, "prepare", "train")
    images = made(study, run, "sample")["images"]
    assert images == 4
    values = load_file(run.train.folder / "adapter.safetensors").values()
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in values)


def test_such_a_training_is_not_compiled(here, monkeypatch):
    study, (run,) = planned(NF4, seeds=[9])
    if quantized.missing():
        pytest.skip("no bitsandbytes")
    made(study, run, "prepare")
    with pytest.raises(UserError, match="--compile: 1: not with frozen linear layers in nf4"):
        train.train(study, run, compiled=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_on_a_gpu_weights_are_those_of_diffusers_and_the_memory_is_less(here, form):
    """BitsAndBytesConfig, which diffusers refuses without a GPU."""
    from diffusers import BitsAndBytesConfig, UNet2DConditionModel

    from fitspace.bases.quantized_layers import Quantized

    settings = {"load_in_8bit": True} if form == "int8" else {
        "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
    }  # fmt: skip
    theirs = UNet2DConditionModel.from_pretrained(
        here / "base/unet", quantization_config=BitsAndBytesConfig(**settings),
        torch_dtype=torch.float32,
    )  # fmt: skip
    model = bases.load_denoiser(bases.resolve("base"))
    quantize(model, form, "cuda")
    for name, layer in model.named_modules():
        if isinstance(layer, Quantized):
            assert torch.equal(layer.packed, theirs.get_submodule(name).weight.data)
    held = {}
    for bits in (None, form):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        large = torch.nn.Sequential(*(torch.nn.Linear(2048, 2048) for _ in range(8)))
        large.requires_grad_(False)
        if bits is None:
            large.to("cuda")
        else:
            quantize(large, bits, "cuda")
        held[bits] = torch.cuda.memory_allocated() - before
        del large
    wanted = quantized.Linear(8 * 2048**2, 8 * 2048).bytes(form)
    assert held[form] == pytest.approx(wanted, rel=0.02) and held[form] < 0.3 * held[None]
