"""Factors whose levels are numbers: trends, slopes by group, and second-order surfaces."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.special import fdtrc, stdtrit

from fitspace.core.errors import UserError
from fitspace.stats.effects import f_ratio
from fitspace.stats.fits import LinearFit
from fitspace.stats.formula import Term, label
from fitspace.stats.given import Given, given
from fitspace.stats.linear import (
    CellsModel,
    Data,
    Model,
    as_list,
    numbers,
    orthonormal,
    sum_of_squares,
    with_cells,
)
from fitspace.stats.means import Grid
from fitspace.stats.multiplicity import compared

NAN = float("nan")
DEGREES = {1: "linear", 2: "quadratic", 3: "cubic", 4: "quartic", 5: "quintic"}
# Doubling them is one step: the scale on which such factors act alike at both ends.
DOUBLING = ("width", "rank", "bottleneck", "learning_rate", "lr", "steps", "batch_size", "alpha",
            "match_trainable")  # fmt: skip
COLUMNS = [
    *("source", "contrast", "estimate", "se", "df", "t", "ss", "num_df", "den_df", "F"),
    *("p", "p_adjusted", "low", "high"),
]


def trend(
    table: pd.DataFrame,
    response: str,
    factor: str,
    scores: str | Sequence[float] | Mapping | None = None,
    block: str | Sequence[str] | None = None,
    by: str | None = None,
    *,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """How a response goes with a factor whose levels are numbers.

    >>> runs = pd.DataFrame({"steps": [10, 20, 40, 80] * 2, "y": [1, 2, 3, 3, 1.2, 2.1, 2.8, 3.4]})
    >>> trend(runs, "y", "steps", scores="log2")[["source", "estimate", "F", "p"]].round(4)
                       source  estimate        F       p
    0                  linear    1.5988  163.592  0.0002
    1               quadratic   -0.3250    6.760  0.0600
    2                   cubic   -0.1006    0.648  0.4660
    3     lack of fit: linear       NaN    3.704  0.1229
    4  lack of fit: quadratic       NaN    0.648  0.4660

    Without ``by``: one row per degree, whose estimate, se, df, t, low and high are those of the
    orthonormal polynomial contrast of the levels' means (R's contr.poly with the scores), and
    whose ss, num_df, den_df, F and p are those of the degree added to the lower ones, against the
    error of the model ``block + factor``; then the lack of fit of each degree but the last two.

    With ``by``: the slope of each group (source ``slope``, contrast its level) and their
    differences (``difference of slopes``, p_adjusted by Tukey) in ``block + scores * by``; the test
    that they are equal; the sequential tests of the groups, the degrees, the rest of the factor,
    and of each by group, against the error of ``block + by * factor``; and the lack of fit of the
    lines.

    Parameters
    ----------
    scores : "linear" (the levels themselves), "log2", or a number per level, by level or in
        their order. By default "log2" for what is doubled (`DOUBLING`), else "linear".

    Raises
    ------
    UserError : levels that are not numbers or have no logarithm, or a table that cannot be
        analysed.
    """
    found = given(table, response, [factor, *as_list(by)], block)
    data = found.data(table)
    points = _scores(data, factor, scores)
    if len(set(points)) < len(points):
        raise UserError(f"scores: {points.tolist()}; each level needs its own")
    alone = _alone(data, found, factor, points, confidence)
    if by is None:
        return alone
    return _by(data, found, factor, by, points, confidence)


def _scores(data: Data, factor: str, scores) -> np.ndarray:
    """A number per level (k,)."""
    levels = data.levels[factor]
    if scores is not None and not isinstance(scores, str):
        if isinstance(scores, Mapping):
            by_label = {str(key): value for key, value in scores.items()}
            missing = [level for level in levels if level not in by_label]
            if missing:
                raise UserError(f"scores: none for {', '.join(missing)}")
            scores = [by_label[level] for level in levels]
        points = np.asarray(scores, dtype=float)
        if points.shape != (len(levels),) or not np.isfinite(points).all():
            raise UserError(f"scores: needed: {len(levels)} finite numbers, one per level")
        return points
    return on_scale(factor, levels, scores)


def scale_of(name: str) -> str:
    """The scale that the numbers of a factor have by its name."""
    return "log2" if name.casefold().split(".")[-1] in DOUBLING else "linear"


def on_scale(name: str, values: Sequence, scores: str | None) -> np.ndarray:
    """Numbers on the scale ``scores``, or on the one that a factor of this name has."""
    scores = scores or scale_of(name)
    if scores not in ("linear", "log2"):
        raise UserError(f"scores: {scores!r}; allowed: linear, log2, or a number per level")
    points, problems = numbers(pd.Series(list(values), name=name))
    if problems:
        raise UserError(f"{name!r} has levels that are not numbers: {', '.join(map(str, values))}")
    points = points.astype(float)
    if scores == "log2":
        if (points <= 0).any():
            raise UserError(f"scores: log2 needs levels above 0; {name!r} has {points.min():g}")
        return np.log2(points)
    return points


def curve(
    table: pd.DataFrame,
    response: str,
    factor: str,
    scores: str | None = None,
    block: str | Sequence[str] | None = None,
    *,
    points: int = 41,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """The second-degree curve of a response over a factor of numbers, with its band.

    >>> runs = pd.DataFrame({"steps": [10, 20, 40, 80] * 2, "y": [1, 2, 3, 3, 1.2, 2.1, 2.8, 3.4]})
    >>> curve(runs, "y", "steps", points=3)[["at", "estimate", "low", "high"]].round(3)
           at  estimate    low   high
    0  10.000     1.077  0.776  1.379
    1  28.284     2.516  2.268  2.764
    2  80.000     3.222  2.921  3.524

    Evenly on the scale of the scores (see `trend`), at the mean of the blocks; columns: scores, at
    (the factor), estimate, se, df, low, high (of each point by itself).

    Raises
    ------
    UserError : as `trend`.
    """
    found = given(table, response, [factor], block)
    data = found.data(table)
    score = _scores(data, factor, scores)
    kind = scores or scale_of(factor)
    middle, half = (score.max() + score.min()) / 2, (score.max() - score.min()) / 2
    x = (score - middle) / half
    names = [f"{factor}, degree {degree}" for degree in (1, 2)]
    measured = {
        name: (x**degree)[data.codes[factor]] for name, degree in zip(names, (1, 2), strict=True)
    }
    fit = LinearFit(Model(_with(data, measured), [*found.blocks, *((name,) for name in names)]))
    grid = Grid(fit, [], None)
    at = np.linspace(-1, 1, points)
    estimates = fit.estimates(grid.weights([dict(zip(names, (z, z * z), strict=True)) for z in at]))
    reach = stdtrit(estimates["df"], 0.5 + confidence / 2) * estimates["se"]
    where = at * half + middle
    result = pd.DataFrame({"scores": kind, "at": 2.0**where if kind == "log2" else where})
    result = pd.concat([result, estimates], axis=1)
    return result.assign(low=result["estimate"] - reach, high=result["estimate"] + reach)


def is_numeric(column: pd.Series) -> bool:
    """Whether all levels of a factor are numbers."""
    levels = pd.Series(column.dropna().unique()).astype(str)
    return len(levels) > 0 and bool(pd.to_numeric(levels, errors="coerce").notna().all())


def polynomials(points: np.ndarray) -> np.ndarray:
    """Orthonormal polynomial contrasts (k - 1, k) of k points, leading coefficients positive."""
    x = points - points.mean()
    x = x / np.abs(x).max()
    q, r = np.linalg.qr(np.vander(x, increasing=True))
    return (q * np.sign(np.diag(r)))[:, 1:].T


def degree_name(degree: int) -> str:
    return DEGREES.get(degree, f"degree {degree}")


def _alone(data: Data, found: Given, factor: str, points, confidence: float) -> pd.DataFrame:
    """Rows of the polynomial contrasts and of their lack of fit."""
    model = Model(data, found.terms)
    fit, codes = LinearFit(model), data.codes[factor]
    shapes = polynomials(points)
    grid = Grid(fit, factor, None)
    table = fit.estimates(shapes @ grid.weights(grid.at))
    table = compared(table, "none", confidence=confidence).drop(columns=["p", "p_adjusted"])
    others = [model.columns(term) for term in model.terms if term != (factor,)]
    bases = orthonormal([*others, *(shape[codes][:, None] for shape in shapes)])[len(others) :]
    ss = [sum_of_squares(basis, data) for basis in bases]
    names = [degree_name(d + 1) for d in range(len(shapes))]
    df = [basis.shape[1] for basis in bases]
    rows = [_test(name, s, k, model) for name, s, k in zip(names, ss, df, strict=True)]
    tests = pd.concat([table, pd.DataFrame(rows)], axis=1)
    lacks = [
        _test(f"lack of fit: {names[d]}", sum(ss[d + 1 :]), sum(df[d + 1 :]), model)
        for d in range(len(names) - 1)
    ]
    return _table([*tests.to_dict("records"), *lacks], data.notes)


def _by(data: Data, found: Given, factor, by, points, confidence: float) -> pd.DataFrame:
    """Slopes of the groups, and the sequential tests of the factor by group."""
    codes, blocks = data.codes[factor], found.blocks
    score = f"score of {factor}"
    measured = {score: points[codes]}
    full = Model(data, [*blocks, (by,), (factor,), (by, factor)])
    lines = Model(_with(data, measured), [*blocks, (score,), (by,), (score, by)])
    fit = LinearFit(lines)
    grid = Grid(fit, by, None)
    names = [grid.name(at) for at in grid.at]
    rise = grid.weights([at | {score: 1.0} for at in grid.at])
    rise -= grid.weights([at | {score: 0.0} for at in grid.at])
    slopes = compared(fit.estimates(rise), "none", confidence=confidence)
    two = list(combinations(range(len(names)), 2))
    apart = compared(
        fit.estimates(np.array([rise[i] - rise[j] for i, j in two])),
        "tukey",
        levels=len(names),
        confidence=confidence,
    )
    rows = slopes.assign(source="slope", contrast=names).to_dict("records")
    titles = [f"{names[i]} - {names[j]}" for i, j in two]
    rows += apart.assign(source="difference of slopes", contrast=titles).to_dict("records")
    basis, _ = lines.added((score, by), 2)
    rows.append(_test("equal slopes", sum_of_squares(basis, data), basis.shape[1], lines))
    rows += _sequential(data, full, factor, by, points)
    ss, df = lines.rss - full.rss, lines.df - full.df
    ss = 0.0 if data.is_rounding(max(ss, 0.0), df) else ss
    rows.append(_test("lack of fit: lines", ss, df, full))
    return _table(rows, data.notes)


def _sequential(data: Data, full: Model, factor, by, points) -> list[dict]:
    """Tests in the order blocks, group, degrees, factor, and both by group."""
    shapes = polynomials(points)[:2]
    measured = {degree_name(d + 1): s[data.codes[factor]] for d, s in enumerate(shapes)}
    degrees = list(measured)
    blocks = [term for term in full.terms if factor not in term and by not in term]
    own = [*blocks, (by,), *((d,) for d in degrees), (factor,)]
    own += [*((by, d) for d in degrees), (by, factor)]
    model = Model(_with(data, measured), own)
    bases = orthonormal([model.columns(term) for term in own])
    return [
        _test(label(term), sum_of_squares(basis, data), basis.shape[1], full)
        for term, basis in zip(own, bases, strict=True)
    ]


def _with(data: Data, measured: Mapping[str, np.ndarray]) -> Data:
    return replace(data, quantities=data.quantities | dict(measured))


def _test(source: str, ss: float, df: int, model: Model | CellsModel) -> dict:
    F = f_ratio(ss, df, model.rss, model.df)
    p = float(fdtrc(df, model.df, F)) if F == F else NAN
    return {"source": source, "ss": ss, "num_df": df, "den_df": model.df, "F": F, "p": p}


def _table(rows: list[dict], notes: list[str]) -> pd.DataFrame:
    table = pd.DataFrame(rows)
    table = table[[name for name in COLUMNS if name in table]]
    table.attrs["notes"] = list(notes)
    return table


# --- surfaces ---------------------------------------------------------------------------


def surface(
    table: pd.DataFrame,
    response: str,
    factors: Sequence[str],
    block: str | Sequence[str] | None = None,
    scores: Mapping[str, str] | None = None,
    *,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Second-order surface of factors whose levels are numbers, and where it is stationary.

    >>> cells = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    >>> runs = pd.DataFrame(cells * 2, columns=["a", "b"])
    >>> noise = 0.1 * (-1.0) ** np.arange(18)
    >>> runs["y"] = 5 - (runs.a - 0.5) ** 2 - 2 * (runs.b + 0.2) ** 2 + noise
    >>> found = surface(runs, "y", ["a", "b"])
    >>> found[["source", "estimate", "F", "p"]].tail(2).round(4)
                     source  estimate   F   p
    9   stationary point: a       0.5 NaN NaN
    10  stationary point: b      -0.2 NaN NaN
    >>> found.attrs["kind"]
    'maximum'

    Rows of the coefficients, in the units of the scores (``a``, ``a:b``, ``a^2``): estimate, se,
    df, t, p, low, high. Then the tests ``first order``, ``interactions`` and ``pure quadratic``, as
    each adds to those before, against the residual; ``lack of fit`` against the cells (blocks
    added to them); and the stationary point on the scores, with limits by the delta method.
    ``attrs``: stationary (in the factors' own units), stationary_value (averaged over blocks),
    eigenvalues (of the quadratic form), kind (maximum, minimum or saddle). Holds R's rsm.

    Parameters
    ----------
    scores : factor -> "log2" or "linear"; by default as in `trend`.

    Raises
    ------
    UserError : fewer than two factors, levels that are not numbers, or a table that cannot be
        analysed.
    """
    factors = as_list(factors)
    if len(factors) < 2:
        raise UserError(f"factors: {factors}; a surface needs at least 2, one has a trend")
    unknown = [name for name in scores or {} if name not in factors]
    if unknown:
        raise UserError(f"scores: {unknown} are no factors of the surface")
    found = given(table, response, factors, block)
    data = found.data(table)
    raw = {}
    for name in factors:
        points = on_scale(name, data.levels[name], (scores or {}).get(name))
        raw[name] = points[data.codes[name]]
    coded = _Coded(raw)
    terms = [(name,) for name in factors] + list(combinations(factors, 2))
    model = Model(_with(data, coded.columns()), [*found.blocks, *terms, *coded.squares])
    fit = LinearFit(model)
    p = model.matrix.shape[1]
    own = np.zeros((len(terms) + len(factors), p))
    own[:, p - len(own) :] = coded.back()
    table_ = compared(fit.estimates(own), "none", confidence=confidence).drop(columns="p_adjusted")
    table_.insert(0, "source", [label(t) for t in terms] + [f"{name}^2" for name in factors])
    rows = table_.to_dict("records") + _orders(data, model, found, factors)
    rows += _lack(table, found, factors, model)
    more, attrs = _stationary(fit, coded, factors, found, scores or {}, confidence)
    result = _table(rows + more, data.notes)
    result.attrs |= attrs
    return result


class _Coded:
    """Scores brought to [-1, 1], on which squares and products keep their digits."""

    def __init__(self, raw: Mapping[str, np.ndarray]):
        self.names = list(raw)
        self.centre = np.array([(x.max() + x.min()) / 2 for x in raw.values()])
        self.half = np.array([(x.max() - x.min()) / 2 for x in raw.values()])
        pairs = zip(raw.values(), self.centre, self.half, strict=True)
        self.coded = [(x - c) / h for x, c, h in pairs]
        self.squares: list[Term] = [(f"{name}^2",) for name in self.names]

    def columns(self) -> dict[str, np.ndarray]:
        own = dict(zip(self.names, self.coded, strict=True))
        return own | {f"{name}^2": x**2 for name, x in own.items()}

    def back(self) -> np.ndarray:
        """Coefficients on the scores as functions of those here: linear, products, squares."""
        k = len(self.names)
        two = list(combinations(range(k), 2))
        m = np.zeros((k + len(two) + k,) * 2)
        m[range(k), range(k)] = 1 / self.half
        for at, (i, j) in enumerate(two, start=k):
            unit = 1 / (self.half[i] * self.half[j])
            m[at, at] = unit
            m[i, at], m[j, at] = -unit * self.centre[j], -unit * self.centre[i]
        for i in range(k):
            at = k + len(two) + i
            m[at, at] = 1 / self.half[i] ** 2
            m[i, at] = -2 * self.centre[i] / self.half[i] ** 2
        return m

    def form(self, coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """b (k,) and B (k, k) of ``b'x + x'Bx``."""
        k = len(self.names)
        b, B = coefficients[:k], np.diag(coefficients[-k:])
        for at, (i, j) in enumerate(combinations(range(k), 2), start=k):
            B[i, j] = B[j, i] = coefficients[at] / 2
        return b, B


def _orders(data: Data, model: Model, found: Given, factors) -> list[dict]:
    k, blocks = len(factors), len(found.blocks)
    bases = orthonormal([model.columns(term) for term in model.terms])[blocks:]
    pairs = math.comb(k, 2)
    parts = {"first order": bases[:k], "interactions": bases[k : k + pairs]}
    parts["pure quadratic"] = bases[k + pairs :]
    return [
        _test(name, sum(sum_of_squares(b, data) for b in of), sum(b.shape[1] for b in of), model)
        for name, of in parts.items()
    ]


def _lack(table: pd.DataFrame, found: Given, factors, model: Model) -> list[dict]:
    table, cell = with_cells(table, factors)
    cells = CellsModel(found.data(table, [cell]), found.blocks, cell)
    df = model.df - cells.df
    ss = max(model.rss - cells.rss, 0.0)
    ss = 0.0 if model.data.is_rounding(ss, df) else ss
    return [_test("lack of fit", ss, df, cells)]


def _stationary(fit, coded: _Coded, factors, found: Given, scores, confidence):
    """Rows of the stationary point, and what is known of it."""
    k, p = len(factors), fit.model.matrix.shape[1]
    size = k + math.comb(k, 2) + k
    own = np.eye(p)[p - size :]
    rows, estimable = fit.rows(own)
    empty = [{"source": f"stationary point: {name}"} for name in factors]
    nothing = dict.fromkeys(["estimate", "se", "df", "low", "high"], NAN)
    if not estimable.all():
        return [row | nothing for row in empty], {"kind": "not estimable"}
    coefficients = rows @ fit.coefficients
    b, B = coded.form(coefficients)
    values = np.linalg.eigvalsh(B)
    if np.abs(values).min() <= 1e-10 * max(np.abs(values).max(), np.abs(b).max()):
        return [row | nothing for row in empty], {"kind": "a ridge: no stationary point"}
    inverse = np.linalg.inv(B)
    at = -inverse @ b / 2
    slopes = np.zeros((k, size))  # of the point by the coefficients
    slopes[:, :k] = -inverse / 2
    for place, (i, j) in enumerate(combinations(range(k), 2), start=k):
        slopes[:, place] = -(inverse[:, i] * at[j] + inverse[:, j] * at[i]) / 2
    for i in range(k):
        slopes[:, size - k + i] = -inverse[:, i] * at[i]
    cov = slopes @ rows @ fit.covariance @ (slopes @ rows).T
    se = np.sqrt(np.diag(cov)) * coded.half
    point = coded.centre + coded.half * at
    df = float(fit.model.df)
    reach = (stdtrit(df, 0.5 + confidence / 2) if df else NAN) * se
    out = [
        row | {"estimate": x, "se": s, "df": df, "low": x - r, "high": x + r}
        for row, x, s, r in zip(empty, point, se, reach, strict=True)
    ]
    there = dict(zip(factors, at, strict=True)) | {
        f"{name}^2": x**2 for name, x in zip(factors, at, strict=True)
    }
    value = fit.estimates(Grid(fit, [], None).weights([there]))["estimate"][0]
    back = coded.back() @ coefficients
    eigen = np.linalg.eigvalsh(coded.form(back)[1])[::-1]
    kind = "maximum" if eigen.max() < 0 else "minimum" if eigen.min() > 0 else "saddle"
    logs = [on_scale(name, [2.0], scores.get(name))[0] == 1.0 for name in factors]
    units = {
        name: float(2**x if log else x) for name, x, log in zip(factors, point, logs, strict=True)
    }
    attrs = {"stationary": units, "stationary_value": float(value), "kind": kind}
    return out, attrs | {"eigenvalues": eigen.tolist()}
