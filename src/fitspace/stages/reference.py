"""Features of a task's references and prompts, computed once for all runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fitspace import bases
from fitspace.core import devices
from fitspace.core.files import replacing
from fitspace.plan import Run
from fitspace.stages.common import (
    generated,
    keeping,
    rehashed,
    seconds_since,
)
from fitspace.stages.sidecars import now, write_sidecar
from fitspace.study import Study

if TYPE_CHECKING:
    from fitspace.metrics import Kept

DECODED = 512  # images at once


def reference(study: Study, run: Run) -> None:
    """Features of the task's references and prompts, computed once for all runs."""
    from safetensors.torch import save_file

    from fitspace import metrics

    started, clock = now(), time.monotonic()
    inputs, _ = rehashed(run.prepare)
    features = reference_features(study, run, keeping(run.prepare))
    path = run.reference.folder / "features.safetensors"
    with replacing(path) as temporary:
        save_file(features, temporary)
    facts = {"references": len(features["judge_images"]), "seconds": seconds_since(clock)}
    if notes := metrics.cut_captions(study.judge, _read_by_judge(run)):
        facts["notes"] = notes
    write_sidecar(run.reference, inputs=inputs, outputs=[path], started=started, facts=facts)


def _read_by_judge(run: Run) -> list[str]:
    """The captions that the judge reads, each once."""
    from fitspace.data.prepared import read_manifest

    if run.task.dreambooth is not None:
        return list(dict.fromkeys(run.task.dreambooth.elsewhere_by_noun))
    manifest = read_manifest(run.prepare)
    return list(dict.fromkeys(manifest["captions"][row] for row in manifest["prompts"]))


def reference_features(study: Study, run: Run, kept: Kept | None = None) -> dict[str, Any]:
    """Features that samples of the prepared task are compared with, by name.

    They are taken from ``kept``, and put there; without it everything is computed, and nothing is
    written.
    """
    of_subject = run.task.dreambooth is not None
    features = (_subject_features if of_subject else _held_out_features)(study, run, kept)
    return {name: tensor.contiguous() for name, tensor in features.items()}


def _held_out_features(study: Study, run: Run, kept: Kept | None) -> dict[str, Any]:
    from fitspace import metrics
    from fitspace.data.prepared import read_given, read_images, read_manifest

    manifest = read_manifest(run.prepare)
    images, given = read_images(run.prepare, manifest), read_given(run.prepare, manifest)
    captions = [manifest["captions"][row] for row in manifest["prompts"]]
    shown, further = images[manifest["prompt_images"]], study.further_of(of_subject=False)
    prompts = [caption for caption in captions for _ in range(study.sample.images_per_prompt)]
    return metrics.reference_features(
        shown, captions, prompts, study.judge, study.weights, further, _decoded(study, run), kept,
        None if given is None else given[manifest["prompt_images"]],
    )  # fmt: skip


def _decoded(study: Study, run: Run) -> Iterator[tuple[str, Any]]:
    """A task's training and held-out images as the autoencoder gives them back, part by part.

    ``training`` or ``held_out``, and uint8 images (k, h, w, 3). Only what is asked for is decoded.
    """
    from fitspace.data.prepared import latents
    from fitspace.training.sampling import decoded

    base = bases.resolve(study.base)
    vae = bases.load_vae(base).to(devices.device())
    for split, mean in latents(run.prepare, base, run.task.scale).items():
        for part in mean.split(DECODED):
            yield split, decoded(vae, part.float())


def _subject_features(study: Study, run: Run, kept: Kept | None) -> dict[str, Any]:
    """Features of the subject's images, and of the untouched base's images of its class."""
    from fitspace import metrics
    from fitspace.data import dreambooth
    from fitspace.data.prepared import load, read_images, read_manifest

    base, count = bases.resolve(study.base), study.sample.prompts
    rehashed(run.prepare)
    task = load(run.prepare, base)
    subject = read_images(run.prepare, read_manifest(run.prepare))
    texts = dreambooth.repeated(run.task.dreambooth.elsewhere_by_noun, count)
    model = bases.load_denoiser(base).to(devices.device())
    rows, noise = dreambooth.requests(task, 0, count)["class"]
    drawn = study.sample.model_dump()
    of_class = generated(study, model, task, rows, noise, f"reference {run.task.name}", drawn)
    further = study.further_of(of_subject=True)
    return metrics.subject_features(
        subject, texts, of_class, study.judge, study.weights, further, kept
    )
