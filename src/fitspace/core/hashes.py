"""SHA-256 of large files, cached until a file changes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

from fitspace.core.files import remember, remembered, sha256

DIGESTS = Path("results/.cache/digests.json")


def hashes(files: Iterable[Path]) -> dict[Path, str]:
    """SHA-256 (hex) of each file.

    Digests are cached by path, size and time of change; a second call reads only the files'
    status.
    """
    known, fresh, found = remembered(DIGESTS), {}, {}
    folders: dict[str, str] = {}
    for path in files:
        status = os.stat(path)
        name = _resolved(str(path), folders)
        stamp = [status.st_size, status.st_mtime_ns]
        entry = known.get(name)
        if isinstance(entry, list) and entry[:2] == stamp and len(entry) == 3:
            value = entry[2]
        else:
            value = sha256(path)
            # A file this young may change again within one tick of the file system's clock.
            if time.time_ns() - status.st_mtime_ns > 2_000_000_000:
                fresh[name] = [*stamp, value]
        found[path] = value
    if fresh:
        remember(DIGESTS, remembered(DIGESTS) | fresh)
    return found


def _resolved(path: str, folders: dict[str, str]) -> str:
    """Where a file really lies; each of its folders is looked at once."""
    parent, name = os.path.split(path)
    if parent not in folders:
        folders[parent] = os.path.realpath(parent)
    return os.path.realpath(path) if os.path.islink(path) else os.path.join(folders[parent], name)


_seen: dict[str, tuple[tuple[int, ...], str]] = {}


def sha256_once(path: Path) -> str:
    """SHA-256 (hex) of a file, computed once in a process for as long as it is the same file.

    A stage verifies what it reads, and says it in its sidecar again. The time of the last change of
    a file's status cannot be set back, so that no change goes unseen.
    """
    status = path.stat()
    stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    known = _seen.get(str(path))
    if known is not None and known[0] == stamp:
        return known[1]
    value = sha256(path)
    # A file this young may change again within one tick of the file system's clock.
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > 100_000_000:
        _seen[str(path)] = stamp, value
    return value
