"""Sana: linear attention, cross-attention to Gemma's text, convolutions; flow matching.

Source: 2410.10629. Sana-Sprint, which is told a guidance and was distilled to another process, is
refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitspace.bases import pixart
from fitspace.bases.blocks import SANA_BLOCK
from fitspace.bases.encoding import prompted
from fitspace.bases.family import Conditions, Family, Reading, by_name, not_whole

if TYPE_CHECKING:
    import torch

TOKENS = 300  # that the pipeline's `encode_prompt` keeps by default
_ASKED = "complex_human_instruction"


def _hand(conditions: Conditions) -> dict[str, torch.Tensor]:
    return {
        "encoder_hidden_states": conditions["embeddings"],
        "encoder_attention_mask": conditions["mask"],
    }


def _encode(pipeline: Any, captions: Sequence[str], device: Any, side: int) -> Conditions:
    """Gemma's last states, and which tokens are no padding. Before a caption stands the instruction
    that the pipeline's call puts there by itself; before an empty one, none."""
    asked = inspect.signature(type(pipeline).__call__).parameters[_ASKED].default
    returned = {"embeddings": (0, 2), "mask": (1, 3)}
    return prompted(pipeline, captions, device, returned, **{_ASKED: asked})


def _kept(folder: Path) -> dict[str, int]:
    # One of the last tokens is of the instruction, where there is one.
    return {"tokenizer": TOKENS - 1}


def _tokens(kept: dict[str, int]) -> int:
    return TOKENS


def _problems(config: dict[str, Any]) -> list[str]:
    found = not_whole(config, "caption_channels", "cross_attention_dim", "patch_size")
    if config.get("guidance_embeds"):
        found.append("guidance_embeds: true; allowed: false, no Sana-Sprint")
    if (scale := config.get("timestep_scale", 1.0)) != 1:
        found.append(f"timestep_scale: {scale!r}; allowed: 1")
    return found


SANA = Family(
    name="sana",
    title="Sana",
    component="transformer",
    kind="SanaTransformer2DModel",
    vae="AutoencoderDC",
    needs=("text_encoder", "tokenizer"),
    told={"embeddings": "F16 n tokens dim", "mask": "I64 n tokens"},
    ask=by_name(_hand),
    blank=pixart.blank,
    sizes={"dim": "caption_channels"},
    blocks=(SANA_BLOCK,),
    flows=True,
    named=True,
    tokens=TOKENS,
    reading=Reading("SanaPipeline", _encode, _kept, _tokens),
    problems=_problems,
)
