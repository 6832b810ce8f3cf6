"""Full fine-tuning: every parameter of the denoiser is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fitspace.methods.attachment import Attachment, MethodSettings, nothing, restoring

if TYPE_CHECKING:
    from torch import nn

trains = True
folds = True
AT_REST: dict[str, float] = {}


class Settings(MethodSettings):
    """Full fine-tuning has no settings."""


def problems(settings: Settings, family: str) -> list[str]:
    """None: every denoiser can be fine-tuned."""
    return []


def attach(model: nn.Module, settings: Settings, seed: int) -> Attachment:
    """Make every parameter trainable (shared ones once); the base is kept on the CPU."""
    trainable = dict(model.named_parameters())
    return Attachment(
        model, trainable, identity_at_start=True, undo=restoring(trainable), fold=nothing
    )
