"""Tests that hold where rows differ in spread, or those of one cluster go together."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from fitspace.core.errors import UserError
from fitspace.stats.fits import LinearFit, independent
from fitspace.stats.formula import label
from fitspace.stats.linear import Model

NAN = float("nan")
# Clusters times rows times coefficients, all of which are held at once: 400 MB.
MOST_NUMBERS = 50_000_000
# Rows whose products of two are held at once: 100 MB.
MOST_ROWS = 3000
KINDS = ("cr0", "cr1", "cr2", "cr3")


class ClusterFit(LinearFit):
    """Least squares with a sandwich covariance, of rows in clusters or each by itself.

    ``cr0`` takes residuals as they are, ``cr1`` times sqrt(m / (m - 1)) for m clusters, ``cr2``
    makes them unbiased where rows are independent and alike (Bell and McCaffrey 2002), ``cr3``
    leaves each cluster out once. Degrees of freedom are Satterthwaite's, by a working model of
    independent rows; of several functions those of Hotelling's T squared (Pustejovsky and Tipton
    2018). With every row its own cluster cr2 and cr3 are hc2 and hc3, and so are their degrees of
    freedom (see `RowFit`): few where few rows say how the others spread.

    A function that rests on what is fitted exactly, as the mean of a level with one run does, has
    no such test: NaN.

    Raises
    ------
    UserError : one cluster.
    """

    def __init__(self, model: Model, codes: np.ndarray, kind: str):
        super().__init__(model)
        x, n = self.basis, model.n
        rows = [np.flatnonzero(codes == c) for c in range(codes.max() + 1)]
        rows = [of for of in rows if len(of)]
        if len(rows) < 2:
            raise UserError("cluster: one level; needed: at least 2")
        if len(rows) * x.size > MOST_NUMBERS:
            raise UserError(
                f"robust: {len(rows)} clusters of {n} rows and {x.shape[1]} coefficients; allowed: "
                f"{MOST_NUMBERS:,} of their product (hc2 and hc3 have no such limit)"
            )
        left = np.eye(n) - x @ x.T
        parts = [_adjusted(left[np.ix_(of, of)], kind, len(rows)) for of in rows]
        # Of each cluster: how the residuals of all rows enter its score (clusters, rank, n).
        self.scores = np.array(
            [x[of].T @ factor @ left[of] for of, (factor, _) in zip(rows, parts, strict=True)]
        )
        #: What the model fits exactly in a cluster (rank, m): its spread there is unknown.
        self.blind = np.hstack([x[of].T @ lost for of, (_, lost) in zip(rows, parts, strict=True)])

    def _unknown(self, rows: np.ndarray) -> bool:
        """Whether functions (q, rank) rest on what is fitted exactly."""
        return bool(np.linalg.norm(rows @ self.blind) > 1e-8 * np.linalg.norm(rows))

    @cached_property
    def covariance(self) -> np.ndarray:
        seen = self.scores @ self.model.residuals
        return seen.T @ seen

    def df(self, row: np.ndarray) -> float:
        return NAN if self._unknown(row[None]) else self._degrees(row[None])

    def joint(self, rows: np.ndarray) -> tuple[float, int, float]:
        rows = independent(rows)
        df = NAN if self._unknown(rows) else self._degrees(rows)
        return hotelling(rows, self.coefficients, self.covariance, df)

    def _degrees(self, rows: np.ndarray) -> float:
        """Degrees of freedom of the covariance of functions (q, rank) of the coefficients."""
        q = len(rows)
        turned = np.einsum("qr,irn->iqn", rows, self.scores)
        expected = np.einsum("iqn,irn->qr", turned, turned)
        if not np.linalg.eigvalsh(expected)[0] > 1e-12 * np.trace(expected):
            return NAN
        scaled = np.linalg.inv(np.linalg.cholesky(expected))
        turned = np.einsum("rq,iqn->irn", scaled, turned)
        flat = turned.reshape(-1, self.model.n)
        products = (flat @ flat.T).reshape(len(turned), q, len(turned), q).transpose(0, 2, 1, 3)
        own = np.einsum("ijss->ij", products)
        return float(q * (q + 1) / (np.sum(own**2) + np.einsum("ijst,ijts->", products, products)))


class RowFit(LinearFit):
    """`ClusterFit` with every row its own cluster: hc2 for "cr2", hc3 for "cr3".

    A row's score is its row of the basis times its residual, so that degrees of freedom take the
    products of two rows, no more. With more than `MOST_ROWS` rows they are the residual's: so many
    rows know how they spread.
    """

    def __init__(self, model: Model, kind: str):
        super().__init__(model)
        left = np.maximum(1 - self.model.leverage, 0.0)
        known = left > 1e-10
        power = 0.5 if kind == "cr2" else 1.0
        self.factor = np.where(known, np.where(known, left, 1.0) ** -power, 0.0)
        #: What the model fits exactly (rank, m): its spread there is unknown.
        self.blind = self.basis[~known].T

    @cached_property
    def covariance(self) -> np.ndarray:
        return (self.basis.T * (self.factor * self.model.residuals) ** 2) @ self.basis

    @cached_property
    def _together(self) -> np.ndarray:
        """How the weighed residuals of two rows go together where all rows spread alike (n, n)."""
        left = np.eye(self.model.n) - self.basis @ self.basis.T
        return left * np.outer(self.factor, self.factor)

    def degrees(self, rows: np.ndarray) -> float:
        """Degrees of freedom of the covariance of functions (q, rank) of the coefficients."""
        if np.linalg.norm(rows @ self.blind) > 1e-8 * np.linalg.norm(rows):
            return NAN
        if self.model.n > MOST_ROWS:
            return float(self.model.df)
        q, seen = len(rows), self.basis @ rows.T
        expected = (seen.T * np.diag(self._together)) @ seen
        if not np.linalg.eigvalsh(expected)[0] > 1e-12 * np.trace(expected):
            return NAN
        seen = seen @ np.linalg.inv(np.linalg.cholesky(expected)).T
        return float(q * (q + 1) / 2 / np.sum((seen @ seen.T * self._together) ** 2))

    def df(self, row: np.ndarray) -> float:
        return self.degrees(row[None])

    def joint(self, rows: np.ndarray) -> tuple[float, int, float]:
        rows = independent(rows)
        return hotelling(rows, self.coefficients, self.covariance, self.degrees(rows))


def own_spreads(model: Model, kind: str) -> LinearFit:
    """The fit in which each row has its own variance."""
    if kind in ("cr2", "cr3"):
        return RowFit(model, kind)
    return ClusterFit(model, np.arange(model.n), kind)


def hotelling(
    rows: np.ndarray, coefficients: np.ndarray, covariance: np.ndarray, df: float
) -> tuple[float, int, float]:
    """F of functions (q, rank) by Hotelling's T squared, and both degrees of freedom."""
    q = len(rows)
    cov = rows @ covariance @ rows.T
    values = np.linalg.eigvalsh(cov)
    left = df - q + 1
    if not left > 0 or not values[0] > 1e-12 * values[-1]:
        return NAN, q, NAN
    found = rows @ coefficients
    return left / (df * q) * float(found @ np.linalg.solve(cov, found)), q, left


def _adjusted(left: np.ndarray, kind: str, clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """The factor of a cluster's residuals, given what the model leaves of them (k, k).

    And the directions (k, m) in which it leaves nothing, where that has to be known.
    """
    k = len(left)
    if kind in ("cr0", "cr1"):
        scale = 1.0 if kind == "cr0" else (clusters / (clusters - 1)) ** 0.5
        return np.eye(k) * scale, np.empty((k, 0))
    values, vectors = np.linalg.eigh(left)
    keep = values > 1e-10
    power = -0.5 if kind == "cr2" else -1.0
    return (vectors[:, keep] * values[keep] ** power) @ vectors[:, keep].T, vectors[:, ~keep]


def cluster_parts(
    fit: LinearFit, type: int
) -> tuple[list[tuple[float, int, float, float]], list[str]]:
    """Of each term: no sum of squares, degrees of freedom, F, and those of its error."""
    parts, notes = [], []
    for term in fit.model.terms:
        basis, _ = fit.model.added(term, type)
        F, df, df2 = fit.joint(basis.T @ fit.basis) if basis.shape[1] else (NAN, 0, NAN)
        parts.append((NAN, df, F, df2))
        if df and F != F:
            notes.append(
                f"{label(term)} has no robust test: too few rows or clusters tell how they spread, "
                f"for its {df} degrees of freedom"
            )
    return parts, notes
