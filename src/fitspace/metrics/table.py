"""The table of metrics: one row each, with its label, its better direction and what it needs.

The standard ones stand here and are always measured, in :mod:`fitspace.metrics.measuring`. Further
ones, which a study names, stand each in a file of :mod:`fitspace.metrics.further`.
"""

from __future__ import annotations

from collections.abc import Collection

from fitspace.metrics.extractors import NAMED
from fitspace.metrics.further import discovered
from fitspace.metrics.metric import HELD_OUT, SUBJECT, UNTOUCHED, Metric

STANDARD = {
    "fid": Metric(
        "FID",
        True,
        "Squared Fréchet distance between Gaussians fitted to Inception-v3 features (1706.08500, "
        "torch-fidelity's weights) of the samples and of the held-out images. Biased upwards by "
        "about c/n, so only values from equal numbers of images, against the same images, are "
        "comparable; those in the literature, which use 10,000 images or more, are not.",
        depends_on_n=True,
        of=(HELD_OUT,),
        extractor="inception",
    ),
    "fd_effnet": Metric(
        "Fréchet distance (EfficientNet-lite0)",
        True,
        "Squared Fréchet distance between Gaussians fitted to EfficientNet-lite0 features "
        "(ImageNet weights) of the samples and of the held-out images. It is not FID, which is "
        "defined on Inception-v3 features; the two cannot be compared. Biased upwards by about "
        "c/n, so only values from equal numbers of images are comparable.",
        depends_on_n=True,
        of=(HELD_OUT,),
        extractor="effnet",
    ),
    "kid_effnet": Metric(
        "KID (EfficientNet-lite0)",
        True,
        "Kernel distance: unbiased squared maximum mean discrepancy with the cubic polynomial "
        "kernel, mean over subsets, on the same EfficientNet-lite0 features; not comparable with "
        "KID on Inception-v3.",
        of=(HELD_OUT,),
        extractor="effnet",
    ),
    "clip_t": Metric(
        "CLIP-T",
        False,
        "Mean cosine between a sample and its own caption, embedded by the study's own judge. A "
        "plain cosine: not CLIPScore, not a percentage, not comparable across judges. With "
        "DreamBooth, for the subject elsewhere, with captions that name the class.",
        shows_copies=True,
        extractor="judge",
    ),
    "clip_i": Metric(
        "CLIP-I",
        False,
        "Mean cosine over all pairs of a sample and a held-out image, embedded by the study's "
        "own judge; with DreamBooth, of an image of the subject and an image trained on.",
        rewards_copies=True,
        extractor="judge",
    ),
    "clip_i_elsewhere": Metric(
        "CLIP-I, elsewhere",
        False,
        "Mean cosine over all pairs of an image that puts the subject elsewhere and an image "
        "trained on, embedded by the study's own judge.",
        of=(SUBJECT,),
        rewards_copies=True,
        extractor="judge",
    ),
    "prior_drift": Metric(
        "Prior drift",
        True,
        "One minus the mean cosine between what the tuned model and the untouched base draw of "
        "the subject's class, from the same noise, embedded by the study's own judge.",
        of=(SUBJECT,),
        extractor="judge",
    ),
    "clip_i_paired": Metric(
        "CLIP-I, paired",
        False,
        "Mean cosine between a sample and the held-out image of the same caption, embedded by "
        "the study's own judge.",
        of=(HELD_OUT,),
        rewards_copies=True,
        extractor="judge",
    ),
    "diversity": Metric(
        "Diversity",
        False,
        "One minus the mean cosine over all pairs of different samples, embedded by the study's "
        "own judge.",
        shows_copies=True,
        extractor="judge",
    ),
    "precision": Metric(
        "Precision",
        False,
        "Share of samples within the 3-nearest-neighbour manifold of the held-out images, on "
        "EfficientNet-lite0 features.",
        depends_on_n=True,
        of=(HELD_OUT,),
        share="n",
        extractor="effnet",
    ),
    "recall": Metric(
        "Recall",
        False,
        "Share of held-out images within the 3-nearest-neighbour manifold of the samples, on "
        "EfficientNet-lite0 features.",
        depends_on_n=True,
        of=(HELD_OUT,),
        share="m",
        extractor="effnet",
    ),
    "prompt_sensitivity": Metric(
        "Prompt sensitivity",
        False,
        "How far the predicted noise moves with what was taught, E‖ε_a − ε_b‖² / E‖ε_b‖², mean "
        "over time steps: a is an image's caption or class and b none; with DreamBooth the prompt "
        "with the rare word and the one without. It says what a model perceives, not that it draws "
        "well.",
        explains=True,
    ),
}
METRICS = STANDARD | discovered()
NAMES = tuple(METRICS)
SHOW_COPIES = tuple(name for name, row in METRICS.items() if row.shows_copies)


def measured(
    of_subject: bool,
    named: Collection[str] = (),
    further: Collection[str] = (),
    explained: bool = False,
) -> tuple[str, ...]:
    """The metrics of a kind of task: standard ones, then those of ``further`` in their order.

    ``named`` are the extractors whose weights a study names, ``further`` the metrics, ``explained``
    whether its runs are explained.
    """
    kind = SUBJECT if of_subject else HELD_OUT
    standard = [
        name
        for name, row in METRICS.items()
        if row.measure is None
        and kind in row.of
        and (row.extractor not in NAMED or row.extractor in named)
        and (explained or not row.explains)
    ]
    own = [name for name in further if kind in METRICS[name].of]
    return (*standard, *own)


def asked(names: Collection[str]) -> tuple[str, ...]:
    """The further metrics among some names, sorted."""
    return tuple(sorted(n for n in {*names} if n in METRICS and METRICS[n].measure is not None))


def extractors_of(further: Collection[str]) -> set[str]:
    """The extractors of whose features some further metrics are made."""
    return {METRICS[name].extractor for name in further} - {""}


def beside_untouched(further: Collection[str]) -> list[str]:
    """The further metrics among some that look at what the untouched base draws."""
    return [name for name in further if UNTOUCHED in METRICS[name].needs]


def weights_for(name: str) -> str:
    """The extractor whose weights a study has to name for a metric; empty if none."""
    return METRICS[name].extractor if METRICS[name].extractor in NAMED else ""


OF_HELD_OUT, OF_SUBJECT = measured(of_subject=False), measured(of_subject=True)


def alone(responses: Collection[str]) -> list[str]:
    """The metrics that reward copies, if no other given metric shows that a run only copies."""
    if set(responses) & set(SHOW_COPIES):
        return []
    return [name for name in responses if name in METRICS and METRICS[name].rewards_copies]


# The Fréchet distance corrected for its bias in n, and the limits of its jackknife.
INTERVAL = ("fd_effnet_jackknife", "fd_effnet_low", "fd_effnet_high")
# The judge's features for either kind of task: dtype, rows and numbers per row. The file also
# holds the other extractors' features of held-out images.
JUDGE_FEATURES = {"judge_images": "F32 m e", "judge_texts": "F32 p e", "judge_paired": "F32 p e"}
SUBJECT_FEATURES = {"judge_images": "F32 m e", "judge_texts": "F32 n e", "judge_class": "F32 n e"}
SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4)  # of the samples, in the curve against their number
NEIGHBOURHOOD = 3  # of precision and recall (1904.06991, section 3.1)
