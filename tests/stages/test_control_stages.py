"""Tasks that give an image, through all stages; and plain pipelines of diffusers that draw the
same."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pipelines
import pytest
import torch
from control_study import HELD_OUT, METRICS, build_images, study, task
from PIL import Image
from safetensors.numpy import load_file

import fitspace
from fitspace import bases, methods, metrics, stages, training
from fitspace.core import rng
from fitspace.core.errors import UserError
from fitspace.data import prepared
from fitspace.plan import build_plan
from fitspace.results import table
from fitspace.stages.train import _attached, folds

STEPS, GUIDANCE, GIVEN_GUIDANCE, NOISED = 4, 2.0, 1.5, 0.8
ADAPTER = {"input": "CA_out", "output": "FFN_in", "width": 3}
ARMS = [
    {"name": "whole", "method": "full", "control": "controlnet"},
    {"method": "adapter", "settings": ADAPTER, "control": "controlnet"},
    {"method": "lora", "factors": {"control": ["concat", "img2img"]}},
    {"method": "none", "control": "img2img"},
]
OF_STAGE = ("prepare", "reference", "train", "sample", "evaluate")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with the study, all of its stages run, and its runs by point."""
    folder = tmp_path_factory.mktemp("project")
    shutil.move(pipelines.stable_diffusion(folder / "sd", pipelines.clip), folder / "base")
    build_images(folder / "images")
    chosen = study(
        ARMS,
        [task(flip=0.5)],
        train={"steps": 3, "batch_size": 4, "lr": 0.02, "given_dropout": 0.2},
        sample={
            "prompts": 4, "steps": STEPS, "guidance": GUIDANCE, "given_guidance": GIVEN_GUIDANCE,
        },
    )  # fmt: skip
    with contextlib.chdir(folder):
        plan = build_plan(chosen)
        for run in plan.runs:
            for name in OF_STAGE:
                stage = getattr(run, name)
                if stage is not None and not stage.sidecar.exists():
                    stages.function(name)(chosen, run)
    return folder, plan


@pytest.fixture
def plan(project, monkeypatch):
    monkeypatch.chdir(project[0])
    return project[1]


def run_of(plan, point: str):
    return next(run for run in plan.runs if run.point.name.startswith(point))


def images(run) -> np.ndarray:
    return load_file(run.sample.folder / "samples.safetensors")["images"]


def asked(plan) -> tuple[dict, list[str], np.ndarray, torch.Tensor]:
    """The manifest, captions, given images and starting noise of the samples."""
    stage = plan.runs[0].prepare
    manifest = prepared.read_manifest(stage)
    given = prepared.read_given(stage, manifest)[manifest["prompt_images"][:4]]
    captions = [manifest["captions"][row] for row in manifest["prompts"][:4]]
    return manifest, captions, given, rng.initial_noise(3, 4, (4, 8, 8))


def same(found, run) -> None:
    """To a grey level: the files hold latents and words in 16 bits."""
    apart = np.abs((found * 255).round() - images(run).astype(float))
    assert apart.max() <= 1 and apart.mean() < 0.05


def test_a_prepared_task_has_the_given_images_beside_the_others(plan):
    stage = plan.runs[0].prepare
    file = load_file(stage.folder / "given.safetensors")
    manifest = prepared.read_manifest(stage)
    assert manifest["source"]["given"].keys() == {"pictures"}
    for example, image in zip(manifest["examples"], file["images"], strict=True):
        path = Path("images-given") / example["name"].replace(".png", ".bmp")
        shown = Image.open(path).resize((16, 16), Image.Resampling.LANCZOS)
        assert np.array_equal(image, np.array(shown))
    vae = bases.load_vae(Path("base"))
    for name, turned in (("mean", file["images"]), ("mirrored_mean", file["images"][:, :, ::-1])):
        with torch.no_grad():
            mean = vae.encode(bases.to_model(turned.copy())).latent_dist.mean
        assert torch.allclose(torch.from_numpy(file[name]).float(), mean, atol=5e-3)
    sidecar = json.loads(stage.sidecar.read_text())
    assert "given.safetensors" in {Path(o["path"]).name for o in sidecar["outputs"]}


def test_a_batch_is_told_the_images_of_its_examples(plan):
    stage = plan.runs[0].prepare
    settings = {"batch_size": 4, "caption_dropout": 0.0, "min_snr_gamma": None}
    process = bases.load_process(Path("base"))
    bare = prepared.load(stage, Path("base"))
    batch = training.make_batch(bare, process, 0.2, settings, 3, 1)
    for control, shape in (("controlnet", (4, 3, 16, 16)), ("concat", (4, 4, 8, 8))):
        own = prepared.load(stage, Path("base"), control=control)
        told = training.make_batch(own, process, 0.2, settings, 3, 1)
        assert torch.equal(told.noisy, batch.noisy)
        assert torch.equal(told.conditions["embeddings"], batch.conditions["embeddings"])
        given = told.conditions["given"]
        assert given.shape == shape and (control == "concat" or given.max() <= 1)
        none = training.make_batch(own, process, 0.2, settings | {"given_dropout": 1.0}, 3, 1)
        assert not none.conditions["given"].any() and torch.equal(none.noise, told.noise)
    # Of a mirrored example the mirror image is given.
    pixels = prepared.load(stage, Path("base"), control="controlnet")
    one, turned = (pixels.given_with([0], [m])["given"] for m in (False, True))
    assert torch.equal(turned, one.flip(-1))
    latents = prepared.load(stage, Path("base"), control="concat")
    assert torch.equal(
        latents.given_with([2], [True])["given"][0], latents.mirrored_given[2].float()
    )


def test_a_plain_controlnet_pipeline_draws_the_same(plan):
    run = run_of(plan, "full.controlnet")
    base = diffusers.StableDiffusionPipeline.from_pretrained("base", safety_checker=None)
    adapter = fitspace.load_adapter(base, run.train.folder / "adapter.safetensors")
    adapter.merge()
    base.unet.controlnet.save_pretrained("trained")
    plain = diffusers.StableDiffusionControlNetPipeline.from_pretrained(
        "base", controlnet=diffusers.ControlNetModel.from_pretrained("trained"), safety_checker=None
    )
    same(drawn_by(plain, plan), run)


def test_a_copy_with_adapters_draws_the_same_in_a_controlnet_pipeline(plan):
    run = run_of(plan, "adapter.controlnet")
    plain = diffusers.StableDiffusionControlNetPipeline.from_pretrained(
        "base",
        controlnet=diffusers.ControlNetModel.from_unet(bases.load_denoiser(Path("base"))),
        safety_checker=None,
    )
    before = plain.controlnet
    adapter = fitspace.load_adapter(plain, run.train.folder / "adapter.safetensors")
    same(drawn_by(plain, plan), run)
    adapter.remove()
    assert plain.controlnet is before and not hasattr(plain.unet, "controlnet")


def drawn_by(pipeline, plan) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    _, captions, given, noise = asked(plan)
    return pipeline(
        captions, image=[Image.fromarray(image) for image in given], latents=noise,
        num_inference_steps=STEPS, guidance_scale=GUIDANCE, height=16, width=16, output_type="np",
    ).images  # fmt: skip


@pytest.mark.parametrize("merged", [False, True])
def test_a_plain_pix2pix_pipeline_draws_the_same(plan, merged):
    run = run_of(plan, "lora.concat")
    pipeline = diffusers.StableDiffusionInstructPix2PixPipeline.from_pretrained(
        "base", safety_checker=None
    )
    pipeline.set_progress_bar_config(disable=True)
    adapter = fitspace.load_adapter(pipeline, run.train.folder / "adapter.safetensors")
    # Values alone are copied, and the pipeline goes on knowing of the given image.
    path = run.train.folder / "adapter.safetensors"
    assert fitspace.load_adapter(pipeline, path, instead_of=adapter) is adapter
    if merged:
        adapter.merge()
    _, captions, given, noise = asked(plan)
    found = pipeline(
        captions, image=[Image.fromarray(image) for image in given], latents=noise,
        num_inference_steps=STEPS, guidance_scale=GUIDANCE,
        image_guidance_scale=GIVEN_GUIDANCE, output_type="np",
    ).images  # fmt: skip
    same(found, run)
    if not merged:
        adapter.remove()
        assert pipeline.unet.config.in_channels == 4


def test_a_plain_img2img_pipeline_draws_the_same(plan, monkeypatch):
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img as theirs

    run = run_of(plan, "none.img2img")
    pipeline = theirs.StableDiffusionImg2ImgPipeline.from_pretrained("base", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    manifest, captions, _, noise = asked(plan)
    monkeypatch.setattr(theirs, "randn_tensor", lambda *_, **__: noise)
    start = prepared.load(run.prepare, Path("base"), control="img2img").given_for(range(4))["given"]
    found = pipeline(
        captions, image=start * pipeline.vae.config.scaling_factor, strength=NOISED,
        num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="np",
    ).images  # fmt: skip
    same(found, run)


def test_img2img_trains_nothing_of_its_own(plan):
    run = run_of(plan, "lora.img2img")
    assert "control" not in run.train.material and run.sample.material["control"] == "img2img"
    tensors = load_file(run.train.folder / "adapter.safetensors")
    assert all("lora" in name for name in tensors)
    assert not np.array_equal(images(run), images(run_of(plan, "none.img2img")))


def test_a_sample_is_measured_by_its_own_pair(plan):
    run = run_of(plan, "full.controlnet")
    features = metrics.read_features(
        run.reference.folder / "features.safetensors", False, {}, tuple(sorted(METRICS))
    )
    assert features["pairs"].tolist() == [[i, i] for i in range(HELD_OUT)]
    manifest, _, given, _ = asked(plan)
    assert np.array_equal(features["given"][:4].numpy(), given)
    found = metrics.read_metrics(run)
    targets = prepared.read_images(run.prepare, manifest)[manifest["prompt_images"][:4]]
    errors = np.square(images(run).astype(float) - targets).mean((1, 2, 3))
    assert found["psnr"] == pytest.approx((10 * np.log10(255**2 / errors)).mean(), abs=1e-6)
    assert -1 <= found["edge_agreement"] <= 1


def test_the_gallery_shows_what_was_given(plan):
    rows = table.collect(plan)
    table.write_gallery(plan, rows, Path("report"))
    entries = json.loads(Path("report/gallery.json").read_text())
    assert [entry["role"] for entry in entries][:2] == ["given", "target"]
    strip = np.array(Image.open(Path("report") / entries[0]["file"]))
    manifest, _, _, _ = asked(plan)
    given = prepared.read_given(plan.runs[0].prepare, manifest)[manifest["prompt_images"]]
    assert np.array_equal(strip, np.concatenate(given[:4], 1))


@pytest.mark.parametrize("point", ["full.controlnet", "lora.concat"])
def test_a_killed_training_ends_with_the_same_bits(plan, point, tmp_path):
    run, base = run_of(plan, point), Path("base")
    task = prepared.load(run.prepare, base, control=run.point.learnt)

    class Killed(Exception):
        pass

    def fit(checkpoint: Path, stop: int | None = None):
        attachment = _attached(bases.load_denoiser(base), run, task, base)

        def on_step(step: int) -> None:
            if step == stop:
                raise Killed

        return training.fit(
            attachment.model, attachment.trainable, task, bases.load_process(base), 0.18215,
            run.point.train, run.seed, checkpoint, 0.0, on_step=on_step, rates=attachment.rates,
        )  # fmt: skip

    with pytest.raises(Killed):
        fit(tmp_path / "c", 1)
    resumed = fit(tmp_path / "c")
    saved = load_file(run.train.folder / "adapter.safetensors")
    assert resumed.parameters.keys() == saved.keys()
    assert all(np.array_equal(v.numpy(), saved[n]) for n, v in resumed.parameters.items())


@pytest.mark.parametrize("control", bases.FAMILIES["unet"].controls[:2])
def test_runs_fold_with_what_they_are_told(plan, control, tmp_path):
    """Two runs in one batch end as each alone, nearly: sums are taken in another order."""
    chosen = study(
        [{"method": "lora", "control": control, "factors": {"train.lr": [0.01, 0.03]}}],
        [task(flip=0.5)],
        train={"steps": 2, "batch_size": 4, "lr": 0.02},
    )
    runs, base = build_plan(chosen).runs, Path("base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fitspace.core.devices.device", lambda: "cuda")
        assert folds(*runs)
    told = prepared.load(runs[0].prepare, base, control=control)
    shared = _attached(bases.load_denoiser(base), runs[0], told, base)

    def member(run, trainable, name: str):
        return training.Member(trainable, run.point.train, run.seed, tmp_path / name)

    own = [
        member(run, training.leaves(shared.trainable, "cpu"), f"folded{i}")
        for i, run in enumerate(runs)
    ]
    process = bases.load_process(base)
    folded = training.fit_members(shared.model, own, told, process, 0.18215, folded=True)
    for i, (run, result) in enumerate(zip(runs, folded, strict=True)):
        alone = _attached(bases.load_denoiser(base), run, told, base)
        (one,) = training.fit_members(
            alone.model, [member(run, alone.trainable, f"alone{i}")], told, process, 0.18215
        )
        assert result.losses == pytest.approx(one.losses, rel=1e-4)
        for name, value in one.parameters.items():
            assert torch.allclose(result.parameters[name], value, atol=1e-4), name


def test_an_adapter_with_a_control_is_not_exported_for_peft(plan, tmp_path):
    from fitspace.methods.export import export

    with pytest.raises(UserError, match="was trained with control: concat"):
        export(run_of(plan, "lora.concat").train.folder, tmp_path / "out")
    facts, _ = methods.read(run_of(plan, "full.controlnet").train.folder / "adapter.safetensors")
    assert facts["control"] == {"kind": "controlnet", "channels": [16, 32]}


def test_an_audit_measures_again_and_finds_nothing(plan):
    from fitspace.audit.again import reevaluate

    assert reevaluate(plan, [plan.runs[0].name]) == []
