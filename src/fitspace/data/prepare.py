"""The prepare stage: a task's images as latents and its captions as embeddings, once.

Nothing downstream touches the autoencoder's encoder or the text encoder again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from fitspace import bases, rng
from fitspace.config import Task
from fitspace.data import identity, load_examples
from fitspace.data.examples import Example
from fitspace.design import Stage
from fitspace.files import digest, replacing, write_json
from fitspace.provenance import now, verified, write_sidecar

BATCH = 64


@dataclass(frozen=True)
class PreparedTask:
    """What training and sampling read of a task.

    Attributes
    ----------
    mean, std : float32, shape (n, c, h, w): the posterior of each training example's
        latents, not yet multiplied by the autoencoder's scaling factor.
    captions : int64, shape (n,): row of each example's caption in ``embeddings``.
    groups : training examples' indices by group, drawn as one item each.
    embeddings : float32, shape (m, tokens, dim); row 0 is the empty caption.
    prompts : rows of ``embeddings`` of the held-out captions, in a fixed shuffled order; the
        manifest's ``prompt_images`` are the rows of ``images.safetensors`` that show them.
    """

    mean: torch.Tensor
    std: torch.Tensor
    captions: torch.Tensor
    groups: list[list[int]]
    embeddings: torch.Tensor
    prompts: list[int]


def prepare(task: Task, base: str, stage: Stage) -> None:
    """Write a task's latents, text embeddings, held-out images, manifest and sidecar.

    Raises
    ------
    UserError : unusable images or captions, all of them at once.
    """
    started, clock = now(), time.monotonic()
    source = bases.resolve(base)
    size = bases.image_size(source)
    found, notes, attribution = load_examples(task, size)
    found.sort(key=lambda e: (e.split != "train", e.name))
    held_out = [e for e in found if e.split == "test"]
    captions = ["", *dict.fromkeys(e.caption for e in found)]
    rows = {caption: i for i, caption in enumerate(captions)}

    mean, std = encode_images(source, np.stack([e.image for e in found]))
    embeddings = encode_captions(source, captions)
    files = {
        "latents": {"mean": mean.half(), "std": std.half()},
        "text": {"embeddings": embeddings.half()},
        "images": {"images": torch.from_numpy(np.stack([e.image for e in held_out]))},
    }
    shown = _prompt_images(held_out)
    manifest = {
        "task": task.name,
        "source": identity(task),
        "attribution": attribution,
        "image_size": size,
        "captions": captions,
        "examples": [
            {
                "name": e.name,
                "caption": rows[e.caption],
                "group": e.group,
                "split": e.split,
                "sha256": hashlib.sha256(e.image.tobytes()).hexdigest(),
            }
            for e in found
        ],
        "notes": notes,
        "prompts": [rows[held_out[i].caption] for i in shown],
        "prompt_images": shown,
    }
    manifest["digest"] = digest(manifest)
    for name, tensors in files.items():
        with replacing(stage.folder / f"{name}.safetensors") as temporary:
            save_file({k: v.contiguous() for k, v in tensors.items()}, temporary)
    write_json(stage.folder / "manifest.json", manifest)
    write_sidecar(
        stage,
        inputs=[],
        outputs=[stage.folder / f"{name}.safetensors" for name in files]
        + [stage.folder / "manifest.json"],
        started=started,
        facts={
            "examples": len(found),
            "held_out": len(held_out),
            "captions": len(captions),
            "conversions": len(notes),
            "seconds": round(time.monotonic() - clock, 3),
        },
    )


def _prompt_images(held_out: Sequence[Example]) -> list[int]:
    """Which held-out images are asked for: the first of each group, shuffled once for all."""
    first = {e.group: i for i, e in reversed(list(enumerate(held_out)))}
    chosen = [first[group] for group in sorted(first)]
    return [chosen[i] for i in rng.generator(0, "prompts").permutation(len(chosen))]


@torch.no_grad()
def encode_images(base: Path, images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the latents of uint8 images (n, h, w, 3)."""
    vae = bases.load_vae(base)
    means, stds = [], []
    for start in tqdm(range(0, len(images), BATCH), desc="encoding images", disable=None):
        posterior = vae.encode(bases.to_model(images[start : start + BATCH])).latent_dist
        means.append(posterior.mean)
        stds.append(posterior.std)
    return torch.cat(means), torch.cat(stds)


@torch.no_grad()
def encode_captions(base: Path, captions: Sequence[str]) -> torch.Tensor:
    """What the pipeline's own text encoder makes of the captions, (m, tokens, dim)."""
    tokenizer, encoder = bases.load_text(base)
    return torch.cat(
        [
            bases.encode_captions(tokenizer, encoder, captions[start : start + BATCH])
            for start in tqdm(range(0, len(captions), BATCH), desc="encoding text", disable=None)
        ]
    )


def read_manifest(stage: Stage) -> dict:
    """The manifest of a prepared task."""
    return json.loads((stage.folder / "manifest.json").read_text(encoding="utf-8"))


def load(stage: Stage) -> PreparedTask:
    """Read a prepared task after verifying its files against its sidecar."""
    verified(stage)
    manifest = read_manifest(stage)
    training = [e for e in manifest["examples"] if e["split"] == "train"]
    groups: dict[str, list[int]] = {}
    for i, example in enumerate(training):
        groups.setdefault(example["group"], []).append(i)
    with safe_open(stage.folder / "latents.safetensors", "pt") as file:
        mean = file.get_slice("mean")[: len(training)].float()
        std = file.get_slice("std")[: len(training)].float()
    return PreparedTask(
        mean=mean,
        std=std,
        captions=torch.tensor([e["caption"] for e in training]),
        groups=list(groups.values()),
        embeddings=load_file(stage.folder / "text.safetensors")["embeddings"].float(),
        prompts=manifest["prompts"],
    )
