"""The reward beside the objective: value and gradient, what it teaches, where it is none."""

from __future__ import annotations

import atexit
import dataclasses
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pipelines
import pytest
import tiny
import tiny_judge
import torch
import torch.nn.functional as F

from fitspace import methods, training
from fitspace.bases.process import FlowMatching
from fitspace.core import devices, rng
from fitspace.metrics import clip
from fitspace.training import sampling

CAPTIONS = ["", *(f"{c} {x}" for c in ("red", "blue", "green") for x in ("cat", "car", "sun"))]
CAPTIONS += ["house", "tree"]
SCALING, SHIFT, WEIGHT = 0.5, 0.1, 3.0
PROCESSES = {
    "epsilon": lambda: tiny.process("epsilon"),
    "v_prediction": tiny.process,
    "flow": lambda: FlowMatching({"shift": 3.0}),
}


@cache
def rewarder() -> Path:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    return tiny_judge.write(folder, CAPTIONS)


@cache
def judge():
    return clip.load(rewarder())


@cache
def vae():
    torch.manual_seed(3)
    return pipelines.vae(shift_factor=SHIFT, scaling_factor=SCALING).requires_grad_(False).eval()


def reward(against: str = "caption", below: float = 1.0, weight: float = WEIGHT):
    texts = clip.text_embeddings(judge(), CAPTIONS).clone() if against == "caption" else None
    return training.Reward(judge(), vae(), SCALING, SHIFT, weight, below, texts)


def batch(process, settings=(), task=None, step: int = 0):
    own = tiny.SETTINGS | {"min_snr_gamma": None, "batch_size": 8} | dict(settings)
    return training.make_batch(task or tiny.task(), process, SCALING, own, 0, step, SHIFT)


def written_out(kind, made, predicted, against):
    """Each example's cosine, by open_clip, diffusers and the papers' formulas alone."""
    import open_clip

    model = open_clip.create_model(f"local-dir:{rewarder()}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{rewarder()}")(CAPTIONS)
    t = made.t.reshape(-1, 1, 1, 1)
    if kind == "flow":
        clean = made.noisy - t / 1000 * predicted
    else:
        betas = torch.linspace(0.0001**0.5, 0.02**0.5, 1000).double() ** 2
        alpha = (1 - betas).cumprod(0)[t].float()
        a, s = alpha.sqrt(), (1 - alpha).sqrt()
        v = kind == "v_prediction"
        clean = a * made.noisy - s * predicted if v else (made.noisy - s * predicted) / a

    def seen(latents):
        images = (vae().decode(latents / SCALING + SHIFT).sample.clamp(-1, 1) + 1) / 2
        images = F.interpolate(images, (32, 32), mode="bilinear", antialias=True)
        return F.normalize(model.encode_image((images - 0.5) / 0.5), dim=-1)

    told = F.normalize(model.encode_text(tokens), dim=-1).detach()
    goal = told[made.rows] if against == "caption" else seen(made.clean).detach()
    return (seen(clean) * goal).sum(1)


@pytest.mark.parametrize("against", ["caption", "target"])
@pytest.mark.parametrize("kind", PROCESSES)
def test_the_reward_is_the_formula_and_so_is_its_gradient(kind, against):
    process = PROCESSES[kind]()
    made = batch(process)
    torch.manual_seed(1)
    predicted = (0.5 * torch.randn(made.noisy.shape)).requires_grad_()
    found = reward(against, below=0.7).losses(process, predicted, made)
    rewarded = ((made.rows != 0) & (made.t < 700)).float()
    assert 2 <= rewarded.sum() < 8 and (made.rows == 0).any() and (made.t >= 700).any()
    # Where nothing is rewarded the estimate may be far away: it must not reach the sum.
    apart = written_out(kind, made, predicted, against)
    expected = torch.where(rewarded > 0, -WEIGHT * apart, torch.zeros(()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    (own,) = torch.autograd.grad(found.sum(), predicted)
    (other,) = torch.autograd.grad(expected.sum(), predicted)
    torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-3 * other.abs().max().item())
    assert own.abs().max() > 1e-4


def test_a_learned_variance_is_no_part_of_the_estimate():
    process = tiny.process()
    made = batch(process)
    mean = torch.zeros_like(made.noisy)
    wide = torch.cat([mean, torch.ones_like(mean)], 1).requires_grad_()
    found = reward().losses(process, wide, made)
    assert torch.equal(found, reward().losses(process, mean, made))
    (gradient,) = torch.autograd.grad(found.sum(), wide)
    assert gradient[:, :4].any() and not gradient[:, 4:].any()


def test_class_images_are_not_rewarded_and_the_mean_is_over_the_tasks_examples():
    process = tiny.process()
    never = {"caption_dropout": 0.0, "batch_size": 2}
    task = dataclasses.replace(tiny.task(), prior=[7, 8], prior_weight=0.5)
    alone, both = batch(process, never), batch(process, never, task)
    assert both.counts.tolist() == [2, 2, 0, 0]
    of_alone = reward().losses(process, torch.zeros_like(alone.noisy), alone)
    of_both = reward().losses(process, torch.zeros_like(both.noisy), both)
    assert of_both.mean().item() == pytest.approx(of_alone.mean().item(), rel=1e-5)
    assert not of_both[2:].any()


def test_images_are_seen_as_the_metric_sees_them():
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), np.uint8))
    there = clip.image_embeddings(judge(), pixels)
    here = clip.embedded(judge(), pixels.permute(0, 3, 1, 2) / 255)
    assert (here * there).sum(1).min() > 0.9995


def trained(path: Path, rewarding, method: str = "full", **changes):
    """A tiny model that is trained, with its Fit."""
    own = {} if method == "full" else {"input": "CA_out", "output": "FFN_in", "width": 3}
    attachment = methods.attach(tiny.unet(), method, own, 0)
    options = {k: changes.pop(k) for k in ("checkpoint_seconds", "on_step") if k in changes}
    settings = tiny.SETTINGS | {"min_snr_gamma": None, "caption_dropout": 0.0} | changes
    found = training.fit(
        attachment.model, attachment.trainable, tiny.task(), tiny.process(), SCALING, settings, 0,
        path, reward=rewarding, **options,
    )  # fmt: skip
    return attachment.model, found


def likeness(model) -> float:
    """Mean cosine of a model's own samples with the captions that it was trained on."""
    task = tiny.task()
    rows = list(range(1, 11))
    noise = rng.initial_noise(0, len(rows), (4, 4, 4))
    images = sampling.generate(
        model, vae(), tiny.process(), task.told(rows), task.told(slice(1)), noise, 6, 1.0
    )
    seen = clip.image_embeddings(judge(), torch.from_numpy(images))
    return clip.clip_t(seen, clip.text_embeddings(judge(), CAPTIONS)[rows])


@pytest.mark.slow
def test_a_rewarded_training_makes_samples_that_the_model_likes_better(tmp_path):
    longer = {
        "steps": 180, "batch_size": 8, "lr": 0.02, "lr_schedule": "constant", "ema": None,
    }  # fmt: skip
    before = likeness(tiny.unet())
    without = likeness(trained(tmp_path / "a", None, **longer)[0])
    rewarded = likeness(trained(tmp_path / "b", reward(weight=1000.0), **longer)[0])
    assert rewarded > max(before, without) + 0.08


@pytest.mark.parametrize("through", [0, 1])
def test_a_rewarded_training_resumes_bit_for_bit(tmp_path, through):
    of = drawing(through, 2.0) if through else reward()

    class Stop(Exception):
        pass

    def interrupt(step):
        if step == 2:
            raise Stop

    short = {"steps": 5, "method": "adapter"}
    _, whole = trained(tmp_path / "a", of, **short)
    with pytest.raises(Stop):
        trained(tmp_path / "b", of, checkpoint_seconds=0.0, on_step=interrupt, **short)
    _, resumed = trained(tmp_path / "b", of, **short)
    assert resumed.losses == whole.losses
    assert all(torch.equal(v, resumed.parameters[n]) for n, v in whole.parameters.items())
    _, plain = trained(tmp_path / "c", None, **short)
    assert plain.losses[0] != whole.losses[0]


def test_folded_runs_are_rewarded_as_each_alone(tmp_path):
    own = {"input": "CA_out", "output": "FFN_in", "width": 3}
    settings = tiny.SETTINGS | {"steps": 3, "min_snr_gamma": None}

    def members(model, folder, seeds):
        found = []
        for seed in seeds:
            attachment = methods.attach(tiny.unet() if found else model, "adapter", own, seed)
            leaves = training.leaves(attachment.trainable, "cpu")
            found.append(training.Member(leaves, settings, seed, folder / f"{seed}"))
        return found

    def fits(seeds, name):
        model = tiny.unet()
        return training.fit_members(
            model, members(model, tmp_path / name, seeds), tiny.task(), tiny.process(), SCALING,
            folded=True, reward=reward(),
        )  # fmt: skip

    together = fits([0, 1], "together")
    for seed, found in enumerate(together):
        (alone,) = fits([seed], f"alone{seed}")
        np.testing.assert_allclose(found.losses, alone.losses, rtol=1e-4)


def test_the_gradient_over_parts_of_a_batch_is_that_of_the_whole():
    process = tiny.process()
    made = batch(process)
    predicted = (0.3 * torch.randn(made.noisy.shape)).requires_grad_()
    whole = reward().losses(process, predicted, made)
    parts = [
        reward().losses(process, predicted[rows], made[rows]) for rows in (slice(0, 3), slice(3, 8))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-5)


# --- through the last steps of a solver (DRaFT-K) --------------------------------------------


STEPS = 4


def drawing(through: int, guidance: float = 1.0, **changes):
    own = {"through": through, "steps": STEPS, "guidance": guidance} | changes
    return dataclasses.replace(reward(), none=tiny.task().told(slice(1)), **own)


def solved(kind, model, made, through, guidance):
    """Samples of a batch's noise, by diffusers' own solver and pipelines' guidance alone."""
    from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

    if kind == "flow":
        solver = FlowMatchEulerDiscreteScheduler(shift=3.0)
    else:
        solver = DPMSolverMultistepScheduler(
            1000, 0.0001, 0.02, "scaled_linear", prediction_type=kind
        )
    solver.set_timesteps(STEPS)
    x, words = made.noise, made.conditions["embeddings"]
    empty = tiny.task().told(slice(1))["embeddings"].expand_as(words)
    for left, t in zip(range(STEPS, 0, -1), solver.timesteps, strict=True):
        predicted = model(x, t, encoder_hidden_states=words).sample
        if guidance != 1:
            without = model(x, t, encoder_hidden_states=empty).sample
            predicted = without + guidance * (predicted - without)
        x = solver.step(predicted, t, x).prev_sample
        if left == through + 1:  # constant from here on: latents and the solver's history
            x = x.detach()
            if kind != "flow":
                solver.model_outputs = [
                    v if v is None else v.detach() for v in solver.model_outputs
                ]
    return x


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("through", [1, 2, STEPS])
@pytest.mark.parametrize("kind", PROCESSES)
def test_the_gradient_of_drawn_images_is_that_of_the_loop_written_out(kind, through, guidance):
    process, model = PROCESSES[kind](), tiny.unet()
    made = batch(process, {"batch_size": 3, "caption_dropout": 0.0})
    weight = model.conv_out.weight.requires_grad_()
    first = model.conv_in.weight.requires_grad_()
    predicted = torch.zeros_like(made.noisy)
    found = drawing(through, guidance).losses(process, predicted, made, model)
    latents = solved(kind, model, made, through, guidance)
    goal = reward().texts[made.rows]
    expected = -WEIGHT * (reward().seen(latents) * goal).sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    own = torch.autograd.grad(found.sum(), [weight, first])
    other = torch.autograd.grad(expected.sum(), [weight, first])
    for a, b in zip(own, other, strict=True):
        assert b.abs().max() > 1e-6
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * b.abs().max().item())
    if through < STEPS:  # what all steps would give is another one
        whole = drawing(STEPS, guidance).losses(process, predicted, made, model)
        (far,) = torch.autograd.grad(whole.sum(), [first])
        assert (far - own[1]).abs().max() > 1e-2 * own[1].abs().max()


def test_drawn_images_are_those_that_sampling_draws():
    process, model, task = tiny.process(), tiny.unet(), tiny.task()
    rows, noise = [1, 2, 3], rng.initial_noise(0, 3, (4, 4, 4))
    theirs = sampling.generate(
        model, vae(), process, task.told(rows), task.told(slice(1)), noise, STEPS, 3.0
    )
    with torch.no_grad():
        own = drawing(1, 3.0).drawn(process, model, noise, task.told(rows))
        images = sampling.decoded(vae(), own / SCALING + SHIFT)
    assert np.abs(images.astype(int) - theirs).max() <= 1


def test_drawn_images_of_dropped_captions_are_not_rewarded_and_all_times_are():
    process = tiny.process()
    made = batch(process, {"caption_dropout": 0.4})
    found = drawing(1, below=1e-6).losses(process, torch.zeros_like(made.noisy), made, tiny.unet())
    assert torch.equal(found != 0, made.rows != 0) and 1 < (made.rows != 0).sum() < 8
    # An example's reward does not depend on what else is computed with it.
    parts = [
        drawing(1).losses(process, torch.zeros_like(part.noisy), part, tiny.unet())
        for part in (made[slice(0, 3)], made[slice(3, 8)])
    ]
    torch.testing.assert_close(torch.cat(parts), found, rtol=1e-4, atol=1e-5)


def test_checkpointed_gradients_of_drawn_images_are_the_same():
    process = tiny.process()
    made = batch(process, {"batch_size": 2, "caption_dropout": 0.0})
    gradients = []
    for lighter in (False, True):
        model = tiny.unet()
        weight = model.conv_in.weight.requires_grad_()
        if lighter:
            devices.prepare(model, "fp32", gradient_checkpointing=True)
        loss = drawing(2).losses(process, torch.zeros_like(made.noisy), made, model).sum()
        gradients.append(torch.autograd.grad(loss, [weight])[0])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_a_fold_draws_no_images(tmp_path):
    with pytest.raises(ValueError, match="for one run alone"):
        training.fit_members(
            tiny.unet(), [], tiny.task(), tiny.process(), SCALING, folded=True, reward=drawing(1)
        )
