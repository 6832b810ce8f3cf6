"""The sources that all runs depend on: base, judge, code and packages."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from fitspace.audit.findings import Finding
from fitspace.core import git
from fitspace.core.errors import UserError
from fitspace.core.files import canonical, digest, read_json, sha256
from fitspace.core.paths import UNCOMMITTED
from fitspace.core.reading import Sha256
from fitspace.plan.models import MODELS, named
from fitspace.results.lineage import Lineage
from fitspace.study import Study

PINS = "constraints.txt"
SOURCE = "src/fitspace"
# In an unpacked bundle, which has no git: the package's files and the pins, by commit.
COMMITS = Path("commits")


def check(study: Study, lineage: Lineage, environments: Iterable[dict[str, Any]]) -> list[Finding]:
    """Changed and absent files of models; code and packages that differ from the records."""
    findings = _models(study, lineage)
    for made in {canonical(made): made for made in environments}.values():
        findings += _environment(made)
    return findings


class _Uncommitted(BaseModel):
    files: dict[Annotated[str, Field(pattern=r"^[^\x00]+$")], Sha256 | None]


def uncommitted(folder: Path) -> list[Finding]:
    """Files that were not in git when the study was recorded and differ from that state now."""
    path = folder / UNCOMMITTED
    if not path.exists():
        return []
    try:
        files = _Uncommitted.model_validate(read_json(path)).files.items()
    except (UserError, ValidationError) as error:
        message = f"is not what `fitspace record` wrote ({' '.join(str(error).split())})"
        return [Finding("changed", path.as_posix(), message)]
    findings = []
    for name, value in files:
        try:
            committed = hashlib.sha256(_git("cat-file", "blob", f"HEAD:{name}")).hexdigest()
        except LookupError:
            committed = None
        if committed != value:
            message = f"was recorded as SHA-256 {value}, which is not committed"
            findings.append(Finding("absent", name, message))
    return findings


def committed(path: str) -> bytes:
    """A file of the project as git has it. Raises LookupError if git does not have it."""
    return _git("cat-file", "blob", f"HEAD:./{path}")


def _models(study: Study, lineage: Lineage) -> list[Finding]:
    findings, references = [], named(study)
    for key, recorded in lineage.models.items():
        reference = references.get(key)
        if reference != recorded["path"]:
            message = f"the study names {reference!r}; the runs were made with {recorded['path']!r}"
            findings.append(Finding("changed", key, message))
            continue
        try:
            here = MODELS[key](reference)
        except UserError as error:
            findings += [Finding("absent", key, problem) for problem in error.problems]
            continue
        for name in sorted({*recorded["files"], *here}):
            before, path = recorded["files"].get(name), here.get(name)
            subject = f"{reference}/{name}"
            if path is None:
                findings.append(Finding("absent", subject, "not here"))
            elif before is None:
                findings.append(Finding("changed", subject, "was not there when runs were made"))
            elif (now := sha256(path)) != before:
                message = f"SHA-256 is {now}; the runs were made with {before}"
                findings.append(Finding("changed", subject, message))
    return findings


def _environment(made: dict[str, Any]) -> list[Finding]:
    recorded = made.get("git")
    if recorded is None:
        return [Finding("absent", "code", "the runs were made outside a git repository")]
    commit = recorded["commit"]
    try:
        source = source_at(commit)
        pins = pins_at(commit)
    except LookupError as error:
        why = "is not in this repository, so its code and pins cannot be looked at"
        if not _has_commit(commit):
            return [Finding("absent", f"commit {commit}", why)]
        return [Finding("absent", f"commit {commit}", str(error))]
    findings = []
    if source != made["source_sha256"]:
        if recorded["dirty"]:
            message = (
                f"its source (digest {made['source_sha256']}) is in no commit: runs were made "
                f"from a changed checkout of {commit}"
            )
            findings.append(Finding("absent", "code", message))
        else:
            message = f"source digest is {source}; the runs name {made['source_sha256']}"
            findings.append(Finding("changed", f"commit {commit}", message))
    for package, version in made["packages"].items():
        pin = pins.get(_normal(package))
        # A local version such as +cpu names a build of the pinned version.
        if pin is not None and version.partition("+")[0] != pin:
            message = f"runs were made with {version}; {PINS} of {commit[:12]} pins {pin}"
            findings.append(Finding("changed", f"package {package}", message))
    return findings


def files_at(commit: str) -> dict[str, bytes]:
    """The package's files and the pins at a commit, by path: as git has them, else as a bundle
    does.

    Raises LookupError if neither has the commit.
    """
    try:
        content = _git("archive", "--format=tar", commit, SOURCE, PINS)
    except LookupError:
        folder = COMMITS / commit
        if not folder.is_dir():
            raise
        found = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}


def source_at(commit: str) -> str:
    """The digest of the package's source (`provenance.source_digest`) at a commit.

    Raises LookupError as `files_at`.
    """
    code = {n: c for n, c in files_at(commit).items() if n != PINS and n.endswith(".py")}
    own = {n.removeprefix(f"{SOURCE}/"): hashlib.sha256(c).hexdigest() for n, c in code.items()}
    return digest(own)


def pins_at(commit: str) -> dict[str, str]:
    """Package -> pinned version, at a commit. Raises LookupError as `files_at`."""
    lines = files_at(commit).get(PINS, b"").decode().splitlines()
    pins = (line.partition("==") for line in lines if not line.startswith("#"))
    return {_normal(name): version.strip() for name, equals, version in pins if equals}


def _normal(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def _git(*arguments: str) -> bytes:
    try:
        return git.run(*arguments)
    except git.GitError as error:
        raise LookupError(f"is not here: git says {' '.join(str(error).split())}") from None


def _has_commit(commit: str) -> bool:
    try:
        git.run("cat-file", "-e", f"{commit}^{{commit}}")
    except git.GitError:
        return False
    return True


def is_shallow() -> bool:
    """Whether this clone lacks its earlier commits."""
    try:
        return git.run("rev-parse", "--is-shallow-repository").strip() == b"true"
    except git.GitError:
        return False
