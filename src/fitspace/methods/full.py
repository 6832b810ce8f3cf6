"""Full fine-tuning: every parameter of the denoiser is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fitspace import bases
from fitspace.core.errors import UserError
from fitspace.methods.attachment import Attachment, BlockSettings, nothing, restoring
from fitspace.methods.blocks import ALL, inside

if TYPE_CHECKING:
    from torch import nn

trains = True
folds = True
AT_REST: dict[str, float] = {}


class Settings(BlockSettings):
    """Full fine-tuning has no settings of its own."""


def problems(settings: Settings, family: str) -> list[str]:
    """None: every denoiser can be fine-tuned."""
    return []


def needs_whole(settings: dict[str, Any], control: str | None) -> str | None:
    """Why no weight of the base can be stored in fewer bits; None if some can."""
    if control == "controlnet" or settings.get("blocks", ALL) != ALL:
        return None
    return "trains every weight, so that none is left"


def attach(model: nn.Module, settings: Settings, seed: int) -> Attachment:
    """Make every parameter of the blocks trainable (shared ones once), and a class table that is
    new; the base is kept on the CPU.

    Raises UserError if the blocks have no parameters.
    """
    chosen, new = inside(model, settings.blocks), bases.own_classes(model)
    table = bases.class_table(model)[0] if new else None
    trainable = {n: p for n, p in model.named_parameters() if chosen(n) or n == table}
    if not trainable:
        raise UserError(f"blocks: {settings.blocks!r}: no parameter is there")
    return Attachment(
        model, trainable, identity_at_start=True, undo=restoring(trainable), fold=nothing
    )
