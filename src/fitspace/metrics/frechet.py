"""The Fréchet distance between Gaussians fitted to two sets of features (1706.08500)."""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Squared Fréchet distance between two sets of features, shapes (n, d) and (m, d).

    |mean_a - mean_b|^2 + tr(S_a) + tr(S_b) - 2 tr (S_a S_b)^(1/2) (1706.08500, section 2) with
    unbiased covariances S. The last trace is the nuclear norm of A B^T for any A, B with
    A^T A = S_a and B^T B = S_b: exact for any n, and fast because no d x d matrix is formed
    when there are fewer samples than features. Biased upwards by about c/n: compare equal n.
    """
    a, b = features_a.double(), features_b.double()
    root_a, root_b = _root(a), _root(b)
    trace = torch.linalg.matrix_norm(root_a @ root_b.T, "nuc")
    means = (a.mean(0) - b.mean(0)).square().sum()
    return (means + root_a.square().sum() + root_b.square().sum() - 2 * trace).item()


def _root(features: Tensor) -> Tensor:
    """A matrix R of at most d rows with R^T R = the features' covariance."""
    centred = (features - features.mean(0)) / (len(features) - 1) ** 0.5
    few = len(features) <= features.shape[1]
    return centred if few else torch.linalg.qr(centred, mode="r").R
