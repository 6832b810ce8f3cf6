"""The stages of a run: verified inputs in, artefacts and a sidecar out.

Each module does one stage of one run, by its function of the same name: what a rule, a test and
a notebook call. The science is in the modules they call; here is only the order: read and verify,
compute, write artefacts atomically, write the sidecar last.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module


def function(name: str) -> Callable[..., None]:
    """What does a stage: called with a study and its run."""
    return getattr(import_module(f"{__name__}.{name}"), name)
