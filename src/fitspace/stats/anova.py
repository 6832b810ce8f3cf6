"""Analysis of variance of types I, II and III, robust or not, for designs with holes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import pandas as pd
from scipy.linalg import cholesky, solve_triangular

from fitspace.core.errors import UserError
from fitspace.stats import effects
from fitspace.stats.absorbed import AbsorbedModel, absorbed_of
from fitspace.stats.clusters import KINDS, ClusterFit, cluster_parts, own_spreads
from fitspace.stats.columns import columns
from fitspace.stats.digits import NOISE
from fitspace.stats.fits import LinearFit, remembered
from fitspace.stats.formula import Term, label
from fitspace.stats.given import Given, given, slopes
from fitspace.stats.linear import CellsModel, Model, as_list, read, sum_of_squares, with_cells
from fitspace.stats.permutation import SINGULAR, permutation_p
from fitspace.stats.strata import strata
from fitspace.stats.transforms import TRANSFORMS, fit_transform
from fitspace.stats.variances import welch_james, welch_part

NAN = float("nan")
HC = ("hc0", "hc1", "hc2", "hc3", "hc4")
HETEROSCEDASTIC = {"welch": welch_part, "welch-james": welch_james}
ROBUST = (*HC, *HETEROSCEDASTIC, *KINDS)
NO_DF = "no degrees of freedom are left for error, so nothing can be tested"


def anova(
    table: pd.DataFrame,
    response: str | None = None,
    factors: str | Sequence[str] | None = None,
    *,
    interactions: bool = False,
    block: str | Sequence[str] | None = None,
    random: str | None = None,
    type: Literal[1, 2, 3] = 2,
    robust: str | None = None,
    cluster: str | None = None,
    permutations: int | None = None,
    seed: int = 0,
    transform: str | None = None,
    formula: str | None = None,
    exact_decimals: bool = False,
    studentised: bool = False,
) -> pd.DataFrame:
    """Analysis of variance of one response; one row per term, ``residual`` last.

    >>> table = pd.DataFrame({"y": [4.1, 4.5, 5.2, 5.0, 6.3, 6.1], "arm": list("aabbcc")})
    >>> anova(table, "y ~ arm")[["source", "df", "F", "p"]].round(4)
         source  df     F       p
    0       arm   2  45.5  0.0057
    1  residual   3   NaN     NaN

    What it returns without error strata can be given to `means`, `pairs`, `contrasts` and
    `effect_sizes`. ``response`` may be a formula: ``anova(table, "y ~ task*arm + task:seed")``.
    Columns of numbers in a formula are slopes (see `given`).

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
        degrees of freedom are the residual's; "welch-james": Johansen's test (1980) of the same
        hypotheses on the means of all cells, with the column den_df. Columns built on sums of
        squares are NaN. "cr0" to "cr3": rows of one ``cluster`` may go together in any way,
        and without one each row may have its own variance (see `ClusterFit`): cr2 is then hc2, and
        cr3 hc3, with the degrees of freedom that they have, in den_df. A test whose covariance is
        singular is NaN, with the reason in ``attrs["notes"]``.
    permutations : number of random permutations for the column p_permutation, drawn by
        ``seed`` (see `permutation_p`); ``studentised`` permutes for hc3's statistic, not for F.
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
    found = given(table, response, factors, block, interactions=interactions, formula=formula)
    if random is not None:
        found = _over(found, random, formula is not None or "~" in (response or ""))
    _check_options(found, type, robust, cluster, permutations, transform, exact_decimals)
    table, notes = _on_scale(table, found, transform)
    notes += slopes(found)
    data = found.data(table, as_list(cluster), exact_decimals)
    many = absorbed_of(data, found.terms)
    if many and (found.error or robust or permutations):
        raise UserError(
            f"{many[0]} has {len(data.levels[many[0]])} levels: with so many there is the "
            "classical F alone, without error strata, robust tests or permutations"
        )
    if many:
        result = _tests(AbsorbedModel(data, found.terms, many), found.blocks, type)
    elif found.error:
        result = strata(data, found.terms, found.error, blocks=found.blocks, type=type)
    else:
        model = Model(data, found.terms)
        if robust not in KINDS:
            fit = LinearFit(model)
        elif cluster is None:
            fit = own_spreads(model, robust)
        else:
            fit = ClusterFit(model, data.codes[cluster], robust)
        if type == 3:
            check_full_rank(model)
        parts = _robust(fit, type, robust) if robust else None
        if robust == "cr3" and fit.blind.any():
            raise UserError(
                "robust: 'cr3' leaves each cluster or row out, and without one of them a "
                "coefficient is lost (the only row of a level, or clusters in the model); allowed "
                "here: cr2"
            )
        result = _tests(model, found.blocks, type, robust, parts)
        if permutations:
            options = {"seed": seed, "studentised": studentised}
            p = permutation_p(model, type, found.blocks, permutations, **options)
            result = result.assign(p_permutation=[*p, NAN])[columns("p_permutation")]
        result = remembered(result, fit)
    result.attrs["notes"] = notes + data.notes + result.attrs["notes"]
    return result


def _over(found: Given, random: str, by_formula: bool) -> Given:
    """The model with the strata of a random factor: ``Error(random / (terms))``."""
    if by_formula:
        raise UserError("random: a formula names its strata itself: + Error(task/(A + B))")
    if (random,) in found.terms:
        raise UserError(f"random: {random!r} is also a factor or block")
    ours = [term for term in found.terms if term not in found.blocks]
    return replace(found, error=[(random,), *((random, *term) for term in ours)])


def model_of(
    table: pd.DataFrame,
    response: str,
    factors: Sequence[str],
    block: str | Sequence[str] | None = None,
    interactions: bool = False,
) -> Model:
    """The model ``block + factors`` of a table, with two-factor interactions if asked."""
    return given(table, response, factors, block, interactions=interactions).model(table)


def _check_options(
    given: Given, type, robust, cluster, permutations, transform, exact_decimals
) -> None:
    problems = []
    if type not in (1, 2, 3):
        problems.append(f"type: {type!r}; allowed: 1, 2, 3")
    if robust is not None and robust not in ROBUST:
        problems.append(f"robust: {robust!r}; allowed: {', '.join(ROBUST)}")
    elif robust == "welch" and (given.blocks or [len(term) for term in given.terms] != [1]):
        problems.append("robust: 'welch' compares the levels of one factor alone, without blocks")
    elif robust == "welch-james" and given.blocks:
        problems.append("robust: 'welch-james' knows no blocks; use hc3, or a mixed model")
    elif robust in HETEROSCEDASTIC and given.quantities:
        problems.append(f"robust: {robust!r} compares levels; {given.quantities} are numbers")
    elif cluster is not None and robust not in KINDS:
        problems.append(f"cluster: the column of the clusters, for robust {', '.join(KINDS)}")
    elif robust in (*HC, *KINDS) and type == 1:
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
    table: pd.DataFrame, given: Given, transform: str | None
) -> tuple[pd.DataFrame, list[str]]:
    """The table with its response transformed, and a note on the scale."""
    if transform is None:
        return table, []
    values, scale = fit_transform(table, given.response, transform, given.terms)
    return table.assign(**{given.response: values}), [f"{given.response} is on the {scale} scale"]


def check_full_rank(model: Model) -> None:
    """Raises UserError where hypotheses of type III have no meaning."""
    columns = model.matrix.shape[1]
    if model.rank < columns:
        raise UserError(
            f"type 3 has no meaning here: the design has rank {model.rank} for {columns} "
            "parameters (empty cells or aliased terms), so its hypotheses would depend on which "
            "parameters are dropped; use type 2, or analyse the cells"
        )


# One term of a test: sum of squares, degrees of freedom, F, and those of its error.
Part = tuple[float, int, float, float]


def _tests(
    model: Model | AbsorbedModel,
    blocks: Sequence[Term],
    type: int,
    robust: str | None = None,
    robustly: tuple[list[Part], list[str]] | None = None,
) -> pd.DataFrame:
    """Rows of the terms and the residual row; notes on what could not be tested."""
    parts, notes = robustly or (_parts(model, type), [])
    notes = without_error(model) or notes
    rows = [
        effects.tested(label(term), ss, df, F, den, model.n)
        for term, (ss, df, F, den) in zip(model.terms, parts, strict=True)
    ]
    rest = parts[0][3] if robust == "welch" else model.df
    rows.append({"source": "residual", "ss": NAN if robust else model.rss, "df": rest})
    result = pd.DataFrame(rows, columns=columns())
    ours = [term not in blocks for term in model.terms]
    result["p_holm"] = effects.holm(result["p"].where([*ours, False]).tolist())
    if robust in ("welch-james", *KINDS):
        result = result.assign(den_df=[*(part[3] for part in parts), NAN])[columns("den_df")]
    result.attrs["notes"] = notes
    return result


def _robust(fit: LinearFit, type: int, robust: str) -> tuple[list[Part], list[str]]:
    if robust in HETEROSCEDASTIC:
        return HETEROSCEDASTIC[robust](fit.model)
    if robust in KINDS:
        return cluster_parts(fit, type)
    return _robust_parts(fit.model, type, robust)


def without_error(model: Model | AbsorbedModel) -> list[str]:
    """Why nothing can be tested, if so."""
    if not model.df:
        return [NO_DF]
    if model.data.y.any() and not model.rss:
        return ["the model fits the response exactly: there is no error to test against"]
    return []


def _parts(model: Model | AbsorbedModel, type: int) -> list[Part]:
    """The classical F of each term."""
    parts = []
    for term in model.terms:
        if isinstance(model, AbsorbedModel):
            ss, df = model.added(term, type)
        else:
            basis, _ = model.added(term, type)
            ss, df = sum_of_squares(basis, model.data), basis.shape[1]
        parts.append((ss, df, effects.f_ratio(ss, df, model.rss, model.df), model.df))
    return parts


def _robust_parts(model: Model, type: int, robust: str) -> tuple[list[Part], list[str]]:
    weights = _hc_weights(model, robust)
    parts, notes = [], []
    for term in model.terms:
        basis, after = model.added(term, type)
        df, F = basis.shape[1], NAN
        tested = np.hstack([after, basis])
        cov = (tested * weights[:, None]).T @ tested
        rank = _rank(cov) if model.df and model.rss else 0
        if df and rank == len(cov):
            # Rows of the factor: first the containing terms, then the term given those.
            z = solve_triangular(cholesky(cov, lower=True), tested.T @ model.data.y, lower=True)
            F = float(np.sum(z[after.shape[1] :] ** 2)) / df
        elif df:
            notes.append(
                f"{label(term)} has no {robust} test: the covariance of its {len(cov)} "
                f"coefficients has rank {rank} (some residuals are exactly fitted or tied)"
            )
        parts.append((NAN, df, F, model.df))
    return parts, notes


def _rank(cov: np.ndarray) -> int:
    """Rank of the covariance (k, k) of coefficients by an orthonormal basis."""
    values = np.linalg.eigvalsh(cov)
    return int(np.sum(values > SINGULAR * values[-1])) if values[-1] > 0 else 0


def _hc_weights(model: Model, robust: str) -> np.ndarray:
    residuals, h, n, p = model.residuals, model.leverage, model.n, model.rank
    noise = max(NOISE * np.abs(model.data.y).max(), model.data.rounding)
    squares = np.where(np.abs(residuals) > noise, residuals, 0.0) ** 2
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
    *,
    within: str | None = None,
) -> pd.DataFrame:
    """Test of cell means against the additive model: the interactions, with what is aliased.

    >>> runs = pd.DataFrame([(a, b, s) for a in "uvw" for b in "xy" for s in (0, 1)])
    >>> runs.columns = ["input", "output", "seed"]
    >>> runs["score"] = [3, 3.1, 4, 4.2, 3.6, 3.5, 4.4, 4.6, 5, 5.2, 6.1, 6.0]
    >>> lack_of_fit(runs, "score", ["input", "output"])[["source", "df", "F", "p"]].round(4)
            source  df       F       p
    0  lack of fit   2  0.2667  0.7745
    1     residual   6     NaN     NaN

    Two rows, ``lack of fit`` and ``residual`` (the cell-means model's own), with the columns of
    `anova` but p_holm. No degrees of freedom are left where every cell is fitted anyway. ``within``
    is a block, a task say: the error is that of the cells in each of its levels, and a row more,
    ``task:lack of fit``, tests whether what the factors do together differs between them.

    Raises
    ------
    UserError : a table that cannot be analysed.
    """
    found = given(table, response, factors, block)
    terms, factors = found.terms, as_list(factors)
    table, cell = with_cells(table, factors)
    data = read(table, response, [*found.names, cell])
    additive, cells = Model(data, terms), CellsModel(data, found.blocks, cell)
    error = cells if within is None else found.cells(table, factors, within)

    def test(name: str, smaller: Model | CellsModel, larger: CellsModel) -> dict:
        df = smaller.df - larger.df
        ss = math.fsum((smaller.residuals - larger.residuals) ** 2) if df else 0.0
        F = effects.f_ratio(ss, df, error.rss, error.df)
        return effects.tested(name, ss, df, F, error.df, error.n)

    rows = [test("lack of fit", additive, cells)]
    if within is not None:
        single = [(within, factor) for factor in factors]
        apart = CellsModel(data, [*found.blocks, *single], cell)
        rows.append(test(f"{within}:lack of fit", apart, error))
    return pd.DataFrame([*rows, {"source": "residual", "ss": error.rss, "df": error.df}])
