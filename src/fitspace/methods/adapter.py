"""Adapters at positions of the U-Net's blocks (2303.18181, section 3).

An adapter reads the tensor at its input position and adds to the tensor at its output
position, in every transformer block or in every ResNet block of the U-Net. The layers are
in :mod:`fitspace.methods.adapter_layers`; this module holds what a study is checked with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from fitspace.methods.attachment import Attachment, PartialSettings

if TYPE_CHECKING:
    from torch import nn

trains = True

Input = Literal[
    "SA_in", "SA_out", "CA_in", "CA_out", "CA_c", "FFN_in", "FFN_out", "Trans_out",
    "Res_in", "Res_out",
]  # fmt: skip
Output = Literal["SA_in", "CA_in", "FFN_in", "Trans_out", "CA_c", "Res_in", "Res_out"]

# Positions that can be added to each other, in the order in which a block computes them.
_ORDERS = {
    "pixel token of a transformer block": (
        "SA_in", "SA_out", "CA_in", "CA_out", "FFN_in", "FFN_out", "Trans_out",
    ),
    "text token": ("CA_c",),
    "pixel of a ResNet block": ("Res_in", "Res_out"),
}  # fmt: skip


class Settings(PartialSettings):
    """An adapter: from where to where, how wide, and how it starts."""

    input: Input = Field(description="Position whose tensor the adapter reads.")
    output: Output = Field(description="Position whose tensor the adapter adds to.")
    width: int = Field(60, ge=1, le=65_536, description="Units (channels) of the bottleneck.")
    activation: Literal["relu", "sigmoid", "silu", "identity"] = Field(
        "relu", description="Between the bottleneck's two layers."
    )
    scale: float = Field(1.0, description="Factor on what is added.")
    init: Literal["zero", "default"] = Field(
        "zero",
        description="Last layer at the start: zero (training starts from the base), or drawn as "
        "PyTorch does by default (the paper's code).",
    )


def _kind(position: str) -> str:
    return next(kind for kind, order in _ORDERS.items() if position in order)


def _outputs(source: str) -> list[str]:
    """The outputs that an adapter reading at ``source`` may add to."""
    order = _ORDERS[_kind(source)]
    reachable = order[order.index(source) :]
    return [p for p in Output.__args__ if p in reachable]


def legal_cells() -> list[tuple[str, str]]:
    """The 20 (input, output) pairs whose output does not precede the input, in a fixed order."""
    return [(source, target) for source in Input.__args__ for target in _outputs(source)]


def problems(settings: Settings, family: str) -> list[str]:
    """Why these settings cannot be built on this family of denoisers; empty when they can."""
    if family != "unet":
        return [f"adapter: positions are those of a U-Net's blocks; the base is a {family!r}"]
    source, target = settings.input, settings.output
    allowed = _outputs(source)
    if target in allowed:
        return []
    if _kind(source) == _kind(target):
        why = f"output {target} precedes input {source} in the block"
    else:
        why = (
            f"input {source} has a row per {_kind(source)}, output {target} one per "
            f"{_kind(target)}: they cannot be added"
        )
    return [f"{why}; allowed outputs of {source}: {', '.join(allowed)}"]


def attach(model: nn.Module, settings: Settings, seed: int) -> Attachment:
    """Put an adapter into every block of the kind that has these positions."""
    from fitspace.methods.adapter_layers import attach_layers

    return attach_layers(model, settings, seed)
