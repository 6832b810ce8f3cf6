"""Many comparisons at once: adjusted p values and simultaneous limits.

Exact are Tukey's (studentized range) and the single step of comparisons whose correlations are
products, as Dunnett's are: one- and two-sided tails by quadrature, to 1e-13. For other
correlations a quasi-random average over directions is good to 1e-4, and better near products.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import fdtrc, fdtri, log_ndtr, ndtr, ndtri, stdtr, stdtrit

from fitspace.core.errors import UserError
from fitspace.stats import effects
from fitspace.stats.digits import significant

NAN = float("nan")
# Names of statsmodels' multipletests, where p alone decides.
OF_P = {
    "hochberg": "simes-hochberg",
    "hommel": "hommel",
    "bonferroni": "bonferroni",
    "sidak": "sidak",
    "BH": "fdr_bh",
    "fdr": "fdr_bh",
    "BY": "fdr_by",
}
# Of comparisons, which have limits too; holm's and BH's limits are Bonferroni's.
OF_COMPARISONS = ("none", "tukey", "dunnett", "holm", "bonferroni", "sidak", "scheffe", "BH")
ALTERNATIVES = ("two-sided", "less", "greater")
# Nats below the mode beyond which a density adds nothing in float64.
DEEP = 45.0


def adjusted(
    p: Sequence[float],
    method: str = "holm",
    *,
    family: Sequence | None = None,
    n: int | None = None,
) -> np.ndarray:
    """p values (k,) adjusted within each family, as R's p.adjust; NaN stays NaN, uncounted.

    >>> adjusted([0.01, 0.04, 0.03], "holm").round(3).tolist()
    [0.03, 0.06, 0.06]

    Parameters
    ----------
    method : "none", "holm", "hochberg", "hommel", "bonferroni", "sidak", "BH" or "BY".
    family : a label per p value; one family if not given.
    n : size of the family where more was tested than is given here: the rest have p = 1.

    Raises
    ------
    UserError : an unknown method, a p value outside [0, 1], or n below the number of p values.
    """
    p = np.asarray(p, dtype=float)
    problems = []
    if method not in ("none", "holm", *OF_P):
        problems.append(f"method: {method!r}; allowed: none, holm, {', '.join(OF_P)}")
    if not np.all(np.isnan(p) | ((p >= 0) & (p <= 1))):
        problems.append("p: allowed: numbers from 0 to 1, NaN where there is none")
    labels = np.zeros(len(p), int) if family is None else pd.factorize(np.asarray(family))[0]
    sizes = np.bincount(labels[~np.isnan(p)], minlength=1)
    if n is not None and n < sizes.max():
        problems.append(f"n: {n}; a family has {sizes.max()} p values")
    if problems:
        raise UserError(problems)
    result = np.full(len(p), NAN)
    for one in np.unique(labels):
        of = (labels == one) & ~np.isnan(p)
        result[of] = _family(p[of], method, n)
    return result


def _family(p: np.ndarray, method: str, n: int | None) -> np.ndarray:
    if method == "none" or not len(p):
        return p
    every = np.append(p, np.ones((n or len(p)) - len(p)))
    if method == "holm":
        return np.array(effects.holm(every.tolist()))[: len(p)]
    from statsmodels.stats.multitest import multipletests

    with np.errstate(divide="ignore"):  # the log of 1 - p where p is 1
        return multipletests(every, method=OF_P[method])[1][: len(p)]


def compared(
    rows: pd.DataFrame,
    adjust: str,
    *,
    levels: int | None = None,
    correlation: np.ndarray | None = None,
    alternative: str = "two-sided",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Rows with estimate, se and df, completed by t, p, p_adjusted, low and high.

    ``p`` is that of each row alone; ``low`` and ``high`` are simultaneous, and one-sided where
    the alternative is (the other end is infinite).

    Parameters
    ----------
    levels : how many means the rows compare all pairs of; for Tukey.
    correlation : of the estimates (k, k); for "dunnett", the exact single step, and Scheffe's
        rank.
    """
    if adjust not in OF_COMPARISONS:
        raise UserError(f"adjust: {adjust!r}; allowed: {', '.join(OF_COMPARISONS)}")
    if alternative not in ALTERNATIVES:
        raise UserError(f"alternative: {alternative!r}; allowed: {', '.join(ALTERNATIVES)}")
    if not 0 < confidence < 1:
        raise UserError(f"confidence: {confidence!r}; allowed: between 0 and 1")
    if adjust in ("tukey", "scheffe") and alternative != "two-sided":
        raise UserError(f"adjust: {adjust!r} is two-sided; allowed: dunnett, holm, bonferroni")
    se, df = rows["se"].to_numpy(float), rows["df"].to_numpy(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where((se > 0) & (df > 0), rows["estimate"] / se, NAN)
    p = tail(t, df, alternative)
    known = ~np.isnan(t)
    family = _Family(adjust, int(known.sum()), levels, correlation, known, alternative)
    result = rows.assign(t=t, p=p)
    result["p_adjusted"] = family.p(t, p, df)
    reach = se * family.critical(df, confidence)
    low, high = rows["estimate"] - reach, rows["estimate"] + reach
    result["low"] = np.where(known, -np.inf, NAN) if alternative == "less" else low
    result["high"] = np.where(known, np.inf, NAN) if alternative == "greater" else high
    return result


def tail(t: np.ndarray, df: np.ndarray, alternative: str = "two-sided") -> np.ndarray:
    """p of t ratios (k,)."""
    if alternative == "two-sided":
        return 2 * stdtr(df, -np.abs(t))
    return stdtr(df, t if alternative == "less" else -t)


class _Family:
    """Comparisons that are adjusted together; those without a t are none of them."""

    def __init__(self, adjust, size, levels, correlation, known, alternative):
        self.adjust, self.size, self.levels, self.alternative = adjust, size, levels, alternative
        self.known = known
        self.sides = 2 if alternative == "two-sided" else 1
        if correlation is not None and size:
            correlation = correlation[np.ix_(known, known)]
            if adjust == "dunnett":
                self.largest = Largest.of(correlation, self.sides)
            self.rank = np.linalg.matrix_rank(correlation, tol=1e-8 * size)

    def p(self, t: np.ndarray, p: np.ndarray, df: np.ndarray) -> np.ndarray:
        if self.adjust == "tukey":
            return np.array([tukey_p(a, self.levels, b) for a, b in zip(t, df, strict=True)])
        if self.adjust == "scheffe" and self.size:
            return fdtrc(self.rank, df, t**2 / self.rank)
        if self.adjust == "dunnett" and self.size:
            sign = {"two-sided": 0, "less": -1, "greater": 1}[self.alternative]
            ends = sign * t if sign else np.abs(t)
            return np.array(
                [self.largest.tail(c, b) if c == c else NAN for c, b in zip(ends, df, strict=True)]
            )
        return adjusted(p, self.adjust) if self.adjust != "dunnett" else p

    def critical(self, df: np.ndarray, confidence: float) -> np.ndarray:
        """Half-widths (k,) in standard errors of intervals that hold together."""
        alpha = 1 - confidence
        return np.array(
            [
                self._critical(b, alpha) if b > 0 and known else NAN
                for b, known in zip(df, self.known, strict=True)
            ]
        )

    def _critical(self, df: float, alpha: float) -> float:
        if self.adjust == "tukey":
            # Equal degrees of freedom differ by rounding; the point is found once for them.
            return tukey_critical(self.levels, significant(df), alpha)
        if self.adjust == "scheffe":
            return float((self.rank * fdtri(self.rank, df, 1 - alpha)) ** 0.5)
        if self.adjust == "dunnett":
            return self.largest.critical(significant(df), alpha)
        if self.adjust == "sidak":
            alpha = -np.expm1(np.log1p(-alpha) / self.size)
        elif self.adjust != "none":
            alpha = alpha / self.size
        return float(-stdtrit(df, alpha / self.sides))


def _root(tail_of, df: float, alpha: float, size: int, sides: int) -> float:
    """Where a tail is alpha: between one comparison's point and Bonferroni's."""
    low, high = (float(-stdtrit(df, alpha / sides / m)) for m in (1, size))
    if size == 1 or tail_of(low) <= alpha:
        return low
    return float(brentq(lambda c: tail_of(c) - alpha, low, high * (1 + 1e-9), xtol=1e-12))


# --- the largest of correlated t ratios -------------------------------------------------


class Largest:
    """The largest of t ratios (of their sizes, where ``sides`` is 2) with a common error."""

    def __init__(self, size: int, sides: int):
        self.size, self.sides = size, sides
        self._criticals: dict[tuple[float, float], float] = {}

    @staticmethod
    def of(correlation: np.ndarray, sides: int) -> Largest:
        loadings = product_loadings(correlation)
        if loadings is not None:
            return _Product(loadings, sides)
        return _General(correlation, sides)

    def tail(self, c: float, df: float) -> float:
        """Probability that it exceeds ``c``."""
        raise NotImplementedError

    def critical(self, df: float, alpha: float) -> float:
        """What it exceeds with probability alpha; found once for all comparisons of a family."""
        if (df, alpha) not in self._criticals:
            found = _root(lambda c: self.tail(c, df), df, alpha, self.size, self.sides)
            self._criticals[df, alpha] = found
        return self._criticals[df, alpha]


class _Pairs(Largest):
    """All pairs of k independent means: their largest is a studentized range over sqrt(2)."""

    def __init__(self, k: int):
        super().__init__(k * (k - 1) // 2, 2)
        self.others = k - 1
        self.z = np.arange(-12.0, 12.0, step := 0.6 / k**0.5)  # of the largest of the means
        self.below = ndtr(self.z)
        density = np.exp(-(self.z**2) / 2) / (2 * np.pi) ** 0.5
        self.weight = step * k * density * self.below**self.others

    def tail(self, c: float, df: float) -> float:
        x, weight = _log_chi(df)
        reach = c * 2**0.5 * np.exp(x)[:, None]
        # Given the largest, the share of what one of the others can be that is out of reach.
        out = np.minimum(ndtr(self.z - reach) / self.below, 1.0)
        with np.errstate(divide="ignore"):
            inside = self.others * np.log1p(-out)
        return float(np.clip(weight @ -np.expm1(inside) @ self.weight, 0, 1))


@cache
def _pairs(k: int) -> _Pairs:
    return _Pairs(k)


def tukey_p(t: float, k: int, df: float) -> float:
    """p of a t ratio among all pairs of k means."""
    if np.isnan(t):
        return NAN
    if k == 2:
        return float(2 * stdtr(df, -abs(t)))
    return _pairs(k).tail(abs(t), df)


def tukey_critical(k: int, df: float, alpha: float) -> float:
    """The t ratio that the largest of all pairs of k means exceeds with probability alpha."""
    if k == 2:
        return float(-stdtrit(df, alpha / 2))
    return _pairs(k).critical(df, alpha)


def product_loadings(correlation: np.ndarray) -> np.ndarray | None:
    """Loadings l (k,) with ``correlation[i, j] = l[i] l[j]`` for i != j, or None if there are none.

    Comparisons with one control have them in a one-way layout: l = sqrt(n / (n + n_control)).
    """
    k = len(correlation)
    off = correlation - np.diag(np.diag(correlation))
    if k == 1:
        return np.zeros(1)
    if k == 2:
        r = off[0, 1]
        return abs(r) ** 0.5 * np.array([1.0, np.sign(r) or 1.0])
    size = np.zeros(k)
    for i in range(k):
        others = np.delete(np.arange(k), i)
        inner = off[np.ix_(others, others)]
        j, m = np.unravel_index(np.argmax(np.abs(inner)), inner.shape)
        if abs(inner[j, m]) > 1e-12:
            size[i] = max(off[i, others[j]] * off[i, others[m]] / inner[j, m], 0.0) ** 0.5
    first = int(np.argmax(size))
    loadings = np.where(off[first] < 0, -size, size)
    found = np.outer(loadings, loadings)
    np.fill_diagonal(found, 0)
    return loadings if np.abs(found - off).max() < 1e-9 and size.max() < 1 - 1e-6 else None


class _Product(Largest):
    """Correlations that are products: independent given one normal variable and the error."""

    def __init__(self, loadings: np.ndarray, sides: int):
        super().__init__(len(loadings), sides)
        widths = np.sqrt(1 - loadings**2)
        # The trapezoid rule on analytic, rapidly falling functions: its error falls as exp(-1/h).
        self.z = np.arange(-12.0, 12.0, step := widths.min() / (1.6 * self.size**0.5))
        self.weight = step * np.exp(-(self.z**2) / 2) / (2 * np.pi) ** 0.5
        kinds, self.times = np.unique(np.round(loadings, 13), return_counts=True)
        self.kinds = [(k, (1 - k**2) ** 0.5) for k in kinds]

    def tail(self, c: float, df: float) -> float:
        x, weight = _log_chi(df)
        ends = c * np.exp(x)[:, None]
        inside = np.zeros((len(x), len(self.z)))  # log of the probability of no one beyond c
        with np.errstate(divide="ignore"):
            for (loading, width), times in zip(self.kinds, self.times, strict=True):
                above = (ends - loading * self.z) / width
                if self.sides == 2:
                    below = (ends + loading * self.z) / width
                    inside += times * np.log1p(-np.minimum(ndtr(-above) + ndtr(-below), 1.0))
                else:
                    inside += times * log_ndtr(above)
        return float(np.clip(weight @ -np.expm1(inside) @ self.weight, 0, 1))


@cache
def _log_chi(df: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes x and weights of ``log(sqrt(chi-square / df))``, by the trapezoid rule."""
    if np.isinf(df):
        return np.zeros(1), np.ones(1)
    reach = (DEEP / df) ** 0.5
    step = min(0.1, 0.45 / df**0.5)
    x = np.arange(-reach - DEEP / df, reach, step)
    density = np.exp(df * (x - np.expm1(2 * x) / 2))  # but for a constant
    return x, density / density.sum()


class _General(Largest):
    """Any other correlations, of whatever rank: the nearest product, exactly, and what differs.

    With R = L L' the comparisons are L z / s; at a direction u of z the largest exceeds c where
    the radius of z over s does, an F with (k, df) degrees of freedom. The mean over directions
    (2^17 Sobol points, always the same) is taken of the difference from the nearest correlations
    that are products: good to about 1e-6 where blocks lost a few runs, to 1e-4 at worst.
    """

    def __init__(self, correlation: np.ndarray, sides: int):
        from scipy.stats import qmc

        super().__init__(len(correlation), sides)
        k = self.size
        loadings = _nearest_loadings(correlation)
        self.near = _Product(loadings, sides)
        product = np.outer(loadings, loadings)
        np.fill_diagonal(product, 1)
        points = qmc.Sobol(k, scramble=True, rng=np.random.default_rng(0)).random_base2(17)
        directions = ndtri(points)
        directions /= np.linalg.norm(directions, axis=1)[:, None]
        self.reach, self.near_reach = (
            self._largest(directions @ _root_of(matrix)) for matrix in (correlation, product)
        )

    def _largest(self, seen: np.ndarray) -> np.ndarray:
        return np.max(np.abs(seen) if self.sides == 2 else seen, axis=1)

    def tail(self, c: float, df: float) -> float:
        if self.sides == 2 and c <= 0:
            return 1.0
        off = self._along(self.reach, c, df) - self._along(self.near_reach, c, df)
        return float(np.clip(self.near.tail(c, df) + off, 0, 1))

    def _along(self, reach: np.ndarray, c: float, df: float) -> float:
        """The tail, averaged over directions in which the largest is ``reach`` times the radius."""
        if c >= 0:
            above = reach[reach > 0]
            return fdtrc(self.size, df, (c / above) ** 2 / self.size).sum() / len(reach)
        below = reach[reach < 0]  # it stays below c where all are, and far enough
        return 1 - fdtrc(self.size, df, (c / below) ** 2 / self.size).sum() / len(reach)


def _root_of(matrix: np.ndarray) -> np.ndarray:
    """Symmetric square root of a correlation matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def _nearest_loadings(correlation: np.ndarray) -> np.ndarray:
    """Loadings (k,) whose products are near the correlations, by iterated principal axes."""
    shares = np.full(len(correlation), 0.5)
    for _ in range(100):
        reduced = correlation - np.diag(1 - shares)
        values, vectors = np.linalg.eigh(reduced)
        loadings = vectors[:, -1] * max(values[-1], 0.0) ** 0.5
        shares = np.minimum(loadings**2, 0.95)
    return np.clip(loadings, -(0.95**0.5), 0.95**0.5)
