"""docs/theory.md: its closed forms against what gradient descent finds, and its numbers."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs"
_found = importlib.util.spec_from_file_location("theory", DOCS / "theory.py")
theory = importlib.util.module_from_spec(_found)
_found.loader.exec_module(theory)

SOURCE = np.diag(theory.VARIANCES)
TARGETS = theory.targets()
LEVEL = 0.3


def descended(cov, change, parameters):
    """The smallest excess loss that L-BFGS finds of a changed base, from given start values."""
    c, goal, base = (
        torch.from_numpy(m)
        for m in (
            theory.noisy(cov, LEVEL), theory.denoiser(cov, LEVEL), theory.denoiser(SOURCE, LEVEL),
        )
    )  # fmt: skip
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=3000, tolerance_grad=1e-12, tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss():
        optimizer.zero_grad()
        gap = change(base) - goal
        found = torch.trace(gap @ c @ gap.T)
        found.backward()
        return found

    optimizer.step(loss)
    return loss().item()


def drawn(*shape):
    g = torch.Generator().manual_seed(0)
    return (0.1 * torch.randn(*shape, dtype=torch.float64, generator=g)).requires_grad_()


@pytest.mark.parametrize("name", TARGETS)
def test_closed_forms_are_what_descent_finds(name):
    cov, base = TARGETS[name], theory.denoiser(SOURCE, LEVEL)
    whole = theory.excess(base, cov, LEVEL)
    gamma = torch.ones(theory.DIM, 1, dtype=torch.float64, requires_grad=True)
    found = descended(cov, lambda w: gamma * w, [gamma])
    expected = theory.excess(theory.best_gamma(base, cov, LEVEL), cov, LEVEL)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6 * whole)
    for rank in (1, 2, 4):
        a, b = drawn(rank, theory.DIM), drawn(theory.DIM, rank)
        found = descended(cov, lambda w, a=a, b=b: w + b @ a, [a, b])
        expected = theory.excess(theory.best_lora(base, cov, LEVEL, rank), cov, LEVEL)
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5 * whole)


def test_the_denoiser_is_the_regression_of_noise_on_noisy_data():
    rng = np.random.default_rng(0)
    cov = theory.rotated(SOURCE, 0.7, 2)
    clean = rng.standard_normal((400_000, theory.DIM)) @ np.linalg.cholesky(cov).T
    noise = rng.standard_normal(clean.shape)
    x = np.sqrt(1 - LEVEL) * clean + np.sqrt(LEVEL) * noise
    found = np.linalg.lstsq(x, noise, rcond=None)[0].T
    assert found == pytest.approx(theory.denoiser(cov, LEVEL), abs=0.02)


def test_gamma_fits_rescaled_axes_and_no_rotation():
    rescaled, plane, planes = (theory.left_over(c, theory.best_gamma) for c in TARGETS.values())
    assert rescaled.max() < 1e-12
    change = theory.denoiser(next(iter(TARGETS.values())), LEVEL) - theory.denoiser(SOURCE, LEVEL)
    assert np.linalg.matrix_rank(change) == theory.DIM  # what LoRA would need
    assert plane.min() > 0.3
    assert planes.min() > 0.3


@pytest.mark.parametrize(("planes", "rank"), [(1, 2), (2, 4), (3, 6)])
def test_lora_fits_a_rotation_exactly_from_the_rank_of_its_change(planes, rank):
    cov = theory.rotated(SOURCE, np.pi / 6, planes)
    change = theory.denoiser(cov, LEVEL) - theory.denoiser(SOURCE, LEVEL)
    assert np.linalg.matrix_rank(change, tol=1e-9) == rank
    left = {
        r: theory.left_over(cov, lambda b, c, s2, r=r: theory.best_lora(b, c, s2, r)).max()
        for r in (rank - 1, rank)
    }
    assert left[rank] < 1e-12
    assert left[rank - 1] > 1e-3


def test_the_harm_of_a_small_shift_of_time_grows_with_its_square():
    for s2 in (0.1, 0.3, 0.5):
        ratio = theory.shifted(s2, 2e-4) / theory.shifted(s2, 1e-4)
        assert ratio == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.5])
def test_a_change_of_contrast_is_a_shift_of_time_and_a_factor(factor):
    a2, s2 = 1 - LEVEL, LEVEL
    size = a2 * factor**2 + s2
    found = theory.denoiser(SOURCE, s2 / size) / np.sqrt(size)
    assert theory.denoiser(factor**2 * SOURCE, s2) == pytest.approx(found, rel=1e-12)


def rows(header):
    lines = (DOCS / "theory.md").read_text(encoding="utf-8").split(header)[1].splitlines()[2:]
    table = lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_numbers_on_the_page():
    fitted = rows("| target | γ | rank 1 | rank 2 | rank 4 | rank 6 |")
    assert [row[0] for row in fitted] == list(TARGETS)
    for name, *cells in fitted:
        for cell, fit in zip(cells, theory.fits().values(), strict=True):
            left = 100 * theory.left_over(TARGETS[name], fit).clip(0).mean()
            assert float(cell.removesuffix("%")) == pytest.approx(left, abs=0.06)
    for s2, *cells in rows("| s² | 0.01 | 0.02 | 0.04 |"):
        for cell, shift in zip(cells, (0.01, 0.02, 0.04), strict=True):
            assert float(cell) == pytest.approx(theory.shifted(float(s2), shift), rel=0.06)
    images = re.findall(r"\((images/theory-\w+\.png)\)", (DOCS / "theory.md").read_text("utf-8"))
    assert images
    assert all((DOCS / image).is_file() for image in images)
