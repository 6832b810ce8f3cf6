"""What a study names outside itself: its base, judge and data sets; found, fetched, identified."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pydantic import ValidationError

from fitspace import bases, data, metrics
from fitspace.core import hub
from fitspace.core.errors import UserError
from fitspace.core.reading import (
    explain,
    read_yaml,
)
from fitspace.study import Study


def absent(study: Study) -> list[str]:
    """What a study names by hub id, or to be made, and is not on this machine; with its cure.

    Such a study is valid and can be planned; it runs once all is here.
    """
    found = []
    hub_tasks = [task for task in study.tasks if task.source == "hub"]
    for look in (
        lambda: bases.resolve(study.base),
        lambda: metrics.judge_files(study.judge),
        lambda: metrics.inception_file(study.inception) if study.inception else None,
        *(partial(data.identity, task) for task in hub_tasks),
    ):
        try:
            look()
        except hub.NotHere as error:
            found += error.problems
    return found


def fetch(path: str | Path) -> Study:
    """Download what a study file names by hub id and is not on this machine.

    Returns the study. Only the file's form has to be right: an architecture may be known only once
    it is here.

    Raises
    ------
    UserError : a malformed study file, or everything that could not be downloaded.
    """
    try:
        study = Study.model_validate(read_yaml(Path(path)))
    except ValidationError as error:
        raise UserError(f"{path}: {p}" for p in explain(error, Study)) from None
    problems = []
    for get, what in (
        (bases.fetch, study.base),
        (metrics.fetch_judge, study.judge),
        *((data.fetch, task) for task in study.tasks),
    ):
        try:
            get(what)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    return study


def digests(study: Study) -> dict[str, str]:
    """What a study can hold its models to: the keys, such as ``base_sha256``, and their values.

    Raises
    ------
    UserError : a model that is not here, or is another one than the study holds it to.
    """
    return hold(study, *looked_at(study))


def looked_at(study: Study) -> tuple[str, dict]:
    """The base's digest, and what decides the metrics."""
    return bases.digest(bases.resolve(study.base)), metrics.identity(study.judge, study.inception)


def hold(study: Study, base: str, evaluator: dict) -> dict[str, str]:
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


def pins(study: Study) -> list[str]:
    """Lines for a study's file that hold it to the models and data sets here; those it lacks.

    Raises
    ------
    UserError : as :func:`digests`; a data set that is not here.
    """
    lines = [f"{k}: {v}" for k, v in digests(study).items() if getattr(study, k) is None]
    loose = [t for t in study.tasks if t.source == "hub" and "@" not in t.dataset]
    lines += [f"dataset: {task.dataset}@{data.identity(task)['commit']}" for task in loose]
    return list(dict.fromkeys(lines))
