"""Explanations computed again, on honest and on forged ones."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import project
import pytest

from fitspace.audit import again
from fitspace.core.files import sha256, write_json
from fitspace.explaining.reading import NAME
from fitspace.plan import build_plan
from fitspace.stages import function
from fitspace.study import Study

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with an adapter and the untouched base, explained but not sampled."""
    folder = tmp_path_factory.mktemp("explained")
    project.images(folder / "images")
    (folder / "models").symlink_to(ROOT / "models")
    content = project.content() | {"seeds": [0], "explain": {"images": 2, "times": [0.4]}}
    with contextlib.chdir(folder):
        study = Study.model_validate(content)
        plan = build_plan(study)
        runs = [next(r for r in plan.runs if r.point.method == m) for m in ("adapter", "none")]
        for stage in ("prepare", "train", "explain"):
            for run in runs:
                if getattr(run, stage) and not getattr(run, stage).sidecar.exists():
                    function(stage)(study, run)
    return folder, plan, runs


@pytest.fixture
def explained(made, tmp_path, monkeypatch):
    shutil.copytree(made[0], tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    return made[1:]


def forge(run, name, change):
    """Change a number of an explanation, and make its sidecar fit."""
    path = run.explain.folder / NAME
    content = json.loads(path.read_text())
    at = content
    for part in name[:-1]:
        at = at[part]
    at[name[-1]] = change(at[name[-1]])
    write_json(path, content)
    sidecar = json.loads(run.explain.sidecar.read_text())
    for output in sidecar["outputs"]:
        file = run.explain.folder / Path(output["path"]).name
        output |= {"sha256": sha256(file), "size": file.stat().st_size}
    write_json(run.explain.sidecar, sidecar)


def of_explanations(plan, runs):
    """The findings about explanations; samples and metrics are absent."""
    found = again.reevaluate(plan, [run.name for run in runs])
    return [f for f in found if "results/explain/" in f.subject]


def test_honest_explanations_are_the_same_to_the_last_bit(explained):
    plan, runs = explained
    assert again.made_here(*(run.explain for run in runs))
    assert of_explanations(plan, runs) == []


FORGED = {
    ("prompt_sensitivity",): "prompt_sensitivity: recorded",
    ("untouched", "by_image", 1): "untouched.by_image[1]: recorded",
    ("anatomy", "changes", 0, "change"): "anatomy.changes[0].change: recorded",
}


def test_forged_numbers_are_found_by_explaining(explained):
    plan, runs = explained
    for name in FORGED:
        forge(runs[0], name, lambda value: value * 1.0001)
    found = of_explanations(plan, runs[:1])
    assert {(f.kind, f.subject) for f in found} == {("changed", runs[0].explain.folder.as_posix())}
    for finding, begins in zip(found, FORGED.values(), strict=True):
        assert finding.message.startswith(begins) and finding.message.endswith("the same number")


def test_another_kind_of_machine_may_round_otherwise_and_no_more(explained):
    plan, runs = explained
    sidecar = json.loads(runs[0].explain.sidecar.read_text())
    sidecar["environment"]["cpu"] = {"model name": "another"}
    write_json(runs[0].explain.sidecar, sidecar)
    forge(runs[0], ("prompt_sensitivity",), lambda value: value + again.TOLERANCE / 2)
    forge(runs[0], ("untouched", "by_image", 1), lambda value: value + 2 * again.TOLERANCE)
    (finding,) = of_explanations(plan, runs[:1])
    assert finding.message.startswith("untouched.by_image[1]")
    assert "allowed: a difference of 1e-05" in finding.message


def test_an_adapter_that_is_not_here_is_absent(explained):
    plan, runs = explained
    shutil.rmtree(runs[0].train.folder)
    kinds = {
        f.kind for f in again.reevaluate(plan, [runs[0].name]) if "results/train/" in f.subject
    }
    assert kinds == {"absent"}
