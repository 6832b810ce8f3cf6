"""What γ and LoRA can fit, where the best denoiser is known: figures and numbers of theory.md.

    python docs/theory.py

Data are Gaussian with mean zero and covariance Σ. A noisy input is x = a·x₀ + s·ε with a² + s² = 1,
so its covariance is C = a²Σ + s²I, and the best prediction of ε is W·x with W = s·C⁻¹. A loss above
the smallest one is ‖(V − W)·C^½‖² for any other matrix V (mean over x, sum over coordinates).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
DIM = 8
VARIANCES = 2.0 ** -np.arange(DIM)  # of the source's axes: 1 to 1/128
LEVELS = np.linspace(0.05, 0.95, 19)  # s², the share of noise


def noisy(cov: np.ndarray, s2: float) -> np.ndarray:
    """C: covariance of the noisy input, (d, d)."""
    return (1 - s2) * cov + s2 * np.eye(len(cov))


def denoiser(cov: np.ndarray, s2: float) -> np.ndarray:
    """W: the best linear prediction of the noise, (d, d); it is the best of all."""
    return np.sqrt(s2) * np.linalg.inv(noisy(cov, s2))


def excess(own: np.ndarray, cov: np.ndarray, s2: float) -> float:
    """Loss of a matrix above the smallest one, on data of this covariance."""
    gap = own - denoiser(cov, s2)
    return float(np.trace(gap @ noisy(cov, s2) @ gap.T))


def best_gamma(base: np.ndarray, cov: np.ndarray, s2: float) -> np.ndarray:
    """The best diag(γ)·W₀, by least squares for each output."""
    c, goal = noisy(cov, s2), denoiser(cov, s2)
    gamma = np.einsum("ij,jk,ik->i", base, c, goal) / np.einsum("ij,jk,ik->i", base, c, base)
    return gamma[:, None] * base


def best_lora(base: np.ndarray, cov: np.ndarray, s2: float, rank: int) -> np.ndarray:
    """The best W₀ + B·A of this rank: Eckart and Young, in coordinates where inputs are white."""
    values, vectors = np.linalg.eigh(noisy(cov, s2))
    white = vectors * np.sqrt(values)  # C = white·whiteᵀ
    u, sizes, v = np.linalg.svd((denoiser(cov, s2) - base) @ white)
    return base + (u[:, :rank] * sizes[:rank]) @ v[:rank] @ np.linalg.inv(white)


def rescaled(cov: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """The covariance of data whose axes are multiplied by ``factors``."""
    return factors[:, None] * cov * factors


def rotated(cov: np.ndarray, angle: float, planes: int = 1) -> np.ndarray:
    """The covariance of data turned by ``angle`` in so many planes of two axes each."""
    turn = np.eye(len(cov))
    for i in range(0, 2 * planes, 2):
        turn[i : i + 2, i : i + 2] = [
            [np.cos(angle), -np.sin(angle)],
            [np.sin(angle), np.cos(angle)],
        ]
    return turn @ cov @ turn.T


def targets() -> dict[str, np.ndarray]:
    """Name -> covariance of a target domain."""
    source = np.diag(VARIANCES)
    return {
        "axes rescaled by 0.5 to 2": rescaled(source, np.linspace(0.5, 2, DIM)),
        "one plane turned by 30°": rotated(source, np.pi / 6),
        "three planes turned by 30°": rotated(source, np.pi / 6, 3),
    }


def left_over(cov: np.ndarray, fit) -> np.ndarray:
    """The share of the untouched base's excess loss that a fit leaves, at each noise level."""
    source = np.diag(VARIANCES)
    found = []
    for s2 in LEVELS:
        base = denoiser(source, s2)
        found.append(excess(fit(base, cov, s2), cov, s2) / excess(base, cov, s2))
    return np.array(found)


def fits() -> dict[str, object]:
    """Name -> how a denoiser is fitted to a target."""
    ranks = {
        f"LoRA of rank {r}": lambda b, c, s2, r=r: best_lora(b, c, s2, r) for r in (1, 2, 4, 6)
    }
    return {"γ": best_gamma} | ranks


def shifted(s2: float, shift: float) -> float:
    """Excess loss of the source's denoiser that is told a noise share too large by ``shift``,
    relative to predicting nothing (whose excess is that of V = 0)."""
    source = np.diag(VARIANCES)
    nothing = excess(np.zeros((DIM, DIM)), source, s2)
    return excess(denoiser(source, s2 + shift), source, s2) / nothing


def main() -> None:
    """Write the figures and print the table of theory.md."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.2), sharey=True)
    for axis, (name, cov) in zip(axes, targets().items(), strict=True):
        cells = []
        for fit, function in fits().items():
            shares = left_over(cov, function)
            axis.plot(LEVELS, shares.clip(0), label=fit)
            cells.append(f"{100 * shares.clip(0).mean():.1f}%")
        axis.set(title=name, xlabel="share of noise, s²")
        print(f"| {name} | {' | '.join(cells)} |")
    axes[0].set_ylabel("excess loss left, share of the base's")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(HERE / "images/theory-fits.png", dpi=110)

    figure, axis = pyplot.subplots(figsize=(4.5, 3.2))
    shifts = np.logspace(-3, -1, 20)
    for s2 in (0.1, 0.3, 0.5):
        axis.loglog(shifts, [shifted(s2, d) for d in shifts], label=f"s² = {s2}")
    axis.set(xlabel="shift of the noise share that is told", ylabel="excess loss, relative")
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(HERE / "images/theory-shift.png", dpi=110)
    for s2 in (0.1, 0.3, 0.5):
        print(f"| {s2} | " + " | ".join(f"{shifted(s2, d):.2g}" for d in (0.01, 0.02, 0.04)) + " |")


if __name__ == "__main__":
    main()
