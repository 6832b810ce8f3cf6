"""DreamBooth tasks: one subject under a rare word, beside images of its class (2208.12242)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fitspace import bases
from fitspace.config import Task
from fitspace.data import identity, load_examples
from fitspace.data.examples import Example
from fitspace.data.prepare import PreparedTask, encode_captions, encode_images, listed, write
from fitspace.design import Stage
from fitspace.errors import UserError
from fitspace.files import IMAGES, read_tensors
from fitspace.provenance import now, verified
from fitspace.sampling import generate, initial_noise

ROLES = ("subject", "elsewhere", "class")


def class_images(base: Path, asked: dict[str, Any], device: str) -> np.ndarray:
    """What the untouched base draws of a class; uint8, shape (images, h, w, 3).

    ``asked``: ``prompt``, ``images`` (how many), solver ``steps`` and ``guidance`` scale.
    """
    nothing, prompt = encode_captions(base, ["", asked["prompt"]]).split(1)
    model = bases.load_denoiser(base).to(device)
    shape = (model.config.in_channels, *2 * [model.config.sample_size])
    return generate(
        model,
        bases.load_vae(base).to(device),
        bases.config(base, "scheduler"),
        prompt.expand(asked["images"], -1, -1),
        nothing,
        initial_noise(0, asked["images"], shape, "class"),
        asked["steps"],
        asked["guidance"],
        description=f"drawing {asked['prompt']!r}",
    )


def prepare(task: Task, base: str, stage: Stage, prior: Stage | None) -> None:
    """Write what :func:`fitspace.data.prepare.prepare` does, of a subject.

    All of the subject's images are trained on and are the references too: none is held out.
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
    found = [*subject, *_class_examples(prior, asked["class"][0], size)]
    captions = ["", *dict.fromkeys(prompt for role in ROLES for prompt in asked[role])]
    rows = {caption: i for i, caption in enumerate(captions)}
    mean, std = encode_images(source, np.stack([e.image for e in found]))
    files = {
        "latents": {"mean": mean.half(), "std": std.half()},
        "text": {"embeddings": encode_captions(source, captions).half()},
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


def _class_examples(prior: Stage | None, caption: str, size: int) -> list[Example]:
    if prior is None:
        return []
    verified(prior)
    path = prior.folder / "images.safetensors"
    images = read_tensors(path, IMAGES, "np", n=prior.material["images"], h=size)["images"]
    return [Example(f"class {i}", caption, "class", "class", x) for i, x in enumerate(images)]


def repeated(items: Sequence[Any], count: int) -> list[Any]:
    """``count`` items: each in turn, then over again."""
    return [items[i % len(items)] for i in range(count)]


def requests(
    task: PreparedTask, seed: int, count: int
) -> dict[str, tuple[list[int], torch.Tensor]]:
    """Role -> rows of ``task.conditions``, and starting noise, of ``count`` images each.

    The noise of the class is the same for every run: what the base itself makes of it, against
    which the drift is measured, is drawn once for all.
    """
    shape = tuple(task.mean.shape[1:])
    own, elsewhere = initial_noise(seed, 2 * count, shape).split(count)
    noise = (own, elsewhere, initial_noise(0, count, shape, "drift"))
    return {
        role: (repeated(task.roles[role], count), start)
        for role, start in zip(ROLES, noise, strict=True)
    }


def gallery(manifest: dict[str, Any], subject: np.ndarray, count: int, most: int):
    """Which samples to show, their captions and what they should look like.

    Of the ``count`` samples of each role the first, ``most`` in all. The subject's images are
    the target wherever the subject was asked for; its class has none: white.

    Returns
    -------
    numbers of the samples, captions, and target images, uint8 (n, h, w, 3).
    """
    each = min(count, most // len(ROLES))
    numbers, captions, targets = [], [], []
    for place, role in enumerate(ROLES):
        numbers += [place * count + i for i in range(each)]
        captions += [manifest["captions"][r] for r in repeated(manifest["roles"][role], each)]
        shown = subject if role != "class" else np.full_like(subject[:1], 255)
        targets += [shown[i] for i in repeated(range(len(shown)), each)]
    return numbers, captions, np.stack(targets)
