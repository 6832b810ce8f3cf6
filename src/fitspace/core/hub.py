"""Local copies of repositories of the Hugging Face hub.

Only :func:`fetch` uses the network; looking for a copy does not. A hub id is ``org/name``, or
``org/name@revision`` with a branch, a tag, a commit or ``refs/pr/N``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from fitspace.core.errors import UserError

PATTERN = r"\w[\w.-]*/\w[\w.-]*(@\w[\w./-]*)?"
CURE = "run: fitspace fetch STUDY.yaml"


class NotHere(UserError):
    """The copy of a hub id on this machine is missing or incomplete; fetch it."""


def is_id(text: str) -> bool:
    """Whether a text has the form of a hub id."""
    return re.fullmatch(PATTERN, text) is not None


def cached(
    ref: str, allow: Sequence[str], *, ignore: Sequence[str] = (), kind: str = "model"
) -> Path | None:
    """The folder of a repository's copy in the local cache; None if there is none.

    ``allow`` and ``ignore`` are patterns of the wanted files, ``kind`` is ``model`` or
    ``dataset``. The folder's name is the commit. A copy that is known to lack a file counts as
    none.
    """
    try:
        return _snapshot(ref, allow, ignore, kind, local_files_only=True)
    except (OSError, ValueError):  # not there, cut off, or no name that a repository can have
        return None


def fetch(
    ref: str, allow: Sequence[str], *, ignore: Sequence[str] = (), kind: str = "model"
) -> Path:
    """The folder of a repository's copy as it is on the hub now; downloads only missing files.

    Raises
    ------
    UserError : no such repository, no permission to read it, or no network.
    """
    from httpx2 import HTTPError  # what huggingface_hub speaks HTTP with

    try:
        return _snapshot(ref, allow, ignore, kind, local_files_only=False)
    except (HTTPError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{ref!r}: no {kind} downloaded from the hub ({reason})") from None


def _snapshot(
    ref: str, allow: Sequence[str], ignore: Sequence[str], kind: str, local_files_only: bool
) -> Path:
    from huggingface_hub import snapshot_download

    name, _, revision = ref.partition("@")
    folder = snapshot_download(
        name,
        repo_type=kind,
        revision=revision or None,
        allow_patterns=list(allow),
        ignore_patterns=list(ignore),
        local_files_only=local_files_only,
    )
    return Path(folder)
