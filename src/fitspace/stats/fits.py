"""Fitted linear models: estimable functions of their coefficients, with degrees of freedom."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.special import fdtrc

from fitspace.stats.digits import cleared
from fitspace.stats.linear import Model

NAN = float("nan")


def remembered(table: pd.DataFrame, fit: Fit) -> pd.DataFrame:
    """The table of tests, with the fit it is of: this object has it, no copy of it."""
    object.__setattr__(table, "fit", fit)
    return table


def fit_of(source) -> Fit | None:
    """The fit that a table of tests remembers, or a fit itself; None for any other table."""
    found = source if isinstance(source, Fit) else getattr(source, "fit", None)
    return found if isinstance(found, Fit) else None


class Fit:
    """Coefficients of a model and functions of them, estimable or not.

    Coefficients are kept by an orthonormal basis of the model's columns, so that rank never
    matters: ``coefficients`` (rank,) and their ``covariance`` (rank, rank).
    """

    coefficients: np.ndarray
    covariance: np.ndarray

    def __init__(self, model: Model):
        self.model = model

    @cached_property
    def _decomposed(self) -> tuple[np.ndarray, ...]:
        matrix = self.model.matrix
        lengths = np.linalg.norm(matrix, axis=0)
        lengths[lengths == 0] = 1.0
        u, s, vt = np.linalg.svd(matrix / lengths, full_matrices=False)
        keep = s > 1e-10 * s[0]
        return u[:, keep], s[keep], vt[keep], lengths

    @property
    def basis(self) -> np.ndarray:
        """Orthonormal basis (n, rank) by which the coefficients are kept."""
        return self._decomposed[0]

    def rows(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights of the model matrix's coefficients (m, p) by the basis (m, rank).

        And which of them are estimable (m,): the others lie outside the space of the rows.
        """
        _, s, vt, lengths = self._decomposed
        scaled = weights / lengths
        inside = scaled @ vt.T
        outside = np.linalg.norm(scaled - inside @ vt, axis=1)
        return inside / s, outside <= 1e-8 * np.linalg.norm(scaled, axis=1)

    def df(self, row: np.ndarray) -> float:
        """Degrees of freedom of the error of one function (rank,)."""
        raise NotImplementedError

    def joint(self, rows: np.ndarray) -> tuple[float, int, float]:
        """F, and both degrees of freedom, of the hypothesis that functions (m, rank) are 0."""
        raise NotImplementedError

    def estimates(self, weights: np.ndarray) -> pd.DataFrame:
        """estimate, se and df of functions (m, p) of the coefficients; NaN if not estimable."""
        rows, estimable = self.rows(weights)
        values = rows @ self.coefficients + weights[:, 0] * self.model.data.mean
        largest = float(np.max(np.abs(self.model.data.y)))
        values = [cleared(value, largest) for value in values]
        squares = np.einsum("ij,jk,ik->i", rows, self.covariance, rows)
        se = np.sqrt(np.maximum(squares, 0))  # rounding leaves a little less than nothing
        df = [self.df(row) if known else NAN for row, known in zip(rows, estimable, strict=True)]
        table = pd.DataFrame({"estimate": values, "se": se, "df": df}).astype(float)
        table.loc[~estimable] = NAN
        return table

    def correlation(self, weights: np.ndarray) -> np.ndarray:
        """Correlation (m, m) of functions; NaN where one has no error."""
        rows = self.rows(weights)[0]
        cov = rows @ self.covariance @ rows.T
        se = np.sqrt(np.diag(cov))
        with np.errstate(divide="ignore", invalid="ignore"):
            return cov / np.outer(se, se)

    def test(self, weights: np.ndarray) -> dict:
        """F, num_df, den_df and p of the hypothesis that all functions (m, p) are 0."""
        F, df1, df2 = self.joint(self.rows(weights)[0])
        return {"F": F, "num_df": df1, "den_df": df2, "p": float(fdtrc(df1, df2, F))}


class LinearFit(Fit):
    """Least squares, with one error variance."""

    @cached_property
    def coefficients(self) -> np.ndarray:
        return self.basis.T @ self.model.data.y

    @cached_property
    def variance(self) -> float:
        """Residual mean square; NaN without residual degrees of freedom."""
        return self.model.rss / self.model.df if self.model.df else NAN

    @cached_property
    def covariance(self) -> np.ndarray:
        return np.diag(np.full(self.basis.shape[1], self.variance))

    def df(self, row: np.ndarray) -> float:
        return float(self.model.df)

    def joint(self, rows: np.ndarray) -> tuple[float, int, float]:
        return wald(rows, self.coefficients, self.covariance), rank_of(rows), self.model.df


def rank_of(rows: np.ndarray) -> int:
    """Rank of functions (m, rank) of the coefficients."""
    return int(np.linalg.matrix_rank(rows, tol=1e-10 * max(np.linalg.norm(rows, 2), 1e-300)))


def independent(rows: np.ndarray) -> np.ndarray:
    """Orthonormal rows (k, rank) of the same space as functions (m, rank)."""
    _, s, vt = np.linalg.svd(rows, full_matrices=False)
    return vt[s > 1e-10 * s[0]]


def wald(rows: np.ndarray, coefficients: np.ndarray, covariance: np.ndarray) -> float:
    """Wald's statistic over its rank; NaN without error."""
    rows = independent(rows)
    cov = rows @ covariance @ rows.T
    if not np.isfinite(cov).all() or not (np.diag(cov) > 0).all():
        return NAN
    found = rows @ coefficients
    return float(found @ np.linalg.solve(cov, found)) / len(rows)


def weights_of(named: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of weights, stacked (m, p)."""
    return np.vstack(list(named))
