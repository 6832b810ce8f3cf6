"""DINOv2's features (2304.07193), the space of FD-DINOv2 (2306.04675): timm's network.

The network's sizes are found from the weights: timm's four, with register tokens or without
(``timm/vit_*_patch14_*dinov2.lvd142m`` on the hub), or smaller ones of the same form. Images of any
size are resized to 224 x 224 (bicubic, antialiased, to whole numbers) and normalised with
ImageNet's mean and spread. The position embedding, trained for 518 px, is interpolated as timm does
it. A feature is the class token after the last norm.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from fitspace.core import files
from fitspace.core.imports import import_torchvision
from fitspace.metrics import clip
from fitspace.metrics.weights import named_network

import_torchvision()

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD  # noqa: E402
from timm.layers import SwiGLUPacked  # noqa: E402
from timm.models.vision_transformer import (  # noqa: E402
    VisionTransformer,
    checkpoint_filter_fn,
)

SIDE, PATCH, HEAD = 224, 14, 64  # px, px, numbers of an attention head in all of its sizes
BATCH = 32
PREPROCESS = {
    "size": SIDE,
    "interpolation": "bicubic",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
}


def load_network(path: Path) -> VisionTransformer:
    """DINOv2 with the weights of a safetensors file.

    Raises UserError for a file that cannot be read or holds another network.
    """
    with files.opened(path) as file:
        weights = files.every_tensor(file)
    with named_network("dinov2", path, "other weights than timm's DINOv2"):
        network = _of_the_size(weights)
        network.load_state_dict(checkpoint_filter_fn(weights, network), strict=True)
    return network.eval().requires_grad_(False)


def _of_the_size(weights: dict[str, Tensor]) -> VisionTransformer:
    width = weights["cls_token"].shape[-1]
    blocks = {int(m[1]) for name in weights if (m := re.match(r"blocks\.(\d+)\.", name))}
    hidden, back = (weights[f"blocks.0.mlp.{name}.weight"] for name in ("fc1", "fc2"))
    gated = len(hidden) != back.shape[1]  # the largest one: two halves of fc1 are multiplied
    registers = weights["reg_token"].shape[1] if "reg_token" in weights else 0
    if width % HEAD or not blocks:
        raise ValueError(f"its class token has {width} numbers; needed: a multiple of {HEAD}")
    return VisionTransformer(
        img_size=SIDE,
        patch_size=PATCH,
        num_classes=0,
        embed_dim=width,
        depth=len(blocks),
        num_heads=width // HEAD,
        init_values=1e-5,
        mlp_ratio=(len(hidden) + 0.5) / width,  # timm cuts the product to a whole number
        reg_tokens=registers,
        no_embed_class=registers > 0,
        **({"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU} if gated else {}),
    )


def preprocess(images: Tensor) -> Tensor:
    """Resize and normalise uint8 images (n, h, w, 3): float32, shape (n, 3, 224, 224)."""
    return clip.prepared(images, PREPROCESS)


@torch.inference_mode()
def features(images: Tensor, path: Path) -> Tensor:
    """Features of uint8 images, shape (n, h, w, 3): float32, shape (n, d)."""
    network = load_network(path)
    return torch.cat([network(preprocess(batch)) for batch in images.split(BATCH)])
