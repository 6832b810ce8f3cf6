"""The analysis that a study gets: everything its report shows, from its table of runs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pandas as pd

from fitspace.core.errors import UserError
from fitspace.stats import best, effects, planning
from fitspace.stats.anova import NO_DF, anova, lack_of_fit, model_of
from fitspace.stats.best import ALPHA
from fitspace.stats.blocks import SEED, TASK, Blocks, blocks_of
from fitspace.stats.deciding import apart, deciding, declared
from fitspace.stats.estimability import components, in_design, largest
from fitspace.stats.fits import LinearFit
from fitspace.stats.formula import label
from fitspace.stats.given import given
from fitspace.stats.lenth import lenth
from fitspace.stats.linear import missing_columns, with_cells
from fitspace.stats.means import cell_means, marginal_means, pooled_sd
from fitspace.stats.ranking import leave_one_level_out, leave_one_out, ranking
from fitspace.stats.references import Against, against, as_good
from fitspace.stats.transforms import TRANSFORMS, Scale, fit_transform
from fitspace.stats.trends import curve, is_numeric, surface, trend
from fitspace.stats.variances import brown_forsythe, levene_in_cells
from fitspace.stats.within import general

NAN = float("nan")
PERMUTATIONS = 4999
# Brown and Forsythe's p above which the order of factors can be claimed (docs/statistics.md).
SPREAD_ALIKE = 0.1
TESTS = {2: "type II", 3: "type III"}
# All interactions of the factors together, and how they differ between the tasks.
LACK_OF_FIT = ["lack of fit", f"{TASK}:lack of fit"]
# Two levels this many residual standard deviations apart: the abscissa of the power curve.
RATIOS = tuple(np.arange(1, 17) / 4)


@dataclass(frozen=True)
class Analysis:
    """Tables of an analysis; all but the first two start with the column ``response``.

    Attributes
    ----------
    factors : what varies in component 0, and so is in the model.
    blocks : terms of the model beside the factors (see `blocks_of`).
    interactions : whether all cells are there, and the model has two-factor interactions.
    ledger : arm (``all`` last), planned, ok, failed, missing: counts of runs.
    components : one row per cell that has finished runs (see `components`).
    scales : response, scale, runs: where it was analysed and on how many runs.
    anova : of component 0: type III with interactions where all cells are there, else type II
        of the additive model; where no two runs share a cell and nothing is left to estimate
        error, without F and p.
    robustness : test, source, df, df2, F, p, p_holm: the terms by the analysis above, by own
        spreads (hc2), by permutation, and ``deciding``, the one of the first two with the larger
        p: a claim rests on it. Its p_holm is Holm's over the primary response's terms, and over
        those of all other responses together.
    general : `general`, for tasks in general, with p_gg_holm over the same families.
    by_task : each point's difference from the untouched base in each task.
    questions : `declared`: the contrasts that the study names, with rows ``jointly``.
    trends, curves : `trend` and `curve` of each factor whose levels are numbers.
    surfaces : `surface` of each two of them, with ``of``, ``kind`` and, for the stationary point,
        ``at`` in the factor's own units.
    pairs : `apart`: all differences of two levels of a factor.
    contrasts : `lenth`, where the analysis has no error to test against.
    lack_of_fit : rows ``lack of fit``, where cells repeat within tasks ``task:lack of fit``, and
        ``residual`` of the cell means (see `lack_of_fit`).
    ranking : `ranking` of the factors, and ``alike``: whether the runs' spreads allow the claim.
    left_out, without_level : `leave_one_out` of the tasks, `leave_one_level_out` of the levels.
    marginal_means : factor, level, cells, runs, mean, se, low, high, df, estimable, tied_with_best
        (None for a factor without a shown effect, whose levels are not told apart).
    cells : the factors, component, the columns of `cell_means` and tied_with_best (NaN where
        not compared), for every cell; on the response as measured, never transformed.
    against : `against`: every point's difference from the untouched base and full fine-tuning.
    equivalence, assay : `as_good`, where a margin is declared.
    power : factor, ratio (difference of two levels over the residual SD), delta, power, and
        detectable, the smallest difference found with 80% power, at the level of Holm's first.
    spread : cell_sd (of the adjusted cell means), replicate_sd (of runs within a cell, beside what
        all runs of a seed share), ratio.
    variances : residuals, source, F, df1, df2, p: how the runs of levels spread. Where cells have
        several runs, around the ``cells``' means (`levene_in_cells`), for what an additive model
        does not fit is no spread of runs; else around the ``model`` (Brown and Forsythe's).
    residuals : run, fitted, residual, leverage, cooks_distance.
    fitted : response -> its scale, to go to and fro.
    notes : what was set aside, dropped or not possible, in sentences.
    """

    factors: list[str]
    blocks: Blocks
    interactions: bool
    ledger: pd.DataFrame
    components: pd.DataFrame
    scales: pd.DataFrame
    anova: pd.DataFrame
    robustness: pd.DataFrame
    general: pd.DataFrame
    by_task: pd.DataFrame
    questions: pd.DataFrame
    trends: pd.DataFrame
    curves: pd.DataFrame
    surfaces: pd.DataFrame
    pairs: pd.DataFrame
    contrasts: pd.DataFrame
    lack_of_fit: pd.DataFrame
    ranking: pd.DataFrame
    left_out: pd.DataFrame
    without_level: pd.DataFrame
    marginal_means: pd.DataFrame
    cells: pd.DataFrame
    against: pd.DataFrame
    equivalence: pd.DataFrame
    assay: pd.DataFrame
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
    *,
    transform: Mapping[str, str] | None = None,
    margins: Mapping[str, float | str] | None = None,
    contrasts: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
    scores: Mapping[str, str] | None = None,
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

    Takes the rows with status ok that are in the design (see `in_design`), blocks on tasks and
    seeds where they vary, and fits the model within the largest connected component; all cells,
    of the others too, are reported as cells. A response that cannot be analysed, or not on the
    scale asked for, is named in ``notes``. The first response is the primary one.

    Parameters
    ----------
    margins : response -> margin (see `noninferiority`), as measured, to hold every other point
        against full fine-tuning: the runs of method full.
    contrasts : see `declared`.
    scores : factor -> the scale of its numbers, "linear" or "log2" (see `trend`).

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
    whole = len(varying) > 1 and _complete(main, varying)
    blocks = blocks_of(main, varying, interactions=whole)
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
        part |= _references(finished, design, scale, (margins or {}).get(response))
        part["questions"] = _questions(scaled, design, contrasts or {})
        part["trends"], part["curves"] = _trends(scaled, design, scores or {})
        part["surfaces"] = _surfaces(scaled, design, scores or {})
        part["scales"] = pd.DataFrame([{"scale": scale.label, "runs": len(part["residuals"])}])
        parts[response], scales[response] = part, scale
        notes += more + design.notes
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
    tables["robustness"] = _families(tables["robustness"], responses[0], "p", "p_holm")
    tables["general"] = _families(tables["general"], responses[0], "p_gg", "p_gg_holm")
    tables["marginal_means"] = _where_shown(tables["marginal_means"], tables["robustness"])
    notes = _of_all(list(dict.fromkeys(notes + failures)), responses)
    return Analysis(
        varying, blocks, whole, _ledger(runs), cells, fitted=scales, notes=notes, **tables
    )


def _of_all(notes: list[str], responses: Sequence[str]) -> list[str]:
    """Notes, but those that say the same of several responses only once."""
    of: dict[str, list[str]] = {}
    for note in notes:
        name, _, said = note.partition(": ")
        known = name in responses
        of.setdefault(said if known else note, []).extend([name] if known else [])
    return [f"{', '.join(names)}: {said}" if names else said for said, names in of.items()]


@dataclass(frozen=True)
class _Design:
    """What a response is analysed by; ``notes`` gathers what could not be done."""

    response: str
    factors: list[str]
    blocks: Blocks
    interactions: bool
    lower: bool
    notes: list[str] = field(default_factory=list)

    @property
    def model(self) -> dict:
        return {"block": self.blocks.terms, "interactions": self.interactions}

    @property
    def within(self) -> str | None:
        """The block within whose levels cells repeat, and so tell an error."""
        return TASK if self.blocks.by_task else None

    @property
    def type(self) -> int:
        return 3 if self.interactions else 2

    def note(self, what: str, error: UserError) -> None:
        self.notes.extend(f"{self.response}: {what}: {problem}" for problem in error.problems)


def _response_first(table: pd.DataFrame) -> pd.DataFrame:
    return table[["response", *(name for name in table if name != "response")]]


def _complete(main: pd.DataFrame, factors: list[str]) -> bool:
    """Whether every combination of levels has a run, in every task."""
    names = [*factors, *([TASK] if TASK in main else [])]
    cells = main[names].astype(str).drop_duplicates()
    return len(cells) == math.prod(main[name].nunique() for name in names)


def _families(table: pd.DataFrame, first: str, p: str, adjusted: str) -> pd.DataFrame:
    """Holm's adjustment: the primary response's tests are one family, all others' another.

    Rows of a ``test`` other than deciding keep what they have.
    """
    if table.empty:
        return table
    table = table.copy()
    ours = table["test"].eq("deciding") if "test" in table else pd.Series(True, table.index)
    # What a factor does in single tasks is no question of a family.
    # Lack of fit asks whether the factors' effects can be told apart at all.
    ours &= ~table["source"].str.split(":").map(lambda names: TASK in names)
    ours &= ~table["source"].isin(LACK_OF_FIT)
    primary = table["response"].eq(first)
    for rows in (ours & primary, ours & ~primary):
        table.loc[rows, adjusted] = effects.holm(table.loc[rows, p].tolist())
    return table


def _where_shown(means: pd.DataFrame, tests: pd.DataFrame) -> pd.DataFrame:
    """Marginal means whose tied_with_best is None for a factor without a shown effect."""
    if tests.empty:
        return means
    shown = tests[tests["test"].eq("deciding") & (tests["p_holm"] < ALPHA)]
    known = set(zip(shown["response"], shown["source"], strict=True))
    told = [at in known for at in zip(means["response"], means["factor"], strict=True)]
    tied = means["tied_with_best"].astype(object).where(told, None)
    return means.assign(tied_with_best=tied)


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
    terms = given(main, design.response, design.factors, **design.model).terms
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
    common, within = list(blocks.common), design.within
    every = cell_means(chosen, response, factors, common, within=within)
    numbers = every[factors].merge(cells, on=factors, how="left")["component"]
    every.insert(len(factors), "component", numbers)
    every["tied_with_best"] = best.of_cells(main, response, factors, every, blocks, design.lower)
    single = len(residuals) == len(main[design.factors].astype(str).drop_duplicates())
    alone = single and (design.interactions or len(design.factors) == 1)
    table = anova(main, response, design.factors, type=design.type, **design.model)
    design.notes.extend(note for note in table.attrs["notes"] if not (alone and note == NO_DF))
    fit = lack_of_fit(main, response, design.factors, common, within=within)
    fit = _with_own_limits(fit, len(residuals))
    table = _with_own_limits(table, len(residuals))
    table = _without_error(table, design) if alone else _detectable(table, len(residuals), design)
    tests = pd.DataFrame() if alone else deciding(
        main, response, design.factors, type=design.type, **design.model
    )  # fmt: skip
    pairs = {} if alone else {name: _pairs(main, design, name) for name in design.factors}
    return {
        "anova": table,
        "robustness": pd.DataFrame() if alone else _robustness(main, table, tests, design),
        "general": _general(main, design),
        "contrasts": _contrasts(main, design) if alone else pd.DataFrame(),
        "lack_of_fit": fit,
        "ranking": pd.DataFrame() if alone else _ranking(main, tests, design),
        "left_out": _left_out(main, design),
        "without_level": pd.DataFrame() if alone else _without_level(main, design),
        "marginal_means": _marginal_means(main, design, pairs),
        "pairs": pd.concat([p for p in pairs.values() if len(p)] or [pd.DataFrame()]),
        "cells": every,
        "power": pd.DataFrame() if alone else _power(main.loc[residuals.index], table, design),
        "spread": _spread(main, design),
        "variances": _variances(main, residuals, design),
        "residuals": residuals.reset_index(drop=True),
    }


def _with_own_limits(table: pd.DataFrame, n: int) -> pd.DataFrame:
    """The table with one effect size, partial omega squared, and the limits of just that."""
    rest = table["df"].iloc[-1]
    limits = [
        effects.share_limits(F, df, rest, n) for F, df in zip(table["F"], table["df"], strict=True)
    ]
    table = table.drop(columns=["eta2_p", "eta2_p_low", "eta2_p_high"])
    table["omega2_p_low"], table["omega2_p_high"] = zip(*limits, strict=True)
    return table


def _detectable(table: pd.DataFrame, n: int, design: _Design) -> pd.DataFrame:
    """The table with what is detectable at the level that Holm's adjustment asks of the first."""
    ours = table["source"].isin(design.factors)
    level = ALPHA / len(design.factors)
    rest = table["df"].iloc[-1]
    found = [effects.detectable(df, rest, n, alpha=level) for df in table.loc[ours, "df"]]
    table.loc[ours, "mde"] = found
    return table


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


def _robustness(
    main: pd.DataFrame, table: pd.DataFrame, tests: pd.DataFrame, design: _Design
) -> pd.DataFrame:
    """The same questions asked in other ways, and what decides them: a row per term and test."""
    asked = [name for name in table["source"] if name not in (*design.blocks.common, "residual")]
    own = table[table["source"].isin(asked)]
    rest = table.loc[table["source"].eq("residual"), "df"].iloc[0]
    parts = [own.assign(test=TESTS[design.type], df2=rest)]
    tests = tests[tests["source"].isin(asked)]
    spreads = tests.assign(F=tests["F_own_spreads"], p=tests["p_own_spreads"])
    spreads = spreads.assign(df2=tests["den_df"], p_holm=NAN)
    parts.append(spreads.assign(test="own spreads"))
    if not design.blocks.by_task:
        parts.append(_permuted(main, design).assign(test="permutation"))
    parts.append(_decided(tests, rest).assign(test="deciding", p_holm=NAN))
    columns = ["test", "source", "df", "df2", "F", "p", "p_holm"]
    parts = [part.reindex(columns=columns).dropna(axis=1, how="all") for part in parts]
    every = pd.concat(parts, ignore_index=True).reindex(columns=columns)
    every = every[every["source"].isin(asked)]
    if len(design.factors) > 1 and not design.interactions:
        asked += LACK_OF_FIT
        every = pd.concat([every, _own_lack_of_fit(main, design)], ignore_index=True)
    unknown = tests["source"][tests["p_deciding"].isna() & tests["p"].notna()]
    design.notes.extend(
        f"{design.response}: so few runs cannot tell whether an effect of {name} is more than "
        "unlike spreads"
        for name in unknown
        if name in design.factors
    )
    return every.sort_values("source", key=lambda s: s.map(asked.index), kind="stable")


def _decided(tests: pd.DataFrame, rest: float) -> pd.DataFrame:
    """Of the rows of `deciding`, F, df2 and p of the test with the larger p; NaN as p is."""
    own = tests["p_own_spreads"] > tests["p"]
    known = tests["p_deciding"].notna()
    F = tests["F_own_spreads"].where(own, tests["F"]).where(known)
    df2 = tests["den_df"].where(own, rest).where(known)
    return tests.assign(F=F, df2=df2, p=tests["p_deciding"])


def _own_lack_of_fit(main: pd.DataFrame, design: _Design) -> pd.DataFrame:
    """The cells beside the additive model, by own spreads; unknown for more cells than compared."""
    table, cell = with_cells(main, design.factors)
    by_task = [label((TASK, cell))] if design.blocks.by_task else []
    terms = dict(zip([cell, *by_task], LACK_OF_FIT, strict=False))
    found = pd.DataFrame(columns=["source"])
    if table[cell].nunique() <= best.MOST_CELLS:
        model = ([*design.factors, cell], [*design.blocks.terms, *by_task])
        found = deciding(table, design.response, model[0], block=model[1])
        rest = given(table, design.response, *model).model(table).df
    rows = []
    for term, source in terms.items():
        of_term = found[found["source"].eq(term)]
        known = {"own spreads": {}, "deciding": {}}
        if len(of_term):
            own, decided = of_term.iloc[0], _decided(of_term, rest).iloc[0]
            shown = {"df": own["df"], "df2": own["den_df"]}
            known["own spreads"] = shown | {"F": own["F_own_spreads"], "p": own["p_own_spreads"]}
            known["deciding"] = shown | {name: decided[name] for name in ("df2", "F", "p")}
        rows += [{"test": test, "source": source} | row for test, row in known.items()]
    return pd.DataFrame(rows)


def _permuted(main: pd.DataFrame, design: _Design) -> pd.DataFrame:
    """Freedman and Lane's test with a studentised statistic; no rows where nothing permutes."""
    try:
        table = anova(
            main,
            design.response,
            design.factors,
            type=design.type,
            permutations=PERMUTATIONS,
            studentised=True,
            **design.model,
        )
    except UserError as error:
        design.note("no permutation test", error)
        return pd.DataFrame(columns=["source"])
    return table.assign(p=table["p_permutation"], F=NAN, p_holm=NAN)


def _general(main: pd.DataFrame, design: _Design) -> pd.DataFrame:
    if TASK not in design.blocks.common:
        return pd.DataFrame()
    try:
        found = general(main, design.response, design.factors, TASK)
    except UserError as error:
        design.note("no claim beyond these tasks", error)
        return pd.DataFrame()
    design.notes.extend(f"{design.response}: {note}" for note in found.attrs["notes"])
    return found


def _pairs(main: pd.DataFrame, design: _Design, factor: str) -> pd.DataFrame:
    """All differences of two levels; none where there are more levels than are compared."""
    if main[factor].nunique() > best.MOST_CELLS:
        return pd.DataFrame()
    model = model_of(main, design.response, design.factors, **design.model)
    return apart(model, factor).assign(factor=factor) if model.df else pd.DataFrame()


def _questions(main: pd.DataFrame, design: _Design, asked: Mapping) -> pd.DataFrame:
    """The contrasts that the study names, then what they say together."""
    if not asked:
        return pd.DataFrame()
    try:
        found = declared(main, design.response, design.factors, asked, **design.model)
    except UserError as error:
        design.note("the study's contrasts were not tested", error)
        return pd.DataFrame()
    joint = [
        {"contrast": "jointly", "of": of, **test}
        | {"p_deciding": np.maximum(test["p"], test["p_own_spreads"])}
        for of, test in found.attrs["joint"].items()
    ]
    parts = [found, pd.DataFrame(joint)] if joint else [found]
    return pd.concat(parts, ignore_index=True)


def _trends(
    main: pd.DataFrame, design: _Design, scores: Mapping[str, str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The trends of the factors whose levels are numbers, three or more, and their curves."""
    parts, curves = [], []
    for name in _numbers(main, design):
        others = [other for other in design.factors if other != name]
        block = [*design.blocks.terms, *others]
        try:
            model = (main, design.response, name, scores.get(name), block)
            found, drawn = trend(*model), curve(*model)
        except UserError as error:
            design.note(f"no trend over {name}", error)
            continue
        parts.append(found.assign(factor=name))
        curves.append(drawn.assign(factor=name))
    if not parts:
        return pd.DataFrame(), pd.DataFrame()
    return pd.concat(parts, ignore_index=True), pd.concat(curves, ignore_index=True)


def _numbers(main: pd.DataFrame, design: _Design) -> list[str]:
    """The factors with three or more levels that are numbers."""
    return [n for n in design.factors if is_numeric(main[n]) and main[n].nunique() > 2]


def _surfaces(main: pd.DataFrame, design: _Design, scores: Mapping[str, str]) -> pd.DataFrame:
    parts = []
    for pair in combinations(_numbers(main, design), 2):
        others = [name for name in design.factors if name not in pair]
        own = {name: scores[name] for name in pair if name in scores}
        block = [*design.blocks.terms, *others]
        try:
            found = surface(main, design.response, pair, block, own)
        except UserError as error:
            design.note(f"no surface over {' and '.join(pair)}", error)
            continue
        at = {f"stationary point: {n}": x for n, x in found.attrs["stationary"].items()}
        of, kind = " and ".join(pair), found.attrs["kind"]
        parts.append(found.assign(of=of, kind=kind, at=found["source"].map(at)))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _ranking(main: pd.DataFrame, tests: pd.DataFrame, design: _Design) -> pd.DataFrame:
    """The factors' order, and whether their runs spread so alike that it can be claimed."""
    if len(design.factors) < 2:
        return pd.DataFrame()
    try:
        found = ranking(main, design.response, design.factors, design.blocks.terms)
    except UserError as error:
        design.note("the factors were not ranked", error)
        return pd.DataFrame()
    ours = tests[tests["source"].isin(design.factors)]
    return found.assign(alike=bool((ours["p_spreads"] > SPREAD_ALIKE).all()))


def _left_out(main: pd.DataFrame, design: _Design) -> pd.DataFrame:
    if TASK not in design.blocks.common:
        return pd.DataFrame()
    block = [SEED] if f"{TASK}:{SEED}" in design.blocks.common else []
    return leave_one_out(main, design.response, design.factors, TASK, block)


def _without_level(main: pd.DataFrame, design: _Design) -> pd.DataFrame:
    """The analysis without each level; none where there are more than are compared."""
    if len(design.factors) < 2 or max(main[n].nunique() for n in design.factors) > best.MOST_CELLS:
        return pd.DataFrame()
    return leave_one_level_out(main, design.response, design.factors, design.blocks.terms)


def _marginal_means(main: pd.DataFrame, design: _Design, pairs: Mapping) -> pd.DataFrame:
    """Means of the levels; ``pairs`` has their differences, nothing where no error is known."""
    fit = LinearFit(model_of(main, design.response, design.factors, **design.model))
    parts = []
    for factor in design.factors:
        means = marginal_means(fit, factor)
        if not pairs:
            means[["se", "low", "high"]] = NAN
        compared = pairs.get(factor, pd.DataFrame())
        tied = best.of_levels(compared, means, design.lower) if len(compared) else False
        means["tied_with_best"] = tied
        means.insert(0, "factor", factor)
        runs = main[main[design.response].notna()]
        cells = runs[design.factors].astype(str).drop_duplicates()[factor].value_counts()
        counts = runs[factor].astype(str).value_counts()
        for name, of in (("cells", cells), ("runs", counts)):
            means[name] = [int(of.get(level, 0)) for level in means["level"]]
        parts.append(means)
    return pd.concat(parts, ignore_index=True)


def _references(
    finished: pd.DataFrame, design: _Design, scale: Scale, margin: float | str | None
) -> dict[str, pd.DataFrame]:
    """Every point held against the untouched base and full fine-tuning."""
    response = design.response
    with np.errstate(divide="ignore", invalid="ignore"):
        values = pd.Series(scale.forward(finished[response]), finished.index)
    lost = int((~np.isfinite(values) & finished[response].notna()).sum())
    if lost:  # of a baseline: the scale holds all values of the design
        design.notes.append(
            f"{response}: {lost} value(s) of baselines are beyond the {scale} scale"
        )
    try:
        found = against(finished.assign(**{response: values.where(np.isfinite(values))}), response)
    except UserError as error:
        design.note("not held against the untouched base", error)
        found = Against()
    design.notes.extend(f"{response}: {note}" for note in found.notes)
    tables = {"against": found.pairs, "by_task": found.by_task}
    if margin is None:
        return tables | {"equivalence": pd.DataFrame(), "assay": pd.DataFrame()}
    held = as_good(finished, response, margin, lower_is_better=design.lower)
    design.notes.extend(f"{response}: {note}" for note in held.notes)
    return tables | {"equivalence": held.points, "assay": held.assay}


def _power(used: pd.DataFrame, table: pd.DataFrame, design: _Design) -> pd.DataFrame:
    """Power to find two levels apart, on this very design, per factor, at Holm's first level."""
    rest = table.iloc[-1]
    sigma = (rest["ss"] / rest["df"]) ** 0.5 if rest["df"] else NAN
    model = {"block": design.blocks.terms, "family": len(design.factors)}
    curve = planning.power_curve(used, design.factors, ratios=RATIOS, **model)
    smallest = planning.detectable(used, design.factors, **model)
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
    """How cells vary, and runs within a cell, beside what all runs of a task and seed share."""
    response, common = design.response, list(design.blocks.common)
    cells = cell_means(main, response, design.factors, common)
    within = [*design.factors, *(name for name in design.blocks.names if name != SEED)]
    complete = main[pd.to_numeric(main[response], errors="coerce").notna()]
    spread = pooled_sd(complete, response, within)  # NaN where no cell has a second run
    if spread > 0:
        found = given(main, response, design.factors, common)
        alike = found.cells(main, design.factors, design.within)
        spread = alike.variance**0.5
    row = {"cell_sd": cells["adjusted"].std(), "replicate_sd": spread}
    row["ratio"] = row["cell_sd"] / row["replicate_sd"] if row["replicate_sd"] else NAN
    return pd.DataFrame([row])


def _variances(main, residuals, design: _Design) -> pd.DataFrame:
    factors, used = design.factors, main.loc[residuals.index]
    tests = [[name] for name in factors] + ([factors] if len(factors) > 1 else [])
    cells = [*factors, *(name for name in design.blocks.names if name != SEED)]
    if used.duplicated(cells).any():
        table, cell = with_cells(used, factors)
        blocks = design.blocks.with_cells(cell)
        model = given(table, design.response, [cell], blocks).model(table)
        if model.df:
            table = used.assign(residual=pd.Series(model.residuals, model.data.index))
            rows = [levene_in_cells(table, "residual", names, cells) for names in tests]
            return pd.concat(rows, ignore_index=True).assign(residuals="cells")
    table = used.assign(residual=residuals["residual"])
    rows = [brown_forsythe(table, "residual", names) for names in tests]
    return pd.concat(rows, ignore_index=True).assign(residuals="model")


def _ledger(runs: pd.DataFrame) -> pd.DataFrame:
    def counts(arm: str, rows: pd.DataFrame) -> dict:
        status = rows["status"]
        row = {"arm": arm, "planned": len(rows)}
        return row | {name: int(status.eq(name).sum()) for name in ("ok", "failed", "missing")}

    arms = runs.groupby("arm", sort=False) if "arm" in runs else ()
    return pd.DataFrame([*(counts(str(arm), rows) for arm, rows in arms), counts("all", runs)])
