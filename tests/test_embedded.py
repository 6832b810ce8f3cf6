"""The embedded models as a user of plain diffusers meets them."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from fitspace import bases, sampling
from fitspace.data.prepare import encode_captions

ROOT = Path(__file__).parents[1]
BASE = ROOT / "models/emoji-unet"
CAPTIONS = ["cat face", "flag of Japan", "waving hand, dark skin tone"]


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(
        bases.resolve(BASE), use_safetensors=True, local_files_only=True, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_plain_diffusers_draws_what_the_sample_stage_draws(pipeline):
    noise = sampling.initial_noise(3, len(CAPTIONS), (8, 8, 8))
    theirs = pipeline(
        CAPTIONS, latents=noise, num_inference_steps=5, guidance_scale=3.0, output_type="np",
        height=32, width=32,
    ).images  # fmt: skip
    text = encode_captions(BASE, ["", *CAPTIONS])
    ours = sampling.generate(
        bases.load_denoiser(BASE), bases.load_vae(BASE), bases.config(BASE, "scheduler"),
        text[1:], text[:1], noise, steps=5, guidance=3.0,
    )  # fmt: skip
    difference = np.abs(np.rint(theirs * 255) - ours.astype(float))
    assert difference.max() <= 1


def test_an_adapter_changes_the_pipeline_and_comes_off_again(pipeline, tmp_path):
    import fitspace
    from fitspace import methods

    noise = sampling.initial_noise(3, 1, (8, 8, 8))

    def draw():
        return pipeline(
            CAPTIONS[:1], latents=noise, num_inference_steps=2, output_type="np",
            height=32, width=32,
        ).images  # fmt: skip

    before = draw()
    settings = {"input": "CA_out", "output": "FFN_in", "width": 4, "init": "default"}
    made = methods.attach(bases.load_denoiser(BASE), "adapter", settings, seed=1)
    methods.save(made, tmp_path / "adapter.safetensors", {})
    attached = fitspace.load_adapter(pipeline, tmp_path / "adapter.safetensors")
    assert np.abs(draw() - before).max() > 0.01
    attached.remove()
    assert np.array_equal(draw(), before)


def test_embedded_weights_leave_room_for_more():
    command = ["git", "-C", str(ROOT), "ls-files", "models"]
    files = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    sizes = [(ROOT / f).stat().st_size for f in files if f.endswith(".safetensors")]
    assert sizes and sum(sizes) < 16_000_000
    assert not [f for f in files if Path(f).suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]


@pytest.mark.parametrize("model", ["emoji-unet", "emoji-clip"])
def test_cards_say_where_a_model_comes_from(model):
    card = (ROOT / "models" / model / "README.md").read_text()
    for word in ("CC BY-SA 4.0", "OpenMoji", "seed", "hours" if model == "emoji-clip" else " h,"):
        assert word.lower() in card.lower()
    for line in card.splitlines():
        if line.startswith("!["):
            assert (ROOT / "models" / model / line.partition("](")[2].rstrip(")")).exists()
