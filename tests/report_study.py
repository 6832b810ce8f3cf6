"""Studies with made-up runs: what `fitspace.results.table` writes, without a model behind it."""

from __future__ import annotations

import csv
import itertools
import json
import random
from pathlib import Path

import numpy as np
from PIL import Image

from fitspace.study import Study

INPUTS = ["SA_in", "SA_out", "CA_in", "CA_out", "FFN_in", "FFN_out", "Trans_out", "CA_c"]
OUTPUTS = ["SA_in", "CA_in", "FFN_in", "Trans_out", "CA_c"]
ORDER = [*INPUTS[:-1]]
TRAIN = {"steps": 120, "batch_size": 16, "lr": 0.003}


def study(
    factors: dict[str, list] | None = None,
    tasks: tuple[str, ...] = ("blueprint",),
    seeds: tuple[int, ...] = (0, 1),
    responses: tuple[str, ...] = ("fd_effnet", "clip_i_paired", "clip_t"),
    transform: dict | None = None,
    baselines: bool = True,
    **changes,
) -> Study:
    """A valid study; ``factors`` default to the input and output positions."""
    factors = {"input": INPUTS, "output": OUTPUTS} if factors is None else factors
    arms = [{"method": "adapter", "factors": factors, "illegal_cells": "drop"}]
    if baselines:
        arms += [{"method": "full"}, {"method": "none"}]
    content = {
        "name": "made-up",
        "title": "Where should an adapter read and write?",
        "question": "Which matters more for adapting a text-to-image U-Net to a new visual "
        "style: the position an adapter reads from, or the position it writes to?",
        "base": "models/emoji-unet",
        "judge": "models/emoji-clip",
        "tasks": [{"name": t, "source": "folder", "path": t} for t in tasks],
        "arms": arms,
        "seeds": list(seeds),
        "train": TRAIN,
        "sample": {"prompts": 96},
        "analysis": {
            "factors": list(factors),
            "responses": list(responses),
            "transform": {"fd_effnet": "log"} if transform is None else transform,
        },
    }
    return Study.model_validate(content | changes)


def legal(levels: dict[str, object]) -> bool:
    """An adapter reads at or before where it writes; CA_c only feeds itself."""
    one, two = levels.get("input"), levels.get("output")
    if one not in INPUTS or two not in OUTPUTS:
        return True
    if "CA_c" in (one, two):
        return one == two
    return ORDER.index(one) <= ORDER.index(two)


def rows(study: Study, effect: float = 1.0, noise: float = 0.03, seed: int = 7) -> list[dict]:
    """One row per run; the last factor has an effect, the others next to none."""
    draw = random.Random(seed)
    arm = study.arms[0]
    names = list(arm.factors)
    table = []
    for run_seed, task in itertools.product(study.seeds, study.tasks):
        for levels in itertools.product(*arm.factors.values()):
            cell = dict(zip(names, levels, strict=True))
            if not legal(cell):
                continue
            last = list(arm.factors[names[-1]]).index(levels[-1])
            y = 0.12 * effect * last + draw.gauss(0, noise) + 0.02 * run_seed
            slug = "adapter." + "-".join(map(str, levels))
            table.append(_row(draw, "adapter", slug, task.name, run_seed, y, cell, 20_000))
        if len(study.arms) > 1:
            empty = dict.fromkeys(names)
            y = -0.25 + draw.gauss(0, noise)
            table.append(_row(draw, "full", "full", task.name, run_seed, y, empty, 4_312_328))
            table.append(_row(draw, "none", "none", task.name, run_seed, 1.9, empty, 0))
    return table


def _row(draw, method, slug, task, seed, y, cell, trainable) -> dict:
    run = f"{slug}~{task}~s{seed}~{draw.getrandbits(48):012x}"
    steps = None if method == "none" else 120
    return {
        "run": run,
        "point": slug,
        "arm": method,
        "method": method,
        "task": task,
        "seed": seed,
        "status": "ok",
        **cell,
        "steps": steps,
        "trainable": trainable + (draw.randrange(9) * 1024 if method == "adapter" else 0),
        "total": 9_021_448,
        "final_loss": None if steps is None else 0.2 + draw.random() / 50,
        "train_seconds": None if steps is None else 20 + 5 * draw.random(),
        "sample_seconds": 6 + draw.random(),
        "fd_effnet": 42.0 * 2.718281828459045**y,
        "kid_effnet": 0.02 + 0.01 * y,
        "clip_t": 0.31 - 0.01 * y + draw.gauss(0, 0.001),
        "clip_i": 0.7 - 0.05 * y,
        "clip_i_paired": 0.78 - 0.04 * y + draw.gauss(0, 0.002),
        "precision": 0.6,
        "recall": 0.5,
        "n": 96,
        "m": 185,
        "train_key": f"{draw.getrandbits(48):012x}",
        "sample_key": f"{draw.getrandbits(48):012x}",
        "evaluate_key": f"{draw.getrandbits(48):012x}",
    }


def write(folder: Path, table: list[dict], dropped: list[str] | None = None) -> None:
    """Write runs.csv, and design.json where cells were dropped."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(name for row in table for name in row))
    with (folder / "runs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    if dropped is not None:
        design = {"points": [], "runs": len(table), "dropped": dropped}
        (folder / "design.json").write_text(json.dumps(design), encoding="utf-8")


def write_gallery(
    folder: Path, table: list[dict], captions: list[str], size: int = 32, strips=None
) -> None:
    """Write gallery.json and a strip per role and task; ``strips`` are (role -> images)."""
    first = {}
    for row in table:
        role = "best" if row["method"] == "adapter" else row["arm"]
        first.setdefault((row["task"], role), row)
        if row["method"] == "adapter":
            first[row["task"], "worst"] = row
    entries = []
    random_pixels = np.random.default_rng(3)
    for task in dict.fromkeys(row["task"] for row in table):
        for role in ("target", "best", "worst", "full", "none"):
            if role != "target" and (task, role) not in first:
                continue
            row = first.get((task, role))
            file = f"gallery/{task}/{role}.png"
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shape = (size, size * len(captions), 3)
            pixels = random_pixels.integers(0, 255, shape, dtype=np.uint8)
            if strips is not None:
                pixels = strips[role]
            Image.fromarray(pixels).save(folder / file)
            entries.append(
                {
                    "task": task,
                    "role": role,
                    "run": row["run"] if row else None,
                    "point": row["point"] if row else None,
                    "file": file,
                    "size": size,
                    "captions": captions,
                    "attribution": "OpenMoji, CC BY-SA 4.0",
                }
            )
    (folder / "gallery.json").write_text(json.dumps(entries), encoding="utf-8")
