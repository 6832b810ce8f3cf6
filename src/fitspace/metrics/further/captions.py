"""Whether a sample shows its own caption rather than another one's, and as people like it."""

from __future__ import annotations

from functools import partial

from fitspace.metrics.extractors import JUDGE, SCORERS
from fitspace.metrics.metric import HELD_OUT, TEXTS, Compared, Metric

EQUAL = 1e-6  # cosines as near as this are one: equal captions, on any machine


def r_precision(of: Compared) -> float:
    """The share of samples whose own caption is the nearest of all."""
    scores = of.samples(JUDGE) @ of.texts(JUDGE).T
    own = scores.diagonal()
    return (own >= scores.amax(1) - EQUAL).double().mean().item()


def score(of: Compared, scorer: str) -> float:
    """The mean cosine of a sample and its own caption."""
    samples = of.samples(scorer)
    return (samples * of.texts(scorer)[: len(samples)]).sum(1).mean().item()


def reward(of: Compared) -> float:
    """The mean reward of a sample with its own caption."""
    return of.samples("imagereward").mean().item()


SOURCES = {"pickscore": "2305.01569", "hpsv2": "2306.09341"}
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
    ),
    "imagereward_score": Metric(
        "ImageReward",
        False,
        "Mean reward of a sample with its caption by ImageReward (2304.05977), a BLIP fine-tuned "
        "on what people ranked, shifted and scaled as its authors do.",
        of=(HELD_OUT,),
        extractor="imagereward",
        shows_copies=True,
        needs=(TEXTS,),
        measure=reward,
    ),
} | {
    f"{scorer}_score": Metric(
        label,
        False,
        f"Mean cosine of a sample and its caption by {label} ({SOURCES[scorer]}), a CLIP "
        "fine-tuned on what people chose; a plain cosine, without the learned scale.",
        of=(HELD_OUT,),
        extractor=scorer,
        shows_copies=True,
        needs=(TEXTS,),
        measure=partial(score, scorer=scorer),
    )
    for scorer, label in SCORERS.items()
}
