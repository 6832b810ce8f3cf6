"""As good as a reference, by a margin declared beforehand: non-inferiority and equivalence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit

from fitspace.core.errors import UserError
from fitspace.stats.effects import holm
from fitspace.stats.linear import as_labels, missing_columns

NAN = float("nan")


def equivalence(
    runs: pd.DataFrame,
    response: str,
    margin: float,
    point: str,
    against: pd.DataFrame,
    *,
    lower_is_better: bool,
    pair: Sequence[str] = ("task", "seed"),
    alpha: float = 0.05,
) -> pd.DataFrame:
    """Hold every point against a reference, by the differences of paired runs.

    >>> runs = pd.DataFrame({"point": ["lora"] * 4, "task": list("aabb"), "seed": [0, 1, 0, 1]})
    >>> full = runs.drop(columns="point").assign(y=[0.50, 0.52, 0.61, 0.60])
    >>> runs = runs.assign(y=[0.50, 0.51, 0.60, 0.60])
    >>> found = equivalence(runs, "y", 0.02, "point", full, lower_is_better=False)
    >>> found[["point", "pairs", "difference", "df", "p_noninferior", "noninferior"]].round(4)
      point  pairs  difference  df  p_noninferior  noninferior
    0  lora      4      -0.005   2         0.0257         True

    A pair is a run of the point and one of the reference with the same ``pair`` columns; they
    share their random numbers. The first of ``pair`` is the stratum: the claim is about the
    mean over just these tasks, each with the same weight, of the mean differences, whatever
    the numbers of their pairs. With m_t differences in task t of T and their variance s2,
    pooled within tasks, its squared standard error is ``s2 sum(1 / m_t) / T^2`` on ``pairs - T``
    degrees of freedom.

    One row per point: ``point``, pairs, unpaired (runs of the point or the reference without
    the other; they are left out), difference (point minus reference, on the response's scale),
    se, df, low, high (the ``1 - 2 alpha`` interval, which lies within the margin just where
    p_equivalent is below alpha; Schuirmann 1987), margin, p_noninferior (not worse than the
    reference by the margin), p_equivalent (two one-sided tests), both with Holm's adjustment
    over the points, noninferior, equivalent (the adjusted p below alpha). Without degrees of
    freedom or spread there is no p value, and nothing is shown.

    Parameters
    ----------
    runs : the runs of all points, one row each; those without a value count as unpaired.
    margin : the smallest difference that matters, above 0, on the response's scale.
    against : the runs of the reference.

    Raises
    ------
    UserError : a margin that is not a number above 0, missing columns, no runs, a response
        that is not finite numbers, an empty label, two runs of one point with the same pair.
    """
    pair = list(pair)
    _check(runs, response, margin, point, against, pair)
    reference = _values(against, response)
    partner = _labels(against, pair).get_indexer(_labels(runs, pair))
    difference = _values(runs, response) - np.where(partner < 0, NAN, reference[partner])
    strata = as_labels(runs[pair[0]]).to_numpy()
    codes, names = pd.factorize(as_labels(runs[point]))
    rows = []
    for code, name in enumerate(names):
        of = codes == code
        estimate = _mean_of_means(difference[of], strata[of])
        runs_of_both = of.sum() + len(reference) - (partner[of] >= 0).sum()
        row = {point: name, "pairs": estimate.pairs, "unpaired": runs_of_both - estimate.pairs}
        rows.append(row | estimate.held_to(margin, -1 if lower_is_better else 1, alpha))
    result = pd.DataFrame(rows)
    for claim in ("noninferior", "equivalent"):
        result[f"p_{claim}_holm"] = holm(result[f"p_{claim}"].tolist())
    for claim in ("noninferior", "equivalent"):
        result[claim] = result[f"p_{claim}_holm"] < alpha
    return result


@dataclass(frozen=True)
class _Estimate:
    pairs: int
    mean: float
    se: float
    df: int

    def held_to(self, margin: float, better: int, alpha: float) -> dict:
        """Interval and p values; ``better`` is the sign of a difference for the better."""
        tested = self.df > 0 and self.se > 0
        reach = stdtrit(self.df, 1 - alpha) * self.se if tested else NAN
        above, below = (
            float(stdtr(self.df, -(margin + side * self.mean) / self.se)) if tested else NAN
            for side in (1, -1)
        )
        return {
            "difference": self.mean,
            "se": self.se,
            "df": self.df,
            "low": self.mean - reach,
            "high": self.mean + reach,
            "margin": margin,
            "p_noninferior": above if better > 0 else below,
            "p_equivalent": max(above, below),
        }


def _mean_of_means(difference: np.ndarray, strata: np.ndarray) -> _Estimate:
    """The mean over strata of their means; NaN differences have no pair."""
    paired = ~np.isnan(difference)
    difference = difference[paired]
    codes = pd.factorize(strata[paired])[0]
    count = np.bincount(codes)
    pairs, df = len(difference), len(difference) - len(count)
    means = np.bincount(codes, difference) / count
    if not df:
        return _Estimate(pairs, means.mean() if pairs else NAN, NAN, 0)
    squares = np.sum((difference - means[codes]) ** 2)
    # What rounding leaves of equal differences is no spread.
    variance = squares / df if squares > 1e-24 * np.sum(difference**2) else 0.0
    return _Estimate(pairs, means.mean(), (variance * np.sum(1 / count)) ** 0.5 / len(count), df)


def _labels(runs: pd.DataFrame, names: list[str]) -> pd.MultiIndex:
    return pd.MultiIndex.from_arrays([as_labels(runs[name]) for name in names])


def _values(runs: pd.DataFrame, response: str) -> np.ndarray:
    return pd.to_numeric(runs[response], errors="coerce").to_numpy(float)


def _check(
    runs: pd.DataFrame,
    response: str,
    margin: float,
    point: str,
    against: pd.DataFrame,
    pair: list[str],
) -> None:
    problems = missing_columns(runs, [response, point, *pair])
    problems += [f"reference: {text}" for text in missing_columns(against, [response, *pair])]
    if not isinstance(margin, Real) or not 0 < margin < math.inf:
        problems.append(f"margin: {margin!r}; allowed: a finite number above 0")
    if not problems:
        problems += _bad_rows(runs, response, [point, *pair])
        problems += [f"reference: {text}" for text in _bad_rows(against, response, pair)]
    if problems:
        raise UserError(problems)


def _bad_rows(table: pd.DataFrame, response: str, key: list[str]) -> list[str]:
    """One problem per way in which rows cannot be paired or subtracted."""
    if table.empty:
        return ["no runs; needed: at least 1"]
    problems = []
    numbers = pd.to_numeric(table[response], errors="coerce")
    bad = table[response][(numbers.isna() & table[response].notna()) | np.isinf(numbers)]
    if len(bad):
        shown = ", ".join(repr(str(cell)) for cell in bad[:5])
        problems.append(f"response {response!r}: {shown}; allowed: finite numbers")
    labels = pd.DataFrame({name: as_labels(table[name]) for name in key})
    empty = [name for name in key if labels[name].isna().any()]
    if empty:
        problems.append(f"columns {empty}: empty cells; allowed: a label in every row")
    twice = labels[labels.duplicated()].drop_duplicates()
    if len(twice):
        shown = "; ".join(", ".join(map(str, row)) for row in twice[:5].to_numpy())
        problems.append(f"more than one run with the same {', '.join(key)}: {shown}")
    return problems
