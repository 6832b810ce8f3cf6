"""What is measured on a run's samples, and against what.

CLIP-T, CLIP-I and diversity by a judge (any open_clip model); Fréchet distance, KID,
precision and recall on EfficientNet-lite0 features; FID where the weights of Inception-v3 are.
Importing this imports no torch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from fitspace import bases, files, hub
from fitspace.config import checked
from fitspace.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from fitspace.design import Run

VERSION = 1
# By what a task is judged: held-out images and captions, or, with dreambooth, its subject.
OF_HELD_OUT = (
    "fd_effnet",
    "kid_effnet",
    "precision",
    "recall",
    "clip_t",
    "clip_i",
    "clip_i_paired",
    "diversity",
)
OF_SUBJECT = ("clip_i", "clip_i_elsewhere", "clip_t", "diversity", "prior_drift")
FID = "fid"  # of held-out images too, where the study names Inception-v3's weights
NAMES = tuple(dict.fromkeys([*OF_HELD_OUT, *OF_SUBJECT, FID]))
LOWER_IS_BETTER = ("fd_effnet", "kid_effnet", "prior_drift", FID)
# The Fréchet distance corrected for its bias in n, and the limits of its 95% interval.
INTERVAL = ("fd_effnet_jackknife", "fd_effnet_low", "fd_effnet_high")
# What the features of either kind of task are: dtype, rows and numbers a row.
FEATURES = {
    "judge_images": "F32 m e",
    "judge_texts": "F32 p e",
    "judge_paired": "F32 p e",
    "effnet": "F32 m d",
}
INCEPTION_FEATURES = {"inception": "F32 m 2048"}  # beside FEATURES, for FID
SUBJECT_FEATURES = {"judge_images": "F32 m e", "judge_texts": "F32 n e", "judge_class": "F32 n e"}
# Their expected value depends on the number of samples; that of the others does not.
DEPENDS_ON_N = ("fd_effnet", "precision", "recall", FID)
SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4)  # of the samples, in the curve against their number
EXTRACTOR = "effnet-lite0-v1"
EXTRACTOR_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
NEIGHBOURHOOD = 3  # of precision and recall (1904.06991, section 3.1)
HUB = "hf-hub:"  # as open_clip marks hub ids
_HUB_FILES = ("*.json", "*.txt", "open_clip*.safetensors")


def judge_folder(judge: str | Path) -> Path | None:
    """The folder a judge lies in: its own, or that of a hub id's copy; None: ``NAME@WEIGHTS``.

    Raises :class:`fitspace.hub.NotHere` for a hub id without a copy on this machine.
    """
    if not str(judge).startswith(HUB):
        return Path(judge) if Path(judge).is_dir() else None
    folder = hub.cached(_hub_id(judge), _HUB_FILES)
    if folder is None or not _judge_files(folder):
        raise hub.NotHere(f"judge: {str(judge)!r} is not on this machine; {hub.CURE}")
    return folder


def judge_files(judge: str | Path) -> list[Path]:
    """The files that decide what a judge says: weights, configuration and tokenizer.

    Raises UserError if ``judge`` is no open_clip folder, hub id of one, nor ``NAME@WEIGHTS``;
    :class:`fitspace.hub.NotHere` for a hub id without a copy on this machine.
    """
    folder, weights = judge_folder(judge), Path(str(judge).partition("@")[2] or ".")
    if folder is None and weights.is_file():
        return [weights]
    if folder is not None and (found := _judge_files(folder)):
        return found
    raise UserError(
        f"judge: {str(judge)!r} is not a folder with open_clip_config.json and safetensors "
        f"weights, nor {HUB}org/name of such a folder on the hub, nor NAME@WEIGHTS with an "
        "open_clip model name and a weights file"
    )


def fetch_judge(judge: str) -> None:
    """Download a hub id's open_clip model, unless it is here; other judges are left alone.

    Raises UserError: no network, or a repository that holds no such model.
    """
    with contextlib.suppress(hub.NotHere):
        judge_files(judge)
        return
    if not _judge_files(hub.fetch(_hub_id(judge), _HUB_FILES)):
        raise UserError(
            f"judge: {judge!r} holds no open_clip_config.json and open_clip*.safetensors"
        )


def _hub_id(judge: str | Path) -> str:
    ref = str(judge).removeprefix(HUB)
    if not hub.is_id(ref):
        raise UserError(f"judge: {str(judge)!r}; allowed: {HUB}org/name")
    return ref


def _judge_files(folder: Path) -> list[Path]:
    """What counts of an open_clip folder; empty when it lacks weights or configuration."""
    weights = sorted(folder.glob("*.safetensors"))
    # Of several open_clip reads the one with its own name.
    weights = [p for p in weights if p.name.startswith("open_clip")] or weights
    whole = weights and (folder / "open_clip_config.json").exists()
    return sorted([*folder.glob("*.json"), *weights]) if whole else []


def inception_file(path: str | Path) -> Path:
    """The file with Inception-v3's weights.

    Raises UserError for a file that is no safetensors; :class:`fitspace.hub.NotHere` for none.
    """
    file = Path(path)
    if file.suffix != ".safetensors":
        raise UserError(f"inception: {str(path)!r}; allowed: a .safetensors file")
    if not os.path.isfile(file):  # Path's own raises for a name longer than file systems allow
        raise hub.NotHere(
            f"inception: {str(path)!r} is not on this machine; params/README.md says how to make it"
        )
    return file


def identity(judge: str | Path, inception: str | Path | None = None) -> dict:
    """What decides the metrics besides the images: versions, pins and the judge's digest.

    And, where they are named, the SHA-256 of Inception-v3's weights.
    """
    found = bases.hashes(judge_files(judge))
    contents = {path.name: value for path, value in found.items()}
    name = str(judge).partition("@")[0] if judge_folder(judge) is None else ""
    evaluator = {
        "metrics": VERSION,
        "extractor": EXTRACTOR,
        "extractor_sha256": EXTRACTOR_SHA256,
        "judge": files.digest({"name": name, "files": contents}),
    }
    if inception is not None:
        (evaluator["inception"],) = bases.hashes([inception_file(inception)]).values()
    return evaluator


def reference_features(
    images,
    captions: list[str],
    prompts: list[str],
    judge: str | Path,
    inception: str | Path | None = None,
) -> dict[str, Tensor]:
    """What every evaluation of a task needs of its held-out images, computed once.

    Parameters
    ----------
    images : uint8 array or tensor, shape (m, h, w, 3), the held-out images.
    captions : the caption of each image.
    prompts : the caption each sample is generated from; every one has a held-out image.
    judge : an open_clip folder, ``hf-hub:org/name``, or ``NAME@WEIGHTS``.
    inception : safetensors file with Inception-v3's weights; None: no FID.

    Returns
    -------
    float32 tensors: ``judge_images`` (m, e), ``judge_texts`` (p, e) of the prompts,
    ``judge_paired`` (p, e), the mean embedding of the images that have the prompt as their
    caption, ``effnet`` (m, 1280), and ``inception`` (m, 2048) where its weights are given.

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
    found = {
        "judge_images": embedded,
        "judge_texts": clip.text_embeddings(loaded, prompts),
        "judge_paired": torch.stack([embedded[where[p]].mean(0) for p in prompts]),
        "effnet": extractors.features(images).float(),
    }
    return _finite("reference", found | _of_inception(images, inception))


def _of_inception(images: Tensor, weights: str | Path | None) -> dict[str, Tensor]:
    if weights is None:
        return {}
    from fitspace.metrics import inception

    return {"inception": inception.features(images, inception_file(weights)).float()}


def evaluate(
    samples,
    reference: dict[str, Tensor],
    judge: str | Path,
    inception: str | Path | None = None,
) -> dict[str, Any]:
    """Every metric of one run.

    Parameters
    ----------
    samples : uint8 array or tensor, shape (n, h, w, 3); sample i was generated from prompt i,
        n of them at most as many as the reference has prompts.
    reference : what ``reference_features`` returned for the task, with the same judge and the
        same ``inception``.
    judge : an open_clip folder, ``hf-hub:org/name``, or ``NAME@WEIGHTS``.
    inception : safetensors file with Inception-v3's weights; None: no FID.

    Returns
    -------
    ``clip_t``, ``clip_i``, ``clip_i_paired`` and ``diversity`` (see ``metrics.clip``); ``fid``
    (1706.08500, on Inception-v3 features) where its weights are given; ``fd_effnet``;
    ``kid_effnet`` (mean over 100 subsets, 1801.01401); ``precision`` and ``recall``
    (1904.06991); ``fd_effnet_jackknife``, the distance corrected for its bias in n, and the
    limits of its 95% interval, ``fd_effnet_low`` and ``fd_effnet_high`` (see
    ``metrics.frechet.jackknife``); ``n`` and ``m``, the numbers of samples and of held-out
    images; ``against_n``, rows of ``n``, ``fd_effnet`` and ``kid_effnet`` for an eighth, a
    quarter, a half, three quarters and all of the samples.

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
        **_of_inception(samples, inception),
    }
    embedded, effnet, *_ = _finite("samples", computed).values()
    _same_widths(reference, computed)
    fid = {}
    if inception is not None:
        fid[FID] = frechet_distance(computed["inception"], reference["inception"])
    return fid | {
        "clip_t": clip.clip_t(embedded, reference["judge_texts"][:n]),
        "clip_i": clip.clip_i(embedded, reference["judge_images"]),
        "clip_i_paired": clip.clip_i_paired(embedded, reference["judge_paired"][:n]),
        "diversity": clip.diversity(embedded),
        **_distances(effnet, reference["effnet"].double()),
    }


def subject_features(
    subject, texts: list[str], class_images, judge: str | Path
) -> dict[str, Tensor]:
    """What every evaluation of a DreamBooth task needs, computed once.

    Parameters
    ----------
    subject : uint8 array or tensor, shape (m, h, w, 3), the images trained on.
    texts : for each image of the subject elsewhere (n of them) its prompt in words that the
        judge knows: the class without the rare word.
    class_images : uint8, shape (n, h, w, 3), what the untouched base draws of the class.
    judge : an open_clip folder, ``hf-hub:org/name``, or ``NAME@WEIGHTS``.

    Returns
    -------
    float32 tensors: ``judge_images`` (m, e), ``judge_texts`` (n, e), ``judge_class`` (n, e).

    Raises UserError if a feature is not finite.
    """
    from fitspace.metrics import clip

    loaded = clip.load(judge)
    return _finite(
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
    samples : uint8 array or tensor, shape (3n, h, w, 3): n images of the subject, n of it
        elsewhere, n of its class.
    reference : what ``subject_features`` returned for the task, with the same judge.
    judge : an open_clip folder, ``hf-hub:org/name``, or ``NAME@WEIGHTS``.

    Returns
    -------
    ``clip_i`` and ``clip_i_elsewhere``, of both kinds of images with the subject against those
    trained on (2303.18181 measures the first); ``clip_t`` of the second kind; ``diversity`` of
    the first; ``prior_drift``, how far images of the class are from the base's; ``n`` and ``m``,
    the numbers of images of each kind and of images trained on.

    Raises UserError if there are not 3n samples or a feature is not finite.
    """
    from fitspace.metrics import clip

    samples, n = _images("samples", samples), len(reference["judge_texts"])
    if len(samples) != 3 * n:
        raise UserError(f"samples: {len(samples)}; allowed: {n} of each of 3 kinds")
    loaded = clip.load(judge)
    # Each kind on its own: the base's images of the class then get the very same numbers.
    embedded = [clip.image_embeddings(loaded, images) for images in samples.split(n)]
    subject, elsewhere, of_class = _finite(
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


def read_features(path: Path, of_subject: bool, of_inception: bool = False) -> dict[str, Tensor]:
    """What `reference_features`, or `subject_features`, returned, from a file.

    Raises UserError for a file that holds anything else.
    """
    held_out = FEATURES | (INCEPTION_FEATURES if of_inception else {})
    features = files.read_tensors(path, SUBJECT_FEATURES if of_subject else held_out)
    count, fewest = len(features["judge_images"]), 1 if of_subject else NEIGHBOURHOOD + 1
    if count < fewest:
        raise UserError(f"{path}: of {count} images; needed: at least {fewest}")
    return _finite(str(path), features)


class _Measured(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Diverged(_Measured):
    diverged: str


class _Row(_Measured):
    n: int = Field(ge=1)
    fd_effnet: float
    kid_effnet: float


def _numbers(names: Sequence[str], **others: Any) -> type[_Measured]:
    counts = dict.fromkeys(("n", "m"), (int, Field(ge=1)))
    fields = dict.fromkeys(names, (float, ...)) | counts | others
    return create_model("Metrics", __base__=_Measured, **fields)


_HELD_OUT = _numbers([*OF_HELD_OUT, *INTERVAL], against_n=(list[_Row], ...))
_WITH_FID = _numbers([*OF_HELD_OUT, *INTERVAL, FID], against_n=(list[_Row], ...))
_SUBJECT = _numbers(OF_SUBJECT)


def read_metrics(run: Run, project: Path = Path()) -> dict[str, Any]:
    """A run's metrics.json: what `evaluate`, or `evaluate_subject`, returned, or of a run that
    diverged ``{"diverged": why}``. Raises UserError for a file that holds anything else."""
    path, what = project / run.evaluate.folder / "metrics.json", "a run's metrics"
    found = files.read_json(path, what=what)
    model = _WITH_FID if "inception" in run.reference.material["evaluator"] else _HELD_OUT
    if run.task.dreambooth is not None:
        model = _SUBJECT
    checked(found, _Diverged if "diverged" in found else model, path, what)
    return found


def _distances(samples: Tensor, reference: Tensor) -> dict[str, Any]:
    """What is measured on features, shapes (n, d) and (m, d), float64."""
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
