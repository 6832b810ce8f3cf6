"""A small open_clip judge with untrained weights, in a folder as a study names it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fitspace.core import files
from fitspace.recipes.world import judge

SIDE = 32
MODEL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": SIDE, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
    "text_cfg": judge.MODEL["text_cfg"] | {"context_length": 16, "width": 64, "layers": 3},
}
PREPROCESS = {"size": SIDE, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}


def write(folder: Path, captions: Sequence[str], model: dict[str, Any] = MODEL) -> Path:
    """Write the folder: a tokenizer of the captions' words, and weights of seed 0."""
    import open_clip

    torch.manual_seed(0)
    names = dict(
        zip(("pad_token", "unk_token", "cls_token", "sep_token"), judge.SPECIAL, strict=True)
    )
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 16, **names}
    config = {"model_cfg": model, "preprocess_cfg": PREPROCESS}
    files.write_json(folder / "open_clip_config.json", config)
    files.write_text(folder / "tokenizer.json", judge.build_tokenizer(captions).to_str())
    files.write_json(folder / "tokenizer_config.json", tokenizer)
    clip = open_clip.CLIP(**model)
    settle(clip)
    write_weights(clip, folder)
    return folder


@torch.no_grad()
def settle(clip: torch.nn.Module) -> None:
    """Let batch norms know what they see: unsettled, all images have one embedding."""
    for module in clip.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    coarse = torch.rand(64, 3, 4, 4) * 2 - 1
    clip.train().encode_image(torch.nn.functional.interpolate(coarse, SIDE))
    clip.eval()


def write_weights(model: torch.nn.Module, folder: Path) -> None:
    """Write a model's weights in half precision."""
    from safetensors.torch import save

    weights = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in sorted(model.state_dict().items())
    }
    files.write_bytes(folder / "open_clip_model.safetensors", save(weights))
