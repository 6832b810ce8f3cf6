"""Stable Diffusion's U-Net, told words by a text encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fitspace.bases.blocks import CROSS, RESNET
from fitspace.bases.family import Conditions, Family, by_name

if TYPE_CHECKING:
    import torch


def _hand(conditions: Conditions) -> dict[str, torch.Tensor]:
    given = {"given": conditions["given"]} if "given" in conditions else {}
    return {"encoder_hidden_states": conditions["embeddings"], **given}


def _blank(config: Any, images: int, tokens: int, dtype: torch.dtype) -> Conditions:
    import torch

    return {"embeddings": torch.empty(images, tokens, config.cross_attention_dim, dtype=dtype)}


# What a U-Net can be told beside the time and the words: nobody here would tell it.
_TOLD = (
    "class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim",
    "encoder_hid_dim_type", "time_cond_proj_dim",
)  # fmt: skip


def problems(config: dict[str, Any], told: tuple[str, ...] = ()) -> list[str]:
    """What in a U-Net's configuration nobody here can use; ``told``: keys that somebody can."""
    others = [key for key in _TOLD if key not in told]
    found = [f"{k}: {config[k]!r}; allowed: null" for k in others if config.get(k) is not None]
    if config.get("attention_type", "default") != "default":
        found.append(f"attention_type: {config['attention_type']!r}; allowed: 'default'")
    if not isinstance(width := config.get("cross_attention_dim"), int):
        found.append(f"cross_attention_dim: {width!r}; allowed: a whole number")
    return found


UNET = Family(
    name="unet",
    title="U-Net",
    component="unet",
    kind="UNet2DConditionModel",
    needs=("text_encoder", "tokenizer"),
    told={"embeddings": "F16 n tokens dim"},
    ask=by_name(_hand),
    blank=_blank,
    sizes={"dim": "cross_attention_dim"},
    blocks=(CROSS, RESNET),
    norms=True,
    form=lambda config: config.get("addition_embed_type") != "text_time",
    controls=("controlnet", "concat", "img2img"),
    copied="ControlNetModel",
    problems=problems,
)
