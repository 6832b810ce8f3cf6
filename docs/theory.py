"""What biases, γ and LoRA can fit where the best denoiser is known: all numbers of theory.md.

    python docs/theory.py

It prints the page's tables and draws its figures. Data are Gaussian with mean μ and covariance Σ. A
noisy input is x = a·x₀ + s·ε with a² + s² = 1; its covariance is C = a²Σ + s²I. The best prediction
of ε, or of the velocity a·ε - s·x₀, is W·x + b. It is written as one matrix [W, b] that acts on
(x, 1), and (x, 1) has the second moment M. The loss of another matrix V is higher by
tr((V - [W, b])·M·(V - [W, b])ᵀ): the mean over x, the sum over coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

HERE = Path(__file__).parent
DIM = 8
VARIANCES = 2.0 ** -np.arange(DIM)  # of the source's axes: 1 to 1/128
LEVELS = np.linspace(0.05, 0.95, 19)  # s², the share of noise
SHIFTS = (0.01, 0.02, 0.04)  # log of the factor on s/a that is told


class Data(NamedTuple):
    """A Gaussian domain: its covariance (d, d) and its mean (d,)."""

    cov: np.ndarray
    mean: np.ndarray


class Level(NamedTuple):
    """One noise level of a target: the base's [W, b], the target's, and M, on the target's data."""

    base: np.ndarray
    goal: np.ndarray
    moment: np.ndarray

    def excess(self, own: np.ndarray) -> float:
        """Loss of a matrix [W, b] above the smallest one."""
        gap = own - self.goal
        return float(np.trace(gap @ self.moment @ gap.T))


Fit = Callable[[list[Level]], list[np.ndarray]]

SOURCE = Data(np.diag(VARIANCES), np.zeros(DIM))


def noisy(data: Data, s2: float) -> np.ndarray:
    """C: the covariance of the noisy input, (d, d)."""
    return (1 - s2) * data.cov + s2 * np.eye(len(data.cov))


def moment(data: Data, s2: float) -> np.ndarray:
    """M: the second moment of (x, 1), (d + 1, d + 1)."""
    mean = np.append(np.sqrt(1 - s2) * data.mean, 1)
    found = np.outer(mean, mean)
    found[:-1, :-1] += noisy(data, s2)
    return found


def denoiser(data: Data, s2: float, predicted: str = "noise") -> np.ndarray:
    """[W, b]: the best prediction of the noise or of the velocity, (d, d + 1)."""
    a, s = np.sqrt(1 - s2), np.sqrt(s2)
    of_clean, of_noise = {"noise": (0, 1), "velocity": (-s, a)}[predicted]
    eye = np.eye(len(data.cov))
    matrix = (of_clean * a * data.cov + of_noise * s * eye) @ np.linalg.inv(noisy(data, s2))
    return np.column_stack([matrix, of_clean * data.mean - matrix @ (a * data.mean)])


def levels(
    data: Data, shares: Iterable[float] = LEVELS, predicted: str = "noise", told: float = 0
) -> list[Level]:
    """The source's denoiser before a target, at each level; ``told``: :func:`shifted`'s eta."""
    return [
        Level(
            denoiser(SOURCE, shifted(s2, told), predicted),
            denoiser(data, s2, predicted),
            moment(data, s2),
        )
        for s2 in shares
    ]


# --- what methods can fit: one change for all the levels that are given --------------------


def untouched(given: list[Level]) -> list[np.ndarray]:
    """The base itself."""
    return [level.base for level in given]


def biases(given: list[Level]) -> list[np.ndarray]:
    """The best shift of the outputs (BitFit)."""
    shift = np.mean([(at.goal - at.base) @ at.moment[:, -1] for at in given], axis=0)
    return [_plus(at.base, bias=shift) for at in given]


def factors(given: list[Level]) -> list[np.ndarray]:
    """The best factor on each output: γ alone."""
    ours = sum(np.einsum("ij,jk,ik->i", at.base, at.moment, at.base) for at in given)
    theirs = sum(np.einsum("ij,jk,ik->i", at.base, at.moment, at.goal) for at in given)
    gamma = np.divide(theirs, ours, out=np.ones(len(ours)), where=ours > 0)
    return [gamma[:, None] * at.base for at in given]


def factors_and_biases(given: list[Level]) -> list[np.ndarray]:
    """The best factor on each output and its shift (DiffFit): a regression for each output."""
    one = np.eye(given[0].moment.shape[0])[-1]
    fitted = [at.base.copy() for at in given]
    for i in range(len(given[0].base)):
        pairs = [np.stack([at.base[i], one]) for at in given]
        square = sum(p @ at.moment @ p.T for p, at in zip(pairs, given, strict=True))
        cross = sum(p @ at.moment @ at.goal[i] for p, at in zip(pairs, given, strict=True))
        found = np.linalg.lstsq(square, cross, rcond=1e-12)[0]
        for own, pair in zip(fitted, pairs, strict=True):
            own[i] = found @ pair
    return fitted


def lora(rank: int) -> Fit:
    """The best W + B·A of this rank: Eckart and Young, in coordinates where inputs are white."""

    def fit(given: list[Level]) -> list[np.ndarray]:
        square = sum(at.moment[:-1, :-1] for at in given)
        cross = sum((at.goal - at.base) @ at.moment[:, :-1] for at in given)
        values, vectors = np.linalg.eigh(square)
        white = vectors * np.sqrt(values)  # square = white·whiteᵀ
        u, sizes, v = np.linalg.svd(cross @ np.linalg.inv(white).T)
        change = (u[:, :rank] * sizes[:rank]) @ v[:rank] @ np.linalg.inv(white)
        return [_plus(at.base, matrix=change) for at in given]

    return fit


def _plus(base: np.ndarray, matrix: np.ndarray | float = 0, bias: np.ndarray | float = 0):
    changed = base.copy()
    changed[:, :-1] += matrix
    changed[:, -1] += bias
    return changed


FITS: dict[str, Fit] = {
    "biases": biases,
    "γ": factors,
    "γ, biases": factors_and_biases,
    **{f"rank {rank}": lora(rank) for rank in (1, 2, 4, 6, 8)},
}


def left(fit: Fit, given: list[Level]) -> float:
    """The share of the untouched base's excess loss that one fit for all the levels leaves."""
    fitted = sum(at.excess(own) for at, own in zip(given, fit(given), strict=True))
    return max(fitted, 0) / sum(at.excess(at.base) for at in given)


def left_alone(fit: Fit, given: list[Level]) -> np.ndarray:
    """The same where every level has a fit of its own: one share for each level."""
    return np.array([left(fit, [at]) for at in given])


# --- targets ------------------------------------------------------------------------------


def rescaled(data: Data, by: np.ndarray) -> Data:
    """Data whose axes are multiplied by factors, (d,)."""
    return Data(by[:, None] * data.cov * by, by * data.mean)


def turned(data: Data, angle: float, planes: int = 1) -> Data:
    """Data turned by an angle (radian) in so many planes of two axes each."""
    turn = np.eye(len(data.cov))
    for i in range(0, 2 * planes, 2):
        turn[i : i + 2, i : i + 2] = [
            [np.cos(angle), -np.sin(angle)],
            [np.sin(angle), np.cos(angle)],
        ]
    return Data(turn @ data.cov @ turn.T, turn @ data.mean)


def moved(data: Data, by: float) -> Data:
    """Data whose mean moves by so many standard deviations on every axis."""
    return Data(data.cov, data.mean + by * np.sqrt(np.diag(data.cov)))


TARGETS = {
    "axes rescaled by 0.5 to 2": rescaled(SOURCE, np.linspace(0.5, 2, DIM)),
    "one plane turned by 30°": turned(SOURCE, np.pi / 6),
    "three planes turned by 30°": turned(SOURCE, np.pi / 6, 3),
    "mean moved by one deviation": moved(SOURCE, 1),
}


def plane_left(angle: float, c1: float, c2: float) -> tuple[float, float]:
    """What γ and a change of rank 1 leave of one turned plane, whose axes have C's c₁ and c₂."""
    mixed = np.sin(angle) ** 2 * np.cos(angle) ** 2 * (c1 - c2) ** 2 / (c1 * c2)
    return np.cos(angle) ** 2 / (1 + mixed), min(c1, c2) / (c1 + c2)


# --- a wrong time step --------------------------------------------------------------------


def shifted(s2: float, eta: float) -> float:
    """The share of noise at which the ratio s/a is e^η times that at ``s2``."""
    ratio = np.exp(2 * eta) * s2 / (1 - s2)
    return ratio / (1 + ratio)


def harm(s2: float, eta: float) -> float:
    """Excess loss of the source's denoiser that is told a ratio s/a too large by e^η, as a share of
    what it explains (the excess loss of predicting nothing)."""
    (at,) = levels(SOURCE, [s2], told=eta)
    return at.excess(at.base) / at.excess(0 * at.base)


def harm_by_expansion(s2: float, eta: float) -> float:
    """The same to the lowest order: η²·s²a⁴·Σ(λ(1 + s²) - s²)²/c³ over s²·Σ1/c."""
    c = np.diag(noisy(SOURCE, s2))
    slope = ((VARIANCES * (1 + s2) - s2) ** 2 / c**3).sum()
    return float(eta**2 * s2 * (1 - s2) ** 2 * slope / (s2 / c).sum())


def sampled(variances: np.ndarray, eta: float, steps: int = 4000, most: float = 1e3) -> np.ndarray:
    """Variances of samples by DDIM with that wrong denoiser, from s/a = ``most`` to 1/``most``.

    Each axis is multiplied by a number in each step, so nothing has to be drawn.
    """
    ratios = np.geomspace(most, 1 / most, steps + 1)
    start = variances + ratios[0] ** 2  # of x/a
    told = np.exp(eta) * ratios[:-1]
    inputs = np.sqrt((1 + told**2) / (1 + ratios[:-1] ** 2))  # the input keeps its own length
    slopes = (inputs * told)[:, None] / (variances + told[:, None] ** 2)
    return start * (1 + np.diff(ratios)[:, None] * slopes).prod(axis=0) ** 2


def drift_by_expansion(variances: np.ndarray) -> np.ndarray:
    """d log(variance of samples)/dη at η = 0, with infinitely many steps: log(1/λ)/(1 - λ) - 2."""
    gap = 1 - variances
    return np.where(gap == 0, 1, -np.log(variances) / np.where(gap == 0, 1, gap)) - 2


def drift(variances: np.ndarray, eta: float) -> np.ndarray:
    """The relative change of these variances by a wrong time step, with as many solver steps."""
    return sampled(variances, eta) / sampled(variances, 0) - 1


# --- the page -----------------------------------------------------------------------------


def tables() -> dict[str, list[list[str]]]:
    """Every table of theory.md that is computed: the name of its first column -> its rows."""

    def fitted(share: Callable[[Fit, list[Level]], float]) -> list[list[str]]:
        return [
            [name, *(f"{100 * share(fit, levels(data)):.1f}%" for fit in FITS.values())]
            for name, data in TARGETS.items()
        ]

    return {
        "each level by itself": fitted(lambda fit, given: left_alone(fit, given).mean()),
        "one change for all levels": fitted(left),
        "s²": [[f"{s2}", *(f"{harm(s2, eta):.2g}" for eta in SHIFTS)] for s2 in (0.1, 0.3, 0.5)],
        "variance of the axis": [
            [name, *(f"{100 * drift(np.array([of]), eta)[0]:+.1f}%" for eta in SHIFTS)]
            for name, of in (("1", 1.0), ("1/8", 1 / 8), ("1/128", 1 / 128))
        ],
    }


def figures() -> dict[str, str]:
    """Every figure of theory.md: the name of its file -> its SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from fitspace.report.figures import styled

    with styled():
        return {"theory-fits.svg": _draw_fits(), "theory-shift.svg": _draw_shift()}


def _draw_fits() -> str:
    from matplotlib import pyplot

    from fitspace.report.figures.style import LINES

    canvas, panels = pyplot.subplots(2, 2, figsize=(7.2, 4.8), sharex=True, sharey=True)
    for panel, (name, data) in zip(panels.flat, TARGETS.items(), strict=True):
        for fit, style in zip(("γ, biases", "rank 1", "rank 2", "rank 4"), LINES, strict=False):
            shares = 100 * left_alone(FITS[fit], levels(data)).round(10)
            panel.plot(LEVELS, shares, label=fit, markersize=3.5, markevery=3, **style)
        panel.set_title(name)
        panel.set_ylim(-3, 103)
        panel.grid(axis="y")
    for panel in panels[1]:
        panel.set_xlabel("share of noise, s²")
    canvas.supylabel("excess loss that is left, % of the base's", fontsize=8.5)
    panels[0, 0].legend()
    return _svg(canvas)


def _draw_shift() -> str:
    from matplotlib import pyplot

    from fitspace.report.figures.style import LINES

    canvas, (loss, samples) = pyplot.subplots(1, 2, figsize=(7.2, 2.9))
    shifts = np.geomspace(1e-3, 0.3, 16)
    for s2, style in zip((0.1, 0.3, 0.5), LINES, strict=False):
        points = [harm(s2, eta) for eta in shifts]
        loss.plot(shifts, points, label=f"s² = {s2}", lw=0, markersize=3.5, **style)
        lines = [harm_by_expansion(s2, eta) for eta in shifts]
        loss.plot(shifts, lines, color=style["color"], lw=0.9)
    loss.set(xscale="log", yscale="log", xlabel="shift η of the time step")
    loss.set_xticks([0.001, 0.01, 0.1], ["0.001", "0.01", "0.1"])
    loss.set_yticks([1e-6, 1e-4, 1e-2], ["10⁻⁶", "10⁻⁴", "10⁻²"])
    loss.set_title("excess loss, relative")
    variances = np.geomspace(1 / 256, 4, 21)
    for eta, style in zip((0.04, 0.01, -0.04), LINES, strict=False):
        points = 100 * drift(variances, eta).round(10)
        samples.plot(
            variances, points, label=f"η = {eta}".replace("-", "−"), lw=0, markersize=3.5, **style
        )
        lines = 100 * np.expm1(eta * drift_by_expansion(variances))
        samples.plot(variances, lines, color=style["color"], lw=0.9)
    samples.set(xscale="log", xlabel="variance λ of the data's axis")
    samples.set_xticks([1 / 128, 1 / 8, 1, 4], ["1/128", "1/8", "1", "4"])
    samples.set_title("change of the samples' variance, %")
    for panel in (loss, samples):
        panel.minorticks_off()
        panel.grid(axis="y")
        panel.legend()
    return _svg(canvas)


def _svg(canvas: Any) -> str:
    from matplotlib import pyplot

    from fitspace.report.figures.output import figure
    from fitspace.report.figures.style import FACE

    canvas.set_facecolor(FACE)  # pages are light or dark
    drawn = figure(canvas, "theory", "", "", "", pd.DataFrame())
    pyplot.close(canvas)
    return drawn.svg


def main() -> None:
    """Print the tables of theory.md and write its figures."""
    for first, rows in tables().items():
        print(f"\n{first}\n")
        for row in rows:
            print(f"| {' | '.join(row)} |")
    for name, svg in figures().items():
        (HERE / "images" / name).write_text(svg, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
