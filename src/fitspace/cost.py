"""What a study costs before it runs: hours from recorded step times, and bytes of results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fitspace import bases, hub
from fitspace.config import Study, Task
from fitspace.design import Plan, Point

if TYPE_CHECKING:
    import pandas as pd

BYTES_PER_PARAMETER = 4  # adapters are stored in fp32
KINDS_OF_SUBJECT = 3  # DreamBooth samples the subject, the subject elsewhere and its class


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


def step_times(runs: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Method -> median seconds per training ``step`` and per sampled ``image`` of a runs.csv.

    A method has what its finished runs have recorded.
    """
    import pandas as pd

    def number(name: str) -> pd.Series:
        values = runs[name] if name in runs else pd.Series(index=runs.index, dtype=float)
        return pd.to_numeric(values, errors="coerce")

    rates = pd.DataFrame(
        {
            "step": number("train_seconds") / number("steps"),
            "image": number("sample_seconds") / number("n"),
        }
    )
    ok = runs["status"].eq("ok") if "status" in runs else slice(None)
    medians = rates[ok].groupby(runs["method"][ok]).median()
    return {method: row.dropna().to_dict() for method, row in medians.iterrows()}


def seconds(todo: Sequence[Job], times: dict[str, dict[str, float]], prompts: int) -> dict:
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
    recorded: pd.DataFrame | None,
) -> dict[str, Any]:
    """Runs, seconds and bytes by scope (``total``, ``to_run``), the last None without a plan."""
    times = {} if recorded is None else step_times(recorded)
    scopes: dict[str, Any] = {"total": None, "to_run": None}
    for scope, todo in jobs(study, points, plan).items():
        scopes[scope] = {
            "runs": len(todo),
            "seconds": seconds(todo, times, study.sample.prompts) if times else None,
            "bytes": storage(study, todo, trainable),
        }
    return scopes
