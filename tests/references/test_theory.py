"""docs/theory.md: its closed forms against regression, descent and a solver, and its numbers."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

DOCS = Path(__file__).parents[2] / "docs"
_found = importlib.util.spec_from_file_location("theory", DOCS / "theory.py")
theory = importlib.util.module_from_spec(_found)
_found.loader.exec_module(theory)

TARGETS, FITS, SOURCE = theory.TARGETS, theory.FITS, theory.SOURCE
TABLES = theory.tables()
LEVEL = 0.3
RESCALED, PLANE, PLANES, MOVED = TARGETS
# A domain with nothing special: turned, rescaled and moved, from a mean that is not zero.
ANY = theory.turned(
    theory.rescaled(
        theory.Data(SOURCE.cov, np.linspace(-0.4, 0.6, theory.DIM)), np.linspace(1.2, 0.7, 8)
    ),
    0.7,
    2,
)


def left(fit, data, s2=LEVEL, **told):
    return theory.left(FITS[fit], theory.levels(data, [s2], **told))


# --- the best denoiser --------------------------------------------------------------------


def test_the_denoiser_is_the_regression_on_noisy_data():
    rng = np.random.default_rng(0)
    white = rng.standard_normal((400_000, theory.DIM))
    clean = ANY.mean + white @ np.linalg.cholesky(ANY.cov).T
    noise = rng.standard_normal(clean.shape)
    a, s = np.sqrt(1 - LEVEL), np.sqrt(LEVEL)
    x = np.column_stack([a * clean + s * noise, np.ones(len(clean))])
    for predicted, target in (("noise", noise), ("velocity", a * noise - s * clean)):
        found, rest = np.linalg.lstsq(x, target, rcond=None)[:2]
        best = theory.denoiser(ANY, LEVEL, predicted)
        assert np.abs(found.T - best).max() < 0.02
        assert x.T @ x / len(x) == pytest.approx(theory.moment(ANY, LEVEL), abs=0.02)
        # The excess loss of another map is its loss less the smallest, on the same samples.
        other = best + 0.1 * np.cos(np.arange(best.size)).reshape(best.shape)
        loss = ((x @ other.T - target) ** 2).sum(1).mean() - rest.sum() / len(x)
        (at,) = theory.levels(ANY, [LEVEL], predicted)
        assert at.excess(other) == pytest.approx(loss, rel=0.02)


def test_excess_of_the_velocity_is_that_of_the_noise_over_a2():
    (noise,), (velocity,) = (theory.levels(ANY, [LEVEL], p) for p in ("noise", "velocity"))
    expected = noise.excess(noise.base) / (1 - LEVEL)
    assert velocity.excess(velocity.base) == pytest.approx(expected, rel=1e-12)
    for fit in ("biases", "rank 1", "rank 4"):
        assert left(fit, ANY, predicted="velocity") == pytest.approx(left(fit, ANY), rel=1e-9)


# --- what methods leave -------------------------------------------------------------------


def drawn(*shape):
    g = torch.Generator().manual_seed(0)
    return (0.1 * torch.randn(*shape, dtype=torch.float64, generator=g)).requires_grad_()


def started(fit):
    """A method's parameters before training, and what it makes of a base's [W, b]."""
    d = theory.DIM
    shift, gamma = (
        torch.full((d, 1), value, dtype=torch.float64, requires_grad=True) for value in (0.0, 1.0)
    )
    last = torch.eye(d + 1, dtype=torch.float64)[-1:]
    if fit == "biases":
        return [shift], lambda w: w + shift * last
    if fit == "γ":
        return [gamma], lambda w: gamma * w
    if fit == "γ, biases":
        return [gamma, shift], lambda w: gamma * w + shift * last
    rank = int(fit.split()[1])
    a, b = drawn(rank, d), drawn(d, rank)
    return [a, b], lambda w: w + torch.nn.functional.pad(b @ a, (0, 1))


def descended(fit, given):
    """The share of the base's excess loss that L-BFGS leaves."""
    parameters, change = started(fit)
    at = [[torch.from_numpy(m) for m in level] for level in given]
    whole = sum(level.excess(level.base) for level in given)
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=4000, tolerance_grad=1e-13, tolerance_change=1e-17,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss():
        optimizer.zero_grad()
        gaps = [(change(base) - goal, moment) for base, goal, moment in at]
        found = sum(torch.trace(gap @ moment @ gap.T) for gap, moment in gaps) / whole
        found.backward()
        return found

    optimizer.step(loss)
    return loss().item()


@pytest.mark.parametrize("fit", ["biases", "γ", "γ, biases", "rank 1", "rank 4"])
@pytest.mark.parametrize("shares", [(LEVEL,), (0.1, 0.5, 0.9)], ids=["one level", "three levels"])
@pytest.mark.parametrize("data", [*TARGETS.values(), ANY], ids=[*TARGETS, "any"])
def test_the_best_fit_is_what_descent_finds(data, shares, fit):
    given = theory.levels(data, shares)
    found = descended(fit, given)
    assert theory.left(FITS[fit], given) == pytest.approx(found, rel=1e-3, abs=1e-5)


def test_biases_fit_a_mean_and_nothing_else_does():
    c, mean = theory.noisy(TARGETS[MOVED], LEVEL), np.sqrt(1 - LEVEL) * TARGETS[MOVED].mean
    assert left("biases", TARGETS[MOVED]) < 1e-12
    for rank in ("rank 1", "rank 2", "rank 8"):
        expected = 1 / (1 + mean @ np.linalg.solve(c, mean))
        assert left(rank, TARGETS[MOVED]) == pytest.approx(expected, rel=1e-9)
    spread = np.diag(c)
    own, kept = mean**2 / spread**2, mean**2 / spread**2 / (1 + mean**2 / spread)
    assert left("γ", TARGETS[MOVED]) == pytest.approx(kept.sum() / own.sum(), rel=1e-9)


def test_gamma_fits_rescaled_axes_and_lora_drops_the_smallest_of_them():
    assert theory.left_alone(FITS["γ"], theory.levels(TARGETS[RESCALED])).max() < 1e-12
    for s2 in (0.1, LEVEL, 0.9):
        c0, c1 = (np.diag(theory.noisy(d, s2)) for d in (SOURCE, TARGETS[RESCALED]))
        sizes = np.sort(s2 * (c1 - c0) ** 2 / (c0**2 * c1))[::-1]
        for rank in (1, 2, 4, 6, 8):
            expected = sizes[rank:].sum() / sizes.sum()
            assert left(f"rank {rank}", TARGETS[RESCALED], s2) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("degrees", [1, 30, 45, 80])
@pytest.mark.parametrize("s2", [0.05, 0.5, 0.95])
def test_one_turned_plane_has_closed_forms(degrees, s2):
    angle = np.radians(degrees)
    data = theory.turned(SOURCE, angle)
    gamma, one = theory.plane_left(angle, *np.diag(theory.noisy(SOURCE, s2))[:2])
    assert left("γ", data, s2) == pytest.approx(gamma, rel=1e-8)
    assert left("rank 1", data, s2) == pytest.approx(one, rel=1e-8)
    assert left("rank 2", data, s2) < 1e-9


def test_numbers_of_one_turned_plane():
    # c = 1 and 3: γ leaves (3/4) / (1 + (3/16)(4/3)) = 0.6, rank 1 leaves 1/4.
    assert theory.plane_left(np.pi / 6, 1, 3) == pytest.approx((0.6, 0.25))


@pytest.mark.parametrize(
    ("data", "rank"),
    [
        (theory.rescaled(SOURCE, np.array([2, 1, 1, 0.5, 1, 1, 1, 1.0])), 2),
        (TARGETS[RESCALED], 8),
        *((theory.turned(SOURCE, np.pi / 6, planes), 2 * planes) for planes in (1, 2, 3)),
    ],
)
def test_lora_is_exact_from_the_rank_of_the_change_of_the_covariance(data, rank):
    # The factors from 0.5 to 2 have no 1 among them.
    assert np.linalg.matrix_rank(data.cov - SOURCE.cov, tol=1e-9) == rank
    for s2 in theory.LEVELS:
        (at,) = given = theory.levels(data, [s2])
        assert np.linalg.matrix_rank((at.goal - at.base)[:, :-1], tol=1e-9) == rank
        assert theory.left(theory.lora(rank), given) < 1e-9
        assert theory.left(theory.lora(rank - 1), given) > 1e-4


def test_a_factor_does_not_move_an_output_that_is_zero():
    given = theory.levels(TARGETS[RESCALED], predicted="velocity")
    assert abs(given[0].base[0]).max() < 1e-12
    assert theory.left_alone(FITS["γ"], given).mean() == pytest.approx(0.72, abs=0.005)
    # Of the other axes nothing is left.
    rest = [at.excess(own) for at, own in zip(given, FITS["γ"](given[:1]), strict=False)]
    assert rest[0] == pytest.approx((given[0].goal[0] @ given[0].moment @ given[0].goal[0]).item())


# --- a wrong time step --------------------------------------------------------------------


@pytest.mark.parametrize("s2", [0.1, 0.3, 0.5, 0.9])
def test_the_harm_of_a_small_shift_is_its_expansion(s2):
    errors = [
        abs(theory.harm(s2, eta) / theory.harm_by_expansion(s2, eta) - 1) for eta in (2e-3, 1e-3)
    ]
    assert errors[1] < 5e-3  # what follows is of the next order
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.02)


def test_a_shift_is_one_of_the_ratio_of_noise_to_signal():
    told = theory.shifted(LEVEL, np.log(3))
    assert np.sqrt(told / (1 - told)) == pytest.approx(3 * np.sqrt(LEVEL / (1 - LEVEL)))
    t, shift = 0.4, 3.0  # flow matching's: t -> shift·t/(1 + (shift - 1)·t)
    at = shift * t / (1 + (shift - 1) * t)
    assert at / (1 - at) == pytest.approx(shift * t / (1 - t))


def test_samples_change_by_the_first_order_of_a_shift():
    variances = np.array([1 / 128, 1 / 8, 0.2032, 1, 3])
    found = theory.drift(variances, 1e-4) / 1e-4
    expected = theory.drift_by_expansion(variances)
    assert expected == pytest.approx([2.8902, 0.3765, 0, -1, -1.4507], abs=1e-3)
    assert found == pytest.approx(expected, abs=1e-2)
    assert theory.drift(variances, 0) == pytest.approx(np.zeros(5), abs=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.04])
def test_variances_of_samples_are_those_of_the_flow(eta):
    """dy/dσ = ε̂ by another solver, with the module's own denoiser; at 0 the data come back."""
    variances = np.array([1 / 8, 1.0])
    data = theory.Data(np.diag(variances), np.zeros(2))

    def flow(log_sigma, y):
        sigma = np.exp(log_sigma)
        s2 = sigma**2 / (1 + sigma**2)
        told = theory.denoiser(data, theory.shifted(s2, eta))
        return sigma * told[:, :-1] @ (y * np.sqrt(1 - s2))

    start = np.sqrt(variances + 1e6)
    span = (np.log(1e3), np.log(1e-3))
    y = solve_ivp(flow, span, start, rtol=1e-9, atol=1e-12).y[:, -1]
    assert theory.sampled(variances, eta) == pytest.approx(y**2, rel=3e-3)
    if eta == 0:
        assert y**2 == pytest.approx(variances, rel=1e-4)


@pytest.mark.parametrize("eta", [-0.5, 0.04, 1])
def test_gamma_takes_a_shift_of_one_level_out(eta):
    assert left("γ", SOURCE, told=eta) < 1e-12


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.5])
def test_a_change_of_contrast_is_a_shift_of_time_and_a_factor(factor):
    a2, s2 = 1 - LEVEL, LEVEL
    size = a2 * factor**2 + s2
    found = theory.denoiser(SOURCE, s2 / size) / np.sqrt(size)
    changed = theory.rescaled(SOURCE, np.full(theory.DIM, factor))
    assert theory.denoiser(changed, s2) == pytest.approx(found, rel=1e-12, abs=1e-15)


# --- the page -----------------------------------------------------------------------------


def rows(first):
    text = (DOCS / "theory.md").read_text(encoding="utf-8")
    lines = text.split(f"| {first} |")[1].splitlines()[2:]
    table = lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


@pytest.mark.parametrize("first", TABLES)
def test_the_numbers_on_the_page_are_the_modules(first):
    assert rows(first) == TABLES[first]


def test_the_figures_are_what_the_script_draws():
    shown = re.findall(r"\(images/(theory-\S+)\)", (DOCS / "theory.md").read_text("utf-8"))
    drawn = theory.figures()
    assert sorted(shown) == sorted(drawn)
    for name, svg in drawn.items():
        assert (DOCS / "images" / name).read_text(encoding="utf-8") == svg, "run docs/theory.py"
