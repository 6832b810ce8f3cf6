"""A run in training: its parameters, optimizer and progress, kept in checkpoints."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from fitspace.core import devices
from fitspace.core.errors import UserError
from fitspace.core.files import canonical, every_tensor, opened, parse_json, replacing

BETAS = (0.9, 0.999)
MOMENTS = ("exp_avg", "exp_avg_sq")  # as AdamW names them


@dataclass(frozen=True)
class Fit:
    """The result of training.

    Attributes
    ----------
    parameters : name -> tensor: the moving average if one is kept, else the last values.
    losses : one per step.
    seconds : wall time of all steps, including those before a resume; in a fold, the run's share.
    diverged : why training stopped early; ``parameters`` are then the last ones. None if it did
        not.
    examples_at_once : number of examples of a batch that the device computed at once.
    folded : number of runs that were trained in one batch, this one included.
    kept : step -> the parameters after it, for the settings' ``checkpoints`` before the last step.
    """

    parameters: dict[str, torch.Tensor]
    losses: list[float]
    seconds: float
    diverged: str | None = None
    examples_at_once: int = 0
    folded: int = 1
    kept: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)


def learning_rate(settings: dict[str, Any], step: int) -> float:
    """Learning rate of a step (counted from 0): linear warm-up, then constant or cosine."""
    warmup, total = settings["warmup_steps"], settings["steps"]
    if step < warmup:
        return settings["lr"] * (step + 1) / warmup
    if settings["lr_schedule"] == "constant":
        return settings["lr"]
    done = (step - warmup) / max(1, total - warmup)
    return settings["lr"] * 0.5 * (1 + math.cos(math.pi * done))


class Member:
    """The whole state of a run in training: the content of a checkpoint, and the progress.

    ``trainable`` are the model's own parameters, or in a fold the run's :func:`leaves`. ``on_loss``
    is called with each step, its loss and its learning rate.
    """

    def __init__(
        self,
        trainable: dict[str, torch.nn.Parameter],
        settings: dict[str, Any],
        seed: int,
        checkpoint: Path,
        on_loss: Callable[[int, float, float], None] | None = None,
        rates: dict[str, float] | None = None,
    ):
        self.trainable, self.settings, self.seed = trainable, settings, seed
        self.checkpoint, self.on_loss = checkpoint, on_loss
        self.parameters = list(trainable.values())
        self.optimizer = devices.adamw(
            _groups(trainable, rates or {}),
            lr=settings["lr"],
            betas=BETAS,
            weight_decay=settings["weight_decay"],
        )
        self.decay = settings["ema"]
        self.ema: dict[str, torch.Tensor] = {}
        if self.decay is not None:
            self.ema = {n: p.detach().clone() for n, p in trainable.items()}
        self.kept: dict[int, dict[str, torch.Tensor]] = {}
        self.losses: list[float] = []
        self.seconds = 0.0
        self.folded = 1
        self.diverged: str | None = None
        self.identity = canonical({"settings": settings, "seed": seed, "names": list(trainable)})

    def update(self, step: int, loss: float) -> None:
        """Take a step along the gradient; a loss that is not finite ends the run instead."""
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
            group["lr"] = lr * group["rate"]
        self.optimizer.step()
        for name, average in self.ema.items():
            average.lerp_(self.trainable[name].detach(), 1 - self.decay)
        if step + 1 in self._stops(step + 1):
            self.kept[step + 1] = self.values()

    def values(self) -> dict[str, torch.Tensor]:
        """A copy, on the CPU, of what would be the result now: the moving average if there is one,
        else the parameters."""
        found = self.ema or {n: p.detach() for n, p in self.trainable.items()}
        return {name: value.to("cpu", copy=True) for name, value in found.items()}

    def result(self, examples_at_once: int) -> Fit:
        """The result of the training so far; parameters that are not finite count as divergence."""
        final = self.values()
        diverged = self.diverged
        if diverged is None and not all(bool(v.isfinite().all()) for v in final.values()):
            diverged = f"parameters are not finite after step {self.settings['steps'] - 1}"
        return Fit(
            final,
            self.losses,
            self.seconds,
            diverged,
            examples_at_once,
            self.folded,
            self.kept,
        )

    def save(self) -> None:
        """Write the checkpoint; if it cannot be written, print a warning."""
        tensors = {f"ema/{n}": v for n, v in self.ema.items()}
        for step, values in self.kept.items():
            tensors |= {f"kept/{step}/{name}": value for name, value in values.items()}
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
                metadata = {"fitspace": facts, "sha256": checkpoint_digest(facts, tensors)}
                save_file(tensors, temporary, metadata=metadata)
        except OSError as error:  # a disk may have room again before the end
            said = f"{self.checkpoint}: not written ({error.strerror}); training goes on"
            tqdm.write(f"fitspace: {said}", file=sys.stderr)

    def resume(self) -> None:
        """Restore a checkpoint's state, if there is a checkpoint.

        A damaged checkpoint is ignored: training starts from the beginning.

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
                tensors = every_tensor(file)
            if checkpoint_digest(text, tensors) != expected:
                raise ValueError("its SHA-256 differs")
            facts = parse_json(text, path)
            ours = facts["identity"] == self.identity
            losses, seconds = [float(x) for x in facts["losses"]], float(facts["seconds"])
            folded = int(facts.get("folded", 1))
            shapes = self._shapes(len(losses)) if ours else {}
            if ours and {n: tuple(t.shape) for n, t in tensors.items()} != shapes:
                raise ValueError("its tensors differ")
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
                    # The fused optimizer on a GPU counts its steps there as well.
                    key: tensors[f"optimizer/{key}/{name}"].to(parameter.device)
                    for key in ("step", *MOMENTS)
                }
        self.losses, self.seconds, self.folded = losses, seconds, folded
        self.kept = {
            step: {name: tensors[f"kept/{step}/{name}"] for name in self.trainable}
            for step in self._stops(len(losses))
        }

    def _stops(self, done: int) -> list[int]:
        """The steps, of those ``done``, after which the parameters are kept."""
        last = min(done, self.settings["steps"] - 1)
        return [step for step in self.settings.get("checkpoints") or () if step <= last]

    def _shapes(self, done: int) -> dict[str, tuple[int, ...]]:
        """Name -> shape of the tensors of a checkpoint after so many steps."""
        kinds = ["value", *(["ema"] if self.ema else []), *map("optimizer/{}".format, MOMENTS)]
        kinds += [f"kept/{step}" for step in self._stops(done)]
        own = {f"{kind}/{n}": tuple(p.shape) for kind in kinds for n, p in self.trainable.items()}
        return own | {f"optimizer/step/{name}": () for name in self.trainable}


def _groups(trainable: dict[str, torch.Tensor], rates: dict[str, float]) -> list[dict[str, Any]]:
    """AdamW's groups: parameters by their factor on the learning rate."""
    groups: dict[float, list[torch.Tensor]] = {}
    for name, parameter in trainable.items():
        groups.setdefault(rates.get(name, 1.0), []).append(parameter)
    return [{"params": own, "rate": rate} for rate, own in groups.items()]


def leaves(trainable: dict[str, torch.Tensor], device: str | torch.device) -> dict[str, Any]:
    """Copies of a run's initial parameters, to be trained in a fold."""
    own = {name: value.detach().to(device, copy=True) for name, value in trainable.items()}
    return {name: torch.nn.Parameter(value) for name, value in own.items()}


def steps_done(checkpoint: Path) -> int:
    """Number of finished steps according to a checkpoint; 0 without a readable one."""
    try:
        with opened(checkpoint) as file:
            return len(json.loads(file.metadata()["fitspace"])["losses"])
    except (UserError, ValueError, KeyError, TypeError):
        return 0


def checkpoint_digest(facts: str, tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 (hex) of a checkpoint's content."""
    found = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
