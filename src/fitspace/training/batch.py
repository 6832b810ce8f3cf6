"""The batch of one training step.

All randomness comes from :mod:`fitspace.core.rng`, numbered by step and example: points of one
seed see the same data, noise and time steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fitspace.core import rng
from fitspace.data.prepared import PreparedTask
from fitspace.training import objectives


@dataclass(frozen=True)
class Batch:
    """Inputs of one step: clean latents, noise, both mixed, time steps, conditions, weights."""

    clean: torch.Tensor
    noise: torch.Tensor
    noisy: torch.Tensor
    t: torch.Tensor
    condition: torch.Tensor
    weight: torch.Tensor

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, rows: slice) -> Batch:
        return Batch(**{name: value[rows] for name, value in vars(self).items()})

    def to(self, device: torch.device) -> Batch:
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})


def make_batch(
    task: PreparedTask, scheduler, scaling: float, settings: dict[str, Any], seed: int, step: int
) -> Batch:
    """Draw one step's batch: the same for every point of a seed.

    With class images as many of them follow. Their share is in ``weight``: the mean over the
    batch is then that of the task's examples plus ``prior_weight`` times theirs (2208.12242,
    section 3.3).
    """
    chosen, captions, times, resample, noise = [], [], [], [], []
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
        times.append(int(draw.integers(scheduler.config.num_train_timesteps)))
        resample.append(draw.standard_normal(shape, dtype=np.float32))
        noise.append(draw.standard_normal(shape, dtype=np.float32))
    t = torch.tensor(times)
    epsilon = torch.from_numpy(np.stack(noise))
    latents = task.mean[chosen] + task.std[chosen] * torch.from_numpy(np.stack(resample))
    latents = latents * scaling
    weight = objectives.weights(scheduler, t, settings["min_snr_gamma"])
    if task.prior:
        weight = weight * torch.tensor([2.0] * size + [2.0 * task.prior_weight] * size)
    return Batch(
        clean=latents,
        noise=epsilon,
        noisy=scheduler.add_noise(latents, epsilon, t),
        t=t,
        condition=task.conditions[captions],
        weight=weight,
    )
