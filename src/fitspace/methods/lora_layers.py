"""LoRA that starts from the base's own weights, and LoRA of a rank that depends on the time step.

PiSSA (2404.02948) and OLoRA (2406.01775) draw nothing: A0 and B0 are parts of a decomposition of
the weight W. peft then takes s·B0·A0 out of the base's weights. Here the base stays as it is, and
the layer adds s·(B·A − B0·A0), which is the same sum. It is exactly zero at the start, in half
precision too, and removing the method gives back the base's bits.

T-LoRA (2507.05964) uses the first r(t) = ⌊(r − r_min)·(T − t)/T⌋ + r_min of the components of A and
B at time step t of T.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from fitspace.methods.attachment import Attachment

STEPS = 1000  # T: the time steps that denoisers are told


class Start(nn.Module):
    """A0 (r, in) and B0 (out, r), at which the change is nothing; ``scale`` is s."""

    def __init__(self, a: torch.Tensor, b: torch.Tensor, scale: float):
        super().__init__()
        self.register_buffer("start_A", a)
        self.register_buffer("start_B", b)
        self.scale = scale
        self.held: dict[str, torch.Tensor] = {}  # what A reads, until B has written
        self.clock: Clock | None = None

    def read(self, _, args: tuple) -> None:
        """Keep the input of A."""
        self.held["x"] = args[0]

    def write(self, _, args: tuple, output: torch.Tensor) -> torch.Tensor:
        """B·A·x − B0·A0·x, before the layer adds it in the base's precision."""
        hidden = F.linear(self.held.pop("x"), self.start_A)
        return output - F.linear(hidden if self.clock is None else self.clock(hidden), self.start_B)

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


class Clock:
    """Which components count at the time steps that the model is told."""

    def __init__(self, least: int):
        self.least = least
        self.times = torch.zeros(1)

    def read(self, _, args: tuple, kwargs: dict) -> None:
        """Keep the time steps of a pass through the model, shape (b,) or ()."""
        told = args[1] if len(args) > 1 else kwargs["timestep"]
        self.times = told if isinstance(told, torch.Tensor) else torch.tensor(told)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Components (b, tokens, r), with those above r(t) zero."""
        rank = hidden.shape[-1]
        left = (rank - self.least) * (STEPS - self.times.to(hidden.device).reshape(-1, 1))
        count = torch.div(left, STEPS, rounding_mode="floor") + self.least
        mask = torch.arange(rank, device=hidden.device) < count
        return hidden * mask.to(hidden.dtype).unsqueeze(1)


def by_time(attachment: Attachment, least: int, adapter: str) -> None:
    """Let the rank of an attached LoRA depend on the time step; it then cannot be merged."""
    clock, model = Clock(least), attachment.model
    handle = model.register_forward_pre_hook(clock.read, with_kwargs=True)
    for layer in model.modules():
        if adapter in getattr(layer, "lora_A", {}):
            layer.lora_A[adapter].register_forward_hook(lambda _, args, output: clock(output))
            if hasattr(layer, "lora_start"):
                layer.lora_start[adapter].clock = clock
    undo = attachment.undo

    def without() -> None:
        handle.remove()
        undo()

    attachment.undo, attachment.fold = without, None
