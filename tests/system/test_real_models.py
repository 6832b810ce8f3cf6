"""The studies of the papers' models, by the very same code, on networks of the same form.

Stable Diffusion 1.x and DiT-XL/2 from their own configurations, only narrower: the same blocks,
heads, prediction and schedule, a text encoder and an autoencoder of the same kinds. The files are
the shipped ones; replaced are the models, the images, and how much is done.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import tiny
import torch
import transformers
import yaml
from PIL import Image

from fitspace import bases, methods, stages
from fitspace.data import prepared
from fitspace.plan import build_plan, counting, load_study
from fitspace.stages import evaluate

ROOT = Path(__file__).parents[2]
# Stages of subjects and of DiTs have fast tests of their own.
STUDIES = (
    "sd15-adapters",
    pytest.param("sd15-dreambooth", marks=pytest.mark.slow),
    pytest.param("dit-xl-difffit", marks=pytest.mark.slow),
)
IMAGES = 12


def autoencoder(side):
    """Eight times smaller latents of four channels, as the models' own."""
    torch.manual_seed(1)
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=side,
    )


def stable_diffusion(out):
    """Stable Diffusion 1.x: 64 px, a tenth as wide."""
    torch.manual_seed(0)
    narrow = {"block_out_channels": [32, 64, 64, 64], "cross_attention_dim": 16, "sample_size": 8}
    config = bases.named_config("sd15") | narrow
    letters = [chr(c) for c in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {w: i for i, w in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    start, end = len(words), len(words) + 1
    text = transformers.CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, bos_token_id=start, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    diffusers.StableDiffusionPipeline(
        vae=autoencoder(64),
        text_encoder=transformers.CLIPTextModel(text),
        tokenizer=transformers.CLIPTokenizer(vocabulary, [], model_max_length=77),
        unet=diffusers.UNet2DConditionModel.from_config(config),
        scheduler=diffusers.PNDMScheduler(**schedule, skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(out)


def dit(out):
    """DiT-XL/2: 16 heads, learned variance, ImageNet's classes; 2 blocks of 28, heads 4 of 72."""
    torch.manual_seed(0)
    narrow = {"attention_head_dim": 4, "num_layers": 2, "sample_size": 8}
    known = {"num_embeds_ada_norm": 1000}
    config = bases.named_config("dit-xl") | known | narrow
    model = diffusers.DiTTransformer2DModel.from_config(config)
    first, second = (block.norm1 for block in model.transformer_blocks)
    second.emb = copy.deepcopy(first.emb)
    diffusers.DiTPipeline(model, autoencoder(64), diffusers.DDIMScheduler()).save_pretrained(out)


def images(out, subject):
    """Four images of one subject, or twelve of two classes, every third held out."""
    out.mkdir()
    draw, lines = np.random.default_rng(0), ["file_name,text,split"]
    for i in range(4 if subject else IMAGES):
        picture = draw.integers(0, 256, (80, 80, 3), dtype=np.uint8)
        Image.fromarray(picture).save(out / f"{i}.png")
        lines.append(f"{i}.png,{'rose' if i % 2 else 'pansy'},{'train' if i % 3 else 'test'}")
    if not subject:
        (out / "metadata.csv").write_text("\n".join(lines) + "\n")


def small(name, bases_at) -> dict:
    """A shipped study with one task, its images in a folder, and two steps of everything."""
    content = yaml.safe_load((ROOT / f"params/{name}.yaml").read_text())
    content |= {"base": str(bases_at[name[:3]]), "judge": str(ROOT / "models/emoji-clip")}
    task = content["tasks"][0]
    subject = task.get("dreambooth")
    path = "subject" if subject else "set"
    content["tasks"] = [{"name": "own", "source": "folder", "path": path}]
    if subject:
        content["tasks"][0]["dreambooth"] = subject | {"class_images": 2}
    content["sample"] |= {"prompts": len(subject["prompts"]) if subject else 4, "steps": 2}
    content["train"] |= {"steps": 2, "batch_size": 2}
    if content["train"].get("ema"):  # of two steps the paper's average would be the start
        content["train"]["ema"] = 0.5
    for arm in content["arms"]:
        if "steps" in arm.get("train", {}):
            arm["train"]["steps"] = 2
    if name == "dit-xl-difffit":  # FID costs seconds a run, and is measured in the other study
        del content["inception"], content["analysis"]["transform"]["fid"]
        content["analysis"]["responses"].remove("fid")
    elif "inception" in content:
        content["inception"] = "inception.safetensors"
    return content | {"seeds": [0]}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    for name, build in {"sd1": stable_diffusion, "dit": dit}.items():
        build(folder / name)
    return {name: folder / name for name in ("sd1", "dit")}


@pytest.fixture(scope="module", params=STUDIES)
def finished(request, narrow, tmp_path_factory):
    """A study, and by arm the first run of each, evaluated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp(request.param))
        images(Path("set"), False)
        images(Path("subject"), True)
        tiny.inception(Path("inception.safetensors"))
        Path("study.yaml").write_text(yaml.safe_dump(small(request.param, narrow)))
        study = load_study("study.yaml")
        runs = {run.point.arm: run for run in reversed(build_plan(study).runs)}
        for run in runs.values():
            for stage in run.stages:
                if not stage.sidecar.exists():
                    stages.function(stage.name)(study, run)
        yield study, runs


def test_every_arm_is_trained_sampled_and_measured(finished):
    study, runs = finished
    assert runs.keys() == {arm.title for arm in study.arms}
    for run in runs.values():
        values = json.loads((run.evaluate.folder / "metrics.json").read_text())
        assert "diverged" not in values
        assert np.isfinite([values[name] for name in study.analysis.responses]).all()


def test_adapters_hold_what_is_counted(finished):
    study, runs = finished
    for run in runs.values():
        if run.train is None:
            continue
        _, tensors = methods.read(run.train.folder / "adapter.safetensors")
        counted = counting.count(study.base, run.point.method, run.point.settings)["trainable"]
        if bases.family(study.base).name == "dit":
            # Two classes and none, for ImageNet's thousand and none.
            counted -= (1001 - 3) * 16 * 4
        assert sum(tensor.numel() for tensor in tensors.values()) == counted


def test_every_arm_draws_something_else(finished):
    study, runs = finished
    drawn = [evaluate.drawn(study, run) for run in runs.values()]
    assert all(images.shape[1:] == (64, 64, 3) for images in drawn)
    different = {images.tobytes() for images in drawn}
    assert len(different) == len(drawn)


def test_what_the_models_predict_and_are_told(finished):
    study, runs = finished
    base, run = bases.resolve(study.base), next(iter(runs.values()))
    process, task = bases.load_process(base), prepared.load(run.prepare, base)
    assert process.predicts == "epsilon"
    model = bases.load_denoiser(base)
    if bases.family(base).name == "unet":
        heads = {m.heads for m in model.modules() if hasattr(m, "heads")}
        assert heads == {8} and task.conditions["embeddings"].shape[1:] == (77, 16)
    else:
        assert model.config.out_channels == 8 and model.config.num_attention_heads == 16
        assert task.own_classes == 2
