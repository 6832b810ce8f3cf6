"""Linear layers whose frozen weight is stored in 8 or 4 bits.

``int8`` is what LLM.int8() stores (2208.07339): of each row the weights divided by the largest
one, in 255 steps. ``nf4`` is QLoRA's NormalFloat4 (2305.14314): of each 64 weights one of 16
quantiles of a normal distribution, times the largest one. Both round and restore by bitsandbytes.
Its own layers are not used: they round what a layer is told to 8 bits or to fp16, cast trained
biases, and compute in other ways on a CPU than on a GPU. Here a layer multiplies by the restored
weight in the precision of the pass, so that nothing but the weights is rounded.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from fitspace.bases.quantized import BLOCK, PACKAGE, frozen_linear
from fitspace.core.imports import import_bitsandbytes


class Absent(NamedTuple):
    """What is known of a weight that is not whole. Its type is that of what is stored, as diffusers
    expects it of a layer in few bits."""

    shape: torch.Size
    dtype: torch.dtype


class Quantized(nn.Linear):
    """A linear layer with ``packed`` and ``scales`` in place of its weight; it has its bias."""

    form: str

    @property
    def weight(self) -> Absent:
        """The weight's shape and type; whoever wants its values has to fail."""
        return Absent(torch.Size((self.out_features, self.in_features)), self.packed.dtype)

    def whole(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight as it is multiplied by, (out, in)."""
        functional = import_bitsandbytes().functional
        if self.form == "int8":
            return functional.int8_vectorwise_dequant(self.packed, self.scales).to(dtype)
        size = torch.Size((self.out_features, self.in_features))
        state = functional.QuantState(self.scales, size, None, BLOCK, "nf4", dtype)
        return functional.dequantize_4bit(self.packed, state)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        product = _Product.apply(x, self)
        return product if self.bias is None else product + self.bias.to(product.dtype)


class _Product(torch.autograd.Function):
    """Inputs times a weight that is restored anew in the backward pass, and kept by neither."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Quantized) -> torch.Tensor:
        ctx.layer = layer
        return F.linear(x, layer.whole(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient @ ctx.layer.whole(gradient.dtype), None


def quantize(
    model: nn.Module, form: str, device: str | torch.device, kept: Iterable[torch.Tensor] = ()
) -> list[str]:
    """Store a denoiser's frozen linear layers in ``form``, in place, then move all of it to the
    device; returns what was done, in words.

    Call it after a method is attached and has its values: what trains stays whole, and what a
    method computes from the base's weights is computed from the whole ones. The model may be
    anywhere; of what is elsewhere the device sees one whole layer at a time.

    Parameters
    ----------
    kept : tensors that a method does not train and that stay whole all the same.
    """
    for layer in frozen_linear(model, kept):
        store(layer, form, device)
    model.to(device)
    return [f"frozen linear layers in {form} by {PACKAGE} {version(PACKAGE)}"]


@torch.no_grad()
def store(layer: nn.Linear, form: str, device: str | torch.device) -> None:
    """Make of a linear layer a `Quantized` one, in place: its hooks and its bias stay."""
    functional = import_bitsandbytes().functional
    weight = layer.weight.detach().to(device)
    if form == "int8":
        packed, scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
    else:
        packed, state = functional.quantize_4bit(
            weight.float().contiguous(), blocksize=BLOCK, quant_type="nf4"
        )
        scales = state.absmax
    del layer.weight
    layer.__class__, layer.form = Quantized, form
    layer.register_buffer("packed", packed, persistent=False)
    layer.register_buffer("scales", scales, persistent=False)


def quantized(model: nn.Module) -> bool:
    """Whether a model has linear layers in fewer bits."""
    return any(isinstance(layer, Quantized) for layer in model.modules())
