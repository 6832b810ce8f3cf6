"""Through what a factor acts: its effect on a response, split at a quantity in between."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fitspace.core.errors import UserError
from fitspace.stats.anova import model_of
from fitspace.stats.linear import ROUNDING, as_list, left_by, missing_columns, read

NAN = float("nan")


def mediation(
    table: pd.DataFrame,
    response: str,
    mediator: str,
    factors: str | Sequence[str],
    block: str | Sequence[str] = (),
    *,
    draws: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """How much of each factor's effect on a response runs through a mediator: a row per factor.

    >>> runs = pd.DataFrame([(a, s) for a in "uvw" for s in range(4)], columns=["input", "seed"])
    >>> runs["seen"] = [1, 1.2, 0.9, 1.1, 2, 2.3, 1.9, 2.1, 3, 3.1, 2.8, 3.2]
    >>> runs["score"] = 2 * runs["seen"] + [0, 0.1, 0, -0.1, 0.1, 0, -0.1, 0, 0, -0.1, 0, 0.1]
    >>> mediation(runs, "score", "seen", "input")[["factor", "slope", "total", "share"]].round(2)
      factor  slope  total  share
    0  input   2.13   1.61   1.07

    Product of coefficients (Baron and Kenny 1986), by two linear models: the mediator on
    ``block + factors`` gives the factor's effect on it, a; the response on these and the mediator
    gives the mediator's slope, b. A factor of several levels has a vector of effects (type II, in
    an orthonormal basis of its degrees of freedom): t on the response, a·b through the mediator
    (the relative indirect effects of Hayes and Preacher 2014). ``share`` is a·b along t,
    ``b·<a, t> / <t, t>``; for two levels that is the proportion mediated.

    Columns: factor, df, slope (b) with slope_low and slope_high, total (root mean square over the
    runs of the factor's effect on the response), indirect and direct (which add up to it), share
    with low and high: percentiles of a wild bootstrap that keeps the design (Rademacher signs,
    residuals over one less their leverage), so that runs may spread unalike. NaN where nothing can
    be estimated, and limits where a draw has no slope, as happens with two seeds and few levels.

    A share is no cause by itself: nobody set the mediator. It assumes that nothing else moves both
    it and the response, and that its slope is one for all levels.

    Raises
    ------
    UserError : a missing column, or a table that cannot be analysed.
    """
    factors, blocks = as_list(factors), as_list(block)
    if problems := missing_columns(table, [response, mediator, *factors, *_names(blocks)]):
        raise UserError(problems)
    table = table[table[response].notna() & table[mediator].notna()]
    model = model_of(table, response, factors, blocks)
    between = read(table.loc[model.data.index], mediator, factors)
    y, m, basis = model.data.y, between.y, model.basis
    left, rest = left_by(basis, m, between.rounding), left_by(basis, y, model.data.rounding)
    known = model.df > 1 and left @ left > ROUNDING * (m @ m)
    slope = float(left @ y / (left @ left)) if known else NAN
    rest = rest - slope * left
    parts = [model.added((name,), 2)[0] for name in factors]
    drawn = [np.full(draws, NAN)] * (1 + len(parts))
    if known:
        rng = np.random.default_rng(seed)
        leverage = model.leverage
        again = (m - left)[:, None] + _signed(left, leverage, draws, rng)
        leverage = leverage + left**2 / (left @ left)
        responses = (y - rest - slope * m)[:, None] + slope * again
        responses += _signed(rest, leverage, draws, rng)
        outside = again - basis @ (basis.T @ again)
        varied = np.sum(outside**2, axis=0)
        # Few runs: by some signs a mediator varies with factors and blocks alone, and has no slope.
        slopes = np.full(draws, NAN)
        told = varied > ROUNDING * (m @ m)
        slopes[told] = np.sum(outside * responses, axis=0)[told] / varied[told]
        drawn = [slopes, *(_share(part, responses, again, slopes) for part in parts)]
    tail = (1 - confidence) / 2
    limits = [np.quantile(values, [tail, 1 - tail]) for values in drawn]
    rows = []
    for name, part, (low, high) in zip(factors, parts, limits[1:], strict=True):
        effect = part.T @ y
        there = not model.data.is_rounding(float(effect @ effect), part.shape[1])
        share = float(_share(part, y, m, slope)) if there else NAN
        total = float(np.sqrt(effect @ effect / model.n))
        row = {"factor": name, "df": part.shape[1], "slope": slope}
        row |= {"slope_low": limits[0][0], "slope_high": limits[0][1], "total": total}
        row |= {"indirect": share * total, "direct": (1 - share) * total, "share": share}
        rows.append(row | {"low": low if there else NAN, "high": high if there else NAN})
    return pd.DataFrame(rows)


def _names(blocks: Sequence[str]) -> list[str]:
    return [name for term in blocks for name in term.split(":")]


def _share(part: np.ndarray, y: np.ndarray, m: np.ndarray, slope) -> np.ndarray:
    """``b·<a, t> / <t, t>`` of responses y and mediators m, (n, ...)."""
    t, a = part.T @ y, part.T @ m
    with np.errstate(divide="ignore", invalid="ignore"):
        return slope * np.sum(a * t, axis=0) / np.sum(t * t, axis=0)


def _signed(
    residuals: np.ndarray, leverage: np.ndarray, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Residuals (n, draws) with random signs; those of runs that fit themselves stay 0."""
    free = np.where(leverage < 1 - 1e-9, 1 - leverage, np.inf)
    return (residuals / free)[:, None] * rng.choice([-1.0, 1.0], size=(len(residuals), draws))
