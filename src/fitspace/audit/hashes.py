"""The hash tier: rehash all present artefacts and compare them with the records.

The records are in git beside the table (:mod:`fitspace.results.lineage`), in each stage's sidecar,
and in dvc.lock. The three were written at different times: forging one leaves the other two
contradicting it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fitspace.audit.findings import Anew, Finding
from fitspace.audit.lock import Lock
from fitspace.core.errors import UserError
from fitspace.core.files import digest, sha256
from fitspace.plan import KEY_LENGTH
from fitspace.results.lineage import Lineage, Record, in_results
from fitspace.stages.sidecars import load_sidecar

UNREADABLE = "chmod u+r"
# Stage -> of which stage it carries the facts, in which of its own, and what its key calls it.
_CARRIES = {"evaluate": ("sample", "sample", "samples"), "sample": ("train", "train", "adapter")}


def check(
    lineage: Lineage, records: Iterable[Record], lock: Lock, anew: Anew
) -> tuple[list[Finding], int]:
    """Findings about the records' files, and the number of rehashed files.

    Stages that were made anew are compared with their own sidecars.
    """
    every = _Files(lineage, lock, anew)
    findings = [finding for record in tqdm(
        list(records), desc="rehashing", unit="stage", disable=None
    ) for finding in every.check(record)]  # fmt: skip
    return findings, every.rehashed


class _Files:
    def __init__(self, lineage: Lineage, lock: Lock, anew: Anew):
        self.lineage, self.lock, self.anew = lineage, lock, anew
        self.rehashed = 0
        recorded = lineage.records
        standing = (recorded | anew.here).values()
        self.by_path = {p: h for r in standing for p, h in _files(r).items()}
        # Inputs with the same files; only their sidecar differs.
        self.as_good = {
            (_sidecar(r).as_posix(), recorded[link].sidecar)
            for link, r in anew.here.items()
            if r.outputs == recorded[link].outputs
        }
        self.owner = {value: path for path, value in self.by_path.items()}

    def check(self, record: Record) -> Iterator[Finding]:
        yield from _own_key(record)
        link = record.stage, record.key
        record = self.anew.here.get(link, record)
        whole = True
        for name, expected in _files(record).items():
            path = Path(name)
            if not path.is_file():
                yield Finding("absent", name, "not here")
                continue
            try:
                found, md5 = _digests(path)
            except OSError as error:
                whole = False
                message = f"cannot be read: {error.strerror}; {UNREADABLE} would let it"
                yield Finding("absent", name, message)
                continue
            self.rehashed += 1
            if found != expected:
                whole = False
                yield Finding("changed", name, self._why(record, path, found, expected))
            another = link in self.anew.here or link in self.anew.recorded
            locked = None if another else self.lock.md5(name)
            if locked not in (None, md5):
                yield Finding("changed", name, f"MD5 is {md5}; dvc.lock recorded {locked}")
        sidecar = _sidecar(record)
        if whole and sidecar.is_file():
            content = load_sidecar(sidecar)
            yield from self._links(record, content)
            yield from _carried(record, content)
            if link not in self.anew.here:
                for differing in _differing(sidecar, record, self.lineage):
                    message = f"provenance.json says otherwise: {differing}"
                    yield Finding("changed", sidecar.as_posix(), message)

    def _why(self, record: Record, path: Path, found: str, expected: str) -> str:
        if path == _sidecar(record):
            if differing := list(_differing(path, record, self.lineage)):
                return "; ".join(differing)
        elif found in self.owner:
            return f"is {self.owner[found]}, by its SHA-256"
        return f"SHA-256 is {found}; recorded {expected}"

    def _links(self, record: Record, sidecar: dict[str, Any]) -> Iterator[Finding]:
        """Check that a stage read the files that the study has upstream of it."""
        for item in sidecar["inputs"]:
            name = in_results(item["path"])
            if (name, item["sha256"]) in self.as_good:
                continue
            if name in self.by_path and self.by_path[name] != item["sha256"]:
                yield Finding(
                    "changed",
                    _sidecar(record).as_posix(),
                    f"was made from another {name}: it read SHA-256 {item['sha256']}, recorded "
                    f"is {self.by_path[name]}",
                )


def _carried(record: Record, sidecar: dict[str, Any]) -> Iterator[Finding]:
    """Whether what a sidecar carries of the stage before it is what that one says.

    Costs travel with metrics, so that a table needs no more than these.
    """
    if record.stage not in _CARRIES:
        return
    stage, entry, key = _CARRIES[record.stage]
    if (upstream := record.material.get(key)) is None:
        return
    for item in sidecar["inputs"]:
        path = Path(in_results(item["path"]))
        if path.name != f"{stage}.json" or not path.parent.name.endswith(f"~{upstream}"):
            continue
        if not path.is_file() or sha256(path) != item["sha256"]:
            return  # Not here, or another making of it: said where that is looked at.
        told = load_sidecar(path)["facts"]
        carried = sidecar["facts"].get(entry) or {}
        own = {name: told.get(name) for name in carried}
        for name, before, now in differences(own, carried, entry):
            message = f"{name} is {now!r}; {path} has {before!r}"
            yield Finding("changed", _sidecar(record).as_posix(), message)


def _sidecar(record: Record) -> Path:
    return Path(record.folder) / f"{record.stage}.json"


def _files(record: Record) -> dict[str, str]:
    """Path -> SHA-256 of a stage's sidecar and outputs."""
    return {f"{record.folder}/{name}": value for name, value in record.files.items()}


def _own_key(record: Record) -> Iterator[Finding]:
    """Check the key against its material: neither can be changed alone."""
    if not record.is_of_its_material:
        expected = digest(record.material)[:KEY_LENGTH]
        message = f"key {record.key!r}, but its material gives {expected!r}"
        yield Finding("changed", record.folder, message)


def _differing(path: Path, record: Record, lineage: Lineage) -> Iterator[str]:
    """The differences between a sidecar and its record."""
    try:
        sidecar = load_sidecar(path)
        outputs = {Path(o["path"]).name: o["sha256"] for o in sidecar["outputs"]}
    except UserError:
        yield "is no longer a sidecar"
        return
    if sidecar.get("key") != record.key:
        yield f"is the sidecar of {sidecar.get('stage')} {sidecar.get('key')}, not {record.key}"
    recorded = {"material": record.material, "outputs": record.outputs}
    found = {"material": sidecar.get("material"), "outputs": outputs}
    if record.environment is not None:
        recorded |= {
            "environment": lineage.environments[record.environment],
            "started": record.started,
            "finished": record.finished,
        }
        found |= {name: sidecar.get(name) for name in ("environment", "started", "finished")}
    for name, before, now in differences(recorded, found):
        yield f"{name} is {now!r}; recorded {before!r}"


def differences(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, before, now) for each leaf in which two nested mappings differ."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        if before != now:
            yield name, before, now
        return
    for key in dict.fromkeys([*before, *now]):
        dotted = f"{name}.{key}" if name else str(key)
        yield from differences(before.get(key), now.get(key), dotted)


def _digests(path: Path) -> tuple[str, str]:
    """SHA-256 and MD5 (hex; DVC's) of a file, read once."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
            md5.update(block)
    return sha256.hexdigest(), md5.hexdigest()
