"""Estimated marginal means, their differences and contrasts, and the plain means of cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, reduce
from itertools import combinations, product

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from fitspace.core.errors import UserError
from fitspace.stats.fits import Fit, LinearFit, fit_of
from fitspace.stats.given import given
from fitspace.stats.linear import (
    CellsModel,
    as_labels,
    as_list,
    read,
    with_cells,
)
from fitspace.stats.mixed import fit_mixed
from fitspace.stats.multiplicity import compared
from fitspace.stats.variances import games_howell

NAN = float("nan")
MOST_PAIRS = 5_000


def means(
    source: pd.DataFrame,
    factor: str | Sequence[str],
    formula: str | None = None,
    *,
    by: str | Sequence[str] | None = None,
    response: str | None = None,
    factors: str | Sequence[str] | None = None,
    block: str | Sequence[str] | None = None,
    interactions: bool = False,
    random: str | Sequence[str] | None = None,
    ddf: str = "kenward-roger",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Means of a factor's levels, averaged evenly over the levels of the others.

    >>> table = pd.DataFrame({"y": [4.0, 4.5, 5.0, 5.5, 6.5, 6.0], "rank": [4, 4, 8, 8, 16, 16]})
    >>> means(table, "rank", "y ~ C(rank)")[["rank", "estimate", "se", "df"]].round(3)
       rank  estimate    se   df
    0     4      4.25  0.25  3.0
    1     8      5.25  0.25  3.0
    2    16      6.25  0.25  3.0

    One row per level: ``by`` if given, the factor (its values as the table has them), estimate,
    se, df, low, high (each by its own t). A column of numbers is held at its mean. Where the
    design cannot tell a mean all of them are NaN. Holds R's emmeans.

    Parameters
    ----------
    source : a table of runs, with its model as in `anova` (``formula``, or ``response``,
        ``factors`` and ``block``; ``random`` makes it a mixed one), or what `anova` or `mixed`
        returned.
    factor : one column, or several for the means of their cells.
    by : columns within whose levels the means are taken.

    Raises
    ------
    UserError : a table or model that cannot be analysed.
    """
    fit = _fitted(source, factor, by, formula, response, factors, block, interactions, random, ddf)
    grid = Grid(fit, factor, by)
    table = fit.estimates(grid.weights(grid.at))
    reach = stdtrit(table["df"], 0.5 + confidence / 2) * table["se"]
    table = table.assign(low=table["estimate"] - reach, high=table["estimate"] + reach)
    return pd.concat([grid.values(), table], axis=1)


def marginal_means(fit: Fit, factor: str, confidence: float = 0.95) -> pd.DataFrame:
    """`means` of one factor of a fit: level (text), mean, se, low, high, df, estimable."""
    table = means(fit, factor, confidence=confidence).rename(columns={"estimate": "mean"})
    table[factor] = fit.model.data.levels[factor]
    table = table.rename(columns={factor: "level"}).assign(df=fit.model.df)
    table["estimable"] = table["mean"].notna()
    return table[["level", "mean", "se", "low", "high", "df", "estimable"]]


def pairs(
    source: pd.DataFrame,
    factor: str | Sequence[str],
    formula: str | None = None,
    *,
    adjust: str | None = None,
    by: str | Sequence[str] | None = None,
    control=None,
    alternative: str = "two-sided",
    response: str | None = None,
    factors: str | Sequence[str] | None = None,
    block: str | Sequence[str] | None = None,
    interactions: bool = False,
    random: str | Sequence[str] | None = None,
    ddf: str = "kenward-roger",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """All differences of two means of a factor, or of all from a control, in the levels' order.

    >>> table = pd.DataFrame({"y": [4.0, 4.5, 5.0, 5.5, 6.5, 6.0], "arm": list("aabbcc")})
    >>> pairs(table, "arm", "y ~ arm")[["contrast", "estimate", "p", "p_adjusted"]].round(4)
      contrast  estimate       p  p_adjusted
    0    a - b      -1.0  0.0663      0.1288
    1    a - c      -2.0  0.0109      0.0222
    2    b - c      -1.0  0.0663      0.1288

    Columns: ``by`` if given, contrast (``a - b``), estimate, se, df, t, p (unadjusted),
    p_adjusted, low, high (simultaneous), each family within one level of ``by``. Models as in
    `means`; of what `anova` returned with a robust covariance, se and df are its own.

    Parameters
    ----------
    control : a level (a tuple, of several factors) that all others are held against, instead of all
        pairs.
    adjust : "tukey" (by default; "dunnett" with a control), "holm", "bonferroni", "sidak",
        "scheffe", "BH", "none", "dunnett" (the exact single step), or "games-howell", which gives
        each level its own variance (a table with a response and one factor).

    Raises
    ------
    UserError : a table or model that cannot be analysed.
    """
    if adjust == "games-howell":
        if formula is not None:
            found = given(source, formula)
            response, terms = found.response, found.terms
        else:
            terms = [(factor,)] if not block and factors in (None, factor, [factor]) else []
        if response is None or terms != [(factor,)] or by or random:
            raise UserError("adjust: 'games-howell' compares the levels of one factor alone")
        return games_howell(source, response, factor, confidence=confidence)
    fit = _fitted(source, factor, by, formula, response, factors, block, interactions, random, ddf)
    return compare(fit, factor, by, adjust, confidence, control, alternative)


def compare(
    fit: Fit,
    factor: str | Sequence[str],
    by: str | Sequence[str] | None = None,
    adjust: str | None = None,
    confidence: float = 0.95,
    control=None,
    alternative: str = "two-sided",
) -> pd.DataFrame:
    """`pairs` of a fit."""
    adjust = adjust or ("tukey" if control is None else "dunnett")
    if control is not None and adjust == "tukey":
        raise UserError("adjust: 'tukey' is for all pairs; with a control: dunnett, holm, ...")
    table = differences(fit, factor, by, adjust, confidence, control, alternative)
    names = [f"{a} - {b}" for a, b in zip(table["level"], table["other"], strict=True)]
    table.insert(table.columns.get_loc("level"), "contrast", names)
    return table.drop(columns=["level", "other"])


def differences(
    fit: Fit,
    factor: str | Sequence[str],
    by: str | Sequence[str] | None = None,
    adjust: str = "tukey",
    confidence: float = 0.95,
    control=None,
    alternative: str = "two-sided",
) -> pd.DataFrame:
    """`pairs` of a fit, with both levels of a difference as text: level, other.

    Tukey's adjustment is that of all pairs, with a control too: for one that was not chosen before.
    """
    grid = Grid(fit, factor, by)
    against = None if control is None else grid.text(control)
    names = [grid.name(at) for at in grid.at]
    if against is not None and against not in names:
        levels = ", ".join(dict.fromkeys(names))
        raise UserError(f"control: {factor} has no level {control!r}; levels: {levels}")
    families = []
    for group in grid.groups:
        levels = [at for at in grid.at if all(at[name] == group[name] for name in group)]
        two = list(combinations(levels, 2))
        if against is not None:
            one = next(at for at in levels if grid.name(at) == against)
            two = [(at, one) for at in levels if at is not one]
        if len(two) > MOST_PAIRS:
            raise UserError(
                f"{len(levels)} levels have {len(two):,} pairs; allowed: {MOST_PAIRS:,}; name "
                "contrasts, or a control"
            )
        rows = grid.weights(levels)
        of = dict(zip(map(grid.name, levels), rows, strict=True))
        weights = np.array([of[grid.name(a)] - of[grid.name(b)] for a, b in two])
        table = fit.estimates(weights)
        family = compared(
            table,
            adjust,
            levels=len(levels),
            correlation=fit.correlation(weights) if adjust in ("scheffe", "dunnett") else None,
            alternative=alternative,
            confidence=confidence,
        )
        names = pd.DataFrame([(grid.name(a), grid.name(b)) for a, b in two])
        names.columns = ["level", "other"]
        heads = grid.values(by_only=True, at=[group] * len(two))
        families.append(pd.concat([heads, names, family], axis=1))
    return pd.concat(families, ignore_index=True)


def contrasts(
    source: pd.DataFrame,
    formula: str | None,
    factor: str | Sequence[str],
    named: Mapping[str, Mapping],
    adjust: str = "holm",
    *,
    random: str | Sequence[str] | None = None,
    ddf: str = "kenward-roger",
    alternative: str = "two-sided",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Contrasts of marginal means that were named beforehand, as one family.

    >>> table = pd.DataFrame({"y": [4.0, 4.5, 5.0, 5.5, 6.5, 6.0], "arm": list("aabbcc")})
    >>> rest = {"a": 1, "b": -0.5, "c": -0.5}
    >>> asked = {"a against the rest": rest, "b against c": {"b": 1, "c": -1}}
    >>> found = contrasts(table, "y ~ arm", "arm", asked)
    >>> found[["contrast", "estimate", "t", "p", "p_adjusted"]].round(4)
                 contrast  estimate       t       p  p_adjusted
    0  a against the rest      -1.5 -4.8990  0.0163      0.0326
    1         b against c      -1.0 -2.8284  0.0663      0.0663

    Columns as in `pairs`. ``attrs["joint"]`` has F, num_df, den_df and p of the hypothesis that
    all are 0.

    Parameters
    ----------
    named : name -> level -> coefficient; levels left out have 0. With several factors a level is
        the tuple of its factors' levels.
    adjust : as in `pairs`, or "dunnett": the exact single step, whatever the contrasts are.

    Raises
    ------
    UserError : a table or model that cannot be analysed, or a level that the factor has not.
    """
    fit = _fitted(source, factor, None, formula, None, None, None, False, random, ddf)
    grid = Grid(fit, factor, None)
    names = [grid.name(at) for at in grid.at]
    rows, problems = [], []
    for name, coefficients in named.items():
        given_ = {grid.text(level): value for level, value in coefficients.items()}
        problems += [
            f"contrast {name!r}: no level {level!r}; levels: {', '.join(names)}"
            for level in given_
            if level not in names
        ]
        rows.append([float(given_.get(level, 0.0)) for level in names])
    if not named:
        problems.append("contrasts: none named")
    if problems:
        raise UserError(problems)
    weights = np.array(rows) @ grid.weights(grid.at)
    table = fit.estimates(weights)
    correlation = fit.correlation(weights)
    table = compared(
        table, adjust, correlation=correlation, alternative=alternative, confidence=confidence
    )
    table.insert(0, "contrast", list(named))
    known = table["estimate"].notna().to_numpy()
    table.attrs["joint"] = fit.test(weights[known]) if known.any() else {}
    return table


def _fitted(
    source, factor, by, formula, response, factors, block, interactions, random, ddf
) -> Fit:
    """The fit of a table of runs, or the one that a table of tests is of."""
    asked = list(dict.fromkeys([*as_list(by), *as_list(factor)]))
    described = formula or response or factors or block or random
    fit = fit_of(source)
    if fit is not None and described:
        raise UserError("these tests have their model already; give the table of runs for another")
    if fit is None and not described:
        raise UserError(
            "no model: give a table of runs with one, or what anova (without error strata) or "
            "mixed returned"
        )
    if fit is None and random is not None:
        if formula is None:
            raise UserError("a mixed model is given by a formula and its random terms")
        fit = fit_mixed(source, formula, random, ddf, asked)[0]
    elif fit is None:
        model = formula or response
        if formula is None:
            factors = as_list(factors) or asked
        found = given(source, model, factors, block, interactions=interactions)
        if found.error:
            raise UserError("Error() has a meaning only in an anova; name its terms in random")
        fit = LinearFit(found.model(source, [name for name in asked if name not in found.names]))
    unknown = [name for name in asked if name not in fit.model.data.levels]
    if unknown:
        numbers = [name for name in unknown if name in fit.model.data.quantities]
        raise UserError(
            f"{name!r} enters the model as a number: write C({name}), or see stats.trend"
            if name in numbers
            else f"{name!r} is no factor of the model"
            for name in unknown
        )
    return fit


class Grid:
    """The combinations of a model's levels at which means are asked for.

    ``at`` has one mapping name -> level (text) per mean, ``groups`` one per level of ``by``.
    """

    def __init__(self, fit: Fit, factor: str | Sequence[str], by: str | Sequence[str] | None):
        self.model = fit.model
        self.factors, self.by = as_list(factor), as_list(by)
        self.groups = self._product(self.by)
        self.at = [group | level for group in self.groups for level in self._product(self.factors)]

    def _product(self, names: list[str]) -> list[dict[str, str]]:
        levels = [self.model.data.levels[name] for name in names]
        # As R's expand.grid: the first factor runs fastest.
        return [dict(zip(names, reversed(c), strict=True)) for c in product(*reversed(levels))]

    def name(self, at: Mapping[str, str]) -> str:
        """A mean's name within its group: the levels of the factors."""
        return " ".join(at[name] for name in self.factors)

    def text(self, level) -> str:
        """The name of a level as a user writes it: a tuple where there are several factors."""
        parts = level if isinstance(level, tuple) else (level,)
        return " ".join(as_labels(pd.Series([part]))[0] for part in parts)

    def values(self, by_only: bool = False, at: list[dict] | None = None) -> pd.DataFrame:
        """Columns of the groups' and factors' levels, as the table of runs has them."""
        data = self.model.data
        names = self.by if by_only else [*self.by, *self.factors]
        at = self.at if at is None else at
        columns = {
            name: [data.originals[name][data.levels[name].index(a[name])] for a in at]
            for name in names
        }
        return pd.DataFrame(columns, index=range(len(at)))

    def weights(self, at: Sequence[Mapping[str, str | float]]) -> np.ndarray:
        """Rows (m, p) of the model matrix averaged over the grid at some levels or numbers."""
        return np.array([self._averaged(self._implied(dict(levels))) for levels in at])

    @cached_property
    def _inside(self) -> dict[str, tuple[str, np.ndarray]]:
        """Nested factors: the factor that holds them, and which of its levels holds each of theirs.

        A factor is nested where it stands in the model only beside another, and each of its levels
        in one level of that: its other combinations do not exist, and are not averaged over.
        """
        data, terms, found = self.model.data, self.model.terms, {}
        names = [name for name in dict.fromkeys(n for t in terms for n in t) if name in data.levels]
        for name in names:
            holders = [n for n in names if n != name and all(n in t for t in terms if name in t)]
            for other in sorted(holders, key=lambda n: -len(data.levels[n])):
                seen = np.unique(np.column_stack([data.codes[name], data.codes[other]]), axis=0)
                if len(seen) == len(data.levels[name]) > len(data.levels[other]):
                    found[name] = other, seen[:, 1]
                    break
        return found

    def _implied(self, levels: dict) -> dict:
        """Levels, with those that hold them."""
        data = self.model.data
        for name, (other, inside) in self._inside.items():
            if name in levels:
                at = inside[data.levels[name].index(levels[name])]
                levels.setdefault(other, data.levels[other][at])
        return levels

    def _averaged(self, levels: dict) -> np.ndarray:
        """One row (p,): evenly over the levels of what holds nested factors, then within each."""
        data = self.model.data
        holders = sorted({h for h, _ in self._inside.values()}, key=lambda n: len(data.levels[n]))
        left = next((name for name in holders if name not in levels), None)
        if left is None:
            parts = [
                reduce(np.kron, [self._part(term, name, levels) for name in term])
                for term in self.model.terms
            ]
            return np.concatenate([[1.0], *parts])
        within = self._within(left, levels)
        rows = [self._averaged(levels | {left: data.levels[left][k]}) for k in within]
        return np.mean(rows, axis=0)

    def _within(self, name: str, levels: Mapping) -> np.ndarray:
        """Numbers of the levels of a factor that exist beside the given ones."""
        every = np.arange(len(self.model.data.levels[name]))
        if name not in self._inside:
            return every
        holder, inside = self._inside[name]
        return every[inside == self.model.data.levels[holder].index(levels[holder])]

    def _part(self, term, name: str, levels: Mapping) -> np.ndarray:
        data = self.model.data
        if name in data.quantities:
            return np.array([levels.get(name, data.quantities[name].mean())])
        coding = self.model.coding(term, name)
        if name in levels:
            return coding[data.levels[name].index(levels[name])]
        return coding[self._within(name, levels)].mean(axis=0)


def cell_means(
    table: pd.DataFrame,
    response: str,
    factors: Sequence[str],
    block: str | Sequence[str] | None = None,
    *,
    replicate: str = "seed",
    within: str | None = None,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Means of the observed cells of a design, with their spread over seeds.

    >>> runs = pd.DataFrame([(a, b, s) for a in "uvw" for b in "xy" for s in (0, 1)])
    >>> runs.columns = ["input", "output", "seed"]
    >>> runs["score"] = [3, 3.1, 4, 4.2, 3.6, 3.5, 4.4, 4.6, 5, 5.2, 6.1, 6.0]
    >>> cell_means(runs, "score", ["input", "output"], "seed")[
    ...     ["input", "output", "runs", "mean", "adjusted", "se"]
    ... ].head(2).round(4)
      input output  runs  mean  adjusted      se
    0     u      x     2  3.05      3.05  0.0736
    1     u      y     2  4.10      4.10  0.0736

    Columns: the factors, runs, mean, min, max (of the runs as they are), replicate_sd (the
    pooled standard deviation over ``replicate`` within the cell and the other blocks),
    adjusted, se, low, high (the cell's marginal mean in ``block + cell``, which corrects for
    runs that are missing in some blocks). Order of first appearance. ``within`` takes the error
    from the cells within each level of a block, a task say.

    Raises
    ------
    UserError : a table that cannot be analysed.
    """
    factors = as_list(factors)
    table, cell = with_cells(table, factors)
    found = given(table, response, [cell], block)
    names = [name for name in found.names if name != cell]
    data = read(table, response, [cell, *names])
    used = table.loc[data.index].assign(**{name: as_labels(table[name]) for name in factors})
    used[response] = data.y + data.mean
    alike = [cell, *(name for name in names if name != replicate)]
    y, of_cell = used[response], used.groupby(cell, sort=False)
    squares = (y - used.groupby(alike, observed=True)[response].transform("mean")) ** 2
    df = of_cell.size() - used.drop_duplicates(alike).groupby(cell, sort=False).size()
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
    model = CellsModel(data, found.blocks, cell)
    error = model if within is None else found.cells(table, factors, within)
    adjusted, se = model.adjusted(error.variance)
    margin = (float(stdtrit(error.df, 0.5 + confidence / 2)) if error.df else NAN) * se
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
