"""Paired comparisons: published abilities, simulated raters, the likelihood written out again."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import approx_fprime, minimize

from fitspace.core.errors import UserError
from fitspace.stats import abilities, agreement
from fitspace.stats.paired import _Model, _votes

# Citations among four journals of statistics (Agresti 2002, table 10.11; the first cited by the
# second, and the other way round), and what R's BradleyTerry2 1.1 prints for them: abilities
# against Biometrika and their standard errors.
JOURNALS = [
    ("Biometrika", "Comm Statist", 730, 33), ("Biometrika", "JASA", 498, 320),
    ("Biometrika", "JRSS-B", 221, 284), ("Comm Statist", "JASA", 68, 813),
    ("Comm Statist", "JRSS-B", 17, 276), ("JASA", "JRSS-B", 142, 325),
]  # fmt: skip
PRINTED = {
    "Comm Statist": (-2.94907, 0.10255),
    "JASA": (-0.47957, 0.06059),
    "JRSS-B": (0.26895, 0.07083),
}


def citations() -> pd.DataFrame:
    rows = [(a, b, side, n) for a, b, *both in JOURNALS
            for side, n in zip(("left", "right"), both, strict=True)]  # fmt: skip
    return pd.DataFrame(rows, columns=["left", "right", "outcome", "count"])


def simulated(raters: int, each: int, seed: int = 0, side: float = 0.0, tie: float = -1.0):
    """Votes on five items of abilities -1, -0.5, 0, 0.5, 1 by Davidson's model."""
    draw, truth = np.random.default_rng(seed), np.linspace(-1, 1, 5)
    rows = []
    for rater in range(raters):
        for _ in range(each):
            a, b = draw.permutation(5)[:2]
            first, second = truth[a] + side, truth[b]
            weights = np.exp([first, second, (first + second) / 2 + tie])
            outcome = ("left", "right", "tie")[draw.choice(3, p=weights / weights.sum())]
            rows.append((f"i{a}", f"i{b}", outcome, f"r{rater}"))
    return pd.DataFrame(rows, columns=["left", "right", "outcome", "rater"])


def test_abilities_of_journals_are_those_that_r_prints():
    found = abilities(citations()).set_index("item")
    for journal, (ability, _) in PRINTED.items():
        ours = found.loc[journal, "ability"] - found.loc["Biometrika", "ability"]
        assert ours == pytest.approx(ability, abs=5e-6)


def test_standard_errors_of_differences_are_those_that_r_prints():
    votes = citations()
    items = sorted(set(votes["left"]) | set(votes["right"]))
    model = _Model(_votes(votes), items)
    covariance = model.covariance(model.fit().x, None)
    base = items.index("Biometrika")
    for journal, (_, se) in PRINTED.items():
        i = items.index(journal)
        variance = covariance[i, i] + covariance[base, base] - 2 * covariance[i, base]
        assert math.sqrt(variance) == pytest.approx(se, abs=5e-6)


def test_the_likelihood_is_davidsons_written_out_again():
    votes = simulated(2, 60, side=0.3)
    items = [f"i{i}" for i in range(5)]

    def loss(theta):
        pi, nu, delta = np.exp(theta[:5]), math.exp(theta[5]), math.exp(theta[6])
        total = 0.0
        for row in votes.itertuples():
            left, right = delta * pi[int(row.left[1])], pi[int(row.right[1])]
            both = nu * math.sqrt(left * right)
            share = {"left": left, "right": right, "tie": both}[row.outcome]
            total -= math.log(share / (left + right + both))
        return total + 0.5 * theta[:5].sum() ** 2

    best = minimize(loss, np.zeros(7), method="BFGS", options={"gtol": 1e-7})
    found = abilities(votes)
    ours = found.set_index("item").loc[items, "ability"].to_numpy()
    assert ours == pytest.approx(best.x[:5], abs=1e-4)
    assert found.attrs["tie"] == pytest.approx(best.x[5], abs=1e-4)
    assert found.attrs["side"] == pytest.approx(best.x[6], abs=1e-4)
    model = _Model(_votes(votes), items)
    theta = np.array([0.3, -0.2, 0.1, 0.4, -0.6, -0.5, 0.2])
    numeric = approx_fprime(theta, lambda t: float(model._log(t).sum()), 1e-6)
    assert model._scores(theta).sum(0) == pytest.approx(numeric, abs=1e-3)


def test_truth_lies_within_the_limits_as_often_as_they_say():
    inside = total = 0
    for seed in range(60):
        found = abilities(simulated(1, 150, seed=seed))
        truth = dict(zip([f"i{i}" for i in range(5)], np.linspace(-1, 1, 5), strict=True))
        inside += sum(row.low <= truth[row.item] <= row.high for row in found.itertuples())
        total += len(found)
    assert 0.90 < inside / total < 0.99


def test_an_advantage_of_a_side_and_equal_items_are_told_apart():
    found = abilities(simulated(1, 3000, side=0.8))
    assert found.attrs["side"] == pytest.approx(0.8, abs=0.15) and found.attrs["side_p"] < 1e-6
    draw = np.random.default_rng(0)
    votes = simulated(1, 400).assign(outcome=draw.choice(["left", "right", "tie"], 400))
    equal = abilities(votes)
    assert equal.attrs["df"] == 4 and equal.attrs["p"] > 0.01


def test_raters_who_differ_widen_the_limits():
    votes = simulated(6, 60)
    contrary = votes["rater"].isin(["r0", "r1"]) & votes["outcome"].ne("tie")
    turned = votes["outcome"].map({"left": "right", "right": "left"})
    votes.loc[contrary, "outcome"] = turned[contrary]
    one = abilities(votes).set_index("item")["se"].sort_index()
    many = abilities(votes, rater="rater").set_index("item")["se"].sort_index()
    assert (many > one).mean() >= 0.8


def test_what_wins_always_has_no_estimate():
    rows = [("a", "b", "left"), ("b", "a", "right"), ("b", "c", "left"), ("c", "b", "left")] * 5
    found = abilities(pd.DataFrame(rows, columns=["left", "right", "outcome"])).set_index("item")
    assert math.isnan(found.loc["a", "low"]) and not math.isnan(found.loc["b", "low"])
    assert list(found.index)[0] == "a" and found.loc["b", "ability"] == pytest.approx(0, abs=1e-6)
    assert found.attrs["notes"] == [
        "a: won all comparisons with those that have an ability, so its own has no estimate"
    ]
    chain = [("a", "b", "left"), ("b", "c", "left")]
    with pytest.raises(UserError, match="nothing to estimate"):
        abilities(pd.DataFrame(chain, columns=["left", "right", "outcome"]))


REFUSED = {
    "an outcome": ([("a", "b", "both")], "outcome 'both'; allowed: left, right, tie"),
    "one item": ([("a", "a", "tie")], "fewer than two items"),
    "unconnected": ([("a", "b", "left"), ("c", "d", "left")], "c, d: never compared"),
}


@pytest.mark.parametrize("rows, said", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_estimated_is_refused(rows, said):
    with pytest.raises(UserError, match=said):
        abilities(pd.DataFrame(rows, columns=["left", "right", "outcome"]))


def test_agreement_is_krippendorffs_by_the_coincidence_matrix():
    draw = np.random.default_rng(1)
    rows = [
        (pair, f"r{rater}", draw.choice(["x", "y", "tie"], p=[0.6, 0.3, 0.1]))
        for pair in range(30)
        for rater in range(draw.integers(1, 5))
    ]
    votes = pd.DataFrame(rows, columns=["pair", "rater", "outcome"])
    values = sorted(set(votes["outcome"]))
    matrix = pd.DataFrame(0.0, values, values)
    for _, own in votes.groupby("pair"):
        if len(own) > 1:
            for one, other in itertools.permutations(own["outcome"], 2):
                matrix.loc[one, other] += 1 / (len(own) - 1)
    n, of = matrix.to_numpy().sum(), matrix.sum(axis=1)
    observed = n - np.trace(matrix)
    expected = sum(of[a] * of[b] for a, b in itertools.permutations(values, 2)) / (n - 1)
    found = agreement(votes, "pair", "rater")
    assert found["alpha"] == pytest.approx(1 - observed / expected)
    assert found["pairs"] == (votes.groupby("pair").size() > 1).sum()


def test_agreement_of_raters_who_share_nothing_is_unknown():
    votes = pd.DataFrame({"pair": [1, 2], "rater": ["a", "b"], "outcome": ["x", "y"]})
    assert math.isnan(agreement(votes, "pair", "rater")["alpha"])
