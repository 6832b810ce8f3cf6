"""Features of references and samples, and every metric of a run computed from them."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fitspace.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

from fitspace.metrics import extractors
from fitspace.metrics.extractors import Weights
from fitspace.metrics.table import INTERVAL, METRICS, NEIGHBOURHOOD, SHARES


def reference_features(
    images,
    captions: list[str],
    prompts: list[str],
    judge: str | Path,
    weights: Weights = MappingProxyType({}),
) -> dict[str, Tensor]:
    """The features of a task's held-out images that all its runs' evaluations share.

    Parameters
    ----------
    images : uint8 array or tensor, shape (m, h, w, 3), the held-out images.
    captions : the caption of each image.
    prompts : the caption that each sample is generated from; each has a held-out image.
    judge : an open_clip folder, ``hf-hub:org/name``, or ``NAME@WEIGHTS``.
    weights : name -> file of the extractors that the study names, such as ``inception`` for FID.

    Returns
    -------
    float32 tensors: ``judge_images`` (m, e); ``judge_texts`` (p, e), of the prompts;
    ``judge_paired`` (p, e), the mean embedding of the images with the prompt as their caption;
    ``effnet`` (m, 1280); and one tensor for each extractor in ``weights``.

    Raises UserError if images and captions do not match, a prompt has no image, or a feature
    is not finite.
    """
    import torch

    from fitspace.metrics import clip

    images = _images("reference images", images)
    where = {p: [i for i, c in enumerate(captions) if c == p] for p in dict.fromkeys(prompts)}
    problems = [
        f"prompt {p!r}: no held-out image has this caption" for p, i in where.items() if not i
    ]
    if len(captions) != len(images):
        problems.insert(0, f"captions: {len(captions)} for {len(images)} reference images")
    if problems:
        raise UserError(problems)
    loaded = clip.load(judge)
    embedded = clip.image_embeddings(loaded, images)
    found = {
        "judge_images": embedded,
        "judge_texts": clip.text_embeddings(loaded, prompts),
        "judge_paired": torch.stack([embedded[where[p]].mean(0) for p in prompts]),
    }
    others = extractors.features(images, weights)
    return finite("reference", found | {name: f.float() for name, f in others.items()})


def evaluate(
    samples,
    reference: dict[str, Tensor],
    judge: str | Path,
    weights: Weights = MappingProxyType({}),
) -> dict[str, Any]:
    """Every metric of one run.

    Parameters
    ----------
    samples : uint8 array or tensor, shape (n, h, w, 3); sample i was generated from prompt i, and
        n is at most the reference's number of prompts.
    reference : the result of ``reference_features`` for the task, with the same judge and the
        same ``weights``.
    judge : an open_clip folder, ``hf-hub:org/name``, or ``NAME@WEIGHTS``.
    weights : name -> file of the extractors that the study names, such as ``inception`` for FID.

    Returns
    -------
    ``clip_t``, ``clip_i``, ``clip_i_paired`` and ``diversity`` (see ``metrics.clip``); ``fid``
    (1706.08500, on Inception-v3 features) if its weights are given; ``fd_effnet``;
    ``kid_effnet`` (mean over 100 subsets, 1801.01401); ``precision`` and ``recall``
    (1904.06991); ``fd_effnet_jackknife``, the distance corrected for its bias in n, and the
    limits of its jackknife, ``fd_effnet_low`` and ``fd_effnet_high`` (see
    ``metrics.frechet.jackknife``); ``n`` and ``m``, the numbers of samples and of held-out
    images; ``against_n``, rows of ``n``, ``fd_effnet`` and ``kid_effnet`` for an eighth, a
    quarter, a half, three quarters and all of the samples.

    Raises UserError if the samples do not match the prompts or a feature is not finite.
    """
    from fitspace.metrics import clip
    from fitspace.metrics.frechet import frechet_distance

    samples = _images("samples", samples)
    n, prompts = len(samples), len(reference["judge_texts"])
    if n > prompts:
        raise UserError(f"samples: {n}; allowed: one for each of the {prompts} prompts at most")
    computed = {
        "judge_images": clip.image_embeddings(clip.load(judge), samples),
        **extractors.features(samples, weights),
    }
    embedded, effnet = (finite("samples", computed)[name] for name in ("judge_images", "effnet"))
    _same_widths(reference, computed)
    by_named = {"fid": frechet_distance}
    measured = {
        name: by_named[name](computed[row.extractor].float(), reference[row.extractor])
        for name, row in METRICS.items()
        if row.extractor in weights
    }
    return measured | {
        "clip_t": clip.clip_t(embedded, reference["judge_texts"][:n]),
        "clip_i": clip.clip_i(embedded, reference["judge_images"]),
        "clip_i_paired": clip.clip_i_paired(embedded, reference["judge_paired"][:n]),
        "diversity": clip.diversity(embedded),
        **of_features(effnet, reference["effnet"].double()),
    }


def subject_features(
    subject, texts: list[str], class_images, judge: str | Path
) -> dict[str, Tensor]:
    """The features of a DreamBooth task that all its runs' evaluations share.

    Parameters
    ----------
    subject : uint8 array or tensor, shape (m, h, w, 3), the training images.
    texts : for each of n images of the subject elsewhere, its prompt without the rare word, which
        the judge does not know.
    class_images : uint8, shape (n, h, w, 3), the untouched base's images of the class.
    judge : an open_clip folder, ``hf-hub:org/name``, or ``NAME@WEIGHTS``.

    Returns
    -------
    float32 tensors: ``judge_images`` (m, e), ``judge_texts`` (n, e), ``judge_class`` (n, e).

    Raises UserError if a feature is not finite.
    """
    from fitspace.metrics import clip

    loaded = clip.load(judge)
    return finite(
        "reference",
        {
            "judge_images": clip.image_embeddings(loaded, _images("subject", subject, 1)),
            "judge_texts": clip.text_embeddings(loaded, texts),
            "judge_class": clip.image_embeddings(loaded, _images("class images", class_images)),
        },
    )


def evaluate_subject(samples, reference: dict[str, Tensor], judge: str | Path) -> dict[str, float]:
    """Every metric of one DreamBooth run.

    Parameters
    ----------
    samples : uint8 array or tensor, shape (3n, h, w, 3): n images of the subject, n of the subject
        elsewhere, n of its class.
    reference : the result of ``subject_features`` for the task, with the same judge.
    judge : an open_clip folder, ``hf-hub:org/name``, or ``NAME@WEIGHTS``.

    Returns
    -------
    ``clip_i`` and ``clip_i_elsewhere``, of the images of the subject and of the subject elsewhere
    against the training images (2303.18181 measures the first); ``clip_t`` of the subject
    elsewhere; ``diversity`` of the subject's images; ``prior_drift``, the distance of the class
    images from the base's; ``n`` and ``m``, the numbers of images of each kind and of training
    images.

    Raises UserError if there are not 3n samples or a feature is not finite.
    """
    from fitspace.metrics import clip

    samples, n = _images("samples", samples), len(reference["judge_texts"])
    if len(samples) != 3 * n:
        raise UserError(f"samples: {len(samples)}; allowed: {n} of each of 3 kinds")
    loaded = clip.load(judge)
    # Embed each kind separately, so that the base's class images get exactly the same numbers.
    embedded = [clip.image_embeddings(loaded, images) for images in samples.split(n)]
    subject, elsewhere, of_class = finite(
        "samples", dict(zip(("subject", "elsewhere", "class"), embedded, strict=True))
    ).values()
    _same_widths(reference, {"judge_images": subject})
    return {
        "clip_i": clip.clip_i(subject, reference["judge_images"]),
        "clip_i_elsewhere": clip.clip_i(elsewhere, reference["judge_images"]),
        "clip_t": clip.clip_t(elsewhere, reference["judge_texts"]),
        "diversity": clip.diversity(subject),
        "prior_drift": clip.drift(of_class, reference["judge_class"]),
        "n": n,
        "m": len(reference["judge_images"]),
    }


def of_features(samples: Tensor, reference: Tensor) -> dict[str, Any]:
    """The metrics of features, shapes (n, d) and (m, d), float64."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    from fitspace.metrics.frechet import frechet_distance, jackknife
    from fitspace.metrics.kernel import kernel_distance
    from fitspace.metrics.sample_size import against_n

    n = len(samples)
    distances = {
        "fd_effnet": frechet_distance(samples, reference),
        "kid_effnet": kernel_distance(samples, reference),
    }
    coverage = prc_features_to_metric(
        samples, reference, prc_neighborhood=NEIGHBOURHOOD, verbose=False
    )
    fewer = list(dict.fromkeys(max(2, int(share * n)) for share in SHARES))
    return {
        **distances,
        "precision": coverage["precision"],
        "recall": coverage["recall"],
        **dict(zip(INTERVAL, jackknife(samples, reference), strict=True)),
        "n": n,
        "m": len(reference),
        "against_n": [*against_n(samples, reference, fewer), {"n": n, **distances}],
    }


def _images(name: str, images, fewest: int = NEIGHBOURHOOD + 1) -> Tensor:
    import torch

    images = torch.as_tensor(images)
    shape = tuple(images.shape)
    if images.dtype != torch.uint8 or images.ndim != 4 or shape[3] != 3:
        raise UserError(f"{name}: {images.dtype} of shape {shape}, not uint8 of shape (n, h, w, 3)")
    if len(images) < fewest:
        raise UserError(f"{name}: {len(images)}, fewer than the {fewest} that recall needs")
    return images


def _same_widths(reference: dict[str, Tensor], computed: dict[str, Tensor]) -> None:
    widths = {name: (reference[name].shape[1], c.shape[1]) for name, c in computed.items()}
    problems = [
        f"reference: {name!r} has {found} numbers a row; needed: {wanted}, as of the samples"
        for name, (found, wanted) in widths.items()
        if found != wanted
    ]
    if problems:
        raise UserError(problems)


def finite(owner: str, features: dict[str, Tensor]) -> dict[str, Tensor]:
    """The features, if all are finite; else raises UserError, which names ``owner``."""
    bad = {name: int((~f.isfinite()).any(1).sum()) for name, f in features.items()}
    problems = [
        f"{owner}: {count} of {len(features[name])} rows of {name!r} are not finite"
        for name, count in bad.items()
        if count
    ]
    if problems:
        raise UserError(problems)
    return features
