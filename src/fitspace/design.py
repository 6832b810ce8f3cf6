"""From a study to its plan: factors -> points -> runs, each stage of a run with its key.

A *point* is a method with all its settings; a *run* is (point, task, seed). The key of a
stage is a short SHA-256 of the canonical JSON of exactly what determines its content, and
stands in its path: a changed setting is a new path, an unchanged one is already there, and
two studies that share a run share its files.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fitspace import bases, budget, methods, metrics
from fitspace.config import Arm, Study, Task, TrainSettings, absent, explain
from fitspace.errors import UserError
from fitspace.files import digest

# Raise a stage's number when its results change: a golden test holds the numbers in place.
VERSIONS = {"prior": 1, "prepare": 1, "reference": 1, "train": 1, "sample": 1, "evaluate": 2}
# Stage -> the stages of the same run whose results it reads.
UPSTREAM = {
    "prior": (), "prepare": ("prior",), "reference": ("prepare",), "train": ("prepare",),
    "sample": ("prepare", "train"), "evaluate": ("sample", "reference"),
}  # fmt: skip
PRIOR_STEPS = 20  # DPM-Solver++ steps of a class image
KEY_LENGTH = 12
RESULTS = Path("results")
MOST_CELLS, MOST_RUNS = 100_000, 1_000_000  # a few lines of factors can cross to any number


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


# --- points -----------------------------------------------------------------------------


def arm_problems(arms: Iterable[tuple[int, Arm]], base: Any, study: Study | None) -> list[str]:
    """Everything wrong with the arms' levels and cells, and with what the analysis names."""
    problems: list[str] = []
    family = None
    if isinstance(base, str):
        try:
            family = bases.family(base)
        except UserError as error:
            problems += error.problems
    for index, arm in arms:
        problems += [f"arms[{index}].{p}" for p in _problems_of(arm, base, family)]
    if study is not None and not problems:
        points, _ = expand(study)
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
        names = Counter((p.name, str(p.train)) for p in points)
        problems += [
            f"arms: the point {name!r} stands {count} times; each must be unique"
            for (name, _), count in names.items()
            if count > 1
        ]
        if (runs := len(points) * len(study.tasks) * len(study.seeds)) > MOST_RUNS:
            problems.append(f"seeds: {runs} runs in all; allowed: at most {MOST_RUNS}")
    return problems


def task_problems(study: Study) -> list[str]:
    """Everything that a study asks of its tasks and they cannot give."""
    problems, family = [], None
    with contextlib.suppress(UserError):  # arm_problems reports it
        family = bases.family(study.base)
    for i, task in enumerate(study.tasks):
        of_task = metrics.OF_HELD_OUT if task.dreambooth is None else metrics.OF_SUBJECT
        if task.dreambooth is None and study.inception is not None:
            of_task = (metrics.FID, *of_task)
        problems += [
            f"analysis.responses: {name!r} is not measured on task {task.name!r}; allowed: "
            f"{', '.join(of_task)}"
            for name in study.analysis.responses
            if name in metrics.NAMES and name not in of_task
        ]
        if task.scale != 1 and family == "unet":
            problems.append(
                f"tasks[{i}].scale: {task.scale}: base {study.base!r} is a U-Net; allowed: 1 (a "
                "DiT base takes more)"
            )
        if task.dreambooth is None:
            continue
        if family == "dit":
            problems.append(
                f"tasks[{i}].dreambooth: base {study.base!r} is told classes, not words; allowed: "
                "a base with a text encoder (U-Net)"
            )
        asked = len(task.dreambooth.prompts)
        if asked > study.sample.prompts:
            problems.append(
                f"sample.prompts: {study.sample.prompts}; task {task.name!r} has {asked} prompts "
                f"elsewhere; allowed: at least {asked}"
            )
    return problems


def _problems_of(arm: Arm, base: Any, family: str | None) -> list[str]:
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
        first = {level: i for i, level in reversed(list(enumerate(levels)))}
        for i, level in enumerate(levels):
            problems += _level_problems(model, f"factors.{factor}[{i}]", name, level)
            if first[level] < i:
                problems.append(f"factors.{factor}[{i}]: {level!r} stands more than once")
    for name, item in method.Settings.model_fields.items():
        if item.is_required() and name not in arm.settings and name not in arm.factors:
            problems.append(
                f"settings.{name}: missing; method {arm.method!r} needs it as a setting or a "
                f"factor (its settings: {', '.join(allowed)})"
            )
    problems += _budget_problems(arm)
    if (cells := math.prod(map(len, arm.factors.values()))) > MOST_CELLS:
        problems.append(f"factors: {cells} cells; allowed: at most {MOST_CELLS}")
    if problems or family is None:
        return problems
    legal, left_out = legal_cells(arm, family)
    illegal = []
    if arm.illegal_cells == "error" or arm.factors == {}:
        illegal = [_in_cell(factors, w) for factors, why in left_out for w in why]
    if illegal and arm.factors:
        illegal.append("illegal_cells: 'error': write `drop` to leave illegal cells out")
    if not legal and not illegal:
        reason = left_out[-1][1][0]
        illegal = [f"factors: every cell is illegal, no point is left; of the last: {reason}"]
    if not legal:
        return illegal
    try:
        chosen = chosen_cells(arm, legal)
    except UserError as error:
        return illegal + error.problems
    return illegal + [_in_cell(f, w) for f in chosen for w in _unmatched(arm, f, base)]


def _in_cell(factors: dict[str, Any], problem: str) -> str:
    return f"factors ({_levels(factors)}): {problem}" if factors else problem


def _levels(factors: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in factors.items())


def _budget_problems(arm: Arm) -> list[str]:
    """Why an arm's budget cannot be matched, whatever the base."""
    if arm.match_trainable is None:
        return []
    name = budget.knob(arm.method)
    if name is None:
        able = ", ".join(m for m in methods.METHODS if budget.knob(m))
        return [f"match_trainable: method {arm.method!r} has no width; allowed with: {able}"]
    given = [f"{key}.{name}" for key in ("settings", "factors") if name in getattr(arm, key)]
    return [f"{key}: match_trainable sets it; keep one of the two" for key in given]


def _unmatched(arm: Arm, factors: dict[str, Any], base: str) -> list[str]:
    try:
        _settings(arm, factors, base)
    except UserError as error:
        return error.problems
    return []


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


def legal_cells(
    arm: Arm, family: str
) -> tuple[list[dict[str, Any]], list[tuple[dict[str, Any], list[str]]]]:
    """An arm's cells that its method can build, and the others, each with the reasons."""
    legal, others = [], []
    for factors in _cells(arm):
        why = methods.problems(arm.method, _settings(arm, factors), family)
        if why:
            others.append((factors, why))
        else:
            legal.append(factors)
    return legal, others


def chosen_cells(arm: Arm, legal: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The legal cells that an arm runs: all, or its D-optimal subset, in their order.

    Raises
    ------
    UserError : a subset too small for the main effects, or larger than the number of cells.
    """
    if arm.subset is None:
        return legal
    if not arm.factors:
        raise UserError(f"subset: {arm.subset}: the arm has no factors; leave it out")
    rows = _d_optimal(tuple(arm.factors), tuple(tuple(c.values()) for c in legal), arm.subset)
    return [legal[row] for row in rows]


@cache
def _d_optimal(factors: tuple[str, ...], cells: tuple[tuple, ...], n: int) -> tuple[int, ...]:
    import pandas as pd

    from fitspace.stats import d_optimal

    try:
        return tuple(d_optimal(pd.DataFrame(cells, columns=factors), factors, n).index)
    except UserError as error:
        raise UserError(f"subset: {problem}" for problem in error.problems) from None


def _settings(arm: Arm, factors: dict[str, Any], base: str | None = None) -> Any:
    """The method's settings in a cell; with a base, as wide as the arm's budget says."""
    own = {k: v for k, v in factors.items() if not k.startswith("train.")} | arm.settings
    if arm.match_trainable is not None and base is not None:
        width = budget.width(base, arm.method, own, arm.match_trainable)
        own[budget.knob(arm.method)] = width
    return methods.get(arm.method).Settings(**own)


def expand(study: Study) -> tuple[list[Point], list[str]]:
    """A study's points, and the cells left out, each with its reason."""
    family = bases.family(study.base)
    points, dropped = [], []
    for arm in study.arms:
        method = methods.get(arm.method)
        legal, others = legal_cells(arm, family)
        dropped += [f"{arm.title} ({_levels(f)}): {why[0]}" for f, why in others]
        for factors in chosen_cells(arm, legal):
            settings = _settings(arm, factors, study.base)
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
    UserError : when the base, the judge or a task's images are not there, or :func:`digests`.
    """
    if missing := absent(study):
        raise UserError(missing)
    points, dropped = expand(study)
    base, judge = _models(study)
    _hold(study, base, judge)
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


def digests(study: Study) -> dict[str, str]:
    """What a study can hold its models to: the keys, such as ``base_sha256``, and their values.

    Raises
    ------
    UserError : a model that is not here, or is another one than the study holds it to.
    """
    return _hold(study, *_models(study))


def _models(study: Study) -> tuple[str, dict]:
    """The base's digest, and what decides the metrics."""
    return bases.digest(bases.resolve(study.base)), metrics.identity(study.judge, study.inception)


def _hold(study: Study, base: str, evaluator: dict) -> dict[str, str]:
    """As :func:`digests`, of models that were looked at."""
    found = {"base": base, "judge": evaluator["judge"]}
    if study.inception is not None:
        found["inception"] = evaluator["inception"]
    if others := [
        f"{key}_sha256: {wanted}; {getattr(study, key)!r} here is {value}; allowed: the {key} "
        "that the study was made for, or its new SHA-256"
        for key, value in found.items()
        if (wanted := getattr(study, f"{key}_sha256")) not in (None, value)
    ]:
        raise UserError(others)
    return {f"{key}_sha256": value for key, value in found.items()}


def unchanged(study: Study, run: Run) -> bool:
    """Whether base and judge are still those that a run's keys were made of."""
    try:
        base, judge = _models(study)
    except UserError:
        return False
    same_judge = _reference(study, run.task, run.prepare, judge) == run.reference
    return same_judge and base == run.sample.material["base"]


def pins(study: Study) -> list[str]:
    """Lines for a study's file that hold it to the models and data sets here; those it lacks.

    Raises
    ------
    UserError : as :func:`digests`; a data set that is not here.
    """
    from fitspace import data

    lines = [f"{k}: {v}" for k, v in digests(study).items() if getattr(study, k) is None]
    loose = [t for t in study.tasks if t.source == "hub" and "@" not in t.dataset]
    lines += [f"dataset: {task.dataset}@{data.identity(task)['commit']}" for task in loose]
    return list(dict.fromkeys(lines))


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
    from fitspace import data

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
