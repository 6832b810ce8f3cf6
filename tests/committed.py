"""The reports in git, and copies of what they are made from."""

from __future__ import annotations

import shutil
from pathlib import Path

from fitspace.audit.regenerate import INPUTS

ROOT = Path(__file__).parents[1]
REPORTS = sorted(path.parent.name for path in ROOT.glob("reports/*/runs.csv"))


def copy_inputs(name: str, folder: Path) -> Path:
    """A committed report's tables and pictures, not what is made of them; returns the folder."""
    for drawn in ("gallery", "explained"):
        if (ROOT / "reports" / name / drawn).exists():
            shutil.copytree(ROOT / "reports" / name / drawn, folder / drawn)
    folder.mkdir(exist_ok=True)
    for file in INPUTS:
        if (ROOT / "reports" / name / file).exists():
            shutil.copy(ROOT / "reports" / name / file, folder / file)
    return folder
