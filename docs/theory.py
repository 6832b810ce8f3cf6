"""The numbers and figures of docs/theory.md: what each method can fit where all is linear.

    python docs/theory.py

writes the table into docs/theory.md and the figures into docs/images. Everything is in closed form;
tests/test_theory.py holds it to samples and to gradient descent.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SPREADS = np.array([4.0, 1.0, 0.25])  # variances of the base's data along its axes
TIME = 0.5
BEGIN, END = "<!-- table -->", "<!-- end of table -->"


def schedule(t: float) -> tuple[float, float]:
    """Signal and noise at time t in (0, 1): cos and sin, so that alpha² + sigma² = 1."""
    return math.cos(math.pi * t / 2), math.sin(math.pi * t / 2)


def optimal(cov: np.ndarray, mean: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
    """The best denoiser of x = alpha x0 + sigma e, x0 ~ N(mean, cov): E[e | x] = W x + b.

    Returns W (d, d) and b (d,).
    """
    alpha, sigma = schedule(t)
    weights = sigma * np.linalg.inv(noised(cov, t))
    return weights, -alpha * weights @ mean


def noised(cov: np.ndarray, t: float) -> np.ndarray:
    """Covariance of x (d, d)."""
    alpha, sigma = schedule(t)
    return alpha**2 * cov + sigma**2 * np.eye(len(cov))


def excess(weights, bias, cov, mean, t: float) -> float:
    """By how much the squared error of W x + b exceeds the best denoiser's, per dimension."""
    best, shift = optimal(cov, mean, t)
    off, alpha = weights - best, schedule(t)[0]
    constant = off @ (alpha * mean) + bias - shift
    return float((np.trace(off @ noised(cov, t) @ off.T) + constant @ constant) / len(cov))


def scaled(weights, cov, mean, t: float) -> tuple[np.ndarray, np.ndarray]:
    """The best diag(gamma) W with a bias: DiffFit's factors and biases (2304.06648, section 3.2).

    Row i is W's row i times the slope of the target's row on it, in the covariance of x.
    """
    best, _ = optimal(cov, mean, t)
    spread = noised(cov, t)
    gamma = np.einsum("ij,jk,ik->i", weights, spread, best)
    gamma /= np.einsum("ij,jk,ik->i", weights, spread, weights)
    return _with_bias(gamma[:, None] * weights, cov, mean, t)


def low_rank(weights, cov, mean, t: float, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The best W + BA of a rank with a bias: LoRA (2106.09685) with biases trained.

    The truncated singular value decomposition of the change, in the norm of x's covariance
    (Eckart and Young).
    """
    best, _ = optimal(cov, mean, t)
    values, vectors = np.linalg.eigh(noised(cov, t))
    root = (vectors * np.sqrt(values)) @ vectors.T
    back = (vectors / np.sqrt(values)) @ vectors.T
    left, singular, right = np.linalg.svd((best - weights) @ root)
    change = (left[:, :rank] * singular[:rank]) @ right[:rank] @ back
    return _with_bias(weights + change, cov, mean, t)


def shifted(weights, cov, mean, t: float) -> tuple[np.ndarray, np.ndarray]:
    """W unchanged with the best bias: BitFit (2106.10199)."""
    return _with_bias(weights, cov, mean, t)


def _with_bias(weights, cov, mean, t: float) -> tuple[np.ndarray, np.ndarray]:
    best, shift = optimal(cov, mean, t)
    return weights, shift + (best - weights) @ (schedule(t)[0] * mean)


FITS = {
    "untouched base": lambda w, c, m, t: (w, np.zeros(len(c))),
    "biases": shifted,
    "gamma and biases": scaled,
    "LoRA, rank 1": lambda w, c, m, t: low_rank(w, c, m, t, 1),
    "LoRA, rank 2": lambda w, c, m, t: low_rank(w, c, m, t, 2),
    "LoRA, rank 3": lambda w, c, m, t: low_rank(w, c, m, t, 3),
}


def rotation(angle: float, dimensions: int = 3) -> np.ndarray:
    """A rotation of the first two axes [radians]."""
    turn = np.eye(dimensions)
    turn[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    return turn


def targets() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """New domains, by what happened to the base's data: covariance and mean."""
    base, centre = np.diag(SPREADS), np.zeros(3)
    stretch, turn = np.diag([0.6, 1.5, 2.0]), rotation(math.radians(30))
    mixed = turn @ stretch
    return {
        "moved": (base, np.array([1.0, -1.0, 0.5])),
        "each axis rescaled": (stretch @ base @ stretch, centre),
        "rotated by 30° in a plane": (turn @ base @ turn.T, centre),
        "rescaled, rotated and moved": (mixed @ base @ mixed.T, np.array([1.0, -1.0, 0.5])),
    }


def errors() -> dict[str, dict[str, float]]:
    """Domain -> fit -> excess error, at `TIME`."""
    weights, _ = optimal(np.diag(SPREADS), np.zeros(3), TIME)
    return {
        name: {
            fit: excess(*of(weights, cov, mean, TIME), cov, mean, TIME) for fit, of in FITS.items()
        }
        for name, (cov, mean) in targets().items()
    }


def table() -> str:
    """The excess errors as a table; below 1e-12 they are 0."""
    rows = [f"| new domain | {' | '.join(FITS)} |", "|---|" + "---:|" * len(FITS)]
    for name, found in errors().items():
        cells = ["0" if value < 1e-12 else f"{value:.4f}" for value in found.values()]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


# --- time -----------------------------------------------------------------------------------


def shifted_time(t: float, factor: float) -> tuple[float, float]:
    """Where the base has to look if its data is ``factor`` times as large: time, and what the input
    is divided by. Exact: x / size is the base's data at the other time."""
    alpha, sigma = schedule(t)
    size = math.hypot(alpha * factor, sigma)
    return 2 / math.pi * math.atan2(sigma, alpha * factor), size


def one_gamma(factor: float, times: np.ndarray) -> np.ndarray:
    """Of data ``factor`` times as large: the factors gamma (d,) of all times together, by least
    squares with every time weighing the same."""
    base = np.diag(SPREADS)
    over = under = np.zeros(3)
    for t in times:
        weights, _ = optimal(base, np.zeros(3), t)
        best, _ = optimal(factor**2 * base, np.zeros(3), t)
        spread = np.diag(noised(factor**2 * base, t))
        over = over + np.diag(weights) * np.diag(best) * spread
        under = under + np.diag(weights) ** 2 * spread
    return over / under


def over_time(factor: float, times: np.ndarray) -> dict[str, list[float]]:
    """Excess error at each time of: the base, gamma of one time, gamma of all, gamma of each."""
    base, target, zero = np.diag(SPREADS), factor**2 * np.diag(SPREADS), np.zeros(3)
    middle, _ = optimal(base, zero, TIME)
    one, _ = scaled(middle, target, zero, TIME)
    single = np.diag(one) / np.diag(middle)
    common = one_gamma(factor, times)
    found: dict[str, list[float]] = {}
    for t in times:
        weights, _ = optimal(base, zero, t)
        fits = {
            "untouched base": weights,
            f"gamma of time {TIME:g}": np.diag(single) @ weights,
            "one gamma for all times": np.diag(common) @ weights,
            "a gamma for each time": scaled(weights, target, zero, t)[0],
        }
        for name, fit in fits.items():
            found.setdefault(name, []).append(excess(fit, zero, target, zero, t))
    return found


# --- figures --------------------------------------------------------------------------------


def draw() -> None:
    """Write the figures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"svg.hashsalt": "fitspace", "font.size": 9})
    angles = np.linspace(0, 90, 91)
    weights, _ = optimal(np.diag(SPREADS), np.zeros(3), TIME)
    zero = np.zeros(3)
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.subplots()
    for name in ("untouched base", "gamma and biases", "LoRA, rank 1", "LoRA, rank 2"):
        line = []
        for angle in angles:
            turn = rotation(math.radians(angle))
            cov = turn @ np.diag(SPREADS) @ turn.T
            line.append(excess(*FITS[name](weights, cov, zero, TIME), cov, zero, TIME))
        axes.plot(angles, line, label=name)
    axes.set(xlabel="rotation of the data [degrees]", ylabel="excess error per dimension")
    axes.legend(frameon=False)
    _write(figure, "theory-rotation")
    times = np.linspace(0.02, 0.98, 97)
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, line in over_time(1.5, times).items():
        axes.plot(times, line, label=name)
    axes.set(xlabel="time", ylabel="excess error per dimension")
    axes.legend(frameon=False)
    _write(figure, "theory-time")


def _write(figure, name: str) -> None:
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(HERE / "images" / f"{name}.svg", format="svg", metadata=nothing)


def main() -> None:
    page = HERE / "theory.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}", encoding="utf-8")
    draw()


if __name__ == "__main__":
    main()
