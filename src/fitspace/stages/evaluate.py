"""Measure a run's images."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fitspace.core.files import IMAGES, read_tensors, write_json
from fitspace.plan import Run
from fitspace.stages.common import (
    keeping,
    rehashed,
    seconds_since,
)
from fitspace.stages.sidecars import load_sidecar, now, write_sidecar
from fitspace.study import Study

if TYPE_CHECKING:
    from fitspace.metrics import Kept


def evaluate(study: Study, run: Run) -> None:
    """All metrics of one run's samples against the task's reference features."""
    from fitspace import metrics

    started, clock = now(), time.monotonic()
    inputs, cost = rehashed(run.sample)
    inputs += rehashed(run.reference)[0]
    of_subject = run.task.dreambooth is not None
    path = run.reference.folder / "features.safetensors"
    further = study.further_of(of_subject)
    features = metrics.read_features(path, of_subject, study.weights, further)
    values = measure(study, run, features, keeping(run.sample))
    path = run.evaluate.folder / "metrics.json"
    write_json(path, values)
    # The run's cost is stored with its metrics, so that a table needs no upstream file.
    write_sidecar(
        run.evaluate,
        inputs=inputs,
        outputs=[path],
        started=started,
        facts={"seconds": seconds_since(clock), "sample": cost},
    )


def measure(
    study: Study, run: Run, features: dict[str, Any], kept: Kept | None = None
) -> dict[str, Any]:
    """All metrics of one run's samples against reference features.

    For a run that diverged, only the reason: ``{"diverged": ...}``. Features of the samples are
    taken from ``kept``, and put there; without it everything is computed, and nothing is written.
    """
    from fitspace import metrics

    facts = load_sidecar(run.sample.sidecar)["facts"]
    if "diverged" in facts:
        return {"diverged": facts["diverged"]}
    of_subject = run.task.dreambooth is not None
    further = study.further_of(of_subject)
    of_kind = metrics.evaluate_subject if of_subject else metrics.evaluate
    named = (study.judge, study.weights, further, kept)
    images = drawn(study, run)
    if not (last := _of_each(study, run) * study.sample.validation):
        return of_kind(images, features, *named)
    measured = of_kind(images[:-last], features, *named)
    validated = of_kind(images[-last:], metrics.of_last_prompts(features, last), *named)
    return measured | {"validation": {name: validated[name] for name in metrics.METRICS
                                      if name in validated}}  # fmt: skip


def drawn(study: Study, run: Run) -> Any:
    """The images of a finished sample stage, uint8 (n, h, h, 3), caption by caption, those of
    validation last; for a DreamBooth task role by role. Raises UserError for a file with another
    number of images."""
    path, count = run.sample.folder / "samples.safetensors", study.sample.captions
    return read_tensors(path, IMAGES, "np", n=count * _of_each(study, run))["images"]


def _of_each(study: Study, run: Run) -> int:
    return study.sample.images_per_prompt if run.task.dreambooth is None else 3
