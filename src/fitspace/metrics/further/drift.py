"""How far a run is from what the untouched base draws."""

from __future__ import annotations

from functools import partial

from fitspace.metrics.extractors import SPACES
from fitspace.metrics.metric import HELD_OUT, UNTOUCHED, Compared, Metric


def drift(of: Compared, space: str) -> float:
    """One minus the mean cosine of each sample and the base's; 0 if they are equal."""
    from torch.nn.functional import normalize

    from fitspace.metrics import clip

    return clip.drift(normalize(of.samples(space)), normalize(of.untouched(space)))


METRICS = {
    f"drift_{space}": Metric(
        f"Drift ({label})",
        True,
        "One minus the mean cosine between what the tuned model and the untouched base draw of a "
        f"held-out caption from the same noise, on features of {label}. It says how far a run went "
        "and not where: the untouched base has 0.",
        of=(HELD_OUT,),
        extractor=space,
        needs=(UNTOUCHED,),
        measure=partial(drift, space=space),
    )
    for space, label in SPACES.items()
}
