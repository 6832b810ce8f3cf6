"""Measure a run's images."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fitspace.core.files import IMAGES, read_tensors, write_json
from fitspace.plan import Run, Stage
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
    read = {stage.key: rehashed(stage) for stage in run.upstream("evaluate")}
    inputs, cost = [path for files, _ in read.values() for path in files], read[run.sample.key][1]
    of_subject = run.task.dreambooth is not None
    path = run.reference.folder / "features.safetensors"
    further = study.further_of(of_subject)
    features = metrics.read_features(path, of_subject, study.weights, further)
    values = measure(study, run, features, keeping)
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
    study: Study,
    run: Run,
    features: dict[str, Any],
    keep: Callable[[Stage], Kept | None] = lambda stage: None,
) -> dict[str, Any]:
    """All metrics of one run's samples against reference features.

    For a run that diverged, only the reason: ``{"diverged": ...}``. Features of a stage's samples
    are taken from ``keep(stage)``, and put there; by default everything is computed, and nothing is
    written.
    """
    from fitspace import metrics

    facts = load_sidecar(run.sample.sidecar)["facts"]
    if "diverged" in facts:
        return {"diverged": facts["diverged"]}
    of_subject = run.task.dreambooth is not None
    further = study.further_of(of_subject)
    asked, images = (study.judge, study.weights), drawn(study, run)
    if of_subject:
        return metrics.evaluate_subject(images, features, *asked, further, keep(run.sample))
    untouched: dict[str, Any] = {}
    if run.untouched is not None:
        names = metrics.extractors_of(metrics.beside_untouched(further))
        base = _drawn(study, run, run.untouched)
        untouched = metrics.features_of(base, names, *asked, keep(run.untouched))

    def measured(part: slice, reference: dict[str, Any]) -> dict[str, Any]:
        beside = {name: values[part] for name, values in untouched.items()}
        return metrics.evaluate(images[part], reference, *asked, further, keep(run.sample), beside)

    last = _of_each(study, run) * study.sample.validation
    found = measured(slice(len(images) - last), features)
    if last:
        of_last = measured(slice(-last, None), metrics.of_last_prompts(features, last))
        names = [name for name in metrics.METRICS if name in of_last]
        found["validation"] = {name: of_last[name] for name in names}
    return found


def drawn(study: Study, run: Run) -> Any:
    """The images of a finished sample stage, uint8 (n, h, h, 3), caption by caption, those of
    validation last; for a DreamBooth task role by role. Raises UserError for a file with another
    number of images."""
    return _drawn(study, run, run.sample)


def _drawn(study: Study, run: Run, stage: Stage) -> Any:
    path, count = stage.folder / "samples.safetensors", study.sample.captions
    return read_tensors(path, IMAGES, "np", n=count * _of_each(study, run))["images"]


def _of_each(study: Study, run: Run) -> int:
    return study.sample.images_per_prompt if run.task.dreambooth is None else 3
