"""The table of stages: one row per stage, in an order in which they can run.

Keys, runs, rules, SLURM's profile, lineage, audit, PROV and progress read it. A new stage is a
row here, a module in :mod:`fitspace.stages` and a rules file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fitspace import metrics

if TYPE_CHECKING:
    from fitspace.plan.models import Models
    from fitspace.plan.points import Point
    from fitspace.study import Study, Task

PRIOR_STEPS = 20  # DPM-Solver++ steps of a class image


@dataclass(frozen=True)
class Making:
    """Everything that can go into a stage's key.

    ``keys`` holds the keys of earlier stages by name, without stages that the run does not have;
    ``untouched`` is that of the untouched base's samples, if a metric compares with them.
    A stage that all runs of a task share has neither point nor seed.
    """

    study: Study
    models: Models
    task: Task
    keys: dict[str, str]
    point: Point | None = None
    seed: int | None = None


def _of_task(making: Making) -> str:
    return making.task.name


def _of_training(making: Making) -> str:
    return f"{making.point.slug}~{making.task.name}~s{making.seed}"


def _of_run(making: Making) -> str:
    point = ".".join(filter(None, [making.point.slug, making.point.drawn]))
    return f"{point}~{making.task.name}~s{making.seed}"


@dataclass(frozen=True)
class Row:
    """One stage.

    Attributes
    ----------
    version : raise it when the stage's results change: a golden test holds the numbers in place.
    does : description of its command, for the command line.
    title : name of its folder's content, in words.
    reads : entry of the key's material that holds another stage's key -> that stage.
    outputs : the files in its folder, without the sidecar.
    material : everything that determines its content; None for a run without this stage.
    slug : the readable part of its folder's name.
    by_task : whether all runs of a task share it.
    judged : whether it runs the judge and the other feature extractors.
    gpu : whether a cluster gives it a GPU; other stages run on CPU nodes.
    grouped : whether one process can make several runs, and several runs can be one job.
    minutes, memory_mb : limits of a job's first attempt; a cluster's site file can change them.
    seconds : time of a job of the default study; only ratios matter, for the time left.
    room : the folder below ``results``.
    """

    name: str
    version: int
    does: str
    title: str
    reads: dict[str, str]
    outputs: tuple[str, ...]
    material: Callable[[Making], dict[str, Any] | None]
    slug: Callable[[Making], str]
    minutes: int
    memory_mb: int
    seconds: int
    by_task: bool = False
    judged: bool = False
    gpu: bool = False
    grouped: bool = False
    room: str = field(default="")

    def __post_init__(self) -> None:
        object.__setattr__(self, "room", self.room or self.name)


# --- material of the keys -----------------------------------------------------------------


def _prior(making: Making) -> dict[str, Any] | None:
    """Class images, shared by all tasks of one class."""
    subject = making.task.dreambooth
    if subject is None or subject.prior_weight == 0:
        return None
    return {
        "base": making.models.digest,
        "prompt": subject.taught["class"],
        "images": subject.class_images,
        "guidance": subject.class_guidance,
        "steps": PRIOR_STEPS,
    }


def _of_prompt(making: Making) -> str:
    prompt = making.task.dreambooth.taught["class"]
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40] or "class"


def _prepare(making: Making) -> dict[str, Any]:
    task = making.task
    material = {"base": making.models.digest, "source": making.models.source(task)}
    if task.scale != 1:
        material["scale"] = task.scale
    if task.flip:
        material["flip"] = task.flip
    if task.dreambooth is not None:
        own = task.dreambooth.model_dump(exclude={"class_images", "class_guidance"})
        material |= {"dreambooth": own, "prior": making.keys.get("prior")}
    return material


def _reference(making: Making) -> dict[str, Any]:
    of_subject = making.task.dreambooth is not None
    further = making.study.further_of(of_subject)
    evaluator = dict(making.models.evaluator)
    material = {"task": making.keys["prepare"], "evaluator": evaluator}
    if further:
        evaluator["further"] = {name: metrics.METRICS[name].version for name in further}
    if of_subject:  # references include the base's images of the class
        for name in making.study.weights.keys() - metrics.extractors_of(further):
            del evaluator[name]
        material["sample"] = making.study.sample.model_dump()
    elif (count := making.study.sample.images_per_prompt) != 1:
        material["images_per_prompt"] = count
    return material


def _train(making: Making) -> dict[str, Any] | None:
    point = making.point
    if point.train is None:
        return None
    train = point.train
    if reward := train.get("reward"):  # which model it is, wherever it lies
        train = train | {"reward": reward | {"model": making.models.rewarder}}
    return {
        "base": making.models.digest,
        "task": making.keys["prepare"],
        "method": point.method,
        "settings": point.settings,
        "train": train,
        "seed": making.seed,
        **({"control": point.learnt} if point.learnt else {}),
    }


def _sample(making: Making) -> dict[str, Any]:
    point = making.point
    return {
        "base": making.models.digest,
        "task": making.keys["prepare"],
        "adapter": making.keys.get("train"),
        "sample": point.sample,
        "seed": making.seed,
        **({"control": point.control} if point.control else {}),
    }


def _evaluate(making: Making) -> dict[str, Any]:
    found = {"samples": making.keys["sample"], "reference": making.keys["reference"]}
    if "untouched" in making.keys:
        found["untouched"] = making.keys["untouched"]
    return found


def _explain(making: Making) -> dict[str, Any] | None:
    if making.study.explain is None:
        return None
    return {
        "base": making.models.digest,
        "task": making.keys["prepare"],
        "adapter": making.keys.get("train"),
        "explain": making.study.explain.model_dump(),
        "seed": making.seed,  # an untouched base has no adapter to tell its runs apart
    }


# --- the table ------------------------------------------------------------------------------

# What only training and sampling read of a prepared task: most of its bytes.
TOLD = ("latents.safetensors", "text.safetensors")
STAGES = {
    row.name: row
    for row in (
        Row(
            name="prior",
            version=1,
            does="Draw a class's images with the untouched base, once.",
            title="class images",
            reads={},
            outputs=("images.safetensors", "sheet.png"),
            material=_prior,
            slug=_of_prompt,
            by_task=True,
            gpu=True,
            minutes=60,
            memory_mb=4000,
            seconds=15,
        ),
        Row(
            name="prepare",
            version=1,
            does="Encode a task's images and captions once.",
            title="prepared task",
            reads={"prior": "prior"},
            outputs=(*TOLD, "images.safetensors", "manifest.json"),
            material=_prepare,
            slug=_of_task,
            by_task=True,
            minutes=30,
            memory_mb=4000,
            seconds=25,
            room="tasks",
        ),
        Row(
            name="reference",
            version=1,
            does="Compute a task's reference features once.",
            title="reference features",
            reads={"task": "prepare"},
            outputs=("features.safetensors",),
            material=_reference,
            slug=_of_task,
            by_task=True,
            judged=True,
            minutes=30,
            memory_mb=4000,
            seconds=7,
        ),
        Row(
            name="train",
            version=1,
            does="Train one run's adapter.",
            title="adapter",
            reads={"task": "prepare"},
            outputs=("adapter.safetensors", "history.csv"),
            material=_train,
            slug=_of_training,
            gpu=True,
            grouped=True,
            minutes=60,
            memory_mb=3000,
            seconds=13,
        ),
        Row(
            name="sample",
            version=1,
            does="Generate one run's samples.",
            title="samples",
            reads={"task": "prepare", "adapter": "train"},
            outputs=("samples.safetensors", "sheet.png"),
            material=_sample,
            slug=_of_run,
            gpu=True,
            grouped=True,
            minutes=60,
            memory_mb=3000,
            seconds=11,
        ),
        Row(
            name="evaluate",
            version=2,
            does="Compute one run's metrics.",
            title="metrics",
            reads={"samples": "sample", "reference": "reference", "untouched": "sample"},
            outputs=("metrics.json",),
            material=_evaluate,
            slug=_of_run,
            judged=True,
            gpu=True,
            grouped=True,
            minutes=30,
            memory_mb=3000,
            seconds=6,
        ),
        Row(
            name="explain",
            version=1,
            does="Explain one run: its sensitivity to the prompt, and what its parameters changed.",
            title="explanation",
            reads={"task": "prepare", "adapter": "train"},
            outputs=("explanation.json", "difference.png"),
            material=_explain,
            slug=_of_training,
            gpu=True,
            grouped=True,
            minutes=30,
            memory_mb=3000,
            seconds=6,
        ),
    )
}  # fmt: skip
# What a study is done with: the stages that no other one reads.
_READ = {read for row in STAGES.values() for read in row.reads.values()}
ENDS = tuple(name for name in STAGES if name not in _READ)
