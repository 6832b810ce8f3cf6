"""How a U-Net is told of an image beside the words: the image arrives with the conditions, as
``given``.

- ``controlnet`` (2302.05543): a copy of the U-Net's encoder, `diffusers.ControlNetModel`, is told
  the image's pixels, (n, 3, H, W) from 0 to 1, and adds to the U-Net's skip connections through
  convolutions that start at zero. The U-Net has it as its submodule ``controlnet``.
- ``concat`` (2211.09800): the image's latents, not scaled, stand beside the noisy ones. Their input
  channels start at zero; they are a convolution of their own, ``conv_given``, whose output is added
  to that of ``conv_in``: the same as one with twice the channels.

Hooks on the U-Net take ``given`` out of what it is told, so that it keeps its class and names. A
pipeline of diffusers that hands over residuals, or twice the channels, is served as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitspace.bases.families import family_of
from fitspace.bases.finding import CONFIGS, resolve
from fitspace.bases.usable import config, pixels
from fitspace.core import hub, rng
from fitspace.core.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

# Of the embedding of an image's pixels: diffusers' own, one more than the halvings to a latent.
CHANNELS = (16, 32, 96, 256)
PIXELS = 8  # a latent's side, where the base's own autoencoder is not on this machine
COPY, ADDED = "controlnet", "conv_given"


@dataclass(frozen=True)
class Control:
    """How a denoiser is told of an image.

    Attributes
    ----------
    kind : ``controlnet`` or ``concat``.
    channels : of ``controlnet``: of the layers that embed an image's pixels, each but the first
        halving its side.
    """

    kind: str
    channels: tuple[int, ...] = ()


@dataclass
class _Carried:
    """A control on a model, and what takes it off."""

    control: Control
    part: str
    own: dict[str, nn.Parameter]
    undo: Callable[[], None]
    fold: Callable[[], None] = field(default=lambda: None)


def control_for(ref: str | Path, kind: str | None) -> Control | None:
    """The control of this kind for a base; None without a kind, and for ``img2img``, which adds
    nothing to a denoiser. ``ref`` is as :func:`fitspace.bases.architecture` has it."""
    if kind != COPY:
        return Control(kind) if kind == "concat" else None
    halvings = _pixels(ref).bit_length() - 1
    more = (CHANNELS[-1],) * (halvings + 1 - len(CHANNELS))
    return Control(kind, (*CHANNELS, *more)[: halvings + 1])


def _pixels(ref: str | Path) -> int:
    if str(ref) in CONFIGS:
        return PIXELS
    try:
        folder = resolve(ref)
    except hub.NotHere:
        return PIXELS
    return pixels(config(folder, "vae"))


def control_of(model: nn.Module) -> Control | None:
    """The control that :func:`add_control` gave a model; None for a model as its base has it."""
    carried = _carried(model)
    return carried.control if carried else None


def taught_part(model: nn.Module) -> str:
    """The submodule that a method is put into: the copy of the encoder, or "", all of it."""
    carried = _carried(model)
    return carried.part if carried else ""


def control_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter, of what a control needs trained whatever the method: the zero
    convolutions and the image's embedding, or the new input channels."""
    carried = _carried(model)
    return dict(carried.own) if carried else {}


def fold_control(model: nn.Module) -> None:
    """Write new input channels into ``conv_in``, for a plain U-Net of diffusers; a copy of the
    encoder stays as it is, a plain ControlNetModel."""
    if carried := _carried(model):
        carried.fold()


def _carried(model: nn.Module) -> _Carried | None:
    return getattr(model, "_fitspace_control", None)


def add_control(model: nn.Module, told: Control, seed: int) -> Callable[[], None]:
    """Let a denoiser be told of an image, in place; returns what undoes it.

    The model's output does not change by it. What is drawn depends on the seed alone.

    Raises
    ------
    UserError : a denoiser that cannot be told so, or is told so already.
    """
    family = family_of(model)
    if told.kind not in family.controls:
        raise UserError(
            f"control: {told.kind!r}: not on a base of the family {family.name!r}; allowed: "
            f"{', '.join(family.controls) or 'none'}"
        )
    if before := control_of(model):
        raise UserError(f"model: has the control {before.kind!r} already; allowed: one")
    build = _copied if told.kind == COPY else _beside
    carried = build(model, told, seed)
    model._fitspace_control = carried

    def undo() -> None:
        carried.undo()
        model._fitspace_control = None

    return undo


def _copied(model: nn.Module, told: Control, seed: int) -> _Carried:
    import torch
    from diffusers import ControlNetModel
    from torch import nn

    like = next(model.parameters())
    at = torch.device("meta" if like.is_meta else "cpu")
    try:
        with torch.random.fork_rng(devices=[]), at:
            copy = ControlNetModel.from_unet(model, "rgb", told.channels)
    except (ValueError, RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"control: 'controlnet': diffusers cannot copy this encoder: {reason}"
        ) from None
    if not like.is_meta:
        _draw(copy.controlnet_cond_embedding, seed)
    # diffusers' own `to` warns about layers that it keeps in fp32.
    nn.Module.to(copy, like.device, like.dtype).requires_grad_(False).train(model.training)
    model.add_module(COPY, copy)

    def tell(unet: nn.Module, args: tuple, kwargs: dict[str, Any]):
        if kwargs.get("given") is None:
            return None
        kwargs = dict(kwargs)
        given, words = kwargs.pop("given"), kwargs["encoder_hidden_states"]
        t = args[1] if len(args) > 1 else kwargs["timestep"]
        down, middle = unet.controlnet(args[0], t, words, given, return_dict=False)
        kwargs["down_block_additional_residuals"] = down
        kwargs["mid_block_additional_residual"] = middle
        return args, kwargs

    undo = ExitStack()
    undo.callback(delattr, model, COPY)
    undo.callback(model.register_forward_pre_hook(tell, with_kwargs=True).remove)
    names = copy.named_parameters()
    own = {f"{COPY}.{name}": p for name, p in names if name.startswith("controlnet_")}
    return _Carried(told, COPY, own, undo.close)


def _draw(embedding: nn.Module, seed: int) -> None:
    """PyTorch's default initial values by (seed, name); its last layer is zero."""
    import torch

    with torch.no_grad():
        for name, parameter in embedding.named_parameters():
            path, _, _ = name.rpartition(".")
            if path != "conv_out":
                fan_in = embedding.get_submodule(path).weight[0].numel()
                stream = f"init/{COPY}.controlnet_cond_embedding.{name}"
                drawn = rng.symmetric(seed, stream, tuple(parameter.shape)) / fan_in**0.5
                parameter.copy_(torch.from_numpy(drawn))


def _beside(model: nn.Module, told: Control, seed: int) -> _Carried:
    import torch
    from torch import nn

    conv = model.conv_in
    channels, of_weight = conv.in_channels, {"device": conv.weight.device}
    added = nn.Conv2d(
        channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=False,
        device="meta",
    )  # fmt: skip
    zeros = torch.zeros(added.weight.shape, dtype=conv.weight.dtype, **of_weight)
    added.weight = nn.Parameter(zeros, requires_grad=False)
    model.add_module(ADDED, added)
    held: dict[str, torch.Tensor] = {}  # what is given, until conv_in has run in the same pass

    def take(unet: nn.Module, args: tuple, kwargs: dict[str, Any]):
        sample, kwargs = args[0] if args else kwargs["sample"], dict(kwargs)
        given = kwargs.pop("given", None)
        if given is None:
            # A pipeline hands over both as one; or there is nothing, which adds nothing.
            sample, given = sample[:, :channels], sample[:, channels:]
        if given.shape[1]:
            held["given"] = given
        return (sample, *args[1:]) if args else (sample,), {
            name: value for name, value in kwargs.items() if name != "sample"
        }

    def add(_, args: tuple, output: torch.Tensor) -> torch.Tensor:
        given = held.pop("given", None)
        return output if given is None else output + model.conv_given(given)

    handles = ExitStack()
    handles.callback(delattr, model, ADDED)
    handles.callback(model.register_forward_pre_hook(take, with_kwargs=True).remove)
    handles.callback(conv.register_forward_hook(add).remove)

    @torch.no_grad()
    def fold() -> None:
        weight = torch.cat([conv.weight, added.weight.to(conv.weight.dtype)], 1)
        wide = nn.Conv2d(
            2 * channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,
            bias=conv.bias is not None, device="meta",
        )  # fmt: skip
        wide.weight, wide.bias = nn.Parameter(weight, requires_grad=False), conv.bias
        handles.close()
        model.conv_in, model._fitspace_control = wide, None
        model.register_to_config(in_channels=2 * channels)

    own = {f"{ADDED}.weight": added.weight}
    return _Carried(told, "", own, handles.close, fold)
