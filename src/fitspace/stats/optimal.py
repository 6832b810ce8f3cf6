"""D-optimal subsets of a design's legal cells, for the main effects."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from fitspace.core.errors import UserError
from fitspace.stats.linear import as_labels, missing_columns, orthonormal

STARTS = 10
# Determinants that differ by less are the same: so rounding, which differs between machines,
# decides no exchange.
TIE = 1e-9


def d_optimal(cells: pd.DataFrame, factors: Sequence[str], n: int, seed: int = 0) -> pd.DataFrame:
    """The ``n`` rows of ``cells`` that are D-optimal for the main effects, in their order.

    >>> cells = pd.DataFrame([(a, b, c) for a in "uv" for b in "xy" for c in "lmh"])
    >>> cells.columns = ["input", "output", "width"]
    >>> d_optimal(cells, ["input", "output", "width"], 6).index.tolist()
    [1, 2, 3, 6, 10, 11]

    Fedorov's exchange (1972) as Cook and Nachtsheim (1980) modified it: each chosen row in
    turn gives way to the one outside that raises the determinant of the information matrix
    most, until none does; the best of ten random starts. A row is chosen once at most. Where
    not all main effects are estimable (unconnected cells) those contrasts count that are.

    It is not pydoe's, which searches from one greedy start and computes each determinant
    anew: of 768 cells it takes 1.6 s for one exchange of the many that 48 rows need, and it
    stops at an efficiency of 0.989 for half of a 2^5, whose optimum is 1.

    Raises
    ------
    UserError : missing columns; fewer rows than the model needs, or more than there are.
    """
    basis = _basis(cells, factors)
    least = basis.shape[1]
    if not least <= n <= len(cells):
        raise UserError(
            f"{n}; allowed: {least} (as many as the main effects need) to {len(cells)} (all cells)"
        )
    # The legacy generator: its stream is the same in every version of NumPy.
    random = np.random.RandomState(seed)
    best, highest = [], -math.inf
    for _ in range(STARTS):
        chosen = _exchange(basis, _start(basis, random.permutation(len(basis)), n))
        value = np.linalg.slogdet(basis[chosen].T @ basis[chosen])[1]
        if value > highest + TIE:
            best, highest = chosen, value
    return cells.iloc[np.sort(best)]


def d_efficiency(chosen: pd.DataFrame, cells: pd.DataFrame, factors: Sequence[str]) -> float:
    """D-efficiency per run of chosen rows for the main effects, against all cells.

    >>> cells = pd.DataFrame([(a, b, c) for a in "uv" for b in "xy" for c in "lmh"])
    >>> cells.columns = ["input", "output", "width"]
    >>> chosen = d_optimal(cells, ["input", "output", "width"], 6)
    >>> round(d_efficiency(chosen, cells, ["input", "output", "width"]), 4)
    0.9767

    The ratio of the determinants of ``X'X / n``, per parameter (Atkinson, Donev and Tobias
    2007, section 11.1). It exceeds 1 where all cells together are not the best design.
    """
    basis = _basis(cells, factors)[cells.index.get_indexer(chosen.index)]
    # Over all cells the basis has X'X / n = 1.
    return float(np.linalg.det(basis.T @ basis / len(basis)) ** (1 / basis.shape[1]))


def _basis(cells: pd.DataFrame, factors: Sequence[str]) -> np.ndarray:
    """The main effects' space over the cells (N, rank), scaled to ``X'X = N``."""
    problems = missing_columns(cells, factors)
    if problems:
        raise UserError(problems)
    codes = [pd.factorize(as_labels(cells[name]))[0] for name in factors]
    blocks = [np.eye(code.max() + 1)[code] for code in codes if code.max() > 0]
    effects = orthonormal(blocks) if blocks else []
    return np.hstack([np.ones((len(cells), 1)), *(math.sqrt(len(cells)) * q for q in effects)])


def _start(basis: np.ndarray, order: np.ndarray, n: int) -> list[int]:
    """Of the rows of a basis (N, p) in an order: the first p that are independent, then others."""
    rest, independent = basis.copy(), []
    for row in order:
        size = np.linalg.norm(rest[row])
        if size > TIE * math.sqrt(len(basis)):
            rest -= np.outer(rest @ rest[row], rest[row]) / size**2
            independent.append(row)
    others = [row for row in order if row not in set(independent)]
    return [*independent, *others][:n]


def _exchange(basis: np.ndarray, chosen: list[int]) -> np.ndarray:
    """Rows (n,) of a basis (N, p) that no single exchange improves.

    With variances d and covariance c of two rows, the determinant's relative gain when one
    gives way to the other is d_in - d_out - (d_in d_out - c²) (Fedorov 1972, section 3.2).
    """
    chosen = np.array(chosen)
    scaled, variance = _variances(basis, chosen)
    unchanged = place = 0
    while unchanged < len(chosen):
        row = chosen[place]
        covariance = scaled @ basis[row]
        gain = variance - variance[row] - (variance * variance[row] - covariance**2)
        gain[chosen] = 0.0
        best = int(np.argmax(np.round(gain / TIE)))  # the first of those that tie
        unchanged += 1
        if gain[best] > TIE:
            chosen[place], unchanged = best, 0
            scaled, variance = _variances(basis, chosen)
        place = (place + 1) % len(chosen)
    return chosen


def _variances(basis: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows times the inverse information matrix (N, p), and each row's variance (N,)."""
    scaled = np.linalg.solve(basis[chosen].T @ basis[chosen], basis.T).T
    return scaled, np.einsum("ij,ij->i", scaled, basis)
