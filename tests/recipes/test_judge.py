"""The embedded judge: its loss against open_clip's, its training, and the shipped weights."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fitspace.core.errors import UserError
from fitspace.core.imports import import_torchvision
from fitspace.data import openmoji

import_torchvision()

import open_clip  # noqa: E402
from open_clip.loss import ClipLoss  # noqa: E402

from fitspace.recipes import judge  # noqa: E402

SHIPPED = Path(__file__).parents[2] / "models" / "emoji-clip-32"


def test_with_one_match_each_the_loss_is_open_clips():
    generator = torch.Generator().manual_seed(0)
    images, texts = (
        torch.nn.functional.normalize(torch.randn(6, 16, generator=generator), dim=1)
        for _ in range(2)
    )
    expected = ClipLoss()(images, texts, torch.tensor(20.0))
    got = judge.contrastive_loss(20 * images @ texts.T, torch.eye(6, dtype=torch.bool))
    torch.testing.assert_close(got, expected)


def test_a_perfect_judge_reaches_the_entropy_of_its_targets():
    positive = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    loss = judge.contrastive_loss(50.0 * positive, positive)
    assert loss.item() == pytest.approx(np.log(2) * 2 / 3, abs=1e-5)


MATCHES = {
    "plain captions match every style": ("aab", "xyx", (0, 0, 0), ["110", "110", "001"]),
    "a named style matches only it": ("aab", "xyx", (1, 1, 1), ["100", "010", "001"]),
    "one of each": ("aab", "xyx", (1, 0, 0), ["110", "010", "001"]),
    "same emoji and style": ("aa", "xx", (1, 1), ["11", "11"]),
}


@pytest.mark.parametrize(("captions", "styles", "named", "rows"), MATCHES.values(), ids=MATCHES)
def test_matches(captions, styles, named, rows):
    got = judge.matches(*(np.array(list(x)) for x in (captions, styles)), np.array(named, bool))
    assert got.int().tolist() == [[int(c) for c in row] for row in rows]


@pytest.fixture(scope="module")
def pairs():
    """Six groups of one colour each, in two styles, one group with two members."""
    rng = np.random.default_rng(0)
    rows = []
    for group, colour in enumerate(rng.integers(0, 256, (6, 3))):
        for member in range(2 if group == 0 else 1):
            for style in ("full", "invert"):
                tile = np.broadcast_to(colour, (32, 32, 3)).astype(np.uint8).copy()
                tile[:8] = 40 * member
                image = 255 - tile if style == "invert" else tile
                rows.append((image, f"colour {group} tone {member}", style, f"g{group}"))
    return judge.Pairs(*(np.array(column) for column in zip(*rows, strict=True)))


def test_a_batch_has_two_of_each_of_its_groups(pairs):
    members = [np.flatnonzero(pairs.groups == g) for g in np.unique(pairs.groups)]
    seen = set()
    for step in range(30):
        rows, named = judge.batch_of(pairs, members, seed=0, step=step, batch_size=6)
        groups, counts = np.unique(pairs.groups[rows], return_counts=True)
        assert len(groups) == 3 and set(counts) == {2}
        assert named.shape == (6,)
        seen.update(rows.tolist())
    assert seen == set(range(len(pairs)))


def test_augmented_drawings_stay_in_place():
    images = np.full((8, 32, 32, 3), 255, np.uint8)
    images[:, 12:20, 12:20] = 0
    out = judge.augment(images, np.random.default_rng(0))
    assert out.shape == (8, 3, 32, 32) and out.min() >= -1 and out.max() <= 1
    # The square's corners move by at most shift, scale and turn; its middle stays dark.
    assert (out[:, :, 16, 16] < 0).float().mean() > 0.7
    assert (out[:, :, [0, 0, -1, -1], [0, -1, 0, -1]] == 1).all()
    assert len({row.numpy().tobytes() for row in out}) == 8


@pytest.fixture(scope="module")
def tokenizer(pairs, tmp_path_factory):
    out = tmp_path_factory.mktemp("settings")
    captions = [judge.styled(c, s) for c, s in zip(pairs.captions, pairs.styles, strict=True)]
    judge.save_settings(judge.build_tokenizer(captions), out)
    return open_clip.get_tokenizer(f"local-dir:{out}")


def test_captions_are_told_apart_and_truncated(tokenizer):
    ids = tokenizer(["Colour 1", "colour 1", "colour 2", "unheard of", "colour " * 40])
    assert ids.shape == (5, 16)
    assert torch.equal(ids[0], ids[1]) and not torch.equal(ids[1], ids[2])
    assert (ids[:, 0] == judge.START).all() and ids[4, -1] == judge.END
    assert ((ids == judge.END).sum(1) == 1).all() and not (ids == judge.UNKNOWN).any()


def test_the_tokenizer_is_the_same_in_every_process():
    captions = [f"word{i % 7} thing{i % 11} and{i}" for i in range(50)]
    code = (
        "from fitspace.recipes import judge;"
        f"print(judge.build_tokenizer({captions!r}).to_str(pretty=False))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", code]
    other = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert other.stdout.strip() == judge.build_tokenizer(captions).to_str(pretty=False)


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def test_training_learns_and_resumes_exactly(pairs, tokenizer, tmp_path, monkeypatch):
    settings = judge.Settings(steps=30, batch_size=8, lr=3e-3, seed=1)
    model, losses, _ = judge.train_model(pairs, tokenizer, settings, tmp_path / "whole.pt")
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3

    monkeypatch.setattr(judge, "CHECKPOINT_EVERY", 10)
    compute = judge.step_loss

    def stop(*arguments):
        if arguments[-1] == 17:
            raise KeyboardInterrupt
        return compute(*arguments)

    monkeypatch.setattr(judge, "step_loss", stop)
    checkpoint = tmp_path / "half.pt"
    with pytest.raises(KeyboardInterrupt):
        judge.train_model(pairs, tokenizer, settings, checkpoint)
    monkeypatch.setattr(judge, "step_loss", compute)
    resumed, resumed_losses, _ = judge.train_model(pairs, tokenizer, settings, checkpoint)
    assert resumed_losses == losses
    ours, theirs = weights(model), weights(resumed)
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)

    with pytest.raises(UserError, match="half.pt: made with .*remove it"):
        judge.train_model(pairs, tokenizer, judge.Settings(steps=30, seed=2), checkpoint)


def test_recall_counts_the_rows_whose_own_column_is_near():
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.5, 0.6], [0.1, 0.4, 0.3]])
    assert judge.recall_at(similarity, 1) == pytest.approx(1 / 3)
    assert judge.recall_at(similarity, 2) == pytest.approx(2 / 3)
    assert judge.recall_at(similarity, 3) == 1


@pytest.mark.parametrize(("k", "expected"), [(1, 0.25), (2, 0.5), (4, 1.0)])
def test_a_judge_that_cannot_tell_recalls_by_chance(k, expected):
    assert judge.recall_at(torch.ones(4, 4), k) == pytest.approx(expected)


def test_unseen_words(pairs):
    held_out = judge.Pairs(
        pairs.images[:2], np.array(["colour 1", "hue 1"]), *[pairs.styles[:2]] * 2
    )
    assert judge.unseen(held_out, pairs) == 0.5


def test_the_shipped_judge_is_small_and_half_precision():
    from safetensors import safe_open

    path = SHIPPED / "open_clip_model.safetensors"
    assert path.stat().st_size < 4e6
    with safe_open(path, "pt") as file:
        kinds = {file.get_slice(k).get_dtype() for k in file.keys()}  # noqa: SIM118
    assert kinds == {"F16", "I64"}


def test_the_shipped_judge_does_what_its_card_says():
    drawn = [e for e in openmoji.examples("full", judge.SIZE, progress=False) if e.split == "test"]
    columns = [(e.image, e.caption, "full", e.group) for e in drawn]
    held_out = judge.Pairs(*(np.array(column) for column in zip(*columns, strict=True)))
    got = judge.retrieval(SHIPPED, held_out, styles=("full",))["full"]
    row = re.search(r"^\| full \|(.*)\|$", (SHIPPED / "README.md").read_text(), re.MULTILINE)
    said = [float(x) for x in row[1].split("|")]
    names = [k for k in got if k != "n"]
    assert said[0] == got["n"] == len(drawn)
    # Half a percent is two drawings: another processor may swap near ties.
    assert [100 * got[k] for k in names] == pytest.approx(said[1:], abs=0.6)
    assert got["image_to_text_top5"] > 10 * 5 / len(drawn)
    assert got["style"] > 0.7
