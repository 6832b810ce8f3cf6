"""Stable Diffusion XL: a U-Net told words by two text encoders, and sizes (2307.01952)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitspace.bases import unet
from fitspace.bases.blocks import CROSS, RESNET
from fitspace.bases.encoding import prompted, tokens_kept
from fitspace.bases.family import Conditions, Family, Reading, by_name, not_whole

if TYPE_CHECKING:
    import torch

TEXT_TIME = "text_time"
SIZES = 6  # an original image's height and width, where it was cut, the image's height and width


def _hand(conditions: Conditions) -> dict[str, Any]:
    pooled = conditions["pooled"]
    more = {"text_embeds": pooled, "time_ids": conditions["sizes"].to(pooled.dtype)}
    return {"encoder_hidden_states": conditions["embeddings"], "added_cond_kwargs": more}


def _pooled(config: Any) -> int:
    """Width of the pooled text: what the sizes leave of the condition beside the words."""
    return config.projection_class_embeddings_input_dim - SIZES * config.addition_time_embed_dim


def _blank(config: Any, images: int, tokens: int, dtype: torch.dtype) -> Conditions:
    import torch

    return {
        "embeddings": torch.empty(images, tokens, config.cross_attention_dim, dtype=dtype),
        "pooled": torch.empty(images, _pooled(config), dtype=dtype),
        "sizes": torch.empty(images, SIZES, dtype=torch.long),
    }


def _encode(pipeline: Any, captions: Sequence[str], device: Any, side: int) -> Conditions:
    """Both text encoders' second last states side by side, the second one's pooled state, and the
    sizes of an image that is whole and as large as the base's own.

    No image that is trained on is told to have been smaller: all were made squares of this side.
    """
    import torch

    told = prompted(pipeline, captions, device, {"embeddings": (0, 1), "pooled": (2, 3)})
    sizes = torch.tensor([[side, side, 0, 0, side, side]]).repeat(len(captions), 1)
    return told | {"sizes": sizes}


def _kept(folder: Path) -> dict[str, int]:
    return {name: tokens_kept(folder, name) for name in ("tokenizer", "tokenizer_2")}


def _problems(config: dict[str, Any]) -> list[str]:
    keys = ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
    return unet.problems(config, told=("addition_embed_type",)) + not_whole(config, *keys)


SDXL = Family(
    name="sdxl",
    title="Stable Diffusion XL",
    component="unet",
    kind="UNet2DConditionModel",
    needs=("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
    told={"embeddings": "F16 n tokens dim", "pooled": "F16 n pooled", "sizes": f"I64 n {SIZES}"},
    ask=by_name(_hand),
    blank=_blank,
    sizes={"dim": "cross_attention_dim"},
    blocks=(CROSS, RESNET),
    norms=True,
    reading=Reading("StableDiffusionXLPipeline", _encode, _kept),
    form=lambda config: config.get("addition_embed_type") == TEXT_TIME,
    problems=_problems,
)
