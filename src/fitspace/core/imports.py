"""Repairs of how libraries import each other; call them before importing diffusers and others."""

from __future__ import annotations

import importlib.util
import logging
import sys
from types import ModuleType

# Where it finds a CPU that computes in bf16 it warns of a kernel that nothing here uses; peft and
# diffusers import it too.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_library = None  # the declarations live as long as this object
_only_models = False


def import_torchvision() -> None:
    """Import torchvision, also beside a CPU-only torch.

    torchvision's published Linux wheel is a CUDA build: beside a CPU build of torch its
    compiled operators do not load, and the import fails with ``operator torchvision::nms does
    not exist``. Nothing here uses those operators, but open_clip, torch-fidelity, timm,
    transformers and diffusers import torchvision. The repair declares the two operators that the
    import looks for. If the import works, nothing is changed. Does nothing after
    :func:`import_only_models`.
    """
    if not _only_models:
        _import_torchvision()


def import_peft() -> ModuleType:
    """Import peft, also after :func:`import_only_models`: peft needs transformers and torchvision.

    Only methods of peft call this, because it takes 0.9 s of a job's start-up.
    """
    _import_torchvision()
    if importlib.util.find_spec("bitsandbytes"):  # peft imports it, where it is
        import_bitsandbytes()
    import peft

    return peft


def import_open_clip() -> ModuleType:
    """Import open_clip, also after :func:`import_only_models`: it needs torchvision."""
    _import_torchvision()
    import open_clip

    return open_clip


def import_bitsandbytes() -> ModuleType:
    """Import bitsandbytes, which else looks for a kernel on the network where it finds a CPU that
    computes in bf16; nothing here uses that kernel."""
    if found := sys.modules.get("bitsandbytes"):
        return found
    missing = object()
    before = sys.modules.get("kernels", missing)
    sys.modules["kernels"] = None  # whoever imports it now finds no such package
    try:
        import bitsandbytes
    finally:
        del sys.modules["kernels"]
        if before is not missing:
            sys.modules["kernels"] = before
    return bitsandbytes


def _import_torchvision() -> None:
    global _library
    import torch

    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _library = torch.library.Library("torchvision", "DEF")
        for op in ("nms", "qnms"):
            _library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401


def import_only_models() -> None:
    """For a process that needs diffusers' models and schedulers, but no pipeline.

    diffusers imports transformers, peft, torchvision and scipy, for features that a training or
    sampling job never uses; this takes a quarter of the job's start-up (docs/performance.md). Call
    it before diffusers is imported, in a process of its own.
    """
    global _only_models
    import diffusers.utils
    import diffusers.utils.import_utils as available

    _only_models = True
    diffusers.utils.USE_PEFT_BACKEND = False

    for library in ("transformers", "peft", "torchvision", "scipy"):
        setattr(available, f"_{library}_available", False)
