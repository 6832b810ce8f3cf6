"""Permutation tests of the terms of a linear model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fitspace.core.errors import UserError
from fitspace.stats.formula import Term
from fitspace.stats.linear import Model, left_by, spanned

NAN = float("nan")
BATCH = 500
# Equal F of two arrangements differ by rounding; they are ties and count as such.
TIE = 1e-9
# A covariance this far from full rank is singular but for rounding.
SINGULAR = 1e-12


def permutation_p(
    model: Model,
    type: int,
    blocks: Sequence[Term] = (),
    permutations: int = 9999,
    seed: int = 0,
    *,
    studentised: bool = False,
) -> list[float]:
    """p of each term by permuting residuals (Freedman and Lane 1983); NaN for ``blocks``.

    The residuals of the model without the term (for type II also without the terms that
    contain it) are permuted and added back to its fit, and F is computed anew:
    ``p = (1 + #{F* >= F}) / (1 + permutations)``, so p is at least ``1 / (1 + permutations)``.

    Rows are permuted within each combination of the blocks' levels: what a design groups
    may share more than a mean (tasks differ in spread), so rows are exchangeable only there
    (Winkler et al. 2014, section on restricted exchangeability). Blocks themselves
    therefore have no permutation test. The same seed gives the same p.

    ``studentised`` permutes for Wald's statistic with hc3 instead of F. Where rows spread unalike,
    the statistic's own distribution then depends on these spreads less, and less with more rows
    (DiCiccio and Romano 2017).

    Raises
    ------
    UserError : every combination of the blocks has one row, so that nothing can be permuted.
    """
    groups = _groups(model, blocks)
    if max(map(len, groups)) < 2:
        raise UserError("permutations: every combination of the blocks has one row")
    tested = [term for term in model.terms if term not in blocks]
    kind = _Studentised if studentised else _Share
    shares = {term: kind(model, term, type) for term in tested}
    rng = np.random.default_rng(seed)
    reached = dict.fromkeys(tested, 0)
    for start in range(0, permutations, BATCH):
        order = orders(rng, groups, model.n, min(BATCH, permutations - start))
        for term, share in shares.items():
            reached[term] += share.reached(order)
    return [
        (1 + reached[term]) / (1 + permutations) if term in shares and shares[term].known else NAN
        for term in model.terms
    ]


def _groups(model: Model, blocks: Sequence[Term]) -> list[np.ndarray]:
    """Row numbers of each combination of the blocks' levels."""
    if not blocks:
        return [np.arange(model.n)]
    names = dict.fromkeys(name for term in blocks for name in term)
    codes = np.column_stack([model.data.codes[name] for name in names])
    _, number = np.unique(codes, axis=0, return_inverse=True)
    return [np.flatnonzero(number == k) for k in range(number.max() + 1)]


def orders(rng, groups: list[np.ndarray], n: int, count: int) -> np.ndarray:
    """Random orders (n, count) of the rows, each group within its own rows."""
    order = np.empty((n, count), dtype=np.intp)
    for rows in groups:
        order[rows] = rng.permuted(np.tile(rows[:, None], count), axis=0)
    return order


class _Share:
    """A term's share ``SS / (SS + RSS)`` of permuted residuals, which rises with F.

    The fit of the model without the term adds nothing to either sum of squares, so the
    permuted residuals stand for the whole response. A share stays finite for an exact fit.
    """

    def __init__(self, model: Model, term: Term, type: int):
        before, _ = model.ordered(term, type)
        self.residuals = left_by(
            spanned(list(map(model.columns, before)), model.n), model.data.y, model.data.rounding
        )
        self.basis, self.full = model.added(term, type)[0], model.basis
        self.observed = self.of(self.residuals[:, None])[0] if self.basis.shape[1] else NAN
        self.known = bool(model.df) and not np.isnan(self.observed)

    def of(self, residuals: np.ndarray) -> np.ndarray:
        """Shares (m,) of columns of residuals (n, m)."""
        term = np.sum((self.basis.T @ residuals) ** 2, axis=0)
        explained = np.sum((self.full.T @ residuals) ** 2, axis=0)
        rest = np.maximum(np.sum(residuals**2, axis=0) - explained, 0)
        with np.errstate(invalid="ignore"):
            return term / (term + rest)

    def reached(self, order: np.ndarray) -> int:
        """How many of the orders (n, m) have a share as large as the observed one."""
        if not self.known:
            return 0
        return int(np.sum(self.of(self.residuals[order]) >= self.observed * (1 - TIE)))


class _Studentised(_Share):
    """Wald's statistic of permuted residuals with hc3."""

    def __init__(self, model: Model, term: Term, type: int):
        self.weights = 1 / np.maximum(1 - model.leverage, 1e-10)
        super().__init__(model, term, type)

    def of(self, residuals: np.ndarray) -> np.ndarray:
        """Statistics (m,) of columns of residuals (n, m); 0 where hc3 is singular."""
        scores = self.basis.T @ residuals
        rest = (residuals - self.full @ (self.full.T @ residuals)) * self.weights[:, None]
        seen = rest.T[:, :, None] * self.basis
        cov = seen.transpose(0, 2, 1) @ seen
        values, vectors = np.linalg.eigh(cov)
        sound = values[:, 0] > SINGULAR * values[:, -1]
        turned = np.einsum("mqk,qm->mk", vectors, scores)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.sum(turned**2 / values, axis=1)
        return np.where(sound, found, 0.0)
