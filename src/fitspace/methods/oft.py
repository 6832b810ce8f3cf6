"""OFT: orthogonal fine-tuning, which rotates the inputs of linear layers in blocks, by peft.

W·R with R block-diagonal and orthogonal (2306.07280, section 3): R = (I + Q)(I − Q)⁻¹, the
Cayley transform of a skew-symmetric Q that starts at zero. The transform is exact; peft's default
is a series that is no longer orthogonal when Q grows. A layer of D inputs adds D·(b − 1)/2
parameters with blocks of b.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from fitspace.core.errors import UserError
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
    from peft import OFTConfig
    from torch import nn

trains = True
AT_REST = TUNERS["OFT"].rest


class Settings(TargetedSettings):
    """Settings of the rotation: the block size."""

    block_size: int = Field(
        32, ge=2, le=65_536, description="Inputs rotated together; a divisor of a layer's inputs."
    )


def problems(settings: Settings, family: str) -> list[str]:
    """None: any family works; whether the block size fits depends on the base's widths."""
    return []


def peft_config(settings: Settings, layers: Iterable[str]) -> OFTConfig:
    """peft's configuration for the layers of these paths."""
    from fitspace.core.imports import import_peft

    return import_peft().OFTConfig(
        oft_block_size=settings.block_size,
        use_cayley_neumann=False,
        target_modules=list(layers),
    )


def attach(model: nn.Module, settings: Settings, seed: int) -> Attachment:
    """Give every layer of the target its rotations.

    Raises
    ------
    UserError : a block size that does not divide every layer's inputs.
    """
    layers = linear_layers(model, TARGETS[settings.target], settings.blocks)
    common = math.gcd(*(layer.in_features for layer in layers.values()))
    if common % settings.block_size:
        allowed = ", ".join(str(b) for b in range(2, common + 1) if common % b == 0)
        raise UserError(
            f"oft.block_size: {settings.block_size}: does not divide the inputs of every layer; "
            f"allowed on this base: {allowed or 'none'}"
        )
    return attachment(inject(model, peft_config(settings, layers), seed), seed)
