"""How numbers, levels and metrics are written."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from fitspace.metrics import METRICS, Metric

NONE = "–"
# If there are more points than this, a sentence refers to the table instead of naming them.
MOST_NAMED = 6
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_NAMES = ("Fréchet", "Vendi")  # of people, with which a metric's label begins
METHODS = {"none": "Untouched base", "full": "Full fine-tuning"}


def metric(name: str) -> Metric:
    """The metric of this name; an unknown one has its name as label, and higher is better."""
    return METRICS.get(name) or Metric(name, False, "")


def named(name: str) -> str:
    """A metric's label within a sentence.

    >>> named("diversity"), named("psnr"), named("r_precision"), named("dreamsim")
    ('diversity', 'PSNR', 'R-precision', 'DreamSim distance')
    >>> named("fd_effnet"), named("Score")
    ('Fréchet distance (EfficientNet-lite0)', 'Score')
    """
    label = metric(name).label
    first = label.split()[0]
    common = first.isalpha() and first[1:].islower() and first not in _NAMES
    return label[0].lower() + label[1:] if name in METRICS and common else label


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
    """The number of decimals that gives the largest value this many significant digits."""
    sizes = [abs(v) for v in values if math.isfinite(v) and v]
    return max(0, digits - 1 - math.floor(math.log10(max(sizes)))) if sizes else 0


def fixed(value: float, decimals: int) -> str:
    """A number with this many decimals, thousands separated."""
    if not math.isfinite(value):
        return number(value)
    return f"{value:,.{decimals}f}".replace("-", "−")


def p_value(value: float) -> str:
    """A p value with three decimals; ``<0.001`` below that."""
    if math.isnan(value):
        return NONE
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def count(value: float) -> str:
    """A whole number, thousands separated."""
    return NONE if math.isnan(value) else f"{int(value):,}"


def plural(n: int, noun: str) -> str:
    """A number with its noun: ``1 run``, ``2 runs``."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def listed(items: Iterable[str], last: str = "and") -> str:
    """Items as an enumeration: ``a, b and c``."""
    items = list(items)
    return f" {last} ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def cell_name(factors: list[str], levels: Iterable[str]) -> str:
    """``CA_out → FFN_in`` for positions, ``a · b`` for any other factors."""
    return (" → " if factors == ["input", "output"] else " · ").join(map(str, levels))


@dataclass(frozen=True)
class Value:
    """A number as shown, with its origin.

    ``table`` is a CSV file beside the page, and ``row`` counts from 1 below its header. A value
    with several rows, separated by spaces, and no column is the number of these rows. For a value
    from the study file, ``table`` is "study", ``column`` is the key, and there is no row.
    """

    text: str
    raw: str
    table: str
    row: int | str
    column: str

    def __str__(self) -> str:
        return self.text


def counted(table: str, rows: Iterable[int]) -> Value:
    """The number of some rows of a table; ``rows`` are their indices, from 0."""
    numbers = [str(row + 1) for row in rows]
    return Value(f"{len(numbers):,}", str(len(numbers)), table, " ".join(numbers), "")


def declared(key: str, value: object) -> Value:
    """The value in the study file at a key, such as ``seeds.0``."""
    return Value(str(value), str(value), "study", "", key)


class Verdict(str):
    """Words that carry a conclusion; the page shows them in bold."""

    __slots__ = ()

    def __html__(self) -> str:
        return Markup('<strong class="verdict">{}</strong>').format(str(self))
