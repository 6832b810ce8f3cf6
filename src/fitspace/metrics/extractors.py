"""The feature extractors: one file each, and a row in this list; the judge is one more.

An extractor computes features of images by pinned weights: pinned here, or in a file that the
study names under the row's name. A new extractor is a file with ``features(images, ...)`` and a
row. A metric takes its features by the row's name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitspace.core import hashes
from fitspace.metrics.weights import EXTRACTOR, EXTRACTOR_SHA256, VERSION, identity, weights_file

if TYPE_CHECKING:
    from torch import Tensor

    from fitspace.metrics.keeping import Kept

Weights = Mapping[str, "str | Path"]  # of the extractors that a study names: name -> file
JUDGE = "judge"


@dataclass(frozen=True)
class Extractor:
    """An extractor's row.

    Attributes
    ----------
    features : function of uint8 images (n, h, w, 3) and, if ``named``, the weights' file; returns
        features, shape (n, d). None: an image has none without its caption.
    width : d, or a letter for any width, a letter of its own; without ``features`` that of
        ``texts``.
    named : if the study names its weights, what the study file's key means; else the code pins
        them.
    label : as reports write it; by default its name.
    texts : of one that also reads captions, function of captions and the weights' file; returns
        features, shape (n, d).
    scores : of one that sees image and caption together, function of uint8 images, the ``texts``
        of their captions and the weights' file; returns scores, shape (n, 1).
    """

    features: Callable[..., Tensor] | None
    width: str
    named: str = ""
    label: str = ""
    texts: Callable[..., Tensor] | None = None
    scores: Callable[..., Tensor] | None = None


def _effnet(images: Tensor) -> Tensor:
    from fitspace.metrics import effnet

    return effnet.features(images)


def _inception(images: Tensor, weights: Path) -> Tensor:
    from fitspace.metrics import inception

    return inception.features(images, weights)


def _dinov2(images: Tensor, weights: Path) -> Tensor:
    from fitspace.metrics import dinov2

    return dinov2.features(images, weights)


def _dreamsim(images: Tensor, weights: Path) -> Tensor:
    from fitspace.metrics import dreamsim

    return dreamsim.features(images, weights)


def _rewarded(images: Tensor, texts: Tensor, weights: Path) -> Tensor:
    from fitspace.metrics import imagereward

    return imagereward.scores(images, texts, weights)


def _tokens(captions: list[str], weights: Path) -> Tensor:
    from fitspace.metrics import imagereward

    return imagereward.texts(captions, weights)


def _preferred(name: str, label: str, width: str, source: str) -> Extractor:
    """A model of what people prefer, by its file of weights."""

    def images(images: Tensor, weights: Path) -> Tensor:
        from fitspace.metrics import preferences

        return preferences.features(images, weights, name)

    def texts(captions: list[str], weights: Path) -> Tensor:
        from fitspace.metrics import preferences

        return preferences.texts(captions, weights, name)

    said = (
        f"{label}'s weights, a safetensors file ({source}), for `{name}_score`; null: without it."
    )
    return Extractor(images, width, said, label, texts)


EXTRACTORS = {
    "effnet": Extractor(_effnet, "d", label="EfficientNet-lite0"),
    "inception": Extractor(
        _inception,
        "2048",
        "Inception-v3's weights, a safetensors file, for `fid`; null: no FID.",
        "Inception-v3",
    ),
    "dinov2": Extractor(
        _dinov2,
        "v",
        "DINOv2's weights, a safetensors file of any of its sizes as timm names its tensors, for "
        "metrics that end in `_dinov2`; null: none of them.",
        "DINOv2",
    ),
    "dreamsim": Extractor(
        _dreamsim,
        "w",
        "DreamSim's weights, a safetensors file (params/README.md says how to make it), for "
        "`dreamsim` and metrics that end in `_dreamsim`; null: none of them.",
        "DreamSim",
    ),
    "pickscore": _preferred("pickscore", "PickScore", "k1", "transformers' names"),
    "hpsv2": _preferred("hpsv2", "HPSv2", "k2", "open_clip's names"),
    "imagereward": Extractor(
        None,
        "35",
        "ImageReward's weights, a safetensors file with the tensors of ImageReward.pt, for "
        "`imagereward_score`; null: without it.",
        "ImageReward",
        _tokens,
        _rewarded,
    ),
}
NAMED = {name: row for name, row in EXTRACTORS.items() if row.named}
# Every space of features -> its label; models that score captions are none.
SPACES = {JUDGE: "the judge"} | {
    name: row.label or name for name, row in EXTRACTORS.items() if row.texts is None
}
SCORERS = {n: row.label for n, row in EXTRACTORS.items() if row.texts and row.features}


def in_use(named: Collection[str]) -> dict[str, Extractor]:
    """The extractors of images pinned here and those whose weights the study names."""
    return {
        name: row
        for name, row in EXTRACTORS.items()
        if row.features is not None and (not row.named or name in named)
    }


def scoring(named: Collection[str]) -> list[str]:
    """Those that see image and caption together, among some."""
    return [name for name, row in EXTRACTORS.items() if row.scores is not None and name in named]


class Extraction:
    """The extractors of a study at work.

    Parameters
    ----------
    judge : an open_clip folder, ``hf-hub:org/name``, or ``NAME@WEIGHTS``.
    weights : name -> file of the extractors that the study names.
    kept : features of earlier calls, if a stage keeps them; nothing is computed that is there.
    """

    def __init__(self, judge: str | Path, weights: Weights, kept: Kept | None = None):
        self.judge, self.weights, self._kept = judge, weights, kept

    @cached_property
    def _judge(self) -> Any:
        from fitspace.metrics import clip

        return clip.load(self.judge)

    def images(self, name: str, images: Tensor) -> Tensor:
        """Features of uint8 images (n, h, w, 3) by an extractor: float32, shape (n, d)."""
        if self._kept is None:
            return self._computed(name, images)
        return self._kept.of(name, self._identity(name), images, self._computed)

    def texts(self, name: str, captions: list[str]) -> Tensor:
        """Features of captions by an extractor that reads them: float32, shape (n, d)."""
        if name == JUDGE:
            from fitspace.metrics import clip

            return clip.text_embeddings(self._judge, captions)
        return EXTRACTORS[name].texts(captions, *self._weights(name)).float()

    def scores(self, name: str, images: Tensor, texts: Tensor) -> Tensor:
        """Scores of uint8 images (n, h, w, 3) with what :meth:`texts` gave for their captions:
        float32, shape (n, 1)."""

        def compute(name: str, images: Tensor) -> Tensor:
            return EXTRACTORS[name].scores(images, texts, *self._weights(name)).float()

        if self._kept is None:
            return compute(name, images)
        captions = hashlib.sha256(texts.contiguous().numpy()).hexdigest()
        return self._kept.of(name, [*self._identity(name), captions], images, compute)

    def _computed(self, name: str, images: Tensor) -> Tensor:
        if name == JUDGE:
            from fitspace.metrics import clip

            return clip.image_embeddings(self._judge, images)
        return EXTRACTORS[name].features(images, *self._weights(name)).float()

    def _weights(self, name: str) -> list[Path]:
        return [weights_file(name, self.weights[name])] if EXTRACTORS[name].named else []

    def _identity(self, name: str) -> list[Any]:
        """What determines an extractor's features besides the images and the machine."""
        if name == JUDGE:
            return [VERSION, name, identity(self.judge)[JUDGE]]
        if EXTRACTORS[name].named:
            return [VERSION, name, *hashes.hashes(self._weights(name)).values()]
        return [VERSION, EXTRACTOR, EXTRACTOR_SHA256]
