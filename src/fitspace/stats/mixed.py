"""Mixed models: REML, and tests of fixed effects by Kenward and Roger or Satterthwaite.

statsmodels' MixedLM has neither, and stops its optimizer some digits short; here the likelihood
is maximised by Newton's method on the exact score, so that variances have all their digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.special import fdtrc

from fitspace.core.errors import UserError
from fitspace.stats.anova import check_full_rank
from fitspace.stats.fits import Fit, independent, remembered
from fitspace.stats.formula import Term, label, term_of
from fitspace.stats.given import given, slopes
from fitspace.stats.linear import RANK_TOLERANCE, Data, Model, as_list

NAN = float("nan")
# Of all random terms together; time grows with the cube.
MOST_LEVELS = 1_500
METHODS = ("kenward-roger", "satterthwaite")


def mixed(
    table: pd.DataFrame,
    formula: str,
    random: str | Sequence[str],
    ddf: str = "kenward-roger",
    *,
    type: Literal[1, 2, 3] = 3,
) -> pd.DataFrame:
    """Tests of the fixed effects of a mixed model, lost runs or not; one row per term.

    >>> runs = pd.DataFrame(
    ...     [(t, a, s, 10 * t + (a == "b") + 0.1 * s * (t + 1) ** 2) for t in range(3)
    ...      for a in "ab" for s in range(2)], columns=["task", "arm", "seed", "y"]
    ... )
    >>> mixed(runs[1:], "y ~ arm", random=["task", "task:arm"]).round(4)
      source  num_df  den_df        F       p
    0    arm       1   1.859  17.3297  0.0602

    Each random term is an independent, normal shift of its levels: ``task``, or ``task:arm`` for
    each combination. Columns: source, num_df, den_df, F, p. ``attrs["variances"]`` has the REML
    estimates by random term and ``residual``; a variance estimated as 0 stays among those whose
    uncertainty Kenward and Roger (1997) count, as in R's pbkrtest. What it returns can be given
    to `means`, `pairs` and `contrasts`.

    Parameters
    ----------
    ddf : "kenward-roger" (adjusted covariance, F scaled), or "satterthwaite" (Fai and
        Cornelius 1996 for several degrees of freedom).
    type : hypotheses as in `anova`; 3 as R's lmerTest has by default.

    Raises
    ------
    UserError : a model that cannot be fitted, or a random term that the fixed ones contain or
        that has one row per level.
    """
    fit, notes = fit_mixed(table, formula, random, ddf)
    model = fit.model
    if type == 3:
        check_full_rank(model)
    rows = []
    for term in model.terms:
        hypothesis = _hypothesis(fit, term, type)
        F, df1, df2 = fit.joint(hypothesis) if len(hypothesis) else (NAN, 0, NAN)
        row = {"source": label(term), "num_df": df1, "den_df": df2, "F": F}
        rows.append(row | {"p": float(fdtrc(df1, df2, F)) if F == F else NAN})
    result = pd.DataFrame(rows)
    result.attrs = {"notes": notes, "variances": fit.variances}
    return remembered(result, fit)


def _hypothesis(fit: MixedFit, term: Term, type: int) -> np.ndarray:
    """A term's functions (q, rank) of the coefficients, which its test holds to be 0.

    Of type III they are its own coefficients, one each: Satterthwaite's degrees of freedom of
    several depend on the rows that are chosen, and these are R's.
    """
    model = fit.model
    if type != 3:
        return model.added(term, type)[0].T @ fit.basis
    sizes = [1, *(model.columns(other).shape[1] for other in model.terms)]
    at = 1 + model.terms.index(term)
    own = slice(sum(sizes[:at]), sum(sizes[: at + 1]))
    return fit.rows(np.eye(sum(sizes))[own])[0]


def fit_mixed(
    table: pd.DataFrame,
    formula: str,
    random: str | Sequence[str],
    ddf: str = "kenward-roger",
    also: Sequence[str] = (),
) -> tuple[MixedFit, list[str]]:
    """Fit a mixed model (see `mixed`); the fit and what a reader must know."""
    if ddf not in METHODS:
        raise UserError(f"ddf: {ddf!r}; allowed: {', '.join(METHODS)}")
    layers = [term_of(name) for name in as_list(random)]
    if not layers:
        raise UserError("random: no term; a model without one is stats.anova's")
    grouping = {name for term in layers for name in term}
    found = given(table, formula)
    if found.error:
        raise UserError("a mixed model has no Error(); name its terms in random")
    found = replace(found, quantities=[n for n in found.quantities if n not in grouping])
    extra = [name for name in dict.fromkeys([*also, *sorted(grouping)])]
    data = found.data(table, extra)
    fit = MixedFit(Model(data, found.terms), layers, ddf)
    zero = [name for name, value in fit.variances.items() if value == 0]
    notes = slopes(found) + data.notes
    notes += [f"the variance of {name} is estimated as 0" for name in zero]
    return fit, notes


class MixedFit(Fit):
    """A mixed model by REML.

    Attributes
    ----------
    variances : random term, then ``residual`` -> its variance.
    """

    def __init__(self, model: Model, layers: Sequence[Term], ddf: str):
        super().__init__(model)
        self.ddf = ddf
        groups = [_codes(model.data, term) for term in layers]
        names = [label(term) for term in layers]
        _check(model, names, groups)
        self._reml = _Reml(self.basis, groups, model.data.y)
        self.variances = dict(zip([*names, "residual"], self._reml.variances, strict=True))

    @cached_property
    def coefficients(self) -> np.ndarray:
        return self._reml.coefficients

    @cached_property
    def covariance(self) -> np.ndarray:
        """Kenward and Roger's adjusted covariance, or for Satterthwaite the plain one."""
        return self._reml.adjusted if self.ddf == METHODS[0] else self._reml.phi

    def df(self, row: np.ndarray) -> float:
        if self.ddf == METHODS[0]:
            return self._reml.kenward_roger(row[None])[1]
        return self._reml.satterthwaite(row)

    def joint(self, rows: np.ndarray) -> tuple[float, int, float]:
        if len(independent(rows)) < len(rows):
            rows = independent(rows)
        if self.ddf == METHODS[0]:
            scale, df2 = self._reml.kenward_roger(rows)
            found = rows @ self.coefficients
            cov = rows @ self.covariance @ rows.T
            return scale * float(found @ np.linalg.solve(cov, found)) / len(rows), len(rows), df2
        return self._reml.fai_cornelius(rows, self.coefficients)


def _codes(data: Data, term: Term) -> np.ndarray:
    shape = [len(data.levels[name]) for name in term]
    cells = np.ravel_multi_index([data.codes[name] for name in term], shape)
    return np.unique(cells, return_inverse=True)[1]


def _check(model: Model, names: list[str], groups: list[np.ndarray]) -> None:
    levels = sum(int(codes.max()) + 1 for codes in groups)
    if levels > MOST_LEVELS:
        raise UserError(f"random: {levels:,} levels in all; allowed: {MOST_LEVELS:,}")
    problems = [
        f"random: {name!r} has one row per level, so it is the residual"
        for name, codes in zip(names, groups, strict=True)
        if codes.max() + 1 == model.n
    ]
    for name, codes in zip(names, groups, strict=True):
        shares = np.eye(codes.max() + 1)[codes]
        if np.linalg.norm(shares - model.basis @ (model.basis.T @ shares)) < 1e-8:
            problems.append(f"random: {name!r} is contained in the fixed effects")
    same = {label for label in names if names.count(label) > 1}
    problems += [f"random: {name!r} is named twice" for name in sorted(same)]
    problems += [
        f"random: {one!r} and {other!r} have the same levels"
        for i, one in enumerate(names)
        for j, other in enumerate(names[:i])
        if one != other
        and len(set(zip(groups[i], groups[j], strict=True)))
        == groups[i].max() + 1
        == groups[j].max() + 1
    ]
    if not model.df or not model.rss:
        problems.append(
            f"{model.df} residual degrees of freedom and a residual sum of squares of "
            f"{model.rss:g}: there is no error variance to estimate"
        )
    if problems:
        raise UserError(problems)


class _Reml:
    """REML of ``V = sum(variance_k Z_k Z_k') + residual I``, in the space that X and Z span.

    Outside that space, of ``outside`` dimensions, there is nothing but residual; so costs grow
    with the levels, not with the rows. Variances are found on the response's own scale, 1.
    """

    def __init__(self, x: np.ndarray, groups: Sequence[np.ndarray], y: np.ndarray):
        self.scale = float(np.sqrt(np.mean(y**2)))
        shares = [np.eye(codes.max() + 1)[codes] for codes in groups]
        u, s, _ = np.linalg.svd(np.hstack([x, *shares]), full_matrices=False)
        space = u[:, s > RANK_TOLERANCE * s[0]]
        y = y / self.scale
        self.x, self.y = space.T @ x, space.T @ y
        layers = [space.T @ z for z in shares]
        self.parts = [*(z @ z.T for z in layers), np.eye(len(self.y))]
        self.outside = len(y) - len(self.y)
        self.rest = float(np.sum((y - space @ self.y) ** 2)) if self.outside else 0.0
        # Contrasts outside the fixed effects, whose likelihood REML is.
        full = np.linalg.svd(self.x, full_matrices=True)[0]
        free = full[:, x.shape[1] :]
        self.z = free.T @ self.y
        self.free = [free.T @ part @ free for part in self.parts]
        self.inner = self._maximised()
        self.variances = (self.inner * self.scale**2).tolist()

    # --- the likelihood ---

    def _lost(self, variances: np.ndarray) -> float:
        """Twice the negative log likelihood, but for a constant."""
        v = sum(a * part for a, part in zip(variances, self.free, strict=True))
        try:
            factor = cho_factor(v, lower=True)
        except np.linalg.LinAlgError:
            return np.inf
        lost = 2 * np.sum(np.log(np.diag(factor[0]))) + self.z @ cho_solve(factor, self.z)
        residual = variances[-1]
        return lost + (self.outside * np.log(residual) + self.rest / residual)

    def _derivatives(self, variances: np.ndarray) -> tuple[np.ndarray, ...]:
        """Score (k,), observed and expected information (k, k) of the log likelihood."""
        v = sum(a * part for a, part in zip(variances, self.free, strict=True))
        inverse = cho_solve(cho_factor(v, lower=True), np.eye(len(v)))
        a = inverse @ self.z
        turned = [part @ inverse for part in self.free]
        pulled = [part @ a for part in self.free]
        residual = variances[-1]
        traces = np.array([np.trace(t) for t in turned])
        squares = np.array([a @ p for p in pulled])
        traces[-1] += self.outside / residual
        squares[-1] += self.rest / residual**2
        expected = np.array([[np.sum(s * t.T) for t in turned] for s in turned])
        curved = np.array([[p @ inverse @ q for q in pulled] for p in pulled])
        expected[-1, -1] += self.outside / residual**2
        curved[-1, -1] += self.rest / residual**3
        return (squares - traces) / 2, curved - expected / 2, expected / 2

    def _maximised(self) -> np.ndarray:
        k = len(self.parts)
        bounds = [(0, None)] * (k - 1) + [(1e-12, None)]
        start = minimize(
            self._lost,
            np.full(k, 1 / k),
            jac=lambda x: -2 * self._derivatives(x)[0],
            method="L-BFGS-B",
            bounds=bounds,
        ).x
        return self._polished(start)

    def _polished(self, variances: np.ndarray) -> np.ndarray:
        """Newton's method within the bounds: a variance that wants to be negative is 0."""
        score = self._derivatives(variances)[0]
        free = (variances > 1e-8) | (score > 0)
        free[-1] = True
        variances = np.where(free, np.maximum(variances, 1e-9), 0.0)
        best, stalled = self._lost(variances), 0
        for _ in range(200):
            score, observed, expected = self._derivatives(variances)
            pushed = ~free & (score > 0)
            if np.all(np.abs(score * variances)[free] < 1e-13) or stalled > 3:
                if not pushed.any():
                    break
                free, stalled = free | pushed, 0
                variances = np.where(pushed, 1e-6, variances)
                best = self._lost(variances)
                continue
            of = np.ix_(free, free)
            bend = observed[of]
            if np.linalg.eigvalsh(bend)[0] <= 0:
                bend = expected[of]
            step = np.zeros(len(variances))
            step[free] = np.linalg.solve(bend, score[free])
            reach = 1.0
            falling = step < 0
            falling[-1] = False
            if falling.any():
                ends = -variances[falling] / step[falling]
                reach = min(1.0, float(ends.min()))
            moved = variances + reach * step
            while moved[-1] <= 0 or self._lost(moved) > best + 1e-12 * abs(best) + 1e-13:
                reach /= 2
                moved = variances + reach * step
                if reach < 1e-12:
                    moved = variances
                    break
            touched = free & (moved <= 1e-14)
            touched[-1] = False
            moved[touched], free = 0.0, free & ~touched
            change = np.max(np.abs(moved - variances) / np.maximum(variances, 1e-12))
            stalled = stalled + 1 if change < 1e-12 else 0
            variances, best = moved, self._lost(moved)
        return variances

    # --- the fixed effects; variances on the response's own scale, 1 ---

    @cached_property
    def _inverse(self) -> np.ndarray:
        v = sum(a * part for a, part in zip(self.inner, self.parts, strict=True))
        return cho_solve(cho_factor(v, lower=True), np.eye(len(v)))

    @cached_property
    def _phi(self) -> np.ndarray:
        return np.linalg.inv(self.x.T @ self._inverse @ self.x)

    @property
    def coefficients(self) -> np.ndarray:
        """Generalised least squares (rank,)."""
        return self.scale * (self._phi @ (self.x.T @ (self._inverse @ self.y)))

    @property
    def phi(self) -> np.ndarray:
        """Covariance of the coefficients at the estimated variances."""
        return self._phi * self.scale**2

    @property
    def adjusted(self) -> np.ndarray:
        """Kenward and Roger's covariance: with what estimating the variances adds."""
        w, p, q = self._kenward_roger
        k = len(p)
        add = sum(w[i, j] * (q[i][j] - p[i] @ self._phi @ p[j]) for i in range(k) for j in range(k))
        return (self._phi + 2 * self._phi @ add @ self._phi) * self.scale**2

    @cached_property
    def _changes(self) -> list[np.ndarray]:
        """``P_i = -X' V^-1 G_i V^-1 X``: how the information (rank, rank) moves with a variance."""
        t = self._inverse @ self.x
        return [-t.T @ part @ t for part in self.parts]

    @cached_property
    def _kenward_roger(self) -> tuple[np.ndarray, list, list]:
        """Covariance W of the variances (Kenward and Roger 1997), P_i and Q_ij."""
        inverse, phi, p = self._inverse, self._phi, self._changes
        turned = [part @ inverse for part in self.parts]
        moved = [h @ self.x for h in turned]
        q = [[a.T @ inverse @ b for b in moved] for a in moved]
        traces = np.array([[np.sum(a * b.T) for b in turned] for a in turned])
        traces[-1, -1] += self.outside / self.inner[-1] ** 2
        k = range(len(p))
        information = np.array(
            [
                [
                    traces[i, j] - 2 * np.sum(phi * q[i][j]) + np.sum((phi @ p[i]) * (p[j] @ phi))
                    for j in k
                ]
                for i in k
            ]
        )
        values = np.abs(np.linalg.eigvalsh((information + information.T) / 2))
        invert = np.linalg.inv if values.min() > 1e-10 * values.max() else np.linalg.pinv
        w = 2 * invert(information)
        return (w + w.T) / 2, p, q

    def kenward_roger(self, rows: np.ndarray) -> tuple[float, float]:
        """Scale of Wald's F and its denominator degrees of freedom, of functions (q, rank)."""
        w, p, _ = self._kenward_roger
        phi, q = self._phi, len(rows)
        theta = rows.T @ np.linalg.solve(rows @ phi @ rows.T, rows)
        u = [theta @ phi @ change @ phi for change in p]
        k = range(len(p))
        a1 = sum(w[i, j] * np.trace(u[i]) * np.trace(u[j]) for i in k for j in k)
        a2 = sum(w[i, j] * np.sum(u[i] * u[j].T) for i in k for j in k)
        if q == 1:  # what follows comes to this, but for 0 / 0 at 2 degrees of freedom
            return 1.0, float(2 / a2)
        b = (a1 + 6 * a2) / (2 * q)
        g = ((q + 1) * a1 - (q + 4) * a2) / ((q + 2) * a2)
        c = 3 * q + 2 * (1 - g)
        v0, v1, v2 = 1 + g / c * b, 1 - (q - g) / c * b, 1 - (q + 2 - g) / c * b
        v0 = 0.0 if abs(v0) < 1e-10 else v0
        share = 1.0 if max(abs(1 - a2 / q), abs(v1)) < 1e-9 else (1 - a2 / q) / v1
        rho = share**2 * v0 / v2 / q
        df = 4 + (q + 2) / (q * rho - 1)
        return (1.0 if abs(df - 2) < 1e-2 else df * (1 - a2 / q) / (df - 2)), float(df)

    @cached_property
    def _uncertainty(self) -> np.ndarray:
        """Covariance of the variances that are not 0, by the observed information."""
        free = self.inner > 0
        return np.linalg.inv(self._derivatives(self.inner)[1][np.ix_(free, free)])

    def satterthwaite(self, row: np.ndarray) -> float:
        """Degrees of freedom of one function (rank,)."""
        phi, free = self._phi, self.inner > 0
        slopes = np.array([-row @ phi @ change @ phi @ row for change in self._changes])[free]
        return float(2 * (row @ phi @ row) ** 2 / (slopes @ self._uncertainty @ slopes))

    def fai_cornelius(self, rows: np.ndarray, coefficients) -> tuple[float, int, float]:
        """F of functions (q, rank), q, and degrees of freedom that give F its expectation."""
        values, vectors = np.linalg.eigh(rows @ self.phi @ rows.T)
        turned = vectors.T @ rows
        F = float(np.sum((turned @ coefficients) ** 2 / values)) / len(rows)
        dfs = [self.satterthwaite(row) for row in turned]
        if len(dfs) == 1:
            return F, 1, dfs[0]
        expected = sum(df / (df - 2) for df in dfs if df > 2)
        q = len(rows)
        return F, q, 2 * expected / (expected - q) if expected > q else 2.0
