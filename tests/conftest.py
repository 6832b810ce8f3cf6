"""Shared fixtures: a tiny task and denoiser, enough for a real training run in a second."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))


def pytest_collection_finish():
    """Leave out of every garbage collection what was imported: a million objects, half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _torchvision():
    from fitspace.core.imports import import_torchvision

    import_torchvision()


@pytest.fixture(autouse=True)
def _denormals():
    """A job flushes them to zero, for its whole process: the next test must not see that."""
    yield
    import torch

    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def warm(tmp_path_factory):
    """A process that has its libraries, for commands; see tests/warm.py."""
    from warm import Warm

    process = Warm.start(tmp_path_factory.mktemp("warm") / "commands")
    yield process
    process.stop()


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder of all test processes."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def origin(request, shared):
    """A project whose study is finished and committed; see tests/project.py. Do not write to it."""
    import project

    def make(empty):
        project.finish(empty.warmed(request.getfixturevalue("warm").commands))

    return project.once(shared / "origin", make)


@pytest.fixture(scope="session")
def recorded(origin, shared):
    """The same with its results in DVC, pushed to a folder. Do not write to it."""
    import project
    import recorded

    return project.once(shared / "recorded", lambda empty: recorded.record(origin, empty.folder))
