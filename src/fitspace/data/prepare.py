"""The prepare stage: a task's images as latents and its captions as conditions, once.

Nothing downstream touches the autoencoder's encoder or the text encoder again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from safetensors.torch import save_file
from tqdm import tqdm

from fitspace import bases, devices, rng
from fitspace.config import Task, checked
from fitspace.data import identity, load_examples
from fitspace.data.examples import Example
from fitspace.design import Stage
from fitspace.errors import UserError
from fitspace.files import IMAGES, digest, opened, read_json, read_tensors, replacing, write_json
from fitspace.provenance import Recorded, now, verified, write_sidecar

BATCH = 64


@dataclass(frozen=True)
class PreparedTask:
    """What training and sampling read of a task.

    Attributes
    ----------
    mean, std : float32, shape (n, c, h, w): the posterior of each training example's
        latents, not yet multiplied by the autoencoder's scaling factor.
    captions : int64, shape (n,): row of each example's caption in ``conditions``.
    groups : training examples' indices by group, drawn as one item each.
    conditions : what the denoiser is told: text embeddings, float32 (m, tokens, dim), or class
        labels, int64 (m,); row 0 is the empty caption, or no class.
    prompts : rows of ``conditions`` of the held-out captions, in a fixed shuffled order; the
        manifest's ``prompt_images`` are the rows of ``images.safetensors`` that show them.
    own_classes : how many classes the task has that are not the base's; None: the base's own.
    prior : indices of the class images that the base drew, for prior preservation.
    prior_weight : weight of their loss beside that of the examples in ``groups``.
    roles : of a DreamBooth task, in place of ``prompts``: rows of ``conditions`` by role.
    """

    mean: torch.Tensor
    std: torch.Tensor
    captions: torch.Tensor
    groups: list[list[int]]
    conditions: torch.Tensor
    prompts: list[int]
    own_classes: int | None = None
    prior: Sequence[int] = ()
    prior_weight: float = 0.0
    roles: dict[str, list[int]] = field(default_factory=dict)


def prepare(task: Task, base: str, stage: Stage) -> None:
    """Write a task's latents, conditions, held-out images, manifest and sidecar.

    A class-conditional base is told an image's category: captions here are category names then.

    Raises
    ------
    UserError : unusable images or captions, all of them at once.
    """
    started, clock = now(), time.monotonic()
    source = bases.resolve(base)
    size = bases.image_size(source) * task.scale
    found, notes, attribution = load_examples(task, size)
    by_class = bases.family(source) == "dit"
    if by_class:
        found = [replace(e, caption=e.category or e.caption) for e in found]
    found.sort(key=lambda e: (e.split != "train", e.name))
    held_out = [e for e in found if e.split == "test"]
    captions = ["", *dict.fromkeys(e.caption for e in found)]
    rows = {caption: i for i, caption in enumerate(captions)}

    mean, std = encode_images(source, np.stack([e.image for e in found]))
    own_classes = None
    if by_class:
        conditions, own_classes = class_labels(source, captions)
    else:
        conditions = encode_captions(source, captions).half()
    files = {
        "latents": {"mean": mean.half(), "std": std.half()},
        "text": {"labels" if by_class else "embeddings": conditions},
        "images": {"images": torch.from_numpy(np.stack([e.image for e in held_out]))},
    }
    shown = _prompt_images(held_out)
    manifest = {
        "task": task.name,
        "source": identity(task, by_class),
        "attribution": attribution,
        "image_size": size,
        "captions": captions,
        "examples": listed(found, rows),
        "notes": notes,
        "prompts": [rows[held_out[i].caption] for i in shown],
        "prompt_images": shown,
    }
    if own_classes is not None:
        manifest["own_classes"] = own_classes
    facts = {
        "examples": len(found),
        "held_out": len(held_out),
        "captions": len(captions),
        "conversions": len(notes),
        "seconds": round(time.monotonic() - clock, 3),
    }
    write(stage, files, manifest, inputs=[], started=started, facts=facts)


def listed(examples: Sequence[Example], rows: dict[str, int]) -> list[dict[str, Any]]:
    """What a manifest says of each example; ``rows``: caption -> its row of ``conditions``."""
    return [
        {
            "name": e.name,
            "caption": rows[e.caption],
            "group": e.group,
            "split": e.split,
            "sha256": hashlib.sha256(e.image.tobytes()).hexdigest(),
        }
        for e in examples
    ]


def write(
    stage: Stage,
    files: dict[str, dict[str, torch.Tensor]],
    manifest: dict[str, Any],
    *,
    inputs: Sequence[Path],
    started: str,
    facts: dict[str, Any],
) -> None:
    """Write a prepared task: ``files`` (name -> tensors), the manifest, the sidecar last."""
    manifest["digest"] = digest(manifest)
    for name, tensors in files.items():
        with replacing(stage.folder / f"{name}.safetensors") as temporary:
            save_file({k: v.contiguous() for k, v in tensors.items()}, temporary)
    write_json(stage.folder / "manifest.json", manifest)
    outputs = [*(stage.folder / f"{name}.safetensors" for name in files)]
    outputs.append(stage.folder / "manifest.json")
    write_sidecar(stage, inputs=inputs, outputs=outputs, started=started, facts=facts)


def _prompt_images(held_out: Sequence[Example]) -> list[int]:
    """Which held-out images are asked for: the first of each group, shuffled once for all."""
    first = {e.group: i for i, e in reversed(list(enumerate(held_out)))}
    chosen = [first[group] for group in sorted(first)]
    return [chosen[i] for i in rng.generator(0, "prompts").permutation(len(chosen))]


@torch.no_grad()
def encode_images(base: Path, images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the latents of uint8 images (n, h, w, 3)."""
    device = devices.device()
    vae = bases.load_vae(base).to(device)
    means, stds = [], []
    batch = devices.images_at_once(BATCH, images.shape[1])
    for start in tqdm(range(0, len(images), batch), desc="encoding images", disable=None):
        pixels = bases.to_model(images[start : start + batch]).to(device)
        posterior = vae.encode(pixels).latent_dist
        means.append(posterior.mean.cpu())
        stds.append(posterior.std.cpu())
    return torch.cat(means), torch.cat(stds)


@torch.no_grad()
def encode_captions(base: Path, captions: Sequence[str]) -> torch.Tensor:
    """What the pipeline's own text encoder makes of the captions, (m, tokens, dim)."""
    tokenizer, encoder = bases.load_text(base)
    encoder.to(devices.device())
    return torch.cat(
        [
            bases.encode_captions(tokenizer, encoder, captions[start : start + BATCH]).cpu()
            for start in tqdm(range(0, len(captions), BATCH), desc="encoding text", disable=None)
        ]
    )


def class_labels(base: Path, names: Sequence[str]) -> tuple[torch.Tensor, int | None]:
    """A class-conditional base's labels of category names, int64; the empty name is no class.

    Where the base does not know all of the names they are numbered anew, and the second value
    says how many they are: the table of class embeddings then has to be new as well.
    """
    known = bases.labels(base)
    empty = bases.config(base, "transformer")["num_embeds_ada_norm"]
    classes = [name for name in names if name]
    own = None if set(classes) <= known.keys() else len(classes)
    if own is not None:
        known, empty = {name: i for i, name in enumerate(sorted(classes))}, own
    return torch.tensor([known[name] if name else empty for name in names]), own


class _Example(Recorded):
    caption: int
    group: str
    split: Literal["train", "test", "class"]


class _Manifest(Recorded):
    """What is read of a manifest again."""

    attribution: str
    captions: list[str]
    examples: list[_Example]
    prompts: list[int]

    @property
    def rows(self) -> list[int]:
        """Of the captions."""
        return [*self.prompts, *(e.caption for e in self.examples)]

    @model_validator(mode="after")
    def _rows_are_there(self) -> _Manifest:
        _all_there("caption", self.rows, len(self.captions))
        return self


class _OfHeldOut(_Manifest):
    prompt_images: list[int]
    own_classes: int = Field(1, ge=1)
    roles: None = None

    @model_validator(mode="after")
    def _images_are_there(self) -> _OfHeldOut:
        if self.own_classes > len(self.captions):
            raise ValueError(f"own_classes: {self.own_classes}, of {len(self.captions)} captions")
        held_out = [e.caption for e in self.examples if e.split == "test"]
        _all_there("held-out image", self.prompt_images, len(held_out))
        if [held_out[i] for i in self.prompt_images] != self.prompts:
            raise ValueError("prompts are not the captions of prompt_images")
        return self


class _Roles(Recorded):
    subject: list[int] = Field(min_length=1)
    elsewhere: list[int] = Field(min_length=1)
    class_: list[int] = Field(min_length=1, alias="class")


class _OfSubject(_Manifest):
    prior_weight: float = Field(ge=0)
    own_classes: None = None
    roles: _Roles

    @property
    def rows(self) -> list[int]:
        roles = self.roles
        return [*super().rows, *roles.subject, *roles.elsewhere, *roles.class_]


def _all_there(what: str, rows: list[int], count: int) -> None:
    if wrong := [row for row in rows if not 0 <= row < count]:
        raise ValueError(f"{what} {wrong[0]} is named, of {count}")


def read_manifest(stage: Stage) -> dict:
    """The manifest of a prepared task. Raises UserError for what is none."""
    path, what = stage.folder / "manifest.json", "a prepared task's manifest"
    manifest = read_json(path, what=what)
    checked(manifest, _OfSubject if "dreambooth" in stage.material else _OfHeldOut, path, what)
    return manifest


def read_images(stage: Stage, manifest: dict[str, Any]) -> np.ndarray:
    """The images that a prepared task is judged by, uint8 (n, h, h, 3): those held out, or the
    subject's. Raises UserError for a file that is not of as many as the manifest says."""
    split = "train" if manifest.get("roles") else "test"
    count = sum(example["split"] == split for example in manifest["examples"])
    path = stage.folder / "images.safetensors"
    return read_tensors(path, IMAGES, "np", n=count)["images"]


def load(stage: Stage, base: Path | None = None, scale: int = 1) -> PreparedTask:
    """Read a prepared task after verifying its files against its sidecar.

    Raises
    ------
    UserError : changed files; what is no prepared task, or with ``base``, a resolved pipeline,
        none that it takes at that ``scale``.
    """
    verified(stage)
    manifest = read_manifest(stage)
    # Class images, which the base drew, stand behind the examples in groups.
    training = [e for e in manifest["examples"] if e["split"] != "test"]
    groups: dict[str, list[int]] = {}
    for i, example in enumerate(training):
        if example["split"] == "train":
            groups.setdefault(example["group"], []).append(i)
    sizes = {} if base is None else _sizes(base, scale)
    of_dit = base is not None and bases.denoiser(base) == "transformer"
    path = stage.folder / "latents.safetensors"
    wanted = dict.fromkeys(("mean", "std"), "F16 n c h h")
    latents = read_tensors(path, wanted, n=len(manifest["examples"]), **sizes)
    path = stage.folder / "text.safetensors"
    with opened(path) as file:
        by_class = of_dit if base is not None else "labels" in file.keys()  # noqa: SIM118
    wanted = {"labels": "I64 n"} if by_class else {"embeddings": "F16 n tokens dim"}
    (conditions,) = read_tensors(path, wanted, n=len(manifest["captions"]), **sizes).values()
    classes = manifest.get("own_classes", sizes.get("classes"))
    if by_class and classes and not 0 <= conditions.min() <= conditions.max() <= classes:
        raise UserError(f"{path}: labels: needed: from 0 to {classes}")
    return PreparedTask(
        mean=latents["mean"][: len(training)].float(),
        std=latents["std"][: len(training)].float(),
        captions=torch.tensor([e["caption"] for e in training]),
        groups=list(groups.values()),
        conditions=conditions.float() if conditions.is_floating_point() else conditions,
        prompts=manifest["prompts"],
        own_classes=manifest.get("own_classes"),
        prior=[i for i, e in enumerate(training) if e["split"] == "class"],
        prior_weight=manifest.get("prior_weight", 0.0),
        roles=manifest.get("roles") or {},
    )


def _sizes(base: Path, scale: int) -> dict[str, int]:
    """Of what a base takes: latents (c, h, h), embeddings of ``dim``, labels up to ``classes``."""
    config = bases.config(base, bases.denoiser(base))
    found = {
        "c": config.get("in_channels"),
        "h": config["sample_size"] * scale,
        "dim": config.get("cross_attention_dim"),
        "classes": config.get("num_embeds_ada_norm"),
    }
    return {name: size for name, size in found.items() if isinstance(size, int)}
