"""Models of what people prefer, for text and image: PickScore (2305.01569) and HPSv2 (2306.09341).

Both are CLIP models, fine-tuned on choices of people; a score is the cosine of an image and its
caption. The sizes are found from the weights, whose tensors are named as open_clip or as
transformers name them. Images are resized to the network's own size (bicubic, antialiased, to whole
numbers) and normalised as OpenAI's CLIP does; captions are cut at its context. Texts are read by
CLIP's own tokenizer; what stands behind a caption's end changes nothing.
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

import open_clip  # noqa: E402

HEAD, WIDER = 64, {1280: 80}  # numbers of an attention head; by the width of ViT-H, which has 16
# transformers' names -> open_clip's; of a tower first its place.
_TOWERS = {"vision_model.": "visual.", "text_model.": ""}
_NAMES = {
    "encoder.layers.": "transformer.resblocks.",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding": "conv1",
    "pre_layrnorm": "ln_pre",
    "post_layernorm": "ln_post",
    "final_layer_norm": "ln_final",
}


def load_judge(path: Path, name: str) -> clip.Judge:
    """The model with the weights of a safetensors file, ready for :mod:`fitspace.metrics.clip`.

    Raises UserError, which begins with ``name``, for a file that cannot be read or holds another
    network.
    """
    with files.opened(path) as file:
        weights = {n: tensor.float() for n, tensor in files.every_tensor(file).items()}
    with named_network(name, path, "another network than a CLIP ViT"):
        if any(tensor.startswith("vision_model.") for tensor in weights):
            weights = _as_open_clip(weights)
        model = _of_the_size(weights)
        model.load_state_dict(weights, strict=True)
    model.visual.preprocess_cfg = {
        "size": model.visual.image_size,
        "mean": open_clip.OPENAI_DATASET_MEAN,
        "std": open_clip.OPENAI_DATASET_STD,
        "interpolation": "bicubic",
    }
    return clip.Judge(model.eval().requires_grad_(False), "ViT-H-14")  # for its tokenizer


def _of_the_size(weights: dict[str, Tensor]) -> open_clip.CLIP:
    patches, text = weights["visual.conv1.weight"], weights["token_embedding.weight"]
    width, side = len(patches), patches.shape[-1]
    grid = round((len(weights["visual.positional_embedding"]) - 1) ** 0.5)
    heads = [size // WIDER.get(size, HEAD) for size in (width, text.shape[1])]
    if 0 in heads:
        raise ValueError(f"towers of {width} and {text.shape[1]} numbers; needed: {HEAD} at least")
    return open_clip.CLIP(
        embed_dim=weights["text_projection"].shape[1],
        vision_cfg={
            "image_size": grid * side,
            "patch_size": side,
            "width": width,
            "head_width": width // heads[0],
            "layers": _layers(weights, "visual.transformer"),
        },
        text_cfg={
            "context_length": len(weights["positional_embedding"]),
            "vocab_size": len(text),
            "width": text.shape[1],
            "heads": heads[1],
            "layers": _layers(weights, "transformer"),
        },
    )


def _layers(weights: dict[str, Tensor], tower: str) -> int:
    pattern = re.compile(rf"{tower}\.resblocks\.(\d+)\.")
    return len({found[1] for name in weights if (found := pattern.match(name))})


def _as_open_clip(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of transformers' CLIPModel under open_clip's names, query, key and value
    together."""
    found, parts = {}, {}
    for name, tensor in weights.items():
        if name.endswith("position_ids"):
            continue
        for old, new in (_TOWERS | _NAMES).items():
            name = name.replace(old, new, 1)
        if part := re.search(r"self_attn\.([qkv])_proj\.", name):
            whole = name.replace(f"self_attn.{part[1]}_proj.", "attn.in_proj_")
            parts.setdefault(whole, {})[part[1]] = tensor
        else:
            found[name] = tensor
    found |= {name: torch.cat([own[k] for k in "qkv"]) for name, own in parts.items()}
    found["visual.proj"] = found.pop("visual_projection.weight").T.contiguous()
    found["text_projection"] = found.pop("text_projection.weight").T.contiguous()
    return found


def features(images: Tensor, path: Path, name: str) -> Tensor:
    """Unit features of uint8 images, shape (n, h, w, 3): float32, shape (n, d)."""
    return clip.image_embeddings(load_judge(path, name), images)


def texts(captions: list[str], path: Path, name: str) -> Tensor:
    """Unit features of captions: float32, shape (n, d)."""
    return clip.text_embeddings(load_judge(path, name), captions)
