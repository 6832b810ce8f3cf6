"""Tests that hold where rows of one cluster go together, whatever way they do."""

from __future__ import annotations

import numpy as np

from fitspace.core.errors import UserError
from fitspace.stats.fits import LinearFit
from fitspace.stats.formula import label
from fitspace.stats.linear import Model

NAN = float("nan")
KINDS = ("cr0", "cr1", "cr2", "cr3")


class Clusters:
    """Sandwich covariance of a linear model's coefficients, its rows in clusters.

    ``cr0`` takes residuals as they are, ``cr1`` times sqrt(m / (m - 1)) for m clusters, ``cr2``
    makes them unbiased where rows are independent (Bell and McCaffrey 2002), ``cr3`` leaves each
    cluster out once.

    Raises
    ------
    UserError : one cluster; for ``cr3`` a cluster without which a coefficient is lost.
    """

    def __init__(self, model: Model, codes: np.ndarray, kind: str):
        self.fit = LinearFit(model)
        x, n = self.fit.basis, model.n
        rows = [np.flatnonzero(codes == c) for c in range(codes.max() + 1)]
        rows = [of for of in rows if len(of)]
        if len(rows) < 2:
            raise UserError("cluster: one level; needed: at least 2")
        left = np.eye(n) - x @ x.T
        # Of each cluster: how the residuals of all rows enter its score (rank, n).
        self.scores = [
            x[of].T @ _adjusted(left[np.ix_(of, of)], kind, len(rows)) @ left[of] for of in rows
        ]
        seen = [score @ model.data.y for score in self.scores]
        self.covariance = sum(np.outer(score, score) for score in seen)

    def test(self, rows: np.ndarray) -> tuple[float, int, float]:
        """F of functions (q, rank) of the coefficients being 0, and its degrees of freedom.

        Hotelling's T squared with the degrees of freedom of Pustejovsky and Tipton (2018), by a
        working model of independent rows; for one function they are Satterthwaite's.
        """
        q = np.linalg.matrix_rank(rows, tol=1e-10 * np.linalg.norm(rows, 2))
        rows = np.linalg.svd(rows, full_matrices=False)[2][:q]  # orthonormal, as the basis is
        cov = rows @ self.covariance @ rows.T
        values = np.linalg.eigvalsh(cov)
        if not values[0] > 1e-10 * values[-1]:
            return NAN, q, NAN
        found = rows @ self.fit.coefficients
        turned = np.array([rows @ score for score in self.scores])  # (clusters, q, n)
        expected = np.linalg.inv(np.linalg.cholesky(np.einsum("isn,itn->st", turned, turned)))
        turned = np.einsum("rs,isn->irn", expected, turned)
        products = np.einsum("isn,jtn->ijst", turned, turned)
        own = np.einsum("ijss->ijs", products)
        spread = np.einsum("ijs,ijt->", own, own) + np.einsum("ijst,ijts->", products, products)
        df = q * (q + 1) / spread
        left = df - q + 1
        statistic = float(found @ np.linalg.solve(cov, found))
        return (left / (df * q) * statistic, q, float(left)) if left > 0 else (NAN, q, NAN)


def _adjusted(left: np.ndarray, kind: str, clusters: int) -> np.ndarray:
    """The factor of a cluster's residuals, given what the model leaves of them (k, k)."""
    if kind == "cr0":
        return np.eye(len(left))
    if kind == "cr1":
        return np.eye(len(left)) * (clusters / (clusters - 1)) ** 0.5
    values, vectors = np.linalg.eigh(left)
    keep = values > 1e-10
    if kind == "cr3" and not keep.all():
        raise UserError(
            "robust: 'cr3' leaves each cluster out, and without one of them a coefficient is lost "
            "(the clusters are in the model?); allowed here: cr0, cr1, cr2"
        )
    power = -0.5 if kind == "cr2" else -1.0
    return (vectors[:, keep] * values[keep] ** power) @ vectors[:, keep].T


def cluster_parts(
    model: Model, type: int, codes: np.ndarray, kind: str
) -> tuple[list[tuple[float, int, float, float]], list[str]]:
    """Of each term: no sum of squares, degrees of freedom, F, and those of its error."""
    clusters = Clusters(model, codes, kind)
    parts, notes = [], []
    for term in model.terms:
        basis, _ = model.added(term, type)
        if not basis.shape[1]:
            parts.append((NAN, 0, NAN, NAN))
            continue
        F, df, df2 = clusters.test(basis.T @ clusters.fit.basis)
        parts.append((NAN, df, F, df2))
        if F != F:
            notes.append(f"{label(term)} has no {kind} test: too few clusters for its {df} df")
    return parts, notes
