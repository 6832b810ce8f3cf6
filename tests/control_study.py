"""A tiny Stable Diffusion, pairs of images, and studies whose tasks give an image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from fitspace.study import Study

ROOT = Path(__file__).parents[1]
JUDGE = str(ROOT / "models/emoji-clip")
IMAGES, HELD_OUT = 14, 5
METRICS = ["edge_agreement", "psnr", "ssim", "perceptual_effnet", "paired_effnet"]
WORDS = ("red apple", "green tree", "a house")


def build_images(out: Path) -> None:
    """Squares on a ground, and beside them their outlines; the captions repeat."""
    lines, sketches = [], out.with_name(f"{out.name}-given")
    out.mkdir()
    sketches.mkdir()
    draw = np.random.default_rng(0)
    for i in range(IMAGES):
        pixels = np.full((32, 32, 3), draw.integers(128, 256, 3), np.uint8)
        outline = np.full((32, 32, 3), 255, np.uint8)
        y, x = draw.integers(2, 14, 2)
        pixels[y : y + 14, x : x + 14] = draw.integers(0, 128, 3)
        outline[y : y + 14, x : x + 14] = 0
        outline[y + 2 : y + 12, x + 2 : x + 12] = 255
        Image.fromarray(pixels).save(out / f"{i:02}.png")
        Image.fromarray(outline).save(sketches / f"{i:02}.bmp")
        split = "test" if i < HELD_OUT else "train"
        lines.append({"file_name": f"{i:02}.png", "text": WORDS[i % 3], "split": split})
    (out / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))


def task(**changes) -> dict:
    own = {"name": "pairs", "source": "folder", "path": "images", "given": {"path": "images-given"}}
    return own | changes


def study(arms: list[dict], tasks: list[dict] | None = None, **changes) -> Study:
    return Study.model_validate(content(arms, tasks, **changes))


def content(arms: list[dict], tasks: list[dict] | None = None, **changes) -> dict:
    return {
        "name": "given",
        "title": "Given an image",
        "base": "base",
        "judge": JUDGE,
        "tasks": tasks or [task()],
        "arms": arms,
        "seeds": [3],
        "train": {"steps": 3, "batch_size": 4, "lr": 0.01},
        "sample": {"prompts": 4, "steps": 4, "guidance": 2.0},
        "metrics": METRICS,
        "analysis": {"factors": ["arm"], "responses": ["fd_effnet", "clip_t"]},
    } | changes
