"""The answer to a study's question: a few sentences, each with the number that it rests on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from fitspace.report import summary, words
from fitspace.report.figures import Figure, point_names
from fitspace.report.results import Results
from fitspace.report.summary import NOT_SHOWN, SHOWN, Sentence, first, value
from fitspace.report.words import Value
from fitspace.stats.best import ALPHA

FEW = 3  # of what is not shown beside what is, more are not named in the answer


@dataclass(frozen=True)
class Claim:
    """What may have an effect, and its adjusted p; NaN where no test is possible.

    ``size``: by how much, where one number says it.
    """

    of: str
    p: float
    shown: Value | None
    size: Value | None = None


def sentences(found: Results) -> list[Sentence]:
    """What was asked, what is best, and what that is worth; and what is missing, if runs are."""
    parts = [_asked(found), _best(found), _worth(found)]
    ledger = found.tables["ledger.csv"].iloc[-1]
    if ledger["ok"] != ledger["planned"]:
        parts.append(summary.ledger(found))
    return [part for part in parts if part]


def front(found: Results, figures: list[Figure]) -> Figure | None:
    """The figure that shows the answer: the cells of two factors, the means of one, else effects.

    A design without an error estimate has the half-normal plot of its contrasts.
    """
    means = f"means-{found.primary}"
    known = {1: (means,), 2: ("cells",)}
    order = (*known.get(len(found.factors), ("contrasts", "anova", means)), "cells")
    drawn = (figure for section in order for figure in figures if figure.section == section)
    return next(drawn, None)


# --- what was asked -----------------------------------------------------------------------


def _asked(found: Results) -> Sentence:
    """Whether the study's questions, else its factors, make a difference to the primary metric."""
    if found.study.analysis.choose:
        return _chosen(found)
    tasks = list(dict.fromkeys(found.runs["task"]))
    where = "In the mean over these tasks" if len(tasks) > 1 else f"On the task {tasks[0]}"
    label = words.named(found.primary)
    questions = summary.questions(found)
    if len(questions):
        claims = [
            _claim("questions.csv", row, row["contrast"], "p_deciding_holm", "estimate")
            for _, row in questions.iterrows()
        ]
        scale = summary.on_scale(found.scale(found.primary))
        start = [f"{where}, a difference in {label}{scale} is ", *_claimed(claims)]
        return [*start, *_by_task(found), "."]
    if len(found.rows("contrasts.csv", response=found.primary)):
        return summary.beyond_margin(found)
    claims = [_effect(found, factor) for factor in found.analysis.factors]
    if not claims:
        return []
    start = [f"{where}, an effect on {label} is ", *_claimed(claims)]
    order = summary.most(found, brief=True)
    if instead := summary.interact(found):
        by_task = "what they do together differs between the tasks"
        claim = by_task if "task" in instead else "they act together"
        return [*start, f"; that {claim} is ", SHOWN, f": read {instead}, not levels. ", *order]
    return [*start, *_by_task(found), ". ", *order]


def _by_task(found: Results) -> Sentence:
    """That effects differ between the tasks, where that is shown: a mean over them hides it."""
    if not (factors := summary.differing(found)):
        return []
    named = words.listed(factors)
    return [f"; that the effect of {named} differs between the tasks is ", SHOWN,
            ": read the cells of each"]  # fmt: skip


def _chosen(found: Results) -> Sentence:
    """At which level of the factors to choose the others' combinations are best.

    A level at which a run diverged is none, as `fitspace.plan.tuning` has it.
    """
    settings = found.study.analysis.choose
    others = [factor for factor in found.factors if factor not in settings]
    cells = found.best_cells(found.primary)
    whole = cells["runs"] == cells.groupby(others, dropna=False)["runs"].transform("max")
    best = cells[whole].drop_duplicates(others)
    taken = best.groupby(settings, sort=False, dropna=False).groups.values()
    parts: Sentence = [f"By {words.named(found.primary)}, "]
    for position, rows in enumerate(sorted(taken, key=len, reverse=True)):
        levels = best.loc[rows[0], settings]
        at = words.listed(f"{name} {level}" for name, level in levels.items())
        parts += [", " if position else "", f"{at} is best for "]
        parts.append(words.counted("cells.csv", sorted(rows)))
        if not position:
            parts += [" of ", words.counted("cells.csv", sorted(best.index))]
            parts.append(f" {'levels' if len(others) == 1 else 'combinations'} of ")
            parts.append(words.listed(others))
    return [*parts, "."]


def _effect(found: Results, factor: str) -> Claim:
    """A factor's effect, by the test on which claims rest."""
    row = summary.deciding(found, factor)
    if row is None:
        return Claim(factor, math.nan, None)
    if summary.untold(row, "p_holm"):
        return Claim(factor, math.nan, None)
    return _claim("robustness.csv", row, factor, "p_holm")


def _claim(file: str, row: pd.Series, of: str, p: str, size: str | None = None) -> Claim:
    shown = value(file, row, p, words.p_value)
    return Claim(of, row[p], shown, value(file, row, size) if size else None)


def _claimed(claims: list[Claim]) -> Sentence:
    """For what an effect is shown and for what not, each with its p."""
    shown = [claim for claim in claims if claim.p < ALPHA]
    others = [claim for claim in claims if claim not in shown]
    p = "adjusted p" if len(claims) > 1 else "p"
    parts: Sentence = [SHOWN, " for ", *_named(shown, p)] if shown else []
    if others:
        many = shown and len(others) > FEW
        rest = [" for the others"] if many else [" for ", *_named(others, p)]
        parts += [", and " if shown else "", NOT_SHOWN, *rest]
    tested = any(not math.isnan(claim.p) for claim in others)
    return [*parts, ", which does not prove absence"] if tested and not shown else parts


def _named(claims: list[Claim], p: str) -> Sentence:
    """Names with their p; where there are many, only the first ones."""
    parts: Sentence = []
    for position, claim in enumerate(claims[: words.MOST_NAMED]):
        last = position == len(claims) - 1
        parts += ["" if not position else " and " if last else ", ", claim.of]
        if claim.shown is None or math.isnan(claim.p):
            parts.append(" (so few runs cannot tell)")
        else:
            size = [claim.size, ", "] if claim.size else []
            parts += [" (", *size, f"{p} ", "" if claim.p < 0.001 else "= ", claim.shown, ")"]
    return [*parts, " and others"] if len(claims) > words.MOST_NAMED else parts


# --- what is best, and what it is worth ---------------------------------------------------


def _best(found: Results) -> Sentence:
    """The best cell, or the best level of a single factor, with its mean."""
    if len(found.factors) > 1:
        return summary.best_cell(found)
    (factor,) = found.factors
    metric = words.metric(found.primary)
    rows = found.rows("effects.csv", response=found.primary, factor=factor)
    rows = rows.dropna(subset="mean_measured") if len(rows) else rows
    if rows.empty:
        return []
    rows = rows.sort_values("mean_measured", ascending=metric.lower, kind="stable")
    mean = value("effects.csv", rows.iloc[0], "mean_measured")
    start = [f"{rows.iloc[0]['level']} has the {'lowest' if metric.lower else 'highest'} mean "
             f"{words.named(found.primary)}, ", mean]  # fmt: skip
    tied = int(rows["tied_with_best"].eq(True).sum())
    if tied == 1 and len(rows) > 1:
        over = summary.over_tasks(found)
        return [*start, f"; that it is better than every other level{over} is ", SHOWN, "."]
    return [*start, "; that it is the best level is ", NOT_SHOWN, "."]


def _worth(found: Results) -> Sentence:
    """What points are worth beside full fine-tuning; beside the untouched base too, where some are
    not shown to be better than it."""
    full, base = _against_full(found), _against_base(found)
    if not full or not base:
        return full or base
    return full if summary.all_improved(found) else [*base, " ", *full]


def _against_full(found: Results) -> Sentence:
    """Non-inferiority to full fine-tuning in the primary metric, where a margin is declared."""
    rows = found.rows("equivalence.csv", response=found.primary)
    if rows.empty:
        return []
    start: Sentence = ["Non-inferiority to full fine-tuning at a margin of "]
    start += [value("equivalence.csv", rows.iloc[0], "margin"), " is "]
    assay = first(found, "assay.csv", response=found.primary, task="all")
    if assay is not None and not assay["beaten"]:
        return [*start, NOT_SHOWN, ": full fine-tuning is not shown to beat the untouched base."]
    rows = rows.assign(point=rows["point"].map(point_names(found)))
    good = rows[rows["noninferior"]]
    if good.empty:
        return [*start, NOT_SHOWN, " for any point."]
    claim = summary.which(good, rows, "point")
    return [*start, SHOWN, *claim, ".", *summary.weak(found, found.primary)]


def _against_base(found: Results) -> Sentence:
    """For which points an improvement on the untouched base is shown, with the base's mean."""
    claim = summary.beside_base(found)
    if not claim:
        return []
    row = first(found, "baselines.csv", response=found.primary, method="none")
    mean = [] if row is None else [" (mean ", value("baselines.csv", row, "mean"), ")"]
    start: Sentence = ["Against the untouched base", *mean, ", an improvement is ", *claim, "."]
    lost = summary.lost_by_all(found)
    if lost:
        start += [f" In {words.listed(map(words.named, lost))} a worsening is ", SHOWN,
                  " for every point."]  # fmt: skip
    return [*start, *summary.worse_in(found)]
