"""Parameter counts from configurations alone."""

from __future__ import annotations

from typing import Any

from fitspace import bases, methods


def count(base: str, method: str, settings: dict[str, Any]) -> dict[str, Any]:
    """How many parameters a method trains on a base; no weights are read or allocated.

    ``base`` as :func:`fitspace.bases.from_config` takes it. Returns ``trainable``, ``total``
    (the base's own, shared ones once) and ``percent`` (trainable of total).

    Raises
    ------
    UserError : unknown base, method or settings, or a method that the base cannot have.
    """
    settings = methods.validated(method, settings)
    model = bases.from_config(base)
    total = sum(p.numel() for p in model.parameters())
    attachment = methods.attach(model, method, settings, seed=0)
    trainable = sum(p.numel() for p in attachment.trainable.values())
    return {"trainable": trainable, "total": total, "percent": 100 * trainable / total}
