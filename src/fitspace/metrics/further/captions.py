"""Whether a sample shows its own caption rather than another one's."""

from __future__ import annotations

from fitspace.metrics.extractors import JUDGE
from fitspace.metrics.metric import HELD_OUT, Compared, Metric

EQUAL = 1e-6  # cosines as near as this are one: equal captions, on any machine


def r_precision(of: Compared) -> float:
    """The share of samples whose own caption is the nearest of all."""
    scores = of.samples(JUDGE) @ of.texts(JUDGE).T
    own = scores.diagonal()
    return (own >= scores.amax(1) - EQUAL).double().mean().item()


METRICS = {
    "r_precision": Metric(
        "R-precision",
        False,
        "Share of samples whose own caption is the nearest among all captions asked for, embedded "
        "by the study's own judge (1711.10485, section 4.1, there among 100 captions). The more "
        "captions, the lower.",
        depends_on_n=True,
        of=(HELD_OUT,),
        extractor=JUDGE,
        shows_copies=True,
        share="n",
        measure=r_precision,
    )
}
