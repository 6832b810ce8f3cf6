"""Custom Diffusion: only how the text is read is trained, the keys and values of cross-attention.

2212.04488: of a U-Net's parameters W_k and W_v of every cross-attention are trained,
about 2% of Stable Diffusion 1.x. Where text and image attend together those of the text are
meant. The paper trains the embedding of a new word with them; the text
encoder is no part of a denoiser, so that a word which it knows already has to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fitspace.bases.blocks import layers
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
    """Custom Diffusion has no settings of its own."""


def problems(settings: Settings, family: str) -> list[str]:
    """Why these settings cannot be built on this family of denoisers; empty if they can."""
    if FAMILIES[family].has("CA_c"):
        return []
    title = FAMILIES[family].title
    return [f"custom_diffusion: a {title} has no cross-attention; allowed on a base with one"]


def attach(model: nn.Module, settings: Settings, seed: int) -> Attachment:
    """Make the keys and values of the text trainable in every attention in the blocks.

    Raises
    ------
    UserError : there is none.
    """
    chosen = inside(model, settings.blocks)
    trainable = {
        f"{path}.{name}": parameter
        for path, layer in layers(model, ("text_k", "text_v")).items()
        if chosen(path)
        for name, parameter in layer.named_parameters()
    }
    if not trainable:
        raise UserError(f"blocks: {settings.blocks!r}: no cross-attention is there")
    return Attachment(
        model, trainable, identity_at_start=True, undo=restoring(trainable), fold=nothing
    )
