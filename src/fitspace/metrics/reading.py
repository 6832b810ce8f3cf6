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
from fitspace.metrics.extractors import EXTRACTORS, JUDGE, in_use
from fitspace.metrics.measuring import finite
from fitspace.metrics.metric import GIVEN, IMAGES, PAIRS, TEXTS, TRAINING, UNTOUCHED
from fitspace.metrics.table import (
    INTERVAL,
    JUDGE_FEATURES,
    METRICS,
    NEIGHBOURHOOD,
    SUBJECT_FEATURES,
    extractors_of,
    measured,
)


def read_features(
    path: Path, of_subject: bool, named: Collection[str] = (), further: Collection[str] = ()
) -> dict[str, Tensor]:
    """Read the result of `reference_features` or `subject_features` from a file.

    ``named`` are the extractors whose weights the study names, ``further`` the metrics that it
    names beside the standard ones.

    Raises UserError for a file that holds anything else.
    """
    features = files.read_tensors(path, _form(of_subject, named, further))
    count, fewest = len(features["judge_images"]), 1 if of_subject else NEIGHBOURHOOD + 1
    if count < fewest:
        raise UserError(f"{path}: of {count} images; needed: at least {fewest}")
    if "pairs" in features and not _there(features["pairs"], len(features["judge_texts"]), count):
        raise UserError(f"{path}: pairs: needed: for each prompt, rows of prompts and of images")
    return finite(str(path), features)


def _form(of_subject: bool, named: Collection[str], further: Collection[str]) -> dict[str, str]:
    """The tensors of a reference: name -> dtype and sizes."""
    widths = {JUDGE: "e"} | {name: row.width for name, row in EXTRACTORS.items()}
    if of_subject:
        others = extractors_of(further) - {JUDGE}
        return SUBJECT_FEATURES | {name: f"F32 m {widths[name]}" for name in others}
    needs = {need: [] for need in (PAIRS, IMAGES, GIVEN, TRAINING, TEXTS, UNTOUCHED)}
    for name in further:
        for need in METRICS[name].needs:
            needs[need].append(name)
    form = JUDGE_FEATURES | {name: f"F32 m {row.width}" for name, row in in_use(named).items()}
    form |= {"pairs": "I64 k 2"} if needs[PAIRS] else {}
    form |= {"images": "U8 m h h 3"} if needs[IMAGES] else {}
    form |= {"given": "U8 m h h 3"} if needs[GIVEN] else {}
    form |= {f"{name}_texts": f"F32 p {widths[name]}" for name in extractors_of(needs[TEXTS])}
    for name in extractors_of(needs[TRAINING]):
        form |= {f"{name}_training": f"F32 t {widths[name]}"}
        form |= {f"{name}_held_out": f"F32 q {widths[name]}"}
    return form


def _there(pairs: Tensor, prompts: int, images: int) -> bool:
    """Whether pairs name rows that exist, and every prompt."""
    rows, columns = pairs.T
    inside = pairs.min() >= 0 and rows.max() < prompts and columns.max() < images
    return bool(inside) and len(rows.unique()) == prompts


class _Measured(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Diverged(_Measured):
    diverged: str


class _Row(_Measured):
    n: int = Field(ge=1)
    fd_effnet: float
    kid_effnet: float


@cache
def _of_run(
    of_subject: bool, named: tuple[str, ...], further: tuple[str, ...], validated: bool
) -> type[_Measured]:
    names = [*measured(of_subject, named, further), *(() if of_subject else INTERVAL)]
    fields = dict.fromkeys(names, (float, ...)) | dict.fromkeys(("n", "m"), (int, Field(ge=1)))
    curve = {} if of_subject else {"against_n": (list[_Row], ...)}
    if validated:
        curve["validation"] = (_of_validation(named, further), ...)
    return create_model("Metrics", __base__=_Measured, **fields, **curve)


def _of_validation(named: tuple[str, ...], further: tuple[str, ...]) -> type[_Measured]:
    names = measured(False, named, further)
    return create_model("Validated", __base__=_Measured, **dict.fromkeys(names, (float, ...)))


def read_metrics(run: Run, project: Path = Path()) -> dict[str, Any]:
    """Read a run's metrics.json: the result of `evaluate` or `evaluate_subject`, or for a run that
    diverged ``{"diverged": why}``. Raises UserError for a file that holds anything else."""
    path, what = project / run.evaluate.folder / "metrics.json", "a run's metrics"
    found = files.read_json(path, what=what)
    evaluator = run.reference.material["evaluator"]
    further = tuple(evaluator.get("further", ()))
    validated = bool(run.point.sample.get("validation"))
    model = _of_run(run.task.dreambooth is not None, tuple(evaluator), further, validated)
    checked(found, _Diverged if "diverged" in found else model, path, what)
    return found
