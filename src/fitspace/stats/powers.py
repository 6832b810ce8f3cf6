"""Power of the textbook's designs, exact; `planning` has that of a study's own design.

The t tests are statsmodels'. Its one-way power is exact too, but its search for the effect or the
size fails beyond an effect of 1 and stops at 1e-7, so that search is here.
"""

from __future__ import annotations

from scipy.optimize import brentq
from scipy.special import nctdtr, stdtrit

from fitspace.core.errors import UserError
from fitspace.stats import effects
from fitspace.stats.multiplicity import ALTERNATIVES


def power_oneway(groups: int, per_group: float, f: float, alpha: float = 0.05) -> float:
    """Power of the one-way F test at Cohen's f, with equal groups.

    >>> round(power_oneway(groups=4, per_group=12, f=0.25), 6)
    0.253596
    """
    return effects.power(f**2 * groups * per_group, groups - 1, groups * (per_group - 1), alpha)


def effect_oneway(groups: int, per_group: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """Cohen's f that the one-way F test finds with the given power.

    >>> round(effect_oneway(groups=2, per_group=10), 6)
    0.662474
    """
    _check(power=power, alpha=alpha)
    high = 1.0
    while power_oneway(groups, per_group, high, alpha) < power:
        high *= 2
    return _root(lambda f: power_oneway(groups, per_group, f, alpha) - power, 0.0, high)


def size_oneway(groups: int, f: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """Runs per group, not rounded up, with which the one-way F test finds f.

    >>> round(size_oneway(groups=2, f=0.5), 4)
    16.7147
    """
    _check(power=power, alpha=alpha)
    if not f > 0:
        raise UserError(f"f: {f!r}; allowed: a number above 0")
    low, high = 1.0 + 1.0 / groups, 4.0  # one residual degree of freedom
    if power_oneway(groups, low, f, alpha) >= power:
        return low
    while power_oneway(groups, high, f, alpha) < power:
        high *= 2
    return _root(lambda n: power_oneway(groups, n, f, alpha) - power, low, high)


def power_contrast(
    ncp: float, df: float, alpha: float = 0.05, alternative: str = "two-sided"
) -> float:
    """Power of the t test of a contrast, ``ncp`` standard errors away from 0.

    >>> round(power_contrast(2.0, df=16), 6)
    0.468052
    """
    if alternative not in ALTERNATIVES:
        raise UserError(f"alternative: {alternative!r}; allowed: {', '.join(ALTERNATIVES)}")
    if alternative == "two-sided":
        end = float(stdtrit(df, 1 - alpha / 2))
        return float(1 - nctdtr(df, ncp, end) + nctdtr(df, ncp, -end))
    sign = 1 if alternative == "greater" else -1
    return float(1 - nctdtr(df, sign * ncp, float(stdtrit(df, 1 - alpha))))


def power_t(
    d: float,
    n: float,
    *,
    paired: bool = False,
    alpha: float = 0.05,
    alternative: str = "two-sided",
) -> float:
    """Power of the t test at Cohen's d: of ``n`` pairs, or of two groups of ``n``.

    >>> round(power_t(0.8, 12, paired=True), 6)
    0.71366
    """
    if alternative not in ALTERNATIVES:
        raise UserError(f"alternative: {alternative!r}; allowed: {', '.join(ALTERNATIVES)}")
    from statsmodels.stats.power import TTestIndPower, TTestPower

    side = {"less": "smaller", "greater": "larger"}.get(alternative, alternative)
    test = TTestPower() if paired else TTestIndPower()
    return float(test.power(d, n, alpha, alternative=side))


def _root(function, low: float, high: float) -> float:
    return float(brentq(function, low, high, xtol=1e-13, rtol=1e-14))


def _check(**numbers: float) -> None:
    problems = [
        f"{name}: {value!r}; allowed: between 0 and 1"
        for name, value in numbers.items()
        if not 0 < value < 1
    ]
    if problems:
        raise UserError(problems)
