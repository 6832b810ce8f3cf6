"""Lenth's method against a published example and its definition."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from printed import printed

from fitspace.core.errors import UserError
from fitspace.stats import anova, lenth

# Filtration rate of a chemical product, a 2^4 design in standard order.
RATE = [45, 71, 48, 65, 68, 60, 80, 65, 43, 100, 45, 104, 75, 86, 70, 96]
EFFECTS = {
    "A": 21.625, "B": 3.125, "C": 9.875, "D": 14.625, "A:B": 0.125, "A:C": -18.125, "A:D": 16.625,
    "B:C": 2.375, "B:D": -0.375, "C:D": -1.125, "A:B:C": 1.875, "A:B:D": 4.125, "A:C:D": -1.625,
    "B:C:D": -2.625, "A:B:C:D": 1.375,
}  # fmt: skip


def filtration():
    rows = [(row & 1, row >> 1 & 1, row >> 2 & 1, row >> 3) for row in range(16)]
    return pd.DataFrame(rows, columns=[*"ABCD"]).assign(rate=RATE)


def test_published_example():
    """Montgomery, Design and Analysis of Experiments, example 6.2: PSE 2.625, ME 6.748, SME 13.699.

    An effect there is a difference of two means of eight: half an orthonormal contrast.
    """
    got = lenth(filtration(), "rate", [*"ABCD"]).set_index("contrast")
    effects = got["estimate"] / 2
    assert effects.abs().to_dict() == pytest.approx({k: abs(v) for k, v in EFFECTS.items()})
    assert (got["pse"] / 2).unique() == pytest.approx([2.625])
    assert (got["margin"] / 2).unique().tolist() == [printed("6.748")]
    assert (got["simultaneous_margin"] / 2).unique().tolist() == [printed("13.699")]
    assert got.index[got["active"]].tolist() == ["A", "A:C", "A:D", "D", "C"]
    assert got["estimate"].abs().is_monotonic_decreasing
    size = np.arange(15, 0, -1)
    quantiles = scipy.stats.halfnorm.ppf((size - 0.5) / 15)
    assert got["quantile"].tolist() == pytest.approx(quantiles.tolist())


def test_contrasts_share_out_the_sums_of_squares():
    """Also of factors with several levels, in blocks, with cells missing."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame([(a, b) for a in "uvwz" for b in "xyk"], columns=["a", "b"])
    table = table.drop(index=[1, 7]).assign(y=rng.normal(size=10), day=[*range(2)] * 5)
    got = lenth(table, "y", ["a", "b"], "day")
    terms = anova(table, formula="y ~ a*b", block="day", type=1).set_index("source")
    of = got["contrast"].str.replace(r"\[\d+\]", "", regex=True)
    sums = (got["estimate"] ** 2).groupby(of).sum()
    for term in ("a", "b", "a:b"):
        assert sums[term] == pytest.approx(terms.loc[term, "ss"])
        assert (of == term).sum() == terms.loc[term, "df"]
    assert {"a[1]", "a[2]", "a[3]", "b[1]", "b[2]"} < set(got["contrast"])


def test_first_contrast_compares_the_first_level_with_the_last():
    table = pd.DataFrame({"a": [*"uvwz"], "y": [1.0, 5.0, 2.0, 4.0]})
    got = lenth(table, "y", ["a"]).set_index("contrast")["estimate"].abs()
    assert got["a[1]"] == pytest.approx(3 / 2**0.5)
    assert got["a[2]"] == pytest.approx((5 - 2.5) / 1.5**0.5)
    assert got["a[3]"] == pytest.approx(abs(2 - 10 / 3) / (4 / 3) ** 0.5)


def test_nothing_is_active_in_noise_but_by_chance():
    """Lenth (1989): the margins hold their level for many contrasts; here 4.6% and less."""
    rng = np.random.default_rng(0)
    table = filtration()
    found = [lenth(table.assign(rate=rng.normal(size=16)), "rate", [*"ABCD"]) for _ in range(100)]
    share = np.mean([one["active"].mean() for one in found])
    assert 0.01 < share < 0.08
    beyond = [(r["estimate"].abs() > r["simultaneous_margin"]).any() for r in found]
    assert np.mean(beyond) < 0.12


def test_errors():
    table = pd.DataFrame({"a": [*"uuv"], "y": [1, 2, 3]})
    with pytest.raises(UserError, match="3 or more contrasts, not 1"):
        lenth(table, "y", ["a"])
    with pytest.raises(UserError, match="no column 'b'"):
        lenth(table, "y", ["b"])
