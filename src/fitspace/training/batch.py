"""The batch of one training step.

All randomness comes from :mod:`fitspace.core.rng`, numbered by step and example, so points of one
seed see the same data, noise and time steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fitspace.bases.family import Conditions
from fitspace.bases.process import Process
from fitspace.core import rng
from fitspace.data.prepared import PreparedTask


@dataclass(frozen=True)
class Batch:
    """Inputs of one step: clean latents, noise, noisy latents, time steps, conditions, weights.

    ``rows`` are those of the conditions, 0 where the caption was dropped; ``counts`` is how much an
    example counts in the mean over the task's examples, 0 for class images.
    """

    clean: torch.Tensor
    noise: torch.Tensor
    noisy: torch.Tensor
    t: torch.Tensor
    conditions: Conditions
    weight: torch.Tensor
    rows: torch.Tensor
    counts: torch.Tensor

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, rows: slice) -> Batch:
        return self._each(lambda value: value[rows])

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return self._each(lambda value: value.to(device))

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        conditions = {name: change(value) for name, value in self.conditions.items()}
        own = {n: change(value) for n, value in vars(self).items() if n != "conditions"}
        return Batch(conditions=conditions, **own)

    def losses(self, process: Process, predicted: torch.Tensor) -> torch.Tensor:
        """Loss of each example, shape (n,)."""
        return process.losses(predicted, self.clean, self.noise, self.noisy, self.t, self.weight)


def make_batch(
    task: PreparedTask,
    process: Process,
    scaling: float | torch.Tensor,
    settings: dict[str, Any],
    seed: int,
    step: int,
    shift: float | torch.Tensor = 0.0,
) -> Batch:
    """Draw one step's batch: the same for every point of a seed.

    If a denoiser is told of images that the task gives, they are among the conditions. If the task
    has class images, as many of them follow. ``weight`` is set so that the mean over
    the batch equals the mean of the task's examples plus ``prior_weight`` times the mean of the
    class images (2208.12242, section 3.3). A denoiser's latents are ``scaling`` times the latents
    less their ``shift``.
    """
    chosen, captions, times, resample, noise, mirrored, without = [], [], [], [], [], [], []
    size, shape = settings["batch_size"], task.mean.shape[1:]
    items = rng.order(seed, step, size, len(task.groups))
    sources = [("train", i, task.groups[item]) for i, item in enumerate(items)]
    sources += [("prior", i, task.prior) for i in range(size if task.prior else 0)]
    for stream, position, group in sources:
        draw = rng.generator(seed, stream, step, position)
        example = group[int(draw.integers(len(group)))]
        dropped = draw.random() < settings["caption_dropout"]
        chosen.append(example)
        captions.append(0 if dropped else int(task.captions[example]))
        times.append(process.draw_time(draw, settings.get("density")))
        resample.append(draw.standard_normal(shape, dtype=np.float32))
        noise.append(draw.standard_normal(shape, dtype=np.float32))
        # Drawn last: nothing else depends on them.
        mirrored.append(draw.random() < task.flip)
        without.append(draw.random() < settings.get("given_dropout", 0.0))
    t = torch.tensor(times)
    epsilon = torch.from_numpy(np.stack(noise))
    mean, std = task.latents(chosen, mirrored)
    latents = mean + std * torch.from_numpy(np.stack(resample))
    latents = (latents - shift) * scaling
    weight, counts = process.weights(t, settings["min_snr_gamma"]), torch.ones(size)
    if task.prior:
        weight = weight * torch.tensor([2.0] * size + [2.0 * task.prior_weight] * size)
        counts = torch.tensor([2.0] * size + [0.0] * size)
    return Batch(
        clean=latents,
        noise=epsilon,
        noisy=process.mix(latents, epsilon, t),
        t=t,
        conditions=task.told(captions) | task.given_with(chosen, mirrored, without),
        weight=weight,
        rows=torch.tensor(captions),
        counts=counts,
    )
