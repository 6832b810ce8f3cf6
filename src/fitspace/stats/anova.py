"""Analysis of variance of types I, II and III, robust or not, for designs with holes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import numpy as np
import pandas as pd
from scipy.linalg import LinAlgError, cholesky, solve_triangular
from scipy.special import fdtrc

from fitspace.errors import UserError
from fitspace.stats import effects
from fitspace.stats.formula import Term, label, parse
from fitspace.stats.linear import (
    Model,
    as_labels,
    missing_columns,
    orthonormal,
    read,
    sum_of_squares,
)

NAN = float("nan")
ROBUST = ("hc0", "hc1", "hc2", "hc3", "hc4")


def anova(
    table: pd.DataFrame,
    response: str | None = None,
    factors: Sequence[str] | None = None,
    *,
    interactions: bool = False,
    block: str | Sequence[str] | None = None,
    type: Literal[1, 2, 3] = 2,
    robust: str | None = None,
    formula: str | None = None,
    exact_decimals: bool = False,
) -> pd.DataFrame:
    """Analysis of variance of one response; one row per term, ``residual`` last.

    Each sum of squares is what a term adds to the terms before it (type I), to all terms
    that do not contain it (II) or to all others in sum coding (III), by the rank of the
    columns; so empty cells and aliased terms get the degrees of freedom that they have.
    Columns: source, ss, df, F, p, p_holm (over all terms but blocks), eta2_p and omega2_p
    with 95% noncentral-F limits (see `effects.interval`), mde_omega2_p (the population
    partial omega squared found with 80% power at level .05). With ``robust`` F and p are
    the Wald tests of R's car with White-type covariance (Long and Ervin 2000), and columns
    built on sums of squares are NaN. ``attrs["notes"]`` says which rows were set aside.

    Parameters
    ----------
    table : one row per run; every factor is categorical, unused levels are dropped.
    interactions : add all two-factor interactions of ``factors``.
    block : additive terms put first, of no interest of their own.
    formula : instead of response and factors, e.g. ``y ~ block + A*B``.
    exact_decimals : read the response as decimal text and centre it exactly.

    Raises
    ------
    UserError : a table or model that cannot be analysed, type III of a rank-deficient
        design, a robust type I, or HC2 to HC4 with a row of leverage 1.
    """
    response, terms, blocks = model_terms(response, factors, interactions, block, formula)
    _check_options(type, robust)
    names = list(dict.fromkeys(name for term in terms for name in term))
    data = read(table, response, names, exact_decimals)
    model = Model(data, terms)
    if type == 3:
        _check_full_rank(model)
    parts = _robust_parts(model, type, robust) if robust else _parts(model, type)
    rows = [
        _row(label(term), *part, model, robust) for term, part in zip(terms, parts, strict=True)
    ]
    result = pd.DataFrame(rows)
    tested = [p if term not in blocks else NAN for p, term in zip(result["p"], terms, strict=True)]
    result.insert(5, "p_holm", effects.holm(tested))
    residual = {"source": "residual", "ss": NAN if robust else model.rss, "df": model.df}
    result = pd.concat([result, pd.DataFrame([residual])], ignore_index=True)
    result.attrs["notes"] = data.notes
    return result


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
        if response or factors or interactions:
            raise UserError("a formula stands instead of response, factors and interactions")
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


def as_list(names: str | Sequence[str] | None) -> list[str]:
    """One name, several or none, as a list."""
    return [names] if isinstance(names, str) else list(names or [])


def with_cells(table: pd.DataFrame, factors: Sequence[str]) -> tuple[pd.DataFrame, str]:
    """The table with one more column, and its name: the observed cells of the factors."""
    problems = missing_columns(table, factors)
    if problems:
        raise UserError(problems)
    labels = [as_labels(table[name]) for name in factors]
    cells = pd.Series(list(zip(*labels, strict=True)), index=table.index)
    empty = pd.concat(labels, axis=1).isna().any(axis=1)
    name = f"cell of {label(tuple(factors))}"
    return table.assign(**{name: cells.map(str).mask(empty)}), name


def _check_options(type: int, robust: str | None) -> None:
    problems = []
    if type not in (1, 2, 3):
        problems.append(f"type: {type!r}; allowed: 1, 2, 3")
    if robust is not None and robust not in ROBUST:
        problems.append(f"robust: {robust!r}; allowed: {', '.join(ROBUST)}")
    elif robust and type == 1:
        problems.append("robust tests are Wald tests of type 2 or 3, not of type 1")
    if problems:
        raise UserError(problems)


def _check_full_rank(model: Model) -> None:
    columns = model.matrix.shape[1]
    if model.rank < columns:
        raise UserError(
            f"type 3 has no meaning here: the design has rank {model.rank} for {columns} "
            "parameters (empty cells or aliased terms), so its hypotheses would depend on which "
            "parameters are dropped; use type 2, or analyse the cells"
        )


def _ordered(model: Model, term: Term, type: int) -> tuple[list[Term], list[Term]]:
    """Terms before a term and terms after it, in the order in which the type adds them."""
    if type == 1:
        at = model.terms.index(term)
        return model.terms[:at], model.terms[at + 1 :]
    after = model.relatives(term) if type == 2 else []
    return [other for other in model.terms if other != term and other not in after], after


def _added(model: Model, term: Term, type: int) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal bases of what a term adds, and of what comes after it."""
    before, after = _ordered(model, term, type)
    bases = orthonormal([model.columns(t) for t in [*before, term, *after]])
    at = len(before)
    return bases[at], np.hstack([np.empty((model.n, 0)), *bases[at + 1 :]])


def _parts(model: Model, type: int) -> list[tuple[float, int, float]]:
    parts = []
    for term in model.terms:
        basis, _ = _added(model, term, type)
        ss, df = sum_of_squares(basis, model.data.y), basis.shape[1]
        parts.append((ss, df, f_ratio(ss, df, model)))
    return parts


def f_ratio(ss: float, df: int, model: Model) -> float:
    """F of a sum of squares; NaN without degrees of freedom, infinite for an exact fit."""
    if not df or not model.df or not np.any(model.data.y):
        return NAN
    return ss / df / (model.rss / model.df) if model.rss else float("inf")


def _robust_parts(model: Model, type: int, robust: str) -> list[tuple[float, int, float]]:
    weights = _hc_weights(model, robust)
    parts = []
    for term in model.terms:
        basis, after = _added(model, term, type)
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


def _row(source: str, ss: float, df: int, F: float, model: Model, robust: str | None) -> dict:
    p = float(fdtrc(df, model.df, F)) if df and not np.isnan(F) else NAN
    row = {"source": source, "ss": ss, "df": df, "F": F, "p": p}
    known = not robust and np.isfinite(F)
    for name, size in (
        ("eta2_p", effects.eta2(F, df, model.df) if known else NAN),
        ("omega2_p", effects.omega2(F, df, model.n) if known else NAN),
    ):
        low, high = effects.interval(size, df, model.df)
        row |= {name: size, f"{name}_low": low, f"{name}_high": high}
    row["mde_omega2_p"] = NAN if robust else effects.detectable(df, model.df, model.n)
    return row


def lack_of_fit(
    table: pd.DataFrame,
    response: str,
    factors: Sequence[str],
    block: str | Sequence[str] | None = None,
) -> pd.DataFrame:
    """Test of cell means against the additive model: the interactions, with what is aliased.

    Two rows, ``lack of fit`` and ``residual`` (the cell-means model's own), with the columns
    source, ss, df, F, p. No degrees of freedom are left where every cell is fitted anyway.

    Raises
    ------
    UserError : a table that cannot be analysed.
    """
    response, terms, _ = model_terms(response, factors, False, block, None)
    table, cell = with_cells(table, as_list(factors))
    names = [name for (name,) in terms]
    model = Model(read(table, response, [*names, cell]), [*terms, (cell,)])
    ss, df, F = _parts(model, 1)[-1]
    p = float(fdtrc(df, model.df, F)) if df and not np.isnan(F) else NAN
    return pd.DataFrame(
        [
            {"source": "lack of fit", "ss": ss, "df": df, "F": F, "p": p},
            {"source": "residual", "ss": model.rss, "df": model.df},
        ]
    )
