"""The frozen linear layers of a denoiser in 8 or 4 bits, by bitsandbytes, an optional package.

A layer's weight is stored in few bits and made whole where it is multiplied. What is trained, the
biases, the norms, the embeddings and the convolutions stay as they are.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import nn

PACKAGE, EXTRA = "bitsandbytes", "fitspace[quantized]"
BLOCK = 64  # weights that share a scale in NF4


class Linear(NamedTuple):
    """What linear layers have together: ``weights``, and their output ``rows``."""

    weights: int = 0
    rows: int = 0

    def bytes(self, form: str) -> int:
        """Bytes of the weights in a format, with their scales in fp32.

        ``int8`` has a scale for each row, ``nf4`` two weights in a byte and a scale for each block
        of 64; a layer's last block can be smaller, which is not counted.
        """
        if form == "int8":
            return self.weights + 4 * self.rows
        return self.weights // 2 + 4 * (self.weights // BLOCK)


def missing() -> str | None:
    """Why no weight can be quantized on this machine; None if they can."""
    if importlib.util.find_spec(PACKAGE) is not None:
        return None
    return f"needs {PACKAGE}, which is not installed; needed: pip install '{EXTRA}'"


def frozen_linear(model: nn.Module, kept: Iterable[torch.Tensor] = ()) -> list[nn.Linear]:
    """The plain linear layers whose weights are frozen, and none of ``kept``; each once."""
    from torch import nn

    others = {id(tensor) for tensor in kept}
    return [
        layer
        for layer in model.modules()
        if type(layer) is nn.Linear and not layer.weight.requires_grad
        if id(layer.weight) not in others
    ]


def counted(layers: Iterable[nn.Linear]) -> Linear:
    """What some linear layers have together."""
    shapes = [tuple(layer.weight.shape) for layer in layers]
    return Linear(sum(rows * inputs for rows, inputs in shapes), sum(rows for rows, _ in shapes))
