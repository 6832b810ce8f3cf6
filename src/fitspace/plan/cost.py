"""What a study costs before it runs: hours, memory and bytes of results.

Hours and memory are those that runs of the same method have recorded, if any; else FLOPs are
counted and bytes estimated, see :mod:`fitspace.plan.footprint`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fitspace import bases
from fitspace.core import hub
from fitspace.plan import footprint
from fitspace.plan.footprint import Footprint
from fitspace.plan.keys import Plan
from fitspace.plan.points import Point
from fitspace.study import Study, Task

if TYPE_CHECKING:
    import pandas as pd

BYTES_PER_PARAMETER = 4  # adapters are stored in fp32
KINDS_OF_SUBJECT = 3  # DreamBooth samples the subject, the subject elsewhere and its class
FLOP_PER_SECOND = 1e14  # what one large GPU reaches in bf16, to tell hours by
Times = dict[str, dict[str, float]]
# By the point's identity, the task's scale and latents a step: tasks alike in them take the same.
Taken = dict[tuple[str, int, int], Footprint]


@dataclass(frozen=True)
class Job:
    """The training and the sampling of one run, and whether each is still to do."""

    point: Point
    task: Task
    train: bool
    sample: bool


def jobs(study: Study, points: Sequence[Point], plan: Plan | None) -> dict[str, list[Job]]:
    """The runs in ``total``, as if nothing were there, and with a plan those ``to_run``."""
    every = [
        Job(point, task, point.train is not None, True)
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
            run.train is not None and not run.train.sidecar.exists(),
            not run.sample.sidecar.exists(),
        )
        for run in plan.runs
    ]
    return {"total": every, "to_run": [job for job in missing if job.train or job.sample]}


def step_times(runs: pd.DataFrame) -> Times:
    """Method -> median seconds per training ``step`` and per sampled ``image`` of a runs.csv.

    And ``memory``, the median of the largest memory [bytes]. A method has what its finished runs
    have recorded.
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


def seconds(todo: Sequence[Job], times: Times, prompts: int) -> dict:
    """Seconds of training and sampling, and the methods whose times are not recorded.

    What is not recorded is not in the sum.
    """
    found, unknown = {"train": 0.0, "sample": 0.0}, []
    for job in todo:
        of_method = times.get(job.point.method, {})
        parts = []
        if job.train:
            parts.append(("train", "step", job.point.train["steps"]))
        if job.sample:
            parts.append(("sample", "image", prompts))
        for stage, unit, count in parts:
            if unit in of_method:
                found[stage] += of_method[unit] * count
            else:
                unknown.append(job.point.method)
    return found | {"unknown": list(dict.fromkeys(unknown))}


def _recorded(point: Point, times: Times) -> bool:
    """Whether the times of all that a point does are recorded."""
    return {"image"} | ({"step"} if point.train else set()) <= times.get(point.method, {}).keys()


def _kind(point: Point, task: Task) -> tuple[str, int, int]:
    return point.identity, task.scale, footprint.latents(point, task)


def footprints(study: Study, points: Sequence[Point], times: Times) -> Taken:
    """What the points without recorded times take, on each kind of task."""
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
    """Bytes that a point needs on a device: ``train`` a step, ``sample`` the weights.

    Of the task that needs most. As recorded for its method (training alone), else estimated; None
    where nothing is trained, or times are recorded and memory is not.
    """
    if _recorded(point, times):
        found = times[point.method].get("memory")
        return {"train": None if found is None else round(found), "sample": None}
    every = [taken[_kind(point, task)] for task in study.tasks]
    return {
        "train": max(one.training(point.train) for one in every) if point.train else None,
        "sample": max(one.sampling for one in every),
    }


def step_flop(study: Study, point: Point, times: Times, taken: Taken) -> int | None:
    """FLOPs of a training step, on the task that needs most; None where times are recorded."""
    if _recorded(point, times) or not point.train:
        return None
    kinds = [_kind(point, task) for task in study.tasks]
    return max(taken[kind].step * kind[-1] for kind in kinds)


def flop(study: Study, todo: Sequence[Job], times: Times, taken: Taken) -> dict[str, int]:
    """FLOPs of the training and sampling whose times are not recorded; the decoder's are not in."""
    found, settings = {"train": 0, "sample": 0}, study.sample
    passes = settings.steps * (2 if settings.guidance > 1 else 1)
    for job in todo:
        of_method = times.get(job.point.method, {})
        kind = _kind(job.point, job.task)
        if job.train and "step" not in of_method:
            found["train"] += taken[kind].step * kind[-1] * job.point.train["steps"]
        if job.sample and "image" not in of_method:
            found["sample"] += taken[kind].forward * passes * _images(study, job.task)
    return found


def storage(study: Study, todo: Sequence[Job], trainable: dict[str, int]) -> dict[str, int | None]:
    """Bytes of adapters and of samples; these are None where the base is not here.

    ``trainable`` holds the number of trainable parameters by the point's name.
    """
    adapters = sum(trainable[job.point.name] for job in todo if job.train)
    try:
        side = bases.image_size(bases.resolve(study.base))
    except hub.NotHere:
        samples = None
    else:
        images = sum(_images(study, job.task) * job.task.scale**2 for job in todo if job.sample)
        samples = images * side**2 * 3
    return {"adapters": adapters * BYTES_PER_PARAMETER, "samples": samples}


def _images(study: Study, task: Task) -> int:
    return study.sample.prompts * (1 if task.dreambooth is None else KINDS_OF_SUBJECT)


def describe(
    study: Study,
    points: Sequence[Point],
    plan: Plan | None,
    trainable: dict[str, int],
    times: Times,
    taken: Taken,
) -> dict[str, Any]:
    """Runs, seconds, FLOPs and bytes by scope: ``total``, and ``to_run``, None without a plan.

    ``flop`` is of what has no recorded times, and so is not in ``seconds``.
    """
    scopes: dict[str, Any] = {"total": None, "to_run": None}
    for scope, todo in jobs(study, points, plan).items():
        scopes[scope] = {
            "runs": len(todo),
            "seconds": seconds(todo, times, study.sample.prompts),
            "flop": flop(study, todo, times, taken),
            "bytes": storage(study, todo, trainable),
        }
    return scopes
