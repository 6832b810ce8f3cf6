"""A finished study that asks to be explained: what is made, its table, what an audit sees."""

from __future__ import annotations

import csv
import json

import pytest
from project import STUDY

from fitspace.plan import planned

pytestmark = pytest.mark.slow
REPORT = "reports/two/report.html"


@pytest.fixture(scope="module")
def explained(origin, warm, tmp_path_factory):
    """A copy of the finished project, asked for explanations and run again."""
    project = origin.copy(tmp_path_factory.mktemp("explained") / "project").warmed(warm.commands)
    before = project.files("results/train", "results/sample", "results/evaluate")
    responses = ["fd_effnet", "clip_t", "prompt_sensitivity"]
    project.study(explain={"images": 2}, analysis={"factors": ["output"], "responses": responses})
    project.commit("Ask for explanations")
    project.snakemake("all")
    project.commit("Explained")
    return project, before


@pytest.fixture
def project(explained, monkeypatch):
    explained[0].enter(monkeypatch)
    return explained[0]


def rows(path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_only_the_explanations_are_made(project, explained):
    assert project.files("results/train", "results/sample", "results/evaluate") == explained[1]
    plan = planned(STUDY)
    assert len(plan.runs) == 6 and all(run.finished for run in plan.runs)


def test_the_table_has_the_runs_sensitivity(project):
    plan = {run.name: run for run in planned(STUDY).runs}
    for row in rows(project / "reports/two/runs.csv"):
        run = plan[row["run"]]
        found = json.loads((run.explain.folder / "explanation.json").read_text())
        assert float(row["prompt_sensitivity"]) == found["prompt_sensitivity"]
        assert row["explain_key"] == run.explain.key


def test_the_report_has_its_section(project):
    page = (project / REPORT).read_text()
    assert 'id="explain"' in page and "sensitivity_points.csv" in page
    assert len(rows(project / "reports/two/sensitivity_points.csv")) == 3
    base = [r for r in rows(project / "reports/two/sensitivity.csv") if r["step"]]
    assert {r["model"] for r in base} == {"tuned", "untouched"} and len(base) == 6 * 2 * 5


def test_an_audit_verifies_them(project):
    done = project.fitspace("audit", REPORT, ok=False)
    assert done.returncode == 0, done.stdout
    assert "explanation results/explain/" in done.stdout


FORGED = {
    "sensitivity.csv": "its rows of {} are not those of the run's explanation",
    "anatomy.csv": "its rows of {} are not those of the run's explanation",
    "runs.csv": "prompt_sensitivity of {} is '0.5'",
}


@pytest.mark.parametrize("name, message", FORGED.items(), ids=FORGED)
def test_an_audit_finds_a_forged_table(project, name, message):
    path = project / "reports/two" / name
    before = path.read_bytes()
    table = rows(path)
    table[0]["prompt_sensitivity" if name == "runs.csv" else "ratio" if "ratio" in table[0]
             else "value"] = "0.5"  # fmt: skip
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
        done = project.fitspace("audit", "--tier", "hash", REPORT, ok=False)
        assert done.returncode == 1 and message.format(table[0]["run"]) in done.stdout
    finally:
        path.write_bytes(before)


def test_an_audit_finds_a_forged_explanation(project):
    run = planned(STUDY).runs[0]
    path = run.explain.folder / "explanation.json"
    before = path.read_bytes()
    content = json.loads(before)
    content["prompt_sensitivity"] = 0.5
    try:
        path.write_text(json.dumps(content))
        done = project.fitspace("audit", "--tier", "hash", REPORT, ok=False)
        assert done.returncode == 1 and path.as_posix() in done.stdout
    finally:
        path.write_bytes(before)


def test_nothing_is_left_to_do(project):
    done = project.run("snakemake", "--dry-run", "--config", f"study={STUDY}", "--", "all")
    assert "Nothing to be done" in done.stdout + done.stderr
