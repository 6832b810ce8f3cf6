"""PixArt-Σ: a transformer with cross-attention to T5's text, of which padding is masked.

Source: 2403.04692.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fitspace.bases.blocks import ADALN_SINGLE
from fitspace.bases.encoding import prompted
from fitspace.bases.family import Conditions, Family, Reading, by_name, not_whole

if TYPE_CHECKING:
    import torch

TOKENS = 300  # that the pipeline's `encode_prompt` keeps by default


def _hand(conditions: Conditions) -> dict[str, Any]:
    return {
        "encoder_hidden_states": conditions["embeddings"],
        "encoder_attention_mask": conditions["mask"],
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def blank(config: Any, images: int, tokens: int, dtype: torch.dtype) -> Conditions:
    """Words and which are no padding, without content, see :class:`Family`."""
    import torch

    return {
        "embeddings": torch.empty(images, tokens, config.caption_channels, dtype=dtype),
        "mask": torch.empty(images, tokens, dtype=torch.long),
    }


def _encode(pipeline: Any, captions: Sequence[str], device: Any, side: int) -> Conditions:
    """T5's last states, and which tokens are no padding."""
    return prompted(pipeline, captions, device, {"embeddings": (0, 2), "mask": (1, 3)})


def _problems(config: dict[str, Any]) -> list[str]:
    found = []
    if (asked := config.get("use_additional_conditions")) is not False:
        # PixArt-α at 1024 px; null is true at this size.
        found.append(
            f"use_additional_conditions: {asked!r}; allowed: false, as nobody here tells it "
            "resolution and aspect ratio"
        )
    return found + not_whole(config, "caption_channels")


PIXART = Family(
    name="pixart",
    title="PixArt-Σ",
    component="transformer",
    kind="PixArtTransformer2DModel",
    needs=("text_encoder", "tokenizer"),
    told={"embeddings": "F16 n tokens dim", "mask": "I64 n tokens"},
    ask=by_name(_hand),
    blank=blank,
    sizes={"dim": "caption_channels"},
    blocks=(ADALN_SINGLE,),
    tokens=TOKENS,
    reading=Reading("PixArtSigmaPipeline", _encode, lambda folder: {"tokenizer": TOKENS}),
    problems=_problems,
)
