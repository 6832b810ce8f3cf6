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
from safetensors.torch import save_file
from tqdm import tqdm, trange

from fitspace import devices, objectives, rng
from fitspace.data.prepare import PreparedTask
from fitspace.errors import UserError
from fitspace.files import canonical, opened, parse_json, replacing
from fitspace.memory import fewer_at_once

BETAS = (0.9, 0.999)
MOMENTS = ("exp_avg", "exp_avg_sq")  # as AdamW names them
CHECKPOINT_SECONDS = 20.0
TOGETHER = "dropout masks are drawn for all of a batch together"
COMMON = ("steps", "batch_size", "precision")  # what runs of a fold have in common


@dataclass(frozen=True)
class Fit:
    """What training yields.

    Attributes
    ----------
    parameters : name -> tensor, the moving average where one was kept, else the last value.
    losses : one per step.
    seconds : wall time of all steps, those before a resume included; in a fold, the run's share.
    diverged : why training stopped before its end, with the last parameters as they stood then;
        None where all went well.
    examples_at_once : how many examples of a batch the device computed at once.
    folded : how many runs were trained in one batch with this one, itself included.
    """

    parameters: dict[str, torch.Tensor]
    losses: list[float]
    seconds: float
    diverged: str | None = None
    examples_at_once: int = 0
    folded: int = 1


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


class Member:
    """A run in training, all of its state: what a checkpoint holds, and its progress.

    ``trainable`` are the model's own parameters, or in a fold its :func:`leaves`. ``on_loss`` is
    called with each step, its loss and its learning rate.
    """

    def __init__(
        self,
        trainable: dict[str, torch.nn.Parameter],
        settings: dict[str, Any],
        seed: int,
        checkpoint: Path,
        on_loss: Callable[[int, float, float], None] | None = None,
    ):
        self.trainable, self.settings, self.seed = trainable, settings, seed
        self.checkpoint, self.on_loss = checkpoint, on_loss
        self.parameters = list(trainable.values())
        self.optimizer = devices.adamw(
            self.parameters, lr=settings["lr"], betas=BETAS, weight_decay=settings["weight_decay"]
        )
        self.decay = settings["ema"]
        self.ema: dict[str, torch.Tensor] = {}
        if self.decay is not None:
            self.ema = {n: p.detach().clone() for n, p in trainable.items()}
        self.losses: list[float] = []
        self.seconds = 0.0
        self.folded = 1
        self.diverged: str | None = None
        self.identity = canonical({"settings": settings, "seed": seed, "names": list(trainable)})

    def update(self, step: int, loss: float) -> None:
        """Take a step along the gradient, unless the loss is not finite: that ends the run."""
        self.losses.append(loss)
        if not math.isfinite(loss):
            self.diverged = f"the loss is {loss} at step {step}"
            return
        lr = learning_rate(self.settings, step)
        if self.on_loss is not None:
            self.on_loss(step, loss, lr)
        if self.settings["grad_clip"] is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.settings["grad_clip"])
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        for name, average in self.ema.items():
            average.lerp_(self.trainable[name].detach(), 1 - self.decay)

    def result(self, examples_at_once: int) -> Fit:
        final = self.ema or {n: p.detach() for n, p in self.trainable.items()}
        diverged = self.diverged
        if diverged is None and not all(bool(v.isfinite().all()) for v in final.values()):
            diverged = f"parameters are not finite after step {self.settings['steps'] - 1}"
        return Fit(
            {n: v.cpu().clone() for n, v in final.items()},
            self.losses,
            self.seconds,
            diverged,
            examples_at_once,
            self.folded,
        )

    def save(self) -> None:
        """Write the checkpoint; one that cannot be written costs a warning."""
        tensors = {f"ema/{n}": v for n, v in self.ema.items()}
        for name, parameter in self.trainable.items():
            tensors[f"value/{name}"] = parameter.detach()
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer/{key}/{name}"] = value
        tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
        said = {"identity": self.identity, "losses": self.losses, "seconds": self.seconds}
        facts = canonical(said | ({"folded": self.folded} if self.folded > 1 else {}))
        try:
            with replacing(self.checkpoint) as temporary:
                # Two keys of metadata, in an order that varies: a checkpoint's bytes are no result.
                metadata = {"fitspace": facts, "sha256": _digest(facts, tensors)}
                save_file(tensors, temporary, metadata=metadata)
        except OSError as error:  # a disk may have room again before the end
            said = f"{self.checkpoint}: not written ({error.strerror}); training goes on"
            tqdm.write(f"fitspace: {said}", file=sys.stderr)

    def resume(self) -> None:
        """Put a checkpoint's state in place, where there is one.

        A damaged one is left aside: training starts anew.

        Raises
        ------
        UserError : a checkpoint of another run.
        """
        path = self.checkpoint
        if not path.exists():
            return
        try:
            with opened(path) as file:
                text, expected = (file.metadata()[key] for key in ("fitspace", "sha256"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if _digest(text, tensors) != expected:
                raise ValueError("its SHA-256 differs")
            facts = parse_json(text, path)
            ours = facts["identity"] == self.identity
            if ours and {n: tuple(t.shape) for n, t in tensors.items()} != self._shapes():
                raise ValueError("its tensors are others")
            losses, seconds = [float(x) for x in facts["losses"]], float(facts["seconds"])
            folded = int(facts.get("folded", 1))
        except (UserError, ValueError, KeyError, TypeError) as error:
            said = f"{path}: damaged ({error}); training starts anew"
            print(f"fitspace: {said}", file=sys.stderr)
            return
        if not ours:
            raise UserError(f"{path}: is the checkpoint of another run; delete it to start anew")
        with torch.no_grad():
            for name, parameter in self.trainable.items():
                parameter.copy_(tensors[f"value/{name}"])
                if name in self.ema:
                    self.ema[name].copy_(tensors[f"ema/{name}"])
                self.optimizer.state[parameter] = {
                    # The steps are counted on the GPU too: its optimizer is a fused one.
                    key: tensors[f"optimizer/{key}/{name}"].to(parameter.device)
                    for key in ("step", *MOMENTS)
                }
        self.losses, self.seconds, self.folded = losses, seconds, folded

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of a checkpoint's tensors."""
        kinds = ["value", *(["ema"] if self.ema else []), *map("optimizer/{}".format, MOMENTS)]
        own = {f"{kind}/{n}": tuple(p.shape) for kind in kinds for n, p in self.trainable.items()}
        return own | {f"optimizer/step/{name}": () for name in self.trainable}


def leaves(trainable: dict[str, torch.Tensor], device: str | torch.device) -> dict[str, Any]:
    """Copies of a run's initial parameters, to be trained beside those of others."""
    own = {name: value.detach().to(device, copy=True) for name, value in trainable.items()}
    return {name: torch.nn.Parameter(value) for name, value in own.items()}


def steps_done(checkpoint: Path) -> int:
    """How many steps a checkpoint says were done; 0 without a readable one."""
    try:
        with opened(checkpoint) as file:
            return len(json.loads(file.metadata()["fitspace"])["losses"])
    except (UserError, ValueError, KeyError, TypeError):
        return 0


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
    member = Member(trainable, settings, seed, checkpoint, on_loss)
    (result,) = fit_members(
        model, [member], task, scheduler, scaling, checkpoint_seconds, description, on_step,
        dropouts,
    )  # fmt: skip
    return result


def fit_members(
    model: torch.nn.Module,
    members: Sequence[Member],
    task: PreparedTask,
    scheduler,
    scaling: float,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    description: str = "training",
    on_step: Callable[[int], None] | None = None,
    dropouts: Sequence[torch.nn.Module] = (),
    folded: bool = False,
) -> list[Fit]:
    """Train one run, or the members of a fold in one batch; see :func:`fit`.

    In a fold ``model`` is computed with each member's own leaves in place of its parameters, and
    shares the rest. A member whose loss is not finite leaves it; the others go on.

    Raises
    ------
    UserError : as :func:`fit`, or checkpoints that do not stand at one step.
    """
    for member in members:
        member.resume()
        member.folded = max(member.folded, len(members))
    settings, start = members[0].settings, len(members[0].losses)
    if any(len(member.losses) != start for member in members):
        raise UserError(f"{members[0].checkpoint}: others of the fold are at another step")
    device = members[0].parameters[0].device
    at_once = settings["batch_size"] * (2 if task.prior else 1)
    runs_at_once, active = len(members), list(members)
    last = saved = time.monotonic()
    for layer in dropouts:
        layer.train()
    progress = trange(start, settings["steps"], initial=start, total=settings["steps"],
                      desc=description, disable=None)  # fmt: skip
    for step in progress:
        batches = [
            make_batch(task, scheduler, scaling, m.settings, m.seed, step).to(device)
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
                        model, scheduler, active, batches, runs_at_once, at_once, half
                    )
                else:
                    losses = [_backward(model, scheduler, batches[0], at_once, half)]
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


def _backward(model, scheduler, batch: Batch, at_once: int, half: bool) -> float:
    """The batch's mean loss; its gradient is added up over parts of ``at_once`` examples."""
    total = 0.0
    for first in range(0, len(batch), at_once):
        part = batch[first : first + at_once]
        with torch.autocast(part.t.device.type, dtype=torch.bfloat16, enabled=half):
            predicted = model(part.noisy, part.t, part.condition).sample
        loss = _loss(scheduler, predicted, part, len(batch))
        total += loss.item()
        loss.backward()
    return total


def _loss(scheduler, predicted: torch.Tensor, part: Batch, size: int) -> torch.Tensor:
    """A part's share of the mean loss of a batch of ``size``."""
    loss = objectives.loss(scheduler, predicted.float(), part)
    return loss.mean() if len(part) == size else loss.sum() / size


def _backward_folded(
    model,
    scheduler,
    members: Sequence[Member],
    batches: Sequence[Batch],
    runs_at_once: int,
    at_once: int,
    half: bool,
) -> list[float]:
    """As :func:`_backward`, of every member's batch; so many runs are one batch of the device.

    vmap makes (runs * examples) rows of what meets the shared weights alone, and batched
    products and grouped convolutions of what meets the members' own.
    """

    def predict(own, noisy, t, condition) -> torch.Tensor:
        return torch.func.functional_call(model, own, (noisy, t, condition)).sample

    if len(members) > runs_at_once:
        return [
            loss
            for first in range(0, len(members), runs_at_once)
            for loss in _backward_folded(
                model, scheduler, members[first : first + runs_at_once],
                batches[first : first + runs_at_once], runs_at_once, at_once, half,
            )
        ]  # fmt: skip
    totals = [0.0] * len(members)
    for first in range(0, len(batches[0]), at_once):
        parts = [batch[first : first + at_once] for batch in batches]
        stacked = {n: torch.stack([m.trainable[n] for m in members]) for n in members[0].trainable}
        inputs = [torch.stack([getattr(p, n) for p in parts]) for n in ("noisy", "t", "condition")]
        with torch.autocast(inputs[0].device.type, dtype=torch.bfloat16, enabled=half):
            predicted = torch.vmap(predict)(stacked, *inputs)
        losses = [
            _loss(scheduler, own, part, len(batch))
            for own, part, batch in zip(predicted, parts, batches, strict=True)
        ]
        torch.stack(losses).sum().backward()
        totals = [total + loss.item() for total, loss in zip(totals, losses, strict=True)]
    return totals


def _digest(facts: str, tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 (hex) of a checkpoint's content."""
    found = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
