"""The layers of adapters at positions, and the hooks that connect them to diffusers' blocks.

diffusers' ``BasicTransformerBlock`` computes ``h = attn1(norm1(h)) + h``, then
``h = attn2(norm2(h), c) + h``, then ``h = ff(norm3(h)) + h``, and gives no access to the
stream ``h`` in between. An adapter only adds to the stream, and addition commutes: adding to the
output of ``attn1`` is adding to the stream at CA_in, and adding to the output of ``attn2`` is
adding to it at FFN_in. The stream itself is read as the argument of ``norm2`` and ``norm3``. Hooks
on the block's own parts therefore reach every position, with any attention processor and with
gradient checkpointing (which calls the block again, hooks included).

A DiT's block has no ``attn2``, and computes ``h = gate·attn1(...) + h``, then
``h = gate·ff(...) + h``, with gates that ``norm1`` returns. The adapter's addition to the output
of ``attn1`` must not be gated, so :func:`gate` moves the gate from the block to the branch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.utils.hooks import RemovableHandle

from fitspace.core import rng
from fitspace.core.errors import UserError
from fitspace.methods.attachment import Attachment
from fitspace.methods.blocks import inside

if TYPE_CHECKING:
    from fitspace.methods.adapter import Settings

ACTIVATIONS = {
    "relu": nn.ReLU, "sigmoid": nn.Sigmoid, "silu": nn.SiLU, "identity": nn.Identity,
}  # fmt: skip
# Position -> part of the block ("" is the block itself) and side of it.
READ = {
    "SA_in": ("", "input"),
    "SA_out": ("attn1", "output"),
    "CA_in": ("norm2", "input"),
    "CA_out": ("attn2", "output"),
    "FFN_in": ("norm3", "input"),
    "FFN_out": ("ff", "output"),
    "Trans_out": ("", "output"),
    "Res_in": ("", "input"),
    "Res_out": ("", "output"),
}
WRITE = {
    "SA_in": ("", "input"),
    "CA_in": ("attn1", "output"),
    "FFN_in": ("attn2", "output"),
    "Trans_out": ("", "output"),
    "Res_in": ("", "input"),
    "Res_out": ("", "output"),
}
# Branch of a DiT's block -> index of its gate among the values that norm1 returns.
GATES = {"attn1": 1, "ff": 4}
# If these start at zero, training starts from the base.
UP = frozenset({"up.weight", "up.bias"})


class Adapter(nn.Module):
    """``s · up(act(down(x)))`` in single precision, returned in the precision of ``x``."""

    def __init__(
        self,
        down: nn.Module,
        activation: nn.Module,
        up: nn.Module,
        scale: float,
        norm: nn.Module | None = None,
    ):
        super().__init__()
        self.norm = norm
        self.down = down
        self.activation = activation
        self.up = up
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.to(self.up.weight.dtype)
        if self.norm is not None:
            y = nn.functional.silu(self.norm(y))
        return (self.scale * self.up(self.activation(self.down(y)))).to(x.dtype)


def bottleneck(dim: int, width: int, activation: nn.Module, scale: float) -> Adapter:
    """``s·(W2·act(W1·x + b1) + b2)``: (b, tokens, dim) -> the same shape."""
    return Adapter(nn.Linear(dim, width), activation, nn.Linear(width, dim), scale)


def convolutions(block: ResnetBlock2D, settings: Settings) -> Adapter:
    """``s·conv3×3(act(conv3×3(silu(norm(x)))))``: (b, c_in, h, w) -> (b, c_out, h, w)."""
    sides = {"Res_in": block.conv1.in_channels, "Res_out": block.conv2.out_channels}
    channels = sides[settings.input]
    like = block.norm1 if settings.input == "Res_in" else block.norm2
    return Adapter(
        nn.Conv2d(channels, settings.width, 3, padding=1),
        ACTIVATIONS[settings.activation](),
        nn.Conv2d(settings.width, sides[settings.output], 3, padding=1),
        settings.scale,
        norm=nn.GroupNorm(like.num_groups, channels, like.eps),
    )


def initialise(adapter: Adapter, path: str, seed: int, zeros: frozenset[str]) -> None:
    """Draw from PyTorch's default distributions by (seed, parameter name); set ``zeros`` to 0."""
    for name, layer in adapter.named_children():
        if isinstance(layer, nn.GroupNorm):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Linear | nn.Conv2d):
            fan_in = layer.weight[0].numel()
            for key, parameter in layer.named_parameters():
                bound = 0.0 if f"{name}.{key}" in zeros else 1 / math.sqrt(fan_in)
                shape = tuple(parameter.shape)
                uniform = rng.symmetric(seed, f"init/{path}.{name}.{key}", shape)
                with torch.no_grad():
                    parameter.copy_(torch.from_numpy(uniform * bound))


def wire(block: nn.Module, adapter: Adapter, source: str, target: str) -> list[RemovableHandle]:
    """Connect an adapter between two positions of a block."""
    if source == "CA_c":
        return [block.attn2.register_forward_pre_hook(_change_condition(adapter), with_kwargs=True)]
    # Without cross-attention the feed-forward reads the stream after self-attention.
    written = "CA_in" if target == "FFN_in" and block.attn2 is None else target
    # The stream after a sub-layer can only be changed before the sum, so sum it here.
    before = {"CA_in": "SA_in", "FFN_in": "CA_in"}.get(written) if source == target else None
    places = READ[before or source], WRITE[written]
    held: dict[str, torch.Tensor] = {}  # what was read, until it is written in the same pass

    def read_input(_, args) -> None:
        held["x"] = args[0]

    def read_output(_, args, output) -> None:
        held["x"] = output

    def write_input(_, args):
        return args[0] + adapter(held.pop("x")), *args[1:]

    def write_output(_, args, output):
        x = held.pop("x")
        return output + adapter(x + output if before else x)

    # A module's hooks run in the order of their registration: the gate, then reading.
    return [
        *(handle for part in _gated(block, places) for handle in gate(block, part)),
        _hook(block, places[0], read_input, read_output),
        _hook(block, places[1], write_input, write_output),
    ]


def _gated(block: nn.Module, places: Iterable[tuple[str, str]]) -> list[str]:
    """The branches whose output is read or written before the block gates it."""
    if not (isinstance(block, BasicTransformerBlock) and block.norm_type == "ada_norm_zero"):
        return []
    return sorted(GATES.keys() & {part for part, _ in places})


def gate(block: BasicTransformerBlock, part: str) -> list[RemovableHandle]:
    """Move a branch's gate from the block to the branch's output; the bits stay, because 1·x is x.

    Hooks on the branch that are registered later see what the branch adds to the stream.
    """
    held: dict[str, torch.Tensor] = {}
    place = GATES[part]

    def keep(_, args, output):
        held["gate"] = output[place]
        return *output[:place], torch.ones_like(output[place]), *output[place + 1 :]

    def apply(_, args, output):
        return held.pop("gate").unsqueeze(1) * output

    return [
        block.norm1.register_forward_hook(keep),
        block.get_submodule(part).register_forward_hook(apply),
    ]


def _hook(
    block: nn.Module, place: tuple[str, str], on_input: Callable, on_output: Callable
) -> RemovableHandle:
    part = block.get_submodule(place[0])
    if place[1] == "input":
        return part.register_forward_pre_hook(on_input)
    return part.register_forward_hook(on_output)


def _change_condition(adapter: Adapter) -> Callable:
    def hook(_, args, kwargs):
        condition = kwargs["encoder_hidden_states"]
        return args, kwargs | {"encoder_hidden_states": condition + adapter(condition)}

    return hook


def insert(
    model: nn.Module,
    blocks: dict[str, nn.Module],
    name: str,
    build: Callable[[nn.Module], Adapter],
    cell: tuple[str, str],
    zeros: frozenset[str],
    seed: int,
) -> Attachment:
    """Put an adapter into each of the blocks, as their submodule ``name``.

    Parameters
    ----------
    blocks : path in the model -> block.
    build : makes the adapter of a block; called on the meta device.
    cell : the positions that the adapter reads at and adds to.
    zeros : names of the adapter's parameters that start at zero.
    """
    device = next(model.parameters()).device
    trainable, handles, dropouts = {}, [], []
    for path, block in blocks.items():
        with torch.device("meta"):  # or PyTorch would draw from its global generator
            adapter = build(block).train(block.training)
        if device.type != "meta":
            adapter.to_empty(device=device)
            initialise(adapter, f"{path}.{name}", seed, zeros)
        block.add_module(name, adapter)
        handles += wire(block, adapter, *cell)
        trainable |= {f"{path}.{name}.{n}": p for n, p in adapter.named_parameters()}
        dropouts += [m for m in adapter.modules() if isinstance(m, nn.Dropout)]

    def undo() -> None:
        for handle in handles:
            handle.remove()
        for block in blocks.values():
            delattr(block, name)

    return Attachment(model, trainable, zeros >= UP, undo, dropouts=dropouts)


def blocks_of(model: nn.Module, kind: type[nn.Module], where: str) -> dict[str, nn.Module]:
    """Path -> block, for every block of this kind in the parts ``where``.

    Raises UserError if there is none.
    """
    chosen = inside(model, where)
    blocks = {n: m for n, m in model.named_modules() if isinstance(m, kind) and chosen(n)}
    if not blocks:
        raise UserError(f"blocks: {where!r}: no {kind.__name__} is there")
    return blocks


def attach_layers(model: nn.Module, settings: Settings, seed: int) -> Attachment:
    """Put an adapter into every block that has the positions.

    Raises
    ------
    UserError : no such block, or a ResNet block whose output and input differ in size.
    """
    cell = settings.input, settings.output
    kind = ResnetBlock2D if cell[0].startswith("Res") else BasicTransformerBlock
    blocks = blocks_of(model, kind, settings.blocks)
    if cell == ("Res_in", "Res_out"):
        resampling = [name for name, block in blocks.items() if block.up or block.down]
        if resampling:
            raise UserError(f"adapter: Res_in and Res_out differ in size in {resampling}")

    def build(block: nn.Module) -> Adapter:
        if isinstance(block, ResnetBlock2D):
            return convolutions(block, settings)
        dim = block.attn2.to_k.in_features if settings.input == "CA_c" else block.dim
        activation = ACTIVATIONS[settings.activation]()
        return bottleneck(dim, settings.width, activation, settings.scale)

    zeros = UP if settings.init == "zero" else frozenset()
    return insert(model, blocks, "adapter", build, cell, zeros, seed)
