"""What the data show, in sentences made from the computed tables only."""

from __future__ import annotations

import math

import pandas as pd

from fitspace.report import words
from fitspace.report.figures import arm_label
from fitspace.report.results import ALPHA, Results
from fitspace.report.words import Value, Verdict

Sentence = list[object]
NOT_SHOWN = Verdict("not shown")


def sentences(found: Results) -> list[Sentence]:
    """The summary, one sentence or two per finding, in the order of its importance."""
    effects = [_effect(found, factor) for factor in found.analysis.factors]
    parts = [_ledger(found), *effects, _most(found), _fit(found), _best_cell(found)]
    parts += [_baselines(found), spread(found, found.primary), _others(found), _reach(found)]
    return [part for part in parts if part]


def notes(found: Results) -> list[str]:
    """What a reader must know of the analysis itself."""
    if found.runs["seed"].nunique() > 1:
        return found.analysis.notes
    one = (
        "each cell has one seed: the tests take what the additive model leaves over as error, "
        "so an interaction would hide in it, and the spread between seeds is not known"
    )
    return [one, *found.analysis.notes]


def value(file: str, row: pd.Series, column: str, write=words.number) -> Value:
    """One cell of a table as text that knows where it is from; ``row.name`` is its index."""
    raw = row[column]
    missing = isinstance(raw, float) and math.isnan(raw)
    return Value(write(raw), "" if missing else str(raw), file, int(row.name) + 1, column)


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


def _effect(found: Results, factor: str) -> Sentence:
    label = words.metric(found.primary).label
    row = _row(found, factor)
    start = [Verdict(factor), f": an effect on {label} is "]
    if row is None or math.isnan(row["F"]):
        return [*start, NOT_SHOWN, " (no test is possible: nothing is left to estimate error)."]
    test = _test(found, row)
    if row["p_holm"] < ALPHA:
        effect = [
            "; ",
            *_share(row),
        ]
        return [*start, Verdict("shown"), " (", *test, *effect, ").", *_best_levels(found, factor)]
    reach = [
        " That is no proof of absence: this design finds a partial ω² of ",
        value("anova.csv", row, "mde_omega2_p"),
        " or more with 80% power.",
    ]
    return [*start, NOT_SHOWN, " (", *test, ").", *(reach if row["mde_omega2_p"] > 0 else [])]


def _row(found: Results, source: str, test: str = "type II") -> pd.Series | None:
    rows = found.rows("anova.csv", response=found.primary, test=test, source=source)
    return rows.iloc[0] if len(rows) else None


def _test(found: Results, row: pd.Series, p: str = "p_holm") -> Sentence:
    rest = found.rows("anova.csv", response=row["response"], test=row["test"], source="residual")
    name = "Holm-adjusted p " if p == "p_holm" else "p "
    return [
        "F(",
        value("anova.csv", row, "df", words.count),
        ", ",
        value("anova.csv", rest.iloc[0], "df", words.count),
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
    return [
        "partial ω² ",
        value("anova.csv", row, "omega2_p"),
        ", 95% interval ",
        low,
        " to ",
        high,
    ]


def _best_levels(found: Results, factor: str) -> Sentence:
    rows = found.rows("effects.csv", response=found.primary, factor=factor)
    tied = [str(level) for level in rows.loc[rows["tied_with_best"], "level"]]
    others = len(rows) - len(tied)
    if not tied or not others:
        return [" Which level is best is ", NOT_SHOWN, "."]
    if len(tied) == 1:
        return [f" {tied[0]} is better than every other level (Tukey)."]
    apart = "The other is" if others == 1 else f"The other {others} are"
    return [
        f" Which of {words.listed(tied)} is best is ",
        NOT_SHOWN,
        f". {apart} worse than the best of them (Tukey).",
    ]


def _most(found: Results) -> Sentence:
    """A claim about which factor matters most needs intervals apart; F values have none."""
    if len(found.analysis.factors) < 2:
        return []
    rows = [_row(found, factor) for factor in found.analysis.factors]
    rows = sorted(rows, key=lambda row: -row["eta2_p_low"] if row["eta2_p_low"] >= 0 else 1)
    first, others = rows[0], rows[1:]
    both = [
        part
        for row in rows
        for part in ("; " if row is not first else "", f"{row['source']}: ", *_share(row))
    ]
    if not all(row["eta2_p_low"] >= 0 for row in rows):
        return ["Which factor matters most is ", NOT_SHOWN, ": not all effects can be estimated."]
    if all(first["eta2_p_low"] > row["eta2_p_high"] for row in others):
        claim = f": {first['source']}. Its interval lies above every other factor's ("
        return ["Which factor matters most is ", Verdict("shown"), claim, *both, ")."]
    return ["Which factor matters most is ", NOT_SHOWN, ": the intervals overlap (", *both, ")."]


def _fit(found: Results) -> Sentence:
    if len(found.analysis.factors) < 2:
        return []
    row = _row(found, "lack of fit", "lack of fit")
    what = f"That the factors interact ({' and '.join(found.analysis.factors)}) is "
    if row is None or math.isnan(row["F"]):
        return [what, NOT_SHOWN, ": no runs are left over to test the additive model's fit."]
    test = _test(found, row, "p")
    if row["p"] < ALPHA:
        return [what, Verdict("shown"), " (lack of fit ", *test, "); read cells before margins."]
    return [what, NOT_SHOWN, " (lack of fit ", *test, ")."]


def _best_cell(found: Results) -> Sentence:
    ranked = found.best_cells(found.primary)
    if len(found.factors) < 2 or ranked.empty:
        return []
    best = ranked.iloc[0]
    metric = words.metric(found.primary)
    start = [
        f"The {'lowest' if metric.lower else 'highest'} mean {metric.label} has "
        f"{found.label(best)}, ",
        value("cells.csv", best, "mean"),
    ]
    if found.tied_cells is None:
        return [*start, "; that it is the best cell is ", NOT_SHOWN, " (not tested)."]
    ties = len(found.tied_cells) - 1
    if ties > 0:
        cells = words.plural(ties, "other cell")
        verb = "is" if ties == 1 else "are"
        return [
            *start,
            "; that it is the best cell is ",
            NOT_SHOWN,
            f": {cells} {verb} not separable from it (Tukey, 5%).",
        ]
    return [
        *start,
        "; that it is the best of the cells compared is ",
        Verdict("shown"),
        " (Tukey).",
    ]


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
    return [
        *parts,
        ". That a cell is as good as a baseline is ",
        NOT_SHOWN,
        ": the study declares no margin for it.",
    ]


def _others(found: Results) -> Sentence:
    """The verdicts on the responses that are not the primary one."""
    parts: Sentence = []
    for response in found.responses[1:]:
        rows = found.rows("anova.csv", response=response, test="type II")
        rows = rows[rows["source"].isin(found.analysis.factors)]
        shown = list(rows.loc[rows["p_holm"] < ALPHA, "source"])
        others = [factor for factor in rows["source"] if factor not in shown]
        parts += ["; " if parts else "", f"{words.metric(response).label}: "]
        parts += [f"{words.listed(shown)} ", Verdict("shown")] if shown else []
        parts += [", "] if shown and others else []
        parts += [f"{words.listed(others)} ", NOT_SHOWN] if others else []
    return ["Effects on the other responses: ", *parts, "."] if parts else []


def _reach(found: Results) -> Sentence:
    tasks = list(dict.fromkeys(found.runs["task"]))
    these = f"the task {tasks[0]}" if len(tasks) == 1 else f"the {len(tasks)} tasks studied"
    return [f"All of this is about {these}, this base and these settings; no more is claimed."]


def spread(found: Results, response: str) -> Sentence:
    """Between-cell against between-seed spread."""
    rows = found.rows("spread.csv", response=response)
    row = rows.iloc[0]
    scale = {"identity": ""}.get(row["scale"], f" on the {row['scale']} scale")
    cells = value("spread.csv", row, "cell_sd")
    if math.isnan(row["replicate_sd"]):
        return [
            "Cells differ by a standard deviation of ",
            cells,
            f"{scale}; each has one seed, so the spread between seeds is ",
            Verdict("not known"),
            ".",
        ]
    seeds = value("spread.csv", row, "replicate_sd")
    sentence = ["Cells differ by a standard deviation of ", cells, f"{scale}, seeds of a cell by "]
    if math.isnan(row["ratio"]):
        return [*sentence, seeds, "."]
    return [*sentence, seeds, ": a ratio of ", value("spread.csv", row, "ratio"), "."]
