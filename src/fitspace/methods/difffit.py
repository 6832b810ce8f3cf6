"""DiffFit: biases, norms and new scale factors γ of the transformer blocks (2304.06648, section 3).

Factors multiply the features of a layer's output and start at 1. A DiT's block has six vectors of
factors, each of the block's width D: on the attention's q, k, v and projection, and on what its
two branches add to the stream (``x + γ1·gate·attn(...)``, ``x + γ2·gate·mlp(...)``). A U-Net's
block has two attentions and therefore eleven vectors.

A block of two streams has those of both, and on what the attention adds to the text's stream
factors under the name ``gamma_text``.

The norms of a DiT's blocks have no affine part. They get one, ``γ·norm(x) + β``, in front of the
modulation. With the biases, the class table and the factors in the first half of the blocks this
makes 832,928 parameters on DiT-XL/2 with 101 classes, the paper's 0.83 M. This reading of the
paper is inferred from that number; the place of the factors and whether the norms are trained are
therefore settings.

The paper's projection factor and γ1 multiply the same tensor; both are trained.

With ``gamma: mlp`` each branch f has a small residual network instead of its factors:
``x + gate·(f + W2·GELU(W1·f + b1) + b2)``. W2 and b2 start at zero. It is not linear in f, so it
does not merge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from fitspace.methods.attachment import Attachment, PartialSettings
from fitspace.methods.blocks import ENDS, PATTERN

if TYPE_CHECKING:
    from torch import nn

trains = True
folds = True
budget = "width"
AT_REST = {"gamma": 1.0, "gamma_text": 1.0, "beta": 0.0, "up": 0.0}


class Settings(PartialSettings):
    """Which of DiffFit's three parts are trained, and where the scale factors are."""

    LATER = ("only_scaled",)

    gamma: Literal["all", "branch", "none", "mlp"] = Field(
        "all",
        description="Scale factors: on q, k, v and the projection of each attention and on each "
        "residual branch, on the branches alone, or none; or on each branch a residual MLP of one "
        "hidden layer instead.",
    )
    width: int = Field(8, ge=1, le=65_536, description="Units of the MLP; no meaning without one.")

    blocks: str = Field(
        "first",
        max_length=1000,
        pattern=PATTERN,
        description="The transformer blocks with scale factors: `first` or `last`, counted from "
        "that end by `share`; or parts of the denoiser, as in `up_blocks` or "
        "`transformer_blocks.0-2`.",
    )
    share: float = Field(
        0.5, gt=0, le=1, description="Share of the transformer blocks with scale factors."
    )
    norms: bool = Field(
        True,
        description="Train the affine parameters of the norms; a DiT's block norms are given them.",
    )
    biases: bool = Field(True, description="Train the base's biases, as BitFit does.")
    only_scaled: bool = Field(
        False, description="Train biases and norms in the blocks with scale factors only."
    )

    def resolved(self, family: str) -> dict[str, Any]:
        """Every setting that has a meaning; ``share`` has one where blocks are counted, ``width``
        with an MLP."""
        found = super().resolved(family)
        if self.gamma != "mlp":
            del found["width"]
        if self.blocks not in ENDS:
            del found["share"]
        return found


def problems(settings: Settings, family: str) -> list[str]:
    """Why these settings cannot be built on this family of denoisers; empty if they can."""
    if settings.gamma == "none" and not settings.norms and not settings.biases:
        return ["gamma none, norms False, biases False: nothing to train; allowed: at least one"]
    return []


def attach(model: nn.Module, settings: Settings, seed: int) -> Attachment:
    """Put the factors (or MLPs) and affine parts into the blocks; make biases and norms trainable.

    Raises
    ------
    UserError : ``share`` of the model's blocks is less than half a block, or no block is in the
        parts named.
    """
    from fitspace.methods.difffit_layers import attach_layers

    return attach_layers(model, settings, seed)
