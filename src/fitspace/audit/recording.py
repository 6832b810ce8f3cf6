"""Record results: verify everything that Snakemake made, then let DVC record it.

DVC records whatever files it finds in its folders. Therefore every sidecar is first compared with
its files, and every file with a sidecar.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fitspace.audit import Audit, elsewhere
from fitspace.audit.lock import LISTINGS, LOCK, Lock
from fitspace.audit.named import KEYED, ROOMS, git, study_files
from fitspace.core.errors import UserError
from fitspace.core.files import digest, renewing, sha256, write_bytes, write_json
from fitspace.core.paths import REPORTS, RESULTS, UNCOMMITTED
from fitspace.core.reading import read_yaml
from fitspace.plan import KEY_LENGTH, Plan, planned
from fitspace.results.lineage import in_results
from fitspace.results.table import collect_into
from fitspace.stages.sidecars import read_sidecar


@dataclass(frozen=True)
class Recorded:
    """``changed`` lists the files to commit to git; ``notes`` say what the record lacks."""

    study: str
    stages: int
    size: int
    changed: list[str]
    remote: str | None
    audit: Audit
    notes: list[str] = field(default_factory=list)


def record(path: Path, dirty: bool = False) -> Recorded:
    """Verify everything under results, make the study's report again, commit both to DVC, audit.

    With ``dirty``, uncommitted code or settings are no error; they are listed with their SHA-256 in
    ``reports/<study>/uncommitted.json``. Recording the same results again changes nothing.

    Raises
    ------
    UserError : uncommitted changes; unfinished runs; every invalid artefact or sidecar and every
        stray file; a record whose lists of files are unknown here; a study that dvc.yaml does not
        name. dvc.lock is then as it was.
    """
    from fitspace.report import build

    plan = planned(path)
    folder = REPORTS / plan.study.name
    uncommitted = uncommitted_files()
    if uncommitted and not dirty:
        raise UserError(
            f"{name}: not committed; commit it first, so that the record says what made these "
            "results, or record with --dirty"
            for name in uncommitted
        )
    _finished(plan)
    found = verify()
    with _dvc() as repo:
        stage = _stage_of(repo, folder)
        before = elsewhere.before(repo)
        with renewing(folder) as new:
            collect_into(plan, new)
            build(plan.study, new)
            note_uncommitted(new, uncommitted)
        _commit(repo, stage, before)
        remote = repo.config["core"].get("remote")
        notes = _unfinished({out.fs_path for out in repo.index.outs})
    from fitspace.audit import audit

    return Recorded(
        study=plan.study.name,
        stages=len(found),
        size=sum(item["size"] for sidecar in found.values() for item in sidecar["outputs"]),
        changed=_changed(folder),
        remote=remote,
        audit=audit(path, tier="hash"),
        notes=notes,
    )


def _finished(plan: Plan) -> None:
    missing = [
        f"{stage.sidecar}: missing; run Snakemake, or `dvc pull` what was recorded elsewhere"
        for stage in plan.stages.values()
        if not stage.sidecar.exists()
    ]
    if missing:
        raise UserError(missing)


def verify() -> dict[Path, dict[str, Any]]:
    """Sidecar -> its content, for every keyed folder under results, with all files rehashed.

    Raises
    ------
    UserError : every folder without a sidecar or with one of another key, every file that is
        missing, changed or named by no sidecar, and every stage that was made from other files
        than those present.
    """
    found, problems = {}, []
    entries = [(stage, p) for room, stage in ROOMS.items() for p in _entries(RESULTS / room)]
    for stage, folder in tqdm(entries, desc="verifying", unit="stage", disable=None):
        try:
            found[folder / f"{stage}.json"] = _whole(stage, folder)
        except UserError as error:
            problems += error.problems
    problems += _other_inputs(found)
    if problems:
        raise UserError(problems)
    return found


def _entries(room: Path) -> list[Path]:
    return sorted(room.iterdir()) if room.is_dir() else []


def _whole(stage: str, folder: Path) -> dict[str, Any]:
    """The sidecar of a keyed folder, after checking that it names exactly the folder's files."""
    keyed = KEYED.fullmatch(folder.name)
    if keyed is None or folder.is_symlink() or not folder.is_dir():
        raise UserError(f"{folder}: no stage made it; move it out of {folder.parent}")
    path = folder / f"{stage}.json"
    sidecar = read_sidecar(path)
    material, key = sidecar.get("material"), sidecar.get("key")
    if key != keyed[1] or sidecar.get("stage") != stage or digest(material)[:KEY_LENGTH] != key:
        raise UserError(
            f"{path}: is of {sidecar.get('stage')} {key!r}, or does not match its material; "
            f"needed: {stage} {keyed[1]!r}; delete {folder} to redo it"
        )
    named = {path.name, *(Path(item["path"]).name for item in sidecar["outputs"])}
    if strays := sorted(p for p in folder.iterdir() if p.name not in named):
        raise UserError(f"{p}: {path.name} does not name it; move it away" for p in strays)
    return sidecar


def _other_inputs(found: dict[Path, dict[str, Any]]) -> Iterator[str]:
    """The stages that were made from other files than those present upstream."""
    here = {path.as_posix(): sha256(path) for path in found}
    for path, sidecar in found.items():
        here |= {
            (path.parent / Path(item["path"]).name).as_posix(): item["sha256"]
            for item in sidecar["outputs"]
        }
    for path, sidecar in found.items():
        for item in sidecar["inputs"]:
            name = in_results(item["path"])
            if here.get(name, item["sha256"]) != item["sha256"]:
                yield (
                    f"{path}: was made from a {name} of SHA-256 {item['sha256']}, here is "
                    f"{here[name]}; delete {path.parent} to redo it"
                )


def _status(*pathspecs: str) -> list[str]:
    """Paths that differ from the commit, from the repository's top."""
    status = git(
        "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--", *pathspecs
    )
    return [entry[3:] for entry in status.split("\0") if entry]


def uncommitted_files() -> list[str]:
    """What is not in git, except the files that a record itself changes."""
    git("rev-parse", "HEAD")
    return _status(":/", *(f":(exclude){name}" for name in (REPORTS, LOCK, LISTINGS)))


def note_uncommitted(folder: Path, names: list[str]) -> None:
    path = folder / UNCOMMITTED
    if not names:
        path.unlink(missing_ok=True)
        return
    top = Path(git("rev-parse", "--show-toplevel").rstrip("\n"))  # the project may lie below it
    files = {name: sha256(top / name) if (top / name).is_file() else None for name in names}
    write_json(path, {"commit": git("rev-parse", "HEAD").strip(), "files": files})


def _changed(folder: Path) -> list[str]:
    return [p.as_posix() for p in (LOCK, LISTINGS, folder) if _status(p.as_posix())]


@contextmanager
def _dvc():
    """The project's DVC repository; its errors become user errors."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    # No study may have class images; DVC warns of their empty folder.
    logging.getLogger("dvc").setLevel(logging.ERROR)
    try:
        with Repo() as repo:
            yield repo
    except DvcException as error:
        raise UserError(f"dvc: {error}") from None


def _stage_of(repo, folder: Path) -> str:
    """The name of the stage in dvc.yaml that makes a report."""
    outs = {out.fs_path: out.stage.addressing for out in repo.index.outs}
    if (name := outs.get(str(_table(folder)))) is not None:
        return name
    raise UserError(
        f"dvc.yaml: does not name {folder}; add the study wherever another study is named "
        "(docs/provenance.md)"
    )


def _table(folder: Path) -> Path:
    return (folder / "runs.csv").resolve()


def _commit(repo, stage: str, recorded: Lock) -> None:
    """``dvc commit --force --with-deps``, with what is recorded and not here.

    dvc.lock is written once or not at all.
    """
    before = LOCK.read_bytes() if LOCK.exists() else None
    for room in ROOMS:  # DVC wants every folder that it is told to keep.
        (RESULTS / room).mkdir(parents=True, exist_ok=True)
    try:
        repo.commit(stage, with_deps=True, force=True)
        elsewhere.take_over(recorded)
    except BaseException:
        if before is None:
            LOCK.unlink(missing_ok=True)
        elif LOCK.read_bytes() != before:
            write_bytes(LOCK, before)
        raise


def _unfinished(outs: set[str]) -> list[str]:
    """The other studies named in dvc.yaml that are incomplete on this machine."""
    notes = []
    for path in study_files():
        try:
            if str(_table(REPORTS / str(read_yaml(path).get("name")))) not in outs:
                continue
            stages = planned(path).stages.values()
        except UserError as error:
            notes += error.problems
            continue
        if missing := sum(not stage.sidecar.exists() for stage in stages):
            notes.append(
                f"{path}: {missing} of its {len(stages)} stages are missing, and dvc.lock treats "
                f"its settings as done: `snakemake --config study={path}` makes them, `dvc repro` "
                "does not"
            )
    return notes


def describe(recorded: Recorded) -> str:
    """Text that says what was recorded and what to do next."""
    lines = [
        f"{recorded.study}: {recorded.stages} stages ({recorded.size / 2**20:.1f} MiB) verified "
        "and in dvc.lock"
    ]
    steps = []
    if recorded.changed:
        names = " ".join(recorded.changed)
        steps.append(f"git add {names} && git commit -m 'Record study {recorded.study}'")
    if recorded.remote is None:
        steps.append("dvc remote add --default store FOLDER_OR_URL    # once; then commit .dvc")
    steps.append("dvc push")
    return "\n".join([*lines, "next:", *(f"  {step}" for step in steps)])
