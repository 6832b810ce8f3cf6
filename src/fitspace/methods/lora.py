"""LoRA: a low-rank change of linear layers, W + s·BA (2106.09685), by peft.

rsLoRA (2312.03732) uses another scale s. DoRA (2402.09353) also trains the length of each weight
row. LoRA+ (2402.12354) trains B at a higher learning rate than A. T-LoRA (2507.05964) uses fewer of
the r components where the input is noisier. B starts at zero and A is drawn, or both start from a
decomposition of W, see :mod:`fitspace.methods.lora_layers`.

A layer of D inputs and D outputs adds r·2D parameters. The authors of 2304.06648 adapt DiT's fused
qkv layer of D inputs and 3D outputs, which adds r·(D + 3D): on DiT-XL 1,149,696 at rank 8 with the
class table. diffusers splits that layer into three, which add 3·r·2D. With ``fused`` the three
share their A; this equals LoRA of the fused layer, parameter for parameter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from fitspace.bases.blocks import PROJECTIONS, attends, crosses
from fitspace.methods.attachment import Attachment
from fitspace.methods.peft_layers import (
    ADAPTER,
    TARGETS,
    TargetedSettings,
    attachment,
    inject,
    linear_layers,
)
from fitspace.methods.tuners import FROM_WEIGHTS, READS, STARTS, TUNERS

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import nn

trains = True
folds = True
budget = "rank"
AT_REST = TUNERS["LORA"].rest


class Settings(TargetedSettings):
    """Settings of the low-rank change: rank, scale and form.

    The scale is alpha/rank: 1 with the defaults, and smaller for a larger rank. One learning rate
    therefore suits all ranks (2106.09685, section 4.1, which sets alpha once and does not tune it).
    """

    LATER = (*TargetedSettings.LATER, "init", "lr_ratio", "min_rank")

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
    init: Literal["kaiming", "gaussian", "orthogonal", "pissa", "olora"] = Field(
        "kaiming",
        description="Start: A uniform or normal and B zero; both drawn, with BA zero; or both from "
        "the base's weights, by singular values (PiSSA) or by QR (OLoRA).",
    )
    lr_ratio: float = Field(
        1.0, gt=0, le=1000, description="Learning rate of B as a multiple of A's (LoRA+)."
    )

    min_rank: int | None = Field(
        None,
        ge=1,
        description="Rank at the noisiest time step, growing to `rank` at the cleanest (T-LoRA); "
        "null: the same at all.",
    )

    @field_validator("init", mode="before")
    @classmethod
    def _at_hand(cls, value: Any) -> Any:
        if value in STARTS:
            raise ValueError(f"{value!r}: {STARTS[value]}, which is not possible here")
        return value


def problems(settings: Settings, family: str) -> list[str]:
    """Why these settings cannot be built on this family of denoisers; empty if they can."""
    found, from_weights = [], settings.init in FROM_WEIGHTS
    if settings.init == "orthogonal" and settings.rank % 2:
        found.append(f"rank: {settings.rank}: init 'orthogonal' needs an even rank")
    if settings.dora and from_weights:
        found.append(f"dora: True: not with init {settings.init!r}, which changes W's length")
    if settings.fused and settings.init in (*FROM_WEIGHTS, "orthogonal"):
        found.append(f"fused: True: init {settings.init!r} gives each layer an A of its own")
    if settings.min_rank is not None:
        if settings.min_rank > settings.rank:
            found.append(f"min_rank: {settings.min_rank}: is above rank, {settings.rank}")
        if settings.dora:
            found.append("dora: True: not with min_rank, because lengths know no time step")
    return found


def not_linear(settings: dict[str, Any]) -> str | None:
    """Why these settings have no strength, in words; None if they have."""
    return "dora" if settings.get("dora") else None


def needs_whole(settings: dict[str, Any], control: str | None) -> str | None:
    """Why the base's weights cannot be stored in fewer bits; None if they can."""
    return f"with dora {READS}" if settings.get("dora") else None


def peft_config(settings: Settings, layers: Iterable[str]) -> LoraConfig:
    """peft's configuration for the layers of these paths."""
    from fitspace.core.imports import import_peft

    return import_peft().LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        init_lora_weights=True if settings.init == "kaiming" else settings.init,
        target_modules=list(layers),
    )


def scale(settings: Settings) -> tuple[float, tuple[str, ...]]:
    """The change's scale, and the tensors any of which can hold it, as peft names them."""
    width = math.sqrt(settings.rank) if settings.rslora else settings.rank
    return settings.alpha / width, ("lora_B.weight",)


def attach(model: nn.Module, settings: Settings, seed: int) -> Attachment:
    """Give every layer of the target its A and B."""
    layers = linear_layers(model, TARGETS[settings.target], settings.blocks)
    tuner = inject(model, peft_config(settings, layers), seed)
    if settings.fused:
        _share(model)
    found = attachment(tuner, seed, settings.dropout)
    if settings.lr_ratio != 1:
        of_b = (name for name in found.trainable if "lora_B" in name.split("."))
        found.rates = dict.fromkeys(of_b, settings.lr_ratio)
    if settings.min_rank is not None:
        from fitspace.methods.lora_layers import by_time

        by_time(found, settings.min_rank, ADAPTER)
    return found


def _share(model: nn.Module) -> None:
    """Let to_k and to_v use the A of to_q; in cross-attention let to_v use the A of to_k."""
    for module in model.modules():
        if not attends(module):
            continue
        for names in PROJECTIONS:
            alike = names[1:] if crosses(module) else names
            own = [
                layer for name in alike if hasattr(layer := getattr(module, name, None), "lora_A")
            ]
            for other in own[1:]:
                other.lora_A[ADAPTER] = own[0].lora_A[ADAPTER]
