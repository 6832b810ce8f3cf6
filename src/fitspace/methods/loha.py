"""LoHa: a change that is the Hadamard product of two low-rank matrices, by peft.

W + α/r·(B1·A1) ∘ (B2·A2), of rank up to r² (FedPara, 2108.06098, section 2.2; LyCORIS,
2309.14859). A2 starts at zero, the others are drawn. A layer adds 2·r·(inputs + outputs)
parameters.
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
    from peft import LoHaConfig
    from torch import nn

trains = True
budget = "rank"
AT_REST = TUNERS["LOHA"].rest


class Settings(TargetedSettings):
    """Settings of the Hadamard product: rank and scale."""

    rank: int = Field(8, ge=1, le=65_536, description="Rank r of each of the two matrices.")
    alpha: int = Field(8, ge=1, description="The change's scale is alpha/rank.")


def problems(settings: Settings, family: str) -> list[str]:
    """None: all families have attention layers."""
    return []


def peft_config(settings: Settings, layers: Iterable[str]) -> LoHaConfig:
    """peft's configuration for the layers of these paths."""
    from fitspace.core.imports import import_peft

    return import_peft().LoHaConfig(
        r=settings.rank, alpha=settings.alpha, target_modules=list(layers)
    )


def scale(settings: Settings) -> tuple[float, tuple[str, ...]]:
    """The change's scale, and the tensors any of which can hold it, as peft names them."""
    return settings.alpha / settings.rank, ("hada_w1_a",)


def attach(model: nn.Module, settings: Settings, seed: int) -> Attachment:
    """Give every layer of the target its two pairs of matrices."""
    layers = linear_layers(model, TARGETS[settings.target], settings.blocks)
    tuner = inject(model, peft_config(settings, layers), seed)
    return attachment(tuner, seed)
