"""Set this process up so that its numbers are reproducible."""

from __future__ import annotations

import os

from fitspace.core.errors import UserError


def limit_threads() -> None:
    for library in ("OMP", "OPENBLAS", "MKL"):  # read when NumPy is imported
        os.environ.setdefault(f"{library}_NUM_THREADS", _threads())


def _threads() -> str:
    value = os.environ.get("FITSPACE_THREADS", "1")
    if not value.isdecimal() or int(value) < 1:
        raise UserError(f"FITSPACE_THREADS: {value!r}; allowed: a whole number from 1")
    return value


def set_up_torch() -> None:
    """One thread per job: jobs, not operators, share the cores, and sums keep their order.

    Denormal numbers are flushed to zero, because late in training they make a CPU step several
    times slower.
    """
    import torch

    from fitspace.core import devices

    torch.set_flush_denormal(True)
    torch.set_num_threads(int(_threads()))
    devices.set_up()
