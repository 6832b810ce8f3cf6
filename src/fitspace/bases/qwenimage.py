"""Qwen-Image: blocks of two streams of packed latents, Qwen2.5-VL's text; flow matching.

Source: 2508.02324, as diffusers has it. The autoencoder is one of videos: an image is one frame,
and each channel of latents has a mean and a deviation. Its pipeline makes each token of a guided
prediction as long as that with text (``true_cfg_scale``), and so does sampling here. Forms that
edit images or make layers of them are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitspace.bases.blocks import QWENIMAGE_BLOCK
from fitspace.bases.encoding import blank_padded, padded
from fitspace.bases.family import Conditions, Family, Reading, as_long, not_whole
from fitspace.bases.flux import PACKS, SIDE, packed, unpacked

if TYPE_CHECKING:
    import torch

TOKENS = 512  # that the pipeline's call keeps by default
_NEVER = {
    "guidance_embeds": "a form that is told a guidance",
    "zero_cond_t": "a form that edits images",
    "use_additional_t_cond": "a form that makes layers",
    "use_layer3d_rope": "a form that makes layers",
}


def _ask(
    call: Callable, config: Any, noisy: torch.Tensor, t: torch.Tensor, conditions: Conditions
) -> torch.Tensor:
    n, (rows, columns) = len(noisy), (side // PACKS for side in noisy.shape[2:])
    predicted = call(
        packed(noisy),
        encoder_hidden_states=conditions["embeddings"],
        encoder_hidden_states_mask=conditions["mask"],
        timestep=t / 1000,
        img_shapes=[[(1, rows, columns)]] * n,
    ).sample
    return unpacked(predicted, noisy)


def _rescaled(guided: torch.Tensor, with_text: torch.Tensor) -> torch.Tensor:
    return unpacked(as_long(packed(guided), packed(with_text)), guided)


def _encode(pipeline: Any, captions: Sequence[str], device: Any, side: int) -> Conditions:
    """Qwen2.5-VL's last states of a chat in which the user says the caption, without what stands
    before it; and which tokens are no padding. The empty caption is read as any other."""
    import torch

    with torch.no_grad():
        told, mask = pipeline.encode_prompt(
            list(captions), device=device, max_sequence_length=TOKENS
        )
    lengths = [told.shape[1]] * len(told) if mask is None else mask.sum(1).tolist()
    return padded([text[:k] for text, k in zip(told, lengths, strict=True)], TOKENS)


def _kept(folder: Path) -> dict[str, int]:
    return {"tokenizer": TOKENS}


def _problems(config: dict[str, Any]) -> list[str]:
    found = not_whole(config, "joint_attention_dim")
    if (patch := config.get("patch_size", PACKS)) != PACKS:
        found.append(f"patch_size: {patch!r}; allowed: {PACKS}, as latents are packed before")
    found += [
        f"{k}: true; allowed: false, not {what}" for k, what in _NEVER.items() if config.get(k)
    ]
    return found


QWENIMAGE = Family(
    name="qwenimage",
    title="Qwen-Image",
    component="transformer",
    kind="QwenImageTransformer2DModel",
    vae="AutoencoderKLQwenImage",
    normalised=True,
    needs=("text_encoder", "tokenizer"),
    told={"embeddings": "F16 n tokens dim", "mask": "I64 n tokens"},
    ask=_ask,
    blank=blank_padded("joint_attention_dim"),
    sizes={"dim": "joint_attention_dim"},
    blocks=(QWENIMAGE_BLOCK,),
    flows=True,
    side=SIDE,
    packs=PACKS,
    patch=lambda config: 1,  # what it makes tokens of is packed already
    steps="even",
    rescaled=_rescaled,
    tokens=TOKENS,
    reading=Reading("QwenImagePipeline", _encode, _kept),
    problems=_problems,
)
