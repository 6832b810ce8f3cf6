"""What `fitspace plan` says before anything runs."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fitspace.design import Plan


def describe(plan: Plan) -> dict[str, Any]:
    """A plan as plain data: points with their trainables, runs, what is left out and to do."""
    from fitspace import counting

    study = plan.study
    points = []
    for point in plan.points:
        count = counting.count(study.base, point.method, point.settings)
        points.append(
            {
                "point": point.name,
                "arm": point.arm,
                "factors": point.factors,
                "trainable": count["trainable"],
                "percent": count["percent"],
            }
        )
    factors = study.analysis.factors
    columns = [p.factors | {"arm": p.arm, "method": p.method} for p in plan.points]
    cells = [c for c in columns if all(f in c for f in factors)]
    to_do = Counter(stage.name for stage in plan.stages.values() if not stage.sidecar.exists())
    return {
        "study": study.name,
        "tasks": [t.name for t in study.tasks],
        "seeds": study.seeds,
        "points": points,
        "runs": [run.name for run in plan.runs],
        "illegal_cells": plan.dropped,
        "components": _components(cells, factors),
        "cached": {
            name: sum(s.name == name for s in plan.stages.values()) - to_do[name]
            for name in ("prepare", "reference", "train", "sample", "evaluate")
        },
        "to_run": dict(to_do),
    }


def _components(cells: list[dict[str, Any]], factors: list[str]) -> list[list[dict[str, Any]]]:
    """Cells by connected component, the largest first: effects compare within one only."""
    import pandas as pd

    from fitspace.stats import components

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
    lines += ["", "stage      cached  to run"]
    lines += [
        f"{name:<10} {cached:>6}  {overview['to_run'].get(name, 0):>6}"
        for name, cached in overview["cached"].items()
    ]
    return "\n".join(lines)
