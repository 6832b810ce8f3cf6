"""Read a run's explanation from a file that somebody may have changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fitspace.core import files
from fitspace.core.reading import checked
from fitspace.metrics.table import METRICS

if TYPE_CHECKING:
    from fitspace.plan import Run

NAME = "explanation.json"
TUNED, UNTOUCHED = "tuned", "untouched"
Ratio = Annotated[float, Field(ge=0)] | None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Moved(_Strict):
    by_time: list[Ratio] = Field(min_length=1)
    by_image: list[Ratio] = Field(min_length=1)
    by_block: dict[str, list[Ratio]]


class _Attention(_Strict):
    of: str
    tuned: dict[str, float]
    untouched: dict[str, float]


class _Asked(_Strict):
    images: str
    taught: str
    without: str


class _Change(_Strict):
    block: str
    kind: str
    parameters: int = Field(ge=1)
    change: float = Field(ge=0)
    base: float | None = Field(ge=0)


class _Gamma(_Strict):
    block: str
    layer: str
    mean: float = Field(ge=0)


class _Rank(_Strict):
    block: str
    layer: str
    effective_rank: float = Field(ge=0)


class _Anatomy(_Strict):
    changes: list[_Change]
    gamma: list[_Gamma]
    rank: list[_Rank]


class _Explanation(_Strict):
    prompt_sensitivity: Ratio
    asked: _Asked
    steps: list[Annotated[int, Field(ge=0)]]
    tuned: _Moved
    untouched: _Moved
    attention: _Attention | None
    anatomy: _Anatomy

    @model_validator(mode="after")
    def _a_number_for_each_step(self) -> _Explanation:
        for moved in (self.tuned, self.untouched):
            for values in (moved.by_time, *moved.by_block.values()):
                if len(values) != len(self.steps):
                    raise ValueError(f"{len(values)} numbers for {len(self.steps)} time steps")
        return self


class _Diverged(_Strict):
    diverged: str


def read_explanation(run: Run, project: Path = Path()) -> dict[str, Any]:
    """A run's explanation.json, or for a run that diverged ``{"diverged": why}``.

    Raises UserError for a file that holds anything else.
    """
    path, what = project / run.explain.folder / NAME, "a run's explanation"
    found = files.read_json(path, what=what)
    checked(found, _Diverged if "diverged" in found else _Explanation, path, what)
    return found


def measured(run: Run, project: Path = Path()) -> dict[str, float | None]:
    """The metrics of a run's explanation, by name; none without one, or of a run that diverged."""
    if run.explain is None:
        return {}
    found = read_explanation(run, project)
    return {name: found[name] for name, row in METRICS.items() if row.explains and name in found}
