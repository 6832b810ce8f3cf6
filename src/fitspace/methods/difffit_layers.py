"""DiffFit's scale factors, MLPs and affine parts in diffusers' blocks.

They are parameters of a module whose output a hook changes, so the block's own code runs. Factors
and affine parts are linear, so merging is exact:

- a layer's factors multiply the rows of its weight and its bias; a branch's factors multiply
  those of the branch's last layer (a DiT's gate multiplies afterwards, which commutes);
- the modulation follows a norm's affine part ``γ·n + β``: ``(1 + s)·(γ·n + β) + t``. This equals
  ``(1 + s')·n + t'`` with ``s' = γ·s + γ - 1`` and ``t' = t + β·s + β``, which is linear in s and
  t, two parts of the modulation's output (:mod:`fitspace.bases.blocks` says which).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fitspace.bases import family_of
from fitspace.bases.blocks import attends, feeds, layers
from fitspace.core.errors import UserError
from fitspace.methods.adapter_layers import UP, bottleneck, initialise
from fitspace.methods.attachment import Attachment, restoring
from fitspace.methods.bitfit import biases
from fitspace.methods.blocks import ENDS, at_end, blocks_in_order, inside, within

if TYPE_CHECKING:
    from fitspace.bases.blocks import Block
    from fitspace.methods.difffit import Settings


def attach_layers(model: nn.Module, settings: Settings, seed: int) -> Attachment:
    """Build what the settings name; see :func:`fitspace.methods.difffit.attach`."""
    blocks = blocks_in_order(model)
    used = settings.gamma != "none" or settings.only_scaled
    scaled = _scaled(model, list(blocks), settings) if used else []
    wanted = within(scaled) if settings.only_scaled else lambda name: True
    own = biases(model) if settings.biases else {}
    parts: dict[str, Part] = {}
    form = family_of(model).block_of
    if settings.norms:
        own |= affine_parameters(model)
        for path, block in blocks.items():
            parts |= {f"{path}.{name}": part for name, part in norms(block, form(block))}
    own = {name: parameter for name, parameter in own.items() if wanted(name)}
    parts = {name: part for name, part in parts.items() if wanted(name)}
    for path in scaled if settings.gamma != "none" else ():
        block = blocks[path]
        for name, module, last in branches(block, settings.gamma == "all", form(block).joined):
            at = f"{path}.{name}"
            if settings.gamma == "mlp":
                parts[at] = Mlps(module, last, settings.width, at, seed)
            else:
                parts[at] = Factors(module, last)
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

    merges = fold if settings.gamma != "mlp" else None
    return Attachment(model, own | new, identity_at_start=True, undo=undo, fold=merges)


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


def norms(module: nn.Module, block: Block) -> Iterator[tuple[str, Affine]]:
    """The modulated norms of a block, which have no affine part; empty for a U-Net's."""
    for name, (modulation, pairs) in block.norms.items():
        norm = module.get_submodule(name)
        if not norm.elementwise_affine:
            yield name, Affine(norm, module.get_submodule(modulation), pairs)


def branches(
    block: nn.Module, within: bool, joined: tuple[str, ...]
) -> Iterator[tuple[str, nn.Module, tuple[nn.Linear | nn.Conv2d, ...]]]:
    """Name, module and last layers of a block's branches, or of layers that join what several
    give; ``within``: its attentions' layers too.

    A branch of two streams has a last layer for each.
    """
    for name in joined:
        yield name, block.get_submodule(name), (block.get_submodule(name),)
    for name, branch in block.named_children():
        if feeds(branch):
            yield name, branch, tuple(layers(branch, ("ff_out",)).values())
    for name, attention in block.named_children():
        if not attends(attention):
            continue
        # Of two streams, what it adds to the text's as well.
        if last := tuple(layers(attention, ("out",)).values()):
            yield name, attention, last
        if within:
            for layer, linear in layers(attention, ("q", "k", "v", "out")).items():
                yield f"{name}{layer}", linear, (linear,)


class Factors:
    """``γ·y`` for each output y of a module, (..., d) or (n, d, h, w), the output of one of its
    layers, linear or a convolution."""

    NAMES = ("gamma", "gamma_text")

    def __init__(self, module: nn.Module, layers: tuple[nn.Linear | nn.Conv2d, ...]):
        self.module, self.layers = module, dict(zip(self.NAMES, layers, strict=False))

    def attach(self) -> dict[str, nn.Parameter]:
        """Put the factors, all 1, on the module; returns them by name, shape (d,)."""
        for name, layer in self.layers.items():
            ones = torch.ones(len(layer.weight), device=layer.weight.device)
            self.module.register_parameter(name, nn.Parameter(ones))
        self.handle = self.module.register_forward_hook(_scale)
        return {name: getattr(self.module, name) for name in self.layers}

    def detach(self) -> None:
        """Remove the factors and their hook."""
        self.handle.remove()
        for name in self.layers:
            delattr(self.module, name)

    @torch.no_grad()
    def fold(self) -> None:
        """Multiply the factors into the layers."""
        for name, layer in self.layers.items():
            gamma = getattr(self.module, name)
            layer.weight.mul_(gamma.reshape(-1, *[1] * (layer.weight.ndim - 1)))
            if layer.bias is not None:
                layer.bias.mul_(gamma)


class Mlps:
    """``y + up(GELU(down(y)))`` for each output y of a branch, as :class:`Factors` has them."""

    NAMES = ("mlp", "mlp_text")

    def __init__(
        self,
        module: nn.Module,
        layers: tuple[nn.Linear | nn.Conv2d, ...],
        width: int,
        path: str,
        seed: int,
    ):
        self.module, self.layers = module, dict(zip(self.NAMES, layers, strict=False))
        self.width, self.path, self.seed = width, path, seed

    def attach(self) -> dict[str, nn.Parameter]:
        """Put an MLP for each output on the branch; returns the parameters by name."""
        for name, layer in self.layers.items():
            with torch.device("meta"):  # or PyTorch would draw from its global generator
                mlp = bottleneck(len(layer.weight), self.width, nn.GELU(), 1.0)
            if layer.weight.device.type != "meta":
                mlp.to_empty(device=layer.weight.device)
                initialise(mlp, f"{self.path}.{name}", self.seed, UP)
            self.module.add_module(name, mlp.train(self.module.training))
        self.handle = self.module.register_forward_hook(_add_mlp)
        return {
            f"{name}.{key}": parameter
            for name in self.layers
            for key, parameter in getattr(self.module, name).named_parameters()
        }

    def detach(self) -> None:
        """Remove the MLPs and their hook."""
        self.handle.remove()
        for name in self.layers:
            delattr(self.module, name)


class Affine:
    """``γ·n + β`` for a norm's output n (..., d), and the layer that modulates it afterwards."""

    def __init__(
        self, norm: nn.LayerNorm, modulation: nn.Linear, pairs: tuple[tuple[int, int], ...]
    ):
        self.norm, self.modulation, self.pairs = norm, modulation, pairs

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
        weights = self.modulation.weight.split(len(gamma))
        biases = self.modulation.bias.split(len(gamma))
        for shift, scale in self.pairs:
            weights[shift].add_(beta[:, None] * weights[scale])
            biases[shift].add_(beta * biases[scale] + beta)
            weights[scale].mul_(gamma[:, None])
            biases[scale].mul_(gamma).add_(gamma - 1)


Part = Factors | Mlps | Affine


# Computed in single precision for any base: near 1, a factor in half precision would lose the
# small steps of training.
def _scale(module: nn.Module, _, output: Any) -> Any:
    return _each(module, Factors.NAMES, output, lambda y, gamma: (y * gamma).to(y.dtype))


def _add_mlp(module: nn.Module, _, output: Any) -> Any:
    return _each(module, Mlps.NAMES, output, lambda y, mlp: y + mlp(y))


def _each(module: nn.Module, names: tuple[str, ...], output: Any, change: Callable) -> Any:
    """The output, or each of two, changed by what the module has for it under its name."""
    outputs = output if isinstance(output, tuple) else (output,)
    held = [getattr(module, name, None) for name in names[: len(outputs)]]
    changed = tuple(
        y if own is None else _by_channel(change, y, own)
        for y, own in zip(outputs, held, strict=True)
    )
    return changed if isinstance(output, tuple) else changed[0]


def _by_channel(change: Callable, y: torch.Tensor, own: Any) -> torch.Tensor:
    """What a change of (..., d) makes of tokens (n, k, d), or of an image (n, d, h, w)."""
    return change(y.movedim(1, -1), own).movedim(-1, 1) if y.ndim == 4 else change(y, own)


def _scale_and_shift(module: nn.Module, _, output: torch.Tensor) -> torch.Tensor:
    return (output * module.gamma + module.beta).to(output.dtype)
