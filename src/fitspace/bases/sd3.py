"""Stable Diffusion 3 and 3.5: two streams that attend together, flow matching (2403.03206)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitspace.bases.blocks import JOINT
from fitspace.bases.encoding import prompted, tokens_kept
from fitspace.bases.family import Conditions, Family, Reading, by_name, not_whole
from fitspace.core.errors import UserError

if TYPE_CHECKING:
    import torch

T5_TOKENS = 256  # that the pipeline's `encode_prompt` keeps, unless its tokenizer keeps fewer
CLIP_TOKENS = 77


def _hand(conditions: Conditions) -> dict[str, torch.Tensor]:
    return {
        "encoder_hidden_states": conditions["embeddings"],
        "pooled_projections": conditions["pooled"],
    }


def blank(config: Any, images: int, tokens: int, dtype: torch.dtype) -> Conditions:
    """Words and what is pooled of them, without content, see :class:`Family`."""
    import torch

    return {
        "embeddings": torch.empty(images, tokens, config.joint_attention_dim, dtype=dtype),
        "pooled": torch.empty(images, config.pooled_projection_dim, dtype=dtype),
    }


def _encode(pipeline: Any, captions: Sequence[str], device: Any, side: int) -> Conditions:
    """Both CLIPs' second last states side by side, padded to T5's width, then T5's; and both
    CLIPs' pooled states."""
    returned = {"embeddings": (0, 1), "pooled": (2, 3)}
    third = {"prompt_2": None, "prompt_3": None, "max_sequence_length": T5_TOKENS}
    if pipeline.tokenizer_3 is not None:
        third["max_sequence_length"] = min(T5_TOKENS, pipeline.tokenizer_3.model_max_length)
    return prompted(pipeline, captions, device, returned, **third)


def _kept(folder: Path) -> dict[str, int]:
    # Both CLIPs keep as many tokens as the first one's tokenizer says.
    kept = dict.fromkeys(("tokenizer", "tokenizer_2"), tokens_kept(folder, "tokenizer"))
    if (folder / "tokenizer_3").is_dir():
        kept["tokenizer_3"] = T5_TOKENS
        with contextlib.suppress(UserError):  # a tokenizer may have no limit of its own
            kept["tokenizer_3"] = min(T5_TOKENS, tokens_kept(folder, "tokenizer_3"))
    return kept


def _tokens(kept: dict[str, int]) -> int:
    return kept["tokenizer"] + kept.get("tokenizer_3", T5_TOKENS)


def _problems(config: dict[str, Any]) -> list[str]:
    return not_whole(config, "joint_attention_dim", "pooled_projection_dim", "patch_size")


SD3 = Family(
    name="sd3",
    title="Stable Diffusion 3",
    component="transformer",
    kind="SD3Transformer2DModel",
    needs=("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
    # Without T5, which takes most memory, the pipeline tells zeros in its place.
    optional=("text_encoder_3", "tokenizer_3"),
    told={"embeddings": "F16 n tokens dim", "pooled": "F16 n pooled"},
    ask=by_name(_hand),
    blank=blank,
    sizes={"dim": "joint_attention_dim", "pooled": "pooled_projection_dim"},
    blocks=JOINT,
    flows=True,
    shifted=True,
    tokens=CLIP_TOKENS + T5_TOKENS,
    reading=Reading("StableDiffusion3Pipeline", _encode, _kept, _tokens),
    problems=_problems,
)
