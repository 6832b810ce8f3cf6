"""Costs grow with the number of runs, no faster: counted operations, never seconds.

The studies are those of benchmarks/scale.py, which measures the same at 10,000 runs.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import report_study

from fitspace.core import files, hashes
from fitspace.plan import STAGES, Point, build_plan, load_study, overview
from fitspace.report import inputs, results, tables
from fitspace.results import lineage, table
from fitspace.stages import sidecars
from fitspace.stats import cell_means, lack_of_fit
from fitspace.tracking import importing

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import scale  # noqa: E402

WIDTHS = (2, 8)  # 66 and 258 runs: the points of the second are four times as many
TIMES = 258 / 66
SLACK = 1.02


@pytest.fixture(scope="module")
def projects(tmp_path_factory):
    """A small and a large finished study, alike but for the number of their points."""
    folders = []
    for widths in WIDTHS:
        folder = tmp_path_factory.mktemp(f"runs-{widths}")
        content = scale.study(1)
        content |= {"tasks": content["tasks"][:1], "seeds": [0]}
        content["arms"][0]["factors"]["width"] = list(range(1, widths + 1))
        scale.project(folder, content)
        subprocess.run([sys.executable, scale.__file__, "--fill", folder], check=True)
        folders.append(folder)
    return folders


@pytest.fixture
def plans(projects, monkeypatch):
    """Each project's plan, with its folder as the current one while it is looked at."""

    def each():
        for folder in projects:
            monkeypatch.chdir(folder)
            yield build_plan(load_study(scale.STUDY))

    return each


def calls(act) -> int:
    """How many calls of functions, and steps of generators, an action makes."""
    counted = 0

    def note(frame, event, argument):
        nonlocal counted
        counted += event in ("call", "c_call")

    act()  # what is imported and remembered once is no cost of a run
    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(None)
    return counted


def _track(plan):
    """Which of the runs that an import finds in MLflow are whole."""
    entries = [SimpleNamespace(key=r.name, content="c", files={}) for r in plan.runs]
    tags = ({importing.KEY: run.name, importing.CONTENT: "c"} for run in plan.runs)
    info = SimpleNamespace(status="FINISHED")
    there = [SimpleNamespace(info=info, data=SimpleNamespace(tags=tag)) for tag in tags]
    store = importing.Store.__new__(importing.Store)
    assert all(store.whole(entries, there).values())


def _needed(plan):
    """What Snakemake's input functions ask, once a job."""
    for stage, folder in plan.stages:
        plan.run_of(stage, folder)


ACTIONS = {
    "check": lambda plan: load_study(scale.STUDY),
    "plan": lambda plan: build_plan(plan.study).stages,
    "what is done": lambda plan: overview.stage_counts(plan, done=True),
    "inputs of every job": _needed,
    "rows of runs.csv": table.collect,
    "against_n.csv": table.against_n,
    "provenance.json": lambda plan: lineage.text(lineage.collect(plan)),
    "runs in MLflow": _track,
}


@pytest.mark.parametrize("action", ACTIONS)
def test_calls_grow_with_the_runs(plans, action):
    small, large = (calls(lambda plan=plan: ACTIONS[action](plan)) for plan in plans())
    assert 60 < small < large < SLACK * TIMES * small


def test_points_are_told_apart_without_comparing_all_pairs(projects, monkeypatch):
    class Compared(str):
        times = 0

        def __eq__(self, other):
            Compared.times += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    name = Point.name.fget
    monkeypatch.setattr(Point, "name", property(lambda point: Compared(name(point))))
    monkeypatch.chdir(projects[1])
    load_study(scale.STUDY)
    assert Compared.times < 258


def test_a_table_hashes_every_file_once_and_reads_it_twice_at_most(plans, monkeypatch):
    hashed, read = Counter(), Counter()

    def counting(path):
        hashed[str(path)] += 1
        return files.sha256(path)

    content = Path.read_bytes
    monkeypatch.setattr(hashes, "sha256", counting)
    monkeypatch.setattr(hashes, "_seen", {})
    monkeypatch.setattr(lineage, "sha256", counting)
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.update([str(path)]) or content(path))
    for plan in plans():
        hashed.clear()
        read.clear()
        table.collect(plan)
        table.against_n(plan)
        lineage.collect(plan)
        expected = {str(stage.sidecar) for stage in plan.stages.values()}
        expected |= {str(run.evaluate.folder / "metrics.json") for run in plan.runs}
        assert hashed == Counter(expected)
        assert max(read[name] for name in expected) == 2


def _made_up(levels: int, tmp_path: Path):
    """Inputs of a report with 5 x levels cells, two seeds."""
    outputs = report_study.OUTPUTS[:4]
    factors = {"width": list(range(1, levels + 1)), "output": outputs}
    study = report_study.study(factors, responses=("clip_t",), transform={})
    rows = report_study.rows(study)
    report_study.write(tmp_path / f"{levels}", rows)
    return study, inputs.read(study, tmp_path / f"{levels}")


def test_origins_search_the_table_no_oftener_for_more_runs(tmp_path, monkeypatch):
    searched = []
    for levels in WIDTHS:
        study, given = _made_up(levels, tmp_path)
        found = results.analyse(study, given)
        count = Counter()
        mask = results.Sources.mask

        def counting(sources, *which, mask=mask, count=count):
            count["searched"] += 1
            return mask(sources, *which)

        monkeypatch.setattr(results.Sources, "mask", counting)
        sources = results.Sources(given.runs, found.analysis, found.factors)
        for file, rows in found.tables.items():
            assert sources.of(file, rows) == found.origins[file]
        monkeypatch.setattr(results.Sources, "mask", mask)
        searched.append(count["searched"])
    assert searched[0] == searched[1] > 0


@pytest.mark.parametrize("statistic", [cell_means, lack_of_fit])
def test_no_matrix_as_wide_as_the_cells_is_decomposed(statistic, monkeypatch):
    cells = [(a, b) for a in range(30) for b in range(10)]
    draw = np.random.default_rng(0)
    rows = [
        {"a": f"a{a}", "b": f"b{b}", "task": f"t{task}", "seed": seed, "y": draw.normal()}
        for a, b in cells
        for task in range(2)
        for seed in range(2)
    ]
    widest, svd = [], np.linalg.svd
    monkeypatch.setattr(
        np.linalg, "svd", lambda m, *a, **k: widest.append(min(m.shape)) or svd(m, *a, **k)
    )
    statistic(pd.DataFrame(rows), "y", ["a", "b"], ["task", "seed"])
    assert max(widest) < 50


def test_the_page_shows_the_first_thousand_runs(monkeypatch):
    monkeypatch.setattr(tables, "MOST_RUNS", 3)
    text = pd.DataFrame({"run": ["a", "b", "c", "d"], "clip_t": ["0.1", "0.2", "0.3", "0.4"]})
    few, many = tables.of_runs(text[:3], []), tables.of_runs(text, [])
    assert (len(few.rows), few.caption) == (3, "Every run, as in runs.csv.")
    assert (len(many.rows), many.caption) == (3, "The first 3 of 4 runs; runs.csv has all.")
    assert many.rows == few.rows


def test_stand_ins_are_what_stages_leave(projects, monkeypatch):
    """Otherwise the benchmark would measure other files than those of real runs."""
    monkeypatch.chdir(projects[0])
    plan = build_plan(load_study(scale.STUDY))
    rows = table.collect(plan)
    assert len(rows) == 66 and {row["status"] for row in rows} == {"ok"}
    for stage in plan.stages.values():
        sidecars.verified(stage)
        names = {path.name for path in stage.folder.iterdir()}
        assert names == {stage.sidecar.name, *STAGES[stage.name].outputs}


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_slope(exponent):
    found = scale.slope((1000, 3.0), (8000, 3.0 * 8**exponent))
    assert found == pytest.approx(exponent)
