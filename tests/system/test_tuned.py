"""A study with tuning, the whole way: its tuning's runs, its own, its report, its audit."""

from __future__ import annotations

import csv
import json
import shutil

import pandas as pd
import pytest
import yaml
from PIL import Image, ImageOps
from project import STUDY, content

pytestmark = pytest.mark.slow
RATES = [1.0e-4, 1.0e-2]
OF_TUNING = "params/two-tuning.yaml"


@pytest.fixture(scope="module")
def project(origin, warm, tmp_path_factory):
    """A finished and committed study whose learning rates were chosen on inverted images."""
    project = origin.copy(tmp_path_factory.mktemp("tuned") / "project").warmed(warm.commands)
    shutil.copytree(project / "images", project / "inverted")
    for path in (project / "inverted").glob("*.png"):
        ImageOps.invert(Image.open(path).convert("RGB")).save(path)
    study = content()
    study["seeds"] = [0]
    study["tuning"] = {
        "tasks": [{"name": "inverted", "source": "folder", "path": "inverted"}],
        "factors": {"train.lr": RATES},
        "seeds": [3],
        "response": "clip_t",
    }
    (project / STUDY).write_text(yaml.safe_dump(study, sort_keys=False))
    early = project.snakemake("all", ok=False)
    assert early.returncode != 0 and "fitspace tune" in early.stdout + early.stderr
    project.fitspace("tune", STUDY)
    project.snakemake("all", study=OF_TUNING)
    project.snakemake("all")
    project.commit("Tuned and run")
    return project


def test_every_point_was_trained_at_the_rate_with_the_best_mean(project):
    tried = pd.read_csv(project / "reports/two-tuning/runs.csv")
    assert len(tried) == 2 * len(RATES)
    best = tried.loc[tried.groupby("output")["clip_t"].idxmax()].set_index("output")["train.lr"]
    design = json.loads((project / "reports/two/design.json").read_text())
    rates = {p["factors"]["output"]: p["train"]["lr"] for p in design["points"] if p["train"]}
    assert rates == best.to_dict()
    table = pd.read_csv(project / "reports/two/tuning.csv")
    assert table[table["best"]].set_index("output")["train.lr"].to_dict() == rates
    assert "Tuning" in (project / "reports/two/report.html").read_text()


def test_both_are_audited_green(project):
    for study in (STUDY, OF_TUNING):
        done = project.fitspace("audit", study, "--tier", "regenerate", ok=False)
        assert done.returncode == 0, done.stdout + done.stderr


CHANGED = {
    "a choice": ("reports/two/tuning.csv", lambda row: row | {"mean": "9.0"}),
    "a run of the tuning": (
        "reports/two-tuning/runs.csv",
        lambda row: row | {"clip_t": repr(float(row["clip_t"]) - 1e-4)},
    ),
}


@pytest.mark.parametrize("name, change", CHANGED.values(), ids=CHANGED)
def test_a_changed_number_of_the_tuning_is_found(project, tmp_path, name, change):
    own = project.copy(tmp_path / "project")
    with (own / name).open(newline="") as file:
        first, *rest = csv.DictReader(file)
    with (own / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(first), lineterminator="\n")
        writer.writeheader()
        writer.writerows([change(first), *rest])
    done = own.fitspace("audit", STUDY, "--tier", "regenerate", ok=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "tuning.csv" in done.stdout + done.stderr
