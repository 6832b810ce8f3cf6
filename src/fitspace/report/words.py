"""How numbers, levels and metrics are written."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

NONE = "–"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Metric:
    """A metric's label, its better direction and its definition in a sentence."""

    label: str
    lower: bool
    definition: str


METRICS = {
    "fid": Metric(
        "FID",
        True,
        "Squared Fréchet distance between Gaussians fitted to Inception-v3 features (1706.08500, "
        "torch-fidelity's weights) of the samples and of the held-out images. Biased upwards by "
        "about c/n, so only values of the same number of images, against the same images, can be "
        "compared: not with the literature's, which are of 10,000 and more.",
    ),
    "fd_effnet": Metric(
        "Fréchet distance (EfficientNet-lite0)",
        True,
        "Squared Fréchet distance between Gaussians fitted to EfficientNet-lite0 features "
        "(ImageNet weights) of the samples and of the held-out images. It is not FID, which is "
        "defined on Inception-v3 features; the two cannot be compared. Biased upwards by about "
        "c/n, so only values of the same number of images can be.",
    ),
    "kid_effnet": Metric(
        "KID (EfficientNet-lite0)",
        True,
        "Kernel distance: unbiased squared maximum mean discrepancy with the cubic polynomial "
        "kernel, mean over subsets, on the same EfficientNet-lite0 features; not comparable with "
        "KID on Inception-v3.",
    ),
    "clip_t": Metric(
        "CLIP-T",
        False,
        "Mean cosine between a sample and its own caption, embedded by the study's own judge. A "
        "plain cosine: not CLIPScore, no percentage, not comparable across judges. With "
        "DreamBooth, of the subject put elsewhere; the caption names its class instead.",
    ),
    "clip_i": Metric(
        "CLIP-I",
        False,
        "Mean cosine over all pairs of a sample and a held-out image, embedded by the study's "
        "own judge; with DreamBooth, of an image of the subject and an image trained on.",
    ),
    "clip_i_elsewhere": Metric(
        "CLIP-I, elsewhere",
        False,
        "Mean cosine over all pairs of an image that puts the subject elsewhere and an image "
        "trained on, embedded by the study's own judge.",
    ),
    "prior_drift": Metric(
        "Prior drift",
        True,
        "One minus the mean cosine between what the tuned model and the untouched base draw of "
        "the subject's class, from the same noise, embedded by the study's own judge.",
    ),
    "clip_i_paired": Metric(
        "CLIP-I, paired",
        False,
        "Mean cosine between a sample and the held-out image of the same caption, embedded by "
        "the study's own judge.",
    ),
    "diversity": Metric(
        "Diversity",
        False,
        "One minus the mean cosine over all pairs of different samples, embedded by the study's "
        "own judge.",
    ),
    "precision": Metric(
        "Precision",
        False,
        "Share of samples within the 3-nearest-neighbour manifold of the held-out images, on "
        "EfficientNet-lite0 features.",
    ),
    "recall": Metric(
        "Recall",
        False,
        "Share of held-out images within the 3-nearest-neighbour manifold of the samples, on "
        "EfficientNet-lite0 features.",
    ),
}
METHODS = {"none": "Untouched base", "full": "Full fine-tuning"}


def metric(name: str) -> Metric:
    return METRICS.get(name) or Metric(name, False, "")


def number(value: float | None, digits: int = 3) -> str:
    """A number with this many significant digits, thousands separated."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if exponent < -4 or exponent > 8:
        mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
        text = f"{mantissa} × 10{str(int(power)).translate(_SUPERSCRIPT)}"
    else:
        text = f"{value:,.{max(0, digits - 1 - exponent)}f}"
    return text.replace("-", "−")


def aligned(values: Iterable[float], digits: int = 4) -> int:
    """Decimals that give the largest of the values this many significant digits."""
    sizes = [abs(v) for v in values if math.isfinite(v) and v]
    return max(0, digits - 1 - math.floor(math.log10(max(sizes)))) if sizes else 0


def fixed(value: float, decimals: int) -> str:
    if not math.isfinite(value):
        return number(value)
    return f"{value:,.{decimals}f}".replace("-", "−")


def p_value(value: float) -> str:
    if math.isnan(value):
        return NONE
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def count(value: float) -> str:
    return NONE if math.isnan(value) else f"{int(value):,}"


def plural(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def listed(items: Iterable[str], last: str = "and") -> str:
    items = list(items)
    return f" {last} ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def cell_name(factors: list[str], levels: Iterable[str]) -> str:
    """``CA_out → FFN_in`` for positions, ``a · b`` for any other factors."""
    return (" → " if factors == ["input", "output"] else " · ").join(map(str, levels))


@dataclass(frozen=True)
class Value:
    """A number as shown, and where it is from.

    ``table`` is a CSV file beside the page, ``row`` counts from 1 below its header. With several
    rows, separated by spaces, and no column it is the number of these rows. Of what the study
    declares, ``table`` is "study", ``column`` the key in its file, and there is no row.
    """

    text: str
    raw: str
    table: str
    row: int | str
    column: str

    def __str__(self) -> str:
        return self.text


def counted(table: str, rows: Iterable[int]) -> Value:
    """How many rows of a table there are; ``rows`` are their indices, from 0."""
    numbers = [str(row + 1) for row in rows]
    return Value(f"{len(numbers):,}", str(len(numbers)), table, " ".join(numbers), "")


def declared(key: str, value: object) -> Value:
    """What the study's file says at a key, such as ``seeds.0``."""
    return Value(str(value), str(value), "study", "", key)


class Verdict(str):
    """Words that carry a conclusion; bold where they are shown."""

    __slots__ = ()

    def __html__(self) -> str:
        return Markup('<strong class="verdict">{}</strong>').format(str(self))
