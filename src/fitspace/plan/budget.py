"""Equal budgets: the width at which a method trains a given number of parameters.

The module of a method with a width names this setting in ``budget``. The number of trainable
parameters is affine in the width, so two counts determine the width; a count at the result
confirms it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fitspace import methods
from fitspace.core.errors import UserError
from fitspace.methods.registry import knob
from fitspace.plan import counting

TOLERANCE = 0.01


def width(
    base: str, method: str, settings: dict[str, Any], target: int, control: str | None = None
) -> int:
    """The width at which a method's number of trainable parameters is nearest to ``target``.

    ``base`` is as :func:`fitspace.bases.architecture` takes it; ``settings`` are all others;
    ``control`` as :func:`fitspace.plan.counting.count` has it.

    Raises
    ------
    UserError : no count within 1% of the target; names the nearest ones.
    """
    name = knob(method)

    def count(value: int) -> int:
        return counting.count(base, method, settings | {name: value}, control)["trainable"]

    low, high = _limits(method)
    if count(low) == count(low + 1):
        raise UserError(f"match_trainable: {target:,}: {name} has no meaning with these settings")
    counts = around(count, low, high, target)
    value, trainable = counts[0]
    if abs(trainable - target) <= TOLERANCE * target:
        return value
    nearest = " and ".join(f"{n:,} ({name} {v})" for v, n in counts)
    raise UserError(f"match_trainable: {target:,}: the nearest are {nearest}; allowed: within 1%")


def around(count: Callable[[int], int], low: int, high: int, target: int) -> list[list[int]]:
    """The one or two values in [low, high] next to where an affine count meets the target."""
    first = count(low)
    step = count(low + 1) - first
    below = math.floor(low + (target - first) / step)
    values = {min(max(value, low), high) for value in (below, below + 1)}
    found = [[value, count(value)] for value in sorted(values)]
    for value, trainable in found:
        if trainable != first + step * (value - low):
            raise ArithmeticError(f"the count is not affine: {trainable} at {value}")
    return sorted(found, key=lambda pair: abs(pair[1] - target))


def _limits(method: str) -> tuple[int, int]:
    """The smallest and the largest width that a method's settings allow."""
    field = methods.get(method).Settings.model_fields[knob(method)]
    return tuple(
        next(getattr(m, bound) for m in field.metadata if hasattr(m, bound))
        for bound in ("ge", "le")
    )
