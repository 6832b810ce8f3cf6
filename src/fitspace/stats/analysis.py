"""The analysis that a study gets: everything its report shows, from its table of runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from fitspace.core.errors import UserError
from fitspace.stats import best, planning
from fitspace.stats.anova import NO_DF, anova, lack_of_fit, model_of
from fitspace.stats.equivalence import equivalence
from fitspace.stats.estimability import components, in_design, largest
from fitspace.stats.fits import LinearFit
from fitspace.stats.lenth import lenth
from fitspace.stats.linear import Model, missing_columns, read
from fitspace.stats.means import cell_means, marginal_means, pooled_sd
from fitspace.stats.ranking import leave_one_out, ranking
from fitspace.stats.strata import over_tasks
from fitspace.stats.transforms import TRANSFORMS, Scale, fit_transform
from fitspace.stats.variances import brown_forsythe

NAN = float("nan")
PERMUTATIONS = 4999
TESTS = {2: "type II", 3: "type III"}
# Two levels this many residual standard deviations apart: the abscissa of the power curve.
RATIOS = tuple(np.arange(1, 17) / 4)


@dataclass(frozen=True)
class Analysis:
    """Tables of an analysis; all but the first two start with the column ``response``.

    Attributes
    ----------
    factors, blocks : what varies in component 0, and so is in the model.
    interactions : whether all cells are there, and the model has two-factor interactions.
    ledger : arm (``all`` last), planned, ok, failed, missing: counts of runs.
    components : one row per cell that has finished runs (see `components`).
    scales : response, scale, runs: where it was analysed and on how many runs.
    anova : of component 0: type III with interactions where all cells are there, else type II
        of the additive model; where no two runs share a cell and nothing is left to estimate
        error, without F and p.
    robustness : test, source, df, df2, F, p, p_holm: the factors by the analysis above, by
        permutation, with HC3 covariance, and by Welch's one-way test.
    general : `over_tasks`: each factor against its interaction with the tasks.
    contrasts : `lenth`, where the analysis has no error to test against.
    lack_of_fit : rows ``lack of fit`` and ``residual`` of the cell means (see `lack_of_fit`).
    ranking, left_out : `ranking` of the factors, and `leave_one_out` of the tasks.
    marginal_means : factor, level, mean, se, low, high, df, estimable, tied_with_best.
    cells : the factors, component, the columns of `cell_means` and tied_with_best (NaN where
        not compared), for every cell; on the response as measured, never transformed.
    equivalence : `equivalence` of every point and the reference, where a margin is declared.
    power : factor, ratio (difference of two levels over the residual SD), delta, power, and
        detectable, the smallest difference found with 80% power.
    spread : cell_sd (of the adjusted cell means), replicate_sd (over seeds), ratio.
    variances : Brown-Forsythe on the model's residuals: source, F, df1, df2, p.
    residuals : run, fitted, residual, leverage, cooks_distance.
    fitted : response -> its scale, to go to and fro.
    notes : what was set aside, dropped or not possible, in sentences.
    """

    factors: list[str]
    blocks: list[str]
    interactions: bool
    ledger: pd.DataFrame
    components: pd.DataFrame
    scales: pd.DataFrame
    anova: pd.DataFrame
    robustness: pd.DataFrame
    general: pd.DataFrame
    contrasts: pd.DataFrame
    lack_of_fit: pd.DataFrame
    ranking: pd.DataFrame
    left_out: pd.DataFrame
    marginal_means: pd.DataFrame
    cells: pd.DataFrame
    equivalence: pd.DataFrame
    power: pd.DataFrame
    spread: pd.DataFrame
    variances: pd.DataFrame
    residuals: pd.DataFrame
    fitted: dict[str, Scale]
    notes: list[str]

    @property
    def test(self) -> str:
        """The analysis of variance that the design admits: ``type II`` or ``type III``."""
        return TESTS[3 if self.interactions else 2]


def analyse(
    runs: pd.DataFrame,
    factors: Sequence[str],
    responses: Sequence[str],
    block: Sequence[str] = ("task", "seed"),
    *,
    transform: Mapping[str, str] | None = None,
    margins: Mapping[str, float] | None = None,
    lower_is_better: Collection[str] = (),
) -> Analysis:
    """Analyse a table of runs: one row per run, its factors, blocks and metrics.

    >>> runs = pd.DataFrame([(a, b, s) for a in "uvw" for b in "xy" for s in (0, 1)])
    >>> runs.columns = ["input", "output", "seed"]
    >>> runs["score"] = [3, 3.1, 4, 4.2, 3.6, 3.5, 4.4, 4.6, 5, 5.2, 6.1, 6.0]
    >>> found = analyse(runs.assign(status="ok", task="sepia"), ["input", "output"], ["score"])
    >>> found.anova[["source", "df", "F", "p_holm"]].round(3)
             source  df        F  p_holm
    0          seed   1    1.923     NaN
    1         input   2  406.462   0.000
    2        output   1  267.769   0.000
    3  input:output   2    0.308   0.748
    4      residual   5      NaN     NaN

    Takes the rows with status ok that are in the design (see `in_design`), blocks on the
    columns of ``block`` that vary, and fits the model within the largest connected component;
    all cells, of the others too, are reported as cells. A response that cannot be analysed, or
    not on the scale asked for, is named in ``notes``. ``margins`` (response -> margin, as
    measured) hold every other point against full fine-tuning: the runs of method full.

    Raises
    ------
    UserError : missing columns, an unknown transform, or no response that can be analysed.
    """
    factors, responses = list(factors), list(responses)
    problems = missing_columns(runs, ["status", *factors, *responses])
    problems += [
        f"transform: {name}: {scale!r}; allowed: {', '.join(TRANSFORMS)}"
        for name, scale in (transform or {}).items()
        if scale not in TRANSFORMS
    ]
    if problems:
        raise UserError(problems)
    finished = runs[runs["status"].eq("ok")].reset_index(drop=True)
    chosen = finished[in_design(finished, factors)].reset_index(drop=True)
    if chosen.empty:
        raise UserError(f"no run has status ok and a level of each of {factors}")
    cells = components(chosen, factors)
    main, varying = largest(chosen, cells, factors)
    main = main.reset_index(drop=True)
    if not varying:
        raise UserError(f"no factor of {factors} has two levels among the finished runs")
    blocks = [name for name in block if name in main and main[name].nunique() > 1]
    whole = len(varying) > 1 and _complete(main, varying)
    notes = _notes(chosen, cells, factors, varying, whole)
    parts: dict[str, dict[str, pd.DataFrame]] = {}
    scales: dict[str, Scale] = {}
    failures = []
    for response in responses:
        design = _Design(response, varying, blocks, whole, response in lower_is_better)
        try:
            scaled, scale, more = _on_scale(main, design, (transform or {}).get(response))
            part = _one(chosen, cells, scaled, design, factors)
        except UserError as error:
            failures += [f"{response} was not analysed: {problem}" for problem in error.problems]
            continue
        margin = (margins or {}).get(response)
        part["equivalence"], others = _equivalence(finished, response, margin, design)
        part["scales"] = pd.DataFrame([{"scale": scale.label, "runs": len(part["residuals"])}])
        parts[response], scales[response] = part, scale
        notes += more + design.notes + others
    if not parts:
        raise UserError(failures)
    names = next(iter(parts.values()))
    tables = {
        name: pd.concat(
            [part[name].assign(response=response) for response, part in parts.items()],
            ignore_index=True,
        )
        for name in names
    }
    tables = {name: table.pipe(_response_first) for name, table in tables.items()}
    notes = list(dict.fromkeys(notes + failures))
    return Analysis(
        varying, blocks, whole, _ledger(runs), cells, fitted=scales, notes=notes, **tables
    )


@dataclass(frozen=True)
class _Design:
    """What a response is analysed by; ``notes`` gathers what could not be done."""

    response: str
    factors: list[str]
    blocks: list[str]
    interactions: bool
    lower: bool
    notes: list[str] = field(default_factory=list)

    @property
    def model(self) -> dict:
        return {"block": self.blocks, "interactions": self.interactions}

    @property
    def type(self) -> int:
        return 3 if self.interactions else 2

    def note(self, what: str, error: UserError) -> None:
        self.notes.extend(f"{self.response}: {what}: {problem}" for problem in error.problems)


def _response_first(table: pd.DataFrame) -> pd.DataFrame:
    return table[["response", *(name for name in table if name != "response")]]


def _complete(main: pd.DataFrame, factors: list[str]) -> bool:
    cells = main[factors].astype(str).drop_duplicates()
    return len(cells) == np.prod([main[name].nunique() for name in factors])


def _notes(
    chosen: pd.DataFrame,
    cells: pd.DataFrame,
    factors: list[str],
    varying: list[str],
    whole: bool,
) -> list[str]:
    notes = []
    count = cells["component"].max() + 1
    if count > 1:
        outside = int((cells["component"] > 0).sum())
        notes.append(
            f"the design has {count} unconnected parts; the {outside} cell(s) "
            "outside the largest are reported as cells, not in the analysis of variance"
        )
    if "arm" in chosen and "arm" not in cells and chosen["arm"].nunique() > 1:
        arms = ", ".join(map(str, chosen["arm"].unique()))
        notes.append(f"several arms ({arms}) have all factors and are analysed together")
    notes += [
        f"{name} has one level in the part analysed and was left out of the model"
        for name in factors
        if name not in varying
    ]
    if len(varying) > 1 and not whole:
        notes.append(
            "some combinations of levels have no run, so type III and separate interactions "
            "are undefined: factors are tested by type II, all interactions together as lack of fit"
        )
    return notes


def _on_scale(
    main: pd.DataFrame, design: _Design, name: str | None
) -> tuple[pd.DataFrame, Scale, list[str]]:
    """The table with the response transformed, unless it has values the scale cannot hold."""
    terms = [(factor,) for factor in [*design.blocks, *design.factors]]
    try:
        values, scale = fit_transform(main, design.response, name, terms)
        notes = []
    except UserError as error:
        if name is None:
            raise
        values, scale = fit_transform(main, design.response, None, terms)
        notes = [f"{design.response} was analysed untransformed: {p}" for p in error.problems]
    return main.assign(**{design.response: values}), scale, notes


def _one(chosen, cells, main, design: _Design, factors: list[str]) -> dict[str, pd.DataFrame]:
    response, blocks = design.response, design.blocks
    residuals = _residuals(main, design)
    every = cell_means(chosen, response, factors, blocks)
    numbers = every[factors].merge(cells, on=factors, how="left")["component"]
    every.insert(len(factors), "component", numbers)
    every["tied_with_best"] = best.of_cells(main, response, factors, every, blocks, design.lower)
    single = len(residuals) == len(main[design.factors].astype(str).drop_duplicates())
    alone = single and (design.interactions or len(design.factors) == 1)
    table = anova(
        main,
        response,
        design.factors,
        type=design.type,
        permutations=None if alone else PERMUTATIONS,
        **design.model,
    )
    design.notes.extend(note for note in table.attrs["notes"] if not (alone and note == NO_DF))
    if alone:
        table = _without_error(table, design)
    return {
        "anova": table.drop(columns="p_permutation", errors="ignore"),
        "robustness": _robustness(main, table, design),
        "general": _general(main, design),
        "contrasts": _contrasts(main, design) if alone else pd.DataFrame(),
        "lack_of_fit": lack_of_fit(main, response, design.factors, blocks),
        "ranking": pd.DataFrame() if alone else _ranking(main, design),
        "left_out": _left_out(main, design),
        "marginal_means": _marginal_means(main, design, alone),
        "cells": every,
        "power": pd.DataFrame() if alone else _power(main.loc[residuals.index], table, design),
        "spread": _spread(main, design),
        "variances": _variances(main, residuals, design.factors),
        "residuals": residuals.reset_index(drop=True),
    }


def _without_error(table: pd.DataFrame, design: _Design) -> pd.DataFrame:
    design.notes.append(
        f"{design.response}: each cell has one run, so there is no error to test against and no p "
        "values"
    )
    tests = [name for name in table if name not in ("source", "ss", "df")]
    return table.assign(**dict.fromkeys(tests, NAN))


def _contrasts(main: pd.DataFrame, design: _Design) -> pd.DataFrame:
    try:
        return lenth(main, design.response, design.factors)
    except UserError as error:
        design.note("no half-normal plot", error)
        return pd.DataFrame()


def _robustness(main: pd.DataFrame, table: pd.DataFrame, design: _Design) -> pd.DataFrame:
    """The same question asked in other ways, one row per factor and test."""
    own = table[table["source"].isin(design.factors)]
    rest = table.loc[table["source"].eq("residual"), "df"].iloc[0]
    parts = [own.assign(test=TESTS[design.type], df2=rest)]
    if "p_permutation" in own:
        drawn = own.assign(p=own["p_permutation"], p_holm=NAN, test="permutation", df2=NAN)
        parts.append(drawn)
    try:
        hc3 = anova(
            main, design.response, design.factors, type=design.type, robust="hc3", **design.model
        )
        hc3 = hc3[hc3["source"].isin(design.factors)]
        parts.append(hc3.assign(test="HC3", df2=rest))
    except UserError as error:
        design.note("no HC3 test", error)
    freed = _free_of_blocks(main, design)
    for factor in design.factors:
        welch = anova(freed, design.response, [factor], robust="welch")
        parts.append(welch.iloc[:1].assign(test="Welch", df2=welch["df"].iloc[-1]))
    columns = ["test", "source", "df", "df2", "F", "p", "p_holm"]
    parts = [part[columns].dropna(axis=1, how="all") for part in parts]
    every = pd.concat(parts, ignore_index=True).reindex(columns=columns)
    return every.sort_values("source", key=lambda s: s.map(design.factors.index), kind="stable")


def _free_of_blocks(main: pd.DataFrame, design: _Design) -> pd.DataFrame:
    """The table with the blocks' effects taken off the response: Welch's test knows none."""
    if not design.blocks:
        return main
    data = read(main, design.response, design.blocks)
    rest = Model(data, [(name,) for name in design.blocks]).residuals + data.mean
    return main.assign(**{design.response: pd.Series(rest, data.index)})


def _general(main: pd.DataFrame, design: _Design) -> pd.DataFrame:
    if "task" not in design.blocks:
        return pd.DataFrame()
    try:
        return over_tasks(main, design.response, design.factors, "task", design.blocks)
    except UserError as error:
        design.note("no claim beyond these tasks", error)
        return pd.DataFrame()


def _ranking(main: pd.DataFrame, design: _Design) -> pd.DataFrame:
    if len(design.factors) < 2:
        return pd.DataFrame()
    try:
        return ranking(main, design.response, design.factors, design.blocks)
    except UserError as error:
        design.note("the factors were not ranked", error)
        return pd.DataFrame()


def _left_out(main: pd.DataFrame, design: _Design) -> pd.DataFrame:
    if "task" not in design.blocks:
        return pd.DataFrame()
    return leave_one_out(main, design.response, design.factors, "task", design.blocks)


def _marginal_means(main: pd.DataFrame, design: _Design, alone: bool) -> pd.DataFrame:
    fit = LinearFit(model_of(main, design.response, design.factors, **design.model))
    parts = []
    for factor in design.factors:
        means = marginal_means(fit, factor)
        if alone:
            means[["se", "low", "high"]] = NAN
            means["tied_with_best"] = False
        else:
            means["tied_with_best"] = best.of_levels(fit, factor, means, design.lower)
        means.insert(0, "factor", factor)
        parts.append(means)
    return pd.concat(parts, ignore_index=True)


def _equivalence(
    finished: pd.DataFrame, response: str, margin: float | None, design: _Design
) -> tuple[pd.DataFrame, list[str]]:
    """Every other point but the untouched base against full fine-tuning."""
    if margin is None:
        return pd.DataFrame(), []
    reference = finished[finished["method"].eq("full")]
    points = finished[~finished["method"].isin(["full", "none"])]
    if reference.empty or points.empty:
        return pd.DataFrame(), [f"{response}: no finished run of method full to be held against"]
    try:
        table = equivalence(
            points, response, margin, "point", reference, lower_is_better=design.lower
        )
    except UserError as error:
        return pd.DataFrame(), [f"{response}: not held against full: {p}" for p in error.problems]
    fewest = int(table["df"].min())
    if fewest > 2:
        return table, []
    return table, [
        f"{response}: against full fine-tuning there are so few pairs that the tests rest on "
        f"{fewest} degree(s) of freedom; they hold if differences are normal, which so few cannot "
        "tell: run more seeds before relying on them"
    ]


def _power(used: pd.DataFrame, table: pd.DataFrame, design: _Design) -> pd.DataFrame:
    """Power to find two levels apart, on this very design, per factor."""
    rest = table.iloc[-1]
    sigma = (rest["ss"] / rest["df"]) ** 0.5 if rest["df"] else NAN
    curve = planning.power_curve(used, design.factors, design.blocks, ratios=RATIOS)
    smallest = planning.detectable(used, design.factors, design.blocks)
    smallest = smallest.set_index("factor")["difference"]
    curve.insert(2, "delta", curve["ratio"] * sigma)
    return curve.assign(detectable=curve["factor"].map(smallest) * sigma)


def _residuals(main: pd.DataFrame, design: _Design) -> pd.DataFrame:
    """Of the model analysed; Cook's distance is the influence of a run on all fitted values."""
    from statsmodels.regression.linear_model import OLS

    model = model_of(main, design.response, design.factors, **design.model)
    data, r, h = model.data, model.residuals, model.leverage
    with np.errstate(all="ignore"):
        cooks = OLS(data.y, model.basis).fit().get_influence().cooks_distance[0]
    # A row that its own parameter fits has no influence on the others, and no error no scale.
    known = (h < 1 - 1e-9) & bool(model.df and model.rss)
    columns = {
        "fitted": data.y - r + data.mean,
        "residual": r,
        "leverage": h,
        "cooks_distance": np.where(known, cooks, NAN),
    }
    residuals = pd.DataFrame(columns, index=data.index)
    run = main["run"] if "run" in main else pd.Series(main.index, main.index)
    residuals.insert(0, "run", run.loc[data.index])
    return residuals


def _spread(main: pd.DataFrame, design: _Design) -> pd.DataFrame:
    response = design.response
    cells = cell_means(main, response, design.factors, design.blocks)
    within = [*design.factors, *(name for name in design.blocks if name != "seed")]
    complete = main[pd.to_numeric(main[response], errors="coerce").notna()]
    row = {
        "cell_sd": cells["adjusted"].std(),
        "replicate_sd": pooled_sd(complete, response, within),
    }
    row["ratio"] = row["cell_sd"] / row["replicate_sd"] if row["replicate_sd"] else NAN
    return pd.DataFrame([row])


def _variances(main, residuals, factors) -> pd.DataFrame:
    table = main.loc[residuals.index].assign(residual=residuals["residual"])
    tests = [[name] for name in factors] + ([factors] if len(factors) > 1 else [])
    rows = [brown_forsythe(table, "residual", names) for names in tests]
    return pd.concat(rows, ignore_index=True)


def _ledger(runs: pd.DataFrame) -> pd.DataFrame:
    def counts(arm: str, rows: pd.DataFrame) -> dict:
        status = rows["status"]
        row = {"arm": arm, "planned": len(rows)}
        return row | {name: int(status.eq(name).sum()) for name in ("ok", "failed", "missing")}

    arms = runs.groupby("arm", sort=False) if "arm" in runs else ()
    return pd.DataFrame([*(counts(str(arm), rows) for arm, rows in arms), counts("all", runs)])
