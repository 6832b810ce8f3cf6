"""Trace a number to its sources, and verify that they are as recorded.

An audit goes from a report, a table or one value through runs.csv to metrics, samples, adapters,
prepared tasks, models, code and packages. It compares what is on this machine with what git and
DVC recorded. It writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fitspace.audit.chain import Node
from fitspace.audit.findings import Distance, Finding
from fitspace.audit.target import Target
from fitspace.core.errors import UserError
from fitspace.results.lineage import Lineage, Record

if TYPE_CHECKING:
    from fitspace.plan import Plan

TIERS = ("hash", "regenerate", "reevaluate", "retrain")
Tier = Literal["hash", "regenerate", "reevaluate", "retrain"]
# The worst first: an audit ends with the exit code of its worst finding.
EXIT = {"changed": 1, "absent": 3, "anew": 4, "verified": 0}


@dataclass(frozen=True)
class Audit:
    """The result of an audit: its target, the chain, everything that is not as recorded, and the
    distances of runs that were made anew from their records."""

    target: Target
    tier: Tier
    lineage: Lineage
    records: list[Record]
    chain: Node
    findings: list[Finding]
    distances: list[Distance]
    rehashed: int

    @property
    def verdict(self) -> str:
        """``changed`` if anything contradicts its record, else ``absent`` if something is missing,
        else ``anew`` if something was made again, else ``verified``; what a bundle leaves out does
        not count."""
        kinds = {finding.kind for finding in self.findings} | {"verified"}
        return next(kind for kind in EXIT if kind in kinds)

    @property
    def runs(self) -> int:
        return sum(record.stage == "evaluate" for record in self.records)

    @property
    def stages(self) -> int:
        return len(self.records)

    def as_json(self) -> dict[str, Any]:
        value = self.target.value
        return {
            "study": self.target.study.name,
            "table": self.target.table,
            "value": None if value is None else value.content,
            "tier": self.tier,
            "verdict": self.verdict,
            "runs": self.runs,
            "stages": self.stages,
            "rehashed": self.rehashed,
            "findings": [finding.__dict__ for finding in self.findings],
            "made_anew": [distance.__dict__ for distance in self.distances],
            "chain": self.chain.as_json(),
        }


def audit(
    target: Path | None,
    *,
    value: str | None = None,
    tier: Tier = "regenerate",
    runs: Sequence[str] = (),
    draw: int = 0,
    seed: int = 0,
    findings: Iterable[Finding] = (),
) -> Audit:
    """Audit a study, its report, a table or one value, up to a tier.

    Each tier includes those before it, with one exception. ``hash`` rehashes every file that is
    present. ``regenerate`` makes the report again. ``reevaluate`` computes the metrics again from
    the samples and the explanations from the adapters, for all runs unless some are named or drawn.
    ``retrain`` trains the named runs again, or ``draw`` runs drawn with ``seed``; it needs no
    samples, so it skips ``reevaluate``. ``findings`` are those of a bundle's own files.

    Raises
    ------
    UserError : nothing to audit, or bad input. A difference is a finding, not an error.
    """
    from fitspace.audit import again, anew, chain, hashes, regenerate, rows, sources
    from fitspace.audit import target as targets
    from fitspace.audit.lock import Lock
    from fitspace.results import lineage as lineages

    where = targets.locate(target, value)
    plan = _planned(where, tier)
    lineage = lineages.read(where.folder)
    records = _behind(lineage, where)
    names = (Path(r.folder).name for r in records if r.stage == "evaluate")
    planned = None if plan is None else {run.name for run in plan.runs}
    # Runs that the study no longer has are findings of their rows.
    behind = [name for name in names if planned is None or name in planned]
    chosen = _chosen(tier, behind, runs, draw, seed)
    lock = Lock()
    other = anew.look(where.folder, lineage, records, lock)
    made = [lineage.environments[r.environment] for r in records if r.environment is not None]
    findings = [*findings, *sources.check(where.study, lineage, made + other.environments)]
    findings += sources.uncommitted(where.folder)
    if plan is not None:
        findings += rows.check(plan, where.folder, lineage, where.keys)
    more, rehashed = hashes.check(lineage, records, lock, other)
    left_out = {f.subject for f in findings if f.kind == "left out"}
    more = [f for f in more if f.kind != "absent" or f.subject not in left_out]
    findings += more + other.findings + lock.report(where.folder, other)
    distances = other.distances
    if tier != "hash":
        findings += regenerate.check(where.study, plan, where.folder)
    if tier == "reevaluate":
        findings += again.reevaluate(plan, chosen)
    elif tier == "retrain":
        more, trained = again.retrain(where.path, plan, chosen)
        findings, distances = findings + more, distances + trained
    findings = list(dict.fromkeys(findings))
    tree = chain.of(where, lineage, records, findings)
    return Audit(where, tier, lineage, records, tree, findings, distances, rehashed)


def _planned(where: Target, tier: Tier) -> Plan | None:
    """The plan of a study; None where its keys cannot be told, as base or judge are not here.

    Raises UserError for a study that is not valid, and where a tier has to run it.
    """
    from fitspace.plan import Models, build_plan, checked

    try:
        return build_plan(*checked(where.path, in_job=True))
    except UserError:
        models = Models(where.study)
        if tier in ("reevaluate", "retrain") or (models.here("base") and models.here("judge")):
            raise
        return None


def _behind(lineage: Lineage, where: Target) -> list[Record]:
    """The records behind a target, each once; for a whole study all records."""
    if where.keys is None:
        return list(lineage.records.values())
    found: dict[tuple[str, str], Record] = {}
    for key in where.keys:
        record = lineage.records.get(("evaluate", key))
        if record is not None:
            found |= {(r.stage, r.key): r for r in lineage.behind(record)}
    return [record for link, record in lineage.records.items() if link in found]


def _chosen(tier: Tier, behind: list[str], runs: Sequence[str], draw: int, seed: int) -> list[str]:
    """The runs to measure or train again. Raises UserError for an impossible choice."""
    from fitspace.audit import again

    asked = bool(runs) or draw != 0
    if tier not in ("reevaluate", "retrain"):
        if asked:
            raise UserError("--runs, --draw: need --tier reevaluate or --tier retrain")
        return []
    if runs and draw:
        raise UserError("--draw: not with --runs, which names them")
    if unknown := [name for name in runs if name not in behind]:
        raise UserError(
            f"--runs: {name!r} is not among the {len(behind)} runs in question; allowed: "
            f"{', '.join(behind[:5])}{' ...' if len(behind) > 5 else ''}"
            for name in unknown
        )
    if draw:
        return again.draw(behind, draw, seed)
    if tier == "retrain" and not runs:
        raise UserError("--tier retrain: name runs with --runs, or draw some with --draw N")
    return list(runs) or behind
