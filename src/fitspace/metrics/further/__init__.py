"""Metrics that a study names beside the standard ones: each file holds some, and is found here.

A file has ``METRICS``, name -> :class:`~fitspace.metrics.metric.Metric` with ``measure``.
CONTRIBUTING.md shows how to write one. Everything except ``measure`` works without torch, so that
checking a study is fast.
"""

from __future__ import annotations

import importlib
import pkgutil

from fitspace.metrics.metric import Metric


def discovered() -> dict[str, Metric]:
    """Every further metric by name, file by file; a new metric is a new file."""
    found: dict[str, Metric] = {}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        own = importlib.import_module(f"{__name__}.{module.name}").METRICS
        if twice := found.keys() & own.keys():
            raise ValueError(f"{module.name}.py: {sorted(twice)} stand in another file too")
        found |= own
    return found
