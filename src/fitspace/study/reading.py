"""Read a study file and check its form, without looking at its base and methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fitspace.core.errors import UserError
from fitspace.core.reading import explain, read_yaml
from fitspace.study.models import Arm, Study


def form(path: str | Path) -> Study:
    """The study in a file. Raises UserError with every problem of the file's form."""
    study, _, _, problems = parts(path)
    if study is None:
        raise UserError(f"{path}: {problem}" for problem in problems)
    return study


def parts(path: str | Path) -> tuple[Study | None, Any, list[tuple[int, Arm]], list[str]]:
    """The study, its base, its valid arms by number, and the problems of the file's form.

    If the form has problems, the study is None; the valid parts can still be checked further.
    Raises UserError for a file that holds no mapping.
    """
    content = read_yaml(Path(path))
    try:
        study = Study.model_validate(content)
    except ValidationError as error:
        return None, content.get("base"), _sound_arms(content), explain(error, Study)
    return study, study.base, list(enumerate(study.arms)), []


def _sound_arms(content: dict[str, Any]) -> list[tuple[int, Arm]]:
    arms = []
    for index, item in enumerate(content["arms"] if isinstance(content.get("arms"), list) else []):
        try:
            arms.append((index, Arm.model_validate(item)))
        except ValidationError:
            continue
    return arms


def of_config(config: dict[str, Any], default: str) -> str:
    """The study file that Snakemake's ``--config`` names.

    Raises
    ------
    UserError : keys that mean nothing, and a value that names no file.
    """
    allowed = "allowed: --config study=params/NAME.yaml"
    problems = [
        f"--config {key}: unknown key; {allowed}"
        for key in config
        if key not in ("study", "container")  # the latter is of Snakemake's image
    ]
    path = config.get("study", default)
    if not isinstance(path, str) or not path.strip():
        problems.append(f"--config study={'' if path is None else path}: no study file; {allowed}")
    if problems:
        raise UserError(problems)
    return path
