"""Stages that were made anew: how they differ from changed ones, and the distance of their numbers.

Making a recorded study again gives other files: sidecars contain times, and another kind of
machine rounds differently. Such results are honest. They do not contradict the record, but they
are not the recorded ones either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from fitspace.audit.again import Rows, held_to, measured, read_rows, rows_of, same_kind
from fitspace.audit.findings import Anew, Distance, Finding
from fitspace.audit.lock import Lock
from fitspace.audit.sources import committed
from fitspace.core.errors import UserError
from fitspace.core.files import parse_json, read_json
from fitspace.plan import STAGES
from fitspace.results import lineage
from fitspace.results.lineage import Lineage, Record

Link = tuple[str, str]
RUNS = "runs.csv"


def look(folder: Path, known: Lineage, records: Iterable[Record], lock: Lock) -> Anew:
    """Find what was made anew: results against the report's own record ``known``, and this record
    against dvc.lock's."""
    records, found = list(records), Anew()
    found.rooms = {Path(record.folder).parent.as_posix() for record in records}
    try:
        rows = read_rows(folder / RUNS)
    except UserError:
        return found  # This is a finding of its own.
    here = partial(_numbers_here, known)
    found.here = _hold(found, known, _standing(known, records), rows, here)
    earlier, table = _recorded_by_dvc(folder, lock) or (known, rows)
    if _explained(earlier, known):
        found.recorded = _hold(found, earlier, known, table, lambda r: rows.get(_run(r), {}))
    new = found.here | found.recorded
    recorded = (record for record in records if (record.stage, record.key) not in new)
    found.rooms = {Path(record.folder).parent.as_posix() for record in recorded}
    return found


def made_anew(before: Lineage, now: Lineage) -> dict[Link, Record]:
    """The records of ``now`` that are another making of the same stages as in ``before``.

    Another making has the same material and other times of start and end. On the same kind of
    machine (:func:`same_kind`) its files are the same. On another kind they may differ; the files
    of the stages downstream may then differ on any machine.
    """
    order = list(STAGES)
    found: dict[Link, Record] = {}
    for link in sorted(now.records, key=lambda link: order.index(link[0])):
        old, new = before.records.get(link), now.records.get(link)
        if old is None or new is None or not _another_making(old, new):
            continue
        other = old.outputs != new.outputs
        kinds = [lines.environments[r.environment] for lines, r in ((before, old), (now, new))]
        upstream = [u for u in new.upstream if u in found]
        follows = any(found[u].outputs != before.records[u].outputs for u in upstream)
        if not other or not same_kind(*kinds) or follows:
            found[link] = new
    return found


def _another_making(old: Record, new: Record) -> bool:
    known = None not in (old.environment, new.environment, old.started, new.started)
    return (
        known
        and old.sidecar != new.sidecar
        and (old.material, old.outputs.keys()) == (new.material, new.outputs.keys())
        and new.is_of_its_material
        and old.started != new.started
        and old.finished != new.finished
    )


def _explained(before: Lineage, now: Lineage) -> bool:
    """Whether two records are the same except for stages that were made anew."""
    made = made_anew(before, now)
    return all(
        link in made or record.files == now.records[link].files
        for link, record in before.records.items()
        if link in now.records
    )


def _standing(known: Lineage, records: Iterable[Record]) -> Lineage:
    """The stages on this machine, from their sidecars."""
    environments, found = {}, {}
    for i, record in enumerate(records):
        try:
            new, sidecar = lineage.of_sidecar(Path(record.folder) / f"{record.stage}.json")
        except UserError:
            continue  # An absent or broken sidecar is a finding of its own.
        environments[f"e{i}"] = sidecar["environment"]
        found[record.stage, record.key] = replace(new, environment=f"e{i}")
    return replace(known, environments=environments, records=found)


def _recorded_by_dvc(folder: Path, lock: Lock) -> tuple[Lineage, Rows] | None:
    """The lineage and table that dvc.lock records, from git, if the present ones differ."""
    locked = {name: lock.md5((folder / name).as_posix()) for name in (lineage.NAME, RUNS)}
    if _md5((folder / lineage.NAME).read_bytes()) == locked[lineage.NAME]:
        return None
    found = {}
    for name, md5 in locked.items():
        try:
            found[name] = committed((folder / name).as_posix())
        except LookupError:
            return None
        if _md5(found[name]) != md5:
            return None
    known, path = found[lineage.NAME], folder / lineage.NAME
    content = parse_json(known, path, what="a study's provenance")
    return lineage.of_content(content, path), rows_of(found[RUNS].decode(), folder / RUNS)


def _hold(
    found: Anew, before: Lineage, now: Lineage, rows: Rows, numbers: Callable[[Record], Mapping]
) -> dict[Link, Record]:
    """Add to ``found`` the changes by another making; returns the stages that it made."""
    made = made_anew(before, now)
    for link, record in made.items():
        old = before.records[link]
        was, now_on = before.environments[old.environment], now.environments[record.environment]
        found.environments.append(now_on)
        same = old.outputs == record.outputs
        place = Distance(_run(record), lineage.machine(was), lineage.machine(now_on))
        where = "the same kind of machine" if same_kind(was, now_on) else place.made_on
        what = "the same files" if same else "other files"
        message = f"made anew on {where}, recorded on {place.recorded_on}: {what}"
        found.findings.append(Finding("anew", record.folder, message))
        if record.stage != "evaluate":
            continue
        if same:
            found.distances.append(place)
        elif place.run in rows:
            findings, distance = held_to(place.run, rows, measured(numbers(record)))
            found.findings += findings
            place = replace(distance, recorded_on=place.recorded_on, made_on=place.made_on)
            found.distances.append(place)
    return made


def _run(record: Record) -> str:
    return Path(record.folder).name


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _numbers_here(known: Lineage, record: Record) -> Mapping[str, object]:
    """The numbers of the run of an evaluation, from all files that hold some."""
    found: dict[str, object] = {}
    for end in (record, *known.beside(record)):
        for name in end.outputs:
            if name.endswith(".json"):
                with suppress(UserError):  # A finding of the tier that rehashes.
                    found |= read_json(Path(end.folder) / name)
    return found
