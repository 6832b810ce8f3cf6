"""Features of references and samples, and every metric of a run computed from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fitspace.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from fitspace.metrics.keeping import Kept

from fitspace.metrics.extractors import JUDGE, Extraction, Weights, in_use, scoring
from fitspace.metrics.metric import GIVEN, IMAGES, PAIRS, TEXTS, TRAINING, Compared
from fitspace.metrics.table import INTERVAL, METRICS, NEIGHBOURHOOD, SHARES, extractors_of


def reference_features(
    images,
    captions: list[str],
    prompts: list[str],
    judge: str | Path,
    weights: Weights = MappingProxyType({}),
    further: Sequence[str] = (),
    decoded: Iterable[tuple[str, Any]] = (),
    kept: Kept | None = None,
    given=None,
) -> dict[str, Tensor]:
    """The features of a task's held-out images that all its runs' evaluations share.

    Parameters
    ----------
    images : uint8 array or tensor, shape (m, h, w, 3), the held-out images.
    captions : the caption of each image.
    prompts : the caption that each sample is generated from; each has a held-out image.
    judge : an open_clip folder, ``hf-hub:org/name``, or ``NAME@WEIGHTS``.
    weights : name -> file of the extractors that the study names, such as ``inception`` for FID.
    further : the metrics that the study names beside the standard ones.
    decoded : for those that need ``TRAINING``, parts of the training and of all held-out images as
        the autoencoder gives them back: ``training`` or ``held_out``, and uint8 (k, h, w, 3).
    kept : features of earlier calls.
    given : uint8, shape (m, h, w, 3), the images that the task gives with ``images``. There are as
        many prompts of each image, one image after another, and a prompt's own image is the one
        that its samples are compared with.

    Returns
    -------
    float32 tensors: ``judge_images`` (m, e); ``judge_texts`` (p, e), of the prompts;
    ``judge_paired`` (p, e), the mean embedding of the images with the prompt as their caption;
    ``effnet`` (m, 1280); and one tensor for each extractor in ``weights``. For ``further`` ones
    that need them ``pairs``, int64 (k, 2), all pairs of a prompt and an image with this caption;
    ``images`` and ``given``, uint8 (m, h, w, 3); ``NAME_texts`` (p, d), of the prompts;
    ``NAME_training`` (t, d) and ``NAME_held_out`` (q, d), of ``decoded``, for the extractors of
    whose features these metrics are made.

    Raises UserError if images and captions do not match, a prompt has no image, or a feature
    is not finite.
    """
    import torch

    images = _images("reference images", images)
    found_by = {p: [i for i, c in enumerate(captions) if c == p] for p in dict.fromkeys(prompts)}
    problems = [
        f"prompt {p!r}: no held-out image has this caption" for p, i in found_by.items() if not i
    ]
    where = [found_by[prompt] for prompt in prompts]  # the images of each prompt
    if given is not None:
        given = _images("given images", given)
        if len(given) != len(images) or len(prompts) % len(images):
            problems.append(f"given: {len(given)} for {len(images)} images, {len(prompts)} prompts")
        each = max(1, len(prompts) // len(images))
        where = [[i // each] for i in range(len(prompts))]
    if len(captions) != len(images):
        problems.insert(0, f"captions: {len(captions)} for {len(images)} reference images")
    if problems:
        raise UserError(problems)
    extraction = Extraction(judge, weights, kept)
    embedded = extraction.images(JUDGE, images)
    found = {
        "judge_images": embedded,
        "judge_texts": extraction.texts(JUDGE, prompts),
        "judge_paired": torch.stack([embedded[own].mean(0) for own in where]),
        **{name: extraction.images(name, images) for name in in_use(weights)},
    }
    needs = {need for name in further for need in METRICS[name].needs}
    if PAIRS in needs:
        found["pairs"] = torch.tensor([(i, j) for i, own in enumerate(where) for j in own])
    if IMAGES in needs:
        found["images"] = images
    if GIVEN in needs:
        found["given"] = given
    for name in extractors_of([n for n in further if TEXTS in METRICS[n].needs]):
        found[f"{name}_texts"] = extraction.texts(name, prompts)
    if TRAINING in needs:
        found |= _of_decoded(extraction, further, decoded)
    return finite("reference", found)


def of_last_prompts(reference: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """The same reference features for samples of its last ``count`` prompts alone."""
    first = len(reference["judge_texts"]) - count
    of_prompts = [name for name in reference if name.endswith("_texts")] + ["judge_paired"]
    found = reference | {name: reference[name][first:] for name in of_prompts}
    if "pairs" in reference:
        rows, images = reference["pairs"].T
        found["pairs"] = reference["pairs"][rows >= first] - reference["pairs"].new_tensor(
            [first, 0]
        )
    return found


def _of_decoded(
    extraction: Extraction, further: Sequence[str], decoded: Iterable[tuple[str, Any]]
) -> dict[str, Tensor]:
    """Features of decoded images, by each extractor of a metric that needs them."""
    import torch

    needing = [name for name in further if TRAINING in METRICS[name].needs]
    parts: dict[str, list[Tensor]] = {}
    for split, images in decoded:
        for name in sorted(extractors_of(needing)):
            found = extraction.images(name, torch.as_tensor(images))
            parts.setdefault(f"{name}_{split}", []).append(found)
    return {name: torch.cat(own) for name, own in parts.items()}


def evaluate(
    samples,
    reference: dict[str, Tensor],
    judge: str | Path,
    weights: Weights = MappingProxyType({}),
    further: Sequence[str] = (),
    kept: Kept | None = None,
    untouched: Mapping[str, Tensor] = MappingProxyType({}),
) -> dict[str, Any]:
    """Every metric of one run.

    Parameters
    ----------
    samples : uint8 array or tensor, shape (n, h, w, 3); sample i was generated from prompt i, and
        n is at most the reference's number of prompts.
    reference : the result of ``reference_features`` for the task, with the same judge and the
        same ``weights`` and ``further`` metrics.
    judge : an open_clip folder, ``hf-hub:org/name``, or ``NAME@WEIGHTS``.
    weights : name -> file of the extractors that the study names, such as ``inception`` for FID.
    further : the metrics that the study names beside the standard ones.
    kept : features of earlier calls.
    untouched : for ``further`` ones that need them, features of what the untouched base draws from
        the same noise and prompts, by extractor.

    Returns
    -------
    ``clip_t``, ``clip_i``, ``clip_i_paired`` and ``diversity`` (see ``metrics.clip``); ``fid``
    (1706.08500, on Inception-v3 features) if its weights are given; ``fd_effnet``;
    ``kid_effnet`` (mean over 100 subsets, 1801.01401); ``precision`` and ``recall``
    (1904.06991); ``fd_effnet_jackknife``, the distance corrected for its bias in n, and the
    limits of its jackknife, ``fd_effnet_low`` and ``fd_effnet_high`` (see
    ``metrics.frechet.jackknife``); ``n`` and ``m``, the numbers of samples and of held-out
    images; ``against_n``, rows of ``n``, ``fd_effnet`` and ``kid_effnet`` for an eighth, a
    quarter, a half, three quarters and all of the samples; and the ``further`` ones.

    Raises UserError if the samples do not match the prompts or a feature is not finite.
    """
    from fitspace.metrics import clip
    from fitspace.metrics.frechet import frechet_distance

    samples = _images("samples", samples)
    n, prompts = len(samples), len(reference["judge_texts"])
    if n > prompts:
        raise UserError(f"samples: {n}; allowed: one for each of the {prompts} prompts at most")
    extraction = Extraction(judge, weights, kept)
    computed = {name: extraction.images(name, samples) for name in (JUDGE, *in_use(weights))}
    embedded, effnet = (finite("samples", computed)[name] for name in (JUDGE, "effnet"))
    _same_widths(reference, computed)
    computed |= {
        name: extraction.scores(name, samples, reference[f"{name}_texts"][:n])
        for name in scoring(extractors_of(further))
    }
    by_named = {"fid": frechet_distance}
    measured = {
        name: by_named[name](computed[METRICS[name].extractor], reference[METRICS[name].extractor])
        for name in by_named
        if METRICS[name].extractor in weights
    }
    return measured | {
        "clip_t": clip.clip_t(embedded, reference["judge_texts"][:n]),
        "clip_i": clip.clip_i(embedded, reference["judge_images"]),
        "clip_i_paired": clip.clip_i_paired(embedded, reference["judge_paired"][:n]),
        "diversity": clip.diversity(embedded),
        **of_features(effnet.double(), reference["effnet"].double()),
        **_further(further, Compared(samples, reference, computed.__getitem__, untouched)),
    }


def features_of(
    images, extractors: Iterable[str], judge: str | Path, weights: Weights, kept: Kept | None = None
) -> dict[str, Tensor]:
    """Features of uint8 images (n, h, w, 3) by some extractors: float32, shape (n, d)."""
    extraction, images = Extraction(judge, weights, kept), _images("images", images)
    return {name: extraction.images(name, images) for name in extractors}


def _further(names: Sequence[str], compared: Compared) -> dict[str, float]:
    return {name: METRICS[name].measure(compared) for name in names}


def subject_features(
    subject,
    texts: list[str],
    class_images,
    judge: str | Path,
    weights: Weights = MappingProxyType({}),
    further: Sequence[str] = (),
    kept: Kept | None = None,
) -> dict[str, Tensor]:
    """The features of a DreamBooth task that all its runs' evaluations share.

    Parameters
    ----------
    subject : uint8 array or tensor, shape (m, h, w, 3), the training images.
    texts : for each of n images of the subject elsewhere, its prompt without the rare word, which
        the judge does not know.
    class_images : uint8, shape (n, h, w, 3), the untouched base's images of the class.
    judge : an open_clip folder, ``hf-hub:org/name``, or ``NAME@WEIGHTS``.
    weights, further, kept : as of `reference_features`.

    Returns
    -------
    float32 tensors: ``judge_images`` (m, e), ``judge_texts`` (n, e), ``judge_class`` (n, e); and of
    the subject's images (m, d) for each other extractor of whose features ``further`` metrics are
    made.

    Raises UserError if a feature is not finite.
    """
    extraction, subject = Extraction(judge, weights, kept), _images("subject", subject, 1)
    others = sorted(extractors_of(further) - {JUDGE})
    return finite(
        "reference",
        {
            "judge_images": extraction.images(JUDGE, subject),
            "judge_texts": extraction.texts(JUDGE, texts),
            "judge_class": extraction.images(JUDGE, _images("class images", class_images)),
            **{name: extraction.images(name, subject) for name in others},
        },
    )


def evaluate_subject(
    samples,
    reference: dict[str, Tensor],
    judge: str | Path,
    weights: Weights = MappingProxyType({}),
    further: Sequence[str] = (),
    kept: Kept | None = None,
) -> dict[str, float]:
    """Every metric of one DreamBooth run.

    Parameters
    ----------
    samples : uint8 array or tensor, shape (3n, h, w, 3): n images of the subject, n of the subject
        elsewhere, n of its class.
    reference : the result of ``subject_features`` for the task, with the same judge.
    judge : an open_clip folder, ``hf-hub:org/name``, or ``NAME@WEIGHTS``.
    weights, further, kept : as of `evaluate`.

    Returns
    -------
    ``clip_i`` and ``clip_i_elsewhere``, of the images of the subject and of the subject elsewhere
    against the training images (2303.18181 measures the first); ``clip_t`` of the subject
    elsewhere; ``diversity`` of the subject's images; ``prior_drift``, the distance of the class
    images from the base's; ``n`` and ``m``, the numbers of images of each kind and of training
    images; and the ``further`` ones, of the subject's images.

    Raises UserError if there are not 3n samples or a feature is not finite.
    """
    from fitspace.metrics import clip

    samples, n = _images("samples", samples), len(reference["judge_texts"])
    if len(samples) != 3 * n:
        raise UserError(f"samples: {len(samples)}; allowed: {n} of each of 3 kinds")
    extraction, kinds = Extraction(judge, weights, kept), samples.split(n)
    # Embed each kind separately, so that the base's class images get exactly the same numbers.
    embedded = [extraction.images(JUDGE, images) for images in kinds]
    subject, elsewhere, of_class = finite(
        "samples", dict(zip(("subject", "elsewhere", "class"), embedded, strict=True))
    ).values()
    others = sorted(extractors_of(further) - {JUDGE})
    computed = {JUDGE: subject} | {name: extraction.images(name, kinds[0]) for name in others}
    _same_widths(reference, finite("samples", computed))
    return {
        "clip_i": clip.clip_i(subject, reference["judge_images"]),
        "clip_i_elsewhere": clip.clip_i(elsewhere, reference["judge_images"]),
        "clip_t": clip.clip_t(elsewhere, reference["judge_texts"]),
        "diversity": clip.diversity(subject),
        "prior_drift": clip.drift(of_class, reference["judge_class"]),
        "n": n,
        "m": len(reference["judge_images"]),
        **_further(further, Compared(kinds[0], reference, computed.__getitem__)),
    }


def of_features(samples: Tensor, reference: Tensor) -> dict[str, Any]:
    """The metrics of features, shapes (n, d) and (m, d), float64."""
    from fitspace.core.imports import import_torchvision

    import_torchvision()  # where all features are kept, no extractor did
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
    named = {"judge_images" if name == JUDGE else name: c for name, c in computed.items()}
    widths = {name: (reference[name].shape[1], c.shape[1]) for name, c in named.items()}
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
