"""Adapters at positions of the denoiser's blocks (2303.18181, section 3).

An adapter reads the tensor at its input position and adds to the tensor at its output
position, in every transformer block or in every ResNet block. The paper defines the positions
for a U-Net. A DiT's blocks have the same positions except those of cross-attention and ResNet
blocks. There FFN_in is the stream after the addition of ``attn1``, and SA_out and FFN_out are
what a branch adds to the stream, after its gate (``gate·attn(...)``). On all families the
stream after a branch therefore equals the stream before it plus the branch's *_out.

Blocks of two streams (Stable Diffusion 3) have these positions in the image's stream, of which
SA_out is the image's part of what the joint attention returns. CA_c is the text's stream at the
block's input; what is added there stays in it. :mod:`fitspace.bases.blocks` says for each class of
blocks which positions there are.

The layers are in :mod:`fitspace.methods.adapter_layers`. This module holds the settings and their
checks, without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from fitspace.bases.families import FAMILIES
from fitspace.methods.attachment import Attachment, PartialSettings

if TYPE_CHECKING:
    from torch import nn

trains = True
folds = True
budget = "width"
AT_REST = {"up": 0.0}

Input = Literal[
    "SA_in", "SA_out", "CA_in", "CA_out", "CA_c", "FFN_in", "FFN_out", "Trans_out",
    "Res_in", "Res_out",
]  # fmt: skip
Output = Literal["SA_in", "CA_in", "FFN_in", "Trans_out", "CA_c", "Res_in", "Res_out"]


class Settings(PartialSettings):
    """Settings of an adapter: its positions, its width and its initial values."""

    input: Input = Field(description="Position whose tensor the adapter reads.")
    output: Output = Field(description="Position whose tensor the adapter adds to.")
    width: int | None = Field(
        60,
        ge=1,
        le=65_536,
        description="Units (channels) of the bottleneck; null: one linear layer (convolution) with "
        "bias instead, from position to position.",
    )
    activation: Literal["relu", "sigmoid", "silu", "identity"] = Field(
        "relu", description="Between the bottleneck's two layers."
    )
    scale: float = Field(1.0, description="Factor on what is added.")
    init: Literal["zero", "default"] = Field(
        "zero",
        description="Last layer at the start: zero (training starts from the base), or drawn as "
        "PyTorch does by default (the paper's code).",
    )

    def resolved(self, family: str) -> dict[str, Any]:
        """Every setting that has a meaning; ``activation`` has none without a bottleneck."""
        found = super().resolved(family)
        if self.width is None:
            del found["activation"]
        return found


def _orders(family: str) -> dict[str, tuple[str, ...]]:
    """What has a row at a position -> positions that can be added to each other, in order."""
    return {rows: order for b in FAMILIES[family].blocks for rows, order in b.orders.items()}


def _positions(family: str) -> list[str]:
    return [position for position in Input.__args__ if FAMILIES[family].has(position)]


def _kind(position: str, family: str) -> str:
    return next(kind for kind, order in _orders(family).items() if position in order)


def _outputs(source: str, family: str) -> list[str]:
    """The outputs that an adapter may add to if it reads at ``source``."""
    order = _orders(family)[_kind(source, family)]
    reachable = order[order.index(source) :]
    return [p for p in Output.__args__ if p in reachable]


def legal_cells(family: str = "unet") -> list[tuple[str, str]]:
    """The (input, output) pairs whose output does not precede the input, in a fixed order.

    The 20 of the paper on a U-Net, 9 on a DiT, 10 on Stable Diffusion 3.
    """
    return [
        (source, target) for source in _positions(family) for target in _outputs(source, family)
    ]


def problems(settings: Settings, family: str) -> list[str]:
    """Why these settings cannot be built on this family of denoisers; empty if they can."""
    if absent := _absent(settings, family):
        return absent
    source, target = settings.input, settings.output
    allowed = _outputs(source, family)
    if target in allowed:
        return []
    rows, others = _kind(source, family), _kind(target, family)
    if rows == others:
        why = f"output {target} precedes input {source} in the block"
    else:
        why = (
            f"input {source} has a row per {rows}, output {target} one per {others}: they cannot "
            "be added"
        )
    return [f"{why}; allowed outputs of {source}: {', '.join(allowed)}"]


def _absent(settings: Settings, family: str) -> list[str]:
    """Positions that this family's blocks lack, such as those of cross-attention on a DiT."""
    present, found = _positions(family), []
    for key, choices in (("input", Input), ("output", Output)):
        position = getattr(settings, key)
        if position not in present:
            part = "ResNet block" if position.startswith("Res") else "cross-attention"
            allowed = ", ".join(p for p in choices.__args__ if p in present)
            title = FAMILIES[family].title
            found.append(f"{key}: {position!r}: a {title} has no {part}; allowed: {allowed}")
    return found


def attach(model: nn.Module, settings: Settings, seed: int) -> Attachment:
    """Put an adapter into every block that has these positions."""
    from fitspace.methods.adapter_layers import attach_layers

    return attach_layers(model, settings, seed)
