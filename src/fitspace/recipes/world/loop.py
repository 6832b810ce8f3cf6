"""One training loop for every part: numbered steps, moving average, checkpoints, samples.

A step's batch, noise and learning rate depend only on its number. A training that is killed and
restarted therefore ends with the same bits (on one kind of CPU, with one thread).
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fitspace.core.errors import UserError
from fitspace.core.files import write_text
from fitspace.training import Member, learning_rate

CHECKPOINT_SECONDS = 120.0
SHEET_STEPS = 1000


@dataclass(frozen=True)
class Schedule:
    """Settings of all parts: steps of AdamW, with a warm-up and then a cosine down to zero."""

    steps: int
    batch_size: int
    lr: float
    warmup_steps: int
    ema: float = 0.999
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """The averaged model, one loss a step, and the hours that all steps took."""

    model: torch.nn.Module
    losses: list[float]
    hours: float

    def record(self, settings: Schedule) -> dict[str, Any]:
        """How the model was trained, for its ``training.json``."""
        hours = round(self.hours, 3)
        return {"settings": asdict(settings), "hours": hours, "losses": self.losses}


def train(
    model: torch.nn.Module,
    loss_at: Callable[[int], torch.Tensor],
    settings: Schedule,
    made_of: dict[str, Any],
    folder: Path,
    sheet: Callable[[torch.nn.Module, Path], None],
    description: str,
    cost: Callable[[int], float] = lambda step: 1.0,
) -> Trained:
    """Train all of a model's parameters that take a gradient; returns its moving average.

    Parameters
    ----------
    loss_at : a step's number -> its loss, computed with ``model``.
    made_of : what else determines the result (the data's key); a checkpoint of another is refused.
    folder : gets ``checkpoint.safetensors``, ``losses.csv`` and ``sheets/<step>.png``.
    sheet : draws samples of the averaged model; called every ``SHEET_STEPS`` and at the end.
    cost : a step's number -> how long it takes beside other steps, for the time left.

    Raises
    ------
    UserError : a checkpoint of another training, or a loss that is not finite.
    """
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    facts = asdict(settings) | {"lr_schedule": "cosine", "made_of": made_of}
    member = Member(trainable, facts, settings.seed, folder / "checkpoint.safetensors")
    member.resume()
    start = len(member.losses)
    costs = np.array([cost(step) for step in range(settings.steps)])
    started = last = saved = time.monotonic()
    for step in range(start, settings.steps):
        loss = loss_at(step)
        member.optimizer.zero_grad()
        loss.backward()
        member.update(step, loss.item())
        if member.diverged:
            raise UserError(f"{description}: {member.diverged}")
        now = time.monotonic()
        member.seconds, last = member.seconds + now - last, now
        shown = (step + 1) % SHEET_STEPS == 0 or step + 1 == settings.steps
        if shown or now - saved > CHECKPOINT_SECONDS:
            member.save()
            _log(member, folder / "losses.csv")
            saved = time.monotonic()
            left = (saved - started) / costs[start : step + 1].sum() * costs[step + 1 :].sum()
            said = f"step {step + 1} of {settings.steps}, loss {np.mean(member.losses[-100:]):.4f}"
            print(f"{description}: {said}, {left / 3600:.2f} h left", file=sys.stderr, flush=True)
        if shown:
            sheet(averaged(model, member), folder / "sheets" / f"{step + 1:06d}.png")
    return Trained(averaged(model, member), member.losses, member.seconds / 3600)


def averaged(model: torch.nn.Module, member: Member) -> torch.nn.Module:
    """A copy of the model with the moving average of its parameters, in evaluation mode."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for name, value in member.ema.items():
        model.get_parameter(name).copy_(value)
    return model


def _log(member: Member, path: Path) -> None:
    rows = [
        f"{step},{loss!r},{learning_rate(member.settings, step)!r}\n"
        for step, loss in enumerate(member.losses)
    ]
    write_text(path, "".join(["step,loss,lr\n", *rows]))
