"""FLUX.1: blocks of two streams, then of one, of packed latents; flow matching.

Source: the model of black-forest-labs as diffusers has it. A square of 2x2 latents is one token.
The -dev model is told the scale of the guidance that it was distilled with; nothing else is told
apart. Training tells it 1, as the calls of diffusers' train_dreambooth_lora_flux.py do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitspace.bases import sd3
from fitspace.bases.blocks import FLUX_JOINT, FLUX_SINGLE
from fitspace.bases.encoding import prompted, tokens_kept
from fitspace.bases.family import Conditions, Family, Reading, not_whole

if TYPE_CHECKING:
    import torch

TOKENS = 512  # of T5, that the pipeline's `encode_prompt` keeps by default
SIDE = 128  # of latents: the pipeline's `default_sample_size`
PACKS = 2
GUIDANCE = 1.0  # told in training


def packed(latents: torch.Tensor) -> torch.Tensor:
    """Latents (n, c, h, w) in squares of 2x2, a token each: (n, h·w/4, 4c)."""
    n, channels, h, w = latents.shape
    squares = latents.reshape(n, channels, h // PACKS, PACKS, w // PACKS, PACKS)
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpacked(tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Tokens as `packed` makes them, as latents shaped as ``like``."""
    n, channels, h, w = like.shape
    squares = tokens.reshape(n, h // PACKS, w // PACKS, channels, PACKS, PACKS)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(n, channels, h, w)


def _ask(
    call: Callable, config: Any, noisy: torch.Tensor, t: torch.Tensor, conditions: Conditions
) -> torch.Tensor:
    import torch

    rows, columns = (side // PACKS for side in noisy.shape[2:])
    text, told = conditions["embeddings"], {}
    grid = torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns))
    if config.guidance_embeds:
        scale = torch.full((len(noisy),), GUIDANCE, device=noisy.device)
        told["guidance"] = conditions.get("guidance", scale)
    predicted = call(
        packed(noisy),
        encoder_hidden_states=text,
        pooled_projections=conditions["pooled"],
        timestep=t / 1000,
        img_ids=grid.to(noisy),
        txt_ids=torch.zeros(text.shape[1], 3).to(noisy),
        **told,
    ).sample
    return unpacked(predicted, noisy)


def _encode(pipeline: Any, captions: Sequence[str], device: Any, side: int) -> Conditions:
    """T5's last states, and CLIP's pooled state. Nothing is guided away from but an empty caption
    that is read as any other."""
    returned = {"embeddings": (0, None), "pooled": (1, None)}
    return prompted(pipeline, captions, device, returned, prompt_2=None)


def _kept(folder: Path) -> dict[str, int]:
    return {"tokenizer": tokens_kept(folder, "tokenizer"), "tokenizer_2": TOKENS}


def _tokens(kept: dict[str, int]) -> int:
    return kept["tokenizer_2"]  # CLIP gives its pooled state alone


def _problems(config: dict[str, Any]) -> list[str]:
    found = not_whole(config, "joint_attention_dim", "pooled_projection_dim")
    if (patch := config.get("patch_size", 1)) != 1:
        found.append(f"patch_size: {patch!r}; allowed: 1, as latents are packed before")
    return found


FLUX = Family(
    name="flux",
    title="FLUX.1",
    component="transformer",
    kind="FluxTransformer2DModel",
    needs=("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
    told={"embeddings": "F16 n tokens dim", "pooled": "F16 n pooled"},
    ask=_ask,
    blank=sd3.blank,
    sizes={"dim": "joint_attention_dim", "pooled": "pooled_projection_dim"},
    blocks=(FLUX_JOINT, FLUX_SINGLE),
    flows=True,
    shifted=True,
    side=SIDE,
    packs=PACKS,
    steps="even",
    distilled=lambda config: bool(config.get("guidance_embeds")),
    tokens=TOKENS,
    reading=Reading("FluxPipeline", _encode, _kept, _tokens),
    problems=_problems,
)
