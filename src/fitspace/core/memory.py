"""Compute fewer examples at once if a GPU's memory is too small."""

from __future__ import annotations

import sys

from fitspace.core.errors import UserError


def fewer_at_once(number: int, what: str, never: str | None = None) -> int:
    """Half of ``number``, with a message; first releases the device's unused memory.

    ``never`` gives the reason if the number must not change.

    Raises
    ------
    UserError : one is too many, or ``never`` is given.
    """
    import torch

    torch.cuda.empty_cache()
    full = f"{what}: the GPU's memory does not hold {number} at once"
    if number == 1 or never:
        why = never or "there is nothing to halve"
        raise UserError(
            f"{full}, and {why}; allowed: a GPU with more memory, a smaller model or, in training, "
            "a smaller train.batch_size"
        )
    print(f"fitspace: {full}; going on with {number // 2}", file=sys.stderr)
    return number // 2
