"""Import torchvision beside a CPU-only torch.

torchvision's published Linux wheel is a CUDA build: beside a CPU build of torch its
compiled operators do not load and ``import torchvision`` fails with ``operator
torchvision::nms does not exist``. Nothing here uses those operators, but open_clip,
torch-fidelity, timm, transformers and diffusers import torchvision. Declaring the two
operators that its import looks for cures it; where the import works, nothing is touched.
Call :func:`import_torchvision` before those libraries.
"""

from __future__ import annotations

import sys

_library = None  # the declarations live as long as this object


def import_torchvision() -> None:
    """Import torchvision, declaring its missing operators only if the import needs it."""
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
