"""The cost of a study before it runs: hours, memory and bytes of results.

If runs of the same method have recorded hours and memory, these are used; otherwise FLOPs are
counted and bytes estimated, see :mod:`fitspace.plan.footprint`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fitspace import bases
from fitspace.core import hub
from fitspace.core.errors import UserError
from fitspace.plan import footprint
from fitspace.plan.footprint import Footprint
from fitspace.plan.keys import Plan
from fitspace.plan.points import Point
from fitspace.study import Study, Task

if TYPE_CHECKING:
    import pandas as pd

BYTES_PER_PARAMETER = 4  # adapters are stored in fp32
KINDS_OF_SUBJECT = 3  # DreamBooth samples the subject, the subject elsewhere and its class
FLOP_PER_SECOND = 1e14  # speed of one large GPU in bf16, to convert FLOPs into hours
Times = dict[str, dict[str, float]]
# By the point's training, the task's scale and latents per step; nothing else of a task matters.
Taken = dict[tuple[str, int, int], Footprint]


@dataclass(frozen=True)
class Job:
    """The training, sampling and explanation of one run, and whether each is still to do.

    Of runs that share a training the first one has it and its explanation to do. ``explain`` is the
    number of latents that the explanation passes through the denoiser; 0: nothing to do.
    """

    point: Point
    task: Task
    train: bool
    sample: bool
    explain: int = 0


def jobs(study: Study, points: Sequence[Point], plan: Plan | None) -> dict[str, list[Job]]:
    """``total``: all runs, as if no results existed; with a plan also those still ``to_run``."""
    first = {point.trained: point for point in reversed(points)}

    def trains(point: Point) -> bool:
        return point.train is not None and first[point.trained] == point

    def explains(point: Point) -> int:
        return asked(study, point) if first[point.trained] == point else 0

    every = [
        Job(point, task, trains(point), True, explains(point))
        for _ in study.seeds
        for task in study.tasks
        for point in points
    ]
    if plan is None:
        return {"total": every}
    missing = [
        Job(
            run.point,
            run.task,
            trains(run.point) and not run.train.sidecar.exists(),
            not run.sample.sidecar.exists(),
            0 if run.explain and run.explain.sidecar.exists() else explains(run.point),
        )
        for run in plan.runs
    ]
    to_run = [job for job in missing if job.train or job.sample or job.explain]
    return {"total": every, "to_run": to_run}


def asked(study: Study, point: Point) -> int:
    """Latents that the explanation of a run passes through the denoiser, if its task has as many
    images as asked for: two conditions, of the tuned and of the untouched model."""
    if study.explain is None:
        return 0
    return 2 * len(study.explain.times) * study.explain.images * (2 if point.train else 1)


def distilled(study: Study) -> bool:
    """Whether the base's denoiser is told the guidance, and is asked once for each step."""
    try:
        settings = bases.architecture(study.base)
    except UserError:
        return False
    return bases.family_by(settings).distilled(settings)


def passes(point: Point, once: bool = False) -> int:
    """Latents that an image passes through the denoiser; ``once``: see :func:`distilled`."""
    drawn, steps = point.sample, point.sample["steps"]
    if point.control == "img2img":  # the others are left out
        steps = int(steps * drawn["noised"])
    if drawn.get("given_guidance", 1) > 1:
        return steps * (3 if drawn["guidance"] else 2)
    return steps * (2 if drawn["guidance"] > 1 and not once else 1)


def step_times(runs: pd.DataFrame) -> Times:
    """Medians of a runs.csv by method, as far as the method's finished runs have recorded them.

    ``step``: seconds per training step; ``image``: seconds per sampled image; ``memory``: peak
    memory [bytes].
    """
    import pandas as pd

    def number(name: str) -> pd.Series:
        values = runs[name] if name in runs else pd.Series(index=runs.index, dtype=float)
        return pd.to_numeric(values, errors="coerce")

    rates = pd.DataFrame(
        {
            "step": number("train_seconds") / number("steps"),
            "image": number("sample_seconds") / number("n"),
            "memory": number("peak_memory_mb") * 2**20,
        }
    )
    ok = runs["status"].eq("ok") if "status" in runs else slice(None)
    medians = rates[ok].groupby(runs["method"][ok]).median()
    return {method: row.dropna().to_dict() for method, row in medians.iterrows()}


def seconds(todo: Sequence[Job], times: Times, prompts: int, once: bool = False) -> dict:
    """Seconds of training, sampling and explaining (``train``, ``sample``, ``explain``), by
    recorded times; a pass of a latent takes as long in explaining as in sampling. ``once``: see
    :func:`passes`.

    Jobs without recorded times are not in the sums; ``unknown`` lists their methods.
    """
    found, unknown = {"train": 0.0, "sample": 0.0, "explain": 0.0}, []
    for job in todo:
        of_method = times.get(job.point.method, {})
        parts = []
        if job.train:
            parts.append(("train", "step", job.point.train["steps"]))
        if job.sample:
            parts.append(("sample", "image", prompts))
        if job.explain:
            parts.append(("explain", "image", job.explain / passes(job.point, once)))
        for stage, unit, count in parts:
            if unit in of_method:
                found[stage] += of_method[unit] * count
            else:
                unknown.append(job.point.method)
    return found | {"unknown": list(dict.fromkeys(unknown))}


def _recorded(point: Point, times: Times) -> bool:
    """Whether all times of a point's stages are recorded."""
    return {"image"} | ({"step"} if point.train else set()) <= times.get(point.method, {}).keys()


def _kind(point: Point, task: Task) -> tuple[str, int, int]:
    return point.trained, task.scale, footprint.latents(point, task)


def footprints(study: Study, points: Sequence[Point], times: Times) -> Taken:
    """The footprints of the points without recorded times, on each kind of task."""
    from tqdm import tqdm

    kinds = {
        _kind(point, task): (point, task)
        for point in points
        if not _recorded(point, times)
        for task in study.tasks
    }
    shown = tqdm(kinds.items(), desc="measuring a step of each point", delay=2, disable=None)
    return {kind: footprint.of(study, *what) for kind, what in shown}


def memory(study: Study, point: Point, times: Times, taken: Taken) -> dict[str, int | None]:
    """Bytes that a point needs on a device: ``train`` for a step, ``sample`` for the weights.

    The task that needs most counts. The value is the one recorded for the method (training only),
    else an estimate. It is None if nothing is trained, or if times are recorded without memory.
    """
    if _recorded(point, times):
        found = times[point.method].get("memory")
        return {"train": None if found is None else round(found), "sample": None}
    every = [taken[_kind(point, task)] for task in study.tasks]
    return {
        "train": max(one.training(point.train) for one in every) if point.train else None,
        "sample": max(one.sampling(point.train) for one in every),
    }


def step_flop(study: Study, point: Point, times: Times, taken: Taken) -> int | None:
    """FLOPs of a training step on the task that needs most; None if times are recorded."""
    if _recorded(point, times) or not point.train:
        return None
    kinds = [_kind(point, task) for task in study.tasks]
    return max(taken[kind].step * kind[-1] for kind in kinds)


def flop(study: Study, todo: Sequence[Job], times: Times, taken: Taken) -> dict[str, int]:
    """FLOPs of training, sampling and explaining without recorded times; the decoder is not
    included."""
    found, once = {"train": 0, "sample": 0, "explain": 0}, distilled(study)
    for job in todo:
        of_method = times.get(job.point.method, {})
        kind = _kind(job.point, job.task)
        if job.train and "step" not in of_method:
            found["train"] += taken[kind].step * kind[-1] * job.point.train["steps"]
        if job.sample and "image" not in of_method:
            found["sample"] += (
                taken[kind].forward * passes(job.point, once) * images(study, job.task)
            )
        if job.explain and "image" not in of_method:
            found["explain"] += taken[kind].forward * job.explain
    return found


def storage(study: Study, todo: Sequence[Job], trainable: dict[str, int]) -> dict[str, int | None]:
    """Bytes of ``adapters`` and ``samples``; samples are None if the base is not on this machine.

    ``trainable`` maps a point's name to its number of trainable parameters.
    """
    # A training keeps its trainables at each checkpoint, and at the end.
    trained = [job.point for job in todo if job.train]
    adapters = sum(
        trainable[point.name] * (1 + len(point.train.get("checkpoints") or ())) for point in trained
    )
    try:
        side = bases.image_size(bases.resolve(study.base))
    except hub.NotHere:
        samples = None
    else:
        count = sum(images(study, job.task) * job.task.scale**2 for job in todo if job.sample)
        samples = count * side**2 * 3
    return {"adapters": adapters * BYTES_PER_PARAMETER, "samples": samples}


def images(study: Study, task: Task) -> int:
    """How many images a run samples."""
    per_prompt = study.sample.images_per_prompt
    return study.sample.captions * (per_prompt if task.dreambooth is None else KINDS_OF_SUBJECT)


def describe(
    study: Study,
    points: Sequence[Point],
    plan: Plan | None,
    trainable: dict[str, int],
    times: Times,
    taken: Taken,
) -> dict[str, Any]:
    """Runs, seconds, FLOPs and bytes by scope: ``total`` and ``to_run`` (None without a plan).

    ``flop`` counts the jobs without recorded times, which ``seconds`` does not include.
    """
    scopes: dict[str, Any] = {"total": None, "to_run": None}
    prompts = study.sample.prompts * study.sample.images_per_prompt
    for scope, todo in jobs(study, points, plan).items():
        scopes[scope] = {
            "runs": len(todo),
            "seconds": seconds(todo, times, prompts, distilled(study)),
            "flop": flop(study, todo, times, taken),
            "bytes": storage(study, todo, trainable),
        }
    return scopes
