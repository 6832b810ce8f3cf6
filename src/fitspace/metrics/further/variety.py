"""How different the samples are from each other."""

from __future__ import annotations

from functools import partial

from fitspace.metrics.extractors import JUDGE, SPACES
from fitspace.metrics.metric import Compared, Metric


def vendi(of: Compared, space: str) -> float:
    """The exponential of the entropy of the eigenvalues of the samples' cosines, over n."""
    import torch
    from torch.nn.functional import normalize

    x = normalize(of.samples(space))
    # X X^T and X^T X have the same eigenvalues but for zeros, which add nothing.
    square = x @ x.T if len(x) <= x.shape[1] else x.T @ x
    shares = torch.linalg.eigvalsh(square / len(x)).clamp(min=0)
    return torch.special.entr(shares).sum().exp().item()


def diversity(of: Compared, space: str) -> float:
    """One minus the mean cosine over all pairs of different samples."""
    from torch.nn.functional import normalize

    from fitspace.metrics import clip

    return clip.diversity(normalize(of.samples(space)))


METRICS = {
    f"vendi_{space}": Metric(
        f"Vendi score ({label})",
        False,
        f"The effective number of different samples by cosines on features of {label}: the "
        "exponential of the entropy of their kernel's eigenvalues (2210.02410). From 1 (all are "
        "the same) to n (all are orthogonal).",
        depends_on_n=True,
        extractor=space,
        shows_copies=True,
        measure=partial(vendi, space=space),
    )
    for space, label in SPACES.items()
} | {
    f"diversity_{space}": Metric(
        f"Diversity ({label})",
        False,
        f"One minus the mean cosine over all pairs of different samples, on features of {label}.",
        extractor=space,
        shows_copies=True,
        measure=partial(diversity, space=space),
    )
    for space, label in SPACES.items()
    if space != JUDGE  # diversity
}
