"""``emoji-dit``: a DiT pipeline at 64×64 pixels, with a class for each figure.

A figure's skin tones form one class, so a sample shows a random one of them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fitspace import bases
from fitspace.bases.dit import share_embedders
from fitspace.data import openmoji
from fitspace.data.prepared import PreparedTask
from fitspace.recipes.world import denoiser, loop
from fitspace.recipes.world.drawings import Drawings

CONFIG = dict(
    sample_size=8,
    in_channels=16,
    out_channels=32,  # the second half says how wide a reverse step is
    patch_size=2,
    num_layers=6,
    num_attention_heads=12,
    attention_head_dim=16,
)
# The class that diffusers' DiTPipeline uses as "no class", ImageNet's 1001st. Here it means "no
# class" too, like the last class, which fitspace uses. No figure has this number.
NONE = 1000


@dataclass(frozen=True)
class Settings(denoiser.Settings):
    """How the DiT is trained."""

    steps: int = 16_000
    batch_size: int = 64
    lr: float = 1e-3
    warmup_steps: int = 500
    ema: float = 0.9995


def names(drawings: Drawings) -> dict[int, str]:
    """Class -> its figure's name, the caption without a skin tone."""
    groups = [str(drawings.figures[rows[0]]) for rows in drawings.members()]
    return {i + (i >= NONE): openmoji.figures()[group] for i, group in enumerate(groups)}


def new_model(figures: int, config: dict[str, Any] = CONFIG, seed: int = 0) -> nn.Module:
    """An untrained DiT whose blocks share one embedder, as :func:`share_embedders` has it."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(seed)
    classes = max(figures, NONE) + 1
    model = DiTTransformer2DModel(num_embeds_ada_norm=classes, **config).eval()
    initialise(model)
    share_embedders(model)
    return model


def initialise(model: nn.Module) -> None:
    """DiT's initial values; the blocks' embedders are alike."""
    embedder = model.transformer_blocks[0].norm1.emb
    embedders = (
        embedder.class_embedder.embedding_table,
        embedder.timestep_embedder.linear_1,
        embedder.timestep_embedder.linear_2,
    )
    modulations = [block.norm1.linear for block in model.transformer_blocks]
    denoiser.initialise(model, embedders, [*modulations, model.proj_out_1, model.proj_out_2])
    for block in model.transformer_blocks:
        block.norm1.emb.load_state_dict(embedder.state_dict())


@torch.no_grad()
def as_stored(model: nn.Module) -> nn.Module:
    """In diffusers' form: class ``NONE`` is "no class", and each block has its own embedder."""
    _, table = bases.class_table(model)
    table[NONE] = table[-1]
    for block in model.transformer_blocks:
        block.norm1.emb = copy.deepcopy(block.norm1.emb)
    return model


def assemble(pipeline: Path, vae: Path, model: nn.Module, names: dict[int, str]) -> None:
    """The whole pipeline folder, with this denoiser."""
    as_stored(copy.deepcopy(model)).save_pretrained(pipeline / "transformer")
    denoiser.assemble(
        pipeline,
        vae,
        {
            "_class_name": "DiTPipeline",
            "id2label": {str(i): name for i, name in names.items()},
            "transformer": ["diffusers", "DiTTransformer2DModel"],
        },
    )


def source(pipeline: Path, drawings: Drawings) -> PreparedTask:
    """The source domain: row 1 + i of the conditions is figure i's class, row 0 no class."""
    members = drawings.members()
    rows = torch.empty(len(drawings), dtype=torch.int64)
    for i, own in enumerate(members):
        rows[torch.from_numpy(own)] = 1 + i
    classes = bases.config(pipeline, "transformer")["num_embeds_ada_norm"]
    conditions = {"labels": torch.tensor([classes, *names(drawings)])}
    groups = [own.tolist() for own in members]
    return denoiser.source(bases.load_vae(pipeline), drawings, rows, groups, conditions)


def train(
    drawings: Drawings,
    vae: Path,
    folder: Path,
    settings: Settings = Settings(),
    config: dict[str, Any] = CONFIG,
) -> loop.Trained:
    """Train on all drawings in the source style, or go on; ``folder/pipeline`` is the base."""
    classes, pipeline = names(drawings), folder / "pipeline"
    model = new_model(len(classes), config, settings.seed)
    assemble(pipeline, vae, model, classes)
    trained = denoiser.train(
        model,
        source(pipeline, drawings),
        pipeline,
        folder,
        settings,
        {"drawings": drawings.key, "config": config},
        denoiser.shown_rows(len(classes)),
        "dit",
    )
    denoiser.save(trained, settings, pipeline / "transformer", as_stored)
    return trained


def measure(pipeline: Path, judge: Path, drawings: Drawings) -> dict[str, float]:
    """R-precision of samples of all figures; the right caption of a figure is not defined."""
    task, members = source(pipeline, drawings), drawings.members()
    rows = list(range(1, 1 + len(members)))
    samples = denoiser.sample(bases.load_denoiser(pipeline), pipeline, task, rows)
    found = denoiser.precision(samples, np.array([m[0] for m in members]), judge, drawings)
    return {name: found[name] for name in ("figure", "style", "n")}
