"""docs/explore.ipynb: every cell runs, and what it shows is there."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import nbformat
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """The notebook in a folder that looks like the project, so that nothing is written into it."""
    for name in ("reports", "models"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path / "docs")
    matplotlib.use("Agg")
    return nbformat.read(ROOT / "docs/explore.ipynb", as_version=4)


def test_every_cell_runs_from_the_first_to_the_last(notebook, tmp_path):
    nbformat.validate(notebook)
    names: dict = {}
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            exec(compile(cell.source, f"cell {number}", "exec"), names)
    assert len(names["both"]) == 4 and names["base"].size[0] >= 32
    assert len(names["axes"].containers) == 1
    assert not list((tmp_path / "docs").iterdir())


def test_it_is_kept_without_outputs():
    content = json.loads((ROOT / "docs/explore.ipynb").read_text(encoding="utf-8"))
    assert not any(cell.get("outputs") for cell in content["cells"])
