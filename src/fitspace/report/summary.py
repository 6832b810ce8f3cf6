"""The summary: sentences that are made from the computed tables only."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import partial

import pandas as pd

from fitspace.report import agreement, rated, tuned, words
from fitspace.report.drawn import GAINS, LEVELS, TESTS
from fitspace.report.figures import arm_label, point_names
from fitspace.report.results import Results
from fitspace.report.words import MOST_NAMED, Value, Verdict
from fitspace.stats.analysis import LACK_OF_FIT
from fitspace.stats.best import ALPHA

Sentence = list[object]
SHOWN, NOT_SHOWN = Verdict("shown"), Verdict("not shown")
# With fewer error degrees of freedom hardly any effect is large enough for a test to show it.
FEWEST_DF = 2
# The row of what the factors do together in single tasks.
BY_TASK = LACK_OF_FIT[1]
# An interval of a share that is wider than twice the effect says nothing of it.
WIDEST_SHARE = 2.0
# The trends that the summary gives; no claim rests on them, as they take runs to spread alike.
DEGREES = ["linear", "quadratic"]


def sentences(found: Results) -> list[Sentence]:
    """The summary, one or two sentences per finding, in order of importance."""
    parts = [ledger(found), *_questions(found), _against_base(found), _losses(found)]
    parts.append(_untested(found))
    for factor in found.analysis.factors:
        if effect := _effect(found, factor):
            parts.append(effect + _otherwise(found, factor))
        parts += [_by_task(found, factor), _in_general(found, factor), _trend(found, factor)]
    parts += [*_surfaces(found), *_within(found), *stopping(found)]
    parts += [
        beyond_margin(found),
        _fit(found),
        _fit_by_task(found),
        most(found),
        best_cell(found),
        *_as_good(found),
        *through(found),
        *preferred(found),
        _assumptions(found),
    ]
    parts += [_baselines(found), spread(found, found.primary), _others(found)]
    parts += [_disagreement(found), _reach(found)]
    return [part for part in parts if part]


def notes(found: Results) -> list[str]:
    """Notes on the analysis itself."""
    return [*_without_variation(found), *_of_analysis(found), *found.notes]


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


def ledger(found: Results) -> Sentence:
    """How many of the planned runs finished, failed and are missing."""
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


# --- what the study asks, and the untouched base ------------------------------------------


def questions(found: Results) -> pd.DataFrame:
    """The study's own contrasts of the primary response, in its order."""
    rows = found.rows("questions.csv", response=found.primary)
    return rows[rows["contrast"] != "jointly"] if len(rows) else rows


def _questions(found: Results) -> list[Sentence]:
    rows = questions(found)
    return [_question(found, row, len(rows)) for _, row in rows.iterrows()]


def _question(found: Results, row: pd.Series, asked: int) -> Sentence:
    """What one of so many contrasts shows."""

    def show(column: str) -> Value:
        return value("questions.csv", row, column)

    p, label = row["p_deciding_holm"], f"{words.named(found.primary)}{over_tasks(found)}"
    start = [Verdict(row["contrast"]), f": a difference in {label} is "]
    if math.isnan(p):
        return [*start, NOT_SHOWN, ": so few runs cannot tell."]
    together = "simultaneous 95% interval " if asked > 1 else "95% interval "
    evidence = [" (", show("estimate"), on_scale(found.scale(found.primary)), ", ", together]
    evidence += [show("low"), " to ", show("high")]
    evidence += _p(row, "questions.csv", "p_deciding_holm", adjusted(asked))
    if p >= ALPHA:
        return [*start, NOT_SHOWN, *evidence, ")."]
    wider = row["low"] < 0 < row["high"]
    said = "; simultaneous intervals are wider than Holm's tests" * bool(wider)
    return [*start, SHOWN, *evidence, said, ")."]


def _against_base(found: Results) -> Sentence:
    """Which points are better than the untouched base, and which are worse."""
    claim = beside_base(found)
    if not claim:
        return []
    label, rows = words.named(found.primary), _of_base(found, found.primary)
    parts = [Verdict("Against the untouched base"), f": an improvement in {label} is ", *claim]
    few = " So few runs of a point say little of how it varies; repeat with more seeds."
    return [*parts, ".", *worse_in(found), few if rows["few"].any() else ""]


def worse_in(found: Results) -> Sentence:
    """The tasks on which points are worse than the base, though the claim is on the tasks' mean."""
    rows = found.rows("by_task.csv", response=found.primary)
    if rows.empty or rows["task"].nunique() < 2:
        return []
    parts: Sentence = []
    worse = rows["low"] > 0 if words.metric(found.primary).lower else rows["high"] < 0
    tasks = list(rows[worse].groupby("task", sort=False))
    for position, (task, ours) in enumerate(tasks):
        names = ours["point"].map(point_names(found))
        named = [words.listed(names)] if len(ours) <= MOST_NAMED else [
            words.counted("by_task.csv", ours.index), " points"
        ]  # fmt: skip
        last = position and position == len(tasks) - 1
        parts += [" and " if last else ", " if position else "", *named, f" on {task}"]
    if not parts:
        return []
    return [" On single tasks worse than the base, if runs spread alike: ", *parts, "."]


def lost_by_all(found: Results) -> list[str]:
    """The other responses in which every point is shown to be worse than the untouched base."""
    return [response for response, rows in _lost(found) if rows["worse"].all()]


def _lost(found: Results) -> list[tuple[str, pd.DataFrame]]:
    """The other responses in which some point is worse than the base, with their differences."""
    others = [(response, _of_base(found, response)) for response in found.responses[1:]]
    return [(response, rows) for response, rows in others if len(rows) and rows["worse"].any()]


def _losses(found: Results) -> Sentence:
    """The other responses in which points are shown to be worse than the untouched base."""
    parts: Sentence = []
    for response, rows in _lost(found):
        claim = which(rows[rows["worse"]], rows, "level")
        parts += ["; " if parts else "", f"{words.named(response)}: ", SHOWN, *claim]
    return ["A worsening against the untouched base in other responses: ", *parts, "."] * bool(
        parts
    )


def beside_base(found: Results) -> Sentence:
    """For which points an improvement on the untouched base is shown, whether for full fine-tuning,
    and for which points a worsening; empty without the base."""
    rows = _of_base(found, found.primary)
    if rows.empty:
        return []
    full, points = rows[rows["full"]], rows[~rows["full"]]
    parts = _for(points[points["better"]], points, "level")
    if len(full):
        parts += ["; for full fine-tuning it is ", SHOWN if full["better"].any() else NOT_SHOWN]
    worse = points[points["worse"]]
    return [*parts, "; a worsening is ", *_for(worse, points, "level")] if len(worse) else parts


def all_improved(found: Results) -> bool:
    """Whether every point is shown to be better than the untouched base, on the mean of tasks."""
    return bool(_of_base(found, found.primary)["better"].all())


def _of_base(found: Results, response: str) -> pd.DataFrame:
    """Differences from the untouched base, and whether one is shown to be an improvement (better)
    or a worsening (worse)."""
    rows = found.rows("against.csv", response=response, control="none")
    if rows.empty:
        return rows
    gain = -rows["estimate"] if words.metric(response).lower else rows["estimate"]
    apart = rows["p_deciding"] < ALPHA
    return rows.assign(
        better=apart & (gain > 0),
        worse=apart & (gain < 0),
        full=rows["level"].eq(_full(found)),
        level=rows["level"].map(point_names(found)),
    )


def _full(found: Results) -> str | None:
    """The point of full fine-tuning, where it is one."""
    points = found.runs.loc[found.runs["method"] == "full", "point"].unique()
    return str(points[0]) if len(points) == 1 else None


def _for(shown: pd.DataFrame, every: pd.DataFrame, column: str) -> Sentence:
    """For which of some rows a claim is shown, by the shorter of the two lists."""
    if shown.empty:
        return [NOT_SHOWN, " for any point"]
    return [SHOWN, *which(shown, every, column)]


# --- factors ------------------------------------------------------------------------------


def _untested(found: Results) -> Sentence:
    """The factors that no test is possible of, in one sentence."""
    if not (factors := [f for f in found.analysis.factors if _tested(found, f) is None]):
        return []
    start = [Verdict(words.listed(factors)), f": an effect on {words.named(found.primary)} is "]
    return [*start, NOT_SHOWN, " (no test is possible: no residual degrees of freedom)."]


def _tested(found: Results, factor: str) -> pd.Series | None:
    row = _row(found, factor)
    return None if row is None or math.isnan(row["F"]) else row


def _effect(found: Results, factor: str) -> Sentence:
    label = words.named(found.primary)
    row, decided = _tested(found, factor), deciding(found, factor)
    if row is None:
        return []
    start = [Verdict(factor), f": an effect on {label} is "]
    if decided is None or untold(decided, "p_holm"):
        return [*start, NOT_SHOWN, ": ", *_too_few(found, row, decided), "."]
    test = _decided(found, row, decided, "p_holm")
    if decided["p_holm"] < ALPHA:
        return [*start, SHOWN, " (", *test, "; ", *_share(row), ").", *_best_levels(found, factor)]
    power = _detectable(row, apart=_apart(found, row)) if _classical(row, decided) else []
    return [*start, NOT_SHOWN, " (", *test, "), which does not prove absence.", *power]


def deciding(found: Results, source: str) -> pd.Series | None:
    """The row of the test on which a claim rests: it holds however the runs spread."""
    return first(found, "robustness.csv", response=found.primary, test="deciding", source=source)


def untold(row: pd.Series, p: str) -> bool:
    """Whether the runs are too few for the test of a row to tell: no p, or hardly any error df."""
    return math.isnan(row[p]) or not (row[p] < ALPHA or row.get("df2", math.inf) >= FEWEST_DF)


def _too_few(found: Results, row: pd.Series, decided: pd.Series | None) -> Sentence:
    """Why the runs cannot tell, with the classical test that would need them to spread alike."""
    classical = [*_ratio(found, row), *_p(row, "anova.csv", "p", "p")]
    parts = ["so few runs of a cell cannot tell (if runs spread alike ", *classical]
    parts.append("; with each run's own variance ")
    if decided is None or math.isnan(decided["df2"]):
        return [*parts, "there is no test)"]
    left = value("robustness.csv", decided, "df2", _df)
    return [*parts, "the error has ", left, " degrees of freedom)"]


def _decided(found: Results, row: pd.Series, decided: pd.Series, p: str) -> Sentence:
    """F, its degrees of freedom and p of the test on which a claim rests, and which it is."""
    name = adjusted(len(found.analysis.factors)) if p == "p_holm" else "p"
    df, df2 = (value("robustness.csv", decided, n, _df) for n in ("df", "df2"))
    parts = ["F(", df, ", ", df2, ") = ", value("robustness.csv", decided, "F")]
    parts += _p(decided, "robustness.csv", p, name)
    if _classical(row, decided):
        return parts
    own = ", with each run's own variance; classical "
    return [*parts, own, *_ratio(found, row), *_p(row, "anova.csv", "p", "p")]


def adjusted(tests: int) -> str:
    """How a p value is called that Holm's method adjusts for so many tests."""
    return "Holm-adjusted p" if tests > 1 else "p"


def _classical(row: pd.Series, decided: pd.Series) -> bool:
    """Whether a claim rests on the classical test: the larger p is its own."""
    return not decided["p"] > row["p"]


def _df(number: float) -> str:
    """Degrees of freedom: whole ones without decimals."""
    return words.count(number) if float(number).is_integer() else words.number(number)


def _row(found: Results, source: str, test: str | None = None) -> pd.Series | None:
    return first(found, "anova.csv", response=found.primary, test=test or found.test, source=source)


def _ratio(found: Results, row: pd.Series) -> Sentence:
    """F with its degrees of freedom."""
    rest = first(found, "anova.csv", response=row["response"], test=row["test"], source="residual")
    df, df2 = (value("anova.csv", r, "df", words.count) for r in (row, rest))
    return ["F(", df, ", ", df2, ") = ", value("anova.csv", row, "F")]


def _whole_ratio(row: pd.Series, file: str) -> Sentence:
    """The same of a row that has both degrees of freedom."""
    df, df2 = (value(file, row, name, words.count) for name in ("num_df", "den_df"))
    return ["F(", df, ", ", df2, ") = ", value(file, row, "F")]


def _p(row: pd.Series, file: str, column: str, name: str) -> Sentence:
    equals = "" if row[column] < 0.001 else "= "
    return [f", {name} {equals}", value(file, row, column, words.p_value)]


def _share(row: pd.Series) -> Sentence:
    """Partial omega squared with its own limits."""
    low, high = (value("anova.csv", row, f"omega2_p_{end}") for end in ("low", "high"))
    size = value("anova.csv", row, "omega2_p")
    alike = " if runs spread alike"
    return ["partial ω² ", size, ", 95% interval ", low, " to ", high, alike]


def _detectable(row: pd.Series, apart: Sequence[object] = ()) -> Sentence:
    """The effect that the design would have detected, for an effect that is not shown."""
    if not row["mde"] > 0:
        return []
    effect = ["a partial ω² of ", value("anova.csv", row, "mde"), *apart]
    return [" The classical F detects ", *effect, " with 80% power if runs spread alike."]


def _apart(found: Results, row: pd.Series) -> Sentence:
    """The detectable difference of two levels, in units of the response."""
    power = first(found, "power.csv", response=found.primary, factor=row["source"])
    if power is None or math.isnan(power["detectable"]):
        return []
    difference = value("power.csv", power, "detectable")
    where = f" between two levels{on_scale(found.scale(found.primary))},"
    return [", or a difference of ", difference, where]


def on_scale(scale: str) -> str:
    """Where numbers of a response are not in its own units, that they are not."""
    return "" if scale == "identity" else f" on the {scale} scale"


def _otherwise(found: Results, factor: str) -> Sentence:
    """Whether the permutation test agrees; none was chosen by its p."""
    row = first(found, "robustness.csv", response=found.primary, test="permutation", source=factor)
    decided = deciding(found, factor)
    if row is None or decided is None or math.isnan(row["p"]) or untold(decided, "p_holm"):
        return []
    if not _permutes(found):
        return []
    if (row["p"] < ALPHA) == (decided["p"] < ALPHA):
        return [" A permutation test agrees."]
    return [" A permutation test does not agree", *_p(row, "robustness.csv", "p", "p"), "."]


def _permutes(found: Results) -> bool:
    """Whether a permutation test of one factor can reach the level at all.

    Orders that only exchange levels of equally many runs in each block give the same statistic.
    """
    if len(found.analysis.factors) > 1:
        return True
    (factor,) = found.analysis.factors
    used = found.runs[found.runs["run"].isin(found.rows("residuals.csv")["run"])]
    blocks = [name for name in found.analysis.blocks.names if name in used]
    block = used.groupby(blocks, observed=True).ngroup() if blocks else pd.Series(0, used.index)
    counts = pd.crosstab(block, used[factor].astype(str)).to_numpy()
    same = math.prod(map(math.factorial, Counter(map(tuple, counts.T)).values()))
    orders = math.prod(
        math.factorial(sum(row)) // math.prod(map(math.factorial, row)) for row in counts.tolist()
    )
    return same / orders < ALPHA


def _by_task(found: Results, factor: str) -> Sentence:
    """Whether a factor's effect differs between the tasks."""
    source = f"task:{factor}"
    start = f"{factor}: that the effect differs between these tasks is "
    return _differing(found, _row(found, source), source, start)


def _differing(found: Results, row: pd.Series | None, source: str, start: str) -> Sentence:
    """Whether an effect differs between the tasks; nothing where no test is possible."""
    decided = deciding(found, source)
    if row is None or math.isnan(row["F"]):
        return []
    if decided is None or untold(decided, "p"):
        return [start, NOT_SHOWN, ": ", *_too_few(found, row, decided), "."]
    verdict = SHOWN if decided["p"] < ALPHA else NOT_SHOWN
    read = "; read the cells of each task" if source == BY_TASK and verdict is SHOWN else ""
    return [start, verdict, " (", *_decided(found, row, decided, "p"), f"){read}."]


def _in_general(found: Results, factor: str) -> Sentence:
    row = first(found, "over_tasks.csv", response=found.primary, source=factor)
    if row is None or math.isnan(row["F"]):
        return []

    start = f"{factor}: if these tasks are taken as a sample of tasks, an effect is "
    if _few_tasks(row):
        return [start, NOT_SHOWN, ": so few tasks cannot tell."]
    return [
        start,
        SHOWN if row["p_gg_holm"] < ALPHA else NOT_SHOWN,
        " (against how it varies over the tasks: ",
        *_whole_ratio(row, "over_tasks.csv"),
        ", Greenhouse–Geisser ε ",
        value("over_tasks.csv", row, "gg_eps"),
        *_p(row, "over_tasks.csv", "p_gg_holm", adjusted(len(found.analysis.factors))),
        ").",
    ]


def _few_tasks(row: pd.Series) -> bool:
    """Whether hardly any degrees of freedom are left by how unlike a factor's levels vary."""
    return (
        "gg_eps" in row and row["p_gg_holm"] >= ALPHA and row["den_df"] * row["gg_eps"] < FEWEST_DF
    )


def _trend(found: Results, factor: str) -> Sentence:
    """How the response goes with a factor of numbers."""
    rows = found.rows("trends.csv", response=found.primary, factor=factor)
    if rows.empty:
        return []
    parts: Sentence = [f"{factor}, as a number, if runs spread alike: "]
    for position, (_, row) in enumerate(rows[rows["source"].isin(DEGREES)].iterrows()):
        ratio = [*_whole_ratio(row, "trends.csv"), *_p(row, "trends.csv", "p", "p")]
        parts += [", " if position else "", f"{row['source']} trend ", *ratio]
    return [*parts, "."]


def _surfaces(found: Results) -> list[Sentence]:
    """Where the fitted surface over two factors of numbers is stationary, if among their levels."""
    rows = found.rows("surfaces.csv", response=found.primary)
    sentences = []
    for of, ours in rows.groupby("of", sort=False) if len(rows) else ():
        ours = ours[ours["at"].notna()]
        names = ours["source"].str.removeprefix("stationary point: ")
        levels = [[float(level) for level in found.levels[name]] for name in names]
        inside = [min(k) <= at <= max(k) for k, at in zip(levels, ours["at"], strict=True)]
        parts: Sentence = [f"{of} together: the fitted second-degree surface has "]
        if not inside or not all(inside):
            sentences.append([*parts, "no stationary point among the levels studied."])
            continue
        parts += [f"a {ours['kind'].iloc[0]} at "]
        for position, (name, (_, row)) in enumerate(zip(names, ours.iterrows(), strict=True)):
            parts += [" and " if position else "", f"{name} ", value("surfaces.csv", row, "at")]
        sentences.append([*parts, "; its limits and lack of fit are in the table."])
    return sentences


def _within(found: Results) -> list[Sentence]:
    """What varies within a training: the level of the best mean, and whether levels differ."""
    rows = found.rows(LEVELS, response=found.primary)
    sentences = []
    for factor, ours in rows.groupby("factor", sort=False) if len(rows) else ():
        ours = ours.sort_values("mean", ascending=words.metric(found.primary).lower, kind="stable")
        best = ours.iloc[0]
        parts: Sentence = [f"Within a training, {factor} is best at {best['level']} in the mean ("]
        parts += [value(LEVELS, best, "mean"), ")"]
        tested = first(found, TESTS, response=found.primary, factor=factor, source=factor)
        if tested is not None and not pd.isna(tested["p_gg"]):
            p = _p(tested, TESTS, "p_gg", "Greenhouse–Geisser p")
            parts += ["; that its levels differ: ", *_whole_ratio(tested, TESTS), *p]
            for _, row in _with_others(found, factor).iterrows():
                other = next(name for name in row["source"].split(":") if name != factor)
                p = _p(row, TESTS, "p_gg", "p")
                parts += [f"; that this depends on {other}: ", *_whole_ratio(row, TESTS), *p]
            parts.append("; if runs spread alike, and not adjusted for the other responses")
        sentences.append([*parts, "."])
    return sentences


def _with_others(found: Results, factor: str) -> pd.DataFrame:
    """Tests of how the effect of what varies within a training differs between trainings."""
    rows = found.rows(TESTS, response=found.primary, factor=factor)
    ours = rows["source"].str.split(":").map(lambda names: len(names) == 2 and factor in names)
    return rows[ours.astype(bool) & rows["p_gg"].notna()]


def _best_levels(found: Results, factor: str) -> Sentence:
    rows = found.rows("effects.csv", response=found.primary, factor=factor)
    tied = [str(level) for level in rows.loc[rows["tied_with_best"].eq(True), "level"]]
    others = [str(level) for level in rows["level"] if str(level) not in tied]
    if not tied or not others:
        return [" Which level is best is ", NOT_SHOWN, "."]
    if len(tied) == 1:
        rest = others[0] if len(others) == 1 else "every other level"
        return [f" {tied[0]} is better than {rest}{over_tasks(found)}."]
    named = words.listed(others) if len(others) <= MOST_NAMED else "All others"
    apart = f"{named} {'is' if len(others) == 1 else 'are'}"
    return [
        f" Which of {words.listed(tied)} is best is ",
        NOT_SHOWN,
        f"{_alone(rows)}. {apart} worse than the best of them.",
    ]


def over_tasks(found: Results) -> str:
    """What a claim about levels is on, where a study has several tasks."""
    return " in the mean over these tasks" if found.runs["task"].nunique() > 1 else ""


def _alone(rows: pd.DataFrame) -> str:
    """The tied levels that have one cell, where others have several."""
    alone = rows[rows["tied_with_best"].eq(True) & rows["cells"].eq(1)]
    if alone.empty or rows["cells"].max() == 1:
        return ""
    have = "has one cell" if len(alone) == 1 else "have one cell each"
    return f" ({words.listed(map(str, alone['level']))} {have}, too few to separate)"


def beyond_margin(found: Results) -> Sentence:
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
    for position, (_, row) in enumerate(active[:MOST_NAMED].iterrows()):
        parts += [
            ", " if position else "",
            f"{row['contrast']} (",
            value("contrasts.csv", row, "estimate"),
            ")",
        ]
    if len(rest := active[MOST_NAMED:]):
        parts += [" and ", words.counted("contrasts.csv", rest.index), " smaller"]
    return [*parts, ". Without a second seed there are no p values for them."]


def most(found: Results, *, brief: bool = False) -> Sentence:
    """Which factor matters most: a claim about a difference of effect sizes, never about F.

    ``brief``: only the claim, and what it hangs on.
    """
    rows = found.rows("ranking.csv", response=found.primary)
    if len(found.analysis.factors) < 2 or rows.empty:
        return []
    row, start = rows.iloc[0], "Which factor matters most is "
    if math.isnan(row["low"]):
        return [start, NOT_SHOWN, ": not all effects can be estimated."]

    def show(column: str) -> Value:
        return value("ranking.csv", row, column)

    shown = row["low"] > 0 and row["alike"]
    claim = [SHOWN, f": {row['factor']}"] if shown else [NOT_SHOWN]
    if brief:
        return [start, *claim, ".", *_turned(found)]
    evidence = [
        f" (adjusted partial ω² of {row['factor']} minus that of {row['next']}: ",
        show("difference"),
        ", 95% interval ",
        show("low"),
        " to ",
        show("high"),
    ]
    if row["alike"] and not _turned(found):
        evidence += ["; probability that it ranks first ", show("rank_one")]
    if row["low"] > 0 and not row["alike"]:
        evidence.append(
            "; the variances of the residuals differ, and such an order is then claimed too often"
        )
    return [start, *claim, *evidence, ").", *_stable(found)]


def _without(found: Results) -> dict[str, list[str]]:
    """What may be left out, a task or a level -> those without which another factor is first."""
    winner = found.rows("ranking.csv", response=found.primary)["factor"].iloc[0]
    files = {
        "task": ("leave_one_out.csv", "left_out"),
        "level": ("leave_one_level_out.csv", "level"),
    }
    turned = {}
    for what, (file, column) in files.items():
        if len(leading := found.rows(file, response=found.primary, rank=1)):
            other = leading[leading["factor"] != winner]
            turned[what] = [f"{row[column]} ({row['factor']})" for _, row in other.iterrows()]
    return turned


def _turned(found: Results) -> Sentence:
    """The single tasks and levels that decide the order of the factors."""
    return [
        f" Leaving out one {what} puts another factor first: {words.listed(named)}."
        for what, named in _without(found).items()
        if named
    ]


def _stable(found: Results) -> Sentence:
    """Whether one task, or one level, decides the order of the factors."""
    winner = found.rows("ranking.csv", response=found.primary)["factor"].iloc[0]
    stays = [what for what, named in _without(found).items() if not named]
    kept = f" {winner} stays first whichever {' or '.join(stays)} is left out."
    return [*([kept] if stays else []), *_turned(found)]


def _fit(found: Results) -> Sentence:
    if len(found.analysis.factors) < 2:
        return []
    if found.analysis.interactions:
        return _interactions(found)
    row, decided = _row(found, "lack of fit", "lack of fit"), deciding(found, "lack of fit")
    what = f"An interaction of {words.listed(found.analysis.factors)} is "
    if row is None or math.isnan(row["F"]):
        return [what, NOT_SHOWN, ": no degrees of freedom remain for a lack-of-fit test."]
    test = ["lack of fit ", *_ratio(found, row), *_p(row, "anova.csv", "p", "p")]
    if row["p"] >= ALPHA:
        return [what, NOT_SHOWN, " (", *test, ").", *_detectable(row)]
    cells = ", but cannot be excluded: read cells, not marginal means alone."
    if decided is None or untold(decided, "p"):
        return [what, NOT_SHOWN, ": ", *_too_few(found, row, decided), cells]
    test = ["lack of fit ", *_decided(found, row, decided, "p")]
    if decided["p"] < ALPHA:
        return [what, SHOWN, " (", *test, "); interpret cells, not marginal means."]
    return [what, NOT_SHOWN, " (", *test, ")", cells]


def _fit_by_task(found: Results) -> Sentence:
    """Whether what the factors do together, beside their own effects, differs between the tasks."""
    what = f"What {words.listed(found.analysis.factors)} do together differs between these tasks: "
    return _differing(found, _row(found, BY_TASK, "lack of fit"), BY_TASK, what)


def differing(found: Results) -> list[str]:
    """The factors whose effect is shown to differ between the tasks."""
    return [f for f in found.analysis.factors if _by_both(found, f"task:{f}")]


def _by_both(found: Results, source: str, test: str | None = None) -> bool:
    """Whether an effect is shown by the classical test and by the one on which claims rest."""
    rows = _row(found, source, test), deciding(found, source)
    return all(row is not None and row["p"] < ALPHA for row in rows)


def interact(found: Results) -> str:
    """What is to be read in place of levels, where an interaction is shown: cells, or each task's.

    Empty where none is."""
    if found.analysis.interactions:
        rows = found.rows("robustness.csv", response=found.primary, test="deciding")
        if rows.empty:
            return ""
        ours = rows["source"].str.contains(":") & ~rows["source"].str.contains(r"\btask\b")
        return "cells" if (rows.loc[ours, "p_holm"] < ALPHA).any() else ""
    for source, instead in ((BY_TASK, "the cells of each task"), ("lack of fit", "cells")):
        if _by_both(found, source, "lack of fit"):
            return instead
    return ""


def _interactions(found: Results) -> Sentence:
    rows = found.rows("anova.csv", response=found.primary, test=found.test)
    parts: Sentence = []
    ours = rows["source"].str.contains(":") & ~rows["source"].str.contains(r"\btask\b")
    for _, row in rows[ours & rows["F"].notna()].iterrows():
        decided = deciding(found, row["source"])
        known = decided is not None and not untold(decided, "p_holm")
        verdict = SHOWN if known and decided["p_holm"] < ALPHA else NOT_SHOWN
        parts += ["; " if parts else "Interactions: ", f"{row['source'].replace(':', ' with ')} "]
        if not known:
            parts += [verdict, ", as ", *_too_few(found, row, decided)]
            continue
        parts += [verdict, " (", *_decided(found, row, decided, "p_holm"), ")"]
        if verdict is NOT_SHOWN and row["p"] < ALPHA:
            parts += [", but it cannot be excluded: read cells, not marginal means alone"]
    return [*parts, "."] if parts else []


def _assumptions(found: Results) -> Sentence:
    """Violated assumptions of the tests: unequal variances and influential runs."""
    parts: Sentence = []
    rows = found.rows("variances.csv", response=found.primary)
    for _, row in rows[(rows["p"] < ALPHA) & ~rows["source"].str.contains(":")].iterrows():
        p = value("variances.csv", row, "p", words.p_value)
        equals = "" if row["p"] < 0.001 else "= "
        test = "Levene" if row["residuals"] == "cells" else "Brown–Forsythe"
        between = f" between levels of {row['source']} ({test}, p {equals}"
        parts += [", and" if parts else "Variances differ", between, p, ")"]
    if parts:
        parts += [": F and Tukey tests are then unreliable, and no claim here rests on them alone."]
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


def through(found: Results) -> list[Sentence]:
    """Whether each factor acts on the outcome through prompt sensitivity, with the interval."""
    return [_through(found, row) for _, row in found.rows("mediation.csv").iterrows()]


def _through(found: Results, row: pd.Series) -> Sentence:
    factor, label = Verdict(row["factor"]), words.named(row["response"])
    where = {"response": row["response"], "test": "deciding", "source": row["factor"]}
    decided = first(found, "robustness.csv", **where)
    if decided is None or not decided["p_holm"] < ALPHA:  # NaN too
        return [factor, f": no effect on {label} is shown that could run through prompt ",
                "sensitivity."]  # fmt: skip

    def percent(column: str) -> Value:
        return value("mediation.csv", row, column, lambda share: f"{words.fixed(100 * share, 0)}%")

    numbers = [percent("share"), " of the effect, 95% bootstrap interval ", percent("low"), " to "]
    numbers += [percent("high")]
    claim = f": that its effect on {label} runs through prompt sensitivity is "
    if row["low"] < 0 < row["high"] and row["high"] - row["low"] > WIDEST_SHARE:
        return [factor, claim, NOT_SHOWN, ": the effect is too uncertain to be divided."]
    if row["low"] > 0:
        return [factor, claim, SHOWN, " (", *numbers, ")."]
    if row["high"] < 0:
        opposed = "; sensitivity works against the effect, which is larger beside it)."
        return [factor, claim, NOT_SHOWN, " (", *numbers, opposed]
    return [factor, claim, NOT_SHOWN, " (", *numbers, ")."]


def stopping(found: Results) -> list[Sentence]:
    """What stopping each training at its best step gains, by captions that are not reported."""
    row = first(found, GAINS)
    if row is None:
        return []
    show, label = partial(value, GAINS, row), words.named(found.primary)
    parts = [
        "By ", words.declared("sample.validation", found.study.sample.validation),
        " captions of validation, which are not reported, ", show("earlier", words.count), " of ",
        show("trainings", words.count), " trainings were best before their last step. At each "
        f"one's best step {label} of the reported captions is better by ", show("gain"),
        " on average (95% limits ", show("low"), " to ", show("high"), "): a gain is ",
    ]  # fmt: skip
    return [[*parts, SHOWN if row["low"] > 0 else NOT_SHOWN, "."]]


# --- people -------------------------------------------------------------------------------


def preferred(found: Results) -> list[Sentence]:
    """What people preferred, whether they agreed, and whether the primary metric does."""
    row = first(found, rated.TESTS)
    if row is None:
        return []
    show, counted = partial(value, rated.TESTS, row), partial(value, rated.TESTS, write=words.count)
    best, label = found.tables[rated.ABILITIES].iloc[0], words.named(row["metric"])
    name = point_names(found).get(best["point"], best["point"])
    differ = SHOWN if row["p"] < ALPHA else NOT_SHOWN
    sentences: list[Sentence] = [[
        counted(row, "judgements"), " judgements in blinded pairs by ", counted(row, "raters"),
        " people (", counted(row, "ties"), " ties): that the points differ is ", differ, " (p ",
        value(rated.TESTS, row, "p", words.p_value), f"). {name} was preferred most.",
    ]]  # fmt: skip
    if not pd.isna(row["alpha"]):
        sentences.append([
            "Krippendorff's alpha of ", counted(row, "judged_twice"), " pairs that several "
            "judged: ", show("alpha"), ".",
        ])  # fmt: skip
    if not pd.isna(row["rho"]):
        sentences.append([
            f"Rank correlation of what people preferred with {label}, over points: ", show("rho"),
            " [", show("rho_low"), ", ", show("rho_high"), "].",
        ])  # fmt: skip
    return sentences


# --- tuning -------------------------------------------------------------------------------


def tuning(found: Results) -> list[Sentence]:
    """What was tuned, whether the grid was wide enough, and how the points would rank without."""
    rows, sentences = found.rows(tuned.NAME), []
    if rows.empty:
        return []
    best, count = rows[rows["best"]], partial(words.counted, tuned.NAME)
    tasks = words.listed(task.name for task in found.study.tuning.tasks)
    own, names = found.study.tuning, point_names(found)
    tried = words.listed(f"{name} ({len(levels)} levels)" for name, levels in own.factors.items())
    sentences.append([
        "Each of ", count(best.index), f" points takes its own {tried}: the best "
        f"by {words.named(own.response)} on {tasks}, which "
        f"{'is no task' if len(own.tasks) == 1 else 'are no tasks'} of the study "
        f"({words.plural(len(own.seeds) * len(own.tasks), 'run')} of each level).",
    ])  # fmt: skip
    if rows["low"].isna().all():
        sentences.append(["How far levels differ beyond chance is not known: each has one run."])
    if (edge := best[best["edge"]]).empty:
        sentences.append(["No best level is the lowest or the highest of those tried."])
    else:
        listed = [names.get(point, point) for point in edge["point"]]
        named = "" if len(listed) > 2 * MOST_NAMED else f" ({words.listed(listed)})"
        sentences.append([
            Verdict("At the edge"), ": for ", count(edge.index), f" points{named} the best level "
            "is the lowest or the highest of those tried, so a better one may lie beyond.",
        ])  # fmt: skip
    for _, row in found.rows(tuned.RANKS).iterrows():
        show = partial(value, tuned.RANKS, row)
        untuned, best = (names.get(row[n], row[n]) for n in ("first_own", "first_tuned"))
        first = f"{untuned} ranks first"
        first += ", as it does" if untuned == best else f", and {best} does"
        first += " where each has its own"
        lost = [", ", show("diverged", words.count), " diverged there"] if row["diverged"] else []
        sentences.append([
            f"On {tasks}, with {row['at']} for all, {first}. ", show("moved", words.count), " of ",
            show("points", words.count), " points change their place (Kendall's τ ", show("tau"),
            ")", *lost, ".",
        ])  # fmt: skip
    return sentences


# --- cells, points and baselines ----------------------------------------------------------


def best_cell(found: Results) -> Sentence:
    """The cell of the best mean, and whether others are separable from it."""
    ranked = found.best_cells(found.primary)
    if len(found.factors) < 2 or ranked.empty:
        return []
    best = ranked.iloc[0]
    metric = words.metric(found.primary)
    start = [
        f"{found.label(best)} has the {'lowest' if metric.lower else 'highest'} mean "
        f"{words.named(found.primary)}, ",
        value("cells.csv", best, "mean"),
        "; it is ",
    ]
    claim = " to be the best cell"
    compared = ranked["tied_with_best"].dropna()
    if compared.empty:
        return [*start, NOT_SHOWN, f"{claim} (not tested)."]
    others = ranked[ranked["tied_with_best"].eq(True)].iloc[1:]
    if len(others):
        asked = len(questions(found)) > 0
        by = " by a test of all pairs, stricter than that of a question" if asked else ""
        cells = f"{found.label(others.iloc[0])} is" if len(others) == 1 else "other cells are"
        return [*start, NOT_SHOWN, f"{claim}: {cells} not separable from it{by} (5%)."]
    return [*start, SHOWN, f"{claim} (among the cells compared)."]


def _as_good(found: Results) -> list[Sentence]:
    """The points that are non-inferior to full fine-tuning at the declared margin."""
    return [
        _held_against_full(found, response)
        for response in found.responses
        if len(found.rows("equivalence.csv", response=response))
    ]


def _held_against_full(found: Results, response: str) -> Sentence:
    rows = found.rows("equivalence.csv", response=response)
    rows = rows.assign(point=rows["point"].map(point_names(found)))
    metric = words.metric(response)
    margin = value("equivalence.csv", rows.iloc[0], "margin")
    good = rows[rows["noninferior"]]
    start = [
        f"Non-inferiority to full fine-tuning in {words.named(response)} at a margin of ",
        margin,
    ]
    assay = first(found, "assay.csv", response=response, task="all")
    if assay is not None and not assay["beaten"]:
        gain = value("assay.csv", assay, "gain")
        why = [" (gain ", gain, *_p(assay, "assay.csv", "p", "one-sided p"), ")."]
        return [*start, ": ", NOT_SHOWN, ": full fine-tuning did not beat the untouched base", *why]
    if good.empty:
        worse = rows["difference"] if metric.lower else -rows["difference"]
        order = rows.assign(worse=worse).sort_values(["p_noninferior", "worse"], kind="stable")
        best = order.iloc[0]
        difference = value("equivalence.csv", best, "difference")
        nearest = [f" (nearest: {best['point']}, difference ", difference]
        nearest += _p(best, "equivalence.csv", "p_noninferior", "adjusted p")
        return [*start, ": ", NOT_SHOWN, " for any point", *nearest, ").", *weak(found, response)]
    claim = [*which(good, rows, "point"), *_equal(good)]
    return [*start, ": ", SHOWN, *claim, " (adjusted over the points).", *weak(found, response)]


def weak(found: Results, response: str) -> Sentence:
    """The tasks on which full fine-tuning did not beat the base: there the claim means nothing."""
    rows = found.rows("assay.csv", response=response)
    lost = list(rows.loc[~rows["beaten"].astype(bool) & (rows["task"] != "all"), "task"])
    if not lost:
        return []
    return [f" On {words.listed(lost)} full fine-tuning is not shown to beat the untouched base."]


def which(good: pd.DataFrame, rows: pd.DataFrame, column: str) -> Sentence:
    """The points for which a claim is shown, by the shorter of the two lists."""
    others = rows[~rows.index.isin(good.index)]
    if others.empty:
        return [" for every point"]
    if len(others) <= min(MOST_NAMED, len(good)):
        return [f" for every point except {words.listed(others[column])}, where it is ", NOT_SHOWN]
    named = words.listed(good[column]) if len(good) <= MOST_NAMED else "those marked in the table"
    return [f" for {named}, ", NOT_SHOWN, " for the others"]


def _equal(good: pd.DataFrame) -> Sentence:
    both = good[good["equivalent"]]
    if both.empty or len(both) > MOST_NAMED:
        return []
    return [f"; equivalent at this margin: {words.listed(both['point'])}"]


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
    if found.study.analysis.margins or not rows["method"].eq("full").any():
        return [*parts, "."]
    untested = Verdict("not tested")
    why = ": the study declares no margin."
    return [*parts, ". Non-inferiority to a baseline was ", untested, why]


def _others(found: Results) -> Sentence:
    """The verdicts on the other responses than the primary one."""
    parts: Sentence = []
    for response in found.responses[1:]:
        rows = found.rows("robustness.csv", response=response, test="deciding")
        rows = rows[rows["source"].isin(found.analysis.factors)] if len(rows) else rows
        if rows.empty:
            continue
        parts += ["; " if parts else "", f"{words.named(response)}: "]
        parts += _verdicts(rows, "p_holm")
        general = found.rows("over_tasks.csv", response=response)
        parts += (
            [", for tasks in general ", *_verdicts(general, "p_gg_holm")] if len(general) else []
        )
    family = " (all of them one family, by Holm)."
    return ["Effects on the other responses: ", *parts, family] if parts else []


def _disagreement(found: Results) -> Sentence:
    """The metrics that do not rank the points as the primary response does."""
    rows = agreement.disagreeing(found.rows(agreement.NAME), found.primary)
    if rows.empty:
        return []
    label = words.metric(found.primary).label
    parts: Sentence = [f"{label} is not shown to rank the points as these do: "]
    for position, (_, row) in enumerate(rows.iterrows()):
        low, high = (value(agreement.NAME, row, name) for name in ("low", "high"))
        parts += [
            ", " if position else "",
            f"{words.named(row['other'])} (rank correlation ",
        ]
        parts += [value(agreement.NAME, row, "estimate"), ", 95% ", low, " to ", high, ")"]
    turned = any(words.metric(name).lower for name in (found.primary, *rows["other"]))
    signs = "; signs are turned so that higher is better" if turned else ""
    return [*parts, f"{signs}: a claim about one is none about the other."]


def _verdicts(rows: pd.DataFrame, p: str) -> Sentence:
    """Which sources are shown and which are not."""
    verdicts = {
        "shown": (SHOWN, ""),
        "": (NOT_SHOWN, ""),
        "tasks": (NOT_SHOWN, " (so few tasks cannot tell)"),
        "runs": (NOT_SHOWN, " (so few runs cannot tell)"),
    }
    sources: dict[str, list[str]] = {kind: [] for kind in verdicts}
    for _, row in rows.iterrows():
        untested = "tasks" if _few_tasks(row) else "runs" if untold(row, p) else ""
        sources["shown" if row[p] < ALPHA else untested].append(row["source"])
    parts: Sentence = []
    for kind, (verdict, why) in verdicts.items():
        if sources[kind]:
            start = ", " if parts else ""
            parts += [f"{start}{words.listed(sources[kind])} ", verdict, why]
    return parts


def _reach(found: Results) -> Sentence:
    tasks = list(dict.fromkeys(found.runs["task"]))
    these = f"the task {tasks[0]}" if len(tasks) == 1 else "the tasks studied"
    general = len(found.rows("over_tasks.csv"))
    marked = "; claims for tasks in general are marked as such" if general else ""
    return [f"These results hold for {these}, this base and these settings{marked}."]


def spread(found: Results, response: str) -> Sentence:
    """The spread of cell means compared with that of runs within a cell."""
    row = first(found, "spread.csv", response=response)
    scale = on_scale(row["scale"])
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
    sentence = ["Cell means vary by an SD of ", cells, f"{scale}, runs within a cell by "]
    if math.isnan(row["ratio"]):
        return [*sentence, seeds, "."]
    return [*sentence, seeds, " (ratio ", value("spread.csv", row, "ratio"), ")."]
