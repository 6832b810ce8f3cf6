"""What a study will do: points, runs, the stages with their keys, checks and costs.

Names are taken from their modules when they are asked for: the command line, which reads the
table of stages alone, starts without what a plan needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "checks": (
        "analysable",
        "arm_problems",
        "checked",
        "load_study",
        "looked",
        "planned",
        "trains_classes",
        "usable",
    ),
    "keys": ("KEY_LENGTH", "Plan", "Run", "Stage", "build_plan", "unchanged"),
    "models": ("Models", "fetch"),
    "points": ("Point", "chosen_cells", "expand", "legal_cells"),
    "table": ("STAGES",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
