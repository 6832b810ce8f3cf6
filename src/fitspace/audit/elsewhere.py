"""What dvc.lock records stays recorded, although it is not on this machine.

DVC records a folder as it finds it. A machine that made or pulled one study holds that study's part
of ``results/`` alone, so the rest is taken over from the record before. For that the lists of files
are in git, in DVC's own bytes, one for each folder of ``results/``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fitspace.audit.lock import LOCK, Lock
from fitspace.audit.named import ROOMS, named_here
from fitspace.core.errors import UserError
from fitspace.core.paths import RESULTS
from fitspace.results import lineage

Rows = Mapping[str, str]  # file of a room -> MD5


def before(repo) -> Lock:
    """dvc.lock as it is, with the lists of all rooms that it records.

    Raises UserError for each room whose list is neither here nor in a remote of DVC.
    """
    lock, problems = Lock(), []
    for room in _rooms():
        if room not in lock.outs or lock.listing(room) is not None:
            continue
        (out,) = repo.find_outs_by_path(room)
        if out.get_dir_cache() is None:
            problems.append(
                f"{room}: dvc.lock records it, but its content is unknown here; run `dvc pull` "
                "first, or delete dvc.lock to start a record of your own"
            )
    if problems:
        raise UserError(problems)
    return Lock()


def take_over(before: Lock) -> None:
    """Put into dvc.lock what it recorded before, something names, and is not here.

    A report whose own results stand in the new lists as they did is of the new lists too. The lists
    are written for git.
    """
    from dvc.utils.serialize import modify_yaml

    after, named = Lock(), named_here()
    old = {room: before.listing(room) or {} for room in _rooms()}
    new = {room: dict(after.listing(room) or {}) for room in _rooms()}
    for room, rows in old.items():
        for name, md5 in rows.items():
            folder = Path(room) / _folder(name)
            if folder in named and not folder.exists():
                new[room][name] = md5
    lists = {room: after.put(rows) for room, rows in new.items()}
    with modify_yaml(LOCK) as content:
        for stage in content["stages"].values():
            for entry in (*stage.get("deps", ()), *stage.get("outs", ())):
                if (room := entry["path"]) not in new:
                    continue
                same = entry["md5"] == before.outs.get(room) and _same(stage, old[room], new[room])
                if same or entry["md5"] == after.outs[room]:
                    _write(entry, lists[room], after.listing(room), new[room])
    Lock().publish(_rooms())


def _rooms() -> list[str]:
    return [(RESULTS / room).as_posix() for room in ROOMS]


def _folder(name: str) -> str:
    return name.split("/")[0]


def _same(stage: dict[str, Any], old: Rows, new: Rows) -> bool:
    """Whether a report's own results are in both lists, and are the same."""
    tables = (Path(out["path"]) for out in stage["outs"])
    own = {
        Path(record.folder).name
        for table in tables
        if table.name == lineage.NAME and table.is_file()
        for record in lineage.read(table.parent).records.values()
    }
    ours = [{n: md5 for n, md5 in rows.items() if _folder(n) in own} for rows in (old, new)]
    return bool(own) and ours[0] == ours[1]


def _write(entry: dict[str, Any], md5: str, here: Rows | None, rows: Rows) -> None:
    """Name a list of files in an entry of dvc.lock."""
    if entry["md5"] != md5 or here != rows:
        entry |= {"md5": md5, "nfiles": len(rows)}
        entry.pop("size", None)  # of files that are not here, unknown
