"""BitFit: only the base's biases are trained (2106.10199, section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fitspace.bases.families import FAMILIES
from fitspace.core.errors import UserError
from fitspace.methods.attachment import Attachment, PartialSettings, nothing, restoring
from fitspace.methods.blocks import inside

if TYPE_CHECKING:
    from torch import nn

trains = True
folds = True
AT_REST: dict[str, float] = {}


class Settings(PartialSettings):
    """BitFit has no settings of its own."""


def problems(settings: Settings, family: str) -> list[str]:
    """Why these settings cannot be built on this family of denoisers; empty if they can."""
    if FAMILIES[family].biases:
        return []
    return [f"bitfit: a {FAMILIES[family].title} has no biases; allowed on a base with some"]


def biases(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter, for every ``bias`` of a linear layer, convolution or norm, each once.

    A DiT has biases in the patch embedding, the time embedder, the final layer and, in every
    block, in the modulation (6 D), in q, k, v and the projection of the attention (4 D) and in
    both layers of the MLP (5 D). Its norms have none.
    """
    return {n: p for n, p in model.named_parameters() if n.rpartition(".")[2] == "bias"}


def attach(model: nn.Module, settings: Settings, seed: int) -> Attachment:
    """Make every bias in the blocks trainable. Raises UserError if there is none."""
    chosen = inside(model, settings.blocks)
    trainable = {name: bias for name, bias in biases(model).items() if chosen(name)}
    if not trainable:
        raise UserError(f"blocks: {settings.blocks!r}: no bias is there")
    return Attachment(
        model, trainable, identity_at_start=True, undo=restoring(trainable), fold=nothing
    )
