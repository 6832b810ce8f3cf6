"""Find and remove keyed results that no study and no recorded commit names."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from fitspace.audit.named import KEYED, ROOMS, Named, named_here, named_in_history
from fitspace.core.errors import UserError, printable
from fitspace.core.paths import RESULTS
from fitspace.stages.common import FEATURES

RESUME = RESULTS / ".resume"


@dataclass(frozen=True)
class Garbage:
    """A keyed folder that nothing names, and its size [bytes]."""

    folder: Path
    size: int


def find() -> list[Garbage]:
    """Keyed folders of results, checkpoints to resume from and kept features that nothing names.

    Links are never followed, and neither links nor their targets are removed.

    Raises
    ------
    UserError : results that are a link, which other projects may share and name; else as
        :func:`fitspace.audit.named.named_here` and `named_in_history`.
    """
    if RESULTS.is_symlink():
        raise UserError(
            f"{RESULTS}: a link to {RESULTS.resolve()}: what other projects that share it name is "
            "not known here; allowed: a folder of this project's own"
        )
    here = named_here()
    named = Named(here.keys | named_in_history(), here.tasks)
    rooms = [room for room in (*(RESULTS / name for name in ROOMS), RESUME, FEATURES) if _own(room)]
    folders = (p for room in rooms for p in sorted(room.iterdir()) if _own(p))
    return [
        Garbage(folder, sum(p.lstat().st_size for p in folder.rglob("*") if not p.is_dir()))
        for folder in folders
        if KEYED.fullmatch(folder.name) and folder not in named
    ]


def _own(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink()


def remove(found: Iterable[Garbage]) -> None:
    """Delete what :func:`find` found, sidecars first, so that half a stage never looks complete."""
    for item in tqdm(list(found), desc="removing", unit="folder", disable=None):
        for stage in ROOMS.values():
            (item.folder / f"{stage}.json").unlink(missing_ok=True)
        shutil.rmtree(item.folder)


def describe(found: list[Garbage], removed: bool) -> str:
    """Text that lists the folders with their sizes [MiB]."""
    lines = [f"{item.size / 2**20:10.1f} MiB  {printable(str(item.folder))}" for item in found]
    total = f"{sum(item.size for item in found) / 2**20:.1f} MiB"
    if not found:
        return "nothing to remove: studies or recorded commits name all results"
    state = "removed" if removed else "that nothing names; `fitspace gc --yes` removes them"
    return "\n".join([*lines, f"{len(found)} folders, {total}, {state}"])
