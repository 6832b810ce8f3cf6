"""A study file read and checked against what its base and methods can do: every problem at once."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from fitspace import bases, data, methods, metrics
from fitspace.bases import quantized
from fitspace.core.errors import UserError
from fitspace.core.reading import explain
from fitspace.core.texts import one_number, shown
from fitspace.plan import cost
from fitspace.plan.keys import Plan, build_plan
from fitspace.plan.models import REWARD_KEY, Models
from fitspace.plan.points import (
    Point,
    chosen_cells,
    in_words,
    legal_cells,
    own_drawing,
    settings_of,
)
from fitspace.plan.table import PRIOR_STEPS
from fitspace.study import (
    BUDGET,
    CHECKPOINT,
    CONTROL,
    CONTROLS,
    DRAWN,
    EXTRAPOLATED,
    LEARNT,
    OF_ARM,
    OF_CONTROL,
    REWARD_FACTORS,
    REWARD_THROUGH,
    REWARD_WEIGHT,
    WHOLE,
    Arm,
    Reward,
    SampleSettings,
    Study,
    Task,
    TrainSettings,
)
from fitspace.study.reading import parts
from fitspace.study.tuning import derived

if TYPE_CHECKING:
    import pandas as pd

    from fitspace.data.survey import Survey

ANY_SIZE = 64  # px: whether an image can be read does not depend on it
OF_METHOD = ("strength", "blocks")  # settings of sample that change what a method does
MOST_CELLS, MOST_RUNS = 100_000, 1_000_000  # a few lines of factors can cross to any number


def checked(path: str | Path, in_job: bool = False) -> tuple[Study, Models]:
    """A study file's study, and what it names outside itself.

    ``in_job``: for a job of a study that its driver has checked. What a task holds, which takes
    longer to look at, is not looked at again.

    Raises
    ------
    UserError : every problem of the file, each naming the key, the value and what is
        allowed: unknown keys, wrong types, impossible levels and illegal cells alike.
    """
    study, base, arms, problems = parts(path)
    models = None if study is None else Models(study)
    problems = problems + arm_problems(arms, base, models)
    if models is not None:
        problems += _other_problems(study, models, in_job or bool(problems))
        if study.tuning is not None and not problems and not in_job:
            problems += [f"tuning: {problem}" for problem in _tuning_problems(study, models)]
    if problems:
        raise UserError(f"{path}: {p}" for p in problems)
    return study, models


def _other_problems(study: Study, models: Models, quickly: bool) -> list[str]:
    """What is wrong beside the arms; ``quickly``: without a look at what the tasks hold."""
    problems = metric_problems(study) + task_problems(study) + models.problems
    problems += reward_problems(models)
    return problems if problems or quickly else content_problems(study, models)


def _tuning_problems(study: Study, models: Models) -> list[str]:
    """What is wrong with the tuning of a sound study, as the study that it is."""
    own = derived(study)
    of_tuning = models.of(own)
    problems = arm_problems(enumerate(own.arms), own.base, of_tuning)
    return problems + _other_problems(own, of_tuning, bool(problems))


def load_study(path: str | Path) -> Study:
    """Read and validate a study file; errors as :func:`checked` has them."""
    return checked(path)[0]


def planned(path: str | Path, in_job: bool = False) -> Plan:
    """The plan of a study file; errors as :func:`checked` and `build_plan` have them."""
    return build_plan(*checked(path, in_job))


def analysable(plan: Plan) -> None:
    """That the runs of a plan can be compared, for whoever wants their report.

    Raises UserError where an analysis could test nothing: before anything runs.
    """
    if problems := analysis_problems(plan.models):
        raise UserError(problems)


def content_problems(study: Study, models: Models) -> list[str]:
    """What a study asks of its tasks' images and captions and is not among them."""
    problems = []
    asked = study.sample.captions
    for i, task in enumerate(study.tasks):
        if not models.here(task.name):
            continue
        try:
            known = models.outline(task)
        except UserError as error:
            problems += [f"tasks[{i}]: {problem}" for problem in error.problems]
            continue
        if known is None or task.dreambooth is not None:
            continue
        if asked > (most := data.most_prompts(task, known, asked)):
            problems.append(too_many_prompts(study.sample, task.name, most))
        if models.here("base") and models.by_class:
            new = sorted(known.told - bases.labels(models.base).keys())
            problems += _untrained(models, task.name, new) if new else []
    return problems


def too_many_prompts(sample: SampleSettings, task: str, most: int) -> str:
    """That a task has fewer held-out images than are asked for."""
    asked, left = f"sample.prompts: {sample.prompts}", most - sample.validation
    if sample.validation:
        asked += f" with sample.validation: {sample.validation}"
    allowed = f"4 to {left}" if left >= 4 else f"a task with {4 + sample.validation} or more"
    return (
        f"{asked}: task {task!r} has only {most} held-out images (one of each group counts); "
        f"allowed: {allowed}"
    )


def usable(plan: Plan) -> None:
    """That base and judge can be used, where a run of the plan has yet to be made.

    Raises UserError with what is wrong with them: before anything runs, and not in its jobs.
    """
    if all(run.finished for run in plan.runs):
        return
    problems = _base_problems(plan.study, plan.models)
    problems += _unusable_reward(plan.study)
    if problems := problems + metrics.problems(plan.study.judge):
        raise UserError(problems)


def reward_problems(models: Models) -> list[str]:
    """Why a study's rewards cannot be given, or would judge themselves."""
    study, reward = models.study, models.study.train.reward
    if reward is None:
        return [
            f"arms[{i}].factors.{factor}: the study has no reward; needed: train.reward"
            for i, arm in enumerate(study.arms)
            for factor in REWARD_FACTORS
            if factor in arm.factors
        ]
    problems = []
    backs = {"train.reward.through": reward.through}
    for i, arm in enumerate(study.arms):
        levels = arm.factors.get(REWARD_THROUGH, [])
        backs |= {f"arms[{i}].factors.{REWARD_THROUGH}[{j}]": k for j, k in enumerate(levels)}
        if levels and 0 in arm.factors.get(REWARD_WEIGHT, []):
            problems.append(
                f"arms[{i}].factors.{REWARD_WEIGHT}: 0: without a reward {REWARD_THROUGH} changes "
                "nothing; allowed: another weight, and an arm with `train: {reward: null}`"
            )
    problems += [
        f"{key}: {k}; allowed: at most train.reward.steps, {reward.steps}"
        for key, k in backs.items()
        if k > reward.steps
    ]
    with contextlib.suppress(UserError):  # others report it
        if reward.against == "caption" and bases.family(study.base).by_class:
            problems.append(
                "train.reward.against: 'caption': the base is told classes, not words; allowed: "
                "target"
            )
    judging = {"judge": study.judge} | {name: f"@{path}" for name, path in study.weights.items()}
    for name, reference in judging.items():
        with contextlib.suppress(UserError):  # not here, or no model
            # One that is not here yet is known by its name alone.
            same = reference == reward.model
            if same or metrics.weights_of(reference) & metrics.weights_of(reward.model):
                problems.append(
                    f"{REWARD_KEY}: {reward.model!r}: has the weights of {name!r}, which evaluates "
                    "the study: whatever pleases it would be found good; allowed: another model"
                )
    return problems


def _unusable_reward(study: Study) -> list[str]:
    """What goes wrong with the rewarding model when it is tried."""
    if study.train.reward is None:
        return []
    found = metrics.problems(study.train.reward.model)
    return [f"{REWARD_KEY}: {problem.removeprefix('judge: ')}" for problem in found]


def _base_problems(study: Study, models: Models) -> list[str]:
    steps = {point.sample["steps"] for point in models.points[0]}
    if any(task.dreambooth is not None for task in study.tasks):
        steps.add(PRIOR_STEPS)
    found = [p for count in sorted(steps) for p in bases.problems(models.base, count)]
    problems = [f"base: {study.base}: {problem}" for problem in dict.fromkeys(found)]
    forms = dict.fromkeys((point.train or {}).get("base_weights") for point in models.points[0])
    if why := quantized.missing():
        problems += [f"train.base_weights: {form!r}: {why}" for form in forms if form]
    return problems


def looked(study: Study, models: Models) -> list[str]:
    """Look at all that a run would use: weights are loaded, images decoded, points built, once.

    What is not on this machine is left out. Returns what is to be said of each task, in lines.

    Raises
    ------
    UserError : everything that would fail a job.
    """
    from fitspace.data import given

    problems, lines = analysis_problems(models), []
    if models.here("base"):
        problems += _base_problems(study, models)
    if models.here("judge"):
        problems += metrics.problems(study.judge) + _unusable_reward(study)
    if models.here("base") and not problems:
        problems = _unbuilt(models)
    for task in study.tasks:
        if models.here(task.name):
            problems += [f"task {task.name!r}: {p}" for p in given.problems(task, ANY_SIZE)]
        if models.here(task.name) and (found := _survey(study, models, task)):
            problems += [f"task {task.name!r}: {problem}" for problem in found.refused]
            lines += _said(task.name, found)
    if problems:
        raise UserError([*problems, *lines])
    if models.here("base") and models.here("judge") and (why := models.line_endings):
        lines.append(f"note: {why.removeprefix('; ')}")
    return lines


def _survey(study: Study, models: Models, task: Task) -> Survey | None:
    from fitspace.data.survey import survey

    if task.source == "openmoji":
        return None
    size, known = ANY_SIZE, None
    if models.here("base"):
        size = bases.image_size(models.base) * task.scale
        known = bases.labels(models.base).keys() if models.by_class else None
    return survey(task, models.source(task), size, known)


def _said(task: str, found: Survey) -> list[str]:
    refused = f", {len(found.refused)} kinds refused" if found.refused else ""
    lines = [f"task {task}: {found.usable} images usable, {found.held_out} held out{refused}"]
    lines += [f"task {task}: converted: {', '.join(found.converted)}"] if found.converted else []
    return lines + [f"task {task}: note: {note}" for note in found.notes]


def _unbuilt(models: Models) -> list[str]:
    """Points that cannot be built on the base, though their settings are right."""
    from fitspace.plan import counting

    problems = []
    for point in models.points[0]:
        try:
            counting.count(models.study.base, point.method, point.settings, point.learnt)
        except UserError as error:
            where = f"arm {point.arm!r}, point {point.name!r}"
            if point.learnt == "controlnet":
                where += ", in the copy of the encoder"
            problems += [f"{where}: {p}" for p in error.problems]
        except Exception as error:  # of a denoiser that nobody tried this on, anything
            problems.append(f"arm {point.arm!r}, point {point.name!r} cannot be built: {error!r}")
    parts = dict.fromkeys(b for p in models.points[0] if (b := p.sample.get("blocks")))
    if parts and not problems:
        known = counting.modules(models.study.base)
        problems += [problem for part in parts for problem in methods.unknown_blocks(part, known)]
    return problems


def _untrained(models: Models, task: str, classes: list[str]) -> list[str]:
    """The arms that leave the embeddings of a task's own classes as they are drawn at first."""
    arms = {p.arm for p in models.points[0] if not trains_classes(p.method, p.settings)}
    return [
        f"arms[{i}]: task {task!r} has classes that the base does not know ({shown(classes)}), and "
        f"method {arm.method!r} does not train their embeddings; allowed: a method that trains "
        "them (full, or class_embedding: true)"
        for i, arm in enumerate(models.study.arms)
        if arm.title in arms
    ]


def trains_classes(method: str, settings: dict[str, Any]) -> bool:
    """Whether a method trains the embeddings of classes that its base does not know."""
    return method == "full" or bool(settings.get("class_embedding"))


def arm_problems(arms: Iterable[tuple[int, Arm]], base: Any, models: Models | None) -> list[str]:
    """Everything wrong with the arms' levels and cells, and with what the analysis names."""
    problems: list[str] = []
    family = None
    if isinstance(base, str):
        try:
            family = bases.family(base)
        except UserError as error:
            problems += error.problems
    for index, arm in arms:
        own = _problems_of(arm, base, family.name if family else None)
        own += _control_problems(arm, family)
        problems += [f"arms[{index}].{p}" for p in own]
    if models is not None and not problems:
        study, (points, _) = models.study, models.points
        columns = sorted({c for p in points for c in p.factors} | {"method", "arm"})
        problems += [
            f"analysis.factors[{i}]: {f!r} is no factor of any arm; allowed: {', '.join(columns)}"
            for i, f in enumerate(study.analysis.factors)
            if f not in columns
        ]
        if copying := metrics.alone(study.analysis.responses):
            problems.append(
                f"analysis.responses: {', '.join(copying)} without a metric of the text or of "
                "diversity: an adapter that copies its training images has the highest CLIP-I; "
                f"needed beside it: {' or '.join(metrics.SHOW_COPIES)}"
            )
        same = Counter(p.identity for p in points)
        counts = {point.name: same[point.identity] for point in points}
        budgets = {point.name for point in points if BUDGET in point.factors}
        problems += [
            f"arms: the point {name!r} stands {count} times; each must be unique"
            + (f"; {BUDGET}: budgets that are farther apart" if name in budgets else "")
            for name, count in counts.items()
            if count > 1
        ]
        problems += _two_ways(study)
        problems += _too_short(study, points) + _at_once(study, points)
        problems += _without_effect(study, points)
        problems += _few_bits(study, points)
        problems += _within_problems(study)
        problems += _given_problems(study) + _one_unit(points)
        problems += _untold(study, cost.distilled(study))
        if family is not None:
            problems += _process_problems(study, points, family.flows)
        if (runs := len(points) * len(study.tasks) * len(study.seeds)) > MOST_RUNS:
            problems.append(f"seeds: {runs} runs in all; allowed: at most {MOST_RUNS}")
    return problems


def _within_problems(study: Study) -> list[str]:
    """What is wrong with factors that vary within a training."""
    problems = [
        f"analysis.factors: {name!r} varies within a training, and its levels are no runs of their "
        "own; allowed: leave it out, the report has a section for it"
        for name in study.analysis.factors
        if name in DRAWN or name == CHECKPOINT
    ]
    problems += [
        f"sample.{name}: {getattr(study.sample, name)!r}; allowed: a factor sample.{name} of the "
        "arms that train"
        for name in OF_METHOD
        if getattr(study.sample, name) != SampleSettings.model_fields[name].default
    ]
    of_subject = [task.name for task in study.tasks if task.dreambooth is not None]
    if study.sample.validation:
        if study.train.checkpoints is None:
            problems.append(
                f"sample.validation: {study.sample.validation}: chooses among train.checkpoints; "
                "allowed: with these"
            )
        if of_subject:
            problems.append(
                f"sample.validation: {study.sample.validation}: task {of_subject[0]!r} holds no "
                "image out; allowed: without dreambooth"
            )
    for i, arm in enumerate(study.arms):
        problems += [
            f"arms[{i}].factors.{factor}: {levels}: without {own!r}, as the study's sample has it; "
            "needed: this level, which the analysis takes"
            for factor, levels in arm.within.items()
            if (own := getattr(study.sample, DRAWN[factor])) not in levels
        ]
        problems += [
            f"arms[{i}].factors.{factor}: task {of_subject[0]!r} compares a run's images of its "
            f"class with the base's, drawn with the study's {factor}; allowed: without dreambooth"
            for factor in arm.within
            if of_subject and DRAWN[factor] in ("guidance", "steps")
        ]
    return problems


def _untold(study: Study, distilled: bool) -> list[str]:
    """Where a guidance of 0 cannot leave the caption untold."""
    scales = {"sample": [study.sample.guidance]} | {
        f"arms[{i}].factors.sample": arm.factors.get("sample.guidance", [])
        for i, arm in enumerate(study.arms)
    }
    needed = [f"task {t.name!r} asks for its subject by words" for t in study.tasks if t.dreambooth]
    if distilled:
        needed.append("the base is told its caption and the scale at once")
    return [
        f"{key}.guidance: 0: {why}; allowed: 1 and more"
        for key, levels in scales.items()
        for why in needed
        if 0 in levels
    ]


def _control_problems(arm: Arm, family: bases.Family | None) -> list[str]:
    """Why an arm's points cannot be told of a given image as they should be."""
    key = f"factors.{CONTROL}" if CONTROL in arm.factors else CONTROL
    asked = [control for control in arm.controls if control in CONTROLS]
    problems = []
    if family is not None:
        problems += [
            f"{key}: {control!r}: nobody here tells a {family.title} of an image so; allowed: "
            f"{', '.join(family.controls) or 'null'}"
            for control in asked
            if control not in family.controls
        ]
    if arm.method in methods.METHODS and not methods.get(arm.method).trains:
        problems += [
            f"{key}: {control!r}: method {arm.method!r} trains nothing, and what is new here adds "
            "nothing before it is trained; allowed: img2img, null"
            for control in asked
            if control in LEARNT
        ]
    if "controlnet" in asked:
        (why,) = methods.problems_of_strength(arm.method, {}, "controlnet")
        problems += [
            f"factors.{factor}: with control 'controlnet': {why}; allowed: leave it out"
            for factor in arm.within
            if DRAWN[factor] in OF_METHOD
        ]
    return problems + [
        f"factors.{factor}: has a meaning with control {OF_CONTROL[DRAWN[factor]]!r} alone; "
        f"this arm has {', '.join(map(str, arm.controls))}"
        for factor in arm.within
        if DRAWN[factor] in OF_CONTROL and set(arm.controls) != {OF_CONTROL[DRAWN[factor]]}
    ]


def _given_problems(study: Study) -> list[str]:
    """What is wrong with given images, and with settings that need them."""
    controls = {control for arm in study.arms for control in arm.controls}
    bare = [task.name for task in study.tasks if task.given is None]
    problems = [
        f"arms[{i}].control: task {bare[0]!r} gives no image; needed: the key given in every task"
        for i, arm in enumerate(study.arms)
        if bare and any(arm.controls)
    ]
    problems += [
        f"metrics: {name!r}: task {bare[0]!r} gives no image; needed: the key given in every task"
        for name in study.further
        if bare and metrics.GIVEN in metrics.METRICS[name].needs
    ]
    fields = SampleSettings.model_fields
    problems += [
        f"sample.{name}: {getattr(study.sample, name):g}: no arm has control: {control}; leave it "
        "out"
        for name, control in OF_CONTROL.items()
        if getattr(study.sample, name) != fields[name].default and control not in controls
    ]
    if study.explain is not None and (learnt := sorted(controls & {*LEARNT})):
        problems.append(
            f"explain: asks a denoiser about its words alone, not with control: {learnt[0]}; "
            "allowed: leave it out"
        )
    for i, arm in enumerate(study.arms):
        own = arm.train | {k.removeprefix("train."): v for k, v in arm.between.items()}
        dropped = own.get("given_dropout", study.train.given_dropout)
        scales = arm.factors.get("sample.given_guidance", [study.sample.given_guidance])
        if "concat" not in arm.controls:
            if "given_dropout" in own:
                problems.append(
                    f"arms[{i}].train.given_dropout: no point has control: concat; leave it out"
                )
        elif max(scales) > 1 and 0 in (dropped if isinstance(dropped, list) else [dropped]):
            problems.append(
                f"arms[{i}]: sample.given_guidance: {max(scales):g} compares with nothing given, "
                "which train.given_dropout: 0 never trains; allowed: above 0, as 0.05"
            )
        if "img2img" in arm.controls:
            steps = min(arm.factors.get("sample.steps", [study.sample.steps]))
            share = min(arm.factors.get("sample.noised", [study.sample.noised]))
            if int(steps * share) < 1:
                problems.append(
                    f"arms[{i}]: sample.noised: {share:g} of {steps} steps is less than one; "
                    f"allowed: at least {1 / steps:g}"
                )
    if study.train.given_dropout and "concat" not in controls:
        problems.append(
            f"train.given_dropout: {study.train.given_dropout:g}: no arm has control: concat; "
            "leave it out"
        )
    return problems


def _one_unit(points: list[Point]) -> list[str]:
    """Levels within a training at which points of two controls stand, as img2img and none."""
    found: dict[tuple[str, str], set[str | None]] = {}
    for point in points:
        for name in point.within if point.train else ():
            found.setdefault((point.trained, name), set()).add(point.control)
    return [
        f"arms: {name} varies in one training with control: img2img and without, which are one "
        "unit; allowed: in one of the two arms"
        for name in dict.fromkeys(name for (_, name), own in found.items() if len(own) > 1)
    ]


def _trained(arm: Arm, points: list[Point]) -> list[Point]:
    """The points of an arm that are trained."""
    return [point for point in points if point.arm == arm.title and point.train]


def _process_problems(study: Study, points: list[Point], flows: bool) -> list[str]:
    """Settings of a training that its base's process has no use for."""
    key = "min_snr_gamma" if flows else "density"
    process, other = ("flow matching", "diffusion") if flows else ("diffusion", "flow matching")
    problems = []
    for i, arm in enumerate(study.arms):
        own = [p.train.get(key) for p in _trained(arm, points)]
        problems += [
            f"arms[{i}].train.{key}: {value!r}: base {study.base!r} is trained by {process}, and "
            f"this is a setting of {other}; allowed: null"
            for value in dict.fromkeys(own)
            if value is not None
        ]
    return problems


def _at_once(study: Study, points: list[Point]) -> list[str]:
    """Points whose examples cannot be computed a few at a time: their dropout is one of a batch."""
    problems = []
    for i, arm in enumerate(study.arms):
        parts = {
            p.train["examples_at_once"]
            for p in _trained(arm, points)
            if (p.train.get("examples_at_once") or math.inf) < p.train["batch_size"]
            and any(name.endswith("dropout") and p.settings[name] for name in p.settings)
        }
        problems += [
            f"arms[{i}].train.examples_at_once: {part}: a method with dropout draws its masks for "
            "all of a batch together; allowed: null, or no dropout"
            for part in sorted(parts)
        ]
    return problems


def _few_bits(study: Study, points: list[Point]) -> list[str]:
    """Points whose method needs the base's weights whole, and that store them in fewer bits."""
    problems = []
    for i, arm in enumerate(study.arms):
        found = dict.fromkeys(
            (form, why)
            for p in _trained(arm, points)
            if (form := p.train.get("base_weights"))
            if (why := methods.needs_whole(p.method, p.settings, p.learnt))
        )
        problems += [
            f"arms[{i}].train.base_weights: {form!r}: method {arm.method!r} {why}; allowed: {WHOLE}"
            for form, why in found
        ]
    return problems


def _two_ways(study: Study) -> list[str]:
    """Levels of a factor that are one number, written in two ways: two levels in a table."""
    levels: dict[str, list[str]] = {}
    for arm in study.arms:
        for name, own in arm.factors.items():
            levels.setdefault(name, []).extend(map(str, own))
    return [
        f"arms: factors.{name}: {' and '.join(same)} are one number; write it one way"
        for name, texts in levels.items()
        for same in one_number(texts)
    ]


def _without_effect(study: Study, points: list[Point]) -> list[str]:
    """Training settings that the study's tasks have no use for, chosen by a tuning or not."""
    plain = [task.name for task in study.tasks if task.dreambooth is None]
    bare = [t.name for t in study.tasks if t.dreambooth and t.dreambooth.prior_weight == 0]
    alike = [task.name for task in study.tasks if task.scale == 1]
    problems, weights = [], []
    for i, arm in enumerate(study.arms):
        for key, weight in _values(study, i, arm, points, "prior_weight"):
            weights.append(weight)
            if weight is not None and plain:
                problems.append(
                    f"{key}: task {plain[0]!r} teaches no subject; allowed: with dreambooth in "
                    "every task"
                )
            elif weight and bare:
                problems.append(
                    f"{key}: task {bare[0]!r} draws no class images, its prior_weight is 0; "
                    "allowed: 0, or above 0 there too"
                )
        problems += [
            f"{key}: task {alike[0]!r} has images of the base's own size; allowed: with a scale "
            "above 1 in every task"
            for key, positions in _values(study, i, arm, points, "positions")
            if alike and positions == EXTRAPOLATED
        ]
    if weights and all(weight == 0 for weight in weights):
        problems += [
            f"tasks[{i}].dreambooth.prior_weight: {task.dreambooth.prior_weight:g}: no arm trains "
            "on the class images that it asks for, train.prior_weight is 0 for all; allowed: 0"
            for i, task in enumerate(study.tasks)
            if task.dreambooth and task.dreambooth.prior_weight
        ]
    return list(dict.fromkeys(problems))


def _values(
    study: Study, i: int, arm: Arm, points: list[Point], name: str
) -> list[tuple[str, Any]]:
    """Every value of a training setting that an arm's points have, or a tuning may give them, after
    the key that says so."""
    key, tuned = f"train.{name}", study.tuning.factors if study.tuning else {}
    if key in arm.factors:
        where = f"arms[{i}].factors.{key}"
    elif key in tuned:
        where = f"tuning.factors.{key}"
    else:
        where = f"arms[{i}].{key}" if name in arm.train else key
    own = [p.train.get(name) for p in _trained(arm, points)]
    found = dict.fromkeys([*own, *(tuned.get(key, ()) if own else ())])
    return [(f"{where}: {value!r}", value) for value in found]


def _too_short(study: Study, points: list[Point]) -> list[str]:
    """Points that end before they reach their learning rate."""
    problems = []
    for i, arm in enumerate(study.arms):
        own = [p.train for p in _trained(arm, points)]
        wrong = sorted(
            {(t["warmup_steps"], t["steps"]) for t in own if t["warmup_steps"] > t["steps"]}
        )
        problems += [
            f"arms[{i}].train.warmup_steps: {warmup} of {steps} steps; allowed: at most train.steps"
            for warmup, steps in wrong
        ]
    return problems


def analysis_problems(models: Models) -> list[str]:
    """Why an analysis of the study's factors could test nothing, however its runs come out."""
    import pandas as pd

    from fitspace.stats.estimability import components, in_design, largest
    from fitspace.stats.trends import is_numeric

    study, factors = models.study, models.study.analysis.factors
    points = [point for point in models.points[0] if own_drawing(study, point)]
    # As objects: beside a point without a rank, the rank 4 of another stays 4.
    rows = pd.DataFrame(
        [p.factors | {"arm": p.arm, "method": p.method} for p in points], dtype=object
    )
    design = rows[in_design(rows, factors)].reset_index(drop=True)
    named = ", ".join(factors)
    if design.empty:
        return [
            f"analysis.factors: {named}: no arm that trains has all of them; allowed: factors that "
            "one arm has together, or arm, method"
        ]
    if not largest(design, components(design, factors), factors)[1]:
        return [
            f"analysis.factors: {named}: none has two levels that can be compared; allowed: at "
            "least one that has"
        ]
    return [
        f"analysis.contrasts: {name!r}: {problem}"
        for name, asked in models.study.analysis.contrasts.items()
        for key, levels in asked.items()
        for problem in _not_there(design, key, levels)
    ] + [
        f"analysis.scales.{name}: {name!r} has levels that are not numbers"
        for name in models.study.analysis.scales
        if not is_numeric(design[name])
    ]


def _not_there(design: pd.DataFrame, key: str, levels: Iterable[str]) -> list[str]:
    """Levels, or cells, that a contrast names and no point of the design has."""
    cells = design[key.split(":")].astype(str).agg(":".join, axis=1).unique()
    return [
        f"no level {level!r} of {key}; there are {shown(sorted(cells))}"
        for level in levels
        if level not in cells
    ]


def metric_problems(study: Study) -> list[str]:
    """Everything wrong with the metrics that a study names."""
    asked = study.metrics or ()
    problems = [
        f"{key}: {name!r} is no metric; allowed: {', '.join(metrics.NAMES)}"
        for key, names in (
            ("metrics", asked),
            ("analysis.responses", study.analysis.responses),
            ("analysis.transform", study.analysis.transform),
        )
        for name in names
        if name not in metrics.NAMES
    ]
    known = {n: metrics.METRICS[n] for n in asked if n in metrics.NAMES}
    problems += [
        f"metrics: {name!r} is a standard metric; leave it out"
        for name, row in known.items()
        if row.measure is None
    ]
    kinds = {task.dreambooth is not None for task in study.tasks}
    on_some = {name for of_subject in kinds for name in study.further_of(of_subject)}
    problems += [
        f"metrics: {name!r} is measured on no task of the study; it is for tasks of the kind: "
        f"{', '.join(row.of)}"
        for name, row in known.items()
        if row.measure is not None and name not in on_some
    ]
    standard = metrics.METRICS.keys() - metrics.asked(metrics.METRICS)
    used = metrics.extractors_of([*standard, *study.further])
    return problems + [
        f"{name}: {path!r}: no metric of the study needs these weights; allowed: with one of "
        f"{', '.join(n for n in metrics.NAMES if metrics.weights_for(n) == name)} among metrics"
        for name, path in study.weights.items()
        if name not in used
    ]


def task_problems(study: Study) -> list[str]:
    """Everything that a study asks of its tasks and they cannot give."""
    problems, family = [], None
    with contextlib.suppress(UserError):  # arm_problems reports it
        family = bases.family(study.base)
    for i, task in enumerate(study.tasks):
        of_task = study.measured_of(task.dreambooth is not None)
        problems += [
            f"analysis.responses: {name!r} is not measured on task {task.name!r}; allowed: "
            f"{', '.join(of_task)}"
            for name in study.analysis.responses
            if name in metrics.NAMES and name not in of_task
        ]
        if task.scale != 1 and family and not family.scales:
            problems.append(
                f"tasks[{i}].scale: {task.scale}: base {study.base!r} is a {family.title}; "
                "allowed: 1 (a DiT base takes more)"
            )
        if task.dreambooth is None:
            continue
        if family and family.by_class:
            problems.append(
                f"tasks[{i}].dreambooth: base {study.base!r} is told classes, not words; allowed: "
                "a base with a text encoder"
            )
        if study.sample.images_per_prompt != 1:
            problems.append(
                f"sample.images_per_prompt: {study.sample.images_per_prompt}: task {task.name!r} "
                "is dreambooth, where sample.prompts is the number of images; allowed: 1"
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
        if factor in REWARD_FACTORS:
            model, name = Reward, REWARD_FACTORS[factor]
        elif factor.startswith("train."):
            model, name = TrainSettings, factor.removeprefix("train.")
        elif factor in DRAWN:
            model, name = SampleSettings, DRAWN[factor]
        elif factor in OF_ARM:
            model = Arm
            if getattr(arm, factor) is not None:
                problems.append(f"{factor}: is also a factor of this arm; keep one of the two")
        elif factor.startswith("sample."):
            problems.append(f"factors.{factor}: unknown; allowed: {', '.join(DRAWN)}")
            continue
        if not levels:
            problems.append(f"factors.{factor}: []: a factor needs at least one level")
        first = {level: i for i, level in reversed(list(enumerate(levels)))}
        for i, level in enumerate(levels):
            if not (factor == REWARD_WEIGHT and level == 0 and level is not False):  # without one
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
    illegal += _strength_problems(arm, legal)
    try:
        chosen = chosen_cells(arm, legal)
    except UserError as error:
        return illegal + error.problems
    return illegal + [_in_cell(f, w) for f in chosen for w in _unmatched(arm, f, base)]


def _strength_problems(arm: Arm, cells: Iterable[dict[str, Any]]) -> list[str]:
    """Why an arm's method cannot be sampled at another strength, or in a part of the blocks."""
    asked = [factor for factor in arm.within if DRAWN[factor] in OF_METHOD]
    if not asked:
        return []
    settings = (settings_of(arm, cell) for cell in cells)
    found = (p for own in settings for p in methods.problems_of_strength(arm.method, own))
    return [
        f"factors.{factor}: {problem}; allowed for methods that are linear in their change"
        for problem in dict.fromkeys(found)
        for factor in asked
    ]


def _in_cell(factors: dict[str, Any], problem: str) -> str:
    return f"factors ({in_words(factors)}): {problem}" if factors else problem


def _budget_problems(arm: Arm) -> list[str]:
    """Why an arm's budget cannot be matched, whatever the base."""
    if arm.match_trainable is None and BUDGET not in arm.factors:
        return []
    name = methods.knob(arm.method)
    if name is None:
        able = ", ".join(m for m in methods.METHODS if methods.knob(m))
        return [f"match_trainable: method {arm.method!r} has no width; allowed with: {able}"]
    given = [f"{key}.{name}" for key in ("settings", "factors") if name in getattr(arm, key)]
    return [f"{key}: match_trainable sets it; keep one of the two" for key in given]


def _unmatched(arm: Arm, factors: dict[str, Any], base: str) -> list[str]:
    try:
        settings_of(arm, factors, base)
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
