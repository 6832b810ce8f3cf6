"""How the Fréchet distance and KID depend on the number of samples."""

from __future__ import annotations

import torch
from torch import Tensor

from fitspace.metrics.frechet import between, fit
from fitspace.metrics.kernel import kernel_distance

SUBSETS = 10
_SEED = 0


def against_n(
    features_samples: Tensor, features_reference: Tensor, sizes: list[int]
) -> list[dict[str, float]]:
    """Both distances for random subsets of the samples: one row per size.

    Parameters
    ----------
    features_samples : shape (n, d), float64.
    features_reference : shape (m, d), float64; the Fréchet distance uses all rows, KID random
        subsets of the same size.
    sizes : numbers of samples, each from 2 to n.

    Returns
    -------
    Rows of ``n`` (the size), ``fd_effnet`` and ``kid_effnet``, both means over 10 subsets. For
    ``fd_effnet`` the subsets are the first rows of the same 10 random orders at every size, so a
    larger subset contains the smaller one.
    """
    reference = fit(features_reference)
    generator = torch.Generator().manual_seed(_SEED)
    orders = [torch.randperm(len(features_samples), generator=generator) for _ in range(SUBSETS)]
    rows = []
    for size in sizes:
        frechet = [between(fit(features_samples[order[:size]]), reference) for order in orders]
        rows.append(
            {
                "n": size,
                "fd_effnet": sum(frechet) / SUBSETS,
                "kid_effnet": kernel_distance(features_samples, features_reference, size, SUBSETS),
            }
        )
    return rows
