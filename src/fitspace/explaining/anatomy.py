"""Parameter anatomy: where a method changed the base, and how much.

A change that is linear in the base's weights is folded into them, so that all such methods are
compared by the same thing: ‖W − W₀‖ beside ‖W₀‖ of each layer. Of others, the parameters that they
add are measured as they are.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from fitspace import methods
from fitspace.explaining.sensitivity import blocks_of
from fitspace.methods import Attachment

PARTS = {"attn1": "self-attention", "attn2": "cross-attention", "ff": "feed-forward"}
KINDS = {
    nn.Embedding: "class table",
    nn.LayerNorm: "norm",
    nn.GroupNorm: "norm",
    nn.Conv2d: "convolution",
}
# What rounding leaves of a change in single precision, relative to the weights that hold it.
ROUNDING = 2.0**-23
Base = dict[str, torch.Tensor]


def remembered(model: nn.Module) -> Base:
    """The values of a denoiser's parameters, on the CPU, before a method is attached."""
    return {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters()}


@torch.no_grad()
def anatomy(attachment: Attachment, base: Base) -> dict[str, list[dict[str, Any]]]:
    """What a trained method changed of a base. Folds its change into the model, if it can.

    Returns
    -------
    changes : for each block ("" outside of blocks) and kind of layer, or method that added
        parameters: number of changed ``parameters``, Frobenius norm of their ``change``, and of
        the ``base``'s values (None for parameters that are new).
    gamma : for each factor that starts at one: its layer's ``block`` and name, and the mean of
        ``|γ − 1|``.
    rank : for each matrix that a method of the LoRA family changed: its block, its name and the
        ``effective_rank`` of the change.
    """
    model, blocks = attachment.model, list(blocks_of(attachment.model))
    # Only peft's low-rank methods scale their change. What they train of the base itself is none.
    low_rank = hasattr(methods.get(attachment.method), "scale")
    own = base.keys() & attachment.trainable.keys()
    gamma = [
        {**_place(name, blocks), "mean": float((p - 1).abs().double().mean())}
        for name, p in attachment.trainable.items()
        if name.rpartition(".")[2] == "gamma"
    ]
    rank, changes = [], _Changes(blocks)
    if attachment.fold is None:
        for name, parameter in attachment.trainable.items():
            if name not in base:
                changes.add(attachment.method, name, parameter.detach().double(), None)
    else:
        attachment.merge()
    for name, parameter in model.named_parameters():
        if name not in base or torch.equal(now := parameter.detach().cpu(), base[name]):
            continue
        before = base[name].double()
        change = now.double() - before
        changes.add(_kind(model, name), name, change, before)
        if low_rank and name not in own:
            size = effective_rank(change, float(before.norm()))
            rank.append({**_place(name, blocks), "effective_rank": size})
    return {"changes": changes.rows, "gamma": gamma, "rank": rank}


def effective_rank(change: torch.Tensor, scale: float) -> float:
    """``exp`` of the entropy of a matrix's singular values, as shares of their sum (Roy and
    Vetterli 2007). From 1, one direction, to the matrix's rank, all directions alike.

    Singular values that are rounding beside weights of norm ``scale`` do not count; 0 if none do.
    """
    values = torch.linalg.svdvals(change)
    values = values[values > ROUNDING * scale]
    shares = values / values.sum()
    return float(torch.exp(-(shares * shares.log()).sum())) if len(values) else 0.0


class _Changes:
    """Changes added up by block and kind; a tensor at a time, because a base fills the memory."""

    def __init__(self, blocks: list[str]):
        self.blocks = blocks
        self._sums: dict[tuple[str, str], dict[str, Any]] = {}

    def add(self, kind: str, name: str, change: torch.Tensor, before: torch.Tensor | None) -> None:
        block = _place(name, self.blocks)["block"]
        empty = {"block": block, "kind": kind, "parameters": 0, "change": 0.0, "base": None}
        row = self._sums.setdefault((block, kind), empty)
        row["parameters"] += change.numel()
        row["change"] += float(change.square().sum())
        if before is not None:
            row["base"] = (row["base"] or 0.0) + float(before.square().sum())

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Norms of the sums of squares."""
        return [
            row | {name: None if row[name] is None else math.sqrt(row[name])
                   for name in ("change", "base")}
            for row in self._sums.values()
        ]  # fmt: skip


def _place(name: str, blocks: list[str]) -> dict[str, str]:
    """The block of a parameter, "" outside of blocks, and its layer's name in there."""
    block = next((path for path in blocks if name.startswith(f"{path}.")), "")
    layer = name.rpartition(".")[0]
    return {"block": block, "layer": layer[len(block) + 1 :] if block else layer}


def _kind(model: nn.Module, name: str) -> str:
    """The kind of layer that a parameter of the base belongs to, in words."""
    path = name.split(".")[:-1]
    if part := next((PARTS[part] for part in path if part in PARTS), None):
        return part
    owner = model.get_submodule(".".join(path))
    for kind, title in KINDS.items():
        if isinstance(owner, kind):
            return title
    return "modulation" if path[-2:-1] == ["norm1"] or path[-1] == "time_emb_proj" else "other"
