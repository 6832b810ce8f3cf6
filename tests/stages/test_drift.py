"""Drift: a run's samples beside what the untouched base draws from the same noise."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import project
import pytest
from safetensors.torch import load_file

from fitspace import metrics
from fitspace.core.files import read_json
from fitspace.plan import build_plan
from fitspace.results import lineage
from fitspace.stages import function
from fitspace.stages.evaluate import measure
from fitspace.stages.reference import reference_features
from fitspace.study import Study

ROOT = Path(__file__).parents[2]
NAMED = {"metrics": ["drift_effnet", "drift_judge"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("project")
    project.images(found / "images")
    (found / "models").symlink_to(ROOT / "models")
    return found


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def finished(folder):
    """The runs of a study with an adapter and the untouched base, evaluated."""
    with contextlib.chdir(folder):
        study = Study.model_validate(project.content() | NAMED | {"seeds": [3]})
        plan = build_plan(study)
        for name in ("prepare", "reference", "train", "sample", "evaluate"):
            for run in plan.runs:
                if (stage := getattr(run, name)) and not stage.sidecar.exists():
                    function(name)(study, run)
    return plan


def of(plan, method):
    return next(run for run in plan.runs if run.point.method == method)


def samples(stage):
    return load_file(stage.folder / "samples.safetensors")["images"]


def test_it_is_the_distance_from_the_base_of_the_same_seed(finished):
    from fitspace.metrics import effnet

    base, tuned = of(finished, "none"), of(finished, "adapter")
    assert tuned.untouched == base.sample
    x, y = (effnet.features(samples(r.sample)).double().numpy() for r in (tuned, base))
    cosines = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    found = metrics.read_metrics(tuned)
    assert found["drift_effnet"] == pytest.approx(1 - cosines.mean(), rel=1e-5)
    assert found["drift_effnet"] > 1e-4 and found["drift_judge"] > 1e-6
    at_base = metrics.read_metrics(base)
    assert at_base["drift_effnet"] == at_base["drift_judge"] == 0


def test_it_is_computed_anew_to_the_last_bit(finished):
    tuned = of(finished, "adapter")
    again = reference_features(finished.study, tuned)
    assert measure(finished.study, tuned, again) == metrics.read_metrics(tuned)


def test_the_record_has_both_samples_and_keeps_them_apart(finished):
    base, tuned = of(finished, "none"), of(finished, "adapter")
    read = [item["path"] for item in read_json(tuned.evaluate.sidecar)["inputs"]]
    for stage in (tuned.sample, base.sample, tuned.reference):
        assert stage.sidecar.as_posix() in read
    assert len(set(read)) == len(read)
    known = lineage.collect(finished)
    record = known.records["evaluate", tuned.evaluate.key]
    assert ("sample", base.sample.key) in record.upstream
    assert known.of_run(record)["sample"].key == tuned.sample.key
    own = [item["path"] for item in read_json(base.evaluate.sidecar)["inputs"]]
    assert len(set(own)) == len(own)  # its own samples, once


def guided(arm, levels):
    return arm | {"factors": arm["factors"] | {"sample.guidance": levels}}


def test_levels_of_guidance_have_the_base_at_their_own(folder):
    content = project.content() | NAMED | {"seeds": [0]}
    tuned, base = content["arms"]
    base = base | {"factors": {}}
    own = content["sample"]["guidance"]
    arms = [guided(tuned, [own, 5.0]), guided(base, [own, 5.0])]
    for run in build_plan(Study.model_validate(content | {"arms": arms})).runs:
        drawn = run.untouched.material
        assert drawn["adapter"] is None and drawn["seed"] == run.seed
        assert drawn["sample"]["guidance"] == run.point.sample["guidance"]
    with pytest.raises(ValueError, match="needed: 5.0 among its arm's own levels of sample.guida"):
        Study.model_validate(content | {"arms": [arms[0], base]})
    with pytest.raises(ValueError, match="'drift_effnet': needs the untouched base, an arm of"):
        Study.model_validate(content | {"arms": [tuned]})


def test_it_moves_no_key_of_what_does_not_ask_for_it(folder):
    plain, asking = (build_plan(Study.model_validate(project.content() | m)) for m in ({}, NAMED))
    for one, other in zip(plain.runs, asking.runs, strict=True):
        assert one.untouched is None and "untouched" not in one.evaluate.material
        assert one.sample.key == other.sample.key and one.evaluate.key != other.evaluate.key
