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
        self.held: dict[str, torch.Tensor] = {}  # what A reads, until B has written

    def read(self, _, args: tuple) -> None:
        """Keep the input of A."""
        self.held["x"] = args[0]

    def write(self, _, args: tuple, output: torch.Tensor) -> torch.Tensor:
        """B·A·x − B0·A0·x, before the layer adds it in the base's precision."""
        return output - F.linear(F.linear(self.held.pop("x"), self.start_A), self.start_B)

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
    layer.lora_A[adapter].register_forward_pre_hook(start.read)
    layer.lora_B[adapter].register_forward_hook(start.write)
