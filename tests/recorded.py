"""Projects whose results DVC keeps: this checkout's own dvc.yaml, brought to the test's study."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import yaml
from project import Project

# Of the studies beside the default one, and of the bases that only they have.
OTHERS = ("params/emoji-", "reports/emoji-", "models/emoji-dit/", "models/emoji-mmdit/")


def name_study(project: Project) -> None:
    """Put the test's study in the place of the committed ones, as a user would, line by line."""
    for study in (project / "params").glob("emoji*.yaml"):
        study.unlink()
    path = project / "dvc.yaml"
    text = path.read_text()
    text = re.sub(r"studies: \[[^]]*\]", "studies: [two]", text)
    text = re.sub("models/emoji-(mm)?dit, ", "", text)
    lines = [line for line in text.splitlines() if not any(name in line for name in OTHERS)]
    text = "\n".join(lines).replace("params/emoji.yaml", "params/two.yaml")
    content = yaml.safe_load(text.replace("reports/emoji/", "reports/two/"))
    content["plots"] = [name for name in content["plots"] if (project / name).exists()]
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def light_copy(project: Project, to: Path) -> Project:
    """Everything as it stands; what is never written to, models first of all, as hard links."""
    fixed = [str(project / name) for name in ("models", ".git/objects", ".dvc/cache")]

    def link_or_copy(source: str, target: str) -> None:
        (os.link if source.startswith(tuple(fixed)) else shutil.copy2)(source, target)

    shutil.copytree(project.folder, to, symlinks=True, copy_function=link_or_copy)
    return replace(project, folder=to)


def record(finished: Project, to: Path) -> None:
    """Make a copy of a project with its results recorded, committed and pushed to a folder."""
    project = light_copy(finished, to)
    name_study(project)
    project.dvc("remote", "add", "--default", "store", str(to.with_name(f"{to.name}-store")))
    project.commit("What DVC keeps")
    project.fitspace("record", "params/two.yaml")
    project.commit("Record study two")
    project.dvc("push")
