"""Lumina-Image 2.0: text and image as one stream; flow matching whose time goes backwards.

Source: 2503.21758, as diffusers has it. The denoiser is told 0 of noise and 1 of an image, and
predicts the velocity from noise to image: `ask` turns both round. Its pipeline makes each row of a
guided prediction as long as that with text (``cfg_normalization``), and so does sampling here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitspace.bases.blocks import LUMINA2_BLOCK
from fitspace.bases.encoding import blank_padded, prompted
from fitspace.bases.family import Conditions, Family, Reading, as_long, not_whole

if TYPE_CHECKING:
    import torch

TOKENS = 256  # that the pipeline's `encode_prompt` keeps by default
OF_SYSTEM = 30  # tokens of the pipeline's own words before a caption


def _ask(
    call: Callable, config: Any, noisy: torch.Tensor, t: torch.Tensor, conditions: Conditions
) -> torch.Tensor:
    mask = conditions["mask"]
    return -call(
        noisy,
        timestep=1 - t / 1000,
        encoder_hidden_states=conditions["embeddings"],
        encoder_attention_mask=_whole(mask) if mask.is_meta else mask,
    ).sample


def _whole(mask: torch.Tensor) -> torch.Tensor:
    """A mask without content, of which every token counts as no padding."""
    import torch

    class Whole(torch.Tensor):
        def sum(self, dim: int) -> torch.Tensor:
            return torch.full(self.shape[:1], self.shape[dim], device="cpu")

    return mask.as_subclass(Whole)


def _encode(pipeline: Any, captions: Sequence[str], device: Any, side: int) -> Conditions:
    """Gemma's second last states, and which tokens are no padding. Before a caption stand the
    pipeline's words of what to do; before an empty one, none."""
    return prompted(pipeline, captions, device, {"embeddings": (0, 2), "mask": (1, 3)})


def _kept(folder: Path) -> dict[str, int]:
    return {"tokenizer": TOKENS - OF_SYSTEM}


def _tokens(kept: dict[str, int]) -> int:
    return TOKENS


def _problems(config: dict[str, Any]) -> list[str]:
    return not_whole(config, "cap_feat_dim", "hidden_size", "patch_size")


LUMINA2 = Family(
    name="lumina2",
    title="Lumina-Image 2.0",
    component="transformer",
    kind="Lumina2Transformer2DModel",
    needs=("text_encoder", "tokenizer"),
    told={"embeddings": "F16 n tokens dim", "mask": "I64 n tokens"},
    ask=_ask,
    blank=blank_padded("cap_feat_dim"),
    sizes={"dim": "cap_feat_dim"},
    blocks=(LUMINA2_BLOCK,),
    flows=True,
    shifted=True,
    steps="even",
    shifts_by="channels",
    rescaled=as_long,
    folds=False,
    tokens=TOKENS,
    reading=Reading("Lumina2Pipeline", _encode, _kept, _tokens),
    problems=_problems,
)
