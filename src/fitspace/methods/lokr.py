"""LoKr: a change that is a Kronecker product, W + α/r·C ⊗ (B·A), by peft.

Source: LyCORIS, 2309.14859, section 3. The numbers of inputs and outputs are each split into two
factors. C has the small factors as its sides, B·A the large ones; a full matrix replaces B·A if
it is no larger. C starts at zero, the rest is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from fitspace.methods.attachment import Attachment
from fitspace.methods.peft_layers import (
    TARGETS,
    TargetedSettings,
    attachment,
    inject,
    linear_layers,
)
from fitspace.methods.tuners import TUNERS

if TYPE_CHECKING:
    from peft import LoKrConfig
    from torch import nn

trains = True
folds = True
AT_REST = TUNERS["LOKR"].rest


class Settings(TargetedSettings):
    """Settings of the Kronecker product: split, rank and scale."""

    rank: int = Field(8, ge=1, le=65_536, description="Rank r of the large factor.")
    alpha: int = Field(8, ge=1, description="The change's scale is alpha/rank.")
    factor: int | None = Field(
        None,
        ge=2,
        description="Side of C, or the divisor next below it; null: both factors about equal.",
    )


def problems(settings: Settings, family: str) -> list[str]:
    """None: both families have attention layers."""
    return []


def peft_config(settings: Settings, layers: Iterable[str]) -> LoKrConfig:
    """peft's configuration for the layers of these paths."""
    from fitspace.core.imports import import_peft

    return import_peft().LoKrConfig(
        r=settings.rank,
        alpha=settings.alpha,
        decompose_factor=-1 if settings.factor is None else settings.factor,
        target_modules=list(layers),
    )


def scale(settings: Settings) -> tuple[float, tuple[str, ...]]:
    """The change's scale, and the tensors any of which can hold it, as peft names them."""
    return settings.alpha / settings.rank, ("lokr_w1", "lokr_w1_a")


def attach(model: nn.Module, settings: Settings, seed: int) -> Attachment:
    """Give every layer of the target its factors."""
    layers = linear_layers(model, TARGETS[settings.target], settings.blocks)
    tuner = inject(model, peft_config(settings, layers), seed)
    return attachment(tuner, seed)
