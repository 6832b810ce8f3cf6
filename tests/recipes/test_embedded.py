"""The embedded models as a user of plain diffusers meets them."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from embedded_base import BASE, LATENTS, SIDE

from fitspace import bases
from fitspace.core import rng
from fitspace.data.encoding import encode_captions
from fitspace.training import sampling

ROOT = Path(__file__).parents[2]
DIT = ROOT / "models/emoji-dit"
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
    noise = rng.initial_noise(3, len(CAPTIONS), LATENTS)
    theirs = pipeline(
        CAPTIONS, latents=noise, num_inference_steps=5, guidance_scale=3.0, output_type="np",
        height=SIDE, width=SIDE,
    ).images  # fmt: skip
    text = encode_captions(BASE, ["", *CAPTIONS])
    ours = sampling.generate(
        bases.load_denoiser(BASE), bases.load_vae(BASE), bases.load_process(BASE),
        {"embeddings": text[1:]}, {"embeddings": text[:1]}, noise, steps=5, guidance=3.0,
    )  # fmt: skip
    difference = np.abs(np.rint(theirs * 255) - ours.astype(float))
    assert difference.max() <= 1


def test_an_adapter_changes_the_pipeline_and_comes_off_again(pipeline, tmp_path):
    import fitspace
    from fitspace import methods

    noise = rng.initial_noise(3, 1, LATENTS)

    def draw():
        return pipeline(
            CAPTIONS[:1], latents=noise, num_inference_steps=2, output_type="np",
            height=SIDE, width=SIDE,
        ).images  # fmt: skip

    before = draw()
    settings = {"input": "CA_out", "output": "FFN_in", "width": 4, "init": "default"}
    made = methods.attach(bases.load_denoiser(BASE), "adapter", settings, seed=1)
    methods.save(made, tmp_path / "adapter.safetensors", {})
    attached = fitspace.load_adapter(pipeline, tmp_path / "adapter.safetensors")
    assert np.abs(draw() - before).max() > 0.01
    attached.remove()
    assert np.array_equal(draw(), before)


def test_a_stream_of_styles_changes_no_earlier_image_by_a_bit(pipeline, tmp_path):
    """One base and a file for each of seven domains: what a later one brings alters no earlier."""
    import fitspace
    from fitspace import methods

    forms = [
        ("adapter", {"input": "CA_out", "output": "FFN_in", "width": 4}),
        ("adapter", {"input": "CA_out", "output": "FFN_in", "width": 4}),
        ("lora", {"rank": 2}), ("lora", {"rank": 2}), ("difffit", {}), ("bitfit", {}), ("full", {}),
    ]  # fmt: skip
    noise = rng.initial_noise(3, 1, LATENTS)

    def draw():
        return pipeline(
            CAPTIONS[:1], latents=noise, num_inference_steps=2, output_type="np",
            height=SIDE, width=SIDE,
        ).images  # fmt: skip

    base, drawn = draw(), {}
    adapter = None
    for number, (method, settings) in enumerate(forms):
        made = methods.attach(bases.load_denoiser(BASE), method, settings, seed=number)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in made.trainable.values():
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        methods.save(made, tmp_path / f"{number}.safetensors", {})
        path = tmp_path / f"{number}.safetensors"
        adapter = fitspace.load_adapter(pipeline, path, instead_of=adapter)
        drawn[path] = draw()
    for path in reversed(drawn):  # the earliest has seen all the others come and go
        adapter = fitspace.load_adapter(pipeline, path, instead_of=adapter)
        assert np.array_equal(draw(), drawn[path])
    adapter.remove()
    assert np.array_equal(draw(), base)
    images = [base, *drawn.values()]
    assert all(not np.array_equal(a, b) for i, a in enumerate(images) for b in images[:i])


def test_the_example_of_load_adapter_runs(tmp_path, monkeypatch):
    import doctest

    import fitspace

    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(fitspace)
    assert found.attempted and not found.failed


def test_plain_diffusers_draws_the_figures_that_the_sample_stage_draws():
    from diffusers import DiTPipeline

    pipeline = DiTPipeline.from_pretrained(
        DIT, use_safetensors=True, local_files_only=True, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    names = ["cat face", "flag of Japan", "waving hand"]
    chosen = pipeline.get_label_ids(names)
    assert chosen == [bases.labels(DIT)[name] for name in names]
    # The pipeline draws its noise itself.
    noise = torch.randn(3, *LATENTS, generator=torch.Generator().manual_seed(5))
    theirs = pipeline(
        chosen, guidance_scale=1.0, num_inference_steps=5, output_type="np",
        generator=torch.Generator().manual_seed(5),
    ).images  # fmt: skip
    none = bases.config(DIT, "transformer")["num_embeds_ada_norm"]
    ours = sampling.generate(
        bases.load_denoiser(DIT), bases.load_vae(DIT), bases.load_process(DIT),
        {"labels": torch.tensor(chosen)}, {"labels": torch.tensor([none])},
        noise, steps=5, guidance=1.0,
    )  # fmt: skip
    assert np.abs(np.rint(theirs * 255) - ours.astype(float)).max() <= 1


def test_the_dit_knows_every_figure_and_keeps_one_embedder():
    from fitspace.data import openmoji

    figures = set(openmoji.figures().values())
    assert set(bases.labels(DIT)) == figures
    model = bases.load_denoiser(DIT)  # refuses blocks whose embedders differ
    assert model.config.num_embeds_ada_norm == len(figures) + 1  # one number means "no class"
    assert model.config.out_channels == 2 * model.config.in_channels


def test_embedded_weights_are_small():
    command = ["git", "-C", str(ROOT), "ls-files", "models"]
    files = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    weights = [(ROOT / f).read_bytes() for f in files if f.endswith(".safetensors")]
    # git keeps one of equal files: the bases share an autoencoder.
    assert weights and sum(map(len, set(weights))) < 60_000_000
    assert not [f for f in files if Path(f).suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]


@pytest.mark.parametrize(
    "model", ["emoji-unet", "emoji-dit", "emoji-mmdit", "emoji-clip", "emoji-rewarder"]
)
def test_cards_say_where_a_model_comes_from(model):
    card = (ROOT / "models" / model / "README.md").read_text()
    for word in ("CC BY-SA 4.0", "OpenMoji", "seed"):
        assert word.lower() in card.lower()
    assert re.search(r"\d h\b|hours", card)
    for line in card.splitlines():
        if line.startswith("!["):
            assert (ROOT / "models" / model / line.partition("](")[2].rstrip(")")).exists()
