"""The families of denoisers: a file each, and a name in this list."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fitspace.bases.dit import DIT
from fitspace.bases.family import Family
from fitspace.bases.unet import UNET
from fitspace.core.errors import UserError

if TYPE_CHECKING:
    from torch import nn

FAMILIES = {family.name: family for family in (UNET, DIT)}
DENOISERS = tuple(dict.fromkeys(family.component for family in FAMILIES.values()))
BY_KIND = {family.kind: family for family in FAMILIES.values()}


def family_of(model: nn.Module) -> Family:
    """The family of a denoiser. Raises UserError for a model that is none."""
    try:
        return BY_KIND[type(model).__name__]
    except KeyError:
        raise UserError(f"model: {type(model).__name__}; allowed: {', '.join(BY_KIND)}") from None
