"""Claims that hold whether or not the runs spread alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fitspace.stats import effects
from fitspace.stats.anova import anova
from fitspace.stats.clusters import ClusterFit
from fitspace.stats.fits import LinearFit, fit_of
from fitspace.stats.given import given
from fitspace.stats.means import compare
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

    Columns: source, df, F, p (the classical F, whose error is that of all runs together), den_df
    and p_own_spreads (hc2 with its own degrees of freedom, see `ClusterFit`: each run may have its
    own variance), spread_ratio (the largest over the smallest residual standard deviation of the
    term's levels) and p_spreads (Brown and Forsythe's, of the residuals), p_deciding (the larger
    of the two p, NaN where one is not known: so few runs cannot tell) and p_deciding_holm (over
    the terms but blocks).

    On the committed studies, where one level spreads up to 20 times as far as another, the
    classical F finds an effect that is not there in up to 40% of cases instead of 5%, p_deciding
    in at most 7% (benchmarks/error_rates.py). No test of the spreads chooses between them: it
    would miss what few runs hide.

    Raises
    ------
    UserError : as `anova`.
    """
    model = {"response": response, "factors": factors, "block": block, "formula": formula}
    options = model | {"interactions": interactions, "type": type}
    plain, own = anova(table, **options), anova(table, **options, robust="cr2")
    result = plain.iloc[:-1][["source", "df", "F", "p"]].copy()
    result["den_df"], result["p_own_spreads"] = own["den_df"].iloc[:-1], own["p"].iloc[:-1]
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

    Columns of `pairs`, df_own_spreads and p_own_spreads (adjusted alike, by hc3 with each pair's
    own degrees of freedom), p_deciding, the larger of both adjusted p, low and high the wider of
    both, and ``few``: fewer than 4 such degrees of freedom, too few to tell how runs spread. Of a
    study with tasks: ``separated(runs, "arm", formula="y ~ task*arm + task:seed")``.

    On the committed studies Tukey's test finds a difference that is not there in up to 45% of cases
    instead of 5%, p_deciding in at most 5%; against a control with two runs a point, which is
    ``few``, in up to 9% (benchmarks/error_rates.py).

    Parameters
    ----------
    control, by, adjust, alternative : as in `pairs`.
    model : ``formula``, or ``model`` (the response), ``factors`` and ``block``, as in `given`.

    Raises
    ------
    UserError : as `anova`.
    """
    options = {"control": control, "by": by, "adjust": adjust, "alternative": alternative}
    found = given(table, **model)
    fitted = found.model(table)
    plain = compare(LinearFit(fitted), factor, **options)
    own = compare(ClusterFit(fitted, np.arange(fitted.n), "cr3"), factor, **options)
    result = plain.assign(df_own_spreads=own["df"], p_own_spreads=own["p_adjusted"])
    result["p_deciding"] = np.maximum(result["p_adjusted"], result["p_own_spreads"])
    result["low"] = np.minimum(plain["low"], own["low"])
    result["high"] = np.maximum(plain["high"], own["high"])
    return result.assign(few=~(result["df_own_spreads"] >= FEW))
