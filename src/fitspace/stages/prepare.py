"""Encode a task's images as latents and its captions as conditions, once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from fitspace import bases
from fitspace.core import rng
from fitspace.core.errors import UserError
from fitspace.core.files import (
    IMAGES,
    digest,
    read_tensors,
    replacing,
    write_json,
)
from fitspace.data import identity, load_examples
from fitspace.data.dreambooth import ROLES
from fitspace.data.encoding import conditions, encode_images
from fitspace.data.examples import Example
from fitspace.data.prepared import (
    read_manifest,
)
from fitspace.plan import Run, Stage
from fitspace.stages.common import (
    check_prompts,
)
from fitspace.stages.sidecars import now, verified, write_sidecar
from fitspace.study import Study, Task


def prepare(study: Study, run: Run) -> None:
    """Write latents, text embeddings and manifest of the run's task."""
    if run.task.dreambooth is not None:
        prepare_subject(run.task, study.base, run.prepare, run.prior)
        return
    prepare_task(run.task, study.base, run.prepare)
    check_prompts(study, run, read_manifest(run.prepare)["prompts"])


def prepare_task(task: Task, base: str, stage: Stage) -> None:
    """Write a task's latents, conditions, held-out images, manifest and sidecar.

    For a class-conditional base the captions are the names of the images' categories.

    Raises
    ------
    UserError : unusable images or captions, all of them at once.
    """
    started, clock = now(), time.monotonic()
    source = bases.resolve(base)
    size = bases.image_size(source) * task.scale
    found, notes, attribution = load_examples(task, size)
    by_class = bases.family(source).by_class
    if by_class:
        found = [replace(e, caption=e.category or e.caption) for e in found]
    found.sort(key=lambda e: (e.split != "train", e.name))
    held_out = [e for e in found if e.split == "test"]
    captions = ["", *dict.fromkeys(e.caption for e in found)]
    rows = {caption: i for i, caption in enumerate(captions)}

    mean, std = encode_images(source, np.stack([e.image for e in found]))
    told, own_classes = conditions(source, captions)
    files = {
        "latents": {"mean": mean.half(), "std": std.half()},
        "text": halved(told),
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


def halved(told: bases.Conditions) -> bases.Conditions:
    """Tensors in the form in which files hold them: floats in 16 bits, labels unchanged."""
    return {name: v.half() if v.is_floating_point() else v for name, v in told.items()}


def listed(examples: Sequence[Example], rows: dict[str, int]) -> list[dict[str, Any]]:
    """The manifest's entry for each example; ``rows``: caption -> its row of ``conditions``."""
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
    asked = task.dreambooth.asked
    subject, notes, attribution = load_examples(task, size)
    if not subject:
        raise UserError(f"task {task.name!r}: {task.subject!r} is blank in style {task.style!r}")
    subject = [
        replace(e, caption=asked["subject"][0], group=e.name, split="train") for e in subject
    ]
    found = [*subject, *class_examples(prior, asked["class"][0], size)]
    captions = ["", *dict.fromkeys(prompt for role in ROLES for prompt in asked[role])]
    rows = {caption: i for i, caption in enumerate(captions)}
    mean, std = encode_images(source, np.stack([e.image for e in found]))
    files = {
        "latents": {"mean": mean.half(), "std": std.half()},
        "text": halved(conditions(source, captions)[0]),
        "images": {"images": torch.from_numpy(np.stack([e.image for e in subject]))},
    }
    manifest = {
        "task": task.name,
        "source": identity(task),
        "attribution": attribution,
        "image_size": size,
        "captions": captions,
        "examples": listed(found, rows),
        "notes": notes,
        "prompts": [],
        "roles": {role: [rows[prompt] for prompt in asked[role]] for role in ROLES},
        "prior_weight": task.dreambooth.prior_weight,
    }
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
