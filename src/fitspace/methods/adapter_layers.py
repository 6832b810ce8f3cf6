"""The layers of adapters at positions, and the hooks that connect them to diffusers' blocks.

:mod:`fitspace.bases.blocks` says where a position's tensor is read and changed. Hooks on a block's
own parts reach every position, with any attention processor and with gradient checkpointing (which
calls the block again, hooks included). The adapter's addition to a branch's output must not be
gated, so :func:`gate` moves the gate from the block to the branch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.utils.hooks import RemovableHandle

from fitspace.bases import family_of
from fitspace.bases.blocks import Block, Place
from fitspace.core import rng
from fitspace.core.errors import UserError
from fitspace.methods.attachment import Attachment
from fitspace.methods.blocks import inside

if TYPE_CHECKING:
    from fitspace.methods.adapter import Settings

ACTIVATIONS = {
    "relu": nn.ReLU, "sigmoid": nn.Sigmoid, "silu": nn.SiLU, "identity": nn.Identity,
}  # fmt: skip
# If these start at zero, training starts from the base.
UP = frozenset({"up.weight", "up.bias"})


class Adapter(nn.Module):
    """``s · up(act(down(x)))`` in single precision, returned in the precision of ``x``.

    Without a bottleneck ``s · up(x)``: ``down`` and ``activation`` are the identity.
    """

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


def bottleneck(dim: int, width: int | None, activation: nn.Module, scale: float) -> Adapter:
    """``s·(W2·act(W1·x + b1) + b2)``: (b, tokens, dim) -> the same shape; without a width
    ``s·(W·x + b)``."""
    if width is None:
        return Adapter(nn.Identity(), nn.Identity(), nn.Linear(dim, dim), scale)
    return Adapter(nn.Linear(dim, width), activation, nn.Linear(width, dim), scale)


def convolutions(block: ResnetBlock2D, settings: Settings) -> Adapter:
    """``s·conv3×3(act(conv3×3(silu(norm(x)))))``: (b, c_in, h, w) -> (b, c_out, h, w); without a
    width ``s·conv3×3(silu(norm(x)))``."""
    sides = {"Res_in": block.conv1.in_channels, "Res_out": block.conv2.out_channels}
    channels = sides[settings.input]
    like = block.norm1 if settings.input == "Res_in" else block.norm2
    norm = nn.GroupNorm(like.num_groups, channels, like.eps)
    down, activation = nn.Identity(), nn.Identity()
    if settings.width is not None:
        down = nn.Conv2d(channels, settings.width, 3, padding=1)
        activation = ACTIVATIONS[settings.activation]()
    up = nn.Conv2d(settings.width or channels, sides[settings.output], 3, padding=1)
    return Adapter(down, activation, up, settings.scale, norm=norm)


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


def wire(
    module: nn.Module, adapter: Adapter, source: str, target: str, block: Block
) -> list[RemovableHandle]:
    """Connect an adapter between two positions of a module, which is a ``block``."""
    # The stream after a branch can only be changed before the sum, so sum it here.
    before = block.before.get(target, ()) if source == target else ()
    places, writing = before or (block.read[source],), block.write[target]
    held: dict[Place, torch.Tensor] = {}  # what was read, until it is written in the same pass
    added: dict[str, torch.Tensor] = {}

    def write(tensor: torch.Tensor) -> torch.Tensor:
        x, *others = [held.pop(place) for place in places]
        added["it"] = adapter(sum([*others, tensor], x) if before else x)
        return tensor + (added["it"] if target in block.again else added.pop("it"))

    def again(tensor: torch.Tensor) -> torch.Tensor:
        return tensor + added.pop("it")

    more = [block.again[target]] if target in block.again else []
    # A module's hooks run in the order of their registration: the gate, then reading.
    gated = sorted(block.gates.keys() & {place.part for place in (*places, writing)})
    return [
        *(handle for part in gated for handle in gate(module, part, block)),
        *(handle for p in places for handle in _reading(module, p, held, block)),
        _writing(module, writing, write),
        *(_writing(module, place, again) for place in more),
    ]


def gate(module: nn.Module, part: str, block: Block) -> list[RemovableHandle]:
    """Move a branch's gate from the block to the branch's output; the bits stay, because 1·x is x.

    Hooks on the branch that are registered later see what the branch adds to the stream.
    """
    held: dict[str, torch.Tensor] = {}
    place, opened = block.gates[part], torch.inf if block.tanh else 1.0  # tanh(inf) is 1

    def keep(_, args, output):
        values = [*(output if isinstance(output, tuple) else output.chunk(block.parts, -1))]
        held["gate"] = values[place].tanh() if block.tanh else values[place]
        values[place] = torch.full_like(values[place], opened)
        return tuple(values) if isinstance(output, tuple) else torch.cat(values, -1)

    def apply(_, args, output):
        gate = held.pop("gate").unsqueeze(1)
        if isinstance(output, tuple):  # of two streams: the image's is the first
            return gate * output[0], *output[1:]
        return gate * output

    return [
        module.get_submodule(block.gated_by).register_forward_hook(keep),
        module.get_submodule(part).register_forward_hook(apply),
    ]


def _reading(
    module: nn.Module, place: Place, held: dict[Place, torch.Tensor], block: Block
) -> list[RemovableHandle]:
    """Hold a place's tensor; an output that has a gate in the block's table, after its gate."""
    gates: list[torch.Tensor] = []
    row, time = block.table.get(place.part), block.time

    def read_input(_, args, kwargs) -> None:
        held[place] = kwargs[place.name] if place.name in kwargs else args[place.at]

    def read_output(_, args, output) -> None:
        tensor = output if place.at is None else output[place.at]
        held[place] = tensor.flatten(2).transpose(1, 2) if place.image else tensor
        if gates:
            held[place] = gates.pop() * held[place]

    def read_gate(_, args, kwargs) -> None:
        given = kwargs[time.name] if time.name in kwargs else args[time.at]
        rows = given.reshape(len(given), 6, -1)
        if hasattr(module, "scale_shift_table"):
            rows = module.scale_shift_table[None] + rows
        gates[:] = [rows[:, row, None]]

    part = module.get_submodule(place.part)
    if place.side == "input":
        return [part.register_forward_pre_hook(read_input, with_kwargs=True)]
    handles = [part.register_forward_hook(read_output)]
    if row is not None:
        handles.append(module.register_forward_pre_hook(read_gate, with_kwargs=True))
    return handles


def _writing(
    module: nn.Module, place: Place, change: Callable[[torch.Tensor], torch.Tensor]
) -> RemovableHandle:
    def write_input(_, args, kwargs):
        if place.name in kwargs:
            return args, kwargs | {place.name: change(kwargs[place.name])}
        return (*args[: place.at], change(args[place.at]), *args[place.at + 1 :]), kwargs

    def write_output(_, args, output):
        if place.at is None:
            return change(output)
        return *output[: place.at], change(output[place.at]), *output[place.at + 1 :]

    part = module.get_submodule(place.part)
    if place.side == "input":
        return part.register_forward_pre_hook(write_input, with_kwargs=True)
    return part.register_forward_hook(write_output)


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
    device, form = next(model.parameters()).device, family_of(model).block_of
    trainable, handles, dropouts = {}, [], []
    for path, block in blocks.items():
        with torch.device("meta"):  # or PyTorch would draw from its global generator
            adapter = build(block).train(block.training)
        if device.type != "meta":
            adapter.to_empty(device=device)
            initialise(adapter, f"{path}.{name}", seed, zeros)
        block.add_module(name, adapter)
        handles += wire(block, adapter, *cell, form(block))
        trainable |= {f"{path}.{name}.{n}": p for n, p in adapter.named_parameters()}
        dropouts += [m for m in adapter.modules() if isinstance(m, nn.Dropout)]

    def undo() -> None:
        for handle in handles:
            handle.remove()
        for block in blocks.values():
            delattr(block, name)

    return Attachment(model, trainable, zeros >= UP, undo, dropouts=dropouts)


def blocks_of(model: nn.Module, cell: tuple[str, str], where: str) -> dict[str, nn.Module]:
    """Path -> block, for every block with these positions in the parts ``where``.

    Raises UserError if there is none.
    """
    chosen, form = inside(model, where), family_of(model).block_of
    blocks = {
        name: module
        for name, module in model.named_modules()
        if (block := form(module)) and block.reaches(*cell) and chosen(name)
    }
    if not blocks:
        asked = " and ".join(dict.fromkeys(cell))
        raise UserError(f"blocks: {where!r}: no block with {asked} is there")
    return blocks


def attach_layers(model: nn.Module, settings: Settings, seed: int) -> Attachment:
    """Put an adapter into every block that has the positions.

    Raises
    ------
    UserError : no such block, or a ResNet block whose output and input differ in size.
    """
    cell = settings.input, settings.output
    blocks = blocks_of(model, cell, settings.blocks)
    if cell == ("Res_in", "Res_out"):
        resampling = [name for name, block in blocks.items() if block.up or block.down]
        if resampling:
            raise UserError(f"adapter: Res_in and Res_out differ in size in {resampling}")

    form = family_of(model).block_of

    def build(block: nn.Module) -> Adapter:
        if isinstance(block, ResnetBlock2D):
            return convolutions(block, settings)
        dim = form(block).width(block, settings.input)
        activation = ACTIVATIONS[settings.activation]()
        return bottleneck(dim, settings.width, activation, settings.scale)

    zeros = UP if settings.init == "zero" else frozenset()
    return insert(model, blocks, "adapter", build, cell, zeros, seed)
