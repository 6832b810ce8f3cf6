"""A study as an RO-Crate, by the Provenance Run Crate profile.

https://w3id.org/ro/wfrun/provenance/0.5 on https://w3id.org/ro/crate/1.1. The crate holds the
report and its tables, the study, the workflow and the pins. A bundle also holds results, models
and code. What a crate does not hold it names by ``#`` and its path, with its SHA-256.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, RootModel

from fitspace import __version__
from fitspace.audit.prov import flat, reads, settings
from fitspace.core.errors import UserError
from fitspace.core.files import canonical, digest, read_json, sha256
from fitspace.core.reading import Recorded, checked
from fitspace.plan import ENDS, STAGES
from fitspace.results.lineage import NAME, Lineage, Record
from fitspace.results.table import picture

METADATA, README = "ro-crate-metadata.json", "README.md"
WORKFLOW = "workflow/Snakefile"
LOCK = "dvc.lock"
# Copied if present; of folders everything that is not hidden.
PROJECT = (
    "Snakefile", "workflow", "profiles/default", "dvc.yaml", LOCK, "constraints.txt",
    "pyproject.toml", "LICENSE",
)  # fmt: skip
PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/ro/wfrun/provenance/0.5": "Provenance Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
BIOSCHEMAS = "https://bioschemas.org/profiles/ComputationalWorkflow/1.0-RELEASE"
# The only term used from the run crates' vocabulary; RO-Crate 1.1's own context lacks it.
TERMS = {"sha256": "https://w3id.org/ro/terms/workflow-run#sha256"}
APACHE = "https://www.apache.org/licenses/LICENSE-2.0"
CC_BY_SA = "https://creativecommons.org/licenses/by-sa/4.0/"
LICENCES = {
    APACHE: ("Apache-2.0", "Apache License 2.0: everything that names no other licence."),
    CC_BY_SA: ("CC BY-SA 4.0", "Creative Commons Attribution-ShareAlike 4.0 International."),
}
COMPLETED = "http://schema.org/CompletedActionStatus"
# The results of mimetypes would depend on the machine.
FORMATS = {
    "": "text/plain", ".csv": "text/csv", ".html": "text/html", ".json": "application/json",
    ".lock": "application/yaml", ".md": "text/markdown", ".png": "image/png",
    ".sh": "text/x-shellscript", ".smk": "text/plain", ".svg": "image/svg+xml",
    ".toml": "application/toml", ".txt": "text/plain", ".yaml": "application/yaml",
}  # fmt: skip
_IMAGES = ("images.safetensors", "samples.safetensors", "latents.safetensors")
_SHORT = 12
_LONG = 60


def write(study_file: Path, lineage: Lineage, report_folder: Path, target: Path) -> list[Path]:
    """Write a study's crate into ``target``, a new or an empty folder; returns the crate's files.

    Called in the project's folder. The same study gives the same bytes.

    Raises
    ------
    UserError : ``target`` is in use or lies in a copied folder; every file that is missing or
        invalid.
    """
    given = _Given(Path(study_file), lineage, Path(report_folder))
    where = Path(target).resolve()
    if problems := [*given.missing(), *given.unusable(where)]:
        raise UserError(problems)
    where.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=where.parent, prefix=f".{where.name}.") as temporary:
        folder = Path(temporary) / where.name
        _Crate(given).crate.write(folder)
        os.replace(folder, where)
    return sorted(path for path in Path(target).rglob("*") if path.is_file())


def contents(
    study_file: Path,
    lineage: Lineage,
    report_folder: Path,
    held: Mapping[str, Path],
    without: Collection[str] = (),
) -> dict[str, Path | bytes]:
    """The files of a crate that holds more, ``held``: path in the crate -> file or content.

    Called in the project's folder; ``without`` are files of the project to leave out.

    Raises
    ------
    UserError : as :func:`write`, but for the folder.
    """
    given = _Given(Path(study_file), lineage, Path(report_folder), held, without)
    if problems := list(given.missing()):
        raise UserError(problems)
    made = _Crate(given)
    return {**given.files, README: made.readme.encode(), METADATA: made.metadata}


@dataclass(frozen=True)
class _Given:
    """The inputs of a crate."""

    study_file: Path
    lineage: Lineage
    report_folder: Path
    held: Mapping[str, Path] = field(default_factory=dict)
    without: Collection[str] = ()

    @property
    def study(self) -> str:
        """The study file's path in the crate, which has the project's folders."""
        path, project = self.study_file.resolve(), Path.cwd()
        if path.is_relative_to(project):
            return path.relative_to(project).as_posix()
        return f"params/{path.name}"

    @property
    def report(self) -> str:
        """The report folder's path in the crate."""
        return f"reports/{self.lineage.study}"

    @cached_property
    def files(self) -> dict[str, Path]:
        """Path in the crate -> file."""
        found = {self.study: self.study_file} | dict(_walk(self.report_folder, self.report))
        for part in PROJECT:
            found |= dict(_walk(Path(part), part))
        found = {name: path for name, path in found.items() if name not in self.without}
        return dict(sorted({**found, **self.held}.items()))

    @cached_property
    def design(self) -> dict[str, Any]:
        return _read(self.report_folder / "design.json", _Design, dict)["study"]

    @cached_property
    def attributions(self) -> dict[str, str]:
        """Path in the crate of each strip of images, and of each picture of an explanation -> the
        attribution that the images require."""
        strips = _read(self.report_folder / "gallery.json", _Gallery, list)
        return {
            f"{self.report}/{file}": strip["attribution"]
            for strip in strips
            for file in (strip["file"], picture(strip["task"], strip["role"]))
        }

    def attribution(self, path: str) -> str | None:
        """The attribution that a file of images requires; None for other files.

        Of what a task's runs made, it is the task's own.
        """
        if path in self.attributions:
            return self.attributions[path]
        of_task = {file.split("/")[3]: said for file, said in self.attributions.items()}
        parts = path.split("/")
        if parts[0] == "results" and path.endswith((".png", *_IMAGES)):
            return next((of_task[n] for n in parts[2].split("~") if n in of_task), "")
        return None

    @property
    def finished(self) -> str:
        """When the last stage finished; a crate contains no present time, so it is reproducible."""
        return max(r.finished for r in self.lineage.records.values() if r.finished)

    def missing(self) -> Iterator[str]:
        needed = [self.study_file, Path(WORKFLOW)]
        needed += [self.report_folder / n for n in ("report.html", "design.json", "gallery.json")]
        for path in [*needed, self.report_folder / NAME]:
            if not path.is_file():
                yield f"{path}: missing; a crate of study {self.lineage.study!r} needs it"
        if not any(record.finished for record in self.lineage.records.values()):
            yield f"{self.report_folder / NAME}: has no stage that says when it finished"

    def unusable(self, target: Path) -> Iterator[str]:
        """Why the crate cannot be written into ``target``, an absolute path."""
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            yield f"--crate: {str(target)!r} is in use; allowed: a new or an empty folder"
        for folder in (self.report_folder, *map(Path, PROJECT)):
            if target.is_relative_to(folder.resolve()):
                yield f"--crate: {str(target)!r} lies in {folder}, which is copied into the crate"


def _walk(part: Path, name: str) -> Iterator[tuple[str, Path]]:
    """Name in the crate and path of a file, or of all files in a folder that are not hidden."""
    if part.is_file():
        yield name, part
    for path in part.rglob("*"):
        inner = path.relative_to(part)
        hidden = any(p.startswith(".") or p == "__pycache__" for p in inner.parts)
        if path.is_file() and not hidden:
            yield f"{name}/{inner.as_posix()}", path


class _Words(Recorded):
    title: str
    question: str


class _Design(Recorded):
    study: _Words


class _Strip(Recorded):
    task: str
    role: str
    file: str
    attribution: str


class _Gallery(RootModel[list[_Strip]]):
    pass


def _read(path: Path, model: type[BaseModel], kind: type) -> Any:
    what = "what a report is made of"
    try:
        content = read_json(path, kind, what=what)
        checked(content, model, path, what)
    except UserError as error:
        cure = "`fitspace report --cached` writes it"
        raise UserError(f"{problem}; {cure}" for problem in error.problems) from None
    return content


Reference = dict[str, str]


class _Crate:
    """The crate's entities, in an order that does not change.

    ``actions`` are references to all executions, ``tools`` to what was executed, by stage.
    """

    def __init__(self, given: _Given):
        from rocrate.rocrate import ROCrate

        self.given, self.lineage = given, given.lineage
        self.crate = ROCrate(version="1.1")
        self.crate.metadata.extra_terms = dict(TERMS)
        self.actions: list[Reference] = []
        self.tools: dict[str, list[Reference]] = {}
        self._licences()
        copied = self._copied()
        sources = [self._stage(record) for record in self.lineage.records.values()]
        self._report(copied)
        self._workflow(copied, [s for each in sources for s in each])
        self._root()

    # --- the parts ----------------------------------------------------------------------

    def _licences(self) -> None:
        for url, (name, description) in LICENCES.items():
            self._add(url, "CreativeWork", name=name, description=description)

    def _copied(self) -> list[Reference]:
        """Add everything that the crate holds except the workflow; returns the report's files."""
        for path, file in self.given.files.items():
            if path != WORKFLOW:
                self.crate.add_file(file, path, properties=self._facts(path, file))
        readme = {"name": README, "encodingFormat": FORMATS[".md"], "about": {"@id": "./"}}
        self.crate.add_file(io.StringIO(self.readme), README, properties=readme)
        inside = f"{self.given.report}/"
        return [{"@id": quote(path)} for path in self.given.files if path.startswith(inside)]

    def _facts(self, path: str, file: Path) -> dict[str, Any]:
        facts = {
            "name": path,
            "sha256": sha256(file),
            "contentSize": str(file.stat().st_size),
            "encodingFormat": FORMATS.get(file.suffix, "application/octet-stream"),
        }
        attributions = set(self.given.attributions.values())
        if (attribution := self.given.attribution(path)) is not None:
            facts |= {"license": _licence(attribution), "description": attribution or "Images"}
        elif path == f"{self.given.report}/report.html":  # the strips are in the page
            licences = [_licence(text) for text in sorted(attributions) if text]
            facts["license"] = [{"@id": APACHE}, *licences] if licences else {"@id": APACHE}
            facts["exampleOfWork"] = {"@id": "#parameter/report"}
        if path == self.given.study:
            facts["exampleOfWork"] = {"@id": "#parameter/study"}
        return facts

    def _stage(self, record: Record) -> list[Reference]:
        """Add a stage's folder and its execution; returns the images that it started from."""
        upstream, models = reads(self.lineage, record)
        files = record.files
        made = self._folder(record.folder, files)
        read = [{"@id": _folder_id(r.folder)} for r in upstream]
        read += [self._model(name) for name in models]
        sources = self._source(record)
        name = Path(record.folder).name
        self._action(
            f"#run/{record.stage}/{record.key}",
            f"fitspace {record.stage} {name}",
            f"Made the {STAGES[record.stage].title} {name}.",
            self._tool(record.stage, record.environment),
            [*read, *sources, *(self._property(k, v) for k, v in settings(record).items())],
            [made],
            record.started,
            record.finished,
        )
        return sources

    def _report(self, copied: list[Reference]) -> None:
        runs = [r for r in self.lineage.records.values() if r.stage in ENDS]
        self._action(
            "#run/report",
            f"fitspace report {self.given.study}",
            "Collected the runs' metrics and made the tables, the figures and the report.",
            self._tool("report", None),
            [{"@id": quote(self.given.study)}, *({"@id": _folder_id(r.folder)} for r in runs)],
            copied,
        )

    def _workflow(self, copied: list[Reference], sources: list[Reference]) -> None:
        from rocrate.model import ComputationalWorkflow

        engines = {e["packages"].get("snakemake") for e in self.lineage.environments.values()}
        order = [*STAGES, "report"]
        steps = [
            self._add(
                f"#step/{stage}",
                "HowToStep",
                name=stage,
                position=str(order.index(stage)),
                workExample=_one(self.tools[stage]),
            )
            for stage in order
            if stage in self.tools
        ]
        workflow = self.crate.add_workflow(
            Path(WORKFLOW),
            WORKFLOW,
            main=True,
            lang="snakemake",
            lang_version=engines.pop() if len(engines) == 1 else None,
            properties=self._facts(WORKFLOW, Path(WORKFLOW))
            | {
                "@type": [*ComputationalWorkflow.TYPES, "HowTo"],
                "name": "fitspace: one study, from its file to its report",
                "version": __version__,
                "conformsTo": {"@id": BIOSCHEMAS},
                "license": {"@id": APACHE},
                "input": self._parameter("study", "The study file"),
                "output": self._parameter("report", "The report, one page"),
                "step": _one(steps),
                "hasPart": [tool for stage in self.tools.values() for tool in stage],
            },
        )
        self._add(BIOSCHEMAS, "CreativeWork", name="Bioschemas ComputationalWorkflow profile")
        models = [self._model(name) for name in self.lineage.models]
        unique = list({s["@id"]: s for s in sources}.values())
        started = [r.started for r in self.lineage.records.values() if r.started]
        self._action(
            "#run/study",
            f"Study {self.lineage.study}",
            "Every stage of the study's runs, and its report.",
            {"@id": workflow.id},
            [{"@id": quote(self.given.study)}, *models, *unique],
            copied,
            min(started),
            self.given.finished,
        )

    def _root(self) -> None:
        design, root = self.given.design, self.crate.root_dataset
        runs = sum(r.stage == "evaluate" for r in self.lineage.records.values())
        root["name"] = design["title"]
        root["description"] = " ".join(
            part
            for part in (
                design["question"],
                f"A designed experiment on parameter-efficient fine-tuning: {runs} runs, their "
                "tables and report, and what every number was made from.",
            )
            if part
        )
        root["license"] = {"@id": APACHE}
        self.crate.datePublished = self.given.finished
        root["conformsTo"] = [
            self._add(url, "CreativeWork", name=name, version=url.rpartition("/")[2])
            for url, name in PROFILES.items()
        ]
        root["mentions"] = self.actions

    # --- entities -----------------------------------------------------------------------

    def _add(self, identifier: str, kind: str, **properties: Any) -> Reference:
        """Add an entity that is no file of the crate, once."""
        from rocrate.model import ContextEntity

        if identifier not in self.crate:
            known = {name: value for name, value in properties.items() if value is not None}
            self.crate.add(ContextEntity(self.crate, identifier, {"@type": kind, **known}))
        return {"@id": identifier}

    def _action(
        self,
        identifier: str,
        name: str,
        description: str,
        instrument: Reference,
        read: list[Reference],
        made: list[Reference],
        started: str | None = None,
        finished: str | None = None,
    ) -> None:
        action = self._add(
            identifier,
            "CreateAction",
            name=name,
            description=description,
            instrument=instrument,
            object=_one(read),
            result=_one(made),
            startTime=started,
            endTime=finished,
            actionStatus=COMPLETED,
        )
        self.actions.append(action)

    def _folder(self, path: str, files: Mapping[str, str]) -> Reference:
        """Add a folder with its files' SHA-256; those that are in the crate are there already."""
        held = self.given.held
        parts = [
            self._add(
                f"{'' if f'{path}/{name}' in held else '#'}{quote(f'{path}/{name}')}",
                "File",
                name=f"{path}/{name}",
                sha256=value,
                encodingFormat=FORMATS.get(Path(name).suffix, "application/octet-stream"),
            )
            for name, value in files.items()
        ]
        return self._add(_folder_id(path), "Dataset", name=path, hasPart=_one(parts))

    def _model(self, name: str) -> Reference:
        model = self.lineage.models[name]
        return self._folder(model["path"], model["files"])

    def _source(self, record: Record) -> list[Reference]:
        source = record.material.get("source")
        if source is None:
            return []
        facts = [self._property(f"source.{k}", v) for k, v in flat(source).items()]
        return [
            self._add(
                f"#source/{digest(source)[:_SHORT]}",
                "Dataset",
                name=f"Images of {Path(record.folder).name.rpartition('~')[0]}",
                additionalProperty=_one(facts),
            )
        ]

    def _property(self, name: str, value: Any) -> Reference:
        """Add a setting and its value, once for all stages that share it."""
        content = canonical(value)
        short = content if len(content) <= _LONG else digest(value)[:_SHORT]
        identifier = f"#{quote(f'{name}={short}', safe='/=')}"
        return self._add(identifier, "PropertyValue", name=name, value=value)

    def _parameter(self, name: str, description: str) -> Reference:
        return self._add(
            f"#parameter/{name}",
            "FormalParameter",
            name=name,
            description=description,
            additionalType="File",
        )

    def _tool(self, stage: str, environment: str | None) -> Reference:
        """Add `fitspace STAGE` in its environment; the version is unknown if this is None."""
        identifier = f"#environment/{environment or 'unknown'}/{stage}"
        version = needs = None
        if environment:
            version = self.lineage.environments[environment]["fitspace"]
            needs = self._environment(environment)
        tool = self._add(
            identifier,
            "SoftwareApplication",
            name=f"fitspace {stage}",
            softwareVersion=version,
            softwareRequirements=needs,
        )
        known = self.tools.setdefault(stage, [])
        if tool not in known:
            known.append(tool)
        return tool

    def _environment(self, name: str) -> Reference:
        facts = self.lineage.environments[name]
        packages = [
            self._add(
                f"pkg:pypi/{package.lower()}@{quote(version)}",  # a package URL
                "SoftwareApplication",
                name=package,
                softwareVersion=version,
                url=f"pkg:pypi/{package.lower()}",
            )
            for package, version in facts["packages"].items()
        ]
        others = {k: v for k, v in facts.items() if k != "packages"}
        return self._add(
            f"#environment/{name}",
            "SoftwareApplication",
            name="fitspace, its packages and its machine",
            softwareVersion=facts["fitspace"],
            softwareRequirements=_one(packages),
            additionalProperty=[self._property(k, v) for k, v in flat(others).items()],
        )

    @property
    def metadata(self) -> bytes:
        return b"".join(part for _, part in self.crate.metadata.stream())

    @property
    def readme(self) -> str:
        design, report = self.given.design, self.given.report
        results = (
            "What the runs made is in `results`. A run's samples are all on its `sheet.png`. To "
            "verify\neverything: `fitspace audit FILE.zip`, with the packages of "
            "`constraints.txt`.\n"
            if self.given.held
            else "What the runs made is not in the crate. In a clone of the project with these "
            f"files,\n`fitspace audit {self.given.study}` verifies it.\n"
        )
        return (
            f"# {design['title']}\n\n"
            "An RO-Crate of a designed experiment on parameter-efficient fine-tuning, made by "
            f"fitspace {__version__}.\n\n"
            f"- `{report}/report.html`: the report; beside it its tables and figures\n"
            f"- `{report}/{NAME}`: every stage behind the numbers, with the SHA-256 of its files\n"
            f"- `{self.given.study}`: the study\n"
            f"- `{METADATA}`: all of it, and every execution, as linked data\n\n"
            f"{results}"
        )


def _folder_id(path: str) -> str:
    return f"#{quote(path)}/"


def _licence(attribution: str) -> Any:
    """The licence of images, from the attribution that they require."""
    if "CC BY-SA 4.0" in attribution:
        return {"@id": CC_BY_SA}
    return attribution or "Not stated: as the images that the study was made from."


def _one(values: list) -> Any:
    """The only element of a list of one, as RO-Crate requires; else the list."""
    return values[0] if len(values) == 1 else values
