"""Parameter counts from configurations alone."""

from __future__ import annotations

from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitspace import bases, methods
from fitspace.core.files import digest, remember, remembered, sha256

if TYPE_CHECKING:
    from torch import nn

# Counting imports torch and diffusers: seconds that a check or a plan need not take twice.
CACHE = Path("results/.cache/counts.json")


def count(base: str, method: str, settings: dict[str, Any]) -> dict[str, Any]:
    """How many parameters a method trains on a base; no weights are read or allocated.

    ``base`` as :func:`fitspace.bases.from_config` takes it. Returns ``trainable``, ``total``
    (the base's own, shared ones once) and ``percent`` (trainable of total); remembered in
    `CACHE` for as long as the methods and their libraries stay what they are.

    Raises
    ------
    UserError : unknown base, method or settings, or a method that the base cannot have.
    """
    settings = methods.validated(method, settings)
    given = settings.model_dump(mode="json", exclude_unset=True)
    key = digest([bases.architecture(base), method, given, code()])
    known = remembered(CACHE)
    if key not in known:
        known[key] = _count(base, method, settings)
        remember(CACHE, known)
    trainable, total = known[key]
    return {"trainable": trainable, "total": total, "percent": 100 * trainable / total}


def _count(base: str, method: str, settings: dict[str, Any]) -> list[int]:
    model = _built(base, digest(bases.architecture(base)))
    total = sum(p.numel() for p in model.parameters())
    attachment = methods.attach(model, method, settings, seed=0)
    trainable = sum(p.numel() for p in attachment.trainable.values())
    attachment.remove()
    return [trainable, total]


@lru_cache(maxsize=1)
def _built(base: str, architecture: str) -> nn.Module:
    """A base for all methods, one after another: to build it takes most of a count's time."""
    return bases.from_config(base)


@cache
def code() -> str:
    """What decides counts besides their arguments: the methods and the libraries they use."""
    sources = sorted(Path(methods.__file__).parent.glob("*.py"))
    return digest([[version("diffusers"), version("peft")], [sha256(p) for p in sources]])
