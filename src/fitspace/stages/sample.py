"""Draw a run's images."""

from __future__ import annotations

import time
from typing import Any

from fitspace import bases, methods
from fitspace.core.rng import initial_noise
from fitspace.plan import Run
from fitspace.stages.common import (
    adapter_file,
    check_prompts,
    fit_task,
    generated,
    placed,
    rehashed,
    say_diverged,
    seconds_since,
    stored,
)
from fitspace.stages.sidecars import now, write_sidecar
from fitspace.study import CHECKPOINT, Study


def sample(study: Study, run: Run) -> None:
    """Images of the first held-out captions, from the run's adapter or the untouched base.

    With ``sample.validation`` those of the last held-out captions follow.

    The adapter is that of the training's last step or of an earlier one, at the strength and in the
    parts of the model that the run's point says.

    With ``control: img2img`` sampling starts from the image that the task gives with each caption;
    with another control the denoiser is told of it.

    A base whose frozen layers were stored in fewer bits in training is stored so here.

    For a DreamBooth task, equal numbers of images of the subject, of the subject elsewhere and of
    its class. For a run that diverged, no images.
    """
    import numpy as np

    from fitspace.data.prepared import load
    from fitspace.stages import pictures
    from fitspace.training import sampling

    started = now()
    stage = run.sample
    inputs, _ = rehashed(run.prepare)
    base = bases.resolve(study.base)
    model = placed(bases.load_denoiser(base), run)
    cost = diverged = None
    if run.train is not None:
        files, cost = rehashed(run.train)
        inputs += files
        cost.pop("trainables", None)  # a long list, which nobody reads further on
        diverged = cost.get("diverged")
    task = load(run.prepare, base, run.task.scale, run.point.control)
    if not task.roles:
        check_prompts(study, run, task.prompts)
    clock = time.monotonic()
    side = bases.image_size(base) * run.task.scale
    images = np.zeros((0, side, side, 3), np.uint8)
    if diverged is None:
        try:
            images = _draw(study, run, model, task, base)
        except sampling.NotFinite as error:
            if run.train is None:
                raise
            diverged = str(error)
    seconds = seconds_since(clock)
    outcome = {} if diverged is None else {"diverged": diverged}
    if outcome:
        say_diverged(run, diverged)
    write_sidecar(
        stage,
        inputs=inputs,
        outputs=pictures.write(stage.name, stage.folder, images, stage.key, stage.material),
        started=started,
        facts={"images": len(images), "sample_seconds": seconds, "train": cost, **outcome},
    )


def _draw(study: Study, run: Run, model, task, base) -> Any:
    """A run's images, uint8 (n, h, w, 3); for a DreamBooth task role by role."""
    import numpy as np

    from fitspace.data import dreambooth

    drawn = run.point.sample
    if run.train is not None:
        path = run.train.folder / adapter_file(drawn.get(CHECKPOINT))
        attachment = methods.load(model, path, drawn.get("strength", 1.0), drawn.get("blocks"))
        stored(model, run, attachment)
    else:
        fit_task(model, run, task, base)
    count, given, start = study.sample.prompts, {}, None
    if task.roles:
        requests = [*dreambooth.requests(task, run.seed, count).values()]
    else:
        every = range(len(task.prompts))
        last = every[len(every) - study.sample.validation :]
        asked = [
            prompt
            for prompt in [*every[:count], *last]
            for _ in range(study.sample.images_per_prompt)
        ]
        rows, given = [task.prompts[prompt] for prompt in asked], task.given_for(asked)
        if run.point.learnt is None:
            start, given = given.get("given"), {}
        requests = [(rows, initial_noise(run.seed, len(rows), tuple(task.mean.shape[1:])))]
    name = f"sample {run.sample.folder.name}"
    return np.concatenate(
        [generated(study, model, task, *request, name, drawn, given, start) for request in requests]
    )
