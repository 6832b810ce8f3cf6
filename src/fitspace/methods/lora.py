"""LoRA: a low-rank change of linear layers, W + s·BA (2106.09685), by peft.

rsLoRA (2312.03732) uses another scale s. DoRA (2402.09353) also trains the length of each weight
row. B starts at zero, A is drawn.

A layer of D inputs and D outputs adds r·2D parameters. The authors of 2304.06648 adapt DiT's fused
qkv layer of D inputs and 3D outputs, which adds r·(D + 3D): on DiT-XL 1,149,696 at rank 8 with the
class table. diffusers splits that layer into three, which add 3·r·2D. With ``fused`` the three
share their A; this equals LoRA of the fused layer, parameter for parameter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from fitspace.methods.attachment import Attachment
from fitspace.methods.peft_layers import (
    ADAPTER,
    QKV,
    TARGETS,
    TargetedSettings,
    attachment,
    inject,
    linear_layers,
)

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import nn

trains = True
folds = True
budget = "rank"
AT_REST = {"lora_B": 0.0}


class Settings(TargetedSettings):
    """Settings of the low-rank change: rank, scale and form.

    The scale is alpha/rank: 1 with the defaults, and smaller for a larger rank. One learning rate
    therefore suits all ranks (2106.09685, section 4.1, which sets alpha once and does not tune it).
    """

    rank: int = Field(8, ge=1, le=65_536, description="Rank r of the change.")
    alpha: int = Field(8, ge=1, description="The change's scale is alpha/rank.")
    rslora: bool = Field(False, description="Scale by alpha/√rank instead (rsLoRA).")
    dora: bool = Field(False, description="Also train the length of each weight row (DoRA).")
    fused: bool = Field(
        False,
        description="One A for the projections that read the same input, as for a fused qkv layer.",
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of the change's inputs dropped in training."
    )


def problems(settings: Settings, family: str) -> list[str]:
    """None: both families have attention layers."""
    return []


def peft_config(settings: Settings, layers: Iterable[str]) -> LoraConfig:
    """peft's configuration for the layers of these paths."""
    from fitspace.core.imports import import_peft

    return import_peft().LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        target_modules=list(layers),
    )


def scale(settings: Settings) -> tuple[float, tuple[str, ...]]:
    """The change's scale, and the tensors any of which can hold it, as peft names them."""
    width = math.sqrt(settings.rank) if settings.rslora else settings.rank
    return settings.alpha / width, ("lora_B.weight",)


def attach(model: nn.Module, settings: Settings, seed: int) -> Attachment:
    """Give every layer of the target its A and B."""
    layers = linear_layers(model, *TARGETS[settings.target])
    tuner = inject(model, peft_config(settings, layers))
    if settings.fused:
        _share(model)
    return attachment(tuner, {"lora_A"}, seed, settings.dropout)


def _share(model: nn.Module) -> None:
    """Let to_k and to_v use the A of to_q; in cross-attention let to_v use the A of to_k."""
    from diffusers.models.attention_processor import Attention

    for module in model.modules():
        if isinstance(module, Attention):
            first, *others = QKV[1:] if module.is_cross_attention else QKV
            shared = getattr(module, first).lora_A[ADAPTER]
            for other in others:
                getattr(module, other).lora_A[ADAPTER] = shared
