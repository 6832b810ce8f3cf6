"""(IA)³: factors on keys, values and the feed-forward's hidden units, by peft.

2205.05638, section 3.3: ``l_k ∘ k``, ``l_v ∘ v`` and ``W2(l_ff ∘ act(...))``. All factors start at
one. These places define the method, so it has no settings.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fitspace.bases.blocks import LAYERS
from fitspace.methods.attachment import Attachment, PartialSettings
from fitspace.methods.peft_layers import attachment, inject, linear_layers
from fitspace.methods.tuners import TUNERS

if TYPE_CHECKING:
    from peft import IA3Config
    from torch import nn

trains = True
folds = True
# How names of layers that end a feed-forward end.
FEED_FORWARD = tuple(f".{part}" for roles in LAYERS.values() for part in roles.get("ff_out", ()))
AT_REST = TUNERS["IA3"].rest


class Settings(PartialSettings):
    """(IA)³ has no settings of its own."""


def problems(settings: Settings, family: str) -> list[str]:
    """None: all families have attention and feed-forward layers."""
    return []


def peft_config(settings: Settings, layers: Iterable[str]) -> IA3Config:
    """peft's configuration for the layers of these paths: inputs of FEED_FORWARD, else outputs."""
    from fitspace.core.imports import import_peft

    layers = list(layers)
    return import_peft().IA3Config(
        target_modules=layers,
        feedforward_modules=[path for path in layers if path.endswith(FEED_FORWARD)],
    )


def attach(model: nn.Module, settings: Settings, seed: int) -> Attachment:
    """Put factors on every attention's keys and values, and on every feed-forward's units."""
    layers = linear_layers(model, ("k", "v", "ff_out"), settings.blocks)
    return attachment(inject(model, peft_config(settings, layers), seed), seed)
