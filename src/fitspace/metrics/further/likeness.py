"""Likeness to the images compared with, in each space of features."""

from __future__ import annotations

from functools import partial

from fitspace.metrics.extractors import JUDGE, SPACES
from fitspace.metrics.metric import HELD_OUT, PAIRS, Compared, Metric


def paired(of: Compared, space: str) -> float:
    """Mean cosine over the pairs of a sample and a held-out image of its caption."""
    from torch.nn.functional import cosine_similarity

    samples, others = of.samples(space), of.others(space)
    own, other = of.pairs.T
    return of.over_pairs(cosine_similarity(samples[own], others[other], dim=1))


def overall(of: Compared, space: str) -> float:
    """Mean cosine over all pairs of a sample and an image compared with."""
    from torch.nn.functional import normalize

    return (normalize(of.samples(space)).mean(0) @ normalize(of.others(space)).mean(0)).item()


METRICS = {
    f"paired_{space}": Metric(
        f"Paired similarity ({label})",
        False,
        f"Mean cosine, on features of {label}, between a sample and the held-out images of its "
        "caption.",
        of=(HELD_OUT,),
        extractor=space,
        rewards_copies=True,
        needs=(PAIRS,),
        measure=partial(paired, space=space),
    )
    for space, label in SPACES.items()
    if space not in (JUDGE, "dreamsim")  # clip_i_paired, dreamsim
} | {
    f"similarity_{space}": Metric(
        f"Similarity ({label})",
        False,
        f"Mean cosine, on features of {label}, over all pairs of a sample and a held-out image; "
        "with DreamBooth, of an image of the subject and an image trained on (2208.12242, section "
        "4.2, whose DINO is such a metric).",
        extractor=space,
        rewards_copies=True,
        measure=partial(overall, space=space),
    )
    for space, label in SPACES.items()
    if space != JUDGE  # clip_i
}
