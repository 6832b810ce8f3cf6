"""Targets, weights and losses against their formulas, written once more in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from scipy.stats import norm

from fitspace import methods, training
from fitspace.bases.process import Diffusion
from fitspace.core.errors import UserError
from fitspace.data.prepared import PreparedTask

STEPS = 1000


def scaled_linear() -> np.ndarray:
    return np.linspace(0.00085**0.5, 0.012**0.5, STEPS) ** 2


def zero_terminal_snr() -> np.ndarray:
    """2305.08891, algorithm 1."""
    root = np.sqrt(np.cumprod(1 - scaled_linear()))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return 1 - np.append(root[0] ** 2, (root[1:] / root[:-1]) ** 2)


STABLE_DIFFUSION = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
# Name -> betas, and the scheduler's configuration that should give them.
SCHEDULES = {
    "linear": (np.linspace(1e-4, 0.02, STEPS), dict(beta_schedule="linear")),
    "scaled linear": (scaled_linear(), STABLE_DIFFUSION),
    "zero terminal SNR": (
        zero_terminal_snr(),
        STABLE_DIFFUSION | dict(rescale_betas_zero_snr=True),
    ),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
every_kind = pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
# From noise alone, noise prediction says nothing of the clean latent: no bound there.
every_bound = pytest.mark.parametrize(
    "schedule, kind",
    [
        *((s, k) for s in ("linear", "scaled linear") for k in ("epsilon", "v_prediction")),
        ("zero terminal SNR", "v_prediction"),
    ],
)
TIMES = np.array([0, 1, 2, 30, 400, 800, 998, 999])


def process(schedule: str, kind: str, **other) -> Diffusion:
    return Diffusion({"prediction_type": kind, **SCHEDULES[schedule][1], **other})


class Truth:
    """The process and one batch in float64: clean latents, noise, both mixed, and a prediction
    that is wrong by ``error`` times a normal number."""

    def __init__(self, schedule: str, kind: str, error: float = 0.2, times=TIMES):
        draw = np.random.default_rng(0)
        self.kind, self.times = kind, np.array(times)
        self.betas = SCHEDULES[schedule][0]
        self.alphas = np.cumprod(1 - self.betas)
        shape = (len(times), 3, 4, 4)
        # Float32, as the code under test sees them; some beyond [-1, 1], as latents are.
        self.clean, self.noise, wrong = draw.standard_normal((3, *shape)).astype(np.float32)
        signal, sigma = (np.sqrt(x) for x in (self.at(self.alphas), self.at(1 - self.alphas)))
        self.noisy = signal * self.clean + sigma * self.noise
        velocity = signal * self.noise - sigma * self.clean
        self.wanted = self.noise.astype(float) if kind == "epsilon" else velocity
        self.predicted = self.wanted + error * wrong

    def at(self, values: np.ndarray) -> np.ndarray:
        return values[self.times].reshape(-1, 1, 1, 1)

    @property
    def estimate(self) -> np.ndarray:
        """The clean latent that the prediction implies."""
        signal, sigma = (np.sqrt(x) for x in (self.at(self.alphas), self.at(1 - self.alphas)))
        if self.kind == "epsilon":
            return (self.noisy - sigma * self.predicted) / signal
        return signal * self.noisy - sigma * self.predicted

    def posterior_mean(self, clean: np.ndarray) -> np.ndarray:
        """Mean of q(x[t-1] | x[t], x[0]) by Bayes' rule for normals: precisions add."""
        before, beta = self.at(np.append(1, self.alphas[:-1])), self.at(self.betas)
        first = before == 1  # x[t-1] is the clean latent itself
        width = np.where(first, 1, 1 - before)
        precision = 1 / width + (1 - beta) / beta
        mean = (np.sqrt(before) * clean / width + np.sqrt(1 - beta) * self.noisy / beta) / precision
        return np.where(first, clean, mean)

    @property
    def narrowest(self) -> np.ndarray:
        """Variance of the same; at the first step, where it is 0, that of the second."""
        before = np.append(1, self.alphas[:-1])[1:]
        variance = 1 / (1 / (1 - before) + (1 - self.betas[1:]) / self.betas[1:])
        return self.at(np.append(variance[0], variance))

    def bound(self, widths: np.ndarray) -> np.ndarray:
        """``_vb_terms_bpd`` of the improved-diffusion code, with the exact normal integral."""
        share = (widths.astype(float) + 1) / 2
        spread = np.sqrt(self.at(self.betas) ** share * self.narrowest ** (1 - share))
        mean, narrow = self.posterior_mean(self.estimate), np.sqrt(self.narrowest)
        apart = self.posterior_mean(self.clean) - mean
        divergence = np.log(spread / narrow) + (narrow**2 + apart**2) / (2 * spread**2) - 0.5
        right = np.where(self.clean > 0.999, np.inf, self.clean + 1 / 255)
        left = np.where(self.clean < -0.999, -np.inf, self.clean - 1 / 255)
        mass = norm.cdf(right, mean, spread) - norm.cdf(left, mean, spread)
        likelihood = -np.log(np.maximum(mass, 1e-12))
        nats = np.where(self.at(np.arange(STEPS)) == 0, likelihood, divergence)
        return nats.mean((1, 2, 3)) / np.log(2)

    def batch(self, weight: float = 1.0) -> training.Batch:
        return training.Batch(
            clean=torch.from_numpy(self.clean),
            noise=torch.from_numpy(self.noise),
            noisy=torch.from_numpy(self.noisy).float(),
            t=torch.from_numpy(self.times),
            conditions={},
            weight=torch.full((len(self.times),), weight),
            rows=torch.zeros(len(self.times), dtype=torch.long),
            counts=torch.ones(len(self.times)),
        )


def some_widths(truth: Truth) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1.2, 1.2, truth.clean.shape).astype(np.float32)


# --- targets and weights ----------------------------------------------------------------


@every_kind
@every_schedule
def test_targets(schedule, kind):
    truth = Truth(schedule, kind)
    batch = truth.batch()
    got = process(schedule, kind).target(batch.clean, batch.noise, batch.t)
    torch.testing.assert_close(got.double().numpy(), truth.wanted, atol=1e-5, rtol=0)


def test_a_target_without_a_formula_is_refused():
    batch = Truth("linear", "epsilon").batch()
    with pytest.raises(ValueError, match="'sample'; allowed: epsilon, v_prediction"):
        process("linear", "sample").target(batch.clean, batch.noise, batch.t)


@every_kind
@every_schedule
def test_min_snr_weights(schedule, kind):
    alphas = np.cumprod(1 - SCHEDULES[schedule][0])
    snr = alphas[TIMES] / (1 - alphas[TIMES])
    if kind == "epsilon":
        # min(SNR, 5)/SNR, and its limit where there is no signal.
        expected = np.where(snr <= 5, 1, 5 / np.maximum(snr, 1e-9))
    else:
        expected = np.minimum(snr, 5) / (snr + 1)
    if schedule == "zero terminal SNR":
        assert snr[-1] == 0 and expected[-1] == (kind == "epsilon")
    got = process(schedule, kind).weights(torch.from_numpy(TIMES), 5.0)
    torch.testing.assert_close(got.double().numpy(), expected, rtol=1e-3, atol=1e-7)


def test_no_gamma_weighs_all_steps_alike():
    got = process("linear", "epsilon").weights(torch.from_numpy(TIMES), None)
    assert torch.equal(got, torch.ones(len(TIMES)))


# --- learned variance -------------------------------------------------------------------


@every_bound
def test_the_variational_term(schedule, kind):
    truth = Truth(schedule, kind)
    widths, batch = some_widths(truth), truth.batch()
    got = process(schedule, kind).variational_bound(
        torch.from_numpy(truth.predicted).float(),
        torch.from_numpy(widths),
        batch.clean,
        batch.noisy,
        batch.t,
    )
    torch.testing.assert_close(got.double().numpy(), truth.bound(widths), rtol=1e-3, atol=1e-7)


@every_bound
def test_the_true_posterior_costs_nothing_after_the_first_step(schedule, kind):
    truth = Truth(schedule, kind, error=0, times=TIMES[1:])
    batch = truth.batch()
    exact = torch.from_numpy(truth.predicted).float()
    bound, narrowest = process(schedule, kind).variational_bound, -torch.ones_like(exact)
    found = bound(exact, narrowest, batch.clean, batch.noisy, batch.t)
    torch.testing.assert_close(found, torch.zeros(len(found)), atol=1e-5, rtol=0)
    wider = bound(exact, narrowest + 1, batch.clean, batch.noisy, batch.t)
    assert wider[0] > 0.01


@pytest.mark.parametrize("width", [-1.0, -0.4, 0.0, 0.7, 1.0])
@every_schedule
def test_widths_are_diffusers_learned_range(schedule, width):
    truth = Truth(schedule, "v_prediction", error=0, times=TIMES[1:])
    batch, exact = truth.batch(), torch.from_numpy(truth.predicted).float()
    learned = process(schedule, "v_prediction", variance_type="learned_range")
    widths = torch.full_like(exact, width)
    got = learned.variational_bound(exact, widths, batch.clean, batch.noisy, batch.t)
    # Equal means: what is left is the divergence of the two variances.
    log = [
        learned.scheduler._get_variance(t, predicted_variance=torch.tensor(width))
        for t in truth.times
    ]
    spread = torch.stack(log).double().exp().sqrt()
    narrow = torch.from_numpy(truth.narrowest.ravel()).sqrt()
    normals = (torch.distributions.Normal(0.0, s) for s in (narrow, spread))
    expected = torch.distributions.kl_divergence(*normals) / np.log(2)
    torch.testing.assert_close(got.double(), expected, rtol=2e-3, atol=1e-5)


@every_kind
def test_the_loss_is_the_weighted_error_plus_the_bound(kind):
    truth = Truth("scaled linear", kind)
    widths, batch = some_widths(truth), truth.batch(weight=0.3)
    predicted = np.concatenate([truth.predicted, widths], axis=1)
    got = batch.losses(process("scaled linear", kind), torch.from_numpy(predicted).float())
    error = np.square(truth.predicted - truth.wanted).mean((1, 2, 3))
    expected = 0.3 * error + truth.bound(widths)
    torch.testing.assert_close(got.double().numpy(), expected, rtol=1e-3, atol=1e-7)


@every_kind
def test_without_widths_the_loss_is_the_weighted_error(kind):
    truth = Truth("scaled linear", kind)
    predicted = torch.from_numpy(truth.predicted).float()
    got = truth.batch(weight=0.3).losses(process("scaled linear", kind), predicted)
    expected = 0.3 * np.square(truth.predicted - truth.wanted).mean((1, 2, 3))
    torch.testing.assert_close(got.double().numpy(), expected, rtol=1e-4, atol=0)


@every_kind
def test_the_bound_trains_the_widths_alone(kind):
    truth = Truth("scaled linear", kind)
    predicted = np.concatenate([truth.predicted, some_widths(truth)], axis=1)
    predicted = torch.from_numpy(predicted).float().requires_grad_()
    batch = truth.batch(weight=0.0)
    batch.losses(process("scaled linear", kind), predicted).sum().backward()
    of_mean, of_widths = predicted.grad.chunk(2, dim=1)
    assert (of_mean == 0).all()
    # At the last steps both ends of the range of variances are all but one.
    assert (of_widths.abs().amax((1, 2, 3)) > 0).all() and of_widths.isfinite().all()


def test_noise_prediction_from_noise_alone_has_no_bound():
    truth = Truth("zero terminal SNR", "epsilon", times=TIMES[:-1])
    predicted = torch.from_numpy(np.concatenate([truth.predicted, truth.predicted], axis=1))
    without = process("zero terminal SNR", "epsilon")
    with pytest.raises(UserError, match="prediction_type: 'epsilon'.* allowed: v_prediction"):
        truth.batch().losses(without, predicted.float())


# --- label dropout ----------------------------------------------------------------------

CLASSES = 3


def labelled() -> PreparedTask:
    """Ten images of three classes; row 0 of the conditions is no class."""
    g = torch.Generator().manual_seed(1)
    return PreparedTask(
        mean=torch.randn(10, 4, 8, 8, generator=g),
        std=torch.rand(10, 4, 8, 8, generator=g),
        captions=torch.arange(10) % CLASSES + 1,
        groups=[[i] for i in range(10)],
        conditions={"labels": torch.tensor([CLASSES, 2, 0, 1])},
        prompts=[1],
    )


def batches(rate: float, count: int = 100) -> list[training.Batch]:
    settings = tiny.SETTINGS | {"caption_dropout": rate, "batch_size": 10}
    return [
        training.make_batch(labelled(), tiny.process(), 0.5, settings, 0, i) for i in range(count)
    ]


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_labels_are_dropped_at_the_rate(rate):
    dropped = torch.cat([b.conditions["labels"] == CLASSES for b in batches(rate)]).float()
    assert dropped.numel() == 1000
    # Four standard deviations of a share of 1000; none at the ends.
    assert abs(dropped.mean().item() - rate) <= 4 * (rate * (1 - rate) / 1000) ** 0.5


def test_dropping_a_label_changes_nothing_else():
    for kept, some in zip(batches(0.0, 5), batches(0.3, 5), strict=True):
        assert torch.equal(kept.noisy, some.noisy) and torch.equal(kept.t, some.t)
        stays = some.conditions["labels"] != CLASSES
        assert torch.equal(kept.conditions["labels"][stays], some.conditions["labels"][stays])


def test_no_label_is_dropped_inside_the_model(tmp_path):
    def losses(seed):
        torch.manual_seed(seed)
        model = tiny.tiny_dit(classes=CLASSES)
        attachment = methods.attach(model, "full", {}, 0)
        torch.manual_seed(seed)  # building the model seeded it
        modes = []

        def look(_):
            modes.extend(module.training for module in model.modules())

        result = training.fit(
            model, attachment.trainable, labelled(), tiny.process(), 0.5,
            tiny.SETTINGS | {"batch_size": 16, "steps": 3}, 0, tmp_path / f"{seed}.safetensors",
            on_step=look,
        )  # fmt: skip
        assert modes and not any(modes)
        return result.losses

    assert losses(1) == losses(2)


def test_in_training_mode_each_block_would_drop_labels_of_its_own():
    model, batch = tiny.tiny_dit(classes=CLASSES).train(), batches(0.0, 1)[0]
    inputs = [torch.cat([x] * 10) for x in (batch.noisy, batch.t, batch.conditions["labels"])]
    outputs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        outputs.append(model(*inputs).sample)
    assert not torch.equal(*outputs)
