"""Encode a task's images as latents and its captions as conditions, once."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from fitspace import bases
from fitspace.core import devices, rng
from fitspace.core.errors import UserError
from fitspace.core.files import (
    IMAGES,
    digest,
    growing,
    read_tensors,
    replacing,
    write_json,
)
from fitspace.data import identity, load_examples, stream
from fitspace.data.dreambooth import ROLES
from fitspace.data.encoding import BATCH, conditions, encode_images, joined
from fitspace.data.examples import Example, leaks
from fitspace.data.prepared import GIVEN, MIRRORED, read_manifest
from fitspace.plan import STAGES, Run, Stage
from fitspace.stages.common import (
    check_prompts,
)
from fitspace.stages.sidecars import now, verified, write_sidecar
from fitspace.study import Study, Task

# Read and encoded at once, whatever a task's size: 0.2 GB of pixels.
PIXELS = 2**26


def prepare(study: Study, run: Run) -> None:
    """Write latents, text embeddings and manifest of the run's task."""
    if run.task.dreambooth is not None:
        prepare_subject(run.task, study.base, run.prepare, run.prior)
        return
    prepare_task(run.task, study.base, run.prepare)
    check_prompts(study, run, read_manifest(run.prepare)["prompts"])


def prepare_task(task: Task, base: str, stage: Stage) -> None:
    """Write a task's latents, conditions, held-out images, manifest and sidecar.

    For a class-conditional base the captions are the names of the images' classes.

    Raises
    ------
    UserError : unusable images or captions, all of them at once.
    """
    started, clock = now(), time.monotonic()
    source = bases.resolve(base)
    size = bases.image_size(source) * task.scale
    found, notes, attribution = stream(task, size)
    known = bases.labels(source).keys() if bases.family(source).by_class else None
    examples, digests = [], []
    with ExitStack() as files:
        latents, images = (
            files.enter_context(growing(stage.folder / f"{name}.safetensors"))
            for name in ("latents", "images")
        )
        if task.given is not None:
            given = files.enter_context(growing(stage.folder / GIVEN))
        for batch in _batches(found, size):
            pictures = np.stack([e.image for e in batch])
            for name, values in encoded(source, pictures, task.flip).items():
                latents.append(name, values.numpy())
            if task.given is not None:
                pictures = np.stack([e.given for e in batch])
                given.append("images", pictures)
                for name, values in encoded(source, pictures, task.flip).items():
                    if name in ("mean", MIRRORED[0]):
                        given.append(name, values.numpy())
            for example in batch:
                if example.split == "test":
                    images.append("images", example.image[None])
                digests.append(hashlib.sha256(example.image.tobytes()).hexdigest())
                examples.append(example.told(known is not None))
    held_out = [e for e in examples if e.split == "test"]
    captions = ["", *dict.fromkeys(e.caption for e in examples)]
    rows = {caption: i for i, caption in enumerate(captions)}
    notes += leaks(examples, digests, known)
    notes += bases.cut_captions(source, captions)
    parts, own_classes = conditions(source, captions)
    with growing(stage.folder / "text.safetensors") as text:
        for told in parts:
            for name, values in halved(told).items():
                text.append(name, values.numpy())
    shown = prompt_images(held_out)
    manifest = {
        "task": task.name,
        "source": identity(task),
        "attribution": attribution,
        "image_size": size,
        "captions": captions,
        "examples": listed(examples, digests, rows),
        "notes": notes,
        "prompts": [rows[held_out[i].caption] for i in shown],
        "prompt_images": shown,
    }
    if own_classes is not None:
        manifest["own_classes"] = own_classes
    if task.flip:
        manifest["flip"] = task.flip
    facts = {
        "examples": len(examples),
        "held_out": len(held_out),
        "captions": len(captions),
        "conversions": len(notes),
        "seconds": round(time.monotonic() - clock, 3),
    }
    more = [] if task.given is None else [stage.folder / GIVEN]
    write(stage, {}, manifest, inputs=[], started=started, facts=facts, more=more)


def encoded(base: Path, images: np.ndarray, flip: float) -> dict[str, torch.Tensor]:
    """Mean and std of images (n, h, w, 3), float16; with ``flip`` of their mirror images too."""
    found = dict(zip(("mean", "std"), encode_images(base, images), strict=True))
    if flip:
        turned = np.ascontiguousarray(images[:, :, ::-1])
        found |= dict(zip(MIRRORED, encode_images(base, turned), strict=True))
    return {name: values.half() for name, values in found.items()}


def halved(told: bases.Conditions) -> bases.Conditions:
    """Tensors in the form in which files hold them: floats in 16 bits, labels unchanged.

    Raises UserError for values that 16 bits do not hold.
    """
    found = {name: v.half() if v.is_floating_point() else v for name, v in told.items()}
    if beyond := [name for name, v in found.items() if not bool(v.isfinite().all())]:
        raise UserError(
            f"base: its text encoder gives {', '.join(beyond)} that half precision does not hold; "
            "allowed: values up to 65504"
        )
    return found


def _batches(examples: Iterable[Example], size: int) -> Iterator[list[Example]]:
    """Examples in parts that memory holds: whole batches of the autoencoder, but for the last."""
    at_once = devices.images_at_once(BATCH, size)
    most = max(1, PIXELS // (at_once * size**2)) * at_once
    examples = iter(examples)
    while batch := list(itertools.islice(examples, most)):
        yield batch


def listed(
    examples: Sequence[Example], digests: Sequence[str], rows: dict[str, int]
) -> list[dict[str, Any]]:
    """What a manifest says of each example: ``digests`` are SHA-256 (hex) of the images, ``rows``
    caption -> its row of ``conditions``."""
    return [
        {
            "name": e.name,
            "caption": rows[e.caption],
            "group": e.group,
            "split": e.split,
            "sha256": digest,
        }
        for e, digest in zip(examples, digests, strict=True)
    ]


def write(
    stage: Stage,
    files: dict[str, dict[str, torch.Tensor]],
    manifest: dict[str, Any],
    *,
    inputs: Sequence[Path],
    started: str,
    facts: dict[str, Any],
    more: Sequence[Path] = (),
) -> None:
    """Write a prepared task: ``files`` (name -> tensors) that are not yet there, the manifest, the
    sidecar last; ``more`` are files that not every task has."""
    manifest["digest"] = digest(manifest)
    for name, tensors in files.items():
        with replacing(stage.folder / f"{name}.safetensors") as temporary:
            save_file({k: v.contiguous() for k, v in tensors.items()}, temporary)
    write_json(stage.folder / "manifest.json", manifest)
    outputs = [*(stage.folder / name for name in STAGES["prepare"].outputs), *more]
    write_sidecar(stage, inputs=inputs, outputs=outputs, started=started, facts=facts)


def prompt_images(held_out: Sequence[Example]) -> list[int]:
    """The held-out images whose captions are sampled: the first of each group, shuffled once."""
    first = {e.group: i for i, e in reversed(list(enumerate(held_out)))}
    chosen = [first[group] for group in sorted(first)]
    return [chosen[i] for i in rng.generator(0, "prompts").permutation(len(chosen))]


def prepare_subject(task: Task, base: str, stage: Stage, prior: Stage | None) -> None:
    """Write the same files as `prepare_task`, for a subject.

    All images of the subject are training images and references; none is held out.
    ``prior`` holds the class images; None: no prior preservation.

    Raises
    ------
    UserError : unusable images, all of them at once; changed class images.
    """
    started, clock = now(), time.monotonic()
    source = bases.resolve(base)
    size = bases.image_size(source)
    asked, taught = task.dreambooth.asked, task.dreambooth.taught
    subject, notes, attribution = load_examples(task, size)
    if not subject:
        raise UserError(f"task {task.name!r}: {task.subject!r} is blank in style {task.style!r}")
    subject = [replace(e, caption=taught["subject"], group=e.name, split="train") for e in subject]
    found = [*subject, *class_examples(prior, taught["class"], size)]
    prompts = [prompt for role in ROLES for prompt in asked[role]]
    captions = ["", *dict.fromkeys([*prompts, *(example.caption for example in found)])]
    rows = {caption: i for i, caption in enumerate(captions)}
    digests = [hashlib.sha256(e.image.tobytes()).hexdigest() for e in found]
    notes += bases.cut_captions(source, captions)
    told = joined(conditions(source, captions)[0])
    files = {
        "latents": encoded(source, np.stack([e.image for e in found]), task.flip),
        "text": halved(told),
        "images": {"images": torch.from_numpy(np.stack([e.image for e in subject]))},
    }
    manifest = {
        "task": task.name,
        "source": identity(task),
        "attribution": attribution,
        "image_size": size,
        "captions": captions,
        "examples": listed(found, digests, rows),
        "notes": notes,
        "prompts": [],
        "roles": {role: [rows[prompt] for prompt in asked[role]] for role in ROLES},
        "prior_weight": task.dreambooth.prior_weight,
    }
    if task.flip:
        manifest["flip"] = task.flip
    facts = {
        "examples": len(subject),
        "class_images": len(found) - len(subject),
        "captions": len(captions),
        "conversions": len(notes),
        "seconds": round(time.monotonic() - clock, 3),
    }
    inputs = [prior.sidecar, prior.folder / "images.safetensors"] if prior else []
    write(stage, files, manifest, inputs=inputs, started=started, facts=facts)


def class_examples(prior: Stage | None, caption: str, size: int) -> list[Example]:
    """The class images of a finished prior stage as examples; empty without one.

    Raises UserError for changed images, or images of another number or ``size`` [px].
    """
    if prior is None:
        return []
    verified(prior)
    path = prior.folder / "images.safetensors"
    images = read_tensors(path, IMAGES, "np", n=prior.material["images"], h=size)["images"]
    return [Example(f"class {i}", caption, "class", "class", x) for i, x in enumerate(images)]
