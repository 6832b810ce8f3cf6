"""Fit a method's trainables on a prepared task.

A run that is killed at any step and restarted ends with the same bits (on one kind of CPU).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import trange

from fitspace.bases import family_of
from fitspace.bases.process import Process
from fitspace.core import rng
from fitspace.core.errors import UserError
from fitspace.core.memory import fewer_at_once
from fitspace.data.prepared import PreparedTask
from fitspace.training.batch import Batch, make_batch
from fitspace.training.member import (
    Fit,
    Member,
)
from fitspace.training.reward import Reward

CHECKPOINT_SECONDS = 20.0
TOGETHER = "dropout masks are drawn for all of a batch together"
# What runs of a fold have in common.
COMMON = (
    "steps", "batch_size", "examples_at_once", "positions", "precision", "prior_weight", "reward",
)  # fmt: skip


def fit(
    model: torch.nn.Module,
    trainable: dict[str, torch.nn.Parameter],
    task: PreparedTask,
    process: Process,
    scaling: float,
    settings: dict[str, Any],
    seed: int,
    checkpoint: Path,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    description: str = "training",
    on_step: Callable[[int], None] | None = None,
    on_loss: Callable[[int, float, float], None] | None = None,
    dropouts: Sequence[torch.nn.Module] = (),
    rates: dict[str, float] | None = None,
    reward: Reward | None = None,
) -> Fit:
    """Train ``trainable`` by AdamW and return their final values.

    Parameters
    ----------
    model : the denoiser with the method attached.
    settings : a resolved :class:`fitspace.study.TrainSettings` as a dict.
    checkpoint : file that is written about every ``checkpoint_seconds``; if it exists, training
        continues from it. The caller deletes it once the result is written.
    on_loss : called with each step, its loss and its learning rate.
    dropouts : the method's dropout layers, active only during training; the base stays in
        evaluation mode (its own label dropout, drawn once per block, would undo ours).
    rates : name -> factor on the learning rate, for the parameters of which it is not 1.
    reward : what is added to the loss; None: nothing.

    A loss that is not finite ends training, see :class:`Fit`.

    Raises
    ------
    UserError : a checkpoint of another run, or device memory too small for one example.
    """
    member = Member(trainable, settings, seed, checkpoint, on_loss, rates)
    (result,) = fit_members(
        model, [member], task, process, scaling, checkpoint_seconds, description, on_step,
        dropouts, reward=reward,
    )  # fmt: skip
    return result


def fit_members(
    model: torch.nn.Module,
    members: Sequence[Member],
    task: PreparedTask,
    process: Process,
    scaling: float,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    description: str = "training",
    on_step: Callable[[int], None] | None = None,
    dropouts: Sequence[torch.nn.Module] = (),
    folded: bool = False,
    shift: float = 0.0,
    reward: Reward | None = None,
) -> list[Fit]:
    """Train one run, or the members of a fold in one batch; see :func:`fit`.

    In a fold ``model`` is evaluated with each member's own leaves in place of its parameters; all
    other parameters are shared. A member whose loss is not finite leaves the fold; the others
    continue. ``scaling`` and ``shift`` are those of :func:`make_batch`; ``reward`` is what the
    loss of each member has beside.

    Raises
    ------
    UserError : as :func:`fit`, or checkpoints at different steps.
    """
    if folded and reward is not None and reward.through:
        raise ValueError("a reward of drawn images is for one run alone")
    for member in members:
        member.resume()
        member.folded = max(member.folded, len(members))
    settings, start = members[0].settings, len(members[0].losses)
    if any(len(member.losses) != start for member in members):
        raise UserError(f"{members[0].checkpoint}: others of the fold are at another step")
    device = members[0].parameters[0].device
    whole = settings["batch_size"] * (2 if task.prior else 1)
    at_once = min(settings.get("examples_at_once") or whole, whole)
    if dropouts and at_once < whole:
        raise UserError(
            f"train.examples_at_once: {at_once} of {whole}; allowed: all, as {TOGETHER}"
        )
    runs_at_once, active = len(members), list(members)
    last = saved = time.monotonic()
    for layer in dropouts:
        layer.train()
    progress = trange(start, settings["steps"], initial=start, total=settings["steps"],
                      desc=description, disable=None)  # fmt: skip
    for step in progress:
        batches = [
            make_batch(task, process, scaling, m.settings, m.seed, step, shift).to(device)
            for m in active
        ]
        if dropouts:  # the only numbers that torch itself draws
            seed = members[0].seed
            torch.manual_seed(int(rng.generator(seed, "dropout", step).integers(2**63)))
        half = settings["precision"] == "bf16"
        losses: list[float] = []
        while not losses:
            for member in active:
                member.optimizer.zero_grad()
            try:
                if folded:
                    losses = _backward_folded(
                        model, process, active, batches, runs_at_once, at_once, half, reward
                    )
                else:
                    losses = [_backward(model, process, batches[0], at_once, half, reward)]
                continue
            except torch.OutOfMemoryError:
                pass  # and out of the handler: a traceback keeps the step's tensors alive
            runs_at_once = min(runs_at_once, len(active))
            if runs_at_once > 1:
                runs_at_once = fewer_at_once(runs_at_once, "train: runs")
            else:
                never = TOGETHER if dropouts else None
                at_once = fewer_at_once(at_once, "train: examples", never)
        for member, loss in zip(active, losses, strict=True):
            member.update(step, loss)
        now = time.monotonic()
        for member in active:
            member.seconds += (now - last) / len(active)
        last = now
        active = [member for member in active if member.diverged is None]
        if not active:
            break
        progress.set_postfix(loss=f"{np.mean(active[0].losses[-50:]):.4f}", refresh=False)
        if now - saved > checkpoint_seconds:
            for member in active:
                member.save()
            saved = time.monotonic()
            # Of a large model a checkpoint takes long: a tenth of the time at most.
            checkpoint_seconds = max(checkpoint_seconds, 9 * (saved - now))
        if on_step is not None:
            on_step(step)
    progress.close()
    for layer in dropouts:
        layer.eval()
    return [member.result(at_once) for member in members]


def _backward(
    model, process, batch: Batch, at_once: int, half: bool, reward: Reward | None
) -> float:
    """The batch's mean loss; accumulates its gradient over parts of ``at_once`` examples."""
    total, predict = 0.0, family_of(model).predict
    for first in range(0, len(batch), at_once):
        part = batch[first : first + at_once]
        with torch.autocast(part.t.device.type, dtype=torch.bfloat16, enabled=half):
            predicted = predict(model, part.noisy, part.t, part.conditions)
        loss = _loss(process, predicted, part, len(batch), reward, model, half)
        total += loss.item()
        loss.backward()
    return total


def _loss(
    process,
    predicted: torch.Tensor,
    part: Batch,
    size: int,
    reward: Reward | None,
    model: torch.nn.Module | None = None,
    half: bool = False,
) -> torch.Tensor:
    """A part's share of the mean loss of a batch of ``size``; ``model``: see `Reward.losses`."""
    loss = part.losses(process, predicted.float())
    if reward is not None:
        loss = loss + reward.losses(process, predicted.float(), part, model, half)
    return loss.mean() if len(part) == size else loss.sum() / size


def _backward_folded(
    model,
    process: Process,
    members: Sequence[Member],
    batches: Sequence[Batch],
    runs_at_once: int,
    at_once: int,
    half: bool,
    reward: Reward | None,
) -> list[float]:
    """As :func:`_backward` for every member; the members' batches form one batch on the device.

    vmap turns operations with shared weights into ones on (runs * examples) rows, and operations
    with the members' own weights into batched products and grouped convolutions.
    """

    family = family_of(model)

    def predict(own, noisy, t, conditions) -> torch.Tensor:
        def call(noisy, **told):
            return torch.func.functional_call(model, own, (noisy,), told)

        return family.predict(model, noisy, t, conditions, call)

    if len(members) > runs_at_once:
        return [
            loss
            for first in range(0, len(members), runs_at_once)
            for loss in _backward_folded(
                model, process, members[first : first + runs_at_once],
                batches[first : first + runs_at_once], runs_at_once, at_once, half, reward,
            )
        ]  # fmt: skip
    totals = [0.0] * len(members)
    for first in range(0, len(batches[0]), at_once):
        parts = [batch[first : first + at_once] for batch in batches]
        stacked = {n: torch.stack([m.trainable[n] for m in members]) for n in members[0].trainable}
        inputs = [torch.stack([getattr(p, n) for p in parts]) for n in ("noisy", "t")]
        told = {n: torch.stack([p.conditions[n] for p in parts]) for n in parts[0].conditions}
        with torch.autocast(inputs[0].device.type, dtype=torch.bfloat16, enabled=half):
            predicted = torch.vmap(predict)(stacked, *inputs, told)
        losses = [
            _loss(process, own, part, len(batch), reward)
            for own, part, batch in zip(predicted, parts, batches, strict=True)
        ]
        torch.stack(losses).sum().backward()
        totals = [total + loss.item() for total, loss in zip(totals, losses, strict=True)]
    return totals
