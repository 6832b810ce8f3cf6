"""Metrics added to a finished study: what was seen is not looked at again, and nothing differs."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import project
import pytest
import torch
from safetensors.torch import load_file

from fitspace import bases, metrics
from fitspace.metrics.extractors import Extraction
from fitspace.plan import build_plan
from fitspace.stages import function
from fitspace.stages.common import FEATURES
from fitspace.stages.evaluate import measure
from fitspace.stages.reference import reference_features
from fitspace.study import Study

ROOT = Path(__file__).parents[2]
NAMED = ["copies_effnet", "paired_effnet", "psnr", "vendi_judge"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the untouched base's run, evaluated without and with further metrics; and which
    extractors saw how many images the second time, by stage."""
    folder, patch, seen = tmp_path_factory.mktemp("project"), pytest.MonkeyPatch(), {}
    project.images(folder / "images")
    (folder / "models").symlink_to(ROOT / "models")
    content = project.content()
    content["arms"], content["seeds"] = content["arms"][::-1], [0]
    original = Extraction._computed

    def counted(self, name, images):
        seen[stage].append((name, len(images)))
        return original(self, name, images)

    with contextlib.chdir(folder), patch.context() as patched:
        for further in ({}, {"metrics": NAMED}):
            study = Study.model_validate(content | further)
            run = build_plan(study).runs[0]
            for stage in ("prepare", "reference", "sample", "evaluate"):
                if not getattr(run, stage).sidecar.exists():
                    seen[stage] = []
                    patched.setattr(Extraction, "_computed", counted)
                    function(stage)(study, run)
    return folder, study, run, seen


@pytest.fixture
def again(finished, monkeypatch):
    monkeypatch.chdir(finished[0])
    return finished[1:]


def test_only_images_that_no_extractor_saw_are_looked_at(again):
    _, run, seen = again
    # The second time: fourteen training and six held-out images, decoded.
    assert seen["reference"] == [("effnet", 14), ("effnet", 6)]
    assert seen["evaluate"] == []
    folders = {path.name for path in FEATURES.iterdir()}
    assert folders == {run.prepare.folder.name, run.sample.folder.name}


def test_the_numbers_are_those_of_features_computed_anew(again):
    study, run, _ = again
    recorded = metrics.read_metrics(run)
    assert set(NAMED) < set(recorded)
    assert measure(study, run, reference_features(study, run)) == recorded


def test_copies_are_of_images_as_the_autoencoder_gives_them_back(again):
    from fitspace.metrics import effnet

    study, run, _ = again
    vae = bases.load_vae(bases.resolve(study.base))
    mean = load_file(run.prepare.folder / "latents.safetensors")["mean"].float()
    with torch.no_grad():
        found = [vae.decode(x[None]).sample[0].clamp(-1, 1) for x in mean]
    images = torch.stack([((x + 1) * 127.5).round().to(torch.uint8) for x in found])
    seen = effnet.features(images.permute(0, 2, 3, 1)).numpy()
    training, held_out = seen[:14], seen[14:]  # as the manifest lists them
    samples = load_file(run.sample.folder / "samples.safetensors")["images"]
    drawn = effnet.features(samples).numpy()

    def nearest(rows):
        return np.array([min(np.linalg.norm(row - other) for other in training) for row in rows])

    expected = (nearest(drawn) < np.quantile(nearest(held_out), 0.05)).mean()
    assert metrics.read_metrics(run)["copies_effnet"] == pytest.approx(expected)
    assert np.isfinite(expected)
