"""The content of `fitspace plan`, as data."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitspace import bases, metrics
from fitspace.core.errors import UserError
from fitspace.core.files import read_json
from fitspace.plan import cost
from fitspace.plan.checks import arm_problems
from fitspace.plan.keys import Plan, build_plan
from fitspace.plan.looks import own_rows
from fitspace.plan.models import Models
from fitspace.plan.points import Point, legal_cells, own_drawing
from fitspace.plan.table import STAGES
from fitspace.stats.digits import plain
from fitspace.study import CHECKPOINT, Study
from fitspace.study.tuning import derived

if TYPE_CHECKING:
    import pandas as pd


RATIOS = (0.5, 1.0, 1.5, 2.0, 3.0)  # delta/sigma of the power curve
ALPHA, GOAL = 0.05, 0.8


def describe(
    study: Study,
    models: Models | None = None,
    *,
    delta: float | None = None,
    sigma: float | None = None,
    pilot: Path | None = None,
) -> dict[str, Any]:
    """A study's plan as plain data: points, runs, cells left out, effects, power, cost, stages.

    ``absent`` names everything that is not on this machine. If anything is absent, keys are
    unknown: runs are named without their keys, and ``cached`` and ``to_run`` are None.

    Parameters
    ----------
    models : the study's, if they were looked at already.
    delta, sigma : difference between two levels to detect, and residual standard deviation, on
        the scale on which the primary response is analysed.
    pilot : runs.csv of a pilot study, for step times, and for sigma if it is not given.
        Default: that of the study's own report, if it exists.

    Raises
    ------
    UserError : as :func:`fitspace.plan.build_plan`, except for absent models and data; a delta
        without a sigma, numbers out of range, a pilot that cannot be used.
    """
    from fitspace.stats import rows_for_json

    _check(("--delta", delta), ("--sigma", sigma))
    models = models or Models(study)
    missing = models.absent
    points, dropped = models.points
    plan = None if missing else build_plan(study, models)
    recorded, source = _recorded(study, pilot)
    design, factors = _design(study, points), study.analysis.factors
    spread = _sigma(study, sigma, recorded, source, named=pilot is not None)
    if delta is not None and spread["sigma"] is None:
        why = f" ({spread['note']})" if spread["note"] else ""
        raise UserError(f"--delta: {delta}: sigma is not known{why}; give --sigma or --pilot")
    tables = _tables(design, factors)
    times = {} if recorded is None else cost.step_times(recorded)
    taken = cost.footprints(study, points, times)
    counted = _points(study, points, times, taken)
    trainable = {row["point"]: row["trainable"] for row in counted}
    found = {
        "study": study.name,
        "tasks": [t.name for t in study.tasks],
        "seeds": study.seeds,
        "points": counted,
        "runs": [run.name for run in plan.runs] if plan else _unkeyed(study, points),
        "illegal_cells": dropped,
        "subsets": _subsets(study, points),
        "components": _components(design, factors),
        "effects": rows_for_json(tables["effects"]),
        "association": rows_for_json(tables["association"]),
        "power": _power(study, design, points, delta, spread),
        "notes": tables["notes"],
        "tuning": _tuning(study, models),
        "metrics": _metrics(study),
        "evaluation": _evaluation(study, plan),
        "cost": {
            "pilot": source,
            "flop_per_second": cost.FLOP_PER_SECOND,
            **cost.describe(study, points, plan, trainable, times, taken),
        },
        "absent": missing,
        "digests": models.held if plan else None,
        "cached": stage_counts(plan, done=True) if plan else None,
        "to_run": stage_counts(plan, done=False) if plan else None,
    }
    return plain(found)


def _tuning(study: Study, models: Models) -> dict[str, Any] | None:
    """The study whose runs choose settings: its points and runs, the settings, and whether they
    are chosen."""
    if study.tuning is None:
        return None
    own = derived(study)
    points, _ = models.of(own).points
    return {
        "study": own.name,
        "settings": list(study.tuning.factors),
        "points": len(points),
        "runs": len(points) * len(own.tasks) * len(own.seeds),
        "chosen": models.here("tuning"),
    }


def _metrics(study: Study) -> list[dict[str, Any]]:
    """What each run is measured by: its better direction, its extractor, the tasks with it."""
    of_task = {task.name: study.measured_of(task.dreambooth is not None) for task in study.tasks}
    return [
        {
            "metric": name,
            "label": row.label,
            "better": "lower" if row.lower else "higher",
            "extractor": row.extractor or "pixels",
            "further": row.measure is not None,
            "tasks": [task for task, names in of_task.items() if name in names],
        }
        for name, row in metrics.METRICS.items()
        if any(name in names for names in of_task.values())
    ]


def _evaluation(study: Study, plan: Plan | None) -> dict[str, Any]:
    """What a run's evaluation costs: ``images`` of each extractor, the most of any task;
    ``seconds``, the median of the plan's ``runs`` that are evaluated."""
    images: dict[str, int] = {}
    for task in study.tasks:
        of_subject = task.dreambooth is not None
        most = cost.images(study, task)
        others = metrics.extractors_of(study.measured_of(of_subject)) - {metrics.JUDGE}
        own = dict.fromkeys(sorted(others), most if not of_subject else study.sample.prompts)
        for name, count in ({metrics.JUDGE: most} | own).items():
            images[name] = max(count, images.get(name, 0))
    taken = [_seconds(run.evaluate.sidecar) for run in plan.runs] if plan else []
    found = [seconds for seconds in taken if isinstance(seconds, float)]
    seconds = statistics.median(found) if found else None
    return {"images": images, "seconds": seconds, "runs": len(found)}


def _seconds(sidecar: Path) -> Any:
    try:
        return read_json(sidecar)["facts"]["seconds"]
    except (UserError, LookupError, TypeError):  # none yet; a stage says what is wrong with one
        return None


def with_subset(study: Study, models: Models, n: int) -> tuple[Study, Models]:
    """The study with ``subset: n`` in every arm that has a factor of two levels or more; and what
    it names outside itself.

    Raises
    ------
    UserError : a number that one of these arms does not allow, or no such arm.
    """
    crossed = [any(len(levels) > 1 for levels in arm.between.values()) for arm in study.arms]
    if not any(crossed):
        raise UserError(f"--subset: {n}: no arm has a factor of two levels to choose cells from")
    arms = [
        arm.model_copy(update={"subset": n}) if has_cells else arm
        for arm, has_cells in zip(study.arms, crossed, strict=True)
    ]
    study = study.model_copy(update={"arms": arms})
    models = models.of(study)
    if problems := arm_problems(enumerate(arms), study.base, models):
        raise UserError(problems)
    return study, models


def _points(
    study: Study, points: list[Point], times: cost.Times, taken: cost.Taken
) -> list[dict[str, Any]]:
    from fitspace.plan import counting

    counts: dict[str, dict[str, Any]] = {}
    rows = []
    for point in points:
        # Points that differ only in training settings share one count.
        form = json.dumps([point.method, point.settings, point.learnt], sort_keys=True)
        if form not in counts:
            counts[form] = counting.count(study.base, point.method, point.settings, point.learnt)
        rows.append(
            {
                "point": point.name,
                "arm": point.arm,
                "factors": point.factors,
                "trainable": counts[form]["trainable"],
                "percent": counts[form]["percent"],
                "memory": cost.memory(study, point, times, taken),
                "step_flop": cost.step_flop(study, point, times, taken),
            }
        )
    return rows


def _unkeyed(study: Study, points: list[Point]) -> list[str]:
    return [
        f"{point.name}~{task.name}~s{seed}"
        for seed in study.seeds
        for task in study.tasks
        for point in points
    ]


def stage_counts(plan: Plan, done: bool) -> dict[str, int]:
    """Number of stages by name, of those that are ``done`` or of the others."""
    found = Counter(s.name for s in plan.stages.values() if s.sidecar.exists() == done)
    return {name: found[name] for name in STAGES}


def _subsets(study: Study, points: list[Point]) -> list[dict[str, Any]]:
    """Arms that run a subset of their legal cells: the cells and the subset's D-efficiency."""
    import pandas as pd

    from fitspace.stats import d_efficiency

    family = bases.family(study.base).name
    rows = []
    for arm in study.arms:
        if arm.subset is None:
            continue
        legal, _ = legal_cells(arm, family)
        chosen = [p.factors for p in points if p.arm == arm.title and own_drawing(study, p)]
        chosen = [{name: cell[name] for name in arm.between} for cell in chosen]
        cells, factors = pd.DataFrame(legal), list(arm.between)
        part = cells.iloc[[legal.index(cell) for cell in chosen]]
        row = {"arm": arm.title, "legal": len(legal), "cells": chosen}
        rows.append(row | {"d_efficiency": d_efficiency(part, cells, factors)})
    return rows


def _design(study: Study, points: list[Point]) -> pd.DataFrame:
    """One row per planned run that is analysed: its factors, task and seed."""
    import pandas as pd

    from fitspace.stats import in_design

    rows = pd.DataFrame(
        [
            p.factors | {"arm": p.arm, "method": p.method, "task": task.name, "seed": seed}
            for seed in study.seeds
            for task in study.tasks
            for p in points
            if own_drawing(study, p)
        ]
    )
    return rows[in_design(rows, study.analysis.factors)]


def _components(design: pd.DataFrame, factors: list[str]) -> list[list[dict[str, Any]]]:
    """Cells by connected component, the largest first; effects compare only within one."""
    from fitspace.stats import components

    found = components(design, factors)
    return [part[factors].to_dict("records") for _, part in found.groupby("component", sort=True)]


def _tables(design: pd.DataFrame, factors: list[str]) -> dict[str, Any]:
    """Estimable effects, associations of factors, and notes; empty if nothing is estimable."""
    import pandas as pd

    from fitspace.stats import association, estimable

    # Tasks and seeds are crossed with every cell, so they do not affect estimability.
    cells = design.drop_duplicates(factors)
    try:
        effects, pairs = estimable(cells, factors, ()), association(cells, factors)
    except UserError as error:
        empty = pd.DataFrame()
        return {"effects": empty, "association": empty, "notes": error.problems}
    return {"effects": effects, "association": pairs, "notes": effects.attrs["notes"]}


def _check(*options: tuple[str, float | None]) -> None:
    problems = [
        f"{name}: {value!r}; allowed: a finite number above 0"
        for name, value in options
        if value is not None and not 0 < value < math.inf
    ]
    if problems:
        raise UserError(problems)


def _recorded(study: Study, pilot: Path | None) -> tuple[pd.DataFrame | None, str | None]:
    """A pilot study's table and path: the named one, else the study's own, if it exists."""
    from fitspace.core.paths import REPORTS
    from fitspace.stats.linear import missing_columns
    from fitspace.stats.reading import read_text

    path = pilot or REPORTS / study.name / "runs.csv"
    if pilot is None and not path.exists():
        return None, None
    table = read_text(path)
    needed = ["method", "status", *(["steps"] if CHECKPOINT in table else [])]
    if problems := missing_columns(table, needed):
        raise UserError(f"{path}: {problem}" for problem in problems)
    return table, str(path)


def _sigma(
    study: Study,
    given: float | None,
    recorded: pd.DataFrame | None,
    source: str | None,
    named: bool,
) -> dict[str, Any]:
    """Residual standard deviation of the primary response: as given, else from the pilot.

    If the pilot cannot give it, this is an error for a ``named`` pilot; otherwise ``note`` gives
    the reason.
    """
    from fitspace.stats import pilot_sigma

    response, *_ = study.analysis.responses
    transform = study.analysis.transform.get(response)
    unknown = dict.fromkeys(("sigma", "low", "high", "df", "source", "note"))
    unknown["scale"] = transform or "identity"
    if given is not None:
        return unknown | {"sigma": given, "source": "--sigma"}
    if recorded is None:
        return unknown
    runs = recorded[own_rows(study, recorded)]  # one of each training
    try:
        found = pilot_sigma(runs, response, study.analysis.factors, transform=transform)
    except UserError as error:
        problems = [f"{source}: {problem}" for problem in error.problems]
        if named:
            raise UserError(problems) from None
        return unknown | {"note": "; ".join(problems)}
    return unknown | asdict(found) | {"source": source}


def _power(
    study: Study,
    design: pd.DataFrame,
    points: list[Point],
    delta: float | None,
    spread: dict[str, Any],
) -> dict[str, Any]:
    """Power per factor over delta/sigma, the smallest detectable ratio, and power at a delta."""
    from fitspace.stats import detectable, power, power_curve, rows_for_json

    facts = {
        "response": study.analysis.responses[0],
        "alpha": ALPHA,
        "goal": GOAL,
        "runs": len(design),
        "delta": delta,
        "sigma": spread,
        "factors": [],
        "at_delta": None,
    }
    factors = study.analysis.factors
    level = {"alpha": ALPHA, "family": len(factors)}
    try:
        smallest = detectable(design, factors, goal=GOAL, **level)
    except UserError:  # no factor has two levels, as the notes say
        return facts
    tests = power(design, factors, delta=1, sigma=1, **level)[["factor", "df", "residual_df"]]
    facts["factors"] = rows_for_json(tests.assign(detectable=smallest["difference"]))
    curve = rows_for_json(power_curve(design, factors, ratios=RATIOS, **level))
    for row in facts["factors"]:
        ours = [point for point in curve if point["factor"] == row["factor"]]
        row["power"] = {f"{point['ratio']:g}": point["power"] for point in ours}
    if delta is not None:
        per_seed = sum(own_drawing(study, p) for p in points) * len(study.tasks)
        facts["at_delta"] = _at(design, factors, delta, spread, per_seed)
    return facts


def _at(
    design: pd.DataFrame,
    factors: list[str],
    delta: float,
    spread: dict[str, Any],
    per_seed: int,
) -> list[dict[str, Any]]:
    """Per factor: power, seeds and runs needed, at sigma and at its upper limit."""
    import pandas as pd

    from fitspace.stats import power, rows_for_json, runs_needed

    rows: dict[str, dict[str, Any]] = {}
    for suffix, sigma in (("", spread["sigma"]), ("_at_high", spread["high"])):
        if sigma is None:
            continue
        both = {"delta": delta, "sigma": sigma, "alpha": ALPHA, "family": len(factors)}
        found = power(design, factors, **both)
        needed = runs_needed(design, factors, goal=GOAL, **both)
        seeds = [None if pd.isna(count) else int(count) for count in needed["seeds"]]
        runs = [None if count is None else count * per_seed for count in seeds]
        found = found.assign(seeds=pd.Series(seeds, dtype=object), study_runs=runs)
        for row in rows_for_json(found):
            name = row["factor"]
            told = {f"{key}{suffix}": row[key] for key in ("power", "seeds", "study_runs")}
            rows[name] = rows.get(name, {"factor": name}) | told
    return list(rows.values())
