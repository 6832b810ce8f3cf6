"""DreamSim's features (2306.09344), as the package dreamsim 0.2.1 computes them; timm's network.

DreamSim is one or several vision transformers, fine-tuned by LoRA on which of two images people
find more alike. A file holds each with its LoRA merged, under its name: ``dino_vitb16.``,
``clip_vitb16.``, ``open_clip_vitb16.``; params/README.md says how to make it. A DINO's feature is
its class token after the last block, without the last norm; a CLIP's is its projected embedding.
The features of all are joined, their mean is subtracted and the length set to 1, so that one minus
a cosine is DreamSim's distance. Images of any size are resized to 224 x 224 (bicubic, antialiased,
to whole numbers).
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from fitspace.core import files
from fitspace.core.imports import import_torchvision
from fitspace.metrics import clip
from fitspace.metrics.weights import named_network

import_torchvision()

from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD  # noqa: E402
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD  # noqa: E402
from timm.layers import QuickGELU  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

HEAD = 64  # numbers of an attention head in all of its networks
BATCH = 32
_SIZE = {"size": 224, "interpolation": "bicubic"}
OF_DINO = _SIZE | {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
OF_CLIP = _SIZE | {"mean": OPENAI_DATASET_MEAN, "std": OPENAI_DATASET_STD}
# Beginning of a network's name -> the epsilon of its norms, its activation, its images; in the
# order in which their features are joined.
FORMS = {
    "dino_vit": (1e-6, nn.GELU, OF_DINO),
    "clip_vit": (1e-5, QuickGELU, OF_CLIP),
    "open_clip_vit": (1e-5, nn.GELU, OF_CLIP),
}


def _form(name: str) -> str:
    for begins in FORMS:
        if name.startswith(begins):
            return begins
    raise ValueError(f"{name!r} is none of DreamSim's networks that are read here")


class Network(nn.Module):
    """One of DreamSim's transformers: uint8 images (n, h, w, 3) -> features (n, d)."""

    def __init__(self, name: str, weights: dict[str, Tensor]):
        super().__init__()
        epsilon, activation, self.images = FORMS[_form(name)]
        self.projection = weights.pop("proj", None)
        patches, places = weights["patch_embed.proj.weight"], weights["pos_embed"].shape[1] - 1
        blocks = {m[1] for key in weights if (m := re.match(r"blocks\.(\d+)\.", key))}
        width, side = len(patches), patches.shape[-1]
        norm = partial(nn.LayerNorm, eps=epsilon)
        self.network = VisionTransformer(
            img_size=round(places**0.5) * side,
            patch_size=side,
            num_classes=0,
            embed_dim=width,
            depth=len(blocks),
            num_heads=width // HEAD,
            norm_layer=norm,
            act_layer=activation,
        )
        if self.projection is not None:
            # timm's own norm before the blocks would leave the patches without a bias.
            self.network.norm_pre = norm(width)
        named = {re.sub(r"^pos_drop\.", "norm_pre.", key): w for key, w in weights.items()}
        self.network.load_state_dict(named, strict=True)
        if self.projection is None:
            self.network.norm = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        found = self.network(clip.prepared(images, self.images))
        return found if self.projection is None else found @ self.projection


def load_networks(path: Path) -> list[Network]:
    """DreamSim's transformers with the weights of a safetensors file.

    Raises UserError for a file that cannot be read or holds other networks.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    with files.opened(path) as file:
        for key, tensor in files.every_tensor(file).items():
            name, _, own = key.partition(".")
            parts.setdefault(name, {})[own] = tensor.float()
    with named_network("dreamsim", path, "other weights than DreamSim's DINO and CLIP networks"):
        names = sorted(parts, key=lambda name: list(FORMS).index(_form(name)))
        found = [Network(name, parts[name]) for name in names]
    return [network.eval().requires_grad_(False) for network in found]


@torch.inference_mode()
def features(images: Tensor, path: Path) -> Tensor:
    """Features of uint8 images, shape (n, h, w, 3): float32 of length 1, shape (n, d)."""
    networks = load_networks(path)
    batches = [torch.cat([one(b) for one in networks], dim=1) for b in images.split(BATCH)]
    found = torch.cat(batches)
    return nn.functional.normalize(found - found.mean(1, keepdim=True))
