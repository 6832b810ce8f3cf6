"""The untouched base: nothing is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fitspace.methods.attachment import Attachment, MethodSettings, nothing

if TYPE_CHECKING:
    from torch import nn

trains = False


class Settings(MethodSettings):
    """The untouched base has no settings."""


def problems(settings: Settings, family: str) -> list[str]:
    """None: every base can be left alone."""
    return []


def attach(model: nn.Module, settings: Settings, seed: int) -> Attachment:
    """Change nothing."""
    return Attachment(model, {}, identity_at_start=True, undo=nothing, fold=nothing)
