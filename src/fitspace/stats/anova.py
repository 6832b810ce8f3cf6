"""Analysis of variance of types I, II and III, robust or not, for designs with holes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import pandas as pd
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from fitspace.core.errors import UserError
from fitspace.stats import effects
from fitspace.stats.columns import columns
from fitspace.stats.formula import Term, label, parse, parse_strata
from fitspace.stats.linear import (
    CellsModel,
    Data,
    Model,
    as_list,
    read,
    sum_of_squares,
    with_cells,
)
from fitspace.stats.permutation import permutation_p
from fitspace.stats.strata import strata
from fitspace.stats.transforms import TRANSFORMS, fit_transform
from fitspace.stats.variances import welch_ratio

NAN = float("nan")
HC = ("hc0", "hc1", "hc2", "hc3", "hc4")
ROBUST = (*HC, "welch")


def anova(
    table: pd.DataFrame,
    response: str | None = None,
    factors: Sequence[str] | None = None,
    *,
    interactions: bool = False,
    block: str | Sequence[str] | None = None,
    random: str | None = None,
    type: Literal[1, 2, 3] = 2,
    robust: str | None = None,
    permutations: int | None = None,
    seed: int = 0,
    transform: str | None = None,
    formula: str | None = None,
    exact_decimals: bool = False,
) -> pd.DataFrame:
    """Analysis of variance of one response; one row per term, ``residual`` last.

    Each sum of squares is what a term adds to the terms before it (type I), to all terms
    that do not contain it (II) or to all others in sum coding (III), by the rank of the
    columns; so empty cells and aliased terms get the degrees of freedom that they have.
    Columns: source, ss, df, F, p, p_holm (over all terms but blocks), eta2_p and omega2_p
    with 95% noncentral-F limits (see `effects.interval`), mde (the population partial omega
    squared found with 80% power at level .05). With error strata the column ``stratum``
    comes first (see `strata`). ``attrs["notes"]`` says which rows were set aside, and what
    else a reader must know.

    Parameters
    ----------
    table : one row per run; every factor is categorical, unused levels are dropped.
    interactions : add all two-factor interactions of ``factors``.
    block : additive terms put first, of no interest of their own.
    random : a random factor; every term is tested against its interaction with it:
        ``Error(random / (terms))``.
    robust : "hc0" to "hc4": F and p are the Wald tests of R's car with White-type covariance
        (Long and Ervin 2000); "welch": Welch's test (1951) of one factor, whose second
        degrees of freedom are the residual's. Columns built on sums of squares are NaN.
    permutations : number of random permutations for the column p_permutation, drawn by
        ``seed`` (see `permutation_p`).
    transform : analyse the response on the scale "log", "logit" or "box-cox" (see
        `fit_transform`).
    formula : instead of response and factors, e.g. ``y ~ block + A*B``, or with error strata
        ``y ~ A + Error(task/A)``.
    exact_decimals : read the response as decimal text and centre it exactly.

    Raises
    ------
    UserError : a table or model that cannot be analysed, options that exclude each other,
        type III of a rank-deficient design, or HC2 to HC4 with a row of leverage 1.
    """
    given = _given(response, factors, interactions, block, random, formula)
    _check_options(given, type, robust, permutations, transform, exact_decimals)
    table, notes = _on_scale(table, given, transform)
    if given.error:
        result = strata(
            table,
            given.response,
            given.terms,
            given.error,
            blocks=given.blocks,
            type=type,
            exact_decimals=exact_decimals,
        )
    else:
        data = read(table, given.response, given.names, exact_decimals)
        model = Model(data, given.terms)
        result = _tests(model, given.blocks, type, robust)
        if permutations:
            p = permutation_p(model, type, given.blocks, permutations, seed)
            result = result.assign(p_permutation=[*p, NAN])[columns("p_permutation")]
        result.attrs["notes"] = data.notes
    result.attrs["notes"] = notes + result.attrs["notes"]
    return result


@dataclass(frozen=True)
class _Given:
    """A model, however it was given: terms with the blocks first, and error terms."""

    response: str
    terms: list[Term]
    blocks: list[Term]
    error: list[Term]

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(name for term in self.terms for name in term))


def _given(response, factors, interactions, block, random, formula) -> _Given:
    if formula is None:
        response, terms, blocks = model_terms(response, factors, interactions, block, None)
        if random is None:
            return _Given(response, terms, blocks, [])
        if (random,) in terms:
            raise UserError(f"random: {random!r} is also a factor or block")
        ours = [term for term in terms if term not in blocks]
        return _Given(response, terms, blocks, [(random,), *((random, *term) for term in ours)])
    _check_alone(response, factors, interactions)
    if random is not None:
        raise UserError("random: a formula names its strata itself: + Error(task/(A + B))")
    response, terms, error = parse_strata(formula)
    blocks = [(name,) for name in as_list(block)]
    return _Given(response, blocks + [t for t in terms if t not in blocks], blocks, error)


def _check_alone(response, factors, interactions) -> None:
    if response or factors or interactions:
        raise UserError("a formula stands instead of response, factors and interactions")


def model_of(
    table: pd.DataFrame,
    response: str,
    factors: Sequence[str],
    block: str | Sequence[str] | None = None,
    interactions: bool = False,
) -> Model:
    """The model ``block + factors`` of a table, with two-factor interactions if asked."""
    response, terms, _ = model_terms(response, factors, interactions, block, None)
    return Model(read(table, response, [name for (name, *more) in terms if not more]), terms)


def model_terms(
    response: str | None,
    factors: Sequence[str] | None,
    interactions: bool,
    block: str | Sequence[str] | None,
    formula: str | None,
) -> tuple[str, list[Term], list[Term]]:
    """Response, terms (blocks first) and the block terms of a model, however it was given."""
    blocks = [(name,) for name in as_list(block)]
    if formula is not None:
        _check_alone(response, factors, interactions)
        response, terms = parse(formula)
    elif response and factors:
        factors = as_list(factors)
        terms = [(name,) for name in factors]
        if interactions:
            terms += list(combinations(factors, 2))
        repeated = {name for name in factors if factors.count(name) > 1 or (name,) in blocks}
        if repeated:
            raise UserError(f"factors {sorted(repeated)}: named more than once")
    else:
        raise UserError("give either a formula, or a response and its factors")
    return response, blocks + [term for term in terms if term not in blocks], blocks


def _check_options(given: _Given, type, robust, permutations, transform, exact_decimals) -> None:
    problems = []
    if type not in (1, 2, 3):
        problems.append(f"type: {type!r}; allowed: 1, 2, 3")
    if robust is not None and robust not in ROBUST:
        problems.append(f"robust: {robust!r}; allowed: {', '.join(ROBUST)}")
    elif robust == "welch" and (given.blocks or [len(term) for term in given.terms] != [1]):
        problems.append("robust: 'welch' compares the levels of one factor alone, without blocks")
    elif robust in HC and type == 1:
        problems.append("robust tests are Wald tests of type 2 or 3, not of type 1")
    if permutations is not None and (not isinstance(permutations, int) or permutations < 1):
        problems.append(f"permutations: {permutations!r}; allowed: a whole number above 0")
    elif permutations and robust:
        problems.append("permutations: of the classical F; not together with a robust one")
    if given.error:
        excluded = {"type 3": type == 3, "robust": robust, "permutations": permutations}
        problems += [
            f"{option}: not with error strata, whose rows are not independent: each term is "
            "tested by the F of its stratum, type 1 or 2"
            for option, asked in excluded.items()
            if asked
        ]
    if transform is not None and transform not in TRANSFORMS:
        problems.append(f"transform: {transform!r}; allowed: {', '.join(TRANSFORMS)}")
    elif transform and exact_decimals:
        problems.append("exact_decimals: a transformed response has no exact decimals")
    if problems:
        raise UserError(problems)


def _on_scale(
    table: pd.DataFrame, given: _Given, transform: str | None
) -> tuple[pd.DataFrame, list[str]]:
    """The table with its response transformed, and a note on the scale."""
    if transform is None:
        return table, []
    values, scale = fit_transform(table, given.response, transform, given.terms)
    return table.assign(**{given.response: values}), [f"{given.response} is on the {scale} scale"]


def _check_full_rank(model: Model) -> None:
    columns = model.matrix.shape[1]
    if model.rank < columns:
        raise UserError(
            f"type 3 has no meaning here: the design has rank {model.rank} for {columns} "
            "parameters (empty cells or aliased terms), so its hypotheses would depend on which "
            "parameters are dropped; use type 2, or analyse the cells"
        )


def _tests(model: Model, blocks: Sequence[Term], type: int, robust: str | None) -> pd.DataFrame:
    """Rows of the terms and the residual row."""
    df2, rss = model.df, model.rss
    if type == 3:
        _check_full_rank(model)
    if robust == "welch":
        parts, df2 = _welch_part(model.data)
    elif robust:
        parts = _robust_parts(model, type, robust)
    else:
        parts = _parts(model, type)
    rows = [
        effects.tested(label(term), ss, df, F, df2, model.n)
        for term, (ss, df, F) in zip(model.terms, parts, strict=True)
    ]
    rows.append({"source": "residual", "ss": NAN if robust else rss, "df": df2})
    result = pd.DataFrame(rows, columns=columns())
    ours = [term not in blocks for term in model.terms]
    result["p_holm"] = effects.holm(result["p"].where([*ours, False]).tolist())
    return result


def _parts(model: Model, type: int) -> list[tuple[float, int, float]]:
    """Sum of squares, degrees of freedom and F of each term."""
    parts = []
    for term in model.terms:
        basis, _ = model.added(term, type)
        ss, df = sum_of_squares(basis, model.data.y), basis.shape[1]
        parts.append((ss, df, f_ratio(ss, df, model)))
    return parts


def f_ratio(ss: float, df: int, model: Model) -> float:
    """F of a sum of squares against a model's residuals (see `effects.f_ratio`)."""
    return effects.f_ratio(ss, df, model.rss, model.df, model.data.y @ model.data.y)


def _welch_part(data: Data) -> tuple[list[tuple[float, int, float]], float]:
    (codes,) = data.codes.values()
    F, df1, df2 = welch_ratio([data.y[codes == code] for code in range(codes.max() + 1)])
    return [(NAN, df1, F)], df2


def _robust_parts(model: Model, type: int, robust: str) -> list[tuple[float, int, float]]:
    weights = _hc_weights(model, robust)
    parts = []
    for term in model.terms:
        basis, after = model.added(term, type)
        df = basis.shape[1]
        tested = np.hstack([after, basis])
        cov = (tested * weights[:, None]).T @ tested
        try:
            # Rows of the factor: first the containing terms, then the term given those.
            z = solve_triangular(cholesky(cov, lower=True), tested.T @ model.data.y, lower=True)
            F = float(np.sum(z[after.shape[1] :] ** 2)) / df if df and model.df else NAN
        except LinAlgError:
            F = NAN
        parts.append((NAN, df, F))
    return parts


def _hc_weights(model: Model, robust: str) -> np.ndarray:
    squares, h, n, p = model.residuals**2, model.leverage, model.n, model.rank
    if robust == "hc0" or model.df == 0:
        return squares
    if robust == "hc1":
        return squares * n / (n - p)
    if h.max() > 1 - 1e-9:
        rows = [str(row) for row in model.data.index[h > 1 - 1e-9][:5]]
        raise UserError(
            f"robust: {robust!r} divides by 1 - leverage, which is 0 for row(s) {', '.join(rows)} "
            "(the only one of a level or cell); allowed here: hc0, hc1"
        )
    power = {"hc2": 1.0, "hc3": 2.0, "hc4": np.minimum(4, n * h / p)}[robust]
    return squares / (1 - h) ** power


def lack_of_fit(
    table: pd.DataFrame,
    response: str,
    factors: Sequence[str],
    block: str | Sequence[str] | None = None,
) -> pd.DataFrame:
    """Test of cell means against the additive model: the interactions, with what is aliased.

    Two rows, ``lack of fit`` and ``residual`` (the cell-means model's own), with the columns of
    `anova` but p_holm. No degrees of freedom are left where every cell is fitted anyway.

    Raises
    ------
    UserError : a table that cannot be analysed.
    """
    response, terms, _ = model_terms(response, factors, False, block, None)
    table, cell = with_cells(table, as_list(factors))
    names = [name for (name,) in terms]
    data = read(table, response, [*names, cell])
    additive, cells = Model(data, terms), CellsModel(data, as_list(block), cell)
    df = additive.df - cells.df
    ss = math.fsum((additive.residuals - cells.residuals) ** 2) if df else 0.0
    F = effects.f_ratio(ss, df, cells.rss, cells.df, data.y @ data.y)
    test = effects.tested("lack of fit", ss, df, F, cells.df, cells.n)
    rows = [test, {"source": "residual", "ss": cells.rss, "df": cells.df}]
    return pd.DataFrame(rows)
