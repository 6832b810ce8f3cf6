"""Permutation tests against full enumeration, the naive loop and the parametric p."""

import math
from itertools import permutations, product

import numpy as np
import pandas as pd
import pytest

from fitspace.core.errors import UserError
from fitspace.stats import anova
from fitspace.stats import permutation as module

DRAWS = 20_000


def close(exact):
    """Five standard errors of a proportion of the draws."""
    return pytest.approx(exact, abs=5 * (exact * (1 - exact) / DRAWS) ** 0.5 + 1 / DRAWS)


def f_of_means(y, groups):
    """One-way F by its definition."""
    parts = [y[groups == g] for g in np.unique(groups)]
    between = sum(len(p) * (p.mean() - y.mean()) ** 2 for p in parts) / (len(parts) - 1)
    return between / (sum(((p - p.mean()) ** 2).sum() for p in parts) / (len(y) - len(parts)))


@pytest.mark.parametrize(
    "y", [[3.1, 4.0, 5.2, 7.9, 6.1, 2.2, 8.8], [1, 1, 2, 2, 1, 2, 3]], ids=["values", "ties"]
)
def test_one_way_holds_the_enumeration(y):
    y, groups = np.array(y, dtype=float), np.array([*"aaabbcc"])
    F = [f_of_means(y[list(order)], groups) for order in permutations(range(7))]
    exact = np.mean(np.array(F) >= F[0] * (1 - 1e-9))
    table = pd.DataFrame({"y": y, "g": groups})
    got = anova(table, "y", ["g"], permutations=DRAWS, seed=1)
    assert got.columns[5:8].tolist() == ["p_holm", "p_permutation", "eta2_p"]
    assert got["p_permutation"][0] == close(exact)
    assert math.isnan(got["p_permutation"][1])


def test_blocks_hold_the_enumeration_within_them():
    """All 216 orders of three treatments in three blocks (of unlike spread), and no others."""
    y = np.array([[1.0, 1.3, 2.0], [4.0, 9.0, 8.0], [2.0, 2.5, 2.6]])

    def F(y):
        rest = y - y.mean(axis=0) - y.mean(axis=1, keepdims=True) + y.mean()
        return 3 * ((y.mean(axis=0) - y.mean()) ** 2).sum() / 2 / ((rest**2).sum() / 4)

    every = [
        F(np.array([y[i, list(order)] for i, order in enumerate(orders)]))
        for orders in product(permutations(range(3)), repeat=3)
    ]
    exact = np.mean(np.array(every) >= F(y) * (1 - 1e-9))
    table = pd.DataFrame(
        [(i, j, y[i, j]) for i in range(3) for j in range(3)], columns=["b", "t", "y"]
    )
    got = anova(table, "y", ["t"], block="b", permutations=DRAWS)
    assert math.isnan(got["p_permutation"][0])
    assert got["p_permutation"][1] == close(exact)


@pytest.mark.parametrize("type", [1, 2, 3])
def test_terms_hold_the_naive_loop(type):
    """Freedman and Lane as written: new responses, each analysed anew."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": [*"uvw"] * 8, "b": [*"xxyyyyxx"] * 3, "y": rng.normal(size=24)})
    table["y"] += table["a"].map({"u": 0, "v": 0.5, "w": 1}) + 0.3 * (table["b"] == "x")
    table = table.iloc[1:].reset_index(drop=True)
    columns = {c: pd.get_dummies(table[c]).to_numpy(float) for c in "ab"}
    sums = {c: x[:, :-1] - x[:, -1:] for c, x in columns.items()}
    cross = np.einsum("ij,ik->ijk", sums["a"], sums["b"]).reshape(len(table), -1)
    without = {
        1: {"a": [], "b": [sums["a"]], "a:b": [sums["a"], sums["b"]]},
        2: {"a": [sums["b"]], "b": [sums["a"]], "a:b": [sums["a"], sums["b"]]},
        3: {"a": [sums["b"], cross], "b": [sums["a"], cross], "a:b": [sums["a"], sums["b"]]},
    }[type]
    orders = module.orders(np.random.default_rng(3), [np.arange(23)], 23, 50)
    got = anova(table, formula="y ~ a*b", type=type, permutations=50, seed=3)
    observed = got.set_index("source")["F"]
    for term, columns in without.items():
        x = np.hstack([np.ones((23, 1)), *columns])
        fit = x @ np.linalg.lstsq(x, table["y"], rcond=None)[0]
        rest = (table["y"] - fit).to_numpy()
        reached = 0
        for order in orders.T:
            again = anova(table.assign(y=fit + rest[order]), formula="y ~ a*b", type=type)
            reached += again.set_index("source")["F"][term] >= observed[term]
        assert got.set_index("source")["p_permutation"][term] == (1 + reached) / 51


def test_normal_errors_give_the_parametric_p():
    rng = np.random.default_rng(5)
    table = pd.DataFrame({"a": [*"uvw"] * 20, "b": [*"xxyy"] * 15, "y": rng.normal(size=60)})
    table["y"] += 0.5 * (table["a"] == "u")
    got = anova(table, "y", ["a", "b"], permutations=DRAWS)
    assert got["p_permutation"][:2].tolist() == pytest.approx(got["p"][:2].tolist(), abs=0.02)


def test_the_seed_decides_and_the_least_p_is_one_in_all(monkeypatch):
    table = pd.DataFrame({"g": [*"aaaaabbbbb"], "y": [*range(5), *range(100, 105)]})
    one, again, other = (
        anova(table.assign(y=table["y"] % 4), "y", ["g"], permutations=99, seed=s)
        for s in (0, 0, 1)
    )
    pd.testing.assert_frame_equal(one, again)
    assert one["p_permutation"][0] != other["p_permutation"][0]
    monkeypatch.setattr(module, "BATCH", 7)
    assert 0.01 <= anova(table, "y", ["g"], permutations=99)["p_permutation"][0] <= 0.05
    exact = pd.DataFrame({"g": [*range(6)] * 2, "y": [*range(6)] * 2})
    assert anova(exact, "y", ["g"], permutations=199)["p_permutation"][0] == 1 / 200


def test_what_cannot_be_permuted():
    table = pd.DataFrame({"b": range(6), "g": [*"xxyyzz"], "y": [1, 2, 4, 3, 7, 6]})
    with pytest.raises(UserError, match="every combination of the blocks has one row"):
        anova(table, "y", ["g"], block="b", permutations=9)
    with pytest.raises(UserError, match="not together with a robust one"):
        anova(table, "y", ["g"], robust="hc0", permutations=9)
    for number in (-1, 0, 2.5):
        with pytest.raises(UserError, match=f"permutations: {number}; allowed: a whole number"):
            anova(table, "y", ["g"], permutations=number)
    constant = anova(table.assign(y=1), "y", ["g"], permutations=9)
    assert constant["p_permutation"].isna().all()
