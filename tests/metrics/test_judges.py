"""Judges by name and weights, and captions that a judge does not read to their end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fitspace import metrics
from fitspace.core.errors import UserError
from fitspace.core.imports import import_torchvision
from fitspace.metrics import clip

import_torchvision()
import open_clip  # noqa: E402
from open_clip.pretrained import (  # noqa: E402
    get_pretrained_cfg,
    list_pretrained_tags_by_model,
)

JUDGE = Path(__file__).parents[2] / "models/emoji-clip"
MEANS = {
    "ViT-B-16-SigLIP": (0.5, 0.5, 0.5),
    "ViT-B-32": open_clip.OPENAI_DATASET_MEAN,
    "MobileCLIP-S1": (0.0, 0.0, 0.0),
}


@pytest.mark.parametrize("name, mean", MEANS.items())
def test_weights_by_name_take_their_architectures_own_preprocessing(name, mean):
    found = clip.registered(name)
    assert found["mean"] == tuple(mean)
    for tag in list_pretrained_tags_by_model(name):
        known = get_pretrained_cfg(name, tag)
        assert {k: clip.fixed(known[k]) for k in found} == found


def test_weights_whose_preprocessing_nobody_can_tell_are_refused():
    with pytest.raises(UserError, match="ViT-L-14: its weights take images prepared in . ways"):
        clip.registered("ViT-L-14")


def test_a_judge_by_name_is_prepared_for_as_the_registry_says(tmp_path, monkeypatch):
    config = json.loads((JUDGE / "open_clip_config.json").read_text())
    (tmp_path / "emoji-tiny.json").write_text(json.dumps(config["model_cfg"]))
    open_clip.add_model_config(tmp_path)
    way = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0), "interpolation": "bilinear"}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "emoji-tiny", {"one": way})
    spelled = f"emoji-tiny@{JUDGE / 'open_clip_model.safetensors'}"
    found = clip.load(spelled).model.visual.preprocess_cfg
    assert {key: found[key] for key in way} == way
    by_folder = clip.load(JUDGE).model.visual.preprocess_cfg
    assert by_folder["mean"] != found["mean"]


def test_a_judge_without_its_tokenizer_or_as_a_pointer_is_named(tmp_path):
    judge = shutil.copytree(JUDGE, tmp_path / "judge")
    (judge / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="names a tokenizer, and none of tokenizer.json, vocab"):
        metrics.judge_files(judge)
    judge = shutil.copytree(JUDGE, tmp_path / "other")
    (judge / "open_clip_model.safetensors").write_bytes(b"version https://git-lfs.github.com/x")
    with pytest.raises(UserError, match="a pointer of Git LFS.*run: git lfs pull"):
        metrics.judge_files(judge)


def test_a_judge_is_tried_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert metrics.problems(JUDGE) == []
    monkeypatch.setattr(metrics.trying, "_tried", lambda judge: pytest.fail("tried again"))
    assert metrics.problems(JUDGE) == []


def test_captions_that_a_judge_cuts_are_noted():
    long = "red heart and cat face " * 8  # 40 words
    captions = ["red heart", f"{long} one", f"{long} two", "sun"]
    cut, alike = metrics.cut_captions(JUDGE, captions)
    assert cut.startswith("cut to the 20 tokens that the judge reads: 2 captions")
    assert alike.startswith("one and the same to the judge") and "2 captions" in alike
    assert metrics.cut_captions(JUDGE, ["red heart", "sun"]) == []
