"""The whole way: a study of two points and the base, by Snakemake, to its report."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from project import STUDY, Project, content

ROOT = Path(__file__).parents[2]


def _study(**changes):
    return content() | {"title": "Two <b>points</b>"} | changes


@pytest.fixture(scope="module")
def project(origin, warm, tmp_path_factory):
    """A copy of the finished project, with a title that wants escaping."""
    project = origin.copy(tmp_path_factory.mktemp("workflow") / "project").warmed(warm.commands)
    _write(project, _study())
    done = _snakemake(project)
    assert done.returncode == 0, done.stdout + done.stderr
    return project


def _write(project: Project, study: dict) -> None:
    (project / STUDY).write_text(yaml.safe_dump(study))


def _snakemake(project: Project, *arguments: str) -> subprocess.CompletedProcess:
    command = ["snakemake", "--cores", "2", *arguments, "--config", f"study={STUDY}"]
    return project.run(*command, ok=False)


def _would_run(project: Project) -> dict[str, int]:
    """Rule -> jobs of a dry run."""
    done = _snakemake(project, "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in (done.stdout + done.stderr).splitlines()]
    rules = ("prepare", "reference", "train", "sample", "evaluate", "report")
    counts = {w[0]: int(w[1]) for w in lines if len(w) == 2 and w[0] in rules and w[1].isdigit()}
    return counts


def _rows(project: Project) -> list[dict]:
    with (project / "reports/two/runs.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_run_has_its_row_with_metrics_cost_and_keys(project):
    rows = _rows(project)
    assert [r["arm"] for r in rows] == ["adapter", "adapter", "none"] * 2
    for row in rows:
        assert row["status"] == "ok" and row["evaluate_key"] in row["run"]
        for metric in ("fd_effnet", "clip_t", "clip_i", "kid_effnet"):
            assert np.isfinite(float(row[metric]))
        assert float(row["fd_effnet_low"]) < float(row["fd_effnet_jackknife"])
        assert (row["n"], row["m"]) == ("6", "6") and "against_n" not in row
        assert (int(row["trainable"]) > 0) == (row["arm"] == "adapter")


def test_distances_by_number_of_samples_are_there_for_every_run(project):
    runs = {row["run"]: row for row in _rows(project)}
    with (project / "reports/two/against_n.csv").open() as file:
        curves = list(csv.DictReader(file))
    assert [c["run"] for c in curves if c["n"] == "6"] == list(runs)
    for curve in curves:
        same = [curve[k] == runs[curve["run"]][k] for k in ("fd_effnet", "kid_effnet")]
        assert same == [curve["n"] == "6"] * 2


def test_report_is_there_self_contained_and_escaped(project):
    page = (project / "reports/two/report.html").read_text()
    assert "Two &lt;b&gt;points&lt;/b&gt;" in page and "Two <b>points" not in page
    assert "thing 1 <i>" not in page
    assert 'src="http' not in page and 'href="http' not in page.replace('href="https://arxiv', "")
    for name in ("anova.csv", "effects.csv", "gallery.json", "design.json"):
        assert (project / "reports/two" / name).stat().st_size > 0


def _after(text: str, *marks: str) -> str:
    for mark in marks:
        text = text.partition(mark)[2]
    return text


def test_snakemakes_own_report_has_tables_figures_and_every_runs_samples(project, tmp_path):
    page = tmp_path / "page.html"
    done = _snakemake(project, "--report", str(page))
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    shown, results = (
        json.JSONDecoder().raw_decode(_after(text, f'<script id="{name}">', "= "))[0]
        for name in ("categories", "results")
    )
    files = {name: [f for part in parts.values() for f in part] for name, parts in shown.items()}
    pictures = (
        "reports/two/figures/*.svg",
        "reports/two/gallery/*/*.png",
        "results/sample/*/*.png",
    )
    own = [
        sorted(path.relative_to(project.folder).as_posix() for path in project.folder.glob(pattern))
        for pattern in pictures
    ]
    tables = [f"reports/two/{name}" for name in ("anova.csv", "effects.csv", "runs.csv")]
    assert {name: sorted(found) for name, found in files.items()} == {
        "Report": ["reports/two/report.html"],
        "Tables": tables,
        **dict(zip(("Figures", "Gallery", "Samples"), own, strict=True)),
    }
    assert len(files["Samples"]) == 6 and all(own)
    assert all(len(results[name]["caption"]) > 50 for found in files.values() for name in found)
    assert "analyses of variance of study two" in results["reports/two/anova.csv"]["caption"]
    assert {results[name]["labels"]["run"] for name in files["Samples"]} == {
        Path(name).parent.name for name in files["Samples"]
    }
    assert "A designed experiment" in text
    # Explanations, which this study does not ask for, have their caption too.
    assert (project / "workflow/report/explain.rst").is_file()


def test_stages_leave_what_they_declare_and_no_trace_of_work_in_progress(project):
    for stage in ("train", "sample", "evaluate"):
        for folder in (project / f"results/{stage}").iterdir():
            assert (folder / f"{stage}.json").exists()
            assert not [f for f in folder.iterdir() if f.name.startswith(".")]
    assert list((project / "results").glob(".resume/*")) == []


def test_second_run_has_nothing_to_do(project):
    done = _snakemake(project)
    assert done.returncode == 0 and "Nothing to be done" in done.stdout + done.stderr


CHANGES = {
    "training setting": (
        {"train": {"steps": 4, "batch_size": 4, "lr": 1.0e-3}},
        {"train": 4, "sample": 4, "evaluate": 4, "report": 1},
    ),
    "training setting of one arm": (
        {"arms": [_study()["arms"][0] | {"train": {"lr": 0.01}}, {"method": "none"}]},
        {"train": 4, "sample": 4, "evaluate": 4, "report": 1},
    ),
    "sampling setting": (
        {"sample": {"prompts": 6, "steps": 2, "guidance": 2.0}},
        {"sample": 6, "evaluate": 6, "report": 1},
    ),
    "new seed": (
        {"seeds": [0, 1, 2]},
        {"train": 2, "sample": 3, "evaluate": 3, "report": 1},
    ),
    "fewer levels": ({"arms": _study()["arms"][:1]}, {"report": 1}),
    "title": ({"title": "Other"}, {"report": 1}),
}


# The same jobs as with another change: these only where there is time.
SELDOM = ("training setting", "title")
CHANGED = [
    pytest.param(*change, id=name, marks=pytest.mark.slow if name in SELDOM else ())
    for name, change in CHANGES.items()
]


@pytest.mark.parametrize("change, expected", CHANGED)
def test_a_change_runs_only_what_it_touches(project, change, expected):
    study = project / STUDY
    times = study.stat().st_atime_ns, study.stat().st_mtime_ns
    _write(project, _study(**change))
    try:
        assert _would_run(project) == expected
    finally:
        _write(project, _study())
        os.utime(study, ns=times)


def test_changing_back_runs_nothing(project):
    assert _would_run(project) == {}


def test_report_made_again_is_byte_identical(project, warm):
    before = project.files("reports/two")
    done = warm.fitspace(project, "report", STUDY, "--cached")
    assert done.returncode == 0, done.stderr
    after = project.files("reports/two")
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == []


def test_a_retrained_run_has_the_same_bits(project, warm):
    folder = next(f for f in sorted((project / "results/train").iterdir()) if "~s0" in f.name)
    before = (folder / "adapter.safetensors").read_bytes()
    kept = folder.rename(project / "kept")
    try:
        done = warm.fitspace(project, "train", STUDY, folder.name)
        assert done.returncode == 0, done.stderr
        assert (folder / "adapter.safetensors").read_bytes() == before
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        kept.rename(folder)


def test_a_changed_artefact_is_refused_by_the_next_stage(project, warm):
    folder = next(f for f in sorted((project / "results/train").iterdir()) if "~s0" in f.name)
    adapter = folder / "adapter.safetensors"
    good = adapter.read_bytes()
    sample = next(
        f for f in (project / "results/sample").iterdir()
        if f.name.rpartition("~")[0] == folder.name.rpartition("~")[0]
    )  # fmt: skip
    kept = sample.rename(project / "kept")  # what is finished is not made again
    try:
        adapter.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        done = warm.fitspace(project, "sample", STUDY, sample.name)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert "adapter.safetensors: changed since it was written" in done.stderr
    finally:
        adapter.write_bytes(good)
        shutil.rmtree(sample, ignore_errors=True)
        kept.rename(sample)


def test_a_missing_metric_is_an_error_that_names_the_run(project, warm):
    folder = next((project / "results/evaluate").iterdir())
    kept = folder.rename(project / "kept")
    try:
        done = warm.fitspace(project, "report", STUDY, "--cached")
        assert done.returncode == 2 and folder.name in done.stderr
    finally:
        kept.rename(folder)


def test_too_many_prompts_is_one_clear_message(project):
    _write(project, _study(sample={"prompts": 7, "steps": 3, "guidance": 2.0}))
    try:
        done = _snakemake(project)
        text = done.stdout + done.stderr
        assert done.returncode != 0 and "sample.prompts: 7" in text and "4 to 6" in text
    finally:
        _write(project, _study())


CONFIGS = [
    pytest.param(
        "Study=params/two.yaml",
        "--config Study: unknown key; allowed: --config study",
        id="an unknown key",
    ),
    pytest.param(
        "study=5", "--config study=5: no study file", id="a number", marks=pytest.mark.slow
    ),
    pytest.param("study=", "--config study=: no study file", id="nothing"),
]


@pytest.mark.parametrize("config, said", CONFIGS)
def test_a_config_that_names_no_study_runs_none(config, said):
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "1", "--config", config],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0 and said in done.stdout + done.stderr
    assert "Job stats" not in done.stdout + done.stderr


# Stands in for Apptainer: notes which image a job is to run in, and runs it here.
APPTAINER = """#!/bin/sh
[ "$1" = --version ] && { echo apptainer version 1.3.6; exit; }
while [ "$1" != fitspace.sif ]; do shift; done
echo "$*" >> "$NOTES"
shift
exec "$@"
"""


@pytest.mark.slow
def test_jobs_run_in_the_image_that_is_named(origin, tmp_path):
    project, program = origin.copy(tmp_path / "project"), tmp_path / "bin" / "apptainer"
    program.parent.mkdir()
    program.write_text(APPTAINER)
    program.chmod(0o755)
    (project / "fitspace.sif").touch()
    shutil.rmtree(next((project / "results/evaluate").iterdir()))
    project.run(
        "snakemake", "--cores", "2", "--sdm", "apptainer", "--config", f"study={STUDY}",
        "container=fitspace.sif", "--", "evaluated",
        PATH=f"{program.parent}:{project.environment['PATH']}", NOTES=str(tmp_path / "notes"),
    )  # fmt: skip
    (job,) = (tmp_path / "notes").read_text().splitlines()
    assert job.startswith("fitspace.sif") and "fitspace evaluate" in job


def test_another_studys_report_is_refused_and_stays(origin, warm, tmp_path):
    project = origin.copy(tmp_path / "project").warmed(warm.commands)
    other = project / "reports/other"
    other.mkdir()
    (other / "report.html").write_text("old")
    (other / "runs.csv").write_text("old")
    done = project.run(
        "snakemake", "--cores", "1", "--force", "--config", f"study={STUDY}", "--",
        "reports/other/report.html", ok=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "other: not the study of params/two.yaml, 'two'" in done.stdout + done.stderr
    assert (other / "report.html").read_text() == (other / "runs.csv").read_text() == "old"
    # A report job that fails leaves the old report as a whole.
    before = project.files("reports/two")
    metrics = next((project / "results/evaluate").glob("*/metrics.json"))
    metrics.write_text("{}")
    done = project.snakemake("--force", "reports/two/report.html", ok=False)
    assert done.returncode != 0 and project.files("reports/two") == before


@pytest.mark.slow
def test_a_study_whose_name_holds_a_quote_is_run_to_its_end(origin, tmp_path):
    project = origin.copy(tmp_path / "project")
    quoted = "params/o'brien.yaml"
    (project / quoted).write_bytes((project / STUDY).read_bytes())
    (project / "reports/two/report.html").unlink()
    project.snakemake("all", study=quoted)
    log = project / "results/logs/track/two.log"
    log.unlink(missing_ok=True)
    # The import fails, is said with the command that does it later, and fails nothing.
    bad = project.run(
        "snakemake", "--cores", "1", "--config", f"study={quoted}", "--forcerun", "track", "--",
        "results/.cache/tracked/two", MLFLOW_TRACKING_URI="http://127.0.0.1:9",
    )  # fmt: skip
    assert "later: fitspace track params/o'brien.yaml" in bad.stdout + bad.stderr
