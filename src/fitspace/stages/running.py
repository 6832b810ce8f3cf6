"""One process per stage: locks, and waiting for jobs that an earlier driver left.

The jobs of a killed driver go on, on this machine or in SLURM, and their results are valid. The
next driver waits for them before it plans, so that nothing is done twice. A process that starts a
stage that another process works on waits for it too.

A process that has loaded its libraries goes on to other runs that wait for the same stage. The
later jobs of these runs find them finished.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal

from fitspace.core.errors import UserError, printable
from fitspace.core.paths import RESULTS
from fitspace.plan import Plan, Run, Stage, unchanged
from fitspace.stages.sidecars import load_sidecar, now, verified

CLAIMS = RESULTS / ".cache/claims"
SECONDS = 5.0  # between two looks at what others do
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def once(
    stage: Stage, make: Callable[[], None], wait: bool = True
) -> Literal["made", "made without a lock", "finished", "taken"]:
    """Do a stage's work, unless it is finished and whole; one process at a time.

    Returns what was found: ``taken`` if another process works on it and ``wait`` is false.
    Raises whatever ``make`` raises.
    """
    with claimed(stage, wait) as ours:
        if ours is False:
            return "taken"
        if stage.sidecar.exists():
            try:
                verified(stage)
            except UserError:
                pass  # part of it was taken away: all of it is made again
            else:
                print(f"fitspace: {stage.folder}: finished already", file=sys.stderr)
                return "finished"
        _clear(stage)
        make()
    return "made" if ours else "made without a lock"


def work(
    plan: Plan,
    name: str,
    run: Run,
    make: Callable[..., None],
    together: int = 1,
    folds: Callable[[Run, Run], bool] | None = None,
) -> None:
    """Do a stage of a run, then the same stage of its task's other runs that wait for it.

    In all up to ``together`` runs, one after another. The others are runs whose inputs exist and
    that no process works on. If another process works on the run itself, the others come first.
    An error of another run is only printed, because that run's own job will meet it again.

    Parameters
    ----------
    make : does the stage of a run, or of several at once if ``folds`` is true for the first and
        each other one. If that fails, the first run is made alone.

    Raises
    ------
    Whatever ``make`` raises of the run itself, alone.
    """
    made = 0

    def one(first: Run) -> None:
        nonlocal made
        made += 1
        with ExitStack() as claims:
            fold = [first]
            for mate in mates(plan, name, first) if folds and made < together else ():
                stage = getattr(mate, name)
                if not folds(first, mate) or not claims.enter_context(claimed(stage, wait=False)):
                    continue
                if not stage.sidecar.exists():  # nor has anybody finished it meanwhile
                    _clear(stage)
                    fold.append(mate)
                    made += 1
                if made == together:
                    break
            try:
                make(*fold)
                return
            except Exception as error:
                if len(fold) == 1:
                    raise
                _say(getattr(first, name), f"not made in a fold of {len(fold)}", error)
        try:
            verified(getattr(first, name))  # finished, if writing another one failed
        except UserError:
            make(first)

    own = getattr(run, name)
    if together > 1 and not own.sidecar.exists():
        together = max(1, together - _made_in_this_job(plan, name, run))
    found = once(own, lambda: one(run), wait=together == 1)
    if found in ("made", "taken"):
        for mate in mates(plan, name, run):
            # A job of its own would use base and judge as they are now, so stop if they changed.
            if made >= together or not unchanged(plan.study, run):
                break
            stage = getattr(mate, name)
            try:
                once(stage, lambda mate=mate: one(mate), wait=False)
            except Exception as error:
                _say(stage, "left to its own job", error)
                if not isinstance(error, UserError):
                    break  # the state of this process is unknown after such an error
    if found == "taken":
        once(own, lambda: one(run))


def mates(plan: Plan, name: str, run: Run) -> Iterator[Run]:
    """The other runs of a run's task whose stage can be done now, in the plan's order after it."""
    at = next(i for i, other in enumerate(plan.runs) if other is run)
    for other in (*plan.runs[at + 1 :], *plan.runs[:at]):
        stage = getattr(other, name)
        if (
            stage is not None
            and other.prepare.key == run.prepare.key
            and not stage.sidecar.exists()
            and all(needed.sidecar.exists() for needed in other.upstream(name))
        ):
            yield other


def _made_in_this_job(plan: Plan, name: str, run: Run) -> int:
    """Number of the task's runs that this SLURM job has made; a group shares one limit."""
    from fitspace.stages import slurm

    job = os.environ.get("SLURM_JOB_ID")
    if not job or not os.environ.get("SLURM_JOB_NAME", "").startswith(slurm.prefix()):
        return 0  # not a job of ours: a job in which somebody runs a driver has no group
    stages = (getattr(r, name) for r in plan.runs if r.prepare.key == run.prepare.key)
    return sum(_maker(stage) == job for stage in stages if stage is not None)


def _maker(stage: Stage) -> str | None:
    try:
        return load_sidecar(stage.sidecar)["environment"]["slurm_job_id"]
    except (UserError, KeyError):
        return None


def _clear(stage: Stage) -> None:
    """Remove half-written files of a killed process; call it while holding the claim."""
    for path in stage.folder.glob(".*"):
        path.unlink()


def _say(stage: Stage, what: str, error: Exception) -> None:
    why = "; ".join(error.problems) if isinstance(error, UserError) else repr(error)
    print(f"fitspace: {stage.folder}: {what}: {printable(why)}", file=sys.stderr, flush=True)


@contextmanager
def claimed(stage: Stage, wait: bool = True) -> Iterator[bool | None]:
    """Lock a stage against other processes, as :func:`locked`."""
    with locked(CLAIMS / f"{stage.name}~{stage.folder.name}", wait) as ours:
        yield ours


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool | None]:
    """Hold the lock at ``path``, after waiting for the process that holds it.

    Yields True; without ``wait`` False if another process holds it. The kernel releases the lock
    when the process ends, however it ends. On a file system without locks (some mounts of Lustre)
    it prints a warning and yields None.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = _taken(path, wait)
        while handle is None and wait:
            handle = _taken(path, wait)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        print(f"fitspace: {path}: no file locks here ({error.strerror})", file=sys.stderr)
        yield None
        return
    if handle is None:
        yield False
        return
    try:
        job = os.environ.get("SLURM_JOB_ID")
        who = f"SLURM job {job}" if job else f"process {os.getpid()}"
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{who} on {socket.gethostname()}, since {now()}".encode(), 0)
        yield True
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _taken(path: Path, wait: bool) -> int | None:
    """An open file that holds the lock at ``path``; None if the file was replaced meanwhile, or if
    another process holds the lock and ``wait`` is false."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                os.close(handle)
                return None
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
    try:
        who = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        who = ""
    return f"{path.name.removesuffix('.lock').replace('~', ' ', 1)} ({who or 'just started'})"


def at_work() -> dict[tuple[str, str], str]:
    """Stage and folder of what processes work on -> which process; nothing else is looked at."""
    found = {}
    for path in CLAIMS.glob("*~*"):
        with suppress(OSError, ValueError):  # given back meanwhile
            who = path.read_text(encoding="utf-8").partition(", since ")[0]
            if who:  # else just taken
                stage, _, folder = path.name.partition("~")
                found[stage, folder] = who
    return found


def others() -> list[str]:
    """The stages that processes work on now, and this project's jobs in SLURM.

    Removes claims of killed processes, which nobody holds any more.

    Raises
    ------
    UserError : SLURM is installed and does not answer.
    """
    from fitspace.stages import slurm

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


def wait_for_others(shown: int = 5) -> None:
    """Return when no process and no SLURM job works on this project's stages any more.

    A driver calls this before it looks for results, so that jobs of an earlier driver are neither
    started again nor overwritten.

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
        time.sleep(SECONDS)
