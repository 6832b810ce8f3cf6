"""What a study's tuning chose: read from the table of its runs, which is in git.

The tuning is a study of its own (:mod:`fitspace.study.tuning`), with its own report. Its table is
known before the study's plan is made, so that what was chosen is part of the keys.
"""

from __future__ import annotations

import csv
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitspace import metrics
from fitspace.core.errors import UserError
from fitspace.core.files import canonical
from fitspace.core.hub import NotHere
from fitspace.core.paths import REPORTS
from fitspace.core.texts import cell
from fitspace.plan.points import legal_cells
from fitspace.study import TUNING, Study

Levels = tuple[Any, ...]


@dataclass(frozen=True)
class Tried:
    """The runs of one cell of an arm.

    ``values``: the tuned settings' levels -> the response of each run, on the scale on which it is
    analysed; None for a run that diverged. In the order of tasks and seeds.
    """

    arm: str
    cell: dict[str, Any]
    values: dict[Levels, list[float | None]]
    best: Levels


def table_path(study: Study) -> Path:
    """The table of a study's tuning runs."""
    return REPORTS / (study.name + TUNING) / "runs.csv"


def rows(study: Study) -> list[dict[str, str]]:
    """The tuning's runs as their table has them.

    Raises NotHere without a table; UserError for a file that is none.
    """
    path = table_path(study)
    needed = ["arm", "task", "seed", "status", "evaluate_key", study.tuning.response]
    try:
        with path.open(encoding="utf-8", newline="") as file:
            found = list(csv.DictReader(file))
    except FileNotFoundError:
        raise NotHere(
            f"{path} has no runs yet; fitspace tune writes the study that they are made by"
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: no table of runs ({error})") from None
    if missing := [name for name in needed if not found or name not in found[0]]:
        raise UserError(f"{path}: no column {missing[0]!r}, or no row")
    return found


def tried(study: Study, family: str) -> list[Tried]:
    """What was tried for every cell of the arms that are trained.

    Raises
    ------
    NotHere : no table, or one without some of the runs.
    UserError : a table with something else in it; a cell that diverged at every level.
    """
    found = _by_run(study)
    own, problems, missing, parts = study.tuning, [], [], []
    levels = list(itertools.product(*own.factors.values()))
    blocks = [(task.name, str(seed)) for task in own.tasks for seed in own.seeds]
    for arm in (arm for arm in study.arms if arm.method != "none"):
        for factors in legal_cells(arm, family)[0]:
            values = {}
            for level in levels:
                at = factors | dict(zip(own.factors, level, strict=True))
                keys = [(arm.title, *block, *_texts(at)) for block in blocks]
                missing += [key for key in keys if key not in found]
                values[level] = [found.get(key) for key in keys]
            if any(None not in of_level for of_level in values.values()):
                parts.append(Tried(arm.title, factors, values, _best(study, values)))
            else:
                problems.append(
                    f"{arm.title} {factors or ''}: some run diverged at every level; "
                    "allowed: tuning.factors with a level at which none does"
                )
    if missing:
        raise NotHere(
            f"{table_path(study)} lacks {len(missing)} runs, such as {' '.join(missing[0])}; "
            "fitspace tune writes the study that they are made by"
        )
    if problems:
        raise UserError(problems)
    return parts


def chosen(study: Study, family: str) -> dict[tuple[str, str], dict[str, Any]]:
    """(Arm, canonical cell) -> the tuned settings that it takes; errors as `tried` has them."""
    if study.tuning is None:
        return {}
    return {
        (part.arm, canonical(part.cell)): dict(zip(study.tuning.factors, part.best, strict=True))
        for part in tried(study, family)
    }


def _by_run(study: Study) -> dict[tuple[str, ...], float | None]:
    """(Arm, task, seed, levels as text) -> response on its scale, None where it diverged."""
    own, found, problems = study.tuning, {}, []
    factors = {name for arm in study.arms for name in arm.between} | set(own.factors)
    for row in rows(study):
        if row["status"] == "missing":
            continue
        at = {name: text for name, text in row.items() if name in factors and text}
        value = None
        if row["status"] == "ok":
            value = _on_scale(study, row[own.response])
            if value is None:
                problems.append(
                    f"{table_path(study)}: {own.response} is {row[own.response]!r} in a run "
                    f"of {row['arm']}; needed: a number"
                )
        found[row["arm"], row["task"], row["seed"], *_texts(at)] = value
    if problems:
        raise UserError(problems[:5])
    return found


def _texts(levels: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{name}={cell(levels[name])}" for name in sorted(levels))


def _on_scale(study: Study, text: str) -> float | None:
    """A response on the scale of the analysis, where that is log; others as measured, whose means
    rank alike but for skew. None for what is no number on it."""
    try:
        value = float(text)
        value = math.log(value) if is_log(study) else value
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def is_log(study: Study) -> bool:
    """Whether the tuning's response is compared by its logarithm."""
    return study.analysis.transform.get(study.tuning.response) == "log"


def _best(study: Study, values: dict[Levels, list[float | None]]) -> Levels:
    """The level with the best mean, of those at which no run diverged; the first of equals."""
    sign = 1 if metrics.METRICS[study.tuning.response].lower else -1
    sums = {level: math.fsum(of) for level, of in values.items() if None not in of}
    return min(sums, key=lambda level: sign * sums[level])
