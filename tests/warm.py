"""Stage commands in processes of their own that start warm: libraries are imported once.

Run as a program it imports what stages need and then forks for every command it is told, so
that a fault test, SIGKILL included, costs what the stage computes and not five seconds of
imports. A command may bring a fault: Python that runs in the new process before it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

# SIGKILL at the n-th moment just before or just after a file takes its place.
KILLED = """
import os, signal
left = {n}
def moment():
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
def replace(source, target, call=os.replace):
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

    @classmethod
    def start(cls, environment: dict[str, str]) -> Warm:
        return cls(
            subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
        )

    def fitspace(self, folder: Path, *arguments: str, fault: str = "", **variables: str):
        """Run a command in ``folder``: returncode (negative: a signal), stdout and stderr."""
        told = {
            "folder": str(folder),
            "arguments": arguments,
            "fault": fault,
            "variables": variables,
        }
        self.process.stdin.write(json.dumps(told) + "\n")
        self.process.stdin.flush()
        return SimpleNamespace(**json.loads(self.process.stdout.readline()))

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def serve() -> None:
    import tempfile

    from fitspace.core.imports import import_torchvision

    import_torchvision()
    # What any stage imports.
    import diffusers
    import open_clip  # noqa: F401
    import torch_fidelity  # noqa: F401
    import transformers  # noqa: F401

    from fitspace import cli
    from fitspace.stages import evaluate, prepare, prior, reference, sample, train  # noqa: F401

    assert diffusers.UNet2DConditionModel and diffusers.AutoencoderKL
    for line in sys.stdin:
        told = json.loads(line)
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            child = os.fork()
            if child == 0:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                code = 1
                try:
                    os.chdir(told["folder"])
                    os.environ.update(told["variables"])
                    exec(told["fault"], {})
                    code = cli.main(told["arguments"])
                except BaseException:
                    import traceback

                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(code)
            _, status = os.waitpid(child, 0)
            out.seek(0)
            err.seek(0)
            answer = {
                "returncode": os.waitstatus_to_exitcode(status),
                "stdout": out.read(),
                "stderr": err.read(),
            }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve()
