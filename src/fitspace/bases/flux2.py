"""FLUX.2-klein: as FLUX.1, with one modulation for all blocks, Qwen3's text, normalised latents.

Source: the model of black-forest-labs as diffusers has it. The autoencoder's latents are taken in
squares of 2x2 and normalised by its batch statistics. FLUX.2-dev is told a guidance, and reads text
by another encoder: it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitspace.bases.blocks import FLUX2_JOINT, FLUX2_SINGLE
from fitspace.bases.encoding import prompted
from fitspace.bases.family import Conditions, Family, Reading, not_whole

if TYPE_CHECKING:
    import torch

TOKENS = 512  # that the pipeline's `encode_prompt` keeps by default
OF_CHAT = 12  # tokens of the chat around a caption
SIDE = 64  # of latents: half the pipeline's `default_sample_size`, which counts no squares


def _ask(
    call: Callable, config: Any, noisy: torch.Tensor, t: torch.Tensor, conditions: Conditions
) -> torch.Tensor:
    import torch

    one, text = torch.arange(1), conditions["embeddings"]
    rows, columns, words = map(torch.arange, (*noisy.shape[2:], text.shape[1]))
    predicted = call(
        noisy.flatten(2).transpose(1, 2),
        encoder_hidden_states=text,
        timestep=t / 1000,
        img_ids=torch.cartesian_prod(one, rows, columns, one).to(noisy.device),
        txt_ids=torch.cartesian_prod(one, one, one, words).to(noisy.device),
    ).sample
    return predicted.transpose(1, 2).reshape(noisy.shape)


def _blank(config: Any, images: int, tokens: int, dtype: torch.dtype) -> Conditions:
    import torch

    return {"embeddings": torch.empty(images, tokens, config.joint_attention_dim, dtype=dtype)}


def _encode(pipeline: Any, captions: Sequence[str], device: Any, side: int) -> Conditions:
    """Three of Qwen3's hidden states side by side, of a chat in which the user says the caption."""
    return prompted(pipeline, captions, device, {"embeddings": (0, None)})


def _kept(folder: Path) -> dict[str, int]:
    return {"tokenizer": TOKENS - OF_CHAT}


def _tokens(kept: dict[str, int]) -> int:
    return TOKENS


def _problems(config: dict[str, Any]) -> list[str]:
    found = not_whole(config, "joint_attention_dim")
    if (patch := config.get("patch_size", 1)) != 1:
        found.append(f"patch_size: {patch!r}; allowed: 1, as latents are packed before")
    if config.get("guidance_embeds", True):
        found.append("guidance_embeds: true; allowed: false, FLUX.2-klein")
    return found


FLUX2 = Family(
    name="flux2",
    title="FLUX.2-klein",
    component="transformer",
    kind="Flux2Transformer2DModel",
    vae="AutoencoderKLFlux2",
    needs=("text_encoder", "tokenizer"),
    told={"embeddings": "F16 n tokens dim"},
    ask=_ask,
    blank=_blank,
    sizes={"dim": "joint_attention_dim"},
    blocks=(FLUX2_JOINT, FLUX2_SINGLE),
    biases=False,
    flows=True,
    drawn=False,
    side=SIDE,
    steps="empirical",
    tokens=TOKENS,
    reading=Reading("Flux2KleinPipeline", _encode, _kept, _tokens),
    problems=_problems,
)
