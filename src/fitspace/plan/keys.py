"""A study's plan: its runs, each stage of a run with its key.

A *point* is a method with all its settings; a *run* is (point, task, seed). The key of a
stage is a short SHA-256 of the canonical JSON of exactly what determines its content, and
stands in its path: a changed setting is a new path, an unchanged one is already there, and
two studies that share a run share its files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fitspace import bases, data
from fitspace.core.errors import UserError
from fitspace.core.files import digest
from fitspace.core.paths import RESULTS
from fitspace.plan.models import absent, hold, looked_at
from fitspace.plan.points import (
    Point,
    expand,
)
from fitspace.plan.table import UPSTREAM, VERSIONS
from fitspace.study import Study, Task

PRIOR_STEPS = 20  # DPM-Solver++ steps of a class image
KEY_LENGTH = 12


@dataclass(frozen=True)
class Stage:
    """One stage of one run or task: its folder, its key and what the key was made of."""

    name: str
    folder: Path
    key: str
    material: dict[str, Any]

    @property
    def sidecar(self) -> Path:
        return self.folder / f"{self.name}.json"


@dataclass(frozen=True)
class Run:
    """The experimental unit. ``train`` is None where nothing is trained.

    ``prior`` makes the class images of a DreamBooth task with prior preservation, else None.
    """

    point: Point
    task: Task
    seed: int
    prior: Stage | None
    prepare: Stage
    reference: Stage
    train: Stage | None
    sample: Stage
    evaluate: Stage

    @property
    def name(self) -> str:
        return self.evaluate.folder.name

    @property
    def stages(self) -> list[Stage]:
        every = (
            self.prior,
            self.prepare,
            self.reference,
            self.train,
            self.sample,
            self.evaluate,
        )
        return [stage for stage in every if stage is not None]

    def upstream(self, stage: str) -> list[Stage]:
        """The stages whose results one of this run's stages reads."""
        return [s for name in UPSTREAM[stage] if (s := getattr(self, name)) is not None]


@dataclass(frozen=True)
class Plan:
    """Everything a study will do, known before anything runs."""

    study: Study
    points: list[Point]
    runs: list[Run]
    dropped: list[str] = field(default_factory=list)

    @cached_property
    def factors(self) -> list[str]:
        """The factors of all arms, each once."""
        return list(dict.fromkeys(name for point in self.points for name in point.factors))

    @cached_property
    def stages(self) -> dict[tuple[str, str], Stage]:
        """(stage name, folder name) -> stage, each once."""
        return {(s.name, s.folder.name): s for run in self.runs for s in run.stages}

    @cached_property
    def _first_run(self) -> dict[tuple[str, str], Run]:
        found: dict[tuple[str, str], Run] = {}
        for run in self.runs:
            for stage in run.stages:
                found.setdefault((stage.name, stage.folder.name), run)
        return found

    def run_of(self, stage: str, folder: str) -> Run:
        """A run that has this stage. Raises UserError when the study has none."""
        try:
            return self._first_run[stage, folder]
        except KeyError:
            known = sorted(f for s, f in self._first_run if s == stage)
            raise UserError(
                f"{stage}: {folder!r} is not in study {self.study.name!r} as it stands now; "
                f"allowed: {', '.join(known[:5])}{' ...' if len(known) > 5 else ''}"
            ) from None


def build_plan(study: Study) -> Plan:
    """Expand a study into points, runs, keys and paths.

    Raises
    ------
    UserError : when the base, the judge or a task's images are not there, or :func:`digests`.
    """
    if missing := absent(study):
        raise UserError(missing)
    points, dropped = expand(study)
    base, judge = looked_at(study)
    hold(study, base, judge)
    by_class = bases.family(study.base) == "dit"
    shared = {t.name: _shared(study, t, base, judge, by_class) for t in study.tasks}
    # Seeds vary slowest: every point has its first run before any has its second.
    runs = [
        _run(study, point, task, seed, base, *shared[task.name])
        for seed in study.seeds
        for task in study.tasks
        for point in points
    ]
    return Plan(study, points, runs, dropped)


def unchanged(study: Study, run: Run) -> bool:
    """Whether base and judge are still those that a run's keys were made of."""
    try:
        base, judge = looked_at(study)
    except UserError:
        return False
    same_judge = _reference(study, run.task, run.prepare, judge) == run.reference
    return same_judge and base == run.sample.material["base"]


def _stage(name: str, slug: str, material: dict[str, Any]) -> Stage:
    material = {"stage": name, "version": VERSIONS[name], **material}
    key = digest(material)[:KEY_LENGTH]
    room = {"prepare": "tasks"}.get(name, name)
    return Stage(name, RESULTS / room / f"{slug}~{key}", key, material)


def _shared(
    study: Study, task: Task, base: str, judge: dict[str, Any], by_class: bool
) -> tuple[Stage | None, Stage, Stage]:
    """What all runs of a task share: prior, prepare and reference."""
    prior = _prior(task, base)
    prepare = _prepare(task, base, by_class, prior)
    return prior, prepare, _reference(study, task, prepare, judge)


def _prior(task: Task, base: str) -> Stage | None:
    """Class images, shared by all tasks of one class."""
    subject = task.dreambooth
    if subject is None or subject.prior_weight == 0:
        return None
    (prompt,) = subject.asked["class"]
    settings = {
        "prompt": prompt,
        "images": subject.class_images,
        "guidance": subject.class_guidance,
        "steps": PRIOR_STEPS,
    }
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40] or "class"
    return _stage("prior", slug, {"base": base, **settings})


def _prepare(task: Task, base: str, by_class: bool, prior: Stage | None) -> Stage:
    material = {"base": base, "source": data.identity(task, by_class)}
    if task.scale != 1:
        material["scale"] = task.scale
    if task.dreambooth is not None:
        own = task.dreambooth.model_dump(exclude={"class_images", "class_guidance"})
        material |= {"dreambooth": own, "prior": prior.key if prior else None}
    return _stage("prepare", task.name, material)


def _reference(study: Study, task: Task, prepare: Stage, judge: dict[str, Any]) -> Stage:
    material = {"task": prepare.key, "evaluator": judge}
    if task.dreambooth is not None:  # the base's own images of the class are among them
        material["evaluator"] = {k: v for k, v in judge.items() if k != "inception"}
        material["sample"] = study.sample.model_dump()
    return _stage("reference", task.name, material)


def _run(
    study: Study,
    point: Point,
    task: Task,
    seed: int,
    base: str,
    prior: Stage | None,
    prepare: Stage,
    reference: Stage,
) -> Run:
    slug = f"{point.slug}~{task.name}~s{seed}"
    train = None
    if point.train is not None:
        train = _stage(
            "train",
            slug,
            {
                "base": base,
                "task": prepare.key,
                "method": point.method,
                "settings": point.settings,
                "train": point.train,
                "seed": seed,
            },
        )
    sample = _stage(
        "sample",
        slug,
        {
            "base": base,
            "task": prepare.key,
            "adapter": train.key if train else None,
            "sample": study.sample.model_dump(),
            "seed": seed,
        },
    )
    evaluate = _stage("evaluate", slug, {"samples": sample.key, "reference": reference.key})
    return Run(point, task, seed, prior, prepare, reference, train, sample, evaluate)
