"""What `fitspace plan` says before anything runs."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fitspace.config import Study, absent
from fitspace.design import Plan, Point, build_plan, expand

STAGES = ("prior", "prepare", "reference", "train", "sample", "evaluate")


def describe(study: Study) -> dict[str, Any]:
    """A study's plan as plain data: points with their trainables, runs, what is left out, to do.

    ``absent`` names what is not on this machine. Where there is any, keys are not known: runs
    go by their names without one, and ``cached`` and ``to_run`` are None.

    Raises
    ------
    UserError : as :func:`fitspace.design.build_plan`, but for what is absent.
    """
    missing = absent(study)
    points, dropped = expand(study)
    plan = None if missing else build_plan(study)
    return {
        "study": study.name,
        "tasks": [t.name for t in study.tasks],
        "seeds": study.seeds,
        "points": _points(study, points),
        "runs": [run.name for run in plan.runs] if plan else _unkeyed(study, points),
        "illegal_cells": dropped,
        "components": _components(points, study.analysis.factors),
        "absent": missing,
        "cached": _counts(plan, done=True) if plan else None,
        "to_run": _counts(plan, done=False) if plan else None,
    }


def _points(study: Study, points: list[Point]) -> list[dict[str, Any]]:
    from fitspace import counting

    rows = []
    for point in points:
        count = counting.count(study.base, point.method, point.settings)
        rows.append(
            {
                "point": point.name,
                "arm": point.arm,
                "factors": point.factors,
                "trainable": count["trainable"],
                "percent": count["percent"],
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


def _components(points: list[Point], factors: list[str]) -> list[list[dict[str, Any]]]:
    """Cells by connected component, the largest first: effects compare within one only."""
    import pandas as pd

    from fitspace.stats import components

    columns = [p.factors | {"arm": p.arm, "method": p.method} for p in points]
    cells = [c for c in columns if all(f in c for f in factors)]
    if not cells:
        return []
    found = components(pd.DataFrame(cells)[factors], factors)
    return [part[factors].to_dict("records") for _, part in found.groupby("component", sort=True)]


def render(overview: dict[str, Any]) -> str:
    """The overview as text for a terminal."""
    width = max(len(p["point"]) for p in overview["points"])
    lines = [
        f"study {overview['study']}: {len(overview['points'])} points × "
        f"{len(overview['tasks'])} tasks × {len(overview['seeds'])} seeds = "
        f"{len(overview['runs'])} runs",
        "",
        f"{'point':<{width}}  {'trainable':>12}  {'% of base':>9}",
    ]
    lines += [
        f"{p['point']:<{width}}  {p['trainable']:>12,}  {p['percent']:>9.3f}"
        for p in overview["points"]
    ]
    if overview["illegal_cells"]:
        lines += ["", f"left out, {len(overview['illegal_cells'])} illegal cells:"]
        lines += [f"  {cell}" for cell in overview["illegal_cells"]]
    groups = overview["components"]
    if len(groups) > 1:
        sizes = ", ".join(str(len(g)) for g in groups)
        lines += ["", f"{len(groups)} unconnected parts of {sizes} cells: effects are not "
                  "comparable between them"]  # fmt: skip
    if overview["absent"]:
        lines += ["", "what is cached cannot be said before all is here:"]
        lines += [f"  {missing}" for missing in overview["absent"]]
        return "\n".join(lines)
    lines += ["", "stage      cached  to run"]
    lines += [
        f"{name:<10} {overview['cached'][name]:>6}  {overview['to_run'][name]:>6}"
        for name in STAGES
        if overview["cached"][name] + overview["to_run"][name]
    ]
    return "\n".join(lines)
