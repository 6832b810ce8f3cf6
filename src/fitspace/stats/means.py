"""Estimated marginal means, their pairwise differences, and the plain means of cells."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, reduce
from itertools import combinations, product

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit

from fitspace.stats.anova import model_terms
from fitspace.stats.digits import cleared
from fitspace.stats.effects import holm
from fitspace.stats.linear import CellsModel, Model, as_labels, as_list, read, with_cells

NAN = float("nan")


def marginal_means(
    table: pd.DataFrame,
    response: str | None = None,
    factor: str | None = None,
    others: str | Sequence[str] | None = None,
    block: str | Sequence[str] | None = None,
    *,
    by: str | None = None,
    interactions: bool = False,
    formula: str | None = None,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Means of one factor's levels, averaged evenly over all levels of the other factors.

    The model is ``block + factor + others`` (``by`` included), with two-factor
    interactions if asked, or the formula. Columns: ``by`` if given, level, mean, se, low,
    high (t interval), df, estimable. Where the design cannot tell a mean it is NaN and
    ``estimable`` is False; this holds the values of R's emmeans.

    Raises
    ------
    UserError : a table or model that cannot be analysed.
    """
    grid = _Grid(table, response, factor, others, block, by, interactions, formula)
    rows = []
    for group, level in grid.cells():
        mean, se = grid.fit.estimate(grid.weights(level, group), constant=1)
        margin = grid.fit.t(1 - (1 - confidence) / 2) * se
        row = {by: group} if by else {}
        row |= {"level": level, "mean": mean, "se": se, "low": mean - margin, "high": mean + margin}
        rows.append(row | {"df": grid.fit.df, "estimable": not np.isnan(mean)})
    return pd.DataFrame(rows)


def pairs(
    table: pd.DataFrame,
    response: str | None = None,
    factor: str | None = None,
    others: str | Sequence[str] | None = None,
    block: str | Sequence[str] | None = None,
    *,
    by: str | None = None,
    interactions: bool = False,
    formula: str | None = None,
) -> pd.DataFrame:
    """All pairwise differences of marginal means, with Tukey's and Holm's adjustments.

    Models as in `marginal_means`. Columns: ``by`` if given, level, other, difference
    (level minus other), se, df, t, p, p_tukey (Tukey-Kramer), p_holm, estimable. A
    difference can be estimable where the means are not. Tukey's tail is exact to 1e-13, so
    smaller p_tukey are noise. Adjusted within each level of
    ``by``, as R's emmeans does.

    Raises
    ------
    UserError : a table or model that cannot be analysed.
    """
    grid = _Grid(table, response, factor, others, block, by, interactions, formula)
    levels = grid.fit.model.data.levels[grid.factor]
    families = []
    for group in grid.groups:
        rows = []
        for one, two in combinations(levels, 2):
            weights = grid.weights(one, group) - grid.weights(two, group)
            difference, se = grid.fit.estimate(weights, constant=0)
            t = difference / se if se > 0 else NAN
            row = {by: group} if by else {}
            row |= {"level": one, "other": two, "difference": difference, "se": se}
            row |= {"df": grid.fit.df, "t": t, "p": 2 * stdtr(grid.fit.df, -abs(t))}
            rows.append(
                row | {"p_tukey": NAN, "p_holm": NAN, "estimable": not np.isnan(difference)}
            )
        family = pd.DataFrame(rows)
        family["p_tukey"] = _tukey(family["t"].to_numpy(), len(levels), grid.fit.df)
        family["p_holm"] = holm(family["p"].tolist())
        families.append(family)
    return pd.concat(families, ignore_index=True)


def _tukey(t: np.ndarray, k: int, df: int) -> np.ndarray:
    if k == 2:
        return 2 * stdtr(df, -np.abs(t))
    from scipy.stats import studentized_range

    known = ~np.isnan(t)
    p = np.full(len(t), NAN)
    p[known] = np.clip(studentized_range.sf(np.abs(t[known]) * 2**0.5, k, df), 0, 1)
    return p


class _Fit:
    """Least squares by SVD, for estimable functions of the coefficients."""

    def __init__(self, model: Model):
        self.model, self.df = model, model.df
        u, s, vt = np.linalg.svd(model.matrix, full_matrices=False)
        keep = s > 1e-10 * s[0]
        self.rows = vt[keep]
        self.roots = vt[keep].T / s[keep]
        self.coefficients = self.roots @ (u[:, keep].T @ model.data.y)

    @cached_property
    def largest(self) -> float:
        """The largest deviation of the response from its mean."""
        return float(np.max(np.abs(self.model.data.y)))

    @cached_property
    def sigma(self) -> float:
        return (self.model.rss / self.df) ** 0.5 if self.df else NAN

    def t(self, probability: float) -> float:
        return float(stdtrit(self.df, probability)) if self.df else NAN

    def estimate(self, weights: np.ndarray, constant: float) -> tuple[float, float]:
        """Value and standard error of ``weights @ coefficients``; NaN if not estimable."""
        outside = weights - self.rows.T @ (self.rows @ weights)
        if np.linalg.norm(outside) > 1e-8 * np.linalg.norm(weights):
            return NAN, NAN
        value = float(weights @ self.coefficients) + constant * self.model.data.mean
        return cleared(value, self.largest), self.sigma * float(
            np.linalg.norm(weights @ self.roots)
        )


class _Grid:
    """The reference grid of a model: every combination of levels, weighted evenly."""

    def __init__(self, table, response, factor, others, block, by, interactions, formula):
        self.factor, self.by = factor, by
        factors = None
        if formula is None:
            factors = list(dict.fromkeys([factor, *as_list(by), *as_list(others)]))
        response, terms, _ = model_terms(response, factors, interactions, block, formula)
        names = list(dict.fromkeys(name for term in terms for name in term))
        data = read(table, response, list(dict.fromkeys([*names, factor, *as_list(by)])))
        self.fit = _Fit(Model(data, terms))
        self.groups = data.levels[by] if by else [None]

    def cells(self):
        return product(self.groups, self.fit.model.data.levels[self.factor])

    def weights(self, level: str, group: str | None) -> np.ndarray:
        """Row (p,) of the model matrix averaged over the grid at a level (and group)."""
        model = self.fit.model
        at = {self.factor: level} | ({self.by: group} if self.by else {})

        def part(term, name):
            coding = model.coding(term, name)
            levels = model.data.levels[name]
            return coding[levels.index(at[name])] if name in at else coding.mean(axis=0)

        rows = [reduce(np.kron, [part(term, name) for name in term]) for term in model.terms]
        return np.concatenate([[1.0], *rows])


def cell_means(
    table: pd.DataFrame,
    response: str,
    factors: Sequence[str],
    block: str | Sequence[str] | None = None,
    *,
    replicate: str = "seed",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Means of the observed cells of a design, with their spread over seeds.

    Columns: the factors, runs, mean, min, max (of the runs as they are), replicate_sd (the
    pooled standard deviation over ``replicate`` within the cell and the other blocks),
    adjusted, se, low, high (the cell's marginal mean in ``block + cell``, which corrects for
    runs that are missing in some blocks). Order of first appearance.

    Raises
    ------
    UserError : a table that cannot be analysed.
    """
    factors, blocks = as_list(factors), as_list(block)
    table, cell = with_cells(table, factors)
    data = read(table, response, [cell, *blocks])
    used = table.loc[data.index].assign(**{name: as_labels(table[name]) for name in factors})
    used[response] = data.y + data.mean
    within = [cell, *(name for name in blocks if name != replicate)]
    y, of_cell = used[response], used.groupby(cell, sort=False)
    squares = (y - used.groupby(within, observed=True)[response].transform("mean")) ** 2
    df = of_cell.size() - used.drop_duplicates(within).groupby(cell, sort=False).size()
    means = (
        of_cell[factors]
        .first()
        .assign(
            runs=of_cell.size(),
            mean=of_cell[response].mean(),
            min=of_cell[response].min(),
            max=of_cell[response].max(),
            replicate_sd=(squares.groupby(used[cell]).sum() / df.where(df > 0)) ** 0.5,
        )
    )
    model = CellsModel(data, blocks, cell)
    adjusted, se = model.adjusted()
    margin = (float(stdtrit(model.df, 0.5 + confidence / 2)) if model.df else NAN) * se
    limits = {"low": adjusted - margin, "high": adjusted + margin}
    means = means.loc[data.levels[cell]].reset_index(drop=True)
    return means.assign(adjusted=adjusted, se=se, **limits)


def pooled_sd(table: pd.DataFrame, response: str, within: Sequence[str]) -> float:
    """Pooled standard deviation of a column within groups; NaN without repeated rows."""
    y = table[response].astype(float)
    groups = [table[name] for name in within] or [np.zeros(len(y))]
    deviations = y - y.groupby(groups).transform("mean")
    df = len(y) - y.groupby(groups).ngroups
    return float((deviations**2).sum() / df) ** 0.5 if df else NAN
