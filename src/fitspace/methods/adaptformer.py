"""AdaptFormer: a bottleneck beside the feed-forward layer of every transformer block.

Source: 2205.13535, section 3.2, and the authors' released ViT block. ``s·up(ReLU(down(·)))`` is
the adapter of :mod:`fitspace.methods.adapter` with dropout before ``up``:

- ``parallel`` reads the stream before the feed-forward's norm and adds to the stream after it,
  ``h + ff(norm(h)) + s·up(ReLU(down(h)))``: from FFN_in to Trans_out;
- ``sequential`` reads what the feed-forward adds to the stream, ``f + s·up(ReLU(down(f)))``:
  from FFN_out to Trans_out.

On a DiT the stream is the one outside the block's modulation: the adapter reads it unscaled,
its output meets no gate, and ``f`` is ``gate·ff(...)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from fitspace.methods.attachment import Attachment, PartialSettings

if TYPE_CHECKING:
    from torch import nn

trains = True
budget = "width"
AT_REST = {"up": 0.0}


class Settings(PartialSettings):
    """Settings of the bottleneck: position, width and scale. The defaults are the paper's."""

    form: Literal["parallel", "sequential"] = Field(
        "parallel", description="Beside the feed-forward layer, or on its output."
    )
    width: int = Field(64, ge=1, le=65_536, description="Units of the bottleneck.")
    scale: float = Field(0.1, description="Factor s on what is added.")
    dropout: float = Field(
        0.1, ge=0, lt=1, description="Share of the bottleneck's units dropped in training."
    )


def problems(settings: Settings, family: str) -> list[str]:
    """None: the transformer blocks of all families have a feed-forward layer."""
    return []


def attach(model: nn.Module, settings: Settings, seed: int) -> Attachment:
    """Put a bottleneck into every transformer block.

    ``down.weight`` starts Kaiming-uniform with a = √5, PyTorch's default; ``up`` and both biases
    start at zero.
    """
    from torch import nn

    from fitspace.bases import family_of
    from fitspace.methods.adapter_layers import UP, Adapter, blocks_of, bottleneck, insert

    form = family_of(model).block_of

    def build(block: nn.Module) -> Adapter:
        activation = nn.Sequential(nn.ReLU(), nn.Dropout(settings.dropout))
        return bottleneck(
            form(block).width(block, cell[0]), settings.width, activation, settings.scale
        )

    cell = ("FFN_in" if settings.form == "parallel" else "FFN_out", "Trans_out")
    blocks = blocks_of(model, cell, settings.blocks)
    return insert(model, blocks, "adaptformer", build, cell, UP | {"down.bias"}, seed)
