"""Stable Diffusion's U-Net, told words by a text encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fitspace.bases.family import Conditions, Family

if TYPE_CHECKING:
    import torch


def _hand(conditions: Conditions) -> dict[str, torch.Tensor]:
    return {"encoder_hidden_states": conditions["embeddings"]}


def _blank(config: Any, images: int, tokens: int, dtype: torch.dtype) -> Conditions:
    import torch

    return {"embeddings": torch.empty(images, tokens, config.cross_attention_dim, dtype=dtype)}


UNET = Family(
    name="unet",
    title="U-Net",
    component="unet",
    kind="UNet2DConditionModel",
    needs=("text_encoder", "tokenizer"),
    told={"embeddings": "F16 n tokens dim"},
    hand=_hand,
    blank=_blank,
    sizes={"dim": "cross_attention_dim"},
    scales=False,
)
