"""From a study to its plan: factors -> points -> runs, each stage of a run with its key.

A *point* is a method with all its settings; a *run* is (point, task, seed). The key of a
stage is a short SHA-256 of the canonical JSON of exactly what determines its content, and
stands in its path: a changed setting is a new path, an unchanged one is already there, and
two studies that share a run share its files.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fitspace import bases, methods, metrics
from fitspace.config import Arm, Study, Task, TrainSettings, explain
from fitspace.errors import UserError
from fitspace.files import digest

# Raise a stage's number when its results change: a golden test holds the numbers in place.
VERSIONS = {"prepare": 1, "reference": 1, "train": 1, "sample": 1, "evaluate": 1}
KEY_LENGTH = 12
RESULTS = Path("results")


@dataclass(frozen=True)
class Point:
    """One combination of factor levels.

    ``factors`` holds the levels by column name; ``settings`` the method's complete settings
    and ``train`` the complete training settings (None where nothing is trained).
    """

    arm: str
    method: str
    factors: dict[str, Any]
    settings: dict[str, Any]
    train: dict[str, Any] | None
    slug: str

    @property
    def name(self) -> str:
        """The slug, and the levels of training factors, which it has not: unique in a study."""
        own = [f"{k[6:]}{v}" for k, v in self.factors.items() if k.startswith("train.")]
        return ".".join([self.slug, *own])


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
    """The experimental unit. ``train`` is None where nothing is trained."""

    point: Point
    task: Task
    seed: int
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
        every = (self.prepare, self.reference, self.train, self.sample, self.evaluate)
        return [stage for stage in every if stage is not None]


@dataclass(frozen=True)
class Plan:
    """Everything a study will do, known before anything runs."""

    study: Study
    points: list[Point]
    runs: list[Run]
    dropped: list[str] = field(default_factory=list)

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


# --- points -----------------------------------------------------------------------------


def arm_problems(arms: Iterable[tuple[int, Arm]], base: Any, study: Study | None) -> list[str]:
    """Everything wrong with the arms' levels and cells, and with what the analysis names."""
    problems: list[str] = []
    family = None
    if isinstance(base, str):
        try:
            family = bases.family(bases.resolve(base))
        except UserError as error:
            problems += error.problems
    for index, arm in arms:
        problems += [f"arms[{index}].{p}" for p in _problems_of(arm, family)]
    if study is not None and not problems:
        points, _ = _expand(study)
        columns = sorted({c for p in points for c in p.factors} | {"method", "arm"})
        problems += [
            f"analysis.factors[{i}]: {f!r} is no factor of any arm; allowed: {', '.join(columns)}"
            for i, f in enumerate(study.analysis.factors)
            if f not in columns
        ]
        for key, named in (
            ("responses", study.analysis.responses),
            ("transform", list(study.analysis.transform)),
        ):
            problems += [
                f"analysis.{key}: {name!r} is no metric; allowed: {', '.join(metrics.NAMES)}"
                for name in named
                if name not in metrics.NAMES
            ]
        names = [(p.name, str(p.train)) for p in points]
        problems += [
            f"arms: the point {name!r} stands {names.count((name, t))} times; each must be unique"
            for name, t in dict.fromkeys(n for n in names if names.count(n) > 1)
        ]
    return problems


def _problems_of(arm: Arm, family: str | None) -> list[str]:
    if arm.method not in methods.METHODS:
        return [f"method: {arm.method!r} is no method; allowed: {', '.join(methods.METHODS)}"]
    method = methods.get(arm.method)
    allowed = sorted(method.Settings.model_fields)
    problems = []
    for key, value in arm.settings.items():
        problems += _level_problems(method.Settings, f"settings.{key}", key, value)
        if key in arm.factors:
            problems.append(f"settings.{key}: is also a factor of this arm; keep one of the two")
    for key, value in arm.train.items():
        problems += _level_problems(TrainSettings, f"train.{key}", key, value)
        if f"train.{key}" in arm.factors:
            problems.append(f"train.{key}: is also a factor of this arm; keep one of the two")
    own_training = [*arm.train, *(f for f in arm.factors if f.startswith("train."))]
    if own_training and not method.trains:
        problems.append(f"train: method {arm.method!r} trains nothing; leave out {own_training}")
    for factor, levels in arm.factors.items():
        model, name = method.Settings, factor
        if factor.startswith("train."):
            model, name = TrainSettings, factor.removeprefix("train.")
        if not levels:
            problems.append(f"factors.{factor}: []: a factor needs at least one level")
        for i, level in enumerate(levels):
            problems += _level_problems(model, f"factors.{factor}[{i}]", name, level)
            if level in levels[:i]:
                problems.append(f"factors.{factor}[{i}]: {level!r} stands more than once")
    for name, item in method.Settings.model_fields.items():
        if item.is_required() and name not in arm.settings and name not in arm.factors:
            problems.append(
                f"settings.{name}: missing; method {arm.method!r} needs it as a setting or a "
                f"factor (its settings: {', '.join(allowed)})"
            )
    if problems or family is None:
        return problems
    built, illegal = 0, []
    for factors in _cells(arm):
        why = methods.problems(arm.method, _settings(arm, factors), family)
        built += not why
        if arm.illegal_cells == "error" or arm.factors == {}:
            where = ", ".join(f"{k}={v}" for k, v in factors.items())
            illegal += [f"factors ({where}): {w}" if where else w for w in why]
    if illegal and arm.factors:
        illegal.append("illegal_cells: 'error': write `drop` to leave illegal cells out")
    if not built and not illegal:
        illegal = ["factors: every cell is illegal; no point is left"]
    return illegal


def _level_problems(model: type, key: str, name: str, value: Any) -> list[str]:
    if name not in model.model_fields:
        return [f"{key}: unknown; allowed: {', '.join(sorted(model.model_fields))}"]
    try:
        model.__pydantic_validator__.validate_assignment(model.model_construct(), name, value)
    except ValidationError as error:
        found = [p.partition(": ")[2] for p in explain(error, model)]
        return [f"{key}: {p}" for p in dict.fromkeys(found)]
    return []


def _cells(arm: Arm) -> Iterable[dict[str, Any]]:
    names = list(arm.factors)
    for levels in itertools.product(*arm.factors.values()):
        yield dict(zip(names, levels, strict=True))


def _settings(arm: Arm, factors: dict[str, Any]) -> Any:
    own = {k: v for k, v in factors.items() if not k.startswith("train.")}
    return methods.get(arm.method).Settings(**arm.settings, **own)


def _expand(study: Study) -> tuple[list[Point], list[str]]:
    family = bases.family(bases.resolve(study.base))
    points, dropped = [], []
    for arm in study.arms:
        method = methods.get(arm.method)
        for factors in _cells(arm):
            settings = _settings(arm, factors)
            why = methods.problems(arm.method, settings, family)
            if why:
                where = ", ".join(f"{k}={v}" for k, v in factors.items())
                dropped.append(f"{arm.title} ({where}): {why[0]}")
                continue
            train = None
            if method.trains:
                own = {
                    k.removeprefix("train."): v
                    for k, v in factors.items()
                    if k.startswith("train.")
                }
                train = TrainSettings(**(study.train.model_dump() | arm.train | own)).model_dump()
            points.append(
                Point(
                    arm.title,
                    arm.method,
                    factors,
                    settings.resolved(family),
                    train,
                    _slug(settings, arm),
                )
            )
    return points, dropped


def _slug(settings: Any, arm: Arm) -> str:
    """``method.required-settings.other-settings-that-differ``: from content, not from the study."""
    required, other = [], []
    for name, item in type(settings).model_fields.items():
        value = getattr(settings, name)
        if item.is_required():
            required.append(f"{value}")
        elif value != item.default:
            other.append(f"{name}{value}" if not isinstance(value, str) else value)
    parts = [arm.method, "-".join(required), *other]
    return re.sub(r"[^A-Za-z0-9_.+-]", "_", ".".join(p for p in parts if p))[:80]


# --- keys and paths ---------------------------------------------------------------------


def build_plan(study: Study) -> Plan:
    """Expand a study into points, runs, keys and paths.

    Raises
    ------
    UserError : when the base, the judge or a task's images are not there.
    """
    points, dropped = _expand(study)
    base = bases.digest(bases.resolve(study.base))
    judge = metrics.identity(study.judge)
    prepared = {task.name: _prepare(task, base) for task in study.tasks}
    references = {name: _reference(task, judge) for name, task in prepared.items()}
    # Seeds vary slowest: every point has its first run before any has its second.
    runs = [
        _run(study, point, task, seed, base, prepared[task.name], references[task.name])
        for seed in study.seeds
        for task in study.tasks
        for point in points
    ]
    return Plan(study, points, runs, dropped)


def _stage(name: str, slug: str, material: dict[str, Any]) -> Stage:
    material = {"stage": name, "version": VERSIONS[name], **material}
    key = digest(material)[:KEY_LENGTH]
    room = {"prepare": "tasks"}.get(name, name)
    return Stage(name, RESULTS / room / f"{slug}~{key}", key, material)


def _prepare(task: Task, base: str) -> Stage:
    from fitspace import data

    return _stage("prepare", task.name, {"base": base, "source": data.identity(task)})


def _reference(prepare: Stage, judge: dict[str, Any]) -> Stage:
    slug = prepare.folder.name.partition("~")[0]
    return _stage("reference", slug, {"task": prepare.key, "evaluator": judge})


def _run(
    study: Study,
    point: Point,
    task: Task,
    seed: int,
    base: str,
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
    return Run(point, task, seed, prepare, reference, train, sample, evaluate)
