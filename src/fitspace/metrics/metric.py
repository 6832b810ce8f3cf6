"""What a metric is: a row of words and needs, and what a further metric may look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# What a task is judged by: held-out images and captions or, with dreambooth, its subject.
HELD_OUT, SUBJECT = "held out", "subject"
# What a further metric may need of the reference, beside features of the images compared with.
PAIRS, IMAGES, TRAINING, TEXTS = "pairs", "images", "training", "texts"
GIVEN = "given"  # of a task that gives an image beside the caption
UNTOUCHED = "untouched"  # and of what the untouched base draws


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
    extractor : the one of whose features it is made, ``judge`` included; empty: of the images.
    rewards_copies : whether an adapter that copies its training images has the best value.
    shows_copies : whether copying makes it worse; such a metric must accompany one that rewards
        copies.
    explains : whether it is a number of the stage `explain`, of a study with that key.
    share : ``n`` or ``m`` if it counts samples or held-out images: one image more or less moves it
        by one over their number.
    measure : of a further metric, its value. None: a standard metric, always measured.
    needs : of a further metric, what it looks at of ``PAIRS``, ``IMAGES``, ``TRAINING``, ``TEXTS``,
        ``GIVEN`` and ``UNTOUCHED``; the judge's texts are always there.
    version : of a further metric; raise it when its numbers change.
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
    share: str = ""
    measure: Callable[[Compared], float] | None = None
    needs: tuple[str, ...] = ()
    version: int = 1


class Compared:
    """A run's samples and what they are compared with.

    Features are float64, shape (number of images, d); those of ``judge`` have length 1. Sample i
    was generated from prompt i; of a subject's task the samples are those of the subject, and the
    images compared with are those trained on.

    Attributes
    ----------
    images : the samples, uint8 (n, h, w, 3).
    reference : what :func:`fitspace.metrics.measuring.reference_features` gave for the task.
    """

    def __init__(
        self,
        images: Tensor,
        reference: Mapping[str, Tensor],
        features: Callable[[str], Tensor],
        untouched: Mapping[str, Tensor] = MappingProxyType({}),
    ):
        self.images, self.reference = images, reference
        self._features, self._untouched = features, untouched

    def samples(self, extractor: str) -> Tensor:
        """Features of the samples, (n, d)."""
        return self._features(extractor).double()

    def untouched(self, extractor: str) -> Tensor:
        """Features of what the untouched base draws from the samples' noise and prompts, (n, d)."""
        return self._untouched[extractor].double()

    def others(self, extractor: str) -> Tensor:
        """Features of the images that samples are compared with, (m, d)."""
        name = "judge_images" if extractor == "judge" else extractor
        return self.reference[name].double()

    def texts(self, extractor: str) -> Tensor:
        """Features of all prompts, (p, d)."""
        return self.reference[f"{extractor}_texts"].double()

    def training(self, extractor: str) -> Tensor:
        """Features of the training images as the autoencoder gives them back, (t, d)."""
        return self.reference[f"{extractor}_training"].double()

    def held_out(self, extractor: str) -> Tensor:
        """Features of all held-out images as the autoencoder gives them back, (q, d)."""
        return self.reference[f"{extractor}_held_out"].double()

    @property
    def shown(self) -> Tensor:
        """The held-out images, uint8 (m, h, w, 3)."""
        return self.reference["images"]

    @property
    def given(self) -> Tensor:
        """The images that are given with the held-out ones, uint8 (m, h, w, 3)."""
        return self.reference["given"]

    @cached_property
    def pairs(self) -> Tensor:
        """Every pair of a sample and a held-out image of its caption: int64 (k, 2). Where an image
        is given with each caption, a sample and the one held-out image it is given with."""
        pairs = self.reference["pairs"]
        return pairs[pairs[:, 0] < len(self.images)]

    def over_pairs(self, values: Tensor) -> float:
        """The mean over samples of the mean over each one's pairs; ``values`` (k,) are by pair."""
        own = self.pairs[:, 0]
        count = own.bincount(minlength=len(self.images)).double()
        return (values.double() / count[own]).sum().item() / len(self.images)
