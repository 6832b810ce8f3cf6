"""The families of denoisers: a file each, and a name in this list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fitspace.bases.dit import DIT
from fitspace.bases.family import Family
from fitspace.bases.flux import FLUX
from fitspace.bases.flux2 import FLUX2
from fitspace.bases.lumina2 import LUMINA2
from fitspace.bases.pixart import PIXART
from fitspace.bases.qwenimage import QWENIMAGE
from fitspace.bases.sana import SANA
from fitspace.bases.sd3 import SD3
from fitspace.bases.sdxl import SDXL
from fitspace.bases.unet import UNET
from fitspace.bases.zimage import ZIMAGE
from fitspace.core.errors import UserError

if TYPE_CHECKING:
    from torch import nn

FAMILIES = {
    family.name: family
    for family in (UNET, SDXL, DIT, PIXART, SD3, FLUX, SANA, FLUX2, LUMINA2, QWENIMAGE, ZIMAGE)
}
DENOISERS = tuple(dict.fromkeys(family.component for family in FAMILIES.values()))
KINDS = tuple(dict.fromkeys(family.kind for family in FAMILIES.values()))


def family_by(config: Mapping[str, Any], kind: str | None = None) -> Family | None:
    """The family of a denoiser of this configuration; None for no family.

    ``kind``: the class that it is saved as, if the configuration's ``_class_name`` does not say it.
    """
    kind = kind or config["_class_name"]
    return next((f for f in FAMILIES.values() if f.matches(kind, config)), None)


def family_of(model: nn.Module) -> Family:
    """The family of a denoiser, or of a copy of its encoder. Raises UserError for another model."""
    kind = type(model).__name__
    found = family_by(getattr(model, "config", {}), kind)
    found = found or next((f for f in FAMILIES.values() if f.copied == kind), None)
    if found is None:
        raise UserError(f"model: {kind}; allowed: {', '.join(KINDS)}")
    return found
