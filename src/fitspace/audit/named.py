"""The keyed results that studies, reports and recorded commits name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fitspace.core import git as core_git
from fitspace.core.errors import UserError
from fitspace.core.paths import REPORTS
from fitspace.plan import KEY_LENGTH, STAGES, build_plan, checked
from fitspace.results import lineage

# Folder of results -> the stage whose keyed folders it holds.
ROOMS = {row.room: row.name for row in STAGES.values()}
KEYED = re.compile(rf".+~([0-9a-f]{{{KEY_LENGTH}}})")
_KEY = re.compile(rf"\b[0-9a-f]{{{KEY_LENGTH}}}\b")


@dataclass(frozen=True)
class Named:
    """``keys`` that something names; ``tasks`` of studies whose keys are unknown here."""

    keys: frozenset[str]
    tasks: frozenset[str]

    def __contains__(self, folder: Path) -> bool:
        slug, _, key = folder.name.rpartition("~")
        if key in self.keys:
            return True
        # Class images carry their prompt's name, not a task's.
        task = slug.split("~")[1] if slug.count("~") == 2 else slug
        return bool(self.tasks) if folder.parent.name == "prior" else task in self.tasks


def study_files() -> list[Path]:
    """The study files of this project, sorted."""
    return sorted(p for p in Path("params").rglob("*") if p.suffix in (".yaml", ".yml"))


def named_here() -> Named:
    """Everything that the study files and reports of this work tree name.

    Raises
    ------
    UserError : every problem of an invalid study file or provenance.json, because what such a file
        names is unknown.
    """
    keys, problems, tasks = set(), [], set()
    for path in study_files():
        try:
            study, models = checked(path)
            if models.absent:
                tasks |= {task.name for task in study.tasks}
            else:
                keys |= {stage.key for stage in build_plan(study, models).stages.values()}
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    for path in REPORTS.glob(f"*/{lineage.NAME}"):
        found = lineage.read(path.parent).records.values()
        # An edited file may name less than before.
        problems += [
            f"{path}: {record.folder} does not match its material, so what it names is unknown"
            for record in found
            if not record.is_of_its_material
        ]
        keys |= {record.key for record in found}
        keys |= {key for record in found for _, key in record.upstream}
    if problems:
        raise UserError(problems)
    return Named(frozenset(keys), frozenset(tasks))


def named_in_history() -> frozenset[str]:
    """Every key in a provenance.json of any commit that a branch, a tag or a stash reaches.

    Raises
    ------
    UserError : no git repository, or a shallow one, which lacks the history.
    """
    if git("rev-parse", "--is-shallow-repository").strip() == "true":
        raise UserError(
            "git: a shallow clone does not know what its earlier commits name; "
            "run `git fetch --unshallow`"
        )
    # By the whole folder: with a pattern, git lists commits and leaves out their files.
    listed = git("rev-list", "--all", "--full-history", "--objects", "--", str(REPORTS))
    objects = (line.partition(" ") for line in listed.splitlines())
    blobs = {name for name, _, path in objects if path.endswith(f"/{lineage.NAME}")}
    return frozenset(key for blob in sorted(blobs) for key in _KEY.findall(git("show", blob)))


def git(*arguments: str) -> str:
    """The output of a git command in this project.

    Raises UserError when it fails, or there is no git.
    """
    try:
        return core_git.run(*arguments).decode("utf-8", errors="surrogateescape")
    except core_git.GitError as error:
        raise UserError(f"git {arguments[0]}: {error}") from None
