"""Training: exact resume, common random numbers, divergence, learning rates."""

import json
import os
import random
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from fitspace import training
from fitspace.core import rng
from fitspace.core.errors import UserError
from fitspace.training import member

HERE = Path(__file__).parents[1]


def _program(out: Path, checkpoint: Path, steps: int, killed_after: float | None = None) -> int:
    command = [sys.executable, str(HERE / "tiny.py"), str(out), str(checkpoint), str(steps)]
    command += [] if killed_after is None else [str(killed_after)]
    environment = os.environ | {"PYTHONPATH": ""}
    return subprocess.run(command, stderr=subprocess.DEVNULL, env=environment).returncode


@pytest.mark.slow
def test_killed_at_any_moment_and_restarted_gives_the_same_bits(tmp_path):
    steps = 100
    whole, resumed = tmp_path / "whole.safetensors", tmp_path / "resumed.safetensors"
    assert _program(whole, tmp_path / "a" / "c.safetensors", steps) == 0

    checkpoint = tmp_path / "b" / "c.safetensors"
    for _ in range(2):
        after = 0.001 + random.random() * 0.05
        assert _program(resumed, checkpoint, steps, after) == -signal.SIGALRM
        assert checkpoint.exists() and not resumed.exists()
    assert _program(resumed, checkpoint, steps) == 0
    assert whole.read_bytes() == resumed.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run that nobody interrupts gives: a function of EMA, which trains each once."""
    folder = tmp_path_factory.mktemp("whole")
    return cache(lambda ema=tiny.SETTINGS["ema"]: tiny.fit(folder / f"{ema}", ema=ema))


def interrupted(checkpoint, stop, **changes):
    """A run that ends after a step, and leaves its checkpoint."""

    class Stop(Exception):
        pass

    def interrupt(step):
        if step == stop:
            raise Stop

    with pytest.raises(Stop):
        tiny.fit(checkpoint, checkpoint_seconds=0.0, on_step=interrupt, **changes)


@pytest.mark.parametrize("stop", [0, 4, 10], ids=lambda s: f"after step {s}")
@pytest.mark.parametrize("ema", [None, 0.9], ids=["no EMA", "EMA"])
def test_resume_is_exact_at_every_step(tmp_path, whole, stop, ema):
    checkpoint = tmp_path / "c.safetensors"
    interrupted(checkpoint, stop, ema=ema)
    resumed = tiny.fit(checkpoint, ema=ema)
    assert resumed.losses == whole(ema).losses
    assert all(torch.equal(v, resumed.parameters[n]) for n, v in whole(ema).parameters.items())


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    checkpoint = tmp_path / "c.safetensors"
    tiny.fit(checkpoint, checkpoint_seconds=0.0)
    with pytest.raises(UserError, match="another run"):
        tiny.fit(checkpoint, lr=0.5)


def test_points_of_a_seed_see_the_same_noise_steps_and_data():
    def batch(seed, step, **point):
        settings = tiny.SETTINGS | point
        return training.make_batch(tiny.task(), tiny.process(), 0.5, settings, seed, step)

    again, other = batch(0, 3, lr=0.5, ema=None, steps=99), batch(1, 3)
    for name in ("clean", "noise", "noisy", "t", "weight"):
        assert torch.equal(getattr(batch(0, 3), name), getattr(again, name))
    told = (made.conditions["embeddings"] for made in (batch(0, 3), again))
    assert torch.equal(*told)
    assert not torch.equal(again.noisy, other.noisy)
    assert not torch.equal(again.noisy, batch(0, 4).noisy)


def test_a_longer_batch_starts_with_the_examples_of_a_shorter_one():
    def first(size):
        settings = tiny.SETTINGS | {"batch_size": size}
        return training.make_batch(tiny.task(), tiny.process(), 0.5, settings, 0, 0)

    assert torch.equal(first(6).noisy[:4], first(4).noisy)


def test_training_lowers_the_loss_and_changes_nothing_frozen(tmp_path):
    from fitspace import methods

    model = tiny.unet()
    before = {n: p.clone() for n, p in model.named_parameters()}
    attachment = methods.attach(
        model, "adapter", {"input": "CA_out", "output": "FFN_in", "width": 8}, 0
    )
    result = training.fit(
        model, attachment.trainable, tiny.task(), tiny.process(), 0.5,
        tiny.SETTINGS | {"steps": 150, "batch_size": 8}, 0, tmp_path / "c.safetensors",
    )  # fmt: skip
    assert np.mean(result.losses[-30:]) < 0.95 * np.mean(result.losses[:30])
    attachment.remove()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_bf16_is_near_fp32_and_keeps_fp32_trainables(tmp_path):
    full = tiny.fit(tmp_path / "a.safetensors")
    half = tiny.fit(tmp_path / "b.safetensors", precision="bf16")
    assert half.losses != full.losses
    assert half.losses == pytest.approx(full.losses, rel=0.1)
    assert all(v.dtype == torch.float32 for v in half.parameters.values())


@pytest.mark.parametrize("at_once", [1, 3])
def test_gradients_added_up_are_those_of_the_whole_batch(tmp_path, at_once):
    whole = tiny.fit(tmp_path / "a.safetensors")
    parts = tiny.fit(tmp_path / "b.safetensors", examples_at_once=at_once)
    assert (whole.examples_at_once, parts.examples_at_once) == (4, at_once)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-4) and parts.losses != whole.losses
    for name, value in whole.parameters.items():
        torch.testing.assert_close(parts.parameters[name], value, rtol=1e-2, atol=1e-4)
    all_of_it = tiny.fit(tmp_path / "c.safetensors", examples_at_once=4)
    assert all_of_it.losses == whole.losses


def test_a_batch_with_dropout_is_not_taken_apart(tmp_path):
    from fitspace import methods

    model = tiny.unet()
    attachment = methods.attach(model, "adaptformer", {"width": 4}, 0)
    with pytest.raises(UserError, match="train.examples_at_once: 2 of 4; allowed: all, as dropout"):
        training.fit(
            model, attachment.trainable, tiny.task(), tiny.process(), 0.5,
            tiny.SETTINGS | {"examples_at_once": 2}, 0, tmp_path / "c.safetensors",
            dropouts=attachment.dropouts,
        )  # fmt: skip


EXPLODES = dict(method="full", lr=10.0, grad_clip=None, steps=200, warmup_steps=0,
                lr_schedule="constant", weight_decay=1.0, batch_size=2, min_snr_gamma=None,
                ema=None)  # fmt: skip


def test_a_loss_that_is_not_finite_ends_the_run_and_says_where(tmp_path):
    result = tiny.fit(tmp_path / "c.safetensors", **EXPLODES)
    step = len(result.losses) - 1
    assert 0 < step < 199 and not np.isfinite(result.losses[-1])
    assert np.isfinite(result.losses[:-1]).all()
    assert result.diverged == f"the loss is {result.losses[-1]} at step {step}"


def test_parameters_that_are_not_finite_after_the_last_step_are_a_divergence_too(tmp_path):
    """The last step's update is in no loss any more."""
    last = len(tiny.fit(tmp_path / "c.safetensors", **EXPLODES).losses) - 1
    result = tiny.fit(tmp_path / "d.safetensors", **EXPLODES | {"steps": last})
    assert np.isfinite(result.losses).all() and len(result.losses) == last
    finite = all(v.isfinite().all() for v in result.parameters.values())
    assert finite == (result.diverged is None)

    def spoil(step):
        if step == 2:
            with torch.no_grad():
                next(iter(attachment.trainable.values())).fill_(torch.inf)

    from fitspace import methods

    attachment = methods.attach(tiny.unet(), "bitfit", {}, 0)
    result = training.fit(
        attachment.model, attachment.trainable, tiny.task(), tiny.process(), 0.5,
        tiny.SETTINGS | {"steps": 3, "ema": None}, 0, tmp_path / "e.safetensors", on_step=spoil,
    )  # fmt: skip
    assert result.diverged == "parameters are not finite after step 2"


# --- damaged checkpoints ----------------------------------------------------------------


def forged(content: bytes) -> bytes:
    """Another shape, and the SHA-256 made to fit."""
    from safetensors.torch import load, save

    size = int.from_bytes(content[:8], "little")
    said, tensors = json.loads(content[8 : 8 + size])["__metadata__"], load(content)
    name = next(name for name in tensors if name.startswith("value/"))
    tensors[name] = tensors[name][..., None]
    said["sha256"] = member.checkpoint_digest(said["fitspace"], tensors)
    return save(tensors, said)


DAMAGES = {
    "forged": forged,
    "truncated": lambda b: b[: len(b) // 2],
    "empty": lambda b: b"",
    "a bit of the last tensor": lambda b: b[:-1] + bytes([b[-1] ^ 1]),
    "a bit of a tensor in the middle": lambda b: b[:-4000] + bytes([b[-4000] ^ 4]) + b[-3999:],
    "a loss": lambda b: b.replace(b'losses\\":[', b'losses\\":[9', 1)[: len(b)],
    "another file": lambda b: b"\x00" * len(b),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The bytes of a checkpoint after six steps."""
    checkpoint = tmp_path_factory.mktemp("good") / "c.safetensors"
    interrupted(checkpoint, 6)
    return checkpoint.read_bytes()


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_never_used(tmp_path, whole, good, damage, capsys):
    checkpoint, whole = tmp_path / "c.safetensors", whole()
    checkpoint.write_bytes(damage(good))
    assert checkpoint.read_bytes() != good
    again = tiny.fit(checkpoint)
    assert "damaged" in capsys.readouterr().err
    assert again.losses == whole.losses
    assert all(torch.equal(v, again.parameters[n]) for n, v in whole.parameters.items())


def test_a_checkpoint_that_cannot_be_written_costs_a_warning(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(member, "save_file", full)
    result = tiny.fit(tmp_path / "c.safetensors", checkpoint_seconds=0.0)
    assert len(result.losses) == 12 and result.diverged is None
    assert "No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


LEARNING_RATES = {
    "first of the warm-up": (dict(warmup_steps=4), 0, 0.25),
    "end of the warm-up": (dict(warmup_steps=4), 3, 1.0),
    "constant": (dict(warmup_steps=0), 9, 1.0),
    "cosine at the start": (dict(lr_schedule="cosine"), 0, 1.0),
    "cosine half way": (dict(lr_schedule="cosine"), 5, 0.5),
}


@pytest.mark.parametrize("change, step, expected", LEARNING_RATES.values(), ids=LEARNING_RATES)
def test_learning_rate(change, step, expected):
    settings = dict(lr=1.0, steps=10, warmup_steps=0, lr_schedule="constant") | change
    assert training.learning_rate(settings, step) == pytest.approx(expected)


def test_order_visits_everything_once_an_epoch():
    visits = np.concatenate([rng.order(5, step, 4, 10) for step in range(5)])
    assert sorted(visits[:10]) == sorted(visits[10:]) == list(range(10))
    assert list(visits[:10]) != list(visits[10:])


KEPT = dict(checkpoints=[3, 7], lr_schedule="constant")


@pytest.mark.parametrize("ema", [None, 0.9], ids=["no EMA", "EMA"])
def test_a_checkpoint_is_what_a_training_of_its_steps_gives(tmp_path, ema):
    found = tiny.fit(tmp_path / "c", ema=ema, **KEPT)
    assert list(found.kept) == [3, 7]
    for step, values in found.kept.items():
        alone = tiny.fit(tmp_path / f"{step}", ema=ema, steps=step, lr_schedule="constant")
        assert all(torch.equal(v, values[n]) for n, v in alone.parameters.items())
    last = tiny.fit(tmp_path / "d", ema=ema, lr_schedule="constant")
    assert all(torch.equal(v, found.parameters[n]) for n, v in last.parameters.items())


@pytest.mark.parametrize("stop", [1, 2, 5, 9], ids=lambda s: f"after step {s}")
def test_checkpoints_survive_a_resume(tmp_path, stop):
    whole = tiny.fit(tmp_path / "whole", **KEPT)
    interrupted(tmp_path / "c", stop, **KEPT)
    resumed = tiny.fit(tmp_path / "c", **KEPT)
    assert resumed.losses == whole.losses and list(resumed.kept) == [3, 7]
    for step, values in whole.kept.items():
        assert all(torch.equal(v, resumed.kept[step][n]) for n, v in values.items())
