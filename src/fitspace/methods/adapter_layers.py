"""The layers of adapters at positions, and the hooks that connect them to diffusers' blocks.

diffusers' ``BasicTransformerBlock`` computes ``h = attn1(norm1(h)) + h``, then
``h = attn2(norm2(h), c) + h``, then ``h = ff(norm3(h)) + h``, and gives no access to the
stream ``h`` in between. But an adapter only ever adds to it, and addition commutes: adding
to the output of ``attn1`` is adding to the stream at CA_in, adding to the output of
``attn2`` is adding to it at FFN_in, and ``norm2`` and ``norm3`` are called with the stream
itself, which is where it is read. So hooks on the block's own parts reach every position,
whatever the attention processor and with gradient checkpointing (which calls the block
again, hooks included).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.utils.hooks import RemovableHandle

from fitspace import rng
from fitspace.errors import UserError
from fitspace.methods.adapter import Settings
from fitspace.methods.attachment import Attachment

NAME = "adapter"
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


class Adapter(nn.Module):
    """``s · up(act(down(x)))`` in single precision, returned in the precision of ``x``."""

    def __init__(self, down: nn.Module, up: nn.Module, settings: Settings, norm=None):
        super().__init__()
        self.norm = norm
        self.down = down
        self.activation = ACTIVATIONS[settings.activation]()
        self.up = up
        self.scale = settings.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.to(self.up.weight.dtype)
        if self.norm is not None:
            y = nn.functional.silu(self.norm(y))
        return (self.scale * self.up(self.activation(self.down(y)))).to(x.dtype)


def bottleneck(block: BasicTransformerBlock, settings: Settings) -> Adapter:
    """``s·(W2·act(W1·x + b1) + b2)``: (b, tokens, dim) -> the same shape."""
    dim = block.attn2.to_k.in_features if settings.input == "CA_c" else block.dim
    return Adapter(nn.Linear(dim, settings.width), nn.Linear(settings.width, dim), settings)


def convolutions(block: ResnetBlock2D, settings: Settings) -> Adapter:
    """``s·conv3×3(act(conv3×3(silu(norm(x)))))``: (b, c_in, h, w) -> (b, c_out, h, w)."""
    sides = {"Res_in": block.conv1.in_channels, "Res_out": block.conv2.out_channels}
    channels = sides[settings.input]
    like = block.norm1 if settings.input == "Res_in" else block.norm2
    return Adapter(
        nn.Conv2d(channels, settings.width, 3, padding=1),
        nn.Conv2d(settings.width, sides[settings.output], 3, padding=1),
        settings,
        norm=nn.GroupNorm(like.num_groups, channels, like.eps),
    )


def initialise(adapter: Adapter, path: str, seed: int, init: str) -> None:
    """PyTorch's default distributions, drawn by (seed, parameter name); ``up`` may be zero."""
    for name, layer in adapter.named_children():
        if isinstance(layer, nn.GroupNorm):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Linear | nn.Conv2d):
            zero = name == "up" and init == "zero"
            bound = 0.0 if zero else 1 / math.sqrt(layer.weight[0].numel())
            for key, parameter in layer.named_parameters():
                draw = rng.generator(seed, f"init/{path}.{name}.{key}")
                uniform = draw.random(tuple(parameter.shape), dtype="float32") * 2 - 1
                with torch.no_grad():
                    parameter.copy_(torch.from_numpy(uniform * bound))


def wire(block: nn.Module, adapter: Adapter, source: str, target: str) -> list[RemovableHandle]:
    """Connect an adapter between two positions of a block."""
    if source == "CA_c":
        return [block.attn2.register_forward_pre_hook(_change_condition(adapter), with_kwargs=True)]
    # The stream after a sub-layer can only be changed before it is summed: sum it here.
    before = {"CA_in": "SA_in", "FFN_in": "CA_in"}.get(source) if source == target else None
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

    # A module's hooks run in the order of their registration: reading comes first.
    return [
        _hook(block, READ[before or source], read_input, read_output),
        _hook(block, WRITE[target], write_input, write_output),
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


def attach_layers(model: nn.Module, settings: Settings, seed: int) -> Attachment:
    """Put an adapter into every block that has the positions.

    Raises
    ------
    UserError : no such block, or a ResNet block whose output has another size than its input.
    """
    resnet = settings.input.startswith("Res")
    kind, build = (ResnetBlock2D, convolutions) if resnet else (BasicTransformerBlock, bottleneck)
    blocks = {name: m for name, m in model.named_modules() if isinstance(m, kind)}
    if not blocks:
        raise UserError(f"adapter: the base has no {kind.__name__} to attach to")
    if settings.input == "Res_in" and settings.output == "Res_out":
        resampling = [name for name, block in blocks.items() if block.up or block.down]
        if resampling:
            raise UserError(f"adapter: Res_in and Res_out differ in size in {resampling}")
    device = next(model.parameters()).device
    trainable, handles = {}, []
    for path, block in blocks.items():
        with torch.device("meta"):  # or PyTorch would draw from its global generator
            adapter = build(block, settings)
        if device.type != "meta":
            adapter.to_empty(device=device)
            initialise(adapter, f"{path}.{NAME}", seed, settings.init)
        block.add_module(NAME, adapter)
        handles += wire(block, adapter, settings.input, settings.output)
        trainable |= {f"{path}.{NAME}.{n}": p for n, p in adapter.named_parameters()}

    def undo() -> None:
        for handle in handles:
            handle.remove()
        for block in blocks.values():
            delattr(block, NAME)

    return Attachment(model, trainable, identity_at_start=settings.init == "zero", undo=undo)
