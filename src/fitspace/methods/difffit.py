"""DiffFit: biases, norms and new scale factors γ of the transformer blocks (2304.06648, section 3).

A factor multiplies every feature of a layer's output and starts at 1. In a DiT's block there are
six vectors of them, of the block's width D each: on the attention's q, k, v and projection, and
on what its two branches add to the stream (``x + γ1·gate·attn(...)``, ``x + γ2·gate·mlp(...)``).
A U-Net's block has two attentions and so eleven.

The norms of a DiT's blocks have no affine part; they are given one, ``γ·norm(x) + β``, in front
of the modulation. Together with the biases, the class table and the factors in the first half of
the blocks these are 832,928 parameters on DiT-XL/2 with 101 classes, the paper's 0.83 M. This
reading of the paper is inferred from that number; where the factors are, and whether the norms
are trained, are therefore settings.

The paper's projection factor and γ1 multiply the same tensor; both are trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from fitspace.methods.attachment import Attachment, PartialSettings

if TYPE_CHECKING:
    from torch import nn

trains = True
folds = True


class Settings(PartialSettings):
    """Which of DiffFit's three parts are trained, and where the scale factors are."""

    gamma: Literal["all", "branch", "none"] = Field(
        "all",
        description="Scale factors: on q, k, v and the projection of each attention and on each "
        "residual branch, on the branches alone, or none.",
    )
    blocks: Literal["first", "last"] = Field(
        "first", description="From which end the blocks with scale factors are counted."
    )
    share: float = Field(
        0.5, gt=0, le=1, description="Share of the transformer blocks with scale factors."
    )
    norms: bool = Field(
        True,
        description="Train the affine parameters of the norms; those of a DiT's blocks get some.",
    )
    biases: bool = Field(True, description="Train the base's biases, as BitFit does.")


def problems(settings: Settings, family: str) -> list[str]:
    """Why these settings cannot be built on this family of denoisers; empty when they can."""
    if settings.gamma == "none" and not settings.norms and not settings.biases:
        return ["gamma none, norms False, biases False: nothing to train; allowed: at least one"]
    return []


def attach(model: nn.Module, settings: Settings, seed: int) -> Attachment:
    """Put the factors and affine parts into the blocks; make biases and norms trainable.

    Raises
    ------
    UserError : ``share`` of the model's blocks is less than half a block.
    """
    from fitspace.methods.difffit_layers import attach_layers

    return attach_layers(model, settings)
