"""Read features and metrics from files that somebody may have changed."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from fitspace.core import files
from fitspace.core.errors import UserError
from fitspace.core.reading import checked

if TYPE_CHECKING:
    from torch import Tensor

    from fitspace.plan import Run
from fitspace.metrics.extractors import in_use
from fitspace.metrics.measuring import finite
from fitspace.metrics.table import (
    INTERVAL,
    JUDGE_FEATURES,
    NEIGHBOURHOOD,
    SUBJECT_FEATURES,
    measured,
)


def read_features(path: Path, of_subject: bool, named: Collection[str] = ()) -> dict[str, Tensor]:
    """Read the result of `reference_features` or `subject_features` from a file.

    ``named`` are the extractors whose weights the study names.

    Raises UserError for a file that holds anything else.
    """
    others = {name: f"F32 m {row.width}" for name, row in in_use(named).items()}
    held_out = JUDGE_FEATURES | others
    features = files.read_tensors(path, SUBJECT_FEATURES if of_subject else held_out)
    count, fewest = len(features["judge_images"]), 1 if of_subject else NEIGHBOURHOOD + 1
    if count < fewest:
        raise UserError(f"{path}: of {count} images; needed: at least {fewest}")
    return finite(str(path), features)


class _Measured(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Diverged(_Measured):
    diverged: str


class _Row(_Measured):
    n: int = Field(ge=1)
    fd_effnet: float
    kid_effnet: float


@cache
def _of_run(of_subject: bool, named: tuple[str, ...]) -> type[_Measured]:
    names = [*measured(of_subject, named), *(() if of_subject else INTERVAL)]
    fields = dict.fromkeys(names, (float, ...)) | dict.fromkeys(("n", "m"), (int, Field(ge=1)))
    curve = {} if of_subject else {"against_n": (list[_Row], ...)}
    return create_model("Metrics", __base__=_Measured, **fields, **curve)


def read_metrics(run: Run, project: Path = Path()) -> dict[str, Any]:
    """Read a run's metrics.json: the result of `evaluate` or `evaluate_subject`, or for a run that
    diverged ``{"diverged": why}``. Raises UserError for a file that holds anything else."""
    path, what = project / run.evaluate.folder / "metrics.json", "a run's metrics"
    found = files.read_json(path, what=what)
    named = tuple(run.reference.material["evaluator"])
    model = _of_run(run.task.dreambooth is not None, named)
    checked(found, _Diverged if "diverged" in found else model, path, what)
    return found
