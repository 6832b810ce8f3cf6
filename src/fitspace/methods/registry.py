"""The methods by name, and their checks, without torch."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from fitspace.core.errors import UserError
from fitspace.core.reading import explain
from fitspace.methods.attachment import MethodSettings

COMMON = ("attachment", "blocks", "registry", "attaching", "saving", "strength", "export", "tuners")


def discovered() -> dict[str, ModuleType]:
    """Name -> module of every method in this package, sorted; a new method is a new file.

    The `COMMON` modules and the ``*_layers``, which import torch, are no methods.
    """
    names = sorted(
        module.name for module in pkgutil.iter_modules(sys.modules[__package__].__path__)
    )
    own = [n for n in names if n not in COMMON and not n.endswith("_layers")]
    return {name: importlib.import_module(f"{__package__}.{name}") for name in own}


METHODS = discovered()


def get(name: str) -> ModuleType:
    """The method of this name. Raises UserError for an unknown name."""
    try:
        return METHODS[name]
    except KeyError:
        raise UserError(f"method: {name!r}; allowed: {', '.join(METHODS)}") from None


def validated(method: str, settings: MethodSettings | dict[str, Any]) -> MethodSettings:
    """A method's settings, validated by its model. Raises UserError with every problem."""
    model = get(method).Settings
    if isinstance(settings, model):
        return settings
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        raise UserError(f"{method}.{p}" for p in explain(error, model)) from None


def problems(method: str, settings: MethodSettings, family: str) -> list[str]:
    """Why a method with these settings cannot be built on a family; empty if it can."""
    foreign = sorted(settings.model_fields_set & settings.foreign(family))
    return [
        f"{name}: has no meaning on a base of the family {family!r}; leave it out"
        for name in foreign
    ] + get(method).problems(settings, family)


def needs_whole(method: str, settings: dict[str, Any], control: str | None = None) -> str | None:
    """Why the base's frozen weights cannot be stored in fewer bits under a method, in words that
    its name begins; None if they can."""
    said = getattr(get(method), "needs_whole", None)
    return said(settings, control) if said else None


def knob(method: str) -> str | None:
    """The setting that makes a method wider; None if there is none."""
    return getattr(get(method), "budget", None)
