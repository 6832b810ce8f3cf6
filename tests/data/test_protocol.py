"""What a task can ask for to follow a published protocol: squares, filters, flips, templates."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from pydantic import ValidationError

from fitspace import bases, data, training
from fitspace.data import survey
from fitspace.data.pixels import CROPPED, How, load_image
from fitspace.stages import prepare
from fitspace.study import DreamBooth, Task

ROOT = Path(__file__).parents[2]
WIDE = np.random.default_rng(0).integers(0, 256, (30, 48, 3), dtype=np.uint8)
FILTERS = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}


@pytest.mark.parametrize("resample", FILTERS)
@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_images_become_squares_as_pillow_makes_them(tmp_path, fit, size, resample):
    whole = Image.fromarray(WIDE)
    whole.save(tmp_path / "wide.png")
    found, done = load_image(tmp_path / "wide.png", size, How(fit, resample))
    part = whole if fit == "squash" else whole.crop((9, 0, 39, 30))
    assert np.array_equal(found, np.array(part.resize((size, size), FILTERS[resample])))
    said = f"squashed from 48x30 to {size}x{size}" if fit == "squash" else "central 30x30 of 48x30"
    assert any(note.startswith(said) for note in done)


def test_a_square_is_not_squashed(tmp_path):
    Image.fromarray(WIDE[:, :30]).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", 30, How("squash"))[1] == []
    assert load_image(tmp_path / "a.png", 10, How("squash"))[1] == ["reduced from 30x30 to 10x10"]


def test_survey_counts_what_is_squashed():
    notes = [f"{i}.png: squashed from 48x{30 + i} to 8x8" for i in range(3)]
    assert survey.kinds(notes) == ["3 squashed"]


def test_only_what_differs_from_before_is_in_a_tasks_identity(tmp_path):
    for name in "abc":
        Image.fromarray(WIDE).save(tmp_path / f"{name}.png")
    rows = [
        f"{n}.png,noise,{split}"
        for n, split in zip("abc", ("train", "train", "test"), strict=False)
    ]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,text,split", *rows]))
    own = dict(name="a", source="folder", path=str(tmp_path))
    assert How(Task(**own).fit, Task(**own).resample) == CROPPED
    plain = data.identity(Task(**own))
    assert plain.keys() == {"folder"}
    asked = Task(**own, fit="squash", resample="bicubic", flip=0.5)
    assert data.identity(asked) == plain | {"fit": "squash", "resample": "bicubic"}
    (example, *_), *_ = data.load_examples(asked, 8)
    square = Image.fromarray(WIDE).resize((8, 8), Image.Resampling.BICUBIC)
    assert np.array_equal(example.image, np.array(square))


@pytest.mark.parametrize("key, value", [("fit", "squash"), ("resample", "bicubic")])
def test_drawings_are_made_as_squares(key, value):
    with pytest.raises(ValidationError, match=f"openmoji does not take the key '{key}'"):
        Task(name="a", source="openmoji", style="sepia", **{key: value})


# --- flips --------------------------------------------------------------------------------


def flipped(flip: float):
    task = tiny.task()
    return dataclasses.replace(task, flip=flip, mirrored=(task.mean + 100, task.std))


def batch_of(task, step=0):
    settings = tiny.SETTINGS | {"batch_size": 64}
    return training.make_batch(task, tiny.process(), 1.0, settings, 0, step)


def test_no_flip_changes_nothing_else_of_a_batch():
    plain, never, always = batch_of(tiny.task()), batch_of(flipped(0.0)), batch_of(flipped(1.0))
    for other in (never, always):
        assert torch.equal(plain.noise, other.noise) and torch.equal(plain.t, other.t)
    assert torch.equal(plain.clean, never.clean)
    assert torch.allclose(plain.clean + 100, always.clean, atol=1e-4)


def test_half_of_the_examples_are_mirrored():
    mirrored = torch.cat([batch_of(flipped(0.5), s).clean.mean((1, 2, 3)) > 50 for s in range(8)])
    assert 0.4 < mirrored.float().mean() < 0.6


def test_both_orientations_are_encoded():
    base, images = ROOT / "models/emoji-unet", WIDE[None, :, :30].repeat(2, 0)
    found = prepare.encoded(bases.resolve(base), images, 0.5)
    assert found.keys() == {"mean", "std", "mirrored_mean", "mirrored_std"}
    turned = prepare.encoded(bases.resolve(base), images[:, :, ::-1].copy(), 0.0)
    assert torch.equal(found["mirrored_mean"], turned["mean"]) and len(turned) == 2
    assert not torch.equal(found["mirrored_mean"], found["mean"])


# --- templates ----------------------------------------------------------------------------


def test_samples_can_be_asked_for_by_another_template_than_is_taught():
    own = dict(noun="dog", prompts=["{} in snow"])
    plain, asked = DreamBooth(**own), DreamBooth(**own, sample_template="a photo of a {}")
    assert plain.taught == asked.taught == {
        "subject": "photo of a sks dog", "class": "photo of a dog",
    }  # fmt: skip
    assert plain.asked["subject"] == ["photo of a sks dog"]
    assert asked.asked == {
        "subject": ["a photo of a sks dog"],
        "elsewhere": ["sks dog in snow"],
        "class": ["a photo of a dog"],
    }
    assert "sample_template" not in plain.model_dump()
    assert asked.model_dump()["sample_template"] == "a photo of a {}"
