"""Ranks that a table of means tells apart: against every subset of its levels."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats as distributions

from fitspace.core.errors import UserError
from fitspace.stats import ranks

MEANS = pd.Series({"a": 0.30, "b": 0.71, "c": 0.69, "d": 0.55, "e": 0.74, "f": 0.52, "g": 0.36})


@pytest.mark.parametrize("adjust", ["tukey", "none"])
@pytest.mark.parametrize("sigma", [0.005, 0.02, 0.05, 0.3])
def test_the_last_rank_is_the_largest_set_of_levels_that_all_differ(sigma, adjust):
    found = ranks(MEANS, sigma, 6, adjust=adjust)
    least = found["least"].iloc[0]
    several = [
        size
        for size in range(1, len(MEANS) + 1)
        for subset in itertools.combinations(MEANS, size)
        if all(abs(a - b) > least for a, b in itertools.combinations(subset, 2))
    ]
    assert found["rank"].max() == max(several)
    assert list(found["mean"]) == sorted(MEANS, reverse=True)
    for _, rank in found.groupby("rank"):
        assert rank["mean"].iloc[0] - rank["mean"].iloc[-1] <= least


def test_the_least_difference_by_the_published_tables():
    # Two levels: Tukey's is Student's. q(0.05; 3, 10) = 3.88 in printed tables.
    student = distributions.t.isf(0.025, 10) * np.sqrt(2)
    for adjust in ("tukey", "none"):
        pair = ranks(MEANS[:2], 1.0, 10, adjust=adjust)["least"].iloc[0]
        assert pair == pytest.approx(student, rel=1e-6)
    assert ranks(MEANS[:3], 1.0, 10)["least"].iloc[0] == pytest.approx(3.88, abs=0.005)
    assert ranks(MEANS[:3], 1.0, 10, runs=4)["least"].iloc[0] == pytest.approx(1.94, abs=0.005)


def test_lower_is_better():
    found = ranks(MEANS, 0.02, 6, lower=True)
    assert found["level"].iloc[0] == "a" and found["mean"].is_monotonic_increasing


WRONG = {
    "one mean": (dict(means=MEANS[:1]), "means: 1; allowed: at least 2"),
    "a mean unknown": (dict(means=pd.Series([1.0, float("nan")])), "allowed: finite numbers"),
    "sigma": (dict(sigma=0.0), "sigma: 0.0; allowed: a number above 0"),
    "df": (dict(df=0), "df: 0; allowed: a number above 0"),
    "runs": (dict(runs=0), "runs: 0; allowed: at least 1"),
    "alpha": (dict(alpha=1.0), "alpha: 1.0; allowed: between 0 and 1"),
    "adjust": (dict(adjust="holm"), "adjust: 'holm'; allowed: 'tukey', 'none'"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_what_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        ranks(**{"means": MEANS, "sigma": 0.02, "df": 6} | change)
