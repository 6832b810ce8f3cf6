"""Commands in processes of their own that start warm: libraries are imported once.

Run as a program it imports what commands need, all but fitspace itself, and then forks for every
command that it is told, so that a job of Snakemake or a fault test, SIGKILL included, costs what
the stage computes and not five seconds of imports. fitspace comes from where the command's own
PYTHONPATH has it. A command may bring a fault: Python that runs in the new process before it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from project import Project

FAULT = "FITSPACE_TESTS_FAULT"  # variable with the fault that a command brings
# In place of `fitspace`: has the command done by the warm process, and ends as it does.
PROGRAM = """#!/bin/sh
exec '{python}' -IS '{client}' "$@"
"""
CLIENT = """
import json, os, socket, sys
warm = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
warm.connect({address!r})
told = {{"folder": os.getcwd(), "arguments": sys.argv[1:], "environment": dict(os.environ)}}
socket.send_fds(warm, [json.dumps(told).encode()], [0, 1, 2])
code = int(warm.recv(16) or 1)
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""

# SIGKILL at the n-th moment just before or just after a file takes its place, but one of a cache:
# whether that is written depends on the age of what it remembers.
KILLED = """
import os, signal
left = {n}
def moment():
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
def replace(source, target, call=os.replace):
    if "/.cache/" in os.path.abspath(target):
        return call(source, target)
    moment()
    call(source, target)
    moment()
os.replace = replace
"""
# A clock that goes back an hour between any two looks at it.
CLOCK = """
import itertools, time
from datetime import UTC, datetime, timedelta
seconds = itertools.count()
time.time = lambda: 1577836800.0 - next(seconds)
time.time_ns = lambda: int(time.time() * 1e9)
from fitspace.stages import evaluate, prepare, prior, reference, sample, sidecars, train
hours = itertools.count()
def now():
    return (datetime(2020, 1, 1, tzinfo=UTC) - timedelta(hours=next(hours))).isoformat()
for module in (evaluate, prepare, prior, reference, sample, sidecars, train):
    module.now = now
"""


@dataclass
class Warm:
    """Commands in forks of one warm process."""

    process: subprocess.Popen
    commands: Path

    @classmethod
    def start(cls, folder: Path) -> Warm:
        """Start one; ``folder``, which is made, gets the program `fitspace`."""
        address = f"\0fitspace-tests-{os.getpid()}-{folder}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            listening.bind(address)
            listening.listen()
            process = subprocess.Popen(
                [sys.executable, __file__, str(listening.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=[listening.fileno()],
            )
        folder.mkdir()
        (folder / "client.py").write_text(CLIENT.format(address=address))
        program = folder / "fitspace"
        program.write_text(PROGRAM.format(python=sys.executable, client=folder / "client.py"))
        program.chmod(0o755)
        return cls(process, folder)

    def fitspace(self, project: Project, *arguments: str, fault: str = "", **variables: str):
        """Run a command in a project; returns the finished process."""
        command = str(self.commands / "fitspace")
        return project.run(command, *arguments, ok=False, **variables, **{FAULT: fault})

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def serve(listening: socket.socket) -> None:
    """Fork for every command that comes, until standard input ends."""
    kept = _import()
    at_work: dict[int, tuple[int, socket.socket]] = {}  # process, by what tells its end
    while True:
        ready, *_ = select.select([sys.stdin, listening, *at_work], [], [])
        if sys.stdin in ready:
            return
        for ended in at_work.keys() & set(ready):
            pid, client = at_work.pop(ended)
            os.close(ended)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            with client, contextlib.suppress(OSError):  # it may have been killed
                client.send(str(code).encode())
        if listening in ready:
            client, _ = listening.accept()
            told, handles, *_ = socket.recv_fds(client, 1 << 20, 3)
            if not told:
                continue
            pid = os.fork()
            if pid == 0:
                _work(json.loads(told), handles)
            for handle in handles:
                os.close(handle)
            at_work[os.pidfd_open(pid)] = pid, client
    assert kept


def _stream(number: int):
    return os.fdopen(number, "w", buffering=1, closefd=False)


def _work(told: dict, handles: list[int]) -> None:
    """Be the process of a command."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, handle in enumerate(handles):
            os.dup2(handle, number)
        # Those of the process that forked may have stood for files that can be sought in.
        sys.stdout, sys.stderr = map(_stream, (1, 2))
        os.chdir(told["folder"])
        os.environ.clear()
        os.environ.update(told["environment"])
        sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(":"))
        sys.argv = ["fitspace", *told["arguments"]]
        exec(os.environ.pop(FAULT, ""), {})
        from fitspace import cli

        code = cli.main(told["arguments"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _import() -> list:
    """Import what commands do; returns what has to live on."""
    from fitspace.core.imports import import_torchvision

    import_torchvision()
    import diffusers
    import matplotlib.figure  # noqa: F401
    import open_clip  # noqa: F401
    import pandas  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch_fidelity  # noqa: F401
    import transformers  # noqa: F401

    assert diffusers.UNet2DConditionModel and diffusers.AutoencoderKL
    own = [name for name in sys.modules if name.partition(".")[0] == "fitspace"]
    kept = [sys.modules.pop(name) for name in own]
    # A collection in a fork would write to every page, and so copy it.
    gc.collect()
    gc.freeze()
    return kept


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(socket.socket(fileno=int(sys.argv[1])))
