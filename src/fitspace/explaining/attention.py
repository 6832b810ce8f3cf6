"""Where a model looks for the taught words: maps of its cross-attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn


class Attention:
    """The share of each place's attention that falls on some tokens, layer by layer.

    Attributes
    ----------
    shares : path of a cross-attention -> mean share over places, heads, images and time steps.
    maps : map (h, w) of each of the first images, mean over layers, heads and time steps, at the
        finest layer's size.
    """

    def __init__(self, model: nn.Module, tokens: Sequence[Sequence[int]], shown: int = 0):
        """``tokens``: positions of the tokens in question in each image's taught condition, empty
        to look at nothing; ``shown``: of how many of the first images to keep maps."""
        from diffusers.models import attention_processor

        kind = attention_processor.Attention
        self.layers = {
            path: module
            for path, module in model.named_modules()
            if tokens and isinstance(module, kind) and module.is_cross_attention
        }
        self.tokens, self.shown = tokens, shown
        self._held: dict[tuple[str, str], torch.Tensor] = {}
        self._sums: dict[str, list[float]] = {}
        self._maps: dict[int, list[np.ndarray]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep queries and keys of forward passes, as a method left them."""

        def keep(path: str, part: str) -> Callable:
            return lambda module, args, output: self._held.__setitem__((path, part), output)

        with ExitStack() as handles:
            for path, layer in self.layers.items():
                for part in ("to_q", "to_k"):
                    hook = getattr(layer, part).register_forward_hook(keep(path, part))
                    handles.callback(hook.remove)
            yield

    def take(self, image: int) -> None:
        """Add up the last forward pass, of this image; its first row is the taught condition."""
        maps = []
        for path in dict.fromkeys(path for path, _ in self._held):  # as the model computes them
            layer = self.layers[path]
            query, key = (self._held[path, part][:1] for part in ("to_q", "to_k"))
            query, key = layer.head_to_batch_dim(query), layer.head_to_batch_dim(key)
            weights = layer.get_attention_scores(query, key)  # heads, places, tokens
            share = weights[:, :, list(self.tokens[image])].sum(2).mean(0).double().cpu()
            self._sums.setdefault(path, []).append(float(share.mean()))
            side = math.isqrt(len(share))  # latents are square
            maps.append(share.reshape(1, 1, side, side))
        self._held.clear()
        if maps and image < self.shown:
            finest = max(share.shape[-1] for share in maps)
            grown = torch.cat([nn.functional.interpolate(m, size=finest) for m in maps])
            self._maps.setdefault(image, []).append(grown.mean((0, 1)).numpy())

    @property
    def shares(self) -> dict[str, float]:
        return {path: float(np.mean(values)) for path, values in self._sums.items()}

    @property
    def maps(self) -> list[np.ndarray]:
        return [np.mean(found, axis=0) for _, found in sorted(self._maps.items())]
