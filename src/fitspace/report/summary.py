"""The summary: sentences that are made from the computed tables only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from fitspace.report import words
from fitspace.report.figures import arm_label
from fitspace.report.results import Results
from fitspace.report.words import Value, Verdict
from fitspace.stats.best import ALPHA

Sentence = list[object]
SHOWN, NOT_SHOWN = Verdict("shown"), Verdict("not shown")
# If there are more points than this, a sentence refers to the table instead of naming them.
MOST_NAMED = 6


def sentences(found: Results) -> list[Sentence]:
    """The summary, one or two sentences per finding, in order of importance."""
    parts = [_ledger(found)]
    for factor in found.analysis.factors:
        parts += [_effect(found, factor) + _otherwise(found, factor), _in_general(found, factor)]
    parts += [
        _active(found),
        _most(found),
        _fit(found),
        _best_cell(found),
        *_as_good(found),
        _assumptions(found),
    ]
    parts += [_baselines(found), spread(found, found.primary), _others(found), _reach(found)]
    return [part for part in parts if part]


def notes(found: Results) -> list[str]:
    """Notes on the analysis itself."""
    return [*_without_variation(found), *_of_analysis(found)]


def _without_variation(found: Results) -> list[str]:
    """Responses whose seeds agree to the last digit: there is no variation to test against."""
    return [
        f"{words.metric(row['response']).label}: no variation between the seeds of a cell; "
        "F is then infinite or undefined, and no test"
        for _, row in found.rows("spread.csv").iterrows()
        if row["replicate_sd"] == 0
    ]


def _of_analysis(found: Results) -> list[str]:
    if found.runs["seed"].nunique() > 1 or len(found.rows("contrasts.csv")):
        return found.analysis.notes
    one = (
        "each cell has one seed: the residual of the additive model serves as error, so an "
        "interaction would inflate it; the spread between seeds is unknown"
    )
    return [one, *found.analysis.notes]


def value(file: str, row: pd.Series, column: str, write=words.number) -> Value:
    """One cell of a table as text with its origin; ``row.name`` is the row's index."""
    raw = row[column]
    missing = isinstance(raw, float) and math.isnan(raw)
    return Value(write(raw), "" if missing else str(raw), file, int(row.name) + 1, column)


def first(found: Results, file: str, **where: object) -> pd.Series | None:
    """The first row of a table with these values, or None."""
    rows = found.rows(file, **where)
    return rows.iloc[0] if len(rows) else None


def _ledger(found: Results) -> Sentence:
    row = found.tables["ledger.csv"].iloc[-1]

    def show(column: str) -> Value:
        return value("ledger.csv", row, column, words.count)

    if row["ok"] == row["planned"]:
        return ["All ", show("planned"), " planned runs finished."]
    lost = [
        part
        for column in ("failed", "missing")
        if row[column]
        for part in (", ", show(column), f" {column}")
    ]
    return [show("ok"), " of ", show("planned"), " planned runs finished", *lost, "."]


# --- factors ------------------------------------------------------------------------------


def _effect(found: Results, factor: str) -> Sentence:
    label = words.metric(found.primary).label
    row = _row(found, factor)
    start = [Verdict(factor), f": an effect on {label} is "]
    if row is None or math.isnan(row["F"]):
        return [*start, NOT_SHOWN, " (no test is possible: no residual degrees of freedom)."]
    test = _test(found, row)
    if row["p_holm"] < ALPHA:
        return [*start, SHOWN, " (", *test, "; ", *_share(row), ").", *_best_levels(found, factor)]
    return [*start, NOT_SHOWN, " (", *test, ").", *_detectable(row, apart=_apart(found, row))]


def _row(found: Results, source: str, test: str | None = None) -> pd.Series | None:
    return first(found, "anova.csv", response=found.primary, test=test or found.test, source=source)


def _test(found: Results, row: pd.Series, p: str = "p_holm") -> Sentence:
    rest = first(found, "anova.csv", response=row["response"], test=row["test"], source="residual")
    name = "Holm-adjusted p " if p == "p_holm" else "p "
    return [
        "F(",
        value("anova.csv", row, "df", words.count),
        ", ",
        value("anova.csv", rest, "df", words.count),
        ") = ",
        value("anova.csv", row, "F"),
        f", {name}{'' if row[p] < 0.001 else '= '}",
        value("anova.csv", row, p, words.p_value),
    ]


def _share(row: pd.Series) -> Sentence:
    """Partial omega squared and the noncentral-F limits of the share that a factor explains.

    The limits are those of eta squared: they invert the F that was observed, where those of
    omega squared invert a shrunken one and close to [0, 0] around small effects.
    """
    low, high = value("anova.csv", row, "eta2_p_low"), value("anova.csv", row, "eta2_p_high")
    size = value("anova.csv", row, "omega2_p")
    return ["partial ω² ", size, ", 95% interval ", low, " to ", high]


def _detectable(row: pd.Series, file: str = "anova.csv", apart: Sequence[object] = ()) -> Sentence:
    """The effect that the design would have detected, for an effect that is not shown."""
    if not row["mde"] > 0:
        return []
    effect = ["a partial ω² of ", value(file, row, "mde"), *apart]
    return [" This does not prove absence: the design detects ", *effect, " with 80% power."]


def _apart(found: Results, row: pd.Series) -> Sentence:
    """The detectable difference of two levels, in units of the response."""
    power = first(found, "power.csv", response=found.primary, factor=row["source"])
    if power is None or math.isnan(power["detectable"]):
        return []
    difference = value("power.csv", power, "detectable")
    where = f" between two levels{_on(found.scale(found.primary))},"
    return [", or a difference of ", difference, where]


def _on(scale: str) -> str:
    return "" if scale == "identity" else f" on the {scale} scale"


def _otherwise(found: Results, factor: str) -> Sentence:
    """Whether the other tests of the same hypothesis agree; none was chosen by its p."""
    rows = found.rows("robustness.csv", response=found.primary, source=factor)
    own = rows[rows["test"] == found.test]
    others = rows[(rows["test"] != found.test) & rows["p"].notna()]
    if own.empty or others.empty or math.isnan(own["p"].iloc[0]):
        return []
    shown = own["p"].iloc[0] < ALPHA
    against = others[(others["p"] < ALPHA) != shown]
    if against.empty:
        names = [name[0].upper() + name[1:] for name in others["test"]]
        return [f" {words.listed(names)} agree{'s' if len(names) == 1 else ''}."]
    parts: Sentence = [" Not all tests agree: "]
    for position, (_, row) in enumerate(against.iterrows()):
        p = value("robustness.csv", row, "p", words.p_value)
        equals = "" if row["p"] < 0.001 else "= "
        parts += [", " if position else "", f"{row['test']} has p {equals}", p]
    return [*parts, "."]


def _in_general(found: Results, factor: str) -> Sentence:
    row = first(found, "over_tasks.csv", response=found.primary, source=factor)
    if row is None:
        return []
    start = f"{factor}: if these tasks are taken as a sample of tasks, an effect is "
    if math.isnan(row["F"]):
        return []

    def show(column: str, write=words.number) -> Value:
        return value("over_tasks.csv", row, column, write)

    p = ["" if row["p_holm"] < 0.001 else "= ", show("p_holm", words.p_value)]
    shown = row["p_holm"] < ALPHA
    return [
        start,
        SHOWN if shown else NOT_SHOWN,
        f" (against {row['error']}: F(",
        show("df", words.count),
        ", ",
        show("error_df", words.count),
        ") = ",
        show("F"),
        ", Holm-adjusted p ",
        *p,
        ").",
        *([] if shown else _detectable(row, "over_tasks.csv")),
    ]


def _best_levels(found: Results, factor: str) -> Sentence:
    rows = found.rows("effects.csv", response=found.primary, factor=factor)
    tied = [str(level) for level in rows.loc[rows["tied_with_best"], "level"]]
    others = len(rows) - len(tied)
    if not tied or not others:
        return [" Which level is best is ", NOT_SHOWN, "."]
    if len(tied) == 1:
        return [f" {tied[0]} is better than every other level (Tukey)."]
    apart = "The other level is" if others == 1 else "All others are"
    return [
        f" Which of {words.listed(tied)} is best is ",
        NOT_SHOWN,
        f". {apart} worse than the best of them (Tukey).",
    ]


def _active(found: Results) -> Sentence:
    """The contrasts beyond Lenth's margin, for a design without an error estimate."""
    rows = found.rows("contrasts.csv", response=found.primary)
    active = rows[rows["active"].eq(True)] if len(rows) else rows
    if rows.empty or active.empty:
        return ["No contrast lies beyond Lenth's margin of error."] if len(rows) else []
    parts: Sentence = [
        "Beyond Lenth's margin of error, ",
        value("contrasts.csv", active.iloc[0], "margin"),
        ": ",
    ]
    for position, (_, row) in enumerate(active.iterrows()):
        parts += [
            ", " if position else "",
            f"{row['contrast']} (",
            value("contrasts.csv", row, "estimate"),
            ")",
        ]
    return [*parts, ". Without a second seed there are no p values for them."]


def _most(found: Results) -> Sentence:
    """Which factor matters most: a claim about a difference of effect sizes, never about F."""
    rows = found.rows("ranking.csv", response=found.primary)
    if len(found.analysis.factors) < 2 or rows.empty:
        return []
    row = rows.iloc[0]
    if math.isnan(row["low"]):
        return ["Which factor matters most is ", NOT_SHOWN, ": not all effects can be estimated."]

    def show(column: str) -> Value:
        return value("ranking.csv", row, column)

    evidence = [
        f"adjusted partial ω² of {row['factor']} minus that of {row['next']}: ",
        show("difference"),
        ", 95% interval ",
        show("low"),
        " to ",
        show("high"),
        "; probability that it ranks first ",
        show("rank_one"),
    ]
    claim = [f": {row['factor']} ("] if row["low"] > 0 else [" ("]
    verdict = SHOWN if row["low"] > 0 else NOT_SHOWN
    return ["Which factor matters most is ", verdict, *claim, *evidence, ").", *_stable(found)]


def _stable(found: Results) -> Sentence:
    """Whether one task decides the order of the factors."""
    leading = found.rows("leave_one_out.csv", response=found.primary, rank=1)
    if leading.empty:
        return []
    winner = found.rows("ranking.csv", response=found.primary)["factor"].iloc[0]
    other = leading[leading["factor"] != winner]
    if other.empty:
        return [f" {winner} stays first whichever task is left out."]
    named = words.listed(f"{row.left_out} ({row.factor})" for row in other.itertuples())
    return [f" Leaving out one task puts another factor first: {named}."]


def _fit(found: Results) -> Sentence:
    if len(found.analysis.factors) < 2:
        return []
    if found.analysis.interactions:
        return _interactions(found)
    row = _row(found, "lack of fit", "lack of fit")
    what = f"An interaction of {words.listed(found.analysis.factors)} is "
    if row is None or math.isnan(row["F"]):
        return [what, NOT_SHOWN, ": no degrees of freedom remain for a lack-of-fit test."]
    test = _test(found, row, "p")
    if row["p"] < ALPHA:
        return [what, SHOWN, " (lack of fit ", *test, "); interpret cells, not marginal means."]
    return [what, NOT_SHOWN, " (lack of fit ", *test, ").", *_detectable(row)]


def _interactions(found: Results) -> Sentence:
    rows = found.rows("anova.csv", response=found.primary, test=found.test)
    parts: Sentence = []
    for _, row in rows[rows["source"].str.contains(":") & rows["F"].notna()].iterrows():
        verdict = SHOWN if row["p_holm"] < ALPHA else NOT_SHOWN
        parts += ["; " if parts else "Interactions: ", f"{row['source'].replace(':', ' with ')} "]
        parts += [verdict, " (", *_test(found, row)]
        if row["p_holm"] >= ALPHA and row["mde"] > 0:
            parts += ["; detectable with 80% power: partial ω² ", value("anova.csv", row, "mde")]
        parts += [")"]
    return [*parts, "."] if parts else []


def _assumptions(found: Results) -> Sentence:
    """Violated assumptions of the tests: unequal variances and influential runs."""
    parts: Sentence = []
    rows = found.rows("variances.csv", response=found.primary)
    for _, row in rows[(rows["p"] < ALPHA) & ~rows["source"].str.contains(":")].iterrows():
        p = value("variances.csv", row, "p", words.p_value)
        equals = "" if row["p"] < 0.001 else "= "
        between = f" between levels of {row['source']} (Brown–Forsythe, p {equals}"
        parts += [", and" if parts else "Variances differ", between, p, ")"]
    if parts:
        parts += [": F and Tukey tests are then unreliable; see HC3 and Welch."]
    return [*parts, *_influential(found)]


def _influential(found: Results) -> Sentence:
    """Runs whose Cook's distance is above 1, by cell, task and seed."""
    parts: Sentence = []
    for _, row in found.rows("residuals.csv", response=found.primary).iterrows():
        if row["cooks_distance"] > 1:
            run = found.runs[found.runs["run"] == row["run"]].iloc[0]
            seed = value("runs.csv", run, "seed", str)
            distance = value("residuals.csv", row, "cooks_distance")
            where = [f"{found.label(run)} on {run['task']}, seed ", seed]
            parts += [", " if parts else "", *where, " (Cook's distance ", distance, ")"]
    return [" Influential runs: ", *parts, "."] if parts else []


# --- cells, points and baselines ----------------------------------------------------------


def _best_cell(found: Results) -> Sentence:
    ranked = found.best_cells(found.primary)
    if len(found.factors) < 2 or ranked.empty:
        return []
    best = ranked.iloc[0]
    metric = words.metric(found.primary)
    start = [
        f"{found.label(best)} has the {'lowest' if metric.lower else 'highest'} mean "
        f"{metric.label}, ",
        value("cells.csv", best, "mean"),
        "; it is ",
    ]
    claim = " to be the best cell"
    compared = ranked["tied_with_best"].dropna()
    if compared.empty:
        return [*start, NOT_SHOWN, f"{claim} (not tested)."]
    ties = int(compared.sum()) - 1
    if ties > 0:
        cells = "one other cell is" if ties == 1 else "other cells are"
        return [*start, NOT_SHOWN, f"{claim}: {cells} not separable from it (Tukey, 5%)."]
    return [*start, SHOWN, f"{claim} (Tukey, among the cells compared)."]


def _as_good(found: Results) -> list[Sentence]:
    """The points that are non-inferior to full fine-tuning at the declared margin."""
    return [
        _held_against_full(found, response)
        for response in found.responses
        if len(found.rows("equivalence.csv", response=response))
    ]


def _held_against_full(found: Results, response: str) -> Sentence:
    rows = found.rows("equivalence.csv", response=response)
    metric = words.metric(response)
    margin = value("equivalence.csv", rows.iloc[0], "margin")
    good = rows[rows["noninferior"]]
    start = [f"Non-inferiority to full fine-tuning in {metric.label} at a margin of ", margin]
    if good.empty:
        best = rows.sort_values(["p_noninferior_holm", "p_noninferior"], kind="stable").iloc[0]
        p = value("equivalence.csv", best, "p_noninferior_holm", words.p_value)
        difference = value("equivalence.csv", best, "difference")
        nearest = [f" (nearest: {best['point']}, difference ", difference, ", Holm-adjusted p "]
        return [*start, ": ", NOT_SHOWN, " for any point", *nearest, "= ", p, ")."]
    claim = [*_which(good, rows), *_equal(good)]
    return [*start, ": ", SHOWN, *claim, f" ({_pairs(rows)}, Holm)."]


def _which(good: pd.DataFrame, rows: pd.DataFrame) -> Sentence:
    """The points for which a claim is shown, by the shorter of the two lists."""
    others = rows[~rows.index.isin(good.index)]
    if others.empty:
        return [" for every point"]
    if len(others) <= min(MOST_NAMED, len(good)):
        return [f" for every point except {words.listed(others['point'])}, where it is ", NOT_SHOWN]
    named = words.listed(good["point"]) if len(good) <= MOST_NAMED else "those marked in the table"
    return [f" for {named}, ", NOT_SHOWN, " for the others"]


def _equal(good: pd.DataFrame) -> Sentence:
    both = good[good["equivalent"]]
    if both.empty or len(both) > MOST_NAMED:
        return []
    return [f"; equivalent at this margin: {words.listed(both['point'])}"]


def _pairs(rows: pd.DataFrame) -> str:
    return "paired by task and seed" if rows["df"].min() > 2 else "few pairs, see the note"


def _baselines(found: Results) -> Sentence:
    rows = found.rows("baselines.csv", response=found.primary)
    if rows.empty:
        return []
    parts: Sentence = ["For comparison: "]
    for position, (_, row) in enumerate(rows.iterrows()):
        parts += ["; " if position else "", f"{arm_label(row['arm'], row['method'])} "]
        parts += [
            value("baselines.csv", row, "mean"),
            " (",
            value("baselines.csv", row, "runs", words.count),
        ]
        parts += [" run)" if row["runs"] == 1 else " runs)"]
    if found.study.analysis.margins:
        return [*parts, "."]
    untested = Verdict("not tested")
    why = ": the study declares no margin."
    return [*parts, ". Non-inferiority to a baseline was ", untested, why]


def _others(found: Results) -> Sentence:
    """The verdicts on the other responses than the primary one."""
    parts: Sentence = []
    for response in found.responses[1:]:
        rows = found.rows("anova.csv", response=response, test=found.test)
        rows = rows[rows["source"].isin(found.analysis.factors)]
        parts += ["; " if parts else "", f"{words.metric(response).label}: ", *_verdicts(rows)]
        general = found.rows("over_tasks.csv", response=response)
        parts += [", for tasks in general ", *_verdicts(general)] if len(general) else []
    return ["Effects on the other responses: ", *parts, "."] if parts else []


def _verdicts(rows: pd.DataFrame) -> Sentence:
    """Which sources are shown and which are not, by Holm's p."""
    shown = list(rows.loc[rows["p_holm"] < ALPHA, "source"])
    others = [factor for factor in rows["source"] if factor not in shown]
    parts: Sentence = [f"{words.listed(shown)} ", SHOWN] if shown else []
    parts += [", "] if shown and others else []
    return parts + ([f"{words.listed(others)} ", NOT_SHOWN] if others else [])


def _reach(found: Results) -> Sentence:
    tasks = list(dict.fromkeys(found.runs["task"]))
    these = f"the task {tasks[0]}" if len(tasks) == 1 else "the tasks studied"
    general = len(found.rows("over_tasks.csv"))
    marked = "; claims for tasks in general are marked as such" if general else ""
    return [f"These results hold for {these}, this base and these settings{marked}."]


def spread(found: Results, response: str) -> Sentence:
    """The spread of cell means compared with the spread of seeds within a cell."""
    row = first(found, "spread.csv", response=response)
    scale = _on(row["scale"])
    cells = value("spread.csv", row, "cell_sd")
    if math.isnan(row["replicate_sd"]):
        return [
            "Cell means vary by an SD of ",
            cells,
            f"{scale}; each cell has one seed, so the spread between seeds is ",
            Verdict("not known"),
            ".",
        ]
    seeds = value("spread.csv", row, "replicate_sd")
    sentence = ["Cell means vary by an SD of ", cells, f"{scale}, seeds within a cell by "]
    if math.isnan(row["ratio"]):
        return [*sentence, seeds, "."]
    return [*sentence, seeds, " (ratio ", value("spread.csv", row, "ratio"), ")."]
