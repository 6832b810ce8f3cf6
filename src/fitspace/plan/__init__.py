"""What a study will do: points, runs, the stages with their keys, checks and costs."""

from fitspace.plan.checks import arm_problems, load_study
from fitspace.plan.keys import KEY_LENGTH, Plan, Run, Stage, build_plan, unchanged
from fitspace.plan.models import absent, digests, fetch, pins
from fitspace.plan.points import Point, chosen_cells, expand, legal_cells
from fitspace.plan.table import VERSIONS

__all__ = [
    "KEY_LENGTH",
    "Plan",
    "Point",
    "Run",
    "Stage",
    "VERSIONS",
    "absent",
    "arm_problems",
    "build_plan",
    "chosen_cells",
    "digests",
    "expand",
    "fetch",
    "legal_cells",
    "load_study",
    "pins",
    "unchanged",
]
