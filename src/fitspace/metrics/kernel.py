"""The kernel distance (KID) between two sets of features (1801.01401)."""

from __future__ import annotations

from torch import Tensor

from fitspace.core.imports import import_torchvision

import_torchvision()

from torch_fidelity.metric_kid import (  # noqa: E402
    KEY_METRIC_KID_MEAN,
    kid_features_to_metric,
)

LARGEST_SUBSET = 1000


def kernel_distance(
    features_samples: Tensor,
    features_reference: Tensor,
    size: int = LARGEST_SUBSET,
    subsets: int = 100,
) -> float:
    """Squared maximum mean discrepancy with the kernel (x y / d + 1)^3 (1801.01401, section 4).

    The estimate is unbiased and can therefore be negative. It is the mean over random subsets of
    ``size`` rows of each set, shapes (n, d) and (m, d), float64; of fewer rows if a set has fewer.
    """
    size = min(len(features_samples), len(features_reference), size)
    found = kid_features_to_metric(
        features_samples,
        features_reference,
        kid_subsets=subsets,
        kid_subset_size=size,
        verbose=False,
    )
    return found[KEY_METRIC_KID_MEAN]
