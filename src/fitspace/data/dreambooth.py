"""DreamBooth tasks: one subject under a rare word, beside images of its class (2208.12242)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fitspace.core.rng import initial_noise
from fitspace.data.prepared import PreparedTask

ROLES = ("subject", "elsewhere", "class")


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
