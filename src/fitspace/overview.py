"""What `fitspace plan` says before anything runs."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitspace import bases, cost
from fitspace.config import Study, absent
from fitspace.design import (
    Plan,
    Point,
    arm_problems,
    build_plan,
    digests,
    expand,
    legal_cells,
)
from fitspace.errors import UserError
from fitspace.stats.digits import plain

if TYPE_CHECKING:
    import pandas as pd

STAGES = ("prior", "prepare", "reference", "train", "sample", "evaluate")
RATIOS = (0.5, 1.0, 1.5, 2.0, 3.0)  # delta/sigma of the power curve
ALPHA, GOAL = 0.05, 0.8


def describe(
    study: Study,
    *,
    delta: float | None = None,
    sigma: float | None = None,
    pilot: Path | None = None,
) -> dict[str, Any]:
    """A study's plan as plain data: points with their trainables, runs, what is left out, to do.

    ``absent`` names what is not on this machine. Where there is any, keys are not known: runs
    go by their names without one, and ``cached`` and ``to_run`` are None.

    Parameters
    ----------
    delta, sigma : difference of two levels to be found and residual standard deviation, on
        the scale on which the primary response is analysed.
    pilot : runs.csv of a pilot study, for step times, and for sigma where it is not given.
        Without one it is that of the study's own report, if there.

    Raises
    ------
    UserError : as :func:`fitspace.design.build_plan`, but for what is absent; a delta without
        a sigma, numbers out of range, a pilot that cannot be used.
    """
    from fitspace.stats import rows_for_json

    _check(("--delta", delta), ("--sigma", sigma))
    missing = absent(study)
    points, dropped = expand(study)
    plan = None if missing else build_plan(study)
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
        "cost": {
            "pilot": source,
            "flop_per_second": cost.FLOP_PER_SECOND,
            **cost.describe(study, points, plan, trainable, times, taken),
        },
        "absent": missing,
        "digests": digests(study) if plan else None,
        "cached": _counts(plan, done=True) if plan else None,
        "to_run": _counts(plan, done=False) if plan else None,
    }
    return plain(found)


def with_subset(study: Study, n: int) -> Study:
    """The study with ``subset: n`` in every arm that has a factor of two levels or more.

    Raises
    ------
    UserError : a number that is not allowed in one of them, or no such arm.
    """
    crossed = [any(len(levels) > 1 for levels in arm.factors.values()) for arm in study.arms]
    if not any(crossed):
        raise UserError(f"--subset: {n}: no arm has a factor of two levels to choose cells from")
    arms = [
        arm.model_copy(update={"subset": n}) if has_cells else arm
        for arm, has_cells in zip(study.arms, crossed, strict=True)
    ]
    study = study.model_copy(update={"arms": arms})
    if problems := arm_problems(enumerate(arms), study.base, study):
        raise UserError(problems)
    return study


# --- points and runs --------------------------------------------------------------------


def _points(
    study: Study, points: list[Point], times: cost.Times, taken: cost.Taken
) -> list[dict[str, Any]]:
    from fitspace import counting

    counts: dict[str, dict[str, Any]] = {}
    rows = []
    for point in points:
        # Points that differ in training alone have one count.
        form = json.dumps([point.method, point.settings], sort_keys=True)
        if form not in counts:
            counts[form] = counting.count(study.base, point.method, point.settings)
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


def _counts(plan: Plan, done: bool) -> dict[str, int]:
    """Stages by name whose sidecar is there, or is not."""
    found = Counter(s.name for s in plan.stages.values() if s.sidecar.exists() == done)
    return {name: found[name] for name in STAGES}


def _subsets(study: Study, points: list[Point]) -> list[dict[str, Any]]:
    """Arms that run part of their legal cells: which, and how efficient that part is."""
    import pandas as pd

    from fitspace.stats import d_efficiency

    family = bases.family(study.base)
    rows = []
    for arm in study.arms:
        if arm.subset is None:
            continue
        legal, _ = legal_cells(arm, family)
        chosen = [p.factors for p in points if p.arm == arm.title]
        cells, factors = pd.DataFrame(legal), list(arm.factors)
        part = cells.iloc[[legal.index(cell) for cell in chosen]]
        row = {"arm": arm.title, "legal": len(legal), "cells": chosen}
        rows.append(row | {"d_efficiency": d_efficiency(part, cells, factors)})
    return rows


# --- the design -------------------------------------------------------------------------


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
        ]
    )
    return rows[in_design(rows, study.analysis.factors)]


def _components(design: pd.DataFrame, factors: list[str]) -> list[list[dict[str, Any]]]:
    """Cells by connected component, the largest first: effects compare within one only."""
    from fitspace.stats import components

    found = components(design, factors)
    return [part[factors].to_dict("records") for _, part in found.groupby("component", sort=True)]


def _tables(design: pd.DataFrame, factors: list[str]) -> dict[str, Any]:
    """What is estimable, how factors go together, and notes; empty where nothing can be."""
    import pandas as pd

    from fitspace.stats import association, estimable

    # Tasks and seeds are crossed with every cell: they take nothing from its effects.
    cells = design.drop_duplicates(factors)
    try:
        effects, pairs = estimable(cells, factors, ()), association(cells, factors)
    except UserError as error:
        empty = pd.DataFrame()
        return {"effects": empty, "association": empty, "notes": error.problems}
    return {"effects": effects, "association": pairs, "notes": effects.attrs["notes"]}


# --- power ------------------------------------------------------------------------------


def _check(*options: tuple[str, float | None]) -> None:
    problems = [
        f"{name}: {value!r}; allowed: a finite number above 0"
        for name, value in options
        if value is not None and not 0 < value < math.inf
    ]
    if problems:
        raise UserError(problems)


def _recorded(study: Study, pilot: Path | None) -> tuple[pd.DataFrame | None, str | None]:
    """A pilot study's table, and its path: the one named, else the study's own, if there."""
    from fitspace.stats.linear import missing_columns
    from fitspace.stats.reading import read_text
    from fitspace.table import REPORTS

    path = pilot or REPORTS / study.name / "runs.csv"
    if pilot is None and not path.exists():
        return None, None
    table = read_text(path)
    if problems := missing_columns(table, ["method", "status"]):
        raise UserError(f"{path}: {problem}" for problem in problems)
    return table, str(path)


def _sigma(
    study: Study,
    given: float | None,
    recorded: pd.DataFrame | None,
    source: str | None,
    named: bool,
) -> dict[str, Any]:
    """Residual standard deviation of the primary response: as given, else the pilot's.

    A pilot that was ``named`` and cannot tell it is an error; of another ``note`` says why.
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
    try:
        found = pilot_sigma(recorded, response, study.analysis.factors, transform=transform)
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
    """Power per factor over delta/sigma, the smallest found, and at a delta what it takes."""
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
    try:
        smallest = detectable(design, factors, goal=GOAL, alpha=ALPHA)
    except UserError:  # no factor has two levels: the notes say so
        return facts
    tests = power(design, factors, delta=1, sigma=1, alpha=ALPHA)[["factor", "df", "residual_df"]]
    facts["factors"] = rows_for_json(tests.assign(detectable=smallest["difference"]))
    curve = rows_for_json(power_curve(design, factors, ratios=RATIOS, alpha=ALPHA))
    for row in facts["factors"]:
        ours = [point for point in curve if point["factor"] == row["factor"]]
        row["power"] = {f"{point['ratio']:g}": point["power"] for point in ours}
    if delta is not None:
        per_seed = len(points) * len(study.tasks)
        facts["at_delta"] = _at(design, factors, delta, spread, per_seed)
    return facts


def _at(
    design: pd.DataFrame,
    factors: list[str],
    delta: float,
    spread: dict[str, Any],
    per_seed: int,
) -> list[dict[str, Any]]:
    """Per factor: power, seeds and the study's runs needed, at sigma and its upper limit."""
    import pandas as pd

    from fitspace.stats import power, rows_for_json, runs_needed

    rows: dict[str, dict[str, Any]] = {}
    for suffix, sigma in (("", spread["sigma"]), ("_at_high", spread["high"])):
        if sigma is None:
            continue
        both = {"delta": delta, "sigma": sigma, "alpha": ALPHA}
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


# --- as text ----------------------------------------------------------------------------


def render(overview: dict[str, Any]) -> str:
    """The overview as text for a terminal."""
    sections = (
        _render_points(overview),
        _render_cells(overview),
        _render_effects(overview),
        _render_power(overview["power"]),
        _render_cost(overview),
        _render_stages(overview),
    )
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _render_points(overview: dict[str, Any]) -> list[str]:
    rows = [
        [
            p["point"],
            f"{p['trainable']:,}",
            f"{p['percent']:.3f}",
            "-" if p["memory"]["train"] is None else _bytes(p["memory"]["train"]),
            "-" if p["step_flop"] is None else f"{p['step_flop'] / 1e12:.3g}",
        ]
        for p in overview["points"]
    ]
    header = ["point", "trainable", "% of base", "memory", "TFLOP a step"]
    if all(p["step_flop"] is None for p in overview["points"]):
        header, rows = header[:-1], [row[:-1] for row in rows]
    return [
        f"study {overview['study']}: {len(overview['points'])} points × "
        f"{len(overview['tasks'])} tasks × {len(overview['seeds'])} seeds = "
        f"{len(overview['runs'])} runs",
        "",
        *_aligned(header, rows),
    ]


def _render_cells(overview: dict[str, Any]) -> list[str]:
    lines = []
    if overview["illegal_cells"]:
        lines.append(f"left out, {len(overview['illegal_cells'])} illegal cells:")
        lines += [f"  {cell}" for cell in overview["illegal_cells"]]
    for subset in overview["subsets"]:
        lines.append(
            f"{subset['arm']}: {len(subset['cells'])} of {subset['legal']} legal cells, chosen "
            f"D-optimally for the main effects; D-efficiency per run against all of them: "
            f"{subset['d_efficiency']:.3f}"
        )
        lines += [f"  {', '.join(f'{k}={v}' for k, v in cell.items())}" for cell in subset["cells"]]
    groups = overview["components"]
    if len(groups) > 1:
        sizes = ", ".join(str(len(g)) for g in groups)
        lines.append(
            f"{len(groups)} unconnected parts of {sizes} cells: effects are not comparable "
            "between them; effects and power are of the first"
        )
    return lines


def _render_effects(overview: dict[str, Any]) -> list[str]:
    if not overview["effects"]:
        return overview["notes"]
    rows = [
        [e["effect"], str(e["df"]), str(e["nominal_df"]), _aliased(e)] for e in overview["effects"]
    ]
    lines = ["estimable effects: degrees of freedom, and of how many"]
    lines += _aligned(["effect", "df", "of", ""], rows, left=(0, 3))
    lines += overview["notes"]
    together = [a for a in overview["association"] if a["canonical"] > 1e-6]
    for a in together:
        lines.append(
            f"{a['factor']} and {a['other']} go together: Cramér's V {a['cramers_v']:.2f}, "
            f"canonical correlation {a['canonical']:.2f} (1: aliased)"
        )
    if overview["association"] and not together:
        lines.append("all factors are orthogonal to each other")
    return lines


def _aliased(effect: dict[str, Any]) -> str:
    others, whole = effect["aliased_with"], effect["df"] == effect["nominal_df"]
    if not others:
        return "" if whole else "the rest has no cells"
    named = ", ".join(others[:6]) + (f" and {len(others) - 6} more" if len(others) > 6 else "")
    if whole:
        return f"if {named} are nil, with which it is aliased"
    return f"{'the rest ' if effect['df'] else ''}aliased with {named}"


def _render_power(power: dict[str, Any]) -> list[str]:
    if not power["factors"]:
        return []
    spread = power["sigma"]
    scale = "as measured" if spread["scale"] == "identity" else f"on the scale {spread['scale']}"
    ratios = list(power["factors"][0]["power"])
    rows = [
        [f["factor"], str(f["df"]), _text(f["residual_df"])]
        + [_text(f["power"][r], ".2f") for r in ratios]
        + [_text(f["detectable"], ".2f")]
        for f in power["factors"]
    ]
    return [
        f"power with {power['runs']} runs by delta/sigma, of {power['response']} {scale}:",
        f"each factor's F test at level {power['alpha']:g}, before Holm, where two levels are "
        "delta",
        "apart and the others at their mean; of all pairs of levels the hardest",
        *_aligned(["factor", "df", "error df", *ratios, f"{power['goal']:.0%} at"], rows),
        *_render_sigma(power),
        *_render_at(power),
    ]


def _render_sigma(power: dict[str, Any]) -> list[str]:
    spread = power["sigma"]
    if spread["sigma"] is None:
        why = spread["note"] or "name a pilot study's runs.csv with --pilot, or --sigma"
        return [f"sigma, the residual standard deviation, is not known: {why}"]
    limits = ""
    if spread["high"] is not None:
        limits = f" (95% limits {spread['low']:.4g} to {spread['high']:.4g}, df {spread['df']})"
    reach = ", ".join(
        f"{f['factor']} {f['detectable'] * spread['sigma']:.4g}"
        for f in power["factors"]
        if f["detectable"] is not None
    )
    lines = [f"sigma {spread['sigma']:.4g}{limits}, from {spread['source']}"]
    if reach:
        lines.append(f"so the smallest delta found with {power['goal']:.0%} power: {reach}")
    return lines


def _render_at(power: dict[str, Any]) -> list[str]:
    if power["at_delta"] is None:
        return []
    parts = [("sigma", "")]
    if power["sigma"]["high"] is not None:
        parts.append(("sigma's upper limit", "_at_high"))
    lines = []
    for name, suffix in parts:
        rows = [
            [row["factor"], _text(row[f"power{suffix}"], ".2f")]
            + [_text(row[f"{key}{suffix}"], ",") for key in ("seeds", "study_runs")]
            for row in power["at_delta"]
        ]
        header = ["factor", "power", f"seeds for {power['goal']:.0%}", "runs of the study"]
        lines += ["", f"at delta {power['delta']:g} and {name}", *_aligned(header, rows)]
    return lines


def _render_cost(overview: dict[str, Any]) -> list[str]:
    found = overview["cost"]
    scopes = {name: found[key] for name, key in (("in all", "total"), ("to run", "to_run"))}
    scopes = {name: scope for name, scope in scopes.items() if scope is not None}
    rows = [
        [
            name,
            f"{scope['runs']:,}",
            _hours(scope, found["flop_per_second"]),
            _bytes(scope["bytes"]["adapters"]),
            _bytes(scope["bytes"]["samples"]),
        ]
        for name, scope in scopes.items()
    ]
    lines = ["cost", *_aligned(["", "runs", "hours", "adapters", "samples"], rows)]
    lines.append("hours of training and sampling, one job after another; evaluation is not in them")
    unknown = found["total"]["seconds"]["unknown"]
    if found["pilot"] is not None:
        lines += [
            f"hours and memory: each method's medians in {found['pilot']},",
            "so on their hardware and with their batches",
        ]
    if unknown:
        work = found["total"]["flop"]
        others = "" if found["pilot"] is None else f" of {', '.join(unknown)}"
        lines += [
            f"hours{others} by {work['train'] / 1e15:,.0f} PFLOP of training and "
            f"{work['sample'] / 1e15:,.0f} of sampling, at {found['flop_per_second'] / 1e12:g} "
            "TFLOP/s; a runs.csv",
            "of finished runs, named by --pilot, tells the times of a machine",
            f"memory{others} of a training step, estimated: weights, gradients, AdamW's moments, "
            "what",
            "backward needs; the weights that sampling needs are "
            f"{_bytes(max(p['memory']['sample'] or 0 for p in overview['points']))}",
        ]
    return lines


def _hours(scope: dict[str, Any], flop_per_second: float) -> str:
    seconds, flop = scope["seconds"], scope["flop"]
    counted = (flop["train"] + flop["sample"]) / flop_per_second
    return f"{(seconds['train'] + seconds['sample'] + counted) / 3600:,.2f}"


def _bytes(count: int | None) -> str:
    if count is None:
        return "not known"
    power = max(0, min(4, (len(str(count)) - 1) // 3))
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _render_stages(overview: dict[str, Any]) -> list[str]:
    if overview["absent"]:
        absences = [f"  {missing}" for missing in overview["absent"]]
        return ["what is cached cannot be said before all is here:", *absences]
    rows = [
        [name, str(overview["cached"][name]), str(overview["to_run"][name])]
        for name in STAGES
        if overview["cached"][name] + overview["to_run"][name]
    ]
    pins = [f"{key}: {value}" for key, value in overview["digests"].items()]
    return [*_aligned(["stage", "cached", "to run"], rows), "", *pins]


def _text(value: float | None, form: str = "") -> str:
    return "-" if value is None else format(value, form)


def _aligned(
    header: list[str], rows: Iterable[list[str]], left: tuple[int, ...] = (0,)
) -> list[str]:
    """Rows under their header, columns two spaces apart, those in ``left`` to the left."""
    table = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
