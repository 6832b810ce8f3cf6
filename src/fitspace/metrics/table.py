"""The table of metrics: one row each, with its label, its better direction and what it needs.

A new metric is a row here and a value in :mod:`fitspace.metrics.measuring`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

VERSION = 1
# What a task is judged by: held-out images and captions or, with dreambooth, its subject.
HELD_OUT, SUBJECT = "held out", "subject"


@dataclass(frozen=True)
class Metric:
    """A metric's row.

    Attributes
    ----------
    label : as reports write it.
    lower : whether a lower value is better.
    definition : one sentence.
    depends_on_n : whether its expected value depends on the number of samples.
    of : the kinds of tasks on which it is measured.
    extractor : the one that it needs, if a study names that one's weights.
    rewards_copies : whether an adapter that copies its training images has the highest value.
    shows_copies : whether copying lowers it; such a metric must accompany one that rewards copies.
    explains : whether it is a number of the stage `explain`, of a study with that key.
    """

    label: str
    lower: bool
    definition: str
    depends_on_n: bool = False
    of: tuple[str, ...] = (HELD_OUT, SUBJECT)
    extractor: str = ""
    rewards_copies: bool = False
    shows_copies: bool = False
    explains: bool = False


METRICS = {
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
    ),
    "kid_effnet": Metric(
        "KID (EfficientNet-lite0)",
        True,
        "Kernel distance: unbiased squared maximum mean discrepancy with the cubic polynomial "
        "kernel, mean over subsets, on the same EfficientNet-lite0 features; not comparable with "
        "KID on Inception-v3.",
        of=(HELD_OUT,),
    ),
    "clip_t": Metric(
        "CLIP-T",
        False,
        "Mean cosine between a sample and its own caption, embedded by the study's own judge. A "
        "plain cosine: not CLIPScore, not a percentage, not comparable across judges. With "
        "DreamBooth, for the subject elsewhere, with captions that name the class.",
        shows_copies=True,
    ),
    "clip_i": Metric(
        "CLIP-I",
        False,
        "Mean cosine over all pairs of a sample and a held-out image, embedded by the study's "
        "own judge; with DreamBooth, of an image of the subject and an image trained on.",
        rewards_copies=True,
    ),
    "clip_i_elsewhere": Metric(
        "CLIP-I, elsewhere",
        False,
        "Mean cosine over all pairs of an image that puts the subject elsewhere and an image "
        "trained on, embedded by the study's own judge.",
        of=(SUBJECT,),
        rewards_copies=True,
    ),
    "prior_drift": Metric(
        "Prior drift",
        True,
        "One minus the mean cosine between what the tuned model and the untouched base draw of "
        "the subject's class, from the same noise, embedded by the study's own judge.",
        of=(SUBJECT,),
    ),
    "clip_i_paired": Metric(
        "CLIP-I, paired",
        False,
        "Mean cosine between a sample and the held-out image of the same caption, embedded by "
        "the study's own judge.",
        of=(HELD_OUT,),
        rewards_copies=True,
    ),
    "diversity": Metric(
        "Diversity",
        False,
        "One minus the mean cosine over all pairs of different samples, embedded by the study's "
        "own judge.",
        shows_copies=True,
    ),
    "precision": Metric(
        "Precision",
        False,
        "Share of samples within the 3-nearest-neighbour manifold of the held-out images, on "
        "EfficientNet-lite0 features.",
        depends_on_n=True,
        of=(HELD_OUT,),
    ),
    "recall": Metric(
        "Recall",
        False,
        "Share of held-out images within the 3-nearest-neighbour manifold of the samples, on "
        "EfficientNet-lite0 features.",
        depends_on_n=True,
        of=(HELD_OUT,),
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
NAMES = tuple(METRICS)
SHOW_COPIES = tuple(name for name, row in METRICS.items() if row.shows_copies)


def measured(
    of_subject: bool, named: Collection[str] = (), explained: bool = False
) -> tuple[str, ...]:
    """The metrics of a kind of task; ``named`` are the extractors whose weights a study names,
    ``explained`` whether its runs are explained."""
    kind = SUBJECT if of_subject else HELD_OUT
    return tuple(
        name
        for name, row in METRICS.items()
        if kind in row.of
        and (not row.extractor or row.extractor in named)
        and (explained or not row.explains)
    )


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
EXTRACTOR = "effnet-lite0-v1"
EXTRACTOR_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
NEIGHBOURHOOD = 3  # of precision and recall (1904.06991, section 3.1)
