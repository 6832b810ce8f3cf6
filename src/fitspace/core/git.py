"""git, as it sees a folder: what it answers, and in its own words why it does not.

Variables such as GIT_DIR, which a hook or a shell may have left behind, are another repository's:
the folder decides.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

_OF_ELSEWHERE = (
    "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_NAMESPACE", "GIT_PREFIX",
    "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_CEILING_DIRECTORIES",
)  # fmt: skip


class GitError(Exception):
    """git is not here, or refused: its own words."""


def environment() -> Mapping[str, str]:
    """This process's variables, without those that would lead git elsewhere."""
    return {name: value for name, value in os.environ.items() if name not in _OF_ELSEWHERE}


def run(*arguments: str, folder: str | Path | None = None) -> bytes:
    """What a git command prints, in a folder (None: the working directory).

    Raises GitError.
    """
    where = [] if folder is None else ["-C", str(folder)]
    command = ["git", *where, *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, env=environment()
        )
    except OSError as error:
        raise GitError(f"cannot be run ({error.strerror or error})") from None
    if done.returncode != 0:
        raise GitError(done.stderr.decode(errors="replace").strip() or f"exit {done.returncode}")
    return done.stdout
