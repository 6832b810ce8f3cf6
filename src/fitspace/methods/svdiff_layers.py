"""Shifts of singular values: a layer adds what the changed matrix adds to its output.

The layer's own weight stays: a hook adds the output of ``U·diag(relu(σ + δ) − σ)·Vᵀ``, which is
exactly zero at δ = 0, in half precision too. A file holds the shifts alone. They mean the same on
any machine: the signs of singular vectors cancel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from fitspace.core.errors import UserError
from fitspace.methods.attachment import Attachment
from fitspace.methods.blocks import inside

if TYPE_CHECKING:
    from fitspace.methods.svdiff import Settings

KINDS = {"all": (nn.Linear, nn.Conv2d), "linear": (nn.Linear,)}


def attach_layers(model: nn.Module, settings: Settings) -> Attachment:
    """See :func:`fitspace.methods.svdiff.attach`."""
    chosen = inside(model, settings.blocks)
    shifted = {
        path: Shifted(layer)
        for path, layer in model.named_modules()
        if isinstance(layer, KINDS[settings.layers]) and chosen(path)
        if getattr(layer, "groups", 1) == 1
    }
    if not shifted:
        raise UserError(f"blocks: {settings.blocks!r}: no matrix to shift is there")
    trainable = {f"{path}.shift": part.layer.shift for path, part in shifted.items()}

    def undo() -> None:
        for part in shifted.values():
            part.detach()

    def fold() -> None:
        for part in shifted.values():
            part.fold()

    return Attachment(model, trainable, identity_at_start=True, undo=undo, fold=fold)


class Shifted:
    """A layer with shifts δ, shape (min(out, in·k·k),), and the decomposition of its weight."""

    def __init__(self, layer: nn.Linear | nn.Conv2d):
        self.layer = layer
        weight = layer.weight.detach()
        # On the CPU, where a decomposition of equal weights is equal; of no weights it has shapes.
        matrix = weight.flatten(1).to("meta" if weight.is_meta else "cpu", torch.float32)
        found = torch.linalg.svd(matrix, full_matrices=False)
        self.u, self.values, self.v = (part.to(weight.device) for part in found)
        layer.shift = nn.Parameter(torch.zeros_like(self.values))
        self.handle = layer.register_forward_hook(self.add)

    def change(self) -> torch.Tensor:
        """What the shifts add to the weight, float32, in the weight's shape."""
        moved = torch.relu(self.values + self.layer.shift) - self.values
        return ((self.u * moved) @ self.v).view_as(self.layer.weight)

    def add(self, layer: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        """The layer's output and that of the change."""
        change = self.change()
        x = args[0].to(change.dtype)
        if isinstance(layer, nn.Linear):
            more = F.linear(x, change)
        else:
            more = F.conv2d(x, change, None, layer.stride, layer.padding, layer.dilation)
        return output + more.to(output.dtype)

    def detach(self) -> None:
        """Remove the shifts and their hook."""
        self.handle.remove()
        del self.layer.shift

    @torch.no_grad()
    def fold(self) -> None:
        """Write the change into the weight."""
        self.layer.weight.add_(self.change().to(self.layer.weight.dtype))
        self.detach()
