"""A study as one file: an RO-Crate in a zip, with everything that an audit of it needs.

Beside what the crate of :mod:`fitspace.audit.crate` holds, a bundle has the results of all stages,
the models and images of the project's folder that the study names, the package's code and pins of
every commit that made something, and DVC's listings of the results. Samples are held once: where
their file can be made again from the sheet that shows them (a PNG), bit for bit, only the sheet is
in it.

A *light* bundle is for git. It leaves out what a clone has, models, code and the study's images,
and what only training and sampling read of prepared tasks, which a clone makes again. An audit
takes what a bundle lacks from the project that it is called in.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, Field

from fitspace.audit import audit, crate, sources
from fitspace.audit.findings import Finding
from fitspace.audit.lock import Lock
from fitspace.audit.named import ROOMS
from fitspace.core import archives
from fitspace.core.errors import UserError
from fitspace.core.files import read_json, sha256
from fitspace.core.paths import REPORTS, RESULTS
from fitspace.core.reading import Sha256, checked
from fitspace.plan import STAGES, TOLD
from fitspace.plan.models import MODELS, named
from fitspace.results import lineage as lineages
from fitspace.results.lineage import Lineage, Record
from fitspace.stages.sidecars import load_sidecar
from fitspace.study.reading import form

if TYPE_CHECKING:
    from fitspace.study import Study

EXPORTED = Path("exported")  # not in git
_CACHE = ".dvc/cache"  # of DVC, in a bundle


@dataclass(frozen=True)
class Written:
    """A bundle, and the results that it leaves out: path -> size [bytes]."""

    path: Path
    files: int
    left_out: dict[str, int]


def write(study_file: Path, light: bool = False, largest: int | None = None) -> Written:
    """Write a study's bundle: ``exported/<study>.zip``, or a light one, ``reports/<study>.zip``.

    Results of more than ``largest`` bytes are left out. The same study gives the same bytes.

    Raises
    ------
    UserError : results that contradict their record or are missing; images that lie outside of the
        project; what a crate lacks. The file that was there before stays.
    """
    found = audit(study_file, tier="hash")
    study, lineage, folder = found.target.study, found.lineage, found.target.folder
    problems = [f"{f.subject}: {f.message}" for f in found.findings if f.kind == "changed"]
    problems += [
        f"{record.folder}: {name} is missing; run Snakemake, or `dvc pull` what was recorded"
        for record in lineage.records.values()
        for name in record.files
        if not (Path(record.folder) / name).is_file()
    ]
    problems += [] if light else list(_outside(study))
    if problems:
        raise UserError(problems)
    # A record of another making says nothing about these results.
    anew = any(f.kind == "anew" for f in found.findings)
    with tempfile.TemporaryDirectory(prefix="fitspace-bundle-") as name:
        results, left_out = _results(lineage, light, largest)
        held = results | ({} if anew else _listings(lineage))
        if not light:
            held |= _models(study) | _images(study) | _commits(lineage, Path(name))
        without = [crate.LOCK] if anew else []
        files = crate.contents(study_file, lineage, folder, held, without)
        path = (REPORTS if light else EXPORTED) / f"{study.name}.zip"
        archives.write(path, files)
    return Written(path, len(files), left_out)


def _results(
    lineage: Lineage, light: bool, largest: int | None
) -> tuple[dict[str, Path], dict[str, int]]:
    """Path in the bundle -> file; and what is left out, with its size."""
    held, left_out = {}, {}
    for record in lineage.records.values():
        again = _from_sheet(record)
        for name in record.files:
            path = Path(record.folder) / name
            size = path.stat().st_size
            if (light and _is_told(record, name)) or (largest is not None and size > largest):
                left_out[path.as_posix()] = size
            elif name != again:
                held[path.as_posix()] = path
    return held, left_out


def _is_told(record: Record, name: str) -> bool:
    """Whether a file is what only training and sampling read of a prepared task."""
    return record.stage == "prepare" and name in TOLD


def _from_sheet(record: Record) -> str | None:
    """The file of a stage's images, if the sheet beside it gives it again, bit for bit."""
    from fitspace.stages import pictures

    name, folder = pictures.IMAGES.get(record.stage), Path(record.folder)
    if name not in record.outputs or pictures.SHEET not in record.outputs:
        return None
    sidecar = load_sidecar(folder / f"{record.stage}.json")
    with tempfile.TemporaryDirectory(prefix="fitspace-sheet-") as scratch:
        try:
            pictures.from_sheet(record.stage, folder, sidecar, Path(scratch) / name)
        except UserError:
            return None  # a run that diverged has none; a very large sheet is not read
        return name if sha256(Path(scratch) / name) == record.outputs[name] else None


def _listings(lineage: Lineage) -> dict[str, Path]:
    rooms = {PurePosixPath(r.folder).parent.as_posix() for r in lineage.records.values()}
    return {f"{_CACHE}/{name}": path for name, path in Lock().listings(sorted(rooms)).items()}


def _outside(study: Study) -> Iterator[str]:
    for i, task in enumerate(study.tasks):
        if task.source == "folder" and not _is_inside(Path(task.path)):
            yield (
                f"tasks[{i}].path: {task.path!r} lies outside of the project, where an audit "
                "of the bundle would not find it; allowed: a folder of the project"
            )


def _is_inside(path: Path) -> bool:
    return not path.is_absolute() and ".." not in path.parts


def _models(study: Study, shipped: bool = False) -> dict[str, Path]:
    """The models in the project's folder; weights that an installed package has only if
    ``shipped``."""
    found: list[Path] = []
    for name, reference in named(study).items():
        with contextlib.suppress(UserError):  # absent: the audit of the bundle says so too
            found += MODELS[name](reference).values()
    notes = {note for path in found if (note := path.with_name("package.json")).is_file()}
    weights = set() if shipped else {note.with_name("model.safetensors") for note in notes}
    return {p.as_posix(): p for p in {*found, *notes} - weights if _is_inside(p)}


def _images(study: Study) -> dict[str, Path]:
    """The images and captions of tasks in the project's folder."""
    paths = [Path(task.path) for task in study.tasks if task.source == "folder"]
    roots = [path for path in paths if _is_inside(path)]
    files = (path for root in roots for path in root.rglob("*") if path.is_file())
    return {path.as_posix(): path for path in files}


def _commits(lineage: Lineage, scratch: Path) -> dict[str, Path]:
    """The package's files and the pins of each commit that is in git."""
    made = (lineage.environments[r.environment] for r in lineage.records.values() if r.environment)
    held = {}
    for commit in sorted({facts["git"]["commit"] for facts in made if facts["git"]}):
        with contextlib.suppress(LookupError):  # the audit of the bundle says so too
            for name, content in sources.files_at(commit).items():
                path = scratch / commit / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                held[(sources.COMMITS / commit / name).as_posix()] = path
    return held


# --- reading ------------------------------------------------------------------------------


class _Reference(BaseModel):
    id: str = Field(alias="@id")


class _Entity(BaseModel):
    model_config = ConfigDict(strict=True)

    id: str = Field(alias="@id")
    sha256: Sha256 | None = None
    example: Any = Field(None, alias="exampleOfWork")


class _Metadata(BaseModel):
    graph: list[_Entity] = Field(alias="@graph")


@dataclass(frozen=True)
class _Unpacked:
    """``study`` is the study file's path in the bundle; ``findings`` are about its files."""

    folder: Path
    study: Path
    findings: list[Finding]


@contextlib.contextmanager
def working_in(path: Path, deep: bool, again: bool = False) -> Iterator[tuple[Path, list[Finding]]]:
    """Unpack a bundle into a temporary folder that is the working folder meanwhile.

    What the bundle leaves out is taken from the project that this is called in. Yields the study
    file's path, and findings about the bundle's files. ``deep``: the metadata is made again from
    them, too. ``again``: prepared tasks that the bundle leaves out are made again.

    Raises
    ------
    UserError : not a bundle; as :func:`fitspace.core.archives.unpack`.
    """
    with tempfile.TemporaryDirectory(prefix="fitspace-bundle-") as name:
        found = _unpack(path, Path(name) / "bundle")
        findings, folder = found.findings, found.folder
        if deep and not findings:
            with contextlib.chdir(folder):
                findings = list(_described_again(found.study))
        _images_again(folder)
        if not findings:
            with _named(folder, path):
                findings = _completed(found, again)
        with contextlib.chdir(folder):
            yield found.study, findings


def _completed(unpacked: _Unpacked, again: bool) -> list[Finding]:
    """Put beside a bundle's files what it lacks and this project has; returns what is still left
    out of its prepared tasks."""
    study, folder = form(unpacked.folder / unpacked.study), unpacked.folder
    lineage = lineages.read(folder / REPORTS / study.name)
    here = _models(study, shipped=True) | _images(study)
    _link(here | _commits(lineage, folder.with_name("commits")), folder)
    findings = []
    for record in lineage.records.values():
        if not _lacks(record, folder):
            continue
        if not _lacks(record, Path()):
            files = [Path(record.folder) / name for name in record.files]
            _link({file.as_posix(): file for file in files}, folder)
        elif not (again and record.stage == "prepare"):
            left_out = (n for n in record.outputs if _is_told(record, n))
            findings += [
                Finding("left out", f"{record.folder}/{name}", "`fitspace restore` makes it again")
                for name in left_out
                if not (folder / record.folder / name).exists()
            ]
        else:
            _prepared_again(unpacked.study, record, folder)  # if it cannot be, the audit says so
    return findings


def _link(files: dict[str, Path], folder: Path) -> None:
    """Links to a project's files, where a folder has none of that name."""
    for name, path in files.items():
        target = folder / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path.absolute())


def _unpack(path: Path, folder: Path) -> _Unpacked:
    """Unpack a bundle and compare its files with its metadata."""
    folder.mkdir()
    archives.unpack(path, folder)
    what = "a bundle, which `fitspace bundle` writes"
    if not (folder / crate.METADATA).is_file():
        raise UserError(f"{path}: not {what} (it has no {crate.METADATA})")
    with _named(folder, path):
        content = read_json(folder / crate.METADATA, what=f"the metadata of {what}")
        graph = checked(content, _Metadata, crate.METADATA, f"the metadata of {what}").graph
    listed = {unquote(e.id): e.sha256 for e in graph if e.sha256 and not e.id.startswith("#")}
    studies = [e.id for e in graph if e.example == {"@id": "#parameter/study"}]
    if len(studies) != 1 or unquote(studies[0]) not in listed:
        raise UserError(f"{path}: not {what} ({crate.METADATA} names no study file)")
    here = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return _Unpacked(folder, Path(unquote(studies[0])), list(_differing(listed, here)))


def _differing(listed: dict[str, str], here: dict[str, Path]) -> Iterator[Finding]:
    for name in sorted({*listed, *here} - {crate.METADATA, crate.README}):
        if name not in here:
            yield Finding("absent", name, f"{crate.METADATA} lists it; the bundle lacks it")
        elif name not in listed:
            yield Finding("changed", name, f"{crate.METADATA} does not list it")
        elif (found := sha256(here[name])) != listed[name]:
            message = f"SHA-256 is {found}; {crate.METADATA} has {listed[name]}"
            yield Finding("changed", name, message)


def _described_again(study_file: Path) -> Iterator[Finding]:
    """Whether the metadata and the first page are those of the files, byte for byte."""
    here = {p.as_posix(): p for p in Path().rglob("*") if p.is_file()}
    folder, made = REPORTS / form(study_file).name, (crate.METADATA, crate.README)
    held = {name: path for name, path in here.items() if name not in made}
    again = crate.contents(study_file, lineages.read(folder), folder, held)
    for name in made:
        if name not in here or here[name].read_bytes() != again[name]:
            yield Finding("changed", name, "differs from the one made again from the bundle")


def _images_again(folder: Path) -> None:
    """Make the files of images that only their sheets are here of. One that cannot be made stays
    absent, and the audit says so."""
    from fitspace.stages import pictures

    for stage, name in pictures.IMAGES.items():
        for sheet in sorted((folder / RESULTS / STAGES[stage].room).glob(f"*/{pictures.SHEET}")):
            images = sheet.with_name(name)
            if not images.exists():
                with contextlib.suppress(UserError):
                    sidecar = load_sidecar(sheet.with_name(f"{stage}.json"))
                    pictures.from_sheet(stage, sheet.parent, sidecar, images)


@contextlib.contextmanager
def _named(folder: Path, path: Path) -> Iterator[None]:
    """Let errors name the bundle, not the folder that it was unpacked to."""
    try:
        yield
    except UserError as error:
        raise UserError(p.replace(f"{folder}/", f"{path}: ") for p in error.problems) from None


# --- results of a bundle, in a project -------------------------------------------------------


@dataclass(frozen=True)
class Restored:
    """``stages`` that are here now, and those that are not, each with the reason."""

    study: Path
    stages: int
    missing: dict[str, str]


def restore(path: Path) -> Restored:
    """Put a bundle's results into this project, where it has none.

    Every file is compared with the bundle's lineage, and that one with the project's own. A
    prepared task that a light bundle lacks is made again from the study's images, and kept if it
    has the recorded bits. A stage is put there whole or not at all, its sidecar last.

    Raises
    ------
    UserError : as :func:`working_in`; files that contradict a record or the files that are here.
        Nothing is changed then.
    """
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RESULTS, prefix=".restoring-") as name:
        unpacked = _unpack(path, Path(name) / "bundle")
        folder = unpacked.folder
        _images_again(folder)
        with _named(folder, path):
            study = form(folder / unpacked.study).name
            lineage = lineages.read(folder / REPORTS / study)
        problems = [f"{f.subject}: {f.message}" for f in unpacked.findings]
        problems += _contradicting(lineage, folder, study)
        if problems:
            raise UserError(f"{path}: {problem}" for problem in problems)
        missing = {
            record.folder: why
            for record in lineage.records.values()
            if _lacks(record, folder) and (why := _prepared_again(unpacked.study, record, folder))
        }
        for record in lineage.records.values():
            if record.folder not in missing:
                _put(record, folder)
        for listing in (folder / _CACHE).rglob("*.dir"):
            Lock().keep(listing)
    return Restored(unpacked.study, len(lineage.records) - len(missing), missing)


def _contradicting(lineage: Lineage, folder: Path, study: str) -> Iterator[str]:
    """Files that are not as the bundle's lineage, the project's own or the project has them."""
    own = REPORTS / study
    known = lineages.read(own).records if (own / lineages.NAME).exists() else {}
    for link, record in lineage.records.items():
        place = PurePosixPath(record.folder)
        if not record.is_of_its_material or ROOMS.get(place.parent.name) != record.stage:
            yield f"{record.folder}: is not the folder of what it was made of"
        if link in known and known[link].files != record.files:
            yield f"{record.folder}: {own / lineages.NAME} records another making of it"
        for name, expected in record.files.items():
            for root, cure in ((folder, ""), (Path(), "; move its folder away")):
                file = root / place / name
                if file.exists() and sha256(file) != expected:
                    yield f"{place / name}: differs from {lineages.NAME}{cure}"


def _lacks(record: Record, folder: Path) -> bool:
    return not all((folder / record.folder / name).is_file() for name in record.files)


def _prepared_again(study_file: Path, record: Record, folder: Path) -> str:
    """Make a prepared task again, into the bundle's folder; why this cannot be, or empty."""
    if not _lacks(record, Path()):
        return ""
    if record.stage != "prepare":
        return "the bundle leaves out files of it"
    from fitspace.plan import planned
    from fitspace.stages.prepare import prepare

    run = planned(study_file, in_job=True).run_of("prepare", Path(record.folder).name)
    scratch = replace(run.prepare, folder=folder / "again")
    own = run.own | {"prepare": scratch}
    if run.prior is not None:  # class images, which it reads
        own["prior"] = replace(run.prior, folder=folder / run.prior.folder)
    prepare(form(study_file), replace(run, own=own))
    if any(sha256(scratch.folder / name) != sha for name, sha in record.outputs.items()):
        return "made again on this kind of machine it has other bits; Snakemake makes it"
    for name in record.outputs:
        os.replace(scratch.folder / name, folder / record.folder / name)
    return ""


def _put(record: Record, folder: Path) -> None:
    """Move a stage's files into the project, the sidecar last; files that are here stay."""
    target = Path(record.folder)
    target.mkdir(parents=True, exist_ok=True)
    for name in [*record.outputs, f"{record.stage}.json"]:
        if not (target / name).exists():
            os.replace(folder / target / name, target / name)
