"""Effect sizes with noncentral-F intervals, and the smallest effect a design can detect."""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.special import fdtrc, fdtri, ncfdtr

NAN = float("nan")


def eta2(F: float, df1: int, df2: int) -> float:
    """Partial eta squared, ``SS / (SS + RSS)``, from its F."""
    return df1 * F / (df1 * F + df2)


def omega2(F: float, df1: int, n: int) -> float:
    """Partial omega squared from F and the number of rows; 0 where F < 1 (Olejnik and Algina)."""
    return max(0.0, df1 * (F - 1) / (df1 * (F - 1) + n))


def ncp(F: float, df1: int, df2: int, probability: float) -> float:
    """Noncentrality at which an F this large or smaller has the given probability; 0 if none."""
    if not F > 0 or ncfdtr(df1, df2, 0.0, F) <= probability:
        return 0.0
    high = max(1.0, df1 * F)
    while ncfdtr(df1, df2, high, F) > probability:
        high *= 2
    return brentq(lambda x: ncfdtr(df1, df2, x, F) - probability, 0, high, xtol=1e-13, rtol=1e-14)


def interval(effect: float, df1: int, df2: int, level: float = 0.95) -> tuple[float, float]:
    """Two-sided interval of a partial effect size.

    The effect is turned into the F that has it as its eta squared, the noncentral F is
    inverted at both tails, and a noncentrality is read as ``ncp / (ncp + df2)``: the
    convention of the R package effectsize, for eta and omega squared alike. So an omega
    squared of 0 (F below 1) has the interval [0, 0]; read eta squared's interval there.
    NaN without degrees of freedom, and for an exact fit.
    """
    if not 0 <= effect < 1 or df1 < 1 or df2 < 1:
        return NAN, NAN
    F = effect / df1 / ((1 - effect) / df2)
    if df1 * F > 1e8:  # the noncentral F itself is lost to rounding beyond this
        return NAN, NAN
    tail = (1 - level) / 2
    low, high = ncp(F, df1, df2, 1 - tail), ncp(F, df1, df2, tail)
    return low / (low + df2), high / (high + df2)


def share_limits(F: float, df1: int, df2: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Two-sided interval of the population partial omega squared, ``ncp / (ncp + n)``.

    The noncentral F is inverted at both tails, so that for runs that spread alike it covers in
    ``level`` of cases. NaN without degrees of freedom, and for an exact fit.
    """
    if not math.isfinite(F) or df1 < 1 or df2 < 1 or df1 * F > 1e8:
        return NAN, NAN
    tail = (1 - level) / 2
    low, high = ncp(F, df1, df2, 1 - tail), ncp(F, df1, df2, tail)
    return low / (low + n), high / (high + n)


def power(ncp: float, df1: int, df2: int, alpha: float = 0.05) -> float:
    """Power of the F test at a noncentrality."""
    return 1 - float(ncfdtr(df1, df2, ncp, fdtri(df1, df2, 1 - alpha)))


def detectable(df1: int, df2: int, n: int, goal: float = 0.8, alpha: float = 0.05) -> float:
    """Smallest population partial omega squared ``ncp / (ncp + n)`` found with the given power.

    Cohen's f is ``sqrt(w / (1 - w))`` of it. The level is per factor, before Holm.
    """
    if df1 < 1 or df2 < 1:
        return NAN
    high = 1.0
    while power(high, df1, df2, alpha) < goal:
        high *= 2
    smallest = brentq(lambda x: power(x, df1, df2, alpha) - goal, 0, high)
    return smallest / (smallest + n)


def f_ratio(ss: float, df1: int, rss: float, df2: int) -> float:
    """F of a sum of squares; NaN without degrees of freedom, and without error: an exact fit."""
    return ss / df1 / (rss / df2) if df1 and df2 and rss else NAN


def tested(source: str, ss: float, df1: int, F: float, df2: float, n: int) -> dict:
    """Row of a table of tests: p of F, effect sizes with their limits, and what is detectable.

    A test without a sum of squares (NaN: a robust one) has p alone, and so has an exact fit.
    """
    p = float(fdtrc(df1, df2, F)) if df1 and not math.isnan(F) else NAN
    row = {"source": source, "ss": ss, "df": df1, "F": F, "p": p}
    known = math.isfinite(ss) and math.isfinite(F)
    for name, size in (
        ("eta2_p", eta2(F, df1, df2) if known else NAN),
        ("omega2_p", omega2(F, df1, n) if known else NAN),
    ):
        low, high = interval(size, df1, df2)
        row |= {name: size, f"{name}_low": low, f"{name}_high": high}
    return row | {"mde": NAN if math.isnan(ss) else detectable(df1, df2, n)}


def holm(p: list[float]) -> list[float]:
    """Holm's step-down adjustment; NaN stays NaN and does not count."""
    order = sorted((i for i, value in enumerate(p) if not math.isnan(value)), key=lambda i: p[i])
    adjusted, running = [NAN] * len(p), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p[i]))
        adjusted[i] = running
    return adjusted
