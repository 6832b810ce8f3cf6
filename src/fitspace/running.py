"""What runs now: one process works on a stage, and a driver waits for what an earlier one left.

A driver that is killed leaves its jobs at work, on this machine or in SLURM. Their results are
as good as any: the next driver waits for them before it plans, so that nothing is done twice,
and whoever starts a stage that another process works on waits for it too.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fitspace.design import RESULTS, Stage
from fitspace.errors import UserError
from fitspace.provenance import now, verified

CLAIMS = RESULTS / ".cache/claims"
SECONDS = 5.0  # between two looks at what others do
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def once(stage: Stage, make: Callable[[], None]) -> None:
    """Do a stage's work, unless it is finished and whole; one process at a time.

    Raises whatever ``make`` raises.
    """
    with claimed(stage):
        if stage.sidecar.exists():
            try:
                verified(stage)
            except UserError:
                pass  # part of it was taken away: all of it is made again
            else:
                print(f"fitspace: {stage.folder}: finished already", file=sys.stderr)
                return
        for path in stage.folder.glob(".*"):
            path.unlink()  # half a file of a process that was killed: the claim is ours
        make()


@contextmanager
def claimed(stage: Stage) -> Iterator[None]:
    """Hold a stage against other processes, after waiting for the one that has it.

    The kernel gives the claim back when the process ends, however it ends. A file system without
    locks (some mounts of Lustre) gives none, and a warning.
    """
    path = CLAIMS / f"{stage.name}~{stage.folder.name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = None
    try:
        while handle is None:
            handle = _taken(path)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        print(f"fitspace: {path}: no file locks here ({error.strerror})", file=sys.stderr)
        yield
        return
    try:
        job = os.environ.get("SLURM_JOB_ID")
        who = f"SLURM job {job}" if job else f"process {os.getpid()}"
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{who} on {socket.gethostname()}, since {now()}".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _taken(path: Path) -> int | None:
    """An open file that holds the lock at ``path``; None when the file was replaced meanwhile."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"fitspace: waiting for {_holder(path)}", file=sys.stderr, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        if _same(handle, path):
            return handle
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


def _same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    stage, _, folder = path.name.partition("~")
    try:
        who = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        who = ""
    return f"{stage} {folder} ({who or 'just started'})"


def others() -> list[str]:
    """The stages that processes work on now, and this project's jobs in SLURM.

    Claims that nobody holds, left by processes that were killed, are removed.

    Raises
    ------
    UserError : SLURM is here and does not answer.
    """
    from fitspace import slurm

    found = []
    for path in sorted(CLAIMS.glob("*")):
        try:
            handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue  # gone by now, or another user's
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same(handle, path):
                path.unlink(missing_ok=True)
        except BlockingIOError:
            found.append(_holder(path))
        except OSError:
            pass  # no locks here
        finally:
            os.close(handle)
    return found + [str(job) for job in slurm.unfinished()]


def wait_for_others(seconds: float = SECONDS, shown: int = 5) -> None:
    """Return when no process and no SLURM job works on this project's stages any more.

    What a driver calls before it looks at what is there, so that what an earlier one left at
    work is neither started again nor written over.

    Raises
    ------
    UserError : as :func:`others`.
    """
    said: list[str] = []
    while found := others():
        if len(found) != len(said):
            said = found
            more = f"\n  and {len(found) - shown} more" if len(found) > shown else ""
            print(
                f"{len(found)} jobs of an earlier start are still at work; waiting, as their "
                "results count (Ctrl-C ends the waiting, not the jobs):\n  "
                + "\n  ".join(found[:shown]) + more,
                file=sys.stderr, flush=True,
            )  # fmt: skip
        time.sleep(seconds)
