"""Z-Image: image and text as one stream; flow matching whose time goes backwards.

Source: 2511.22699, as diffusers has it. The denoiser is told 0 of noise and 1 of an image, and
predicts the velocity from noise to image: `ask` turns both round. It takes a list of images and of
texts without padding. Its pipeline counts guidance from 0: a scale s here is s - 1 there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitspace.bases.blocks import ZIMAGE_BLOCK
from fitspace.bases.encoding import blank_padded, padded
from fitspace.bases.family import Conditions, Family, Reading, not_whole
from fitspace.bases.flux import SIDE

if TYPE_CHECKING:
    import torch

TOKENS = 512  # that the pipeline's `encode_prompt` keeps by default
OF_CHAT = 3  # tokens of the chat before a caption
PATCH = 2


def _ask(
    call: Callable, config: Any, noisy: torch.Tensor, t: torch.Tensor, conditions: Conditions
) -> torch.Tensor:
    import torch

    texts, mask = conditions["embeddings"], conditions["mask"]
    # Without content no token is known to be padding.
    lengths = len(mask) * [mask.shape[1]] if mask.is_meta else mask.sum(1).tolist()
    predicted = call(
        [image[:, None] for image in noisy],
        t=1 - t / 1000,
        cap_feats=[text[:k] for text, k in zip(texts, lengths, strict=True)],
    ).sample
    return -torch.stack(predicted)[:, :, 0]


def _encode(pipeline: Any, captions: Sequence[str], device: Any, side: int) -> Conditions:
    """Qwen3's second last states of a chat in which the user says the caption, without padding. The
    empty caption is read as any other."""
    import torch

    with torch.no_grad():
        told, _ = pipeline.encode_prompt(
            list(captions), device=device, do_classifier_free_guidance=False
        )
    return padded(told, TOKENS)


def _kept(folder: Path) -> dict[str, int]:
    return {"tokenizer": TOKENS - OF_CHAT}


def _tokens(kept: dict[str, int]) -> int:
    return TOKENS


def _problems(config: dict[str, Any]) -> list[str]:
    found = not_whole(config, "cap_feat_dim", "dim")
    if config.get("siglip_feat_dim") is not None:
        found.append("siglip_feat_dim: a number; allowed: null, no form that edits images")
    for key, one in {"all_patch_size": PATCH, "all_f_patch_size": 1}.items():
        if (sides := config.get(key, [one])) != [one] and sides != (one,):
            found.append(f"{key}: {sides!r}; allowed: [{one}]")
    return found


ZIMAGE = Family(
    name="zimage",
    title="Z-Image",
    component="transformer",
    kind="ZImageTransformer2DModel",
    needs=("text_encoder", "tokenizer"),
    told={"embeddings": "F16 n tokens dim", "mask": "I64 n tokens"},
    ask=_ask,
    blank=blank_padded("cap_feat_dim"),
    sizes={"dim": "cap_feat_dim"},
    blocks=(ZIMAGE_BLOCK,),
    flows=True,
    shifted=True,
    drawn=False,
    side=SIDE,
    patch=lambda config: PATCH,
    steps="even",
    folds=False,
    tokens=TOKENS,
    reading=Reading("ZImagePipeline", _encode, _kept, _tokens),
    problems=_problems,
)
