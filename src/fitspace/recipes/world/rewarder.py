"""The rewarding model of the embedded world: a second judge, which evaluates nothing.

A training that is rewarded learns what pleases this model, so another has to say what it learnt.
Its image tower is DLA-46-C (1707.06484, table 1), a small network of whole convolutions, trained
from nothing; the judge's is a network of convolutions by channel, tuned from ImageNet weights. They
share a vocabulary, because both know all words of the captions, and neither weights nor a seed. An
instrument sees everything, and so does this one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fitspace.recipes.world import judge, loop
from fitspace.recipes.world.drawings import SIZE, Drawings

NAME = "emoji-rewarder"
TOWER = {"image_size": SIZE, "timm_model_name": "dla46_c"}
DESIGN = judge.Design(
    name=NAME,
    model={
        "embed_dim": 128,
        "vision_cfg": judge.MODEL["vision_cfg"] | TOWER,
        "text_cfg": judge.MODEL["text_cfg"] | {"hf_tokenizer_name": NAME, "width": 96},
    },
    sides=((0.7, SIZE // 2), (1.0, SIZE)),  # multiples of 32
    fixed=None,
)


@dataclass(frozen=True)
class Settings(judge.Settings):
    """How it is trained: for an hour. Its text tower learns beside, and no longer."""

    steps: int = 12_000
    lr: float = 5e-3
    warmup_steps: int = 300
    ema: float = 0.998
    weight_decay: float = 0.05
    seed: int = 1


def train(drawings: Drawings, folder: Path, settings: Settings = Settings()) -> loop.Trained:
    """Train on all drawings in all styles, or go on with it. The model is a settled `Learner`."""
    return judge.train(drawings, folder, settings, DESIGN)
