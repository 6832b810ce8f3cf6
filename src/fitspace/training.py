"""The train stage: fit a method's trainables on a prepared task.

All randomness comes from :mod:`fitspace.rng`, numbered by step and example: points of one
seed see the same data, noise and time steps, and a run killed at any step and started again
ends in the same bits (on one kind of CPU).
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm, trange

from fitspace import objectives, rng
from fitspace.data.prepare import PreparedTask
from fitspace.errors import UserError
from fitspace.files import canonical, replacing
from fitspace.memory import fewer_at_once

BETAS = (0.9, 0.999)
CHECKPOINT_SECONDS = 20.0
TOGETHER = "dropout masks are drawn for all of a batch together"


@dataclass(frozen=True)
class Fit:
    """What training yields.

    Attributes
    ----------
    parameters : name -> tensor, the moving average where one was kept, else the last value.
    losses : one per step.
    seconds : wall time of all steps, those before a resume included.
    diverged : why training stopped before its end, with the last parameters as they stood then;
        None where all went well.
    examples_at_once : how many examples of a batch the device computed at once.
    """

    parameters: dict[str, torch.Tensor]
    losses: list[float]
    seconds: float
    diverged: str | None = None
    examples_at_once: int = 0


def learning_rate(settings: dict[str, Any], step: int) -> float:
    """Learning rate of a step (counted from 0): linear warm-up, then constant or cosine."""
    warmup, total = settings["warmup_steps"], settings["steps"]
    if step < warmup:
        return settings["lr"] * (step + 1) / warmup
    if settings["lr_schedule"] == "constant":
        return settings["lr"]
    done = (step - warmup) / max(1, total - warmup)
    return settings["lr"] * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Batch:
    """Inputs of one step: clean latents, noise, both mixed, time steps, conditions, weights."""

    clean: torch.Tensor
    noise: torch.Tensor
    noisy: torch.Tensor
    t: torch.Tensor
    condition: torch.Tensor
    weight: torch.Tensor

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, rows: slice) -> Batch:
        return Batch(**{name: value[rows] for name, value in vars(self).items()})

    def to(self, device: torch.device) -> Batch:
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})


def make_batch(
    task: PreparedTask, scheduler, scaling: float, settings: dict[str, Any], seed: int, step: int
) -> Batch:
    """Draw one step's batch: the same for every point of a seed.

    With class images as many of them follow. Their share is in ``weight``: the mean over the
    batch is then that of the task's examples plus ``prior_weight`` times theirs (2208.12242,
    section 3.3).
    """
    chosen, captions, times, resample, noise = [], [], [], [], []
    size, shape = settings["batch_size"], task.mean.shape[1:]
    items = rng.order(seed, step, size, len(task.groups))
    sources = [("train", i, task.groups[item]) for i, item in enumerate(items)]
    sources += [("prior", i, task.prior) for i in range(size if task.prior else 0)]
    for stream, position, group in sources:
        draw = rng.generator(seed, stream, step, position)
        example = group[int(draw.integers(len(group)))]
        dropped = draw.random() < settings["caption_dropout"]
        chosen.append(example)
        captions.append(0 if dropped else int(task.captions[example]))
        times.append(int(draw.integers(scheduler.config.num_train_timesteps)))
        resample.append(draw.standard_normal(shape, dtype=np.float32))
        noise.append(draw.standard_normal(shape, dtype=np.float32))
    t = torch.tensor(times)
    epsilon = torch.from_numpy(np.stack(noise))
    latents = task.mean[chosen] + task.std[chosen] * torch.from_numpy(np.stack(resample))
    latents = latents * scaling
    weight = objectives.weights(scheduler, t, settings["min_snr_gamma"])
    if task.prior:
        weight = weight * torch.tensor([2.0] * size + [2.0 * task.prior_weight] * size)
    return Batch(
        clean=latents,
        noise=epsilon,
        noisy=scheduler.add_noise(latents, epsilon, t),
        t=t,
        condition=task.conditions[captions],
        weight=weight,
    )


def fit(
    model: torch.nn.Module,
    trainable: dict[str, torch.nn.Parameter],
    task: PreparedTask,
    scheduler,
    scaling: float,
    settings: dict[str, Any],
    seed: int,
    checkpoint: Path,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    description: str = "training",
    on_step: Callable[[int], None] | None = None,
    on_loss: Callable[[int, float, float], None] | None = None,
    dropouts: Sequence[torch.nn.Module] = (),
) -> Fit:
    """Train ``trainable`` by AdamW and return their final values.

    Parameters
    ----------
    model : the denoiser with the method attached; called as ``model(x, t, condition).sample``.
    settings : a resolved :class:`fitspace.config.TrainSettings` as a dict.
    checkpoint : file that is written about every ``checkpoint_seconds``; when it is there,
        training continues from it. The caller deletes it when the result is safe.
    on_loss : called with each step, its loss and its learning rate.
    dropouts : the method's dropout layers, at work here and nowhere else; the base stays in
        evaluation mode (its own label dropout, drawn once per block, would undo ours).

    A loss that is not finite ends it: see :class:`Fit`.

    Raises
    ------
    UserError : a checkpoint of another run, or the device's memory does not hold one example.
    """
    parameters = list(trainable.values())
    device = parameters[0].device
    optimizer = torch.optim.AdamW(
        parameters, lr=settings["lr"], betas=BETAS, weight_decay=settings["weight_decay"]
    )
    decay = settings["ema"]
    ema = {n: p.detach().clone() for n, p in trainable.items()} if decay is not None else {}
    identity = canonical({"settings": settings, "seed": seed, "names": list(trainable)})
    start, losses, before = _resume(checkpoint, identity, trainable, optimizer, ema)
    clock = saved = time.monotonic()
    at_once = settings["batch_size"] * (2 if task.prior else 1)
    diverged = None
    for layer in dropouts:
        layer.train()
    progress = trange(start, settings["steps"], initial=start, total=settings["steps"],
                      desc=description, disable=None)  # fmt: skip
    for step in progress:
        batch = make_batch(task, scheduler, scaling, settings, seed, step).to(device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        if dropouts:  # the only numbers that torch itself draws
            torch.manual_seed(int(rng.generator(seed, "dropout", step).integers(2**63)))
        half = settings["precision"] == "bf16"
        while len(losses) == step:
            optimizer.zero_grad()
            try:
                losses.append(_backward(model, scheduler, batch, at_once, half))
                continue
            except torch.OutOfMemoryError:
                pass  # and out of the handler: a traceback keeps the step's tensors alive
            at_once = fewer_at_once(at_once, "train: examples", TOGETHER if dropouts else None)
        if not math.isfinite(losses[-1]):
            diverged = f"the loss is {losses[-1]} at step {step}"
            break
        if on_loss is not None:
            on_loss(step, losses[-1], learning_rate(settings, step))
        if settings["grad_clip"] is not None:
            torch.nn.utils.clip_grad_norm_(parameters, settings["grad_clip"])
        optimizer.step()
        for name, average in ema.items():
            average.lerp_(trainable[name].detach(), 1 - decay)
        progress.set_postfix(loss=f"{np.mean(losses[-50:]):.4f}", refresh=False)
        if time.monotonic() - saved > checkpoint_seconds:
            began = time.monotonic()
            spent = before + began - clock
            try:
                _save(checkpoint, identity, trainable, optimizer, ema, losses, spent)
            except OSError as error:  # a disk may have room again before the end
                said = f"{checkpoint}: not written ({error.strerror}); training goes on"
                tqdm.write(f"fitspace: {said}", file=sys.stderr)
            saved = time.monotonic()
            # Of a large model a checkpoint takes long: a tenth of the time at most.
            checkpoint_seconds = max(checkpoint_seconds, 9 * (saved - began))
        if on_step is not None:
            on_step(step)
    progress.close()
    for layer in dropouts:
        layer.eval()
    final = ema or {n: p.detach() for n, p in trainable.items()}
    if diverged is None and not all(bool(v.isfinite().all()) for v in final.values()):
        diverged = f"parameters are not finite after step {settings['steps'] - 1}"
    return Fit(
        {n: v.cpu().clone() for n, v in final.items()},
        losses,
        before + time.monotonic() - clock,
        diverged,
        at_once,
    )


def _backward(model, scheduler, batch: Batch, at_once: int, half: bool) -> float:
    """The batch's mean loss; its gradient is added up over parts of ``at_once`` examples."""
    total = 0.0
    for first in range(0, len(batch), at_once):
        part = batch[first : first + at_once]
        with torch.autocast(part.t.device.type, dtype=torch.bfloat16, enabled=half):
            predicted = model(part.noisy, part.t, part.condition).sample
        loss = objectives.loss(scheduler, predicted.float(), part)
        # The mean over the whole batch, in its parts.
        loss = loss.mean() if len(part) == len(batch) else loss.sum() / len(batch)
        total += loss.item()
        loss.backward()
    return total


def _save(
    path: Path,
    identity: str,
    trainable: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    ema: dict[str, torch.Tensor],
    losses: list[float],
    seconds: float,
) -> None:
    tensors = {f"ema/{n}": v for n, v in ema.items()}
    for name, parameter in trainable.items():
        tensors[f"value/{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer/{key}/{name}"] = value
    tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
    facts = canonical({"identity": identity, "losses": losses, "seconds": seconds})
    with replacing(path) as temporary:
        # Two keys of metadata, in an order that varies: a checkpoint's bytes are no result.
        metadata = {"fitspace": facts, "sha256": _digest(facts, tensors)}
        save_file(tensors, temporary, metadata=metadata)


def _digest(facts: str, tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 (hex) of a checkpoint's content."""
    found = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def _resume(
    path: Path,
    identity: str,
    trainable: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    ema: dict[str, torch.Tensor],
) -> tuple[int, list[float], float]:
    """Put a checkpoint's state in place; returns steps done, their losses, their seconds.

    A damaged one is left aside: training starts anew.
    """
    if not path.exists():
        return 0, [], 0.0
    try:
        with safe_open(path, "pt") as file:
            text, expected = (file.metadata()[key] for key in ("fitspace", "sha256"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if _digest(text, tensors) != expected:
            raise ValueError("its SHA-256 differs")
        facts = json.loads(text)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        said = f"{path}: damaged ({error}); training starts anew"
        print(f"fitspace: {said}", file=sys.stderr)
        return 0, [], 0.0
    if facts["identity"] != identity:
        raise UserError(f"{path}: is the checkpoint of another run; delete it to start anew")
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(tensors[f"value/{name}"])
            if name in ema:
                ema[name].copy_(tensors[f"ema/{name}"])
            optimizer.state[parameter] = {
                key: tensors[f"optimizer/{key}/{name}"].to(
                    parameter.device if key != "step" else "cpu"
                )
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
    return len(facts["losses"]), facts["losses"], facts["seconds"]
