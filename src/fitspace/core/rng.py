"""Random numbers that depend on their purpose, not on earlier draws.

Every draw comes from a Philox generator whose key is (seed, stream) and whose counter is
(step, example): no state is carried from step to step, so a resumed run continues exactly,
and two points of one seed see the same noise, time steps and data order (common random
numbers). Splitting a batch into micro-batches changes nothing either.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def generator(seed: int, stream: str, step: int = 0, example: int = 0) -> np.random.Generator:
    """The generator of one example at one step of a named stream."""
    word = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "big")
    key = (int(seed) << 64) | word
    # The lowest counter word is the generator's own: it advances as numbers are drawn.
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, int(example), int(step)]))


def symmetric(seed: int, stream: str, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform on [-1, 1), float32, to be scaled to initial values."""
    return generator(seed, stream).random(shape, dtype="float32") * 2 - 1


def order(seed: int, step: int, batch_size: int, count: int) -> np.ndarray:
    """Indices of the items, of ``count``, that a step visits; int64, shape (batch_size,).

    Each epoch is a permutation that is drawn by the epoch's number.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, places = positions // count, positions % count
    shuffles = {e: generator(seed, "order", int(e)).permutation(count) for e in np.unique(epochs)}
    return np.array([shuffles[e][p] for e, p in zip(epochs, places, strict=True)], dtype=np.int64)


def initial_noise(
    seed: int, count: int, shape: tuple[int, ...], stream: str = "sample"
) -> torch.Tensor:
    """Starting noise, shape (count, *shape); image i of a seed is the same at every point."""
    import torch

    draws = [
        generator(seed, stream, 0, i).standard_normal(shape, dtype=np.float32) for i in range(count)
    ]
    return torch.from_numpy(np.stack(draws))
