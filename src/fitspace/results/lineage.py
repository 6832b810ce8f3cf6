"""The lineage of a study's table: every stage behind its runs, in git beside the table.

``reports/<study>/provenance.json`` holds, for each stage, its key's material and the SHA-256 of
its sidecar and files at the time when the table was collected. runs.csv holds the evaluate keys,
and the materials lead from there upstream. Git alone is therefore enough to trace a number to its
sources and to verify pulled results.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, create_model, model_validator

from fitspace.core import hashes
from fitspace.core.errors import UserError
from fitspace.core.files import canonical, digest, read_json, sha256, write_text
from fitspace.core.reading import Recorded, Sha256, checked, names_a_file
from fitspace.metrics.extractors import NAMED
from fitspace.plan import ENDS, KEY_LENGTH, STAGES, Plan, Stage
from fitspace.plan.models import MODELS, REWARD, named
from fitspace.stages.sidecars import Environment, load_sidecar

NAME = "provenance.json"
SCHEMA_VERSION = 1
SHORT = 12  # characters of a digest that people read


@dataclass(frozen=True)
class Record:
    """One finished stage. ``sidecar`` and ``outputs`` (by file name) are SHA-256.

    ``environment`` names an entry of the lineage's environments. It and the times are None if the
    stage's sidecar was not present when the table was collected.
    """

    stage: str
    folder: str
    key: str
    material: dict[str, Any]
    sidecar: str
    outputs: dict[str, str]
    environment: str | None
    started: str | None
    finished: str | None

    @property
    def files(self) -> dict[str, str]:
        """File name -> SHA-256 of the sidecar and the outputs."""
        return {f"{self.stage}.json": self.sidecar} | self.outputs

    @property
    def is_of_its_material(self) -> bool:
        """Whether the key is the digest of its material and is part of the folder's name."""
        return self.key == digest(self.material)[:KEY_LENGTH] and self.folder.endswith(
            f"~{self.key}"
        )

    @property
    def upstream(self) -> list[tuple[str, str]]:
        """(stage, key) of the stages that it was made from."""
        named = (
            (stage, self.material.get(entry)) for entry, stage in STAGES[self.stage].reads.items()
        )
        return [(stage, key) for stage, key in named if key is not None]


@dataclass(frozen=True)
class Lineage:
    """``models``: name -> path and the SHA-256 of the files; ``environments`` by name."""

    study: str
    models: dict[str, dict[str, Any]]
    environments: dict[str, dict[str, Any]]
    records: dict[tuple[str, str], Record]

    def behind(self, record: Record) -> Iterator[Record]:
        """A record and everything upstream of it, each once, downstream first.

        Behind a run's end stands what else the run is done with: its row of the table has both.
        """
        return self._upstream([record, *self.beside(record)])

    def of_run(self, record: Record) -> dict[str, Record]:
        """What :meth:`behind` has, by stage; the run's own where it reads another run's too."""
        # A run's own stand before those of others that its stages read.
        return {r.stage: r for r in reversed(list(self.behind(record)))}

    def beside(self, record: Record) -> list[Record]:
        """The other ends of the run of which a record is an end."""
        if record.stage not in ENDS:
            return []
        others = self._ends.get(self._run(record), [])
        return [other for other in others if other.stage != record.stage]

    @cached_property
    def _ends(self) -> dict[tuple, list[Record]]:
        found: dict[tuple, list[Record]] = {}
        for record in self.records.values():
            if record.stage in ENDS:
                found.setdefault(self._run(record), []).append(record)
        return found

    def _run(self, record: Record) -> tuple:
        """What tells the run of a record: its task, adapter and seed."""
        own = next((r for r in self._upstream([record]) if "seed" in r.material), record)
        return tuple(own.material.get(name) for name in ("task", "adapter", "seed"))

    def _upstream(self, records: list[Record]) -> Iterator[Record]:
        waiting, seen = list(records), set()
        while waiting:
            current = waiting.pop(0)
            if (current.stage, current.key) in seen:
                continue
            seen.add((current.stage, current.key))
            yield current
            waiting += [self.records[link] for link in current.upstream if link in self.records]


def collect(plan: Plan, known: Lineage | None = None) -> Lineage:
    """The lineage of a plan's finished runs, from their sidecars.

    If an upstream sidecar is missing (only metrics were pulled), its record is taken from
    ``known``, provided that the stage downstream read exactly this sidecar. Otherwise the record
    contains what the stage downstream recorded about it.

    Raises
    ------
    UserError : a sidecar that cannot be read.
    """
    found = _Collected(known)
    # Downstream first: a stage's inputs tell what is upstream of it.
    order = list(STAGES)
    for stage in sorted(plan.stages.values(), key=lambda s: -order.index(s.name)):
        found.add(stage)
    return Lineage(
        study=plan.study.name,
        models={
            name: {"path": reference, "files": _hashes(MODELS[name](reference))}
            for name, reference in named(plan.study).items()
        },
        environments={name: json.loads(text) for text, name in found.environments.items()},
        records={
            (s.name, s.key): found.records[s.name, s.key]
            for s in plan.stages.values()
            if (s.name, s.key) in found.records
        },
    )


class _Collected:
    """Records, collected downstream first.

    ``read`` maps files to the SHA-256 that the stages downstream read. ``vouched`` are the stages
    upstream of a record taken from the known lineage, which are taken from there as well.
    """

    def __init__(self, known: Lineage | None):
        self.known = {} if known is None else known.records
        self.of_known = {} if known is None else known.environments
        self.environments: dict[str, str] = {}
        self.records: dict[tuple[str, str], Record] = {}
        self.read: dict[str, str] = {}
        self.vouched: set[tuple[str, str]] = set()

    def add(self, stage: Stage) -> None:
        record = self._here(stage) if stage.sidecar.exists() else self._elsewhere(stage)
        if record is not None:
            self.records[stage.name, stage.key] = record

    def _here(self, stage: Stage) -> Record:
        record, sidecar = of_sidecar(stage.sidecar)
        for item in sidecar["inputs"]:
            self.read[in_results(item["path"])] = item["sha256"]
        environment = self._environment(sidecar["environment"])
        # Key and material are the plan's; a wrong sidecar is recognised by its digest.
        return replace(record, key=stage.key, material=stage.material, environment=environment)

    def _elsewhere(self, stage: Stage) -> Record | None:
        link, folder = (stage.name, stage.key), stage.folder.as_posix()
        sidecar = self.read.get(stage.sidecar.as_posix())
        before = self.known.get(link)
        if before is not None and (
            link in self.vouched if sidecar is None else before.sidecar == sidecar
        ):
            self.vouched.update(before.upstream)
            if before.environment is None:
                return before
            return replace(before, environment=self._environment(self.of_known[before.environment]))
        if sidecar is None:
            return None
        outputs = {
            Path(path).name: value
            for path, value in self.read.items()
            if path.startswith(f"{folder}/") and path != stage.sidecar.as_posix()
        }
        return Record(
            stage.name, folder, stage.key, stage.material, sidecar, outputs, None, None, None
        )

    def _environment(self, content: dict[str, Any]) -> str:
        return self.environments.setdefault(canonical(content), f"e{len(self.environments) + 1}")


def of_sidecar(path: Path) -> tuple[Record, dict[str, Any]]:
    """The record of a stage from its sidecar, without an environment's name, and the sidecar.

    Raises UserError for a sidecar that cannot be read.
    """
    sidecar = load_sidecar(path)
    for name in ("started", "finished"):
        if not _is_time(sidecar[name]):
            raise UserError(f"{path}: {name}: {sidecar[name]!r} is no time")
    record = Record(
        path.stem,
        path.parent.as_posix(),
        sidecar["key"],
        sidecar["material"],
        sha256(path),
        {Path(o["path"]).name: o["sha256"] for o in sidecar["outputs"]},
        None,
        sidecar["started"],
        sidecar["finished"],
    )
    return record, sidecar


def in_results(path: str) -> str:
    """A file's path within the project's folder, wherever that folder was."""
    return "/".join(path.split("/")[-4:])


def _hashes(files: dict[str, Path]) -> dict[str, str]:
    found = hashes.hashes(list(files.values()))
    return {name: found[path] for name, path in files.items()}


def program(made: dict[str, Any]) -> str:
    """Code, packages and machine of an environment in one line."""
    source = f"source {made['source_sha256'][:SHORT]}"
    torch = f"torch {made['packages'].get('torch', '?')}"
    return f"{code(made)}, {source}, Python {made['python']}, {torch}, {machine(made)}"


def code(made: dict[str, Any]) -> str:
    """Version and commit."""
    git = made.get("git") or {}
    commit = (git.get("commit") or "no commit")[:SHORT] + (" (changed)" * bool(git.get("dirty")))
    return f"fitspace {made['fitspace']}, commit {commit}"


def machine(made: dict[str, Any]) -> str:
    """The GPU, or the processor with its family, model and stepping."""
    device, cpu = made.get("device", "cpu"), made.get("cpu", {})
    if device != "cpu":
        return device
    kind = ".".join(cpu[k] for k in ("cpu family", "model", "stepping") if k in cpu)
    return cpu.get("model name", "unknown processor") + (f" ({kind})" if kind else "")


# --- the file ---------------------------------------------------------------------------


def text(lineage: Lineage) -> str:
    """provenance.json, one line per environment and stage, so that git's diffs are readable."""
    parts = {
        "environments": [{"name": n, **facts} for n, facts in lineage.environments.items()],
        "stages": [vars(record) for record in lineage.records.values()],
    }
    lines = [f'"schema_version": {SCHEMA_VERSION}', f'"study": {_line(lineage.study)}']
    lines += [f'"{name}": {_line(model)}' for name, model in lineage.models.items()]
    lines += [
        f'"{name}": [\n' + ",\n".join(map(_line, rows)) + "\n]" for name, rows in parts.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _line(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def write(lineage: Lineage, folder: Path) -> None:
    """Write provenance.json into a report's folder."""
    write_text(Path(folder) / NAME, text(lineage))


def read(folder: Path) -> Lineage:
    """The lineage in a report's folder.

    Raises
    ------
    UserError : the file is missing or invalid.
    """
    path = Path(folder) / NAME
    missing = "missing; `fitspace report --cached` writes it where the results are"
    return of_content(read_json(path, what="a study's provenance", missing=missing), path)


def of_content(content: Any, path: Path) -> Lineage:
    """The lineage in provenance.json's content. Raises UserError for invalid content."""
    try:
        checked(content, _Lineage, path, "a study's provenance")
    except UserError as error:
        raise UserError(f"{p}; delete it to collect it again" for p in error.problems) from None
    rows = [Record(**row) for row in content["stages"]]
    return Lineage(
        study=content["study"],
        models={name: content[name] for name in MODELS if name in content},
        environments={e["name"]: _without_name(e) for e in content["environments"]},
        records={(r.stage, r.key): r for r in rows},
    )


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return False
    return True


def _time(text: str) -> str:
    if not _is_time(text):
        raise ValueError(f"{text!r} is no time")
    return text


_FileName = Annotated[str, Field(pattern=r"^[^/\x00]{1,255}$"), AfterValidator(names_a_file)]
_Time = Annotated[str, AfterValidator(_time)] | None


_Evaluator = create_model(
    "_Evaluator",
    __base__=Recorded,
    **dict.fromkeys(("judge", "extractor", "extractor_sha256"), str),
    **dict.fromkeys(NAMED, (str, "")),
    further=(dict[str, int], {}),
)


class _Material(Recorded):
    """The parts of a key's material that are read again: upstream keys and sources of numbers."""

    prior: str | None = None
    task: str | None = None
    adapter: str | None = None
    samples: str | None = None
    reference: str | None = None
    untouched: str | None = None
    source: dict[str, Any] = {}
    evaluator: _Evaluator = Field(None)


class _Record(Recorded):
    stage: Literal[tuple(STAGES)]
    # A file to look at stands in there: never one elsewhere.
    folder: Annotated[
        str, Field(pattern=r"^results/[a-z]+/[^/\x00]+$"), AfterValidator(names_a_file)
    ]
    key: str
    material: _Material
    sidecar: Sha256
    outputs: dict[_FileName, Sha256]
    environment: str | None
    started: _Time
    finished: _Time

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="after")
    def _references_have_an_evaluator(self) -> _Record:
        if self.stage == "reference" and self.material.evaluator is None:
            raise ValueError("material.evaluator: missing; a reference is made by one")
        return self


class _Model(Recorded):
    path: str
    files: dict[str, Sha256]


class _NamedEnvironment(Environment):
    name: str


_Models = create_model(
    "_Models",
    __base__=Recorded,
    **{name: (_Model, Field(None) if name in {*NAMED, REWARD} else ...) for name in MODELS},
)


class _Lineage(_Models):
    study: str
    environments: list[_NamedEnvironment]
    stages: list[_Record]

    @model_validator(mode="after")
    def _environments_are_there(self) -> _Lineage:
        known = {environment.name for environment in self.environments}
        for record in self.stages:
            if record.environment not in known | {None}:
                raise ValueError(f"environments: none is named {record.environment!r}")
        return self


def _without_name(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != "name"}
