"""Where a project keeps what, from its folder on."""

from __future__ import annotations

from pathlib import Path

RESULTS = Path("results")  # everything heavy, by key; not in git
REPORTS = Path("reports")  # a folder a study; in git
UNCOMMITTED = "uncommitted.json"  # in a report's folder: what git had not when it was recorded
