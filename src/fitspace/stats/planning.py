"""Planning on a design's own table, before any run: what is estimable, and with what power.

A design is a table with one row per planned run: its factors and its blocks. As in the
analysis only its largest connected component counts; ``attrs["notes"]`` says what lies outside.
``block`` names the terms of the blocks; None takes those of a study (see `blocks_of`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.special import chdtri, fdtri

from fitspace.core.errors import UserError
from fitspace.stats import effects
from fitspace.stats.blocks import SEED, TASK, blocks_of
from fitspace.stats.digits import cleared
from fitspace.stats.estimability import components, in_design, largest
from fitspace.stats.formula import Term, label, term_of
from fitspace.stats.linear import (
    RANK_TOLERANCE,
    Data,
    Model,
    as_labels,
    as_list,
    missing_columns,
    orthonormal,
    read,
)
from fitspace.stats.transforms import fit_transform

NAN = float("nan")
MOST_SEEDS = 10**6


# --- what is estimable ------------------------------------------------------------------


def estimable(
    design: pd.DataFrame, factors: Sequence[str], block: Sequence[str] | None = None
) -> pd.DataFrame:
    """Degrees of freedom of main effects and two-factor interactions, and their aliases.

    >>> runs = pd.DataFrame([(a, b, s) for a in "uvw" for b in "xy" for s in (0, 1)])
    >>> runs.columns = ["input", "output", "seed"]
    >>> estimable(runs.iloc[:-2], ["input", "output"], ["seed"])
             effect  df  nominal_df     aliased_with
    0         input   2           2               []
    1        output   1           1               []
    2  input:output   1           2  [input, output]

    One row per effect: effect, df, nominal_df, aliased_with. ``df`` is the rank that a main
    effect adds to the blocks and the other main effects (the model that is analysed), and
    that an interaction adds to all other effects; ``nominal_df`` what it would be with every
    cell observed. ``aliased_with`` lists the effects, interactions too but none that contains
    this one, out of which a contrast of it can be made up exactly: the ones with weight in
    the contrast's least-norm combination (the alias matrix of Box and Wilson 1951). Of a main
    effect with all its ``df`` only interactions are listed: it is estimable if these are nil.

    Raises
    ------
    UserError : missing columns, or no factor with two levels.
    """
    part, factors, blocks, notes = _analysed(design, factors, block)
    blocks = [term for term in blocks if not set(term) & set(factors)]
    columns = dict.fromkeys(name for term in blocks for name in term)
    part = part.drop_duplicates([*factors, *columns])  # a replicate adds no rank
    names = [(name,) for name in factors]
    every = _model(part, blocks + names + list(combinations(factors, 2)))
    additive = _model(part, blocks + names)
    rows = []
    for term in every.terms[len(blocks) :]:
        model = additive if len(term) == 1 else every
        nominal = math.prod(len(every.data.levels[name]) - 1 for name in term)
        df = model.added(term, 2)[0].shape[1]
        aliases = _aliases(every, term)
        if df == nominal:  # whole beside the others of its order
            aliases = [other for other in aliases if len(other) > len(term)]
        row = {"effect": label(term), "df": df, "nominal_df": nominal}
        rows.append(row | {"aliased_with": [label(other) for other in aliases]})
    return _noted(rows, notes)


def _aliases(model: Model, term: Term) -> list[Term]:
    """The terms that make up what is lost of a term beside them."""
    own = _space(model, term)
    others = [other for other in model.ordered(term, 2)[0] if model.columns(other).any()]
    if not others:
        return []
    spaces = [_space(model, other) for other in others]
    beside = np.hstack(orthonormal([model.columns(other) for other in others]))
    _, sizes, axes = np.linalg.svd(own - beside @ (beside.T @ own), full_matrices=False)
    lost = own @ axes[sizes < RANK_TOLERANCE**0.5].T
    if not lost.shape[1]:
        return []
    weights = np.linalg.lstsq(np.hstack(spaces), lost, rcond=RANK_TOLERANCE)[0]
    ends = np.cumsum([space.shape[1] for space in spaces])[:-1]
    parts = np.split(weights, ends)
    return [
        other
        for other, part in zip(others, parts, strict=True)
        if np.linalg.norm(part) > RANK_TOLERANCE**0.5
    ]


def _space(model: Model, term: Term) -> np.ndarray:
    """Orthonormal basis (n, rank) of a term's columns, outside the constant."""
    return orthonormal([model.columns(term)])[0]


def association(design: pd.DataFrame, factors: Sequence[str]) -> pd.DataFrame:
    """How far factors go together in a design: factor, other, cramers_v, canonical.

    >>> runs = pd.DataFrame([(a, b, s) for a in "uvw" for b in "xy" for s in (0, 1)])
    >>> runs.columns = ["input", "output", "seed"]
    >>> association(runs.iloc[:-2], ["input", "output"]).round(4)
      factor   other  cramers_v  canonical
    0  input  output     0.4082     0.4082

    Both are 0 for an orthogonal pair. ``cramers_v`` is Cramér's V of the runs' counts;
    ``canonical`` the largest correlation between a contrast of one factor and one of the
    other, 1 where they cannot be told apart (of unconnected parts, for one).

    Raises
    ------
    UserError : missing columns, or no factor with two levels.
    """
    part, factors, _, notes = _analysed(design, factors, ())
    rows = []
    for one, other in combinations(factors, 2):
        counts = pd.crosstab(as_labels(part[one]), as_labels(part[other])).to_numpy()
        shares = counts / counts.sum()
        row, column = shares.sum(axis=1), shares.sum(axis=0)
        # Correspondence analysis: the singular values are the canonical correlations.
        expected = np.outer(row, column)
        found = np.linalg.svd((shares - expected) / np.sqrt(expected), compute_uv=False)
        cramer = math.sqrt((found**2).sum() / (min(counts.shape) - 1))
        cramer, canonical = (cleared(value, 1.0) for value in (cramer, float(found[0])))
        rows.append({"factor": one, "other": other, "cramers_v": cramer, "canonical": canonical})
    return _noted(rows, notes, ["factor", "other", "cramers_v", "canonical"])


# --- power ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Test:
    """One factor's F test: ``unit`` is its noncentrality at a difference of one sigma."""

    factor: str
    df: int
    residual_df: int
    unit: float


def power(
    design: pd.DataFrame,
    factors: Sequence[str],
    block: Sequence[str] | None = None,
    *,
    delta: float,
    sigma: float,
    alpha: float = 0.05,
    family: int = 1,
) -> pd.DataFrame:
    """Power of each factor's type II F test: factor, df, residual_df, power.

    >>> runs = pd.DataFrame([(a, b, s) for a in "uvw" for b in "xy" for s in (0, 1)])
    >>> runs.columns = ["input", "output", "seed"]
    >>> power(runs, ["input", "output"], ["seed"], delta=1.0, sigma=0.5).round(4)
       factor  df  residual_df   power
    0   input   2            7  0.5165
    1  output   1            7  0.8425

    The alternative has two levels ``delta`` apart and all others at their mean; the pair of
    levels is taken at which the noncentrality is smallest. The model is additive in the factors,
    beside the blocks. The level is ``alpha / family``: with as many factors as one Holm
    adjustment takes together, what it asks of the first of them. NaN where a test is not possible.

    Parameters
    ----------
    delta, sigma : difference and residual standard deviation, on the scale of the analysis.

    Raises
    ------
    UserError : as :func:`estimable`; numbers out of range.
    """
    _check(delta=delta, sigma=sigma, alpha=alpha)
    tests, notes = _tests(design, factors, block)
    rows = [
        {
            "factor": t.factor,
            "df": t.df,
            "residual_df": t.residual_df,
            "power": _power(t.unit * (delta / sigma) ** 2, t.df, t.residual_df, alpha / family),
        }
        for t in tests
    ]
    return _noted(rows, notes)


def power_curve(
    design: pd.DataFrame,
    factors: Sequence[str],
    block: Sequence[str] | None = None,
    *,
    ratios: Sequence[float],
    alpha: float = 0.05,
    family: int = 1,
) -> pd.DataFrame:
    """:func:`power` over delta / sigma: factor, ratio, power.

    >>> runs = pd.DataFrame([(a, b, s) for a in "uvw" for b in "xy" for s in (0, 1)])
    >>> runs.columns = ["input", "output", "seed"]
    >>> power_curve(runs, ["output"], ["seed"], ratios=[1, 2]).round(4)
       factor  ratio   power
    0  output      1  0.3407
    1  output      2  0.8682

    Raises
    ------
    UserError : as :func:`power`.
    """
    tests, notes = _tests(design, factors, block)
    rows = [
        {
            "factor": t.factor,
            "ratio": ratio,
            "power": _power(t.unit * ratio**2, t.df, t.residual_df, alpha / family),
        }
        for t in tests
        for ratio in ratios
    ]
    return _noted(rows, notes)


def detectable(
    design: pd.DataFrame,
    factors: Sequence[str],
    block: Sequence[str] | None = None,
    *,
    goal: float = 0.8,
    alpha: float = 0.05,
    family: int = 1,
) -> pd.DataFrame:
    """The smallest difference of two levels found with the power ``goal``: factor, difference.

    >>> runs = pd.DataFrame([(a, b, s) for a in "uvw" for b in "xy" for s in (0, 1)])
    >>> runs.columns = ["input", "output", "seed"]
    >>> detectable(runs, ["input", "output"], ["seed"]).round(4)
       factor  difference
    0   input      2.7625
    1  output      1.8878

    In units of sigma, and in the sense of :func:`power`. NaN where there is none.

    Raises
    ------
    UserError : as :func:`power`.
    """
    _check(goal=goal, alpha=alpha)
    tests, notes = _tests(design, factors, block)
    rows = [{"factor": t.factor, "difference": _detectable(t, goal, alpha / family)} for t in tests]
    return _noted(rows, notes)


def runs_needed(
    design: pd.DataFrame,
    factors: Sequence[str],
    block: Sequence[str] | None = None,
    *,
    delta: float,
    sigma: float,
    goal: float = 0.8,
    alpha: float = 0.05,
    family: int = 1,
) -> pd.DataFrame:
    """The fewest seeds, and runs, at which each factor's power reaches the goal.

    >>> runs = pd.DataFrame([(a, b, s) for a in "uvw" for b in "xy" for s in (0, 1)])
    >>> runs.columns = ["input", "output", "seed"]
    >>> runs_needed(runs, ["input", "output"], ["seed"], delta=1.0, sigma=0.5).round(4)
       factor  seeds  runs   power
    0   input      4    24  0.9147
    1  output      2    12  0.8425

    Every cell of the design is run in each of its other blocks (tasks) once per seed; the
    rest is as in :func:`power`. One row per factor: factor, seeds, runs, power (at so many
    seeds). Seeds and runs are NA where a million seeds do not suffice.

    Raises
    ------
    UserError : as :func:`power`.
    """
    _check(delta=delta, sigma=sigma, goal=goal, alpha=alpha)
    named = [TASK, SEED] if block is None else [n for text in block for n in term_of(text)]
    others = [name for name in named if name != SEED and name in design]
    once = design.drop_duplicates([*factors, *others])
    several = [pd.concat([once.assign(seed=str(s)) for s in range(n)]) for n in (1, 2, 3)]
    (tests, notes), two, three = (_tests(seeds, factors, block) for seeds in several)
    per_seed = len(_analysed(once, factors, block)[0])
    rows = []
    for test, second, third in zip(tests, two[0], three[0], strict=True):

        def reached(seeds: int, tests=(test, second, third)) -> float:
            # From the second seed on each adds its rows, less what its own blocks take.
            test, second, third = tests
            more = (seeds - 2) * (third.residual_df - second.residual_df)
            residual = test.residual_df if seeds == 1 else second.residual_df + more
            ncp = seeds * test.unit * (delta / sigma) ** 2
            return _power(ncp, test.df, residual, alpha / family)

        seeds = _fewest(lambda s: reached(s) >= goal) if test.unit > 0 else None
        rows.append(
            {
                "factor": test.factor,
                "seeds": seeds,
                "runs": seeds and seeds * per_seed,
                "power": reached(seeds) if seeds else NAN,
            }
        )
    return _noted(rows, notes).astype({"seeds": "Int64", "runs": "Int64"})


def _fewest(enough) -> int | None:
    """The smallest count from 1 that is enough; None if a million is not."""
    high = 1
    while not enough(high):
        high *= 2
        if high > MOST_SEEDS:
            return None
    low = high // 2  # not enough, or 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _power(ncp: float, df: int, residual_df: int, alpha: float) -> float:
    return effects.power(ncp, df, residual_df, alpha) if df and residual_df > 0 else NAN


def _detectable(test: _Test, goal: float, alpha: float) -> float:
    if not test.unit or test.residual_df < 1:
        return NAN
    critical = float(fdtri(test.df, test.residual_df, 1 - alpha))
    return math.sqrt(effects.ncp(critical, test.df, test.residual_df, 1 - goal) / test.unit)


def _tests(
    design: pd.DataFrame, factors: Sequence[str], block: Sequence[str] | None
) -> tuple[list[_Test], list[str]]:
    part, factors, blocks, notes = _analysed(design, factors, block)
    model = _model(part, [*blocks, *((name,) for name in factors)])
    tests = []
    for name in factors:
        basis, _ = model.added((name,), 2)
        levels = np.eye(len(model.data.levels[name]))[model.data.codes[name]]
        # With levels at +delta/2 and -delta/2 the noncentrality is |delta/2 (a - b)|^2/sigma^2
        # of their columns a and b in the space that the factor adds.
        seen = basis.T @ levels
        pairs = combinations(seen.T, 2)
        unit = min(float(((a - b) ** 2).sum()) / 4 for a, b in pairs)
        tests.append(_Test(name, basis.shape[1], model.df, unit if unit > RANK_TOLERANCE else 0.0))
    return tests, notes


@dataclass(frozen=True)
class PilotSigma:
    """Residual standard deviation of an additive model, with 95% limits.

    ``scale`` is where it was measured: identity, log, ...
    """

    sigma: float
    low: float
    high: float
    df: int
    scale: str


def pilot_sigma(
    runs: pd.DataFrame,
    response: str,
    factors: Sequence[str],
    block: Sequence[str] | None = None,
    *,
    transform: str | None = None,
) -> PilotSigma:
    """Residual standard deviation of ``blocks + factors`` in a pilot study's table of runs.

    >>> runs = pd.DataFrame([(a, b, s) for a in "uvw" for b in "xy" for s in (0, 1)])
    >>> runs.columns = ["input", "output", "seed"]
    >>> runs["score"] = [3, 3.1, 4, 4.2, 3.6, 3.5, 4.4, 4.6, 5, 5.2, 6.1, 6.0]
    >>> found = pilot_sigma(runs.assign(status="ok"), "score", ["input", "output"], ["seed"])
    >>> round(found.sigma, 4), found.df
    (0.0932, 7)

    Of its rows with status ok that are in the design, within the largest connected component.
    The limits are those of the chi-square distribution, for normal errors.

    Raises
    ------
    UserError : missing columns, or no residual degrees of freedom or variance; a response
        that the transform cannot hold.
    """
    problems = missing_columns(runs, ["status", response, *factors])
    if problems:
        raise UserError(problems)
    chosen = runs[runs["status"].eq("ok") & in_design(runs, factors) & runs[response].notna()]
    part, factors, blocks, _ = _analysed(chosen, factors, block)
    terms = [*blocks, *((name,) for name in factors)]
    names = list(dict.fromkeys(name for term in terms for name in term))
    values, scale = fit_transform(part, response, transform, terms)
    model = Model(read(part.assign(**{response: values}), response, names), terms)
    if not model.df or not model.rss:
        raise UserError(
            f"{response}: {model.df} residual degrees of freedom and a residual sum of squares of "
            f"{model.rss:g} in {model.n} runs; a residual variance needs more than 0 of both"
        )
    sigma, *limits = (
        math.sqrt(model.rss / x) for x in (model.df, *chdtri(model.df, [0.975, 0.025]))
    )
    return PilotSigma(sigma, *sorted(limits), model.df, scale.label)


# --- the design as a model --------------------------------------------------------------


def _analysed(
    design: pd.DataFrame, factors: Sequence[str], block: Sequence[str] | None
) -> tuple[pd.DataFrame, list[str], list[Term], list[str]]:
    """The largest component, its factors and blocks that vary, and notes on what is not in it."""
    cells = components(design, factors)
    if cells.empty:
        raise UserError(f"no row of the design has a level of each of {list(factors)}")
    part, varying = largest(design, cells, factors)
    if not varying:
        raise UserError(f"no factor of {list(factors)} has two levels in the design's largest part")
    if block is None:
        terms = [term_of(text) for text in blocks_of(part, varying).terms]
    else:
        terms = [term_of(text) for text in as_list(block)]
    blocks = [t for t in terms if all(n in part and part[n].nunique() > 1 for n in t)]
    notes = [
        f"{name} has one level in the part analysed and is left out"
        for name in factors
        if name not in varying
    ]
    if outside := int((cells["component"] > 0).sum()):
        notes.append(
            f"the design has {cells['component'].max() + 1} unconnected parts; "
            f"{outside} cell(s) outside the largest are left out"
        )
    return part, varying, blocks, notes


def _model(part: pd.DataFrame, terms: list[Term]) -> Model:
    """The model of a design, which has no response yet."""
    levels, codes = {}, {}
    for name in dict.fromkeys(name for term in terms for name in term):
        codes[name], found = pd.factorize(as_labels(part[name]))
        levels[name] = list(found)
    return Model(Data(np.zeros(len(part)), 0.0, levels, codes, part.index), terms)


def _noted(rows: list[dict], notes: list[str], columns: list[str] | None = None) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=columns)
    table.attrs["notes"] = notes
    return table


def _check(**numbers: float) -> None:
    """Every number above 0 and finite; levels of probability below 1 too."""
    problems = []
    for name, value in numbers.items():
        top = 1.0 if name in ("alpha", "goal") else math.inf
        if not 0 < value < top:
            allowed = "between 0 and 1" if top == 1 else "a finite number above 0"
            problems.append(f"{name}: {value!r}; allowed: {allowed}")
    if problems:
        raise UserError(problems)
