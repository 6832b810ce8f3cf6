"""What a report is told of a study's images and captions."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from fitspace.results.table import write_data_notes

TWINS = "held out and trained on as well, pixel for pixel: 'c' (1 in all)"


def plan(folder, scored: int, **manifest):
    """A plan of one task with this manifest: images a and b are trained on, c and d held out."""
    digests = {"a": "1", "b": "2", "c": "1", "d": "4"}
    split = {"a": "train", "b": "train", "c": "test", "d": "test"}
    examples = [{"name": n, "split": split[n], "sha256": digests[n]} for n in digests]
    written = {"examples": examples, "notes": [TWINS], "prompt_images": [1, 0]} | manifest
    (folder / "manifest.json").write_text(json.dumps(written))
    run = SimpleNamespace(
        task=SimpleNamespace(name="own"),
        prepare=SimpleNamespace(folder=folder),
        reference=SimpleNamespace(sidecar=folder / "reference.json"),
    )
    return SimpleNamespace(
        runs=[run], study=SimpleNamespace(sample=SimpleNamespace(prompts=scored))
    )


@pytest.mark.parametrize(
    ("scored", "manifest", "more"),
    [
        pytest.param(
            2, {}, ["of the 2 captions that are scored 1 asks for such an image"], id="scored"
        ),
        pytest.param(1, {}, [], id="held-out-but-not-scored"),
        pytest.param(2, {"roles": {"taught": [0]}}, [], id="subject"),
    ],
)
def test_notes_count_the_scored_captions_of_images_that_are_trained_on(
    tmp_path, scored, manifest, more
):
    write_data_notes(plan(tmp_path, scored, **manifest), tmp_path)
    assert json.loads((tmp_path / "notes.json").read_text()) == {"own": [TWINS, *more]}


def test_notes_stay_where_the_prepared_task_is_not_here(tmp_path):
    own = plan(tmp_path, 2)
    write_data_notes(own, tmp_path)
    before = (tmp_path / "notes.json").read_bytes()
    (tmp_path / "manifest.json").unlink()
    write_data_notes(own, tmp_path)
    assert (tmp_path / "notes.json").read_bytes() == before
