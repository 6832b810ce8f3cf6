"""CLIP-T, CLIP-I and diversity from the embeddings of any open_clip model.

All are plain cosines in [-1, 1], neither percentages nor CLIPScore, which is 2.5 max(cosine, 0)
(2104.08718, equation 1).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fitspace.core.errors import UserError
from fitspace.core.imports import import_open_clip
from fitspace.metrics.weights import judge_files, judge_folder

BATCH = 64


@dataclass(frozen=True)
class Judge:
    """An open_clip model in evaluation mode and the name by which open_clip finds it."""

    model: torch.nn.Module
    name: str

    @property
    def tokenizer(self):
        """open_clip's tokenizer of the judge: captions -> int64 (n, context)."""
        return import_open_clip().get_tokenizer(self.name)


def load(judge: str | Path) -> Judge:
    """Load a judge: a folder that open_clip's ``local-dir:`` reads, ``hf-hub:org/name`` with
    the copy of such a folder on this machine, or ``NAME@WEIGHTS`` with an open_clip model name
    and a weights file. Nothing is downloaded.

    Raises UserError if it is none of them, or if open_clip cannot load it.
    """
    judge_files(judge)
    name, _, weights = str(judge).partition("@")
    if folder := judge_folder(judge):
        name, weights = f"local-dir:{folder}", ""
    open_clip = import_open_clip()
    if not logging.root.handlers:  # else open_clip's first message would make one that prints all
        logging.root.addHandler(logging.NullHandler())
    try:
        model = open_clip.create_model(name, pretrained=weights or None, require_pretrained=True)
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise UserError(f"judge: open_clip cannot load {str(judge)!r}: {error}") from error
    if weights:
        model.visual.preprocess_cfg |= registered(name)
    return Judge(model.eval().requires_grad_(False), name)


def registered(name: str) -> dict[str, Any]:
    """How images are prepared for all weights that open_clip knows of an architecture.

    A file of weights does not say it, and open_clip takes CLIP's own way for all. Nothing for an
    architecture that open_clip knows no weights of. Raises UserError where they differ.
    """
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    known = [get_pretrained_cfg(name, tag) for tag in list_pretrained_tags_by_model(name)]
    ways = {
        tuple((k, fixed(facts[k])) for k in ("mean", "std", "interpolation")) for facts in known
    }
    if len(ways) > 1:
        raise UserError(
            f"judge: {name}: its weights take images prepared in {len(ways)} ways, and a file does "
            "not say which; allowed: a folder or hf-hub:org/name, whose open_clip_config.json does"
        )
    return dict(next(iter(ways), ()))


def fixed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def preprocess(judge: Judge, images: Tensor) -> Tensor:
    """Uint8 images (n, h, w, 3) as the judge's preprocessing says: float32, shape (n, 3, s, s)."""
    return prepared(images, judge.model.visual.preprocess_cfg)


def prepared(images: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """Resize uint8 images (n, h, w, 3) (antialiased, on tensors) and normalise them: float32, shape
    (n, 3, size, size). ``settings``: size, interpolation, mean and std, as open_clip has them."""
    size = settings["size"]
    size = (size, size) if isinstance(size, int) else tuple(size)
    batch = images.permute(0, 3, 1, 2).float()
    if tuple(batch.shape[2:]) != size:
        mode = settings["interpolation"]
        batch = F.interpolate(batch, size=size, mode=mode, antialias=True).round().clamp(0, 255)
    mean, std = (torch.tensor(settings[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    return (batch / 255 - mean) / std


@torch.inference_mode()
def image_embeddings(judge: Judge, images: Tensor) -> Tensor:
    """Embed uint8 images, shape (n, h, w, 3): unit float32 vectors, shape (n, d)."""
    batches = (preprocess(judge, batch) for batch in images.split(BATCH))
    return torch.cat([judge.model.encode_image(b, normalize=True).float() for b in batches])


def embedded(judge: Judge, images: Tensor) -> Tensor:
    """Embed images with values from 0 to 1, shape (n, 3, h, w): unit float32 vectors, (n, d).

    As :func:`image_embeddings`, but gradients pass through: nothing is rounded to grey levels, and
    images are resized by products of matrices, whose gradients are the same every time on a GPU.
    """
    settings = judge.model.visual.preprocess_cfg
    size = settings["size"]
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    if tuple(images.shape[2:]) != (height, width):
        rows = _resizing(images, images.shape[2], height, settings["interpolation"])
        columns = _resizing(images, images.shape[3], width, settings["interpolation"])
        images = (rows @ images @ columns.T).clamp(0, 1)
    mean, std = (images.new_tensor(settings[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    return judge.model.encode_image((images - mean) / std, normalize=True).float()


def _resizing(like: Tensor, before: int, after: int, mode: str) -> Tensor:
    """What resizing does to one axis, antialiased, as a matrix (after, before)."""
    eye = torch.eye(before)[None, None]
    return F.interpolate(eye, size=(after, before), mode=mode, antialias=True)[0, 0].to(like)


@torch.inference_mode()
def text_embeddings(judge: Judge, captions: list[str]) -> Tensor:
    """Embed captions: unit float32 vectors, shape (n, d)."""
    batches = judge.tokenizer([str(c) for c in captions]).split(4 * BATCH)
    return torch.cat([judge.model.encode_text(b, normalize=True).float() for b in batches])


def clip_t(samples: Tensor, texts: Tensor) -> float:
    """CLIP-T: mean cosine of each sample with its own caption (2208.12242, section 4.2).

    Both are unit vectors, shape (n, d), with matching rows.
    """
    return (samples.double() * texts.double()).sum(1).mean().item()


def clip_i(samples: Tensor, references: Tensor) -> float:
    """CLIP-I: mean cosine over all pairs of a sample (n, d) and a reference image (m, d)
    (2208.12242, section 4.2)."""
    return (samples.double().mean(0) @ references.double().mean(0)).item()


def clip_i_paired(samples: Tensor, references: Tensor) -> float:
    """Mean cosine of each sample with the reference image of its own caption, both (n, d)."""
    return clip_t(samples, references)


def drift(samples: Tensor, originals: Tensor) -> float:
    """One minus the mean cosine of each sample with its original, both (n, d) and of length 1.

    It is computed as half the squared distance, which is exactly zero if both are equal.
    """
    return (samples.double() - originals.double()).square().sum(1).mean().item() / 2


def diversity(samples: Tensor) -> float:
    """One minus the mean cosine over all pairs of different samples, shape (n, d), n >= 2."""
    n = len(samples)
    total = samples.double().sum(0).square().sum()
    return (1 - (total - samples.double().square().sum()) / (n * (n - 1))).item()
