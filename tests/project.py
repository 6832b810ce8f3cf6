"""A whole project in a git repository of its own, and really fresh clones of it.

The origin is made once for all test processes: the tracked and new files of this checkout, a
study of two points and the untouched base on twenty images, run by Snakemake to its report.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from filelock import FileLock
from PIL import Image

ROOT = Path(__file__).parents[1]
STUDY = "params/two.yaml"
# What no study of a test needs: other bases, other studies' reports and their record.
LEFT_OUT = (
    "dvc.lock",
    ".dvc/listings/",
    "reports/",
    "docs/images/",
    "models/emoji-dit/",
    "models/emoji-mmdit/",
    "tests/",
    "benchmarks/",
    ".ci/",
)


@dataclass(frozen=True)
class Project:
    """A project folder; commands run in it with its own source, not with this checkout's.

    ``commands`` is a folder of programs that come before those of the environment: with a warm
    process's, the jobs of Snakemake are forks of it (warm.py).
    """

    folder: Path
    commands: Path | None = None

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def run(self, *command: str, ok: bool = True, **variables: str):
        """Run a command; with ``ok`` it has to succeed. Returns the finished process."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=self.environment | variables,
        )
        assert done.returncode == 0 or not ok, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    @property
    def environment(self) -> dict[str, str]:
        programs = [self.commands, Path(sys.executable).parent, os.environ["PATH"]]
        own = {
            "PATH": ":".join(str(place) for place in programs if place),
            "PYTHONPATH": str(self.folder / "src"),
            "HF_HUB_OFFLINE": "1",
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(self.folder / ".git/dvc-site"),
        }
        people = (f"GIT_{who}" for who in ("AUTHOR", "COMMITTER"))
        names = (f"{person}_{what}" for person in people for what in ("NAME", "EMAIL"))
        return os.environ | own | dict.fromkeys(names, "tester@example.org")

    def fitspace(self, *arguments: str, ok: bool = True, **variables: str):
        return self.run(sys.executable, "-m", "fitspace.cli", *arguments, ok=ok, **variables)

    def snakemake(self, *arguments: str, study: str = STUDY, ok: bool = True):
        return self.run(
            "snakemake", "--cores", "2", "--config", f"study={study}", "--", *arguments, ok=ok
        )

    def git(self, *arguments: str, ok: bool = True) -> str:
        return self.run("git", *arguments, ok=ok).stdout.strip()

    def dvc(self, *arguments: str, ok: bool = True):
        return self.run(sys.executable, "-m", "dvc", *arguments, ok=ok)

    def commit(self, message: str) -> str:
        """Commit everything that is not ignored; returns the commit."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)
        return self.git("rev-parse", "HEAD")

    def study(self, **changes: Any) -> None:
        """Write the study file, with some keys changed."""
        (self / STUDY).write_text(yaml.safe_dump(content() | changes, sort_keys=False))

    def clone(self, to: Path) -> Project:
        """What git holds of this project, and nothing else."""
        subprocess.run(["git", "clone", "--quiet", str(self.folder), str(to)], check=True)
        return replace(self, folder=to)

    def copy(self, to: Path) -> Project:
        """Everything as it stands, results too."""
        # MLflow's database names its folder, so that a copy of it is refused.
        ignore = shutil.ignore_patterns("mlflow.db*", "mlartifacts")
        shutil.copytree(self.folder, to, symlinks=True, ignore=ignore)
        return replace(self, folder=to)

    def warmed(self, commands: Path | None) -> Project:
        """The same, with these programs first."""
        return replace(self, commands=commands)

    def enter(self, patch) -> None:
        """Make it this process's folder, with its environment; ``patch`` is a MonkeyPatch."""
        for name, value in self.environment.items():
            if name.startswith(("DVC", "GIT", "HF")):
                patch.setenv(name, value)
        patch.chdir(self.folder)

    def files(self, *folders: str) -> dict[str, bytes]:
        """Relative path -> content of every file under some folders."""
        found = (p for name in folders for p in sorted((self / name).rglob("*")))
        return {p.relative_to(self.folder).as_posix(): p.read_bytes() for p in found if p.is_file()}


def content() -> dict[str, Any]:
    """The study: two points and the untouched base, two seeds: six runs."""
    return {
        "name": "two",
        "title": "Two points",
        "base": "models/emoji-unet",
        "judge": "models/emoji-clip",
        "tasks": [{"name": "mine", "source": "folder", "path": "images"}],
        "arms": [
            {
                "method": "adapter",
                "factors": {"output": ["FFN_in", "Trans_out"]},
                "settings": {"input": "CA_out", "width": 4},
            },
            {"method": "none"},
        ],
        "seeds": [0, 1],
        "train": {"steps": 3, "batch_size": 4, "lr": 1.0e-3},
        "sample": {"prompts": 6, "steps": 3, "guidance": 2.0},
        "analysis": {"factors": ["output"], "responses": ["fd_effnet", "clip_t"]},
    }


def images(folder: Path) -> None:
    """Twenty captioned images, six of them held out; the captions want escaping."""
    folder.mkdir()
    lines = []
    draw = np.random.default_rng(0)
    for i in range(20):
        pixels = draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
        split = "test" if i < 6 else "train"
        lines.append({"file_name": f"{i:02}.png", "text": f"thing {i} <i>", "split": split})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))


def once(folder: Path, make: Callable[[Project], None]) -> Project:
    """A project in a folder of all test processes, made by whoever comes first.

    Nobody writes into what is returned: tests work on a ``clone`` or a ``copy`` of it.
    """
    ready = folder.with_name(f"{folder.name}.ready")
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not ready.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(Project(folder))
            ready.touch()
    return Project(folder)


def finish(project: Project) -> None:
    """Make the origin, with its study run and committed."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(LEFT_OUT):
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, project / name)
    images(project / "images")
    project.study()
    project.git("init", "--quiet", "--initial-branch", "main")
    project.commit("A project")
    project.snakemake("all")
    project.commit("Its study, run")
