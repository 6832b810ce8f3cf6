"""The numbers of each stage, held in place: who changes them raises the stage's version.

``PYTHONPATH=tests python tests/stages/test_golden.py`` records them anew.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from embedded_base import BASE, LATENTS, SIDE

from fitspace.core import rng
from fitspace.plan import STAGES as TABLE

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "data" / "golden.json"


def _drawings():
    from fitspace.data import openmoji

    rows = [row for row in openmoji.catalogue() if "skin tone" not in row[1]][::200]
    return rows, np.stack([openmoji.render(row[3], "blueprint", SIDE) for row in rows])


def prior() -> list[float]:
    """Pixels of three class images of the embedded base."""
    from fitspace.plan.table import PRIOR_STEPS
    from fitspace.stages.prior import class_images

    asked = {"prompt": "person", "images": 3, "steps": PRIOR_STEPS, "guidance": 3.0}
    return [float(image.mean()) for image in class_images(BASE, asked, "cpu")]


def prepare() -> list[float]:
    """Latents and text embeddings of ten drawings."""
    from fitspace.data.encoding import encode_captions, encode_images

    rows, images = _drawings()
    mean, std = encode_images(BASE, images)
    text = encode_captions(BASE, ["", *(row[1] for row in rows)])
    return [mean.abs().mean(), std.mean(), mean[3, 2, 4, 5], text.abs().mean(), text[2, 1, 7]]


def train() -> list[float]:
    """Losses and parameters of a tiny run; time steps and noise of class examples."""
    import tiny

    from fitspace import training

    subject = replace(tiny.task(), prior=[7, 8, 9], prior_weight=0.5)
    batch = training.make_batch(subject, tiny.process(), 0.5, tiny.SETTINGS, 0, 3)
    with tempfile.TemporaryDirectory() as folder:
        result = tiny.fit(Path(folder) / "c.safetensors")
    parameters = [v.abs().sum() for v in list(result.parameters.values())[:4]]
    return [*result.losses[::4], *parameters, *batch.t[4:], *batch.noise[4:, 0, 0, 0]]


def sample() -> list[float]:
    """Pixels of three images of the embedded base."""
    from fitspace import bases
    from fitspace.data.encoding import encode_captions
    from fitspace.training import sampling

    text = encode_captions(BASE, ["", "red heart", "cat face", "sun"])
    images = sampling.generate(
        bases.load_denoiser(BASE), bases.load_vae(BASE), bases.load_process(BASE),
        {"embeddings": text[1:]}, {"embeddings": text[:1]},
        rng.initial_noise(7, 3, LATENTS), steps=4, guidance=3.0,
    )  # fmt: skip
    return [float(image.mean()) for image in images]


def evaluate() -> list[float]:
    """Every metric of the drawings against their mirror images, and the curve against n."""
    from fitspace import metrics

    rows, images = _drawings()
    captions = [row[1] for row in rows]
    judge = ROOT / "models/emoji-clip"
    features = metrics.reference_features(images, captions, captions, judge)
    found = metrics.evaluate(images[:, :, ::-1].copy(), features, judge)
    curve = [value for row in found.pop("against_n") for value in row.values()]
    return [*found.values(), *curve]


STAGES = {f.__name__: f for f in (prior, prepare, train, sample, evaluate)}


@pytest.mark.parametrize("stage", STAGES)
def test_numbers_change_only_with_the_version(stage):
    golden = json.loads(GOLDEN.read_text())[stage]
    assert golden["version"] == TABLE[stage].version, "a new version: record its numbers"
    assert [float(v) for v in STAGES[stage]()] == pytest.approx(
        golden["values"], rel=5e-4, abs=1e-5
    )


if __name__ == "__main__":
    from fitspace.core.imports import import_torchvision

    import_torchvision()
    recorded = {
        name: {"version": TABLE[name].version, "values": [float(v) for v in f()]}
        for name, f in STAGES.items()
    }
    GOLDEN.write_text(json.dumps(recorded, indent=2) + "\n")
