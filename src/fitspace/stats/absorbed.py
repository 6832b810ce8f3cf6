"""A factor of very many levels beside others, taken out by its means in time linear in the rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from fitspace.core.errors import UserError
from fitspace.stats.formula import Term
from fitspace.stats.linear import Data, Model, left_by, orthonormal, spanned, sum_of_squares

# Rows times columns of a model that is decomposed as it stands: some seconds.
MOST_NUMBERS = 10_000_000


def size(data: Data, terms: Sequence[Term]) -> int:
    """Columns that the terms have at most, the constant among them."""
    return 1 + sum(
        math.prod(len(data.levels[n]) if n in data.levels else 1 for n in term) for term in terms
    )


def absorbed_of(data: Data, terms: Sequence[Term]) -> Term | None:
    """The term to take out by its means, or None where the model can be decomposed as it is.

    Raises
    ------
    UserError : a factor of so many levels that each row has its own, or more columns than can be
        decomposed with the largest factor taken out.
    """
    n = len(data.y)
    if n * size(data, terms) <= MOST_NUMBERS:
        return None
    alone = [term for term in terms if len(term) == 1 and term[0] in data.levels]
    largest = max(alone, key=lambda term: len(data.levels[term[0]]), default=None)
    if largest and len(data.levels[largest[0]]) == n:
        raise UserError(
            f"factor {largest[0]!r} has {n} levels in {n} rows: none are left for error"
        )
    rest = [term for term in terms if term != largest]
    if largest is None or n * size(data, rest) > MOST_NUMBERS:
        raise UserError(
            f"the model has up to {size(data, terms)} columns for {n} rows; allowed: "
            f"{MOST_NUMBERS:,} numbers in all, beside one factor of many levels that stands in no "
            "interaction"
        )
    return largest


class AbsorbedModel:
    """`Model` where one term of many levels is centred out of all others (Frisch and Waugh)."""

    def __init__(self, data: Data, terms: Sequence[Term], taken_out: Term):
        self.data, self.terms, self.n = data, list(terms), len(data.y)
        self.taken_out = taken_out
        self._codes = data.codes[taken_out[0]]
        self._size = np.bincount(self._codes)
        self._others = Model(data, [term for term in terms if term != taken_out])
        self._order = Model(data, terms).ordered

    def _within(self, columns: np.ndarray) -> np.ndarray:
        """Columns (n, k) less their means over each level of the factor taken out."""
        sums = np.zeros((len(self._size), columns.shape[1]))
        np.add.at(sums, self._codes, columns)
        return columns - (sums / self._size[:, None])[self._codes]

    def _columns(self, terms: Sequence[Term], within: bool) -> list[np.ndarray]:
        columns = [self._others.columns(term) for term in terms]
        return [self._within(c) for c in columns] if within else columns

    def _fit(self, before: Sequence[Term], within: bool) -> tuple[float, int]:
        """Residual sum of squares and its degrees of freedom."""
        y, lost = self.data.y, len(self._size) if within else 0
        columns = self._columns(before, within)
        if within:
            y = self._within(y[:, None])[:, 0]
            bases = orthonormal(columns, constant=np.zeros((self.n, 1))) if columns else []
            basis = np.hstack([np.empty((self.n, 0)), *bases])
        else:
            basis = spanned(columns, self.n)
        rest = left_by(basis, y, self.data.rounding)
        return math.fsum(rest**2), self.n - lost - basis.shape[1]

    @cached_property
    def _whole(self) -> tuple[float, int]:
        rss, df = self._fit(self._others.terms, within=True)
        return (0.0 if not df or self.data.is_rounding(rss, df) else rss), df

    @property
    def rss(self) -> float:
        """Residual sum of squares."""
        return self._whole[0]

    @property
    def df(self) -> int:
        """Residual degrees of freedom."""
        return self._whole[1]

    def added(self, term: Term, type: int) -> tuple[float, int]:
        """Sum of squares and degrees of freedom that a term adds, by the type."""
        before, _ = self._order(term, type)
        if term == self.taken_out:
            (less, df), (rest, left) = (self._fit(before, within) for within in (False, True))
            ss = max(less - rest, 0.0)
            return (0.0 if self.data.is_rounding(ss, df - left) else ss), df - left
        within = self.taken_out in before
        blocks = self._columns([t for t in before if t != self.taken_out] + [term], within)
        basis = orthonormal(blocks, constant=np.zeros((self.n, 1)) if within else None)[-1]
        return sum_of_squares(basis, self.data), basis.shape[1]
