"""docs/theory.md: its closed forms against samples, gradient descent and plain algebra."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"
sys.path.insert(0, str(DOCS))
import theory  # noqa: E402

BASE, ZERO, T = np.diag(theory.SPREADS), np.zeros(3), theory.TIME
WEIGHTS, _ = theory.optimal(BASE, ZERO, T)
DOMAINS = theory.targets()


def test_the_page_has_the_table_that_the_script_computes():
    page = (DOCS / "theory.md").read_text(encoding="utf-8")
    shown = page.partition(theory.BEGIN)[2].partition(theory.END)[0].strip()
    assert shown == theory.table()


@pytest.mark.parametrize("name", DOMAINS)
def test_the_best_denoiser_is_the_regression_of_the_noise_on_what_is_seen(name):
    cov, mean = DOMAINS[name]
    draw, (alpha, sigma) = np.random.default_rng(0), theory.schedule(T)
    noise = draw.standard_normal((400_000, 3))
    x = alpha * draw.multivariate_normal(mean, cov, 400_000) + sigma * noise
    seen = np.column_stack([x, np.ones(len(x))])
    fitted = np.linalg.lstsq(seen, noise, rcond=None)[0].T
    weights, bias = theory.optimal(cov, mean, T)
    assert np.abs(fitted[:, :3] - weights).max() < 0.01
    assert np.abs(fitted[:, 3] - bias).max() < 0.01


@pytest.mark.parametrize("fit", theory.FITS)
def test_the_excess_error_is_that_of_samples(fit):
    cov, mean = DOMAINS["rescaled, rotated and moved"]
    weights, bias = theory.FITS[fit](WEIGHTS, cov, mean, T)
    best, shift = theory.optimal(cov, mean, T)
    draw, (alpha, sigma) = np.random.default_rng(1), theory.schedule(T)
    noise = draw.standard_normal((400_000, 3))
    x = alpha * draw.multivariate_normal(mean, cov, 400_000) + sigma * noise
    errors = [((x @ w.T + b - noise) ** 2).mean() for w, b in ((weights, bias), (best, shift))]
    found = theory.excess(weights, bias, cov, mean, T)
    assert errors[0] - errors[1] == pytest.approx(found, abs=4e-3)


def descended(name: str, make, steps: int = 4000) -> float:
    """The excess error that gradient descent reaches on the exact expected loss."""
    cov, mean = (torch.tensor(a) for a in DOMAINS[name])
    best, shift = map(torch.tensor, theory.optimal(cov.numpy(), mean.numpy(), T))
    spread, alpha = torch.tensor(theory.noised(cov.numpy(), T)), theory.schedule(T)[0]
    parameters, weights = make(torch.tensor(WEIGHTS))
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    least = {"tolerance_grad": 1e-12, "tolerance_change": 1e-16, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS([*parameters, bias], max_iter=steps, **least)

    def loss():
        off = weights() - best
        constant = off @ (alpha * mean) + bias - shift
        return (torch.trace(off @ spread @ off.T) + constant @ constant) / 3

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    return loss().item()


def gamma(weights):
    factors = torch.ones(3, dtype=torch.float64, requires_grad=True)
    return [factors], lambda: factors[:, None] * weights


def lora(rank: int):
    def make(weights):
        draw = torch.Generator().manual_seed(0)
        shape = {"generator": draw, "dtype": torch.float64, "requires_grad": True}
        down, up = torch.randn(rank, 3, **shape), torch.randn(3, rank, **shape)
        return [down, up], lambda: weights + up @ down

    return make


TRAINED = {"gamma and biases": gamma, "LoRA, rank 1": lora(1), "LoRA, rank 2": lora(2)}


@pytest.mark.parametrize("name", DOMAINS)
@pytest.mark.parametrize("fit", TRAINED)
def test_training_reaches_what_is_said_to_be_the_best(name, fit):
    assert descended(name, TRAINED[fit]) == pytest.approx(theory.errors()[name][fit], abs=1e-6)


def test_gamma_fits_rescaled_axes_exactly_and_a_rotation_never():
    found = theory.errors()
    assert found["each axis rescaled"]["gamma and biases"] < 1e-20
    assert found["rotated by 30° in a plane"]["gamma and biases"] > 0.01
    for angle in (1, 20, 45, 89):
        turn = theory.rotation(math.radians(angle))
        cov = turn @ BASE @ turn.T
        assert theory.excess(*theory.scaled(WEIGHTS, cov, ZERO, T), cov, ZERO, T) > 0
        assert theory.excess(*theory.low_rank(WEIGHTS, cov, ZERO, T, 2), cov, ZERO, T) < 1e-20


def test_gamma_of_rescaled_axes_is_the_formula_of_the_page():
    alpha, sigma = theory.schedule(T)
    cov, _ = DOMAINS["each axis rescaled"]
    weights, _ = theory.scaled(WEIGHTS, cov, ZERO, T)
    expected = (alpha**2 * theory.SPREADS + sigma**2) / (alpha**2 * np.diag(cov) + sigma**2)
    assert np.diag(weights) / np.diag(WEIGHTS) == pytest.approx(expected)


def test_the_change_of_a_rotation_in_a_plane_has_rank_two():
    cov, _ = DOMAINS["rotated by 30° in a plane"]
    change = theory.optimal(cov, ZERO, T)[0] - WEIGHTS
    assert np.linalg.matrix_rank(change, tol=1e-12) == 2


@pytest.mark.parametrize("factor", [0.5, 1.5, 3.0])
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_data_of_another_size_is_the_bases_at_another_time(factor, t):
    there, size = theory.shifted_time(t, factor)
    ours, _ = theory.optimal(factor**2 * BASE, ZERO, t)
    of_base, _ = theory.optimal(BASE, ZERO, there)
    assert ours == pytest.approx(of_base / size)
    assert math.tan(math.pi * there / 2) == pytest.approx(math.tan(math.pi * t / 2) / factor)


def test_small_changes_of_size_are_small_shifts_of_time():
    for t in (0.2, 0.5, 0.8):
        there, _ = theory.shifted_time(t, 1 + 1e-5)
        assert (there - t) / 1e-5 == pytest.approx(-math.sin(math.pi * t) / math.pi, rel=1e-3)


def test_one_gamma_follows_time_in_part():
    times = np.linspace(0.02, 0.98, 49)
    found = {name: np.array(line) for name, line in theory.over_time(1.5, times).items()}
    base, common = found["untouched base"], found["one gamma for all times"]
    assert found["a gamma for each time"].max() < 1e-20
    assert found["gamma of time 0.5"][24] < 1e-20
    assert found["gamma of time 0.5"].max() > base.max()
    assert 0 < common.mean() < 0.5 * base.mean()
