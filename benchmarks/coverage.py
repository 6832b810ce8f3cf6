"""What intervals cover: of partial omega squared, and the jackknife limits of the Fréchet distance.

    python benchmarks/coverage.py [simulations]

Truths are known, or found from 100,000 draws. Six minutes on one core.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from error_rates import Design

from fitspace.metrics import frechet
from fitspace.stats.effects import share_limits

DIM, REFERENCE = 256, 185  # a fifth of EfficientNet-lite0's features; the held-out images
SAMPLES = (80, 128, 256)


def shares(simulations: int) -> None:
    """Partial omega squared of the input on the 16 legal pairs, two seeds."""
    print("| spreads | true partial ω² | covered |\n|---|---|---|")
    keep = lambda runs: runs[runs["arm"] == "adapter"]  # noqa: E731
    design = Design("emoji", "clip_i", "y ~ seed + input + output", keep)
    basis, _ = design.model.added(("input",), 2)
    n, df1, df2 = design.model.n, basis.shape[1], design.model.df
    for spread in (None, "input"):
        sd = design.spread(spread)
        error = np.sum(design.left * sd**2) / df2
        for truth in (0.0, 0.1, 0.5, 0.9):
            rng = np.random.default_rng(1)
            direction = basis @ rng.standard_normal(df1)
            signal = (
                direction / np.linalg.norm(direction) * (truth / (1 - truth) * n * error) ** 0.5
            )
            y = signal[:, None] + design.noise(sd, simulations, seed=2)
            rest = np.sum(design.residuals(y) ** 2, axis=0) / df2
            F = np.sum((basis.T @ y) ** 2, axis=0) / df1 / rest
            limits = [share_limits(float(f), df1, df2, n) for f in F]
            covered = np.mean([low <= truth <= high for low, high in limits])
            print(
                "|",
                " | ".join([spread or "alike", f"{truth:g}", f"{covered:.3f}"]),
                "|",
                flush=True,
            )


def normal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_normal((n, DIM))


def heavy(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_t(5, (n, DIM))


def collapsed(rng: np.random.Generator, n: int) -> np.ndarray:
    """Ten modes with little around each."""
    modes = 3 * np.random.default_rng(9).standard_normal((10, DIM))
    return modes[rng.integers(10, size=n)] + 0.3 * rng.standard_normal((n, DIM))


def rectified(rng: np.random.Generator, n: int) -> np.ndarray:
    """Few directions, then a rectifier, as the features of a network are."""
    mix = np.random.default_rng(8).standard_normal((24, DIM)) / 24**0.5
    return np.maximum(rng.standard_normal((n, 24)) @ mix, 0)


def low(rng: np.random.Generator, n: int) -> np.ndarray:
    """Eight directions and next to nothing beside."""
    mix = np.random.default_rng(7).standard_normal((8, DIM)) / 8**0.5
    return rng.standard_normal((n, 8)) @ mix + 0.01 * rng.standard_normal((n, DIM))


KINDS = {
    "normal": normal,
    "heavy-tailed (t, 5 df)": heavy,
    "ten modes": collapsed,
    "rectified, 24 directions": rectified,
    "normal, 8 directions": low,
}


def distances(simulations: int) -> None:
    """Of the samples' distribution from a reference set as it stands, shifted by a tenth."""
    print("| features | n | truth | mean, as measured | mean, jackknife | limits cover |")
    print("|---|---|---|---|---|---|")
    for name, draw in KINDS.items():
        rng = np.random.default_rng(3)
        reference = torch.from_numpy(draw(rng, REFERENCE))
        shift = 0.1 * reference.std(0)
        many = torch.from_numpy(draw(rng, 100_000)) + shift
        truth = frechet.frechet_distance(many, reference)
        for n in SAMPLES:
            found = []
            for _ in range(simulations):
                samples = torch.from_numpy(draw(rng, n)) + shift
                whole = frechet.frechet_distance(samples, reference)
                found.append((whole, *frechet.jackknife(samples, reference)))
            plain, estimate, below, above = np.array(found).T
            covered = np.mean((below <= truth) & (truth <= above))
            cells = [truth, plain.mean(), estimate.mean()]
            row = [name, str(n), *(f"{cell:.3g}" for cell in cells), f"{covered:.0%}"]
            print("|", " | ".join(row), "|", flush=True)


def main() -> None:
    simulations = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    shares(simulations)
    print()
    distances(max(simulations // 40, 10))


if __name__ == "__main__":
    main()
