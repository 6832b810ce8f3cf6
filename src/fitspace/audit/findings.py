"""What an audit finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from fitspace.results.lineage import Record


@dataclass(frozen=True)
class Finding:
    """Something that is not as recorded.

    ``kind`` is ``changed`` where something contradicts what was recorded, ``absent`` where
    something is not here to be looked at, and ``anew`` where it is an honest making of its own.
    ``subject`` is the file, run or value; ``message`` one sentence that names what was expected
    and what was found.
    """

    kind: Literal["changed", "absent", "anew"]
    subject: str
    message: str


@dataclass(frozen=True)
class Distance:
    """How far a run that was made anew is from its record.

    ``metric`` is the one that is furthest, in parts of what is allowed (``limit``, in the metric's
    own units): by ``apart``, and by ``seeds`` standard deviations of the seeds (None: no point
    has two). No metric: every file is the same.
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

    ``here`` stand under results and are another making than the report's own record, ``recorded``
    are of that record, and another making than dvc.lock's; ``rooms`` are the folders that hold any
    other result. ``findings`` name the stages, and every number that another making does not
    explain.
    """

    here: dict[tuple[str, str], Record] = field(default_factory=dict)
    recorded: dict[tuple[str, str], Record] = field(default_factory=dict)
    rooms: set[str] = field(default_factory=set)
    environments: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    distances: list[Distance] = field(default_factory=list)
