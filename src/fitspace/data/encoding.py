"""Images as latents, and captions as what a denoiser is told."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from fitspace import bases
from fitspace.bases.family import Conditions
from fitspace.core import devices

BATCH = 64


@torch.no_grad()
def encode_images(base: Path, images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the latents of uint8 images (n, h, w, 3); the latter 0 where
    training takes the mean alone."""
    device = devices.device()
    vae = bases.load_vae(base).to(device)
    means, stds, drawn = [], [], bases.family(base).drawn
    batch = devices.images_at_once(BATCH, images.shape[1])
    for start in tqdm(range(0, len(images), batch), desc="encoding images", disable=None):
        pixels = bases.to_model(images[start : start + batch]).to(device)
        mean, std = bases.encoded(vae, pixels)
        means.append(mean.cpu())
        stds.append(std.cpu() if drawn else torch.zeros(std.shape))
    return torch.cat(means), torch.cat(stds)


def conditions(base: Path, captions: Sequence[str]) -> tuple[Iterator[Conditions], int | None]:
    """What a base's denoiser is told of the captions, in parts that memory holds, in their order.

    Embeddings are float32, labels int64. The second value is the number of classes where they
    are not the base's own; then its table of class embeddings has to be new as well.
    """
    if bases.family(base).by_class:
        labels, own = _class_labels(base, captions)
        return iter([{"labels": labels}]), own
    return _parts(base, captions), None


def joined(parts: Iterable[Conditions]) -> Conditions:
    """Parts of conditions as one."""
    every = list(parts)
    return {name: torch.cat([part[name] for part in every]) for name in every[0]}


def encode_captions(base: Path, captions: Sequence[str]) -> torch.Tensor:
    """What the pipeline's own text encoder makes of the captions, (m, tokens, dim)."""
    return joined(_parts(base, captions))["embeddings"]


def _parts(base: Path, captions: Sequence[str]) -> Iterator[Conditions]:
    """What the captions' parts tell; text encoders that a GPU does not hold run on the CPU."""
    device, tell = devices.device(), None
    for start in tqdm(range(0, len(captions), BATCH), desc="encoding text", disable=None):
        part, told = captions[start : start + BATCH], None
        try:
            tell = tell or bases.load_teller(base, device)
            told = tell(part)
        except torch.OutOfMemoryError:
            tell = None  # and out of the handler: a traceback keeps the encoders alive
        if told is None:
            torch.cuda.empty_cache()
            print("fitspace: the GPU's memory does not hold the text encoders; going on with them "
                  "on the CPU", file=sys.stderr)  # fmt: skip
            device = "cpu"
            tell = bases.load_teller(base, device)
            told = tell(part)
        yield told


def _class_labels(base: Path, names: Sequence[str]) -> tuple[torch.Tensor, int | None]:
    """A class-conditional base's labels of category names, int64; the empty name is no class.

    Where the base does not know all of the names they are numbered anew, and counted.
    """
    known = bases.labels(base)
    empty = bases.config(base, "transformer")["num_embeds_ada_norm"]
    classes = [name for name in names if name]
    own = None if set(classes) <= known.keys() else len(classes)
    if own is not None:
        known, empty = {name: i for i, name in enumerate(sorted(classes))}, own
    return torch.tensor([known[name] if name else empty for name in names]), own
