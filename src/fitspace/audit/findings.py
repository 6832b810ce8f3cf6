"""The findings of an audit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from fitspace.results.lineage import Record


@dataclass(frozen=True)
class Finding:
    """Something that is not as recorded.

    ``kind`` is ``changed`` if something contradicts its record, ``absent`` if something is
    missing, ``anew`` if something was honestly made again, and ``left out`` if a bundle has
    instead what it is made of. ``subject`` is the file, run or value; ``message`` is one sentence
    with the expected and the found content.
    """

    kind: Literal["changed", "absent", "anew", "left out"]
    subject: str
    message: str


@dataclass(frozen=True)
class Distance:
    """The distance of a run that was made anew from its record.

    ``metric`` is the one with the largest distance relative to its ``limit``. ``apart`` is its
    distance in the metric's own units, ``seeds`` in standard deviations of the seeds (None if no
    point has two). Without a metric every file is the same.
    """

    run: str
    recorded_on: str
    made_on: str
    metric: str | None = None
    apart: float = 0.0
    limit: float = 0.0
    seeds: float | None = None


@dataclass
class Anew:
    """The stages of a study that were made anew, by stage and key.

    ``here``: results on this machine that are another making than the report's own record.
    ``recorded``: records of the report that are another making than those of dvc.lock. ``rooms``:
    folders that hold any other result. ``findings`` name the stages, and every number that another
    making does not explain.
    """

    here: dict[tuple[str, str], Record] = field(default_factory=dict)
    recorded: dict[tuple[str, str], Record] = field(default_factory=dict)
    rooms: set[str] = field(default_factory=set)
    environments: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    distances: list[Distance] = field(default_factory=list)
