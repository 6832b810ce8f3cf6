"""Drivers of a project's workflow that tests start and kill."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress

from project import STUDY, Project

PATIENCE = 900.0  # seconds: how long a loaded machine may take for what does not come at once


def start(
    project: Project, *arguments: str, target: str = "all", output=subprocess.PIPE
) -> subprocess.Popen:
    """A driver in a session of its own: what kills it does not reach its jobs."""
    return subprocess.Popen(
        ["snakemake", "--cores", "2", "--config", f"study={STUDY}", *arguments, "--", target],
        cwd=project.folder,
        env=project.environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def end(driver: subprocess.Popen) -> None:
    """Driver and jobs at once."""
    with suppress(ProcessLookupError):
        os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()


def until(condition: Callable, driver: subprocess.Popen | None = None):
    """Wait until a condition holds and return its value; a driver may not end before."""
    end = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert driver is None or driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return value
