"""The feature extractors beside the judge: one file each, and a row in this list.

An extractor computes features of images by pinned weights: pinned here, or in a file that the
study names under the row's name. A new extractor is a file with ``features(images, ...)`` and a
row. A metric takes its features by the row's name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fitspace.metrics.weights import weights_file

if TYPE_CHECKING:
    from torch import Tensor

Weights = Mapping[str, "str | Path"]  # of the extractors that a study names: name -> file


@dataclass(frozen=True)
class Extractor:
    """An extractor's row.

    Attributes
    ----------
    features : function of uint8 images (n, h, w, 3) and, if ``named``, the weights' file; returns
        features, shape (n, d).
    width : d, or a letter for any width.
    named : if the study names its weights, what the study file's key means; else the code pins
        them.
    """

    features: Callable[..., Tensor]
    width: str
    named: str = ""


def _effnet(images: Tensor) -> Tensor:
    from fitspace.metrics import effnet

    return effnet.features(images)


def _inception(images: Tensor, weights: Path) -> Tensor:
    from fitspace.metrics import inception

    return inception.features(images, weights)


EXTRACTORS = {
    "effnet": Extractor(_effnet, "d"),
    "inception": Extractor(
        _inception,
        "2048",
        "Inception-v3's weights, a safetensors file, for `fid`; null: no FID.",
    ),
}
NAMED = {name: row for name, row in EXTRACTORS.items() if row.named}


def in_use(named: Collection[str]) -> dict[str, Extractor]:
    """The extractors pinned here and those whose weights the study names."""
    return {name: row for name, row in EXTRACTORS.items() if not row.named or name in named}


def features(images: Tensor, weights: Weights) -> dict[str, Tensor]:
    """Features of uint8 images (n, h, w, 3) by each extractor in use: float64, shape (n, d)."""
    return {
        name: row.features(images, *([weights_file(name, weights[name])] if row.named else []))
        for name, row in in_use(weights).items()
    }
