"""What a study will do: points, runs, the stages with their keys, checks and costs.

Names are imported from their modules on first use, so that the command line, which needs only the
table of stages, starts fast.
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
        "too_many_prompts",
        "trains_classes",
        "usable",
    ),
    "keys": ("KEY_LENGTH", "Plan", "Run", "Stage", "build_plan", "unchanged"),
    "models": ("Models", "fetch"),
    "points": ("Point", "chosen_cells", "expand", "legal_cells", "own_drawing"),
    "table": ("ENDS", "STAGES", "TOLD"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
