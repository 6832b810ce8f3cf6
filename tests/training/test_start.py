"""Sampling that starts from an image, and that leaves the caption untold; a U-Net and a DiT."""

from __future__ import annotations

import numpy as np
import pipelines
import pytest
import tiny
import torch

from fitspace.training import sampling

G = torch.Generator().manual_seed(0)
SHARES = [(4, 0.25, 3), (4, 0.5, 2), (4, 1.0, 0), (10, 0.6, 4), (10, 0.05, 10)]
MODELS = {
    "unet": (tiny.unet, (2, 4, 4, 4), {"embeddings": torch.randn(2, 5, 12, generator=G)}),
    "dit": (tiny.tiny_dit, (2, 4, 8, 8), {"labels": torch.tensor([0, 2])}),
}


@pytest.mark.parametrize(("steps", "noised", "expected"), SHARES)
def test_a_share_of_the_steps_is_left_out(steps, noised, expected):
    assert sampling.skipped(steps, noised) == expected


@pytest.mark.parametrize("family", MODELS)
@torch.no_grad()
def test_it_starts_from_the_image_noised(family):
    build, shape, told = MODELS[family]
    model, process, vae = build(), tiny.process(), pipelines.vae()
    start, noise = (torch.randn(shape, generator=G) for _ in range(2))
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    nothing = {name: values[:1] for name, values in told.items()}
    found = sampling.generate(
        model, vae, process, told, nothing, noise, 4, 1.0,
        start=start / vae.config.scaling_factor, noised=0.25,
    )  # fmt: skip
    assert len(passes) == 1
    t = process.solver(4, "cpu").timesteps[-1]
    noisy = process.mix(start, noise, t.expand(2))
    hand = {"unet": "encoder_hidden_states", "dit": "class_labels"}[family]
    (values,) = told.values()
    predicted = model(noisy, t.expand(2), **{hand: values}).sample[:, :4]
    # The last step goes to the clean latent that the prediction stands for.
    alpha = process.scheduler.alphas_cumprod[t]
    clean = alpha.sqrt() * noisy - (1 - alpha).sqrt() * predicted
    expected = sampling.decoded(vae, clean / vae.config.scaling_factor)
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("family", MODELS)
@torch.no_grad()
def test_a_guidance_of_zero_tells_the_empty_caption_alone(family):
    build, shape, told = MODELS[family]
    model, process, vae = build(), tiny.process(), pipelines.vae()
    noise = torch.randn(shape, generator=G)
    nothing = {name: values[:1] + 1 for name, values in told.items()}  # another condition
    both = {name: values.expand(2, *values.shape[1:]) for name, values in nothing.items()}
    passes = []
    model.register_forward_hook(lambda _, given, __: passes.append(len(given[0])))
    found = sampling.generate(model, vae, process, told, nothing, noise, 3, 0.0)
    assert passes == [2] * 3
    assert (found == sampling.generate(model, vae, process, both, nothing, noise, 3, 1.0)).all()
    assert (found != sampling.generate(model, vae, process, told, nothing, noise, 3, 1.0)).any()
