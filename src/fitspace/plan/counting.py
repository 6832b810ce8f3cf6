"""Count parameters from configurations alone."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitspace import bases, methods
from fitspace.core.files import digest, remember, remembered, sha256

if TYPE_CHECKING:
    from torch import nn

# Counting imports torch and diffusers, which takes seconds; the cache saves them the next time.
CACHE = Path("results/.cache/counts.json")


def count(
    base: str, method: str, settings: dict[str, Any], control: str | None = None
) -> dict[str, Any]:
    """How many parameters a method trains on a base; no weights are read or allocated.

    ``base`` is as :func:`fitspace.bases.from_config` takes it; ``control`` is how its denoiser is
    told of an image, whose parameters are counted too (see :mod:`fitspace.bases.control`). Returns
    ``trainable``, ``total`` (the base's own parameters, shared ones once) and ``percent``
    (trainable of total). Counts are cached in `CACHE` until the methods or their libraries change.

    Raises
    ------
    UserError : unknown base, method or settings, or a method that does not fit the base.
    """
    settings = methods.validated(method, settings)
    given = settings.model_dump(mode="json", exclude_unset=True)
    told = bases.control_for(base, control)
    key = digest([bases.architecture(base), method, given, code(), *named(told)])
    known = remembered(CACHE)
    if key not in known:
        known[key] = _count(base, method, settings, told)
        remember(CACHE, known)
    trainable, total = known[key]
    return {"trainable": trainable, "total": total, "percent": 100 * trainable / total}


def named(told: bases.Control | None) -> list[Any]:
    """What a control adds to a cache's key: nothing without one."""
    return [] if told is None else [told.kind, *told.channels]


def _count(
    base: str, method: str, settings: dict[str, Any], told: bases.Control | None
) -> list[int]:
    model = _built(base, digest(bases.architecture(base)))
    total = sum(p.numel() for p in model.parameters())
    with ExitStack() as undo:
        if told is not None:
            undo.callback(bases.add_control(model, told, seed=0))
        attachment = methods.attach(model, method, settings, seed=0)
        undo.callback(attachment.remove)
        trainable = sum(p.numel() for p in attachment.trainable.values())
    return [trainable, total]


def modules(base: str) -> list[str]:
    """The names of a denoiser's modules; ``base`` as :func:`count` takes it."""
    model = _built(base, digest(bases.architecture(base)))
    return [name for name, _ in model.named_modules()]


@lru_cache(maxsize=1)
def _built(base: str, architecture: str) -> nn.Module:
    """A base that all methods share, one after another: building it takes most of the time."""
    return bases.from_config(base)


@cache
def code() -> str:
    """Digest of what determines counts besides their arguments: methods and libraries."""
    sources = sorted(Path(methods.__file__).parent.glob("*.py"))
    sources.append(Path(bases.__file__).with_name("control.py"))
    return digest([[version("diffusers"), version("peft")], [sha256(p) for p in sources]])
