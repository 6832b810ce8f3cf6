"""Claims that hold whether or not the runs spread alike."""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from fitspace.core.errors import UserError
from fitspace.stats import effects
from fitspace.stats.anova import anova
from fitspace.stats.blocks import TASK
from fitspace.stats.clusters import own_spreads
from fitspace.stats.fits import LinearFit, fit_of
from fitspace.stats.formula import Term, label, term_of
from fitspace.stats.given import given
from fitspace.stats.linear import Model, with_cells
from fitspace.stats.means import Grid, differences
from fitspace.stats.multiplicity import compared
from fitspace.stats.variances import brown_forsythe

NAN = float("nan")
RESIDUAL = "residual of the model"
# Degrees of freedom below which runs do not tell how they spread.
FEW = 4


def deciding(
    table: pd.DataFrame,
    response: str | None = None,
    factors: str | Sequence[str] | None = None,
    *,
    block: str | Sequence[str] | None = None,
    interactions: bool = False,
    formula: str | None = None,
    type: int = 2,
) -> pd.DataFrame:
    """The p values of an analysis of variance on which a claim may rest: one row per term.

    >>> runs = pd.DataFrame({"arm": list("aaabbbccc"), "y": [1, 1.1, 0.9, 1, 1.2, 1.1, 2, 9, 4.0]})
    >>> deciding(runs, "y ~ arm")[["source", "p", "p_own_spreads", "p_deciding"]].round(4)
      source       p  p_own_spreads  p_deciding
    0    arm  0.0941         0.2656      0.2656

    Columns: source, df, F, p (the classical F, whose error is that of all runs together), den_df,
    F_own_spreads and p_own_spreads (hc2 with its own degrees of freedom, see `ClusterFit`: each run
    may have its own variance), spread_ratio (the largest over the smallest residual standard
    deviation of the term's levels) and p_spreads (Brown and Forsythe's, of the residuals),
    p_deciding (the larger of the two p, NaN where one is not known: so few runs cannot tell) and
    p_deciding_holm (over the terms but blocks).

    On the committed designs, with the spreads of their own residuals, the classical F finds an
    effect that is not there in up to 40% of cases instead of 5%, p_deciding in at most 7%
    (benchmarks/error_rates.py). No test of the spreads chooses between them: it would miss what few
    runs hide.

    Raises
    ------
    UserError : as `anova`.
    """
    model = {"response": response, "factors": factors, "block": block, "formula": formula}
    options = model | {"interactions": interactions, "type": type}
    plain, own = anova(table, **options), anova(table, **options, robust="cr2")
    result = plain.iloc[:-1][["source", "df", "F", "p"]].copy()
    result["den_df"], result["F_own_spreads"] = own["den_df"].iloc[:-1], own["F"].iloc[:-1]
    result["p_own_spreads"] = own["p"].iloc[:-1]
    found = fit_of(plain).model
    rest = table.loc[found.data.index].assign(**{RESIDUAL: found.residuals})
    ratios, tests = zip(*(_spreads(rest, list(term), found) for term in found.terms), strict=True)
    result["spread_ratio"], result["p_spreads"] = ratios, tests
    result["p_deciding"] = np.maximum(result["p"], result["p_own_spreads"])  # NaN stays NaN
    blocks = given(
        table, response, factors, block, interactions=interactions, formula=formula
    ).blocks
    ours = [term not in blocks for term in found.terms]
    result["p_deciding_holm"] = effects.holm(result["p_deciding"].where(ours).tolist())
    unknown = result["source"][result["p_deciding"].isna()].tolist()
    notes = list(dict.fromkeys(plain.attrs["notes"] + own.attrs["notes"]))
    if unknown:
        notes.append(f"{', '.join(unknown)}: so few runs cannot tell, if they spread unalike")
    result.attrs["notes"] = notes
    return result


def _spreads(rest: pd.DataFrame, names: list[str], model) -> tuple[float, float]:
    """Largest over smallest residual standard deviation of a term's levels, and their test's p."""
    if any(name in model.data.quantities for name in names):
        return NAN, NAN
    left = pd.Series(1 - model.leverage, rest.index)
    groups = [rest[name] for name in names]
    squares = (rest[RESIDUAL] ** 2).groupby(groups, observed=True).sum()
    free = left.groupby(groups, observed=True).sum()
    sd = np.sqrt(squares / free.where(free > 1e-9))
    known = sd.notna().all() and sd.min() > model.data.rounding
    ratio = float(sd.max() / sd.min()) if known else NAN
    return ratio, float(brown_forsythe(rest, RESIDUAL, names)["p"].iloc[0])


def separated(
    table: pd.DataFrame,
    factor: str,
    *,
    control=None,
    by: str | None = None,
    adjust: str | None = None,
    alternative: str = "two-sided",
    **model,
) -> pd.DataFrame:
    """`pairs` that differ whether or not the runs spread alike.

    >>> runs = pd.DataFrame({"arm": list("aaabbbccc"), "y": [1, 1.1, 0.9, 2, 2.2, 2.1, 2, 9, 4.0]})
    >>> found = separated(runs, "arm", formula="y ~ arm")
    >>> found[["contrast", "p_adjusted", "p_own_spreads", "p_deciding"]].round(4)
      contrast  p_adjusted  p_own_spreads  p_deciding
    0    a - b      0.8010         0.0009      0.8010
    1    a - c      0.1234         0.3564      0.3564
    2    b - c      0.2784         0.5444      0.5444

    Columns of `pairs`, df_own_spreads and p_own_spreads (adjusted alike, Šidák's for Dunnett's, by
    hc3 with each pair's own degrees of freedom), p_deciding, the larger of both adjusted p, low and
    high, the wider of both, with se_limits and df_limits of the same test, and ``few``: fewer than
    4 such degrees of freedom, too few to tell how runs spread. Of a study with tasks:
    ``separated(runs, "arm", formula="y ~ task*arm + task:seed")``.

    On the committed studies Tukey's test finds a difference that is not there in up to 45% of cases
    instead of 5%, p_deciding in at most 5%, against a control in at most 2%
    (benchmarks/error_rates.py).

    Parameters
    ----------
    control, by, adjust, alternative : as in `pairs`.
    model : ``formula``, or ``model`` (the response), ``factors`` and ``block``, as in `given`.

    Raises
    ------
    UserError : as `anova`.
    """
    fitted = given(table, **model).model(table)
    result = apart(fitted, factor, control=control, by=by, adjust=adjust, alternative=alternative)
    names = [f"{a} - {b}" for a, b in zip(result["level"], result["other"], strict=True)]
    result.insert(result.columns.get_loc("level"), "contrast", names)
    return result.drop(columns=["level", "other"])


def apart(model: Model, factor: str, *, control=None, adjust: str | None = None, **options):
    """`separated` of a model, with both levels of a difference as text: level, other."""
    adjust = adjust or ("tukey" if control is None else "dunnett")
    options |= {"control": control, "adjust": adjust}
    plain = differences(LinearFit(model), factor, **options)
    # Dunnett's step is exact for one error; with each difference's own it costs a minute.
    options["adjust"] = "sidak" if adjust == "dunnett" else adjust
    own = differences(own_spreads(model, "cr3"), factor, **options)
    return both(plain, own)


def both(plain: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    """Comparisons with one variance, completed by the same with each run's own.

    The p on which a claim may rest is the larger, and its limits are the wider.
    """
    result = plain.assign(df_own_spreads=own["df"], p_own_spreads=own["p_adjusted"])
    result["p_deciding"] = np.maximum(result["p_adjusted"], result["p_own_spreads"])
    for name, values in of_limits(plain, own).items():
        result[name] = values
    result["low"] = np.minimum(plain["low"], own["low"])
    result["high"] = np.maximum(plain["high"], own["high"])
    return result.assign(few=~(result["df_own_spreads"] >= FEW))


def of_limits(plain: pd.DataFrame, own: pd.DataFrame) -> dict[str, np.ndarray]:
    """se_limits and df_limits: those of the test whose limits are the wider."""
    wider = own["high"] - own["low"] > plain["high"] - plain["low"]
    return {f"{name}_limits": np.where(wider, own[name], plain[name]) for name in ("se", "df")}


def declared(
    table: pd.DataFrame,
    response: str,
    factors: Sequence[str],
    named: Mapping[str, Mapping[str, Mapping[str, float]]],
    block: Sequence[str] = (),
    *,
    interactions: bool = False,
) -> pd.DataFrame:
    """Contrasts that were named beforehand, of levels or of cells, as one family.

    >>> runs = pd.DataFrame([(a, b, s) for a in "uvw" for b in "xy" for s in (0, 1, 2)])
    >>> runs.columns = ["input", "output", "seed"]
    >>> runs["y"] = [3, 3.1, 3, 4, 4.2, 4, 3.6, 3.5, 3.6, 4.4, 4.6, 4.3, 5, 5.2, 5, 6.1, 6, 6.2]
    >>> asked = {
    ...     "w against the rest": {"input": {"w": 1, "u": -0.5, "v": -0.5}},
    ...     "the two best cells": {"input:output": {"w:y": 1, "w:x": -1}},
    ... }
    >>> found = declared(runs, "y", ["input", "output"], asked, ["seed"])
    >>> found[["contrast", "estimate", "p", "p_deciding", "p_deciding_holm"]].round(4)
                 contrast  estimate    p  p_deciding  p_deciding_holm
    0  w against the rest    1.8083  0.0      0.0000           0.0000
    1  the two best cells    1.0333  0.0      0.0018           0.0018

    ``named``: name -> factor, or several joined by ``:`` -> level, or cell joined likewise ->
    coefficient; what is left out has 0. A contrast of levels is one of their marginal means in
    ``block + factors``, one of cells of the means of the cells. Columns: contrast, of (the factor
    or factors), estimate, se, df, t, p (one variance for all runs), df_own_spreads, p_own_spreads
    (hc3), p_deciding (the larger p), p_deciding_holm (over all contrasts), low, high (simultaneous
    by Bonferroni, the wider of both), few (see `separated`). ``attrs["joint"]``: for each factor
    or cell of several contrasts, F, num_df, den_df, p and p_own_spreads of all being 0.

    Raises
    ------
    UserError : a table that cannot be analysed, or levels or cells that are not there.
    """
    fits: dict[str, _Asked] = {}
    rows: dict[str, list] = {"plain": [], "own": []}
    of, problems, weights = [], [], {}
    for name, asked in named.items():
        ((key, levels),) = asked.items()
        if key not in fits:
            fits[key] = _Asked(table, response, factors, term_of(key), block, interactions)
        row, missing = fits[key].row(levels)
        problems += [f"contrast {name!r}: {text}" for text in missing]
        weights.setdefault(key, []).append(row)
        rows["plain"].append(fits[key].plain.estimates(row[None]))
        rows["own"].append(fits[key].own.estimates(row[None]))
        of.append(key)
    if not named:
        problems.append("contrasts: none named")
    if problems:
        raise UserError(problems)
    plain, own = (compared(pd.concat(r, ignore_index=True), "bonferroni") for r in rows.values())
    # Each p is its own; Holm's adjustment takes the larger ones together.
    plain, own = (side.assign(p_adjusted=side["p"]) for side in (plain, own))
    result = both(plain, own).drop(columns="p_adjusted")
    result.insert(0, "contrast", list(named))
    result.insert(1, "of", of)
    holm = effects.holm(result["p_deciding"].tolist())
    result.insert(result.columns.get_loc("p_deciding") + 1, "p_deciding_holm", holm)
    ends = ["low", "high", "few"]
    result = result[[*(name for name in result if name not in ends), *ends]]
    result.attrs["joint"] = {
        key: fits[key].plain.test(np.array(rows))
        | {"p_own_spreads": fits[key].own.test(np.array(rows))["p"]}
        for key, rows in weights.items()
        if len(rows) > 1
    }
    return result


class _Asked:
    """The two fits of a model whose factor, or whose cells, are contrasted."""

    def __init__(self, table, response, factors, of: Term, block, interactions: bool):
        if len(of) > 1:
            table, cell = with_cells(table, of)
            in_tasks = [term for term in block if {*term_of(term)} & {*factors, *of}]
            block = [term for term in block if term not in in_tasks]
            block += [label((TASK, cell))] if in_tasks else []
            factors = [cell, *(name for name in factors if name not in of)]
            interactions = False
        else:
            (cell,) = of
        options = {"interactions": interactions}
        model = given(table, response, list(factors), block, **options).model(table)
        self.plain, self.own = LinearFit(model), own_spreads(model, "cr3")
        grid = Grid(self.plain, cell, None)
        names = [grid.name(at) for at in grid.at]
        if len(of) > 1:  # cells are told by the text of a tuple of their labels
            names = [label(literal_eval(name)) for name in names]
        self.at = dict(zip(names, grid.weights(grid.at), strict=True))

    def row(self, levels: Mapping[str, float]) -> tuple[np.ndarray, list[str]]:
        """Weights (p,) of the model matrix, and what is wrong with the levels."""
        weights = {str(level): value for level, value in levels.items()}
        missing = [
            f"no {level!r}; there are {', '.join(self.at)}"
            for level in weights
            if level not in self.at
        ]
        known = [value * self.at[level] for level, value in weights.items() if level in self.at]
        return sum(known, np.zeros(self.plain.model.matrix.shape[1])), missing
