"""A small open_clip judge with untrained weights, in a folder as a study names it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

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
    clip = open_clip.CLIP(**model)
    settle(clip)
    config = {"model_cfg": model, "preprocess_cfg": PREPROCESS}
    judge.write(clip, config, judge.build_tokenizer(captions), folder)
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
