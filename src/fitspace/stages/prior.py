"""Class images for prior preservation, drawn by the untouched base."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from fitspace import bases
from fitspace.core import devices
from fitspace.core.errors import UserError
from fitspace.core.rng import initial_noise
from fitspace.data.encoding import conditions, joined
from fitspace.plan import Run
from fitspace.stages import pictures
from fitspace.stages.common import seconds_since
from fitspace.stages.sidecars import now, write_sidecar
from fitspace.study import Study
from fitspace.training.sampling import generate


def prior(study: Study, run: Run) -> None:
    """Draw class images with the untouched base, for training (2208.12242, section 3.3)."""

    started, clock = now(), time.monotonic()
    stage = run.prior
    if stage is None:
        raise UserError(f"prior: task {run.task.name!r} is without prior preservation")
    images = class_images(bases.resolve(study.base), stage.material, devices.device())
    made = pictures.write(stage.name, stage.folder, images, stage.key, stage.material)
    facts = {"images": len(images), "seconds": seconds_since(clock)}
    write_sidecar(stage, inputs=[], outputs=made, started=started, facts=facts)


def class_images(base: Path, asked: dict[str, Any], device: str) -> np.ndarray:
    """The untouched base's images of a class; uint8, shape (images, h, w, 3).

    ``asked``: ``prompt``, ``images`` (how many), solver ``steps`` and ``guidance`` scale.
    """
    told = joined(conditions(base, ["", asked["prompt"]])[0])
    model = bases.load_denoiser(base).to(device)
    return generate(
        model,
        bases.load_vae(base).to(device),
        bases.load_process(base),
        bases.picked(told, [1] * asked["images"]),
        bases.picked(told, slice(1)),
        initial_noise(0, asked["images"], bases.latent_shape(base), "class"),
        asked["steps"],
        asked["guidance"],
        description=f"drawing {asked['prompt']!r}",
    )
