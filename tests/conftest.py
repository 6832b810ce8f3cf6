"""Shared fixtures: a tiny task and denoiser, enough for a real training run in a second."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def _torchvision():
    from fitspace.core.imports import import_torchvision

    import_torchvision()


@pytest.fixture(scope="session")
def origin(tmp_path_factory):
    """A project whose study is finished and committed; see tests/project.py. Do not write to it."""
    import project

    own = tmp_path_factory.getbasetemp()
    parallel = "PYTEST_XDIST_WORKER" in os.environ
    return project.finished(own.parent if parallel else own)
