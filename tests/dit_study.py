"""A class-conditional DiT and studies of it, small enough to be run through all stages."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import diffusers
import numpy as np
import tiny
import torch
from PIL import Image

from fitspace import stages
from fitspace.core.files import write_json
from fitspace.plan import Run
from fitspace.study import Study

ROOT = Path(__file__).parents[1]
JUDGE = str(ROOT / "models/emoji-clip")
NAMES = {"0": "cat, kitty", "1": "dog", "2": "bird"}
# Task -> labels of its images in turn: the base's, others, and the base's on twice its size.
LABELS = {"known": ["dog", "kitty"], "own": ["teapot", "anvil"], "large": ["dog", "kitty"]}
PROMPTS, STEPS = 4, 2


def build_base(out: Path) -> None:
    """A DiT with learned variance that makes 16 px images, its embedders not yet shared."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
    )
    dit = tiny.tiny_dit()
    for block in dit.transformer_blocks:
        block.norm1.emb = copy.deepcopy(block.norm1.emb)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear", prediction_type="v_prediction"
    )
    diffusers.DiTPipeline(dit, vae, scheduler).save_pretrained(out)
    index = json.loads((out / "model_index.json").read_text())
    # As DiT's published pipelines have it; diffusers reads it, and no longer writes it.
    write_json(out / "model_index.json", index | {"id2label": NAMES})


def build_images(out: Path, labels: list[str]) -> None:
    """Twelve images, every third held out; captions are no class of anything."""
    out.mkdir()
    draw, lines = np.random.default_rng(0), []
    for i in range(12):
        Image.fromarray(draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(out / f"{i}.png")
        row = {"file_name": f"{i}.png", "text": f"picture {i}", "label": labels[i // 2 % 2]}
        lines.append(json.dumps(row | {"split": "train" if i % 3 else "test"}))
    (out / "metadata.jsonl").write_text("\n".join(lines))


def task(name: str) -> dict:
    size = 2 if name == "large" else 1
    return {"name": name, "source": "folder", "path": name, "scale": size}


def study(arm: dict, tasks: list[dict], **changes) -> Study:
    return Study.model_validate(
        {
            "name": "dit",
            "title": "A DiT",
            "base": "base",
            "judge": JUDGE,
            "tasks": tasks,
            "arms": [arm],
            "seeds": [3],
            "train": {"steps": 3, "batch_size": 4, "lr": 0.05},
            "sample": {"prompts": PROMPTS, "steps": STEPS, "guidance": 1.0},
            "analysis": {"factors": ["arm"], "responses": ["fd_effnet"]},
        }
        | changes
    )


BITFIT = {"method": "bitfit"}


def run_through(chosen: Study, run: Run, *names: str) -> None:
    for name in names:
        stages.function(name)(chosen, run)
