"""A first study file: from a few answers to a text that passes every check."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fitspace import bases, data, methods
from fitspace.core.errors import UserError
from fitspace.core.pages import templates
from fitspace.data import openmoji
from fitspace.study import Task

# What can be varied -> the question, and the factors of the analysis.
VARIED = {
    "positions": (
        "Which matters more: the position an adapter reads from, or the one it writes to?",
        ("input", "output"),
    ),
    "methods": ("Which method adapts the base best?", ("arm",)),
    "rank": ("How many ranks does LoRA need?", ("rank",)),
}
PROMPTS, FEWEST = 80, 4
SMALL = 128  # px: bases of this side and below are quick on a CPU


@dataclass(frozen=True)
class Answers:
    """What a study is to be about.

    ``images``: a folder of captioned images; None for OpenMoji in a ``style``. ``vary``: one of
    `VARIED`.
    """

    name: str
    vary: str = "positions"
    images: Path | None = None
    style: str = "sepia"
    base: str = "models/emoji-unet"
    judge: str = "models/emoji-clip"
    seeds: int = 2


def draft(answers: Answers, path: Path) -> str:
    """The study file; ``path`` is where it will stand.

    Raises
    ------
    UserError : an unknown answer, no base, or a folder with too few held-out images.
    """
    if problems := _problems(answers):
        raise UserError(problems)
    task = _task(answers)
    most = _held_out(task)
    question, factors = VARIED[answers.vary]
    environment = templates("fitspace.plan", autoescape=False)  # YAML
    environment.filters["yaml"] = _scalar
    return environment.get_template("study.yaml.j2").render(
        path=path.as_posix(),
        heading=f"{answers.name}: {question}",
        name=answers.name,
        title=question,
        question=question,
        base=answers.base,
        judge=answers.judge,
        task=task.name,
        images=task.path,
        style=answers.style,
        vary=answers.vary,
        seeds=list(range(answers.seeds)),
        prompts=min(PROMPTS, most),
        most=most,
        factors=factors,
        **_positions(answers.base),
        **_amounts(answers.base),
    )


def _problems(answers: Answers) -> list[str]:
    wrong = []
    if answers.vary not in VARIED:
        wrong.append(f"--vary: {answers.vary!r}; allowed: {', '.join(VARIED)}")
    if answers.images is None and answers.style not in openmoji.STYLES:
        wrong.append(f"--style: {answers.style!r}; allowed: {', '.join(openmoji.STYLES)}")
    if not 1 <= answers.seeds <= 1000:
        wrong.append(f"--seeds: {answers.seeds}; allowed: 1 to 1000")
    return wrong


def _task(answers: Answers) -> Task:
    if answers.images is None:
        return Task(name=answers.style, source="openmoji", style=answers.style)
    return Task(name="images", source="folder", path=answers.images.as_posix())


def _held_out(task: Task) -> int:
    """How many held-out captions the task has."""
    known = data.outline(task)
    most = data.most_prompts(task, known, PROMPTS)
    if most < FEWEST:
        raise UserError(
            f"{task.path}: {most} held-out images; needed: {FEWEST}. Give images the split 'test' "
            "in their metadata, or put them in a folder 'test'; see params/README.md"
        )
    return most


def _positions(base: str) -> dict[str, Any]:
    """Positions of the base's transformer blocks, where an adapter reads and writes."""
    cells = methods.get("adapter").legal_cells(bases.family(base).name)
    tokens = [pair for pair in cells if pair[0] not in ("CA_c", "Res_in", "Res_out")]
    inputs = list(dict.fromkeys(source for source, _ in tokens))
    return {
        # The input that 2303.18181 recommends, or on a DiT the one before.
        "recommended": "CA_out" if "CA_out" in inputs else "SA_out",
        "inputs": inputs,
        "outputs": list(dict.fromkeys(target for _, target in tokens)),
    }


def _amounts(base: str) -> dict[str, Any]:
    """Steps and rates to begin with: of the embedded studies, or of the papers' sizes."""
    if bases.image_size(bases.resolve(base)) <= SMALL:
        return {"steps": 70, "batch_size": 16, "lr": "3.0e-3", "full_lr": "2.0e-4",
                "sampling_steps": 10, "width": 8}  # fmt: skip
    return {"steps": 500, "batch_size": 4, "lr": "1.0e-4", "full_lr": "1.0e-5",
            "sampling_steps": 25, "width": 60}  # fmt: skip


def _scalar(text: str) -> str:
    """A text as YAML, quoted where it has to be."""
    return yaml.safe_dump(text, default_flow_style=True, width=10_000).splitlines()[0]
