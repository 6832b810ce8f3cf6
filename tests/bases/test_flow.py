"""Flow matching against diffusers' training scripts, written out as formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fitspace import training
from fitspace.bases.process import DENSITIES, MODE_SCALE, FlowMatching
from fitspace.core import rng
from fitspace.data.prepared import PreparedTask

STEPS = 1000
SHIFTS = {
    "none": {"shift": 1.0},
    "static, as Stable Diffusion 3": {"shift": 3.0},
    "dynamic, as FLUX.1-dev": {"use_dynamic_shifting": True},
}
every_shift = pytest.mark.parametrize("settings", SHIFTS.values(), ids=SHIFTS)


def sigmas(shift: float = 1.0, **_) -> np.ndarray:
    """The scripts' ``noise_scheduler.sigmas``, from noise to clean; a dynamic shift is none."""
    even = np.arange(STEPS, 0, -1) / STEPS
    return shift * even / (1 + (shift - 1) * even)


@every_shift
def test_a_training_step_is_that_of_the_scripts(settings):
    """train_dreambooth_lora_sd3.py: ``indices = (u·1000).long()``, ``sigmas[indices]``, a mixture
    ``(1 - sigma)·clean + sigma·noise``, target ``noise - clean``, weight 1."""
    process, draw = FlowMatching(settings), np.random.default_rng(0)
    clean, noise, predicted = draw.standard_normal((3, 8, 4, 6, 6)).astype(np.float32)
    for density, place in DENSITIES.items():
        drawn = [process.draw_time(rng.generator(0, "x", i), density) for i in range(8)]
        u = np.array([place(rng.generator(0, "x", i)) for i in range(8)])
        sigma = sigmas(**settings)[(u * STEPS).astype(int)].reshape(-1, 1, 1, 1)
        t = torch.tensor(drawn)
        np.testing.assert_allclose(t.double() / STEPS, sigma.ravel(), rtol=1e-6)
        noisy = process.mix(torch.from_numpy(clean), torch.from_numpy(noise), t)
        np.testing.assert_allclose(noisy, (1 - sigma) * clean + sigma * noise, atol=1e-6)
        given = (predicted, clean, noise, noisy, t, process.weights(t, None))
        losses = process.losses(*map(torch.as_tensor, given))
        wanted = np.square(predicted - (noise - clean.astype(float))).mean((1, 2, 3))
        np.testing.assert_allclose(losses, wanted, rtol=1e-5)


DENSITY = {  # the distribution functions of 2403.03206, section 3.1
    "uniform": lambda x: x,
    "logit_normal": lambda x: 0.5 * (1 + math.erf(math.log(x / (1 - x)) / math.sqrt(2))),
}


@pytest.mark.parametrize("name", DENSITIES)
def test_time_steps_have_their_density(name):
    draw = np.random.default_rng(1)
    drawn = np.sort([DENSITIES[name](draw) for _ in range(4000)])
    assert drawn[0] >= 0 and drawn[-1] <= 1
    assert abs(drawn.mean() - 0.5) < 4 * drawn.std() / 4000**0.5  # symmetric
    if name in DENSITY:
        wanted = np.array([DENSITY[name](x) for x in drawn])
        assert np.abs(np.arange(1, 4001) / 4000 - wanted).max() < 1.95 / 4000**0.5
    else:  # its inverse, a map of uniform numbers
        even = (np.arange(4000) + 0.5) / 4000
        mapped = 1 - even - MODE_SCALE * (np.cos(np.pi * even / 2) ** 2 - 1 + even)
        assert np.abs(drawn - np.sort(mapped)).max() < 0.06


@every_shift
def test_the_solver_is_eulers_on_the_shifted_steps(settings):
    process = FlowMatching(settings, tokens=1024)
    even = np.linspace(sigmas(**settings)[0], sigmas(**settings)[-1], 4)
    if "shift" in settings:
        shift = settings["shift"]
    else:  # linear in the tokens: 0.5 at 256, 1.15 at 4096, in the exponent
        assert process.mu == pytest.approx(0.5 + 0.65 * (1024 - 256) / (4096 - 256))
        shift = math.exp(process.mu)
    steps = [*(shift * even / (1 + (shift - 1) * even)), 0]
    solver, x = process.solver(4, "cpu"), torch.ones(1, 2, 2, 2)
    np.testing.assert_allclose(solver.timesteps / STEPS, steps[:-1], rtol=1e-5)
    for t in solver.timesteps:
        x = solver.step(0.5 * x, t, x).prev_sample
    wanted = np.prod([1 + 0.5 * (b - a) for a, b in zip(steps, steps[1:], strict=False)])
    np.testing.assert_allclose(x, np.full(x.shape, wanted), rtol=1e-5)


def test_dpm_solvers_shift_of_a_flow_counts_as_the_others():
    """As published with Sana; its script's scheduler does not read ``flow_shift`` in training."""
    dpm = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    process = FlowMatching(dpm)
    np.testing.assert_allclose(np.array(process.times) / STEPS, sigmas(3.0), rtol=1e-6)
    solver = process.solver(4, "cpu")
    assert type(solver).__name__ == "DPMSolverMultistepScheduler" and solver.init_noise_sigma == 1
    even = (1 - np.linspace(1, 1 / STEPS, 5))[:0:-1]
    wanted = [*(3 * even / (1 + 2 * even)), 0]
    np.testing.assert_allclose(solver.sigmas, wanted, rtol=1e-5)


def test_steps_may_be_even_before_they_are_shifted():
    """As FluxPipeline's, whose sigmas are ``linspace(1, 1 / steps, steps)``."""
    process = FlowMatching(SHIFTS["dynamic, as FLUX.1-dev"], tokens=1024, choice="even")
    even, shift = np.array([1, 0.75, 0.5, 0.25]), math.exp(process.mu)
    wanted = shift * even / (1 + (shift - 1) * even)
    np.testing.assert_allclose(process.solver(4, "cpu").timesteps / STEPS, wanted, rtol=1e-5)


@pytest.mark.parametrize("tokens", [256, 4096, 5000])
def test_flux2s_shift_depends_on_the_steps_too(tokens):
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    process = FlowMatching({"use_dynamic_shifting": True}, tokens, choice="empirical")
    for steps in (4, 50):
        shift = math.exp(compute_empirical_mu(tokens, steps))
        even = np.linspace(1, 1 / steps, steps)
        wanted = shift * even / (1 + (shift - 1) * even)
        found = process.solver(steps, "cpu").timesteps / STEPS
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_velocity_is_converted_to_the_noise_that_it_stands_for():
    process = FlowMatching({"shift": 3.0})
    clean, noise, t = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0, 400, 999])
    noisy = process.mix(clean, noise, t)
    found = process.noise(process.target(clean, noise, t), noisy, t)
    torch.testing.assert_close(found, noise, atol=1e-5, rtol=0)


def test_min_snr_has_no_meaning():
    with pytest.raises(ValueError, match="min_snr_gamma: 5.0; allowed with flow matching: None"):
        FlowMatching({}).weights(torch.tensor([3.0]), 5.0)


def test_latents_are_shifted_then_scaled():
    g = torch.Generator().manual_seed(0)
    task = PreparedTask(
        mean=torch.randn(5, 4, 2, 2, generator=g),
        std=torch.zeros(5, 4, 2, 2),
        captions=torch.arange(5),
        groups=[[i] for i in range(5)],
        conditions={"embeddings": torch.randn(5, 3, 6, generator=g)},
        prompts=[1],
    )
    settings = {"batch_size": 5, "caption_dropout": 0.0, "min_snr_gamma": None}
    batch = training.make_batch(task, FlowMatching({}), 1.5, settings, 0, 0, shift=0.25)
    wanted = 1.5 * (task.mean - 0.25)
    assert all(any(torch.allclose(row, own) for own in wanted) for row in batch.clean)
    assert batch.t.is_floating_point() and 0 < batch.t.min() <= batch.t.max() <= STEPS
