"""DiffFit's scale factors and affine parts in diffusers' blocks.

Both are parameters of a module whose output a hook changes, so the block's own code runs. Both
are linear, so merging is exact:

- a layer's factors multiply the rows of its weight and its bias; a branch's factors multiply
  those of the branch's last layer (a DiT's gate multiplies afterwards, which commutes);
- the modulation follows a norm's affine part ``γ·n + β``: ``(1 + s)·(γ·n + β) + t``. This equals
  ``(1 + s')·n + t'`` with ``s' = γ·s + γ - 1`` and ``t' = t + β·s + β``, which is linear in s and
  t, two sixths of the output of ``norm1.linear``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.normalization import AdaLayerNormZero
from torch import nn

from fitspace.core.errors import UserError
from fitspace.methods.attachment import Attachment, restoring
from fitspace.methods.bitfit import biases
from fitspace.methods.blocks import ENDS, at_end, blocks_in_order, inside, within

if TYPE_CHECKING:
    from fitspace.methods.difffit import Settings

# Norm of a DiT's block -> which sixths of the modulation shift and scale what it returns.
MODULATION = {"norm1.norm": (0, 1), "norm3": (3, 4)}


def attach_layers(model: nn.Module, settings: Settings) -> Attachment:
    """Build what the settings name; see :func:`fitspace.methods.difffit.attach`."""
    blocks = blocks_in_order(model)
    used = settings.gamma != "none" or settings.only_scaled
    scaled = _scaled(model, list(blocks), settings) if used else []
    wanted = within(scaled) if settings.only_scaled else lambda name: True
    own = biases(model) if settings.biases else {}
    parts: dict[str, Factors | Affine] = {}
    if settings.norms:
        own |= affine_parameters(model)
        parts |= {f"{path}.{name}": part for path, b in blocks.items() for name, part in norms(b)}
    own = {name: parameter for name, parameter in own.items() if wanted(name)}
    parts = {name: part for name, part in parts.items() if wanted(name)}
    if settings.gamma != "none":
        parts |= {
            f"{path}.{name}": part
            for path in scaled
            for name, part in factors(blocks[path], settings.gamma)
        }
    restore = restoring(own)
    new = {f"{path}.{name}": p for path, part in parts.items() for name, p in part.attach().items()}

    def detach() -> None:
        for part in parts.values():
            part.detach()

    def undo() -> None:
        detach()
        restore()

    def fold() -> None:
        for part in parts.values():
            part.fold()
        detach()

    return Attachment(model, own | new, identity_at_start=True, undo=undo, fold=fold)


def _scaled(model: nn.Module, blocks: list[str], settings: Settings) -> list[str]:
    """The paths of the blocks that have scale factors. Raises UserError if there is none."""
    if settings.blocks in ENDS:
        return at_end(blocks, settings.blocks, settings.share, "difffit: share")
    chosen = inside(model, settings.blocks)
    if found := [path for path in blocks if chosen(path)]:
        return found
    raise UserError(f"blocks: {settings.blocks!r}: no transformer block is there")


def affine_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> weight or bias, for the layer and group norms that have them."""
    return {
        f"{path}.{name}": parameter
        for path, module in model.named_modules()
        if isinstance(module, nn.LayerNorm | nn.GroupNorm)
        for name, parameter in module.named_parameters(recurse=False)
    }


def norms(block: BasicTransformerBlock) -> Iterator[tuple[str, Affine]]:
    """The norms of a DiT's block, which have no affine part; empty for a U-Net's."""
    if not isinstance(block.norm1, AdaLayerNormZero):
        return
    for name, sixths in MODULATION.items():
        norm = block.get_submodule(name)
        if not norm.elementwise_affine:
            yield name, Affine(norm, block.norm1.linear, *sixths)


def factors(block: BasicTransformerBlock, where: str) -> Iterator[tuple[str, Factors]]:
    """The modules to scale in a block: its branches; with ``all`` also its attentions' layers."""
    yield "ff", Factors(block.ff, [m for m in block.ff.modules() if isinstance(m, nn.Linear)][-1])
    for name, attention in block.named_children():
        if not isinstance(attention, Attention):
            continue
        yield name, Factors(attention, attention.to_out[0])
        if where == "all":
            for layer in ("to_q", "to_k", "to_v", "to_out.0"):
                linear = attention.get_submodule(layer)
                yield f"{name}.{layer}", Factors(linear, linear)


class Factors:
    """``γ·y`` for a module's output y (..., d), the output of its linear layer."""

    def __init__(self, module: nn.Module, layer: nn.Linear):
        self.module, self.layer = module, layer

    def attach(self) -> dict[str, nn.Parameter]:
        """Put the factors, all 1, on the module; returns them by name, shape (d,)."""
        device = self.layer.weight.device
        self.module.gamma = nn.Parameter(torch.ones(self.layer.out_features, device=device))
        self.handle = self.module.register_forward_hook(_scale)
        return {"gamma": self.module.gamma}

    def detach(self) -> None:
        """Remove the factors and their hook."""
        self.handle.remove()
        del self.module.gamma

    @torch.no_grad()
    def fold(self) -> None:
        """Multiply the factors into the linear layer."""
        gamma = self.module.gamma
        self.layer.weight.mul_(gamma[:, None])
        if self.layer.bias is not None:
            self.layer.bias.mul_(gamma)


class Affine:
    """``γ·n + β`` for a norm's output n (..., d), and the layer that modulates it afterwards."""

    def __init__(self, norm: nn.LayerNorm, modulation: nn.Linear, shift: int, scale: int):
        self.norm, self.modulation, self.shift, self.scale = norm, modulation, shift, scale

    def attach(self) -> dict[str, nn.Parameter]:
        """Put γ = 1 and β = 0 on the norm; returns them by name, shape (d,)."""
        shape, device = self.norm.normalized_shape, self.modulation.weight.device
        self.norm.gamma = nn.Parameter(torch.ones(shape, device=device))
        self.norm.beta = nn.Parameter(torch.zeros(shape, device=device))
        self.handle = self.norm.register_forward_hook(_scale_and_shift)
        return {"gamma": self.norm.gamma, "beta": self.norm.beta}

    def detach(self) -> None:
        """Remove γ, β and their hook."""
        self.handle.remove()
        del self.norm.gamma, self.norm.beta

    @torch.no_grad()
    def fold(self) -> None:
        """Fold γ and β into the modulation's shift and scale, see the module's docstring."""
        gamma, beta = self.norm.gamma, self.norm.beta
        weights = self.modulation.weight.chunk(6)
        biases = self.modulation.bias.chunk(6)
        weights[self.shift].add_(beta[:, None] * weights[self.scale])
        biases[self.shift].add_(beta * biases[self.scale] + beta)
        weights[self.scale].mul_(gamma[:, None])
        biases[self.scale].mul_(gamma).add_(gamma - 1)


# Computed in single precision for any base: near 1, a factor in half precision would lose the
# small steps of training.
def _scale(module: nn.Module, _, output: torch.Tensor) -> torch.Tensor:
    return (output * module.gamma).to(output.dtype)


def _scale_and_shift(module: nn.Module, _, output: torch.Tensor) -> torch.Tensor:
    return (output * module.gamma + module.beta).to(output.dtype)
