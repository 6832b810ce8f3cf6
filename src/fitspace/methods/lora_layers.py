"""LoRA that starts from the base's own weights: PiSSA (2404.02948) and OLoRA (2406.01775).

Both draw nothing: A0 and B0 are parts of a decomposition of the weight W. peft then takes s·B0·A0
out of the base's weights. Here the base stays as it is, and the layer adds s·(B·A − B0·A0), which
is the same sum. It is exactly zero at the start, in half precision too, and removing the method
gives back the base's bits.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Start(nn.Module):
    """A0 (r, in) and B0 (out, r), at which the change is nothing; ``scale`` is s."""

    def __init__(self, a: torch.Tensor, b: torch.Tensor, scale: float):
        super().__init__()
        self.register_buffer("start_A", a)
        self.register_buffer("start_B", b)
        self.scale = scale

    def hook(self, layer: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        """The layer's output without what it starts from."""
        x = args[0].to(self.start_A.dtype)
        return output - (self.scale * F.linear(F.linear(x, self.start_A), self.start_B)).to(
            output.dtype
        )

    def fold(self, layer: nn.Linear) -> None:
        """Take what it starts from out of the base's weight."""
        layer.weight.sub_((self.scale * self.start_B @ self.start_A).to(layer.weight.dtype))


@torch.no_grad()
def keep_base(layer: nn.Module, weight: torch.Tensor, adapter: str) -> None:
    """Give an injected layer its base's weight back, and take A0 and B0 out of its output."""
    layer.get_base_layer().weight.copy_(weight)
    matrices = [
        getattr(layer, name)[adapter].weight.detach().clone() for name in ("lora_A", "lora_B")
    ]
    start = Start(*matrices, layer.scaling[adapter])
    layer.lora_start = nn.ModuleDict({adapter: start})
    layer.register_forward_hook(start.hook)
