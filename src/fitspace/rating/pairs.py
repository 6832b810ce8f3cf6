"""Which samples are compared with which, and the page on which people do it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fitspace.core import rng
from fitspace.core.errors import UserError
from fitspace.core.files import digest, write_json, write_text
from fitspace.core.pages import png_uri, script_digest, templates
from fitspace.plan import Plan, Run, own_drawing

if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDER, KEY, PAGE = "ratings", "key.json", "rate.html"
MOST = 10_000


@dataclass(frozen=True)
class Pair:
    """Two samples of one caption and seed. ``name`` tells nothing of what made them."""

    name: str
    left: str
    right: str
    task: str
    seed: int
    prompt: int


def choose(points: Sequence[str], plan: Plan, count: int, seed: int) -> list[Pair]:
    """About ``count`` pairs in which every point stands equally often, each side in turn.

    Rounds of a tournament: in a round every point meets another one (with an odd number one rests),
    and no two meet twice before all have met. A balanced incomplete block design with blocks of
    two where all rounds are asked for, as balanced as can be where fewer are. Whole rounds, two at
    least, so that comparisons connect all points. Task, seed and caption of each are drawn.

    Raises
    ------
    UserError : fewer than two points, or more pairs than a person can judge.
    """
    if len(points) < 2:
        raise UserError("rate: fewer than two points with samples; nothing to compare")
    if not 1 <= count <= MOST:
        raise UserError(f"--pairs: {count}; allowed: 1 to {MOST}")
    draw = rng.generator(seed, "rate")
    rounds = _tournament([points[i] for i in draw.permutation(len(points))])
    each = len(points) // 2
    wanted = max(min(2, len(rounds)), round(count / each))
    tasks, seeds, found = plan.study.tasks, plan.study.seeds, []
    for number in range(wanted):
        for one, other in rounds[number % len(rounds)]:
            turned = (one, other) if draw.random() < 0.5 else (other, one)
            task, run_seed = (options[draw.integers(len(options))] for options in (tasks, seeds))
            prompt = int(draw.integers(plan.study.sample.prompts))
            what = [plan.study.name, seed, len(found), *turned]
            name = hashlib.sha256(repr(what).encode()).hexdigest()[:12]
            found.append(Pair(name, *turned, task.name, run_seed, prompt))
    return [found[i] for i in draw.permutation(len(found))]


def _tournament(points: Sequence[str]) -> list[list[tuple[str, str]]]:
    """Rounds in which everybody meets everybody once (the circle method)."""
    ring: list[str | None] = [*points, *([None] if len(points) % 2 else [])]
    half, rounds = len(ring) // 2, []
    for _ in range(len(ring) - 1):
        pairs = zip(ring[:half], reversed(ring[half:]), strict=True)
        rounds.append([(a, b) for a, b in pairs if a is not None and b is not None])
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return rounds


def write(plan: Plan, folder: Path, count: int, seed: int) -> Path:
    """Write the page and its key into the folder ``ratings`` of a report; returns the page's path.

    The page holds all images and requests nothing. It does not say which point made which. The key
    does: it stays here.

    Raises
    ------
    UserError : a task of one subject, samples that are not here, or as `choose`.
    """
    from markupsafe import Markup

    if subjects := [task.name for task in plan.study.tasks if task.dreambooth is not None]:
        raise UserError(f"rate: task {subjects[0]!r} is dreambooth; allowed: held-out captions")
    runs = {
        (run.point.name, run.task.name, run.seed): run
        for run in plan.runs
        if own_drawing(plan.study, run.point)
    }
    pairs = choose(list(dict.fromkeys(name for name, _, _ in runs)), plan, count, seed)
    shown = _shown(plan, pairs, runs)
    key = {"study": plan.study.name, "pairs": {pair.name: asdict(pair) for pair in pairs}}
    key["design"] = digest(key)[:12]
    environment = templates("fitspace.rating", autoescape=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    script = (Path(__file__).parent / "templates" / "rate.js").read_text(encoding="utf-8")
    text = environment.get_template("rate.html.j2").render(
        title=plan.study.title,
        data={"study": plan.study.name, "design": key["design"], "pairs": shown},
        script=Markup(script),
        script_digest=script_digest(script),
    )
    write_json(folder / FOLDER / KEY, key)
    write_text(folder / FOLDER / PAGE, text)
    return folder / FOLDER / PAGE


def _shown(
    plan: Plan, pairs: Sequence[Pair], runs: Mapping[tuple[str, str, int], Run]
) -> list[dict[str, Any]]:
    """What the page has of each pair: its name, caption, both images and the held-out one.

    Files are read once each, and only what is shown is kept.
    """
    from fitspace.data.prepared import read_images, read_manifest
    from fitspace.stages.evaluate import drawn

    wanted: dict[tuple[str, str, int], set[int]] = {}
    for pair in pairs:
        for point in (pair.left, pair.right):
            wanted.setdefault((point, pair.task, pair.seed), set()).add(pair.prompt)
    folders = [runs[who].sample for who in wanted]
    if missing := [stage.folder for stage in folders if not stage.sidecar.exists()]:
        raise UserError(f"{folder}: no samples; snakemake draws them" for folder in missing)
    of_each, samples, references = plan.study.sample.images_per_prompt, {}, {}
    for who, prompts in wanted.items():
        images = drawn(plan.study, runs[who])
        samples |= {(*who, prompt): _uri(images[prompt * of_each]) for prompt in prompts}
    for task, prepared in {who[1]: runs[who].prepare for who in wanted}.items():
        manifest = read_manifest(prepared)
        images = read_images(prepared, manifest)
        for prompt in {pair.prompt for pair in pairs if pair.task == task}:
            caption = manifest["captions"][manifest["prompts"][prompt]]
            image = images[manifest["prompt_images"][prompt]]
            references[task, prompt] = {"caption": caption, "reference": _uri(image)}
    return [
        {
            "name": pair.name,
            "left": samples[pair.left, pair.task, pair.seed, pair.prompt],
            "right": samples[pair.right, pair.task, pair.seed, pair.prompt],
            **references[pair.task, pair.prompt],
        }
        for pair in pairs
    ]


def _uri(image: np.ndarray) -> str:
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return png_uri(buffer.getvalue())
