"""Paths within a project's folder."""

from __future__ import annotations

from pathlib import Path

RESULTS = Path("results")  # all large files, by key; not in git
REPORTS = Path("reports")  # a folder per study; in git
UNCOMMITTED = "uncommitted.json"  # in a report's folder: what was not in git when it was recorded
