"""Effect sizes, each with an interval of its own."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import gammaln, nctdtr

from fitspace.core.errors import UserError
from fitspace.stats import effects
from fitspace.stats.fits import fit_of
from fitspace.stats.linear import read

NAN = float("nan")


def effect_sizes(tests: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Shares of variance of the terms that `anova` tested, by every usual definition.

    >>> from fitspace.stats import anova
    >>> table = pd.DataFrame({"y": [4.1, 4.5, 5.2, 5.0, 6.3, 6.1], "arm": list("aabbcc")})
    >>> found = effect_sizes(anova(table, "y ~ arm"))
    >>> found[["source", "eta2_partial", "omega2_partial", "omega2_low", "omega2_high"]].round(4)
      source  eta2_partial  omega2_partial  omega2_low  omega2_high
    0    arm        0.9681          0.9368      0.3974       0.9797

    One row per term: source, df, den_df, F; of the sample eta2 (SS over the sum of the table),
    eta2_partial, with eta2_low and eta2_high, ``ncp / (ncp + df2)`` at the limits of the
    noncentrality; of the population omega2, omega2_partial (by the number of rows),
    omega2_partial_by_F (by the degrees of freedom; the same where no other term is in the model)
    and epsilon2_partial, with omega2_low and omega2_high, ``ncp / (ncp + df1 + df2 + 1)``: the
    parameter that omega squared estimates, on the same scale; and ncp_low, ncp_high. Estimates
    below 0 are 0. Limits are two-sided and exact.

    Raises
    ------
    UserError : tests without sums of squares, as robust ones are.
    """
    fit = fit_of(tests)
    if fit is None or "ss" not in tests or tests["ss"].isna().any():
        raise UserError(
            "effect sizes are of what anova(...) returns, not robust and without strata"
        )
    rest = tests.iloc[-1]
    df2, error = rest["df"], rest["ss"] / rest["df"] if rest["df"] else NAN
    total, n = tests["ss"].sum(), fit.model.n
    rows = []
    for row in tests.iloc[:-1].to_dict("records"):
        F, df1, ss = row["F"], row["df"], row["ss"]
        low = high = NAN
        if F == F and df1:
            tail = (1 - confidence) / 2
            low, high = effects.ncp(F, df1, df2, 1 - tail), effects.ncp(F, df1, df2, tail)
        excess = df1 * (F - 1)
        size = df1 + df2 + 1
        rows.append(
            {
                "source": row["source"],
                "df": df1,
                "den_df": df2,
                "F": F,
                "eta2": ss / total if total else NAN,
                "eta2_partial": df1 * F / (df1 * F + df2),
                "eta2_low": low / (low + df2),
                "eta2_high": high / (high + df2),
                "omega2": _floored((ss - df1 * error) / (total + error)) if total else NAN,
                "omega2_partial": _floored(excess / (excess + n)),
                "omega2_partial_by_F": _floored(excess / (excess + size)),
                "omega2_low": low / (low + size),
                "omega2_high": high / (high + size),
                "epsilon2_partial": _floored(excess / (df1 * F + df2)),
                "ncp_low": low,
                "ncp_high": high,
            }
        )
    return pd.DataFrame(rows)


def _floored(value: float) -> float:
    return max(0.0, value) if value == value else NAN


def cohens_d(
    table: pd.DataFrame,
    response: str,
    factor: str,
    pair: str | None = None,
    *,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Standardised difference of two levels, with the limits of the noncentral t.

    >>> table = pd.DataFrame({"y": [4.0, 4.5, 5.0, 5.5, 6.5, 6.0], "arm": list("aaabbb")})
    >>> cohens_d(table, "y", "arm")[["contrast", "d", "low", "high", "g"]].round(4)
      contrast    d     low    high       g
    0    a - b -3.0 -5.5035 -0.3826 -2.3937

    One row: contrast (in the order of the levels), d, low, high, g, g_low, g_high (Hedges' exact
    correction), d_av (by the mean of both variances), df. With ``pair`` the rows of both levels
    that share its value are one pair: d is that of the differences (d_z), and d_rm undoes their
    correlation. NaN without spread.

    Raises
    ------
    UserError : a factor without exactly two levels, pairs that are not pairs, or a table that
        cannot be analysed.
    """
    data = read(table, response, [factor, *([pair] if pair else [])])
    levels, codes = data.levels[factor], data.codes[factor]
    if len(levels) != 2:
        raise UserError(f"{factor}: {len(levels)} levels; a standardised difference is of 2")
    one, other = (data.y[codes == k] for k in (0, 1))
    row = {"contrast": f"{levels[0]} - {levels[1]}"}
    if pair:
        one, other = _paired(data, factor, pair)
    variances = [float(np.var(y, ddof=1)) if len(y) > 1 else NAN for y in (one, other)]
    difference = float(one.mean() - other.mean())
    if pair:
        df, unit = len(one) - 1, len(one) ** -0.5
        sd = float(np.std(one - other, ddof=1)) if df else NAN
    else:
        df, unit = len(one) + len(other) - 2, (1 / len(one) + 1 / len(other)) ** 0.5
        shares = [len(one) - 1, len(other) - 1]
        sd = math.sqrt(np.dot(shares, np.nan_to_num(variances)) / df) if df else NAN
    if not sd > data.rounding:
        sd = NAN
    d = difference / sd
    low, high = (
        _ncp_t(d / unit, df, p) * unit for p in (0.5 + confidence / 2, 0.5 - confidence / 2)
    )
    exact = math.exp(gammaln(df / 2) - gammaln((df - 1) / 2)) / (df / 2) ** 0.5 if df > 1 else NAN
    row |= {"d": d, "low": low, "high": high, "g": d * exact, "g_low": low * exact}
    row |= {"g_high": high * exact, "d_av": difference / (sum(variances) / 2) ** 0.5}
    if pair:
        r = (sum(variances) - sd**2) / (2 * math.sqrt(variances[0] * variances[1]))
        row["d_rm"] = d * math.sqrt(2 * (1 - r))
    return pd.DataFrame([row | {"df": df}])


def _paired(data, factor: str, pair: str) -> tuple[np.ndarray, np.ndarray]:
    codes, partners = data.codes[factor], data.codes[pair]
    counts = np.zeros((len(data.levels[pair]), 2), int)
    np.add.at(counts, (partners, codes), 1)
    if (counts > 1).any():
        raise UserError(f"{pair}: more than one row of a level in one pair")
    values = np.full(counts.shape, NAN)
    values[partners, codes] = data.y
    whole = (counts == 1).all(axis=1)
    if whole.sum() < 2:
        raise UserError(f"{pair}: {whole.sum()} complete pairs; needed: at least 2")
    return values[whole, 0], values[whole, 1]


def _ncp_t(t: float, df: float, probability: float) -> float:
    """Noncentrality at which a t this large or smaller has the given probability."""
    if not math.isfinite(t):
        return NAN

    def off(ncp: float) -> float:
        return float(nctdtr(df, ncp, t)) - probability

    reach = 2.0
    while off(t - reach) < 0 or off(t + reach) > 0:
        reach *= 2
        if reach > 1e4:
            return NAN
    return float(brentq(off, t - reach, t + reach, xtol=1e-13))
