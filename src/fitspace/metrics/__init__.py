"""What is measured on a run's samples, and against what.

CLIP-T, CLIP-I and diversity by a judge (any open_clip model); Fréchet distance, KID,
precision and recall on EfficientNet-lite0 features. Importing this imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fitspace import files
from fitspace.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
NAMES = (
    "fd_effnet",
    "kid_effnet",
    "precision",
    "recall",
    "clip_t",
    "clip_i",
    "clip_i_paired",
    "diversity",
)
LOWER_IS_BETTER = ("fd_effnet", "kid_effnet")
EXTRACTOR = "effnet-lite0-v1"
EXTRACTOR_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
NEIGHBOURHOOD = 3  # of precision and recall (1904.06991, section 3.1)


def judge_files(judge: str | Path) -> list[Path]:
    """The files that decide what a judge says: weights, configuration and tokenizer.

    Raises UserError if ``judge`` is neither an open_clip folder nor ``NAME@WEIGHTS``.
    """
    folder, weights = Path(judge), Path(str(judge).partition("@")[2] or ".")
    if folder.is_dir():
        found = [p for p in sorted(folder.iterdir()) if p.suffix in (".json", ".safetensors")]
        names = {p.name for p in found}
        if "open_clip_config.json" in names and any(n.endswith(".safetensors") for n in names):
            return found
    elif weights.is_file():
        return [weights]
    raise UserError(
        f"judge: {str(judge)!r} is not a folder with open_clip_config.json and safetensors "
        "weights, nor NAME@WEIGHTS with an open_clip model name and a weights file"
    )


def identity(judge: str | Path) -> dict:
    """What decides the metrics besides the images: versions, pins and the judge's digest."""
    contents = {p.name: files.sha256(p) for p in judge_files(judge)}
    name = "" if Path(judge).is_dir() else str(judge).partition("@")[0]
    return {
        "metrics": VERSION,
        "extractor": EXTRACTOR,
        "extractor_sha256": EXTRACTOR_SHA256,
        "judge": files.digest({"name": name, "files": contents}),
    }


def reference_features(
    images, captions: list[str], prompts: list[str], judge: str | Path
) -> dict[str, Tensor]:
    """What every evaluation of a task needs of its held-out images, computed once.

    Parameters
    ----------
    images : uint8 array or tensor, shape (m, h, w, 3), the held-out images.
    captions : the caption of each image.
    prompts : the caption each sample is generated from; every one has a held-out image.
    judge : an open_clip folder, or ``NAME@WEIGHTS``.

    Returns
    -------
    float32 tensors: ``judge_images`` (m, e), ``judge_texts`` (p, e) of the prompts,
    ``judge_paired`` (p, e), the mean embedding of the images that have the prompt as their
    caption, and ``effnet`` (m, 1280).

    Raises UserError if images and captions do not match, a prompt has no image, or a feature
    is not finite.
    """
    import torch

    from fitspace.metrics import clip, extractors

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
    return _finite(
        "reference",
        {
            "judge_images": embedded,
            "judge_texts": clip.text_embeddings(loaded, prompts),
            "judge_paired": torch.stack([embedded[where[p]].mean(0) for p in prompts]),
            "effnet": extractors.features(images).float(),
        },
    )


def evaluate(samples, reference: dict[str, Tensor], judge: str | Path) -> dict[str, float]:
    """Every metric of one run.

    Parameters
    ----------
    samples : uint8 array or tensor, shape (n, h, w, 3); sample i was generated from prompt i,
        n of them at most as many as the reference has prompts.
    reference : what ``reference_features`` returned for the task, with the same judge.
    judge : an open_clip folder, or ``NAME@WEIGHTS``.

    Returns
    -------
    ``clip_t``, ``clip_i``, ``clip_i_paired`` and ``diversity`` (see ``metrics.clip``);
    ``fd_effnet``; ``kid_effnet`` (mean over 100 subsets, 1801.01401); ``precision`` and
    ``recall`` (1904.06991); ``n``, the number of samples.

    Raises UserError if the samples do not match the prompts or a feature is not finite.
    """
    from fitspace.metrics import clip, extractors
    from fitspace.metrics.frechet import frechet_distance

    samples = _images("samples", samples)
    n, prompts = len(samples), len(reference["judge_texts"])
    if n > prompts:
        raise UserError(f"samples: {n}; allowed: one for each of the {prompts} prompts at most")
    computed = {
        "judge_images": clip.image_embeddings(clip.load(judge), samples),
        "effnet": extractors.features(samples),
    }
    embedded, effnet = _finite("samples", computed).values()
    return {
        "clip_t": clip.clip_t(embedded, reference["judge_texts"][:n]),
        "clip_i": clip.clip_i(embedded, reference["judge_images"]),
        "clip_i_paired": clip.clip_i_paired(embedded, reference["judge_paired"][:n]),
        "diversity": clip.diversity(embedded),
        "fd_effnet": frechet_distance(effnet, reference["effnet"]),
        **_kid_and_coverage(effnet, reference["effnet"].double()),
        "n": n,
    }


def _kid_and_coverage(samples: Tensor, reference: Tensor) -> dict[str, float]:
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    subset = min(len(samples), len(reference), 1000)
    kid = kid_features_to_metric(samples, reference, kid_subset_size=subset, verbose=False)
    coverage = prc_features_to_metric(
        samples, reference, prc_neighborhood=NEIGHBOURHOOD, verbose=False
    )
    return {
        "kid_effnet": kid[KEY_METRIC_KID_MEAN],
        "precision": coverage["precision"],
        "recall": coverage["recall"],
    }


def _images(name: str, images) -> Tensor:
    import torch

    images = torch.as_tensor(images)
    shape, fewest = tuple(images.shape), NEIGHBOURHOOD + 1
    if images.dtype != torch.uint8 or images.ndim != 4 or shape[3] != 3:
        raise UserError(f"{name}: {images.dtype} of shape {shape}, not uint8 of shape (n, h, w, 3)")
    if len(images) < fewest:
        raise UserError(f"{name}: {len(images)}, fewer than the {fewest} that recall needs")
    return images


def _finite(owner: str, features: dict[str, Tensor]) -> dict[str, Tensor]:
    bad = {name: int((~f.isfinite()).any(1).sum()) for name, f in features.items()}
    problems = [
        f"{owner}: {count} of {len(features[name])} rows of {name!r} are not finite"
        for name, count in bad.items()
        if count
    ]
    if problems:
        raise UserError(problems)
    return features
