"""What varies within a training: images drawn at its earlier steps, at other guidance and so on."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from scipy.special import stdtrit

from fitspace import stats
from fitspace.core.errors import UserError
from fitspace.metrics import METRICS
from fitspace.plan.looks import own_rows, within_of
from fitspace.results.table import VALIDATED
from fitspace.study import CHECKPOINT, Study

LEVELS, TESTS = "within_levels.csv", "within_tests.csv"
BEST_STEPS, GAINS = "best_steps.csv", "best_steps_gain.csv"
UNIT, NOISED = "train_key", "sample.noised"


@dataclass(frozen=True)
class Compared:
    """The rows by which a factor's levels are compared, and what varies between their trainings."""

    rows: pd.DataFrame
    between: list[str]


def groups(study: Study, drawn: pd.DataFrame, factors: list[str]) -> dict[str, Compared]:
    """Each factor that varies within a training, with all others at the study's own levels."""
    return {name: compared(rows_of(study, drawn, name), factors) for name in within_of(drawn)}


def tables(
    found: dict[str, Compared], responses: list[str]
) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """`LEVELS` and `TESTS` of each response and each factor that varies within a training.

    Also returns what was set aside or not possible, in sentences.
    """
    parts: dict[str, list[pd.DataFrame]] = {LEVELS: [], TESTS: []}
    notes = []
    for response in (name for name in responses if not METRICS[name].explains):
        for factor, own in found.items():
            try:
                both = stats.split_plot(own.rows, response, UNIT, factor, own.between)
            except UserError as error:
                notes += [f"{response}: not compared over {problem}" for problem in error.problems]
                continue
            notes += [f"{response}: {note}" for note in both[0].attrs["notes"]]
            for file, table in zip(parts, both, strict=True):
                table.insert(0, "factor", factor)
                table.insert(0, "response", response)
                parts[file].append(table)
    return {
        name: pd.concat(some, ignore_index=True) if some else pd.DataFrame()
        for name, some in parts.items()
    }, notes


def best_steps(study: Study, drawn: pd.DataFrame, response: str) -> pd.DataFrame:
    """Each training's best step by its images of the validation captions, and what it gains.

    ``step`` is the best one, ``last`` the training's last; ``response`` at both is of the captions
    that are reported, ``gain`` by how much better it is at the best step (above 0 is better). Empty
    without validation captions.
    """
    column = f"{response}{VALIDATED}"
    if column not in drawn or CHECKPOINT not in drawn:
        return pd.DataFrame()
    rows, sign = rows_of(study, drawn, CHECKPOINT), -1 if METRICS[response].lower else 1
    rows = rows.dropna(subset=[response, column])
    found = []
    for training, own in rows.groupby(UNIT, sort=False):
        steps = pd.to_numeric(own[CHECKPOINT])
        last = own.loc[steps.idxmax()]
        if steps.max() != float(last["steps"]):  # diverged before its end
            continue
        best = own.loc[(sign * own[column]).idxmax()]
        found.append({
            "response": response, "training": training, "run": last["run"],
            "point": last["point"], "arm": last["arm"], "task": last["task"], "seed": last["seed"],
            "step": int(float(best[CHECKPOINT])), "last": int(float(last[CHECKPOINT])),
            "at_best": best[response], "at_last": last[response],
            "gain": sign * (best[response] - last[response]),
        })  # fmt: skip
    return pd.DataFrame(found)


def gains(steps: pd.DataFrame) -> pd.DataFrame:
    """The mean of `best_steps`' gains over trainings with its 95% limits (Student's t): one row."""
    if len(steps) < 2:
        return pd.DataFrame()
    mean, count = steps["gain"].mean(), len(steps)
    reach = stdtrit(count - 1, 0.975) * steps["gain"].std() / count**0.5
    return pd.DataFrame([{
        "response": steps["response"].iloc[0], "trainings": count,
        "earlier": int((steps["step"] < steps["last"]).sum()),
        "gain": mean, "low": mean - reach, "high": mean + reach,
    }])  # fmt: skip


def compared(rows: pd.DataFrame, factors: list[str]) -> Compared:
    """Of rows those of the design with its factors; if there are none, all, with their arms."""
    inside = rows[stats.in_design(rows, factors)]
    return Compared(inside, factors) if len(inside) else Compared(rows, ["arm"])


def rows_of(study: Study, drawn: pd.DataFrame, factor: str) -> pd.DataFrame:
    """The finished runs in which a factor varies, in the order of its levels if they are numbers.

    Of runs without a training there are none, but for how much the given image is noised: that is
    how the untouched base is told of it, and a task and seed of the base are a unit. So they are of
    any factor in which no training varies.
    """
    units = drawn[UNIT]
    if factor == NOISED or drawn.loc[units.notna(), factor].isna().all():
        own = "untouched~" + drawn["task"].astype(str) + "~s" + drawn["seed"].astype(str)
        units = units.where(units.notna(), own)
    there = drawn["status"].eq("ok") & drawn[factor].notna() & units.notna()
    rows = drawn.assign(**{UNIT: units})[there & own_rows(study, drawn, but=factor)]
    order = pd.to_numeric(rows[factor], errors="coerce")
    return rows.loc[order.sort_values(kind="stable").index] if order.notna().all() else rows
