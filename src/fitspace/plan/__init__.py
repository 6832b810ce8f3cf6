"""What a study will do: points, runs, the stages with their keys, checks and costs."""

from fitspace.plan.checks import arm_problems, checked, load_study, planned
from fitspace.plan.keys import KEY_LENGTH, Plan, Run, Stage, build_plan, unchanged
from fitspace.plan.models import Models, fetch
from fitspace.plan.points import Point, chosen_cells, expand, legal_cells
from fitspace.plan.table import STAGES

__all__ = [
    "KEY_LENGTH",
    "STAGES",
    "Models",
    "Plan",
    "Point",
    "Run",
    "Stage",
    "arm_problems",
    "build_plan",
    "checked",
    "chosen_cells",
    "expand",
    "fetch",
    "legal_cells",
    "load_study",
    "planned",
    "unchanged",
]
