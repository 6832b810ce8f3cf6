"""The stages of a run: verified inputs in, artefacts and a sidecar out.

Each module does one stage of one run, by its function of the same name, which rules, tests and
notebooks call. The computation is in the modules that it calls. A stage fixes only the order: read
and verify, compute, write artefacts atomically, write the sidecar last.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module


def function(name: str) -> Callable[..., None]:
    """The function that does a stage; call it with a study and its run."""
    return getattr(import_module(f"{__name__}.{name}"), name)
