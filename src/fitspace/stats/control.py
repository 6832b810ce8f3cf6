"""Levels against one control: Dunnett's test, non-inferiority and equivalence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import numpy as np
import pandas as pd

from fitspace.core.errors import UserError
from fitspace.core.texts import share
from fitspace.stats.clusters import KINDS, own_spreads
from fitspace.stats.fits import LinearFit
from fitspace.stats.given import given
from fitspace.stats.linear import Model
from fitspace.stats.means import Grid, compare
from fitspace.stats.multiplicity import adjusted, compared, tail


def dunnett(
    table: pd.DataFrame,
    response: str,
    factor: str,
    control,
    block: str | Sequence[str] | None = None,
    alternative: str = "two-sided",
    *,
    robust: str | None = None,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Every level of a factor against one of them, as one family (Dunnett 1955).

    >>> table = pd.DataFrame(
    ...     {"y": [4.0, 4.5, 5.0, 5.5, 6.5, 6.0], "arm": ["full"] * 2 + ["lora"] * 2 + ["vpt"] * 2}
    ... )
    >>> dunnett(table, "y", "arm", "full")[["contrast", "estimate", "p", "p_adjusted"]].round(4)
          contrast  estimate       p  p_adjusted
    0  lora - full       1.0  0.0663      0.1069
    1   vpt - full       2.0  0.0109      0.0180

    The model is ``block + factor``; a block may be a combination, ``task:seed``; for any other
    model see `pairs` with a control. Columns as there, rows in the order of the levels. p_adjusted
    and the limits are exact to 1e-13 where the correlations are products, as without blocks or
    with complete ones, and to about 1e-4 otherwise (see `multiplicity`). ``robust``, "cr2" or
    "cr3", lets every run have its own variance, as in `anova`.

    Raises
    ------
    UserError : a table that cannot be analysed, or a control that is no level of the factor.
    """
    fit = _fitted(given(table, response, [factor], block).model(table), robust)
    result = compare(fit, factor, control=control, alternative=alternative, confidence=confidence)
    result.attrs["notes"] = fit.model.data.notes
    return result


def noninferiority(
    table: pd.DataFrame,
    response: str,
    factor: str,
    control,
    margin: float | str,
    block: str | Sequence[str] | None = None,
    higher_is_better: bool = True,
    *,
    base=None,
    adjust: str = "dunnett",
    robust: str | None = None,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Which levels are worse than the control by less than a margin declared beforehand.

    >>> table = pd.DataFrame(
    ...     {"y": [6.0, 6.3, 5.8, 6.1, 2.5, 2.2], "arm": ["full"] * 2 + ["lora"] * 2 + ["none"] * 2}
    ... )
    >>> found = noninferiority(table, "y", "arm", "full", margin="25%", base="none")
    >>> found[["contrast", "estimate", "margin", "p_adjusted", "noninferior"]].round(4)
          contrast  estimate  margin  p_adjusted  noninferior
    0  lora - full      -0.2    0.95      0.0192         True

    The model is ``block + factor``, and its error is that of all levels together; with tasks,
    ``block=["task", "task:seed", "task:arm"]`` keeps what arms do in single tasks out of it.
    Columns: contrast, estimate, se, df, margin, t and p (one-sided, against the margin),
    p_adjusted, low, high (simultaneous one-sided limits each: non-inferior where
    ``low > -margin``, or with
    lower the better ``high < margin``), p_equivalent and p_equivalent_adjusted (two one-sided
    tests), noninferior and equivalent (the adjusted p below ``1 - confidence``).

    Parameters
    ----------
    margin : a number above 0, in units of the response; or, as text, the share of the gain from
        the base to the control: ``"10%"``.
    base : a level that the control must have beaten (one-sided, unadjusted) for a claim to have
        a meaning: ``attrs["assay"]`` has estimate, se, df, t and p of control - base. Where it
        has not, nothing is non-inferior. The base itself is not compared.
    adjust : "dunnett" (exact single step), "holm", "bonferroni" or "none".
    robust : "cr2" or "cr3" lets every run have its own variance; a claim rests on this beside the
        pooled one where runs may spread unalike (see `deciding`).

    Raises
    ------
    UserError : a table that cannot be analysed, a margin out of range, or an unknown level.
    """
    of_gain = share_of(margin)
    if of_gain is not None and base is None:
        raise UserError(f"margin: {margin!r} is a share of the gain from the base; name the base")
    rows, correlation, notes = _against(table, response, factor, control, block, robust)
    better, alpha, assay = 1 if higher_is_better else -1, 1 - confidence, None
    if base is not None:
        names = [name.removesuffix(f" - {control}") for name in rows["contrast"]]
        if str(base) not in names:
            raise UserError(
                f"base: no level {base!r} beside the control; levels: {', '.join(names)}"
            )
        at = names.index(str(base))
        assay = _assay(rows.iloc[at], better)
        margin = margin if of_gain is None else of_gain * abs(assay["estimate"])
        others = [i for i in range(len(rows)) if i != at]
        rows, correlation = rows.iloc[others], correlation[np.ix_(others, others)]
        rows = rows.reset_index(drop=True)
    family = {"adjust": adjust, "correlation": correlation, "confidence": confidence}
    above = compared(
        rows.assign(estimate=rows["estimate"] + margin), alternative="greater", **family
    )
    below = compared(rows.assign(estimate=rows["estimate"] - margin), alternative="less", **family)
    side = above if better > 0 else below
    result = rows.assign(margin=margin, t=side["t"], p=side["p"], p_adjusted=side["p_adjusted"])
    result["low"], result["high"] = above["low"] - margin, below["high"] + margin
    result["p_equivalent"] = np.maximum(above["p"], below["p"])
    if adjust == "dunnett":
        both = np.maximum(above["p_adjusted"], below["p_adjusted"])
    else:
        both = adjusted(result["p_equivalent"], adjust)
    result["p_equivalent_adjusted"] = both
    sensitive = assay is None or assay["p"] < alpha
    result["noninferior"] = sensitive & (result["p_adjusted"] < alpha)
    result["equivalent"] = sensitive & (result["p_equivalent_adjusted"] < alpha)
    if not sensitive:
        notes = [
            *notes,
            f"{control} is not shown to differ from {base} for the better (p = "
            f"{assay['p']:.3g}): nothing can be called as good as it",
        ]
    result.attrs = {"notes": notes} | ({"assay": assay} if assay else {})
    return result


def share_of(margin: float | str) -> float | None:
    """The share that a margin such as ``"10%"`` is; None for one in units of the response.

    Raises
    ------
    UserError : anything else than a number above 0 or a share between 0% and 100%.
    """
    if isinstance(margin, Real) and not isinstance(margin, bool) and 0 < margin < math.inf:
        return None
    found = share(margin) if isinstance(margin, str) else None
    if found is None:
        raise UserError(
            f"margin: {margin!r}; allowed: a finite number above 0, or the share of the gain from "
            "the base to the control, between 0% and 100%"
        )
    return found


def _assay(row: pd.Series, better: int) -> dict:
    """The control less the base, and whether it is better: one-sided."""
    estimate, se, df = -float(row["estimate"]), float(row["se"]), float(row["df"])
    t = estimate / se if se > 0 else math.nan
    p = float(tail(t, df, "greater" if better > 0 else "less"))
    return {"estimate": estimate, "se": se, "df": df, "t": t, "p": p}


def _fitted(model: Model, robust: str | None) -> LinearFit:
    if robust not in (None, *KINDS):
        raise UserError(f"robust: {robust!r}; allowed: {', '.join(KINDS)}")
    return own_spreads(model, robust) if robust else LinearFit(model)


def _against(table, response, factor, control, block, robust):
    """Differences of the levels from the control: rows, their correlation, and notes."""
    found = given(table, response, [factor], block)
    fit = _fitted(found.model(table), robust)
    grid = Grid(fit, factor, None)
    levels, name = [grid.name(at) for at in grid.at], grid.text(control)
    if name not in levels:
        raise UserError(f"control: {factor} has no level {control!r}; levels: {', '.join(levels)}")
    rows, at = grid.weights(grid.at), levels.index(name)
    weights = np.delete(rows - rows[at], at, axis=0)
    table = fit.estimates(weights)
    table.insert(0, "contrast", [f"{level} - {name}" for level in levels if level != name])
    notes = fit.model.data.notes
    if table["estimate"].isna().any():
        notes = [*notes, "some differences cannot be told apart from the blocks"]
    table.attrs["notes"] = notes
    return table, fit.correlation(weights), notes
