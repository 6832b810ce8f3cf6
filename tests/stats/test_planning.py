"""Planning against textbook aliases, exhaustive search, R, and measured numbers of seeds."""

import json
import math
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import scipy.stats

from fitspace.core.errors import UserError
from fitspace.stats import (
    anova,
    association,
    d_efficiency,
    d_optimal,
    detectable,
    estimable,
    optimal,
    pilot_sigma,
    power,
    runs_needed,
)
from fitspace.stats.blocks import blocks_of

DATA = Path(__file__).parents[1] / "data" / "stats"
PAIR = ["inp", "out"]


def positions() -> pd.DataFrame:
    """The 16 legal pairs of positions in a transformer block."""
    return pd.read_csv(DATA / "r_positions_main.csv")[PAIR].drop_duplicates(ignore_index=True)


def crossed(cells: pd.DataFrame, tasks: int, seeds: int) -> pd.DataFrame:
    return cells.merge(pd.DataFrame({"task": range(tasks)}), how="cross").merge(
        pd.DataFrame({"seed": range(seeds)}), how="cross"
    )


def factorial(*levels: int) -> pd.DataFrame:
    names = list("ABCDEFGHIJK")[: len(levels)]
    return pd.DataFrame(list(product(*map(range, levels))), columns=names)


def fraction(k: int, **generators: str) -> pd.DataFrame:
    """A regular two-level fraction: a full 2^k and columns that are products of its."""
    table = 2 * factorial(*[2] * k) - 1
    for name, word in generators.items():
        table[name] = table[list(word)].prod(axis=1)
    return table


# --- estimability -----------------------------------------------------------------------


def aliases(table: pd.DataFrame) -> dict[str, set[str]]:
    rows = estimable(table, list(table.columns), ()).to_dict("records")
    return {row["effect"]: set(row["aliased_with"]) for row in rows}


# The alias tables of the textbooks (Montgomery, Design and Analysis of Experiments, chapter 8).
FRACTIONS = {
    "2^(3-1), C=AB": (
        fraction(2, C="AB"),
        {"A": {"B:C"}, "B": {"A:C"}, "C": {"A:B"}, "A:B": {"C"}, "A:C": {"B"}, "B:C": {"A"}},
    ),
    "2^(4-1), D=ABC": (
        fraction(3, D="ABC"),
        {name: set() for name in "ABCD"}
        | {"A:B": {"C:D"}, "A:C": {"B:D"}, "A:D": {"B:C"}}
        | {"C:D": {"A:B"}, "B:D": {"A:C"}, "B:C": {"A:D"}},
    ),
    "2^(5-2), D=AB, E=AC": (
        fraction(3, D="AB", E="AC"),
        {"A": {"B:D", "C:E"}, "B": {"A:D"}, "C": {"A:E"}, "D": {"A:B"}, "E": {"A:C"}}
        | {"A:B": {"D"}, "A:C": {"E"}, "A:D": {"B"}, "A:E": {"C"}, "B:C": {"D:E"}}
        | {"B:D": {"A", "C:E"}, "B:E": {"C:D"}, "C:D": {"B:E"}, "C:E": {"A", "B:D"}}
        | {"D:E": {"B:C"}},
    ),
    "2^3": (factorial(2, 2, 2), {e: set() for e in ("A", "B", "C", "A:B", "A:C", "B:C")}),
}


@pytest.mark.parametrize("name", FRACTIONS)
def test_aliases_of_known_fractions(name):
    table, expected = FRACTIONS[name]
    assert aliases(table) == expected
    found = estimable(table, list(table.columns), ())
    for row in found.to_dict("records"):
        # A main effect has its degree of freedom; an interaction only if it is clear of aliases.
        free = ":" not in row["effect"] or not expected[row["effect"]]
        assert (row["df"], row["nominal_df"]) == (int(free), 1), row


def test_an_orthogonal_array_of_three_levels_leaves_no_interaction():
    array = factorial(3, 3).assign(C=lambda t: (t.A + t.B) % 3, D=lambda t: (t.A + 2 * t.B) % 3)
    found = estimable(array, list("ABCD"), ()).set_index("effect")
    assert list(found["df"]) == [2] * 4 + [0] * 6
    assert list(found["nominal_df"]) == [2] * 4 + [4] * 6
    assert set(found.loc["A", "aliased_with"]) == {"B:C", "B:D", "C:D"}
    assert {"C", "D"} <= set(found.loc["A:B", "aliased_with"])


def test_degrees_of_freedom_of_the_legal_pairs_are_rs():
    r = json.loads((DATA / "r_positions_empty_cells.json").read_text())["type2"]
    found = estimable(crossed(positions(), 3, 3), PAIR).set_index("effect")
    assert dict(found["df"]) == {name: r[name]["Df"] for name in ("inp", "out", "inp:out")}
    assert dict(found["nominal_df"]) == {"inp": 6, "out": 3, "inp:out": 18}
    assert found.loc["inp:out", "aliased_with"] == PAIR


def test_blocks_that_confound_an_effect_are_named():
    table = fraction(2).assign(task=lambda t: t.A * t.B)
    found = estimable(table, ["A", "B"], ["task"]).set_index("effect")
    assert found.loc["A:B", "df"] == 0 and found.loc["A:B", "aliased_with"] == ["task"]
    assert list(found["df"]) == [1, 1, 0]


def test_only_the_largest_component_counts_and_the_rest_is_told():
    apart = pd.DataFrame({"inp": ["Res_in", "Res_in"], "out": ["Res_in", "Res_out"]})
    whole = pd.concat([positions(), apart])
    found = estimable(whole, PAIR, ())
    pd.testing.assert_frame_equal(found, estimable(positions(), PAIR, ()))
    assert found.attrs["notes"] == [
        "the design has 2 unconnected parts; 2 cell(s) outside the largest are left out"
    ]
    assert power(crossed(whole, 1, 2), PAIR, delta=1, sigma=1).equals(
        power(crossed(positions(), 1, 2), PAIR, delta=1, sigma=1)
    )


def test_a_factor_of_one_level_is_left_out_and_told():
    found = estimable(factorial(2, 2).assign(C="x"), list("ABC"), ())
    assert list(found["effect"]) == ["A", "B", "A:B"]
    assert found.attrs["notes"] == ["C has one level in the part analysed and is left out"]


def test_association_is_cramers_v_and_the_largest_canonical_correlation():
    (row,) = association(positions(), PAIR).to_dict("records")
    counts = pd.crosstab(positions()["inp"], positions()["out"])
    cramer = scipy.stats.contingency.association(counts.to_numpy(), method="cramer")
    assert row["cramers_v"] == pytest.approx(cramer, rel=1e-12)
    spaces = [pd.get_dummies(positions()[name]).to_numpy(float) for name in PAIR]
    contrasts = [np.linalg.qr(x - x.mean(axis=0))[0][:, : x.shape[1] - 1] for x in spaces]
    smallest = scipy.linalg.subspace_angles(*contrasts).min()
    assert row["canonical"] == pytest.approx(math.cos(smallest), rel=1e-12)


def test_association_at_its_ends():
    assert association(factorial(3, 2), ["A", "B"])["canonical"][0] == pytest.approx(0, abs=1e-12)
    same = pd.DataFrame({"A": [0, 1, 1, 2], "B": ["x", "y", "y", "y"], "C": [0, 1, 0, 1]})
    found = association(same, ["A", "B", "C"]).set_index(["factor", "other"])
    assert found.loc[("A", "B"), "canonical"] == pytest.approx(1)


# --- power ------------------------------------------------------------------------------

# Seeds for a power of 0.8, measured by an independent program.
SEEDS = {
    1: {1: 28, 3: 10, 5: 6},
    2: {1: 8, 3: 3, 5: 2},
    3: {1: 4, 3: 2, 5: 1},
}


@pytest.mark.parametrize("delta, tasks", [(d, t) for d in SEEDS for t in SEEDS[d]])
def test_seeds_that_the_legal_pairs_need(delta, tasks):
    found = runs_needed(crossed(positions(), tasks, 1), PAIR, delta=0.1 * delta, sigma=0.1)
    assert found["seeds"].max() == SEEDS[delta][tasks]
    assert found["runs"].max() == SEEDS[delta][tasks] * tasks * 16


@pytest.mark.parametrize("design", ["legal pairs", "a lost run"])
def test_power_is_the_noncentral_f_of_the_hardest_pair_of_levels(design):
    """The noncentrality is the type II sum of squares that the alternative itself has."""
    table = crossed(positions(), 2, 2)
    if design == "a lost run":
        table = table.drop(index=5)
    found = power(table, PAIR, delta=0.3, sigma=0.2, alpha=0.1).set_index("factor")
    for name in PAIR:
        sizes = []
        for one, other in combinations(table[name].unique(), 2):
            means = 0.15 * (table[name] == one) - 0.15 * (table[name] == other)
            rows = anova(table.assign(y=means), "y", PAIR, block=blocks_of(table, PAIR).terms)
            sizes.append(rows.set_index("source").loc[name, "ss"] / 0.2**2)
        df, rest = found.loc[name, "df"], found.loc[name, "residual_df"]
        critical = scipy.stats.f.isf(0.1, df, rest)
        truth = scipy.stats.ncf.sf(critical, df, rest, min(sizes))
        assert found.loc[name, "power"] == pytest.approx(truth, rel=1e-8)
    assert found.loc["inp", "residual_df"] == len(table) - 1 - 1 - 2 - 2 * 6 - 2 * 3


def test_power_is_how_often_a_difference_is_found():
    """A balanced 3 x 2 design in 3 blocks, whose sums of squares are those of its means."""
    draws, rng = 20_000, np.random.default_rng(0)
    y = rng.standard_normal((draws, 3, 2, 3))
    y[:, 0] += 0.75
    y[:, 2] -= 0.75
    y -= y.mean(axis=(1, 2, 3), keepdims=True)
    a, b, seed = (
        (y.mean(axis=axes) ** 2).sum(axis=1) * size
        for axes, size in (((2, 3), 6), ((1, 3), 9), ((1, 2), 6))
    )
    rest = (y**2).sum(axis=(1, 2, 3)) - a - b - seed
    found = (a / 2) / (rest / 12) > scipy.stats.f.isf(0.05, 2, 12)
    expected = power(crossed(factorial(3, 2), 1, 3), ["A", "B"], delta=1.5, sigma=1)["power"][0]
    assert 0.3 < expected < 0.9
    # Four binomial standard deviations.
    assert found.mean() == pytest.approx(expected, abs=4 * math.sqrt(0.25 / draws))


@pytest.mark.parametrize("block", [None, ("task", "seed"), ("task",)])
def test_runs_needed_are_the_fewest_with_the_power(block):
    given = {"delta": 1.7, "sigma": 1, "alpha": 0.05}
    found = runs_needed(crossed(positions(), 3, 2), PAIR, block, goal=0.9, **given)
    for i, row in found.iterrows():
        for seeds, enough in ((row["seeds"], True), (row["seeds"] - 1, False)):
            have = power(crossed(positions(), 3, seeds), PAIR, block, **given)["power"][i]
            assert (have >= 0.9) == enough
            if enough:
                assert row["power"] == pytest.approx(have, rel=1e-9)
        assert row["runs"] == 48 * row["seeds"]


def test_the_detectable_difference_has_the_power():
    table = crossed(positions(), 2, 2)
    for i, difference in enumerate(detectable(table, PAIR, goal=0.7)["difference"]):
        found = power(table, PAIR, delta=difference, sigma=1)["power"][i]
        assert found == pytest.approx(0.7, abs=1e-9)


def test_without_residual_degrees_of_freedom_there_is_no_power():
    saturated = factorial(2, 2).drop(index=3)
    assert power(saturated, ["A", "B"], (), delta=1, sigma=1)["power"].isna().all()
    assert detectable(saturated, ["A", "B"], ())["difference"].isna().all()


def test_an_aliased_factor_is_never_found():
    table = crossed(pd.DataFrame({"A": [0, 0, 1, 1], "B": [0, 0, 1, 1], "C": [0, 1, 0, 1]}), 1, 2)
    found = runs_needed(table, list("ABC"), delta=1, sigma=1)
    assert found["seeds"].isna().tolist() == [True, True, False]
    assert detectable(table, list("ABC"))["difference"].isna().tolist() == [True, True, False]


BAD = {
    "delta": ({"delta": 0, "sigma": 1}, "delta: 0; allowed: a finite number above 0"),
    "sigma": ({"delta": 1, "sigma": math.inf}, "sigma: inf; allowed: a finite number above 0"),
    "alpha": ({"delta": 1, "sigma": 1, "alpha": 1}, "alpha: 1; allowed: between 0 and 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_numbers_out_of_range_are_refused(name):
    given, message = BAD[name]
    with pytest.raises(UserError) as error:
        power(crossed(positions(), 1, 2), PAIR, **given)
    assert error.value.problems == [message]


def test_designs_that_cannot_be_planned_are_refused():
    with pytest.raises(UserError, match="no column 'width'"):
        estimable(positions(), ["inp", "width"])
    with pytest.raises(UserError, match="has two levels"):
        power(factorial(1, 1), ["A", "B"], delta=1, sigma=1)
    with pytest.raises(UserError, match="no row of the design has a level"):
        estimable(pd.DataFrame({"A": [None, None]}), ["A"])


# --- sigma of a pilot study -------------------------------------------------------------


def pilot() -> pd.DataFrame:
    return pd.read_csv(DATA / "r_positions_main.csv").assign(status="ok", method="adapter")


def test_sigma_of_a_pilot_is_rs():
    r = json.loads((DATA / "r_positions_main.json").read_text())
    found = pilot_sigma(pilot(), "y", PAIR, ["data"])
    assert found.sigma == pytest.approx(r["sigma"], rel=1e-10)
    assert found.df == r["type2"]["Residuals"]["Df"]
    rss = r["type2"]["Residuals"]["Sum Sq"]
    low, high = (math.sqrt(rss / scipy.stats.chi2.ppf(p, found.df)) for p in (0.975, 0.025))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-10)


def test_sigma_of_a_pilot_is_of_the_finished_runs_in_the_design():
    alone = pilot_sigma(pilot(), "y", PAIR, ["data"])
    more = pd.DataFrame(
        [
            {"inp": "SAin", "out": "CAin", "data": "A", "y": 99, "status": "failed"},
            {"inp": "SAin", "out": "CAin", "data": "A", "y": 99, "status": "ok", "method": "none"},
            {"inp": "Resin", "out": "Resin", "data": "A", "y": 99, "status": "ok"},
            {"data": "A", "y": 99, "status": "ok", "method": "full"},
        ]
    )
    assert pilot_sigma(pd.concat([pilot(), more]), "y", PAIR, ["data"]) == alone


def test_sigma_of_a_pilot_on_the_scale_of_the_analysis():
    table = pilot()
    on_log = pilot_sigma(table, "y", PAIR, ["data"], transform="log")
    by_hand = pilot_sigma(table.assign(y=np.log(table["y"])), "y", PAIR, ["data"])
    assert on_log.sigma == pytest.approx(by_hand.sigma, rel=1e-12)
    assert (on_log.scale, by_hand.scale) == ("log", "identity")
    with pytest.raises(UserError, match="needs values above 0"):
        pilot_sigma(table.assign(y=table["y"] - 1), "y", PAIR, ["data"], transform="log")


def test_pilots_that_cannot_tell_sigma_are_refused():
    with pytest.raises(UserError, match="no column 'clip_t'"):
        pilot_sigma(pilot(), "clip_t", PAIR)
    one = pilot().drop_duplicates(PAIR).head(3)
    with pytest.raises(UserError, match="y: 0 residual degrees of freedom"):
        pilot_sigma(one, "y", ["inp", "out"], ())
    with pytest.raises(UserError, match="residual sum of squares of 0"):
        pilot_sigma(pilot().assign(y=1.0), "y", PAIR, ["data"])


# --- D-optimal subsets ------------------------------------------------------------------


def model_matrix(cells: pd.DataFrame) -> np.ndarray:
    """The constant and the main effects, in treatment coding: (cells, parameters)."""
    dummies = pd.get_dummies(cells.astype(str), drop_first=True).astype(float)
    return np.column_stack([np.ones(len(cells)), dummies])


def big() -> pd.DataFrame:
    """The paper's pairs, activations and scales, in three widths: 768 cells."""
    forms = pd.DataFrame(
        list(product(["relu", "sigmoid", "silu", "identity"], [0.5, 1.0, 2.0, 4.0], [8, 60, 256])),
        columns=["activation", "scale", "width"],
    )
    return positions().merge(forms, how="cross")


# Cells, and how many of them: orthogonal fractions exist, whose efficiency is 1.
OPTIMAL = {
    "half of a 2^3": (factorial(2, 2, 2), 4),
    "half of a 2^5": (factorial(2, 2, 2, 2, 2), 16),
    "a sixteenth of a 2^7": (factorial(*[2] * 7), 8),
    "L9 of a 3^4": (factorial(3, 3, 3, 3), 9),
    "Latin square of a 4^3": (factorial(4, 4, 4), 16),
    "12 of a 2^11 (Plackett and Burman)": (factorial(*[2] * 11), 12),
}


@pytest.mark.parametrize("name", OPTIMAL)
def test_an_orthogonal_fraction_is_found_where_there_is_one(name):
    cells, n = OPTIMAL[name]
    factors = list(cells.columns)
    chosen = d_optimal(cells, factors, n)
    assert len(chosen) == n and not chosen.duplicated().any()
    assert d_efficiency(chosen, cells, factors) == pytest.approx(1, abs=1e-9)
    assert association(chosen, factors)["canonical"].max() < 1e-6


@pytest.mark.parametrize("n", [10, 12, 14])
def test_of_the_legal_pairs_no_subset_is_better(n):
    cells, x = positions(), model_matrix(positions())
    every = x[np.array(list(combinations(range(16), n)))]
    best = np.linalg.det(every.transpose(0, 2, 1) @ every).max()
    chosen = d_optimal(cells, PAIR, n)
    own = x[chosen.index]
    assert np.linalg.det(own.T @ own) == pytest.approx(best, rel=1e-9)
    ratio = best / np.linalg.det(x.T @ x) * (16 / n) ** 10
    assert d_efficiency(chosen, cells, PAIR) == pytest.approx(ratio ** (1 / 10), rel=1e-9)


def test_48_of_768_cells_estimate_the_main_effects_as_well_per_run():
    cells = big()
    factors = list(cells.columns)
    chosen = d_optimal(cells, factors, 48)
    assert (len(cells), len(chosen)) == (768, 48)
    assert d_efficiency(chosen, cells, factors) >= 1
    found = estimable(chosen, factors, ())
    main = found[~found["effect"].str.contains(":")]
    assert (main["df"] == main["nominal_df"]).all()
    assert found["aliased_with"].map(bool).all()
    assert all(":" in other for others in main["aliased_with"] for other in others)


def test_a_subset_is_the_same_every_time_and_keeps_its_order():
    cells = big().set_index(np.arange(768) + 1000)
    factors = list(cells.columns)
    chosen = d_optimal(cells, factors, 24)
    assert chosen.equals(d_optimal(cells, factors, 24)) and chosen.index.is_monotonic_increasing
    renamed = cells[factors[::-1]].astype(str).map("level {}".format)
    assert d_optimal(renamed, factors, 24).index.equals(chosen.index)
    assert not d_optimal(cells, factors, 24, seed=1).index.equals(chosen.index)
    # Recorded: a study's subset may not change with the library.
    assert list(d_optimal(positions(), PAIR, 10).index) == [0, 1, 2, 6, 7, 8, 9, 13, 14, 15]


@pytest.mark.parametrize("levels, n", [((3, 3, 3, 3), 12), ((2, 2, 2, 2), 7), ((4, 4, 4), 16)])
def test_rounding_decides_no_exchange(levels, n, monkeypatch):
    """In a turned basis all numbers are rounded differently, as on another machine."""
    cells, basis = factorial(*levels), optimal._basis
    factors = list(cells.columns)
    expected = d_optimal(cells, factors, n).index

    def turned(*arguments):
        straight = basis(*arguments)
        normal = rng.standard_normal((straight.shape[1], straight.shape[1]))
        return straight @ np.linalg.qr(normal)[0]

    monkeypatch.setattr(optimal, "_basis", turned)
    rng = np.random.default_rng(0)
    for _ in range(4):
        assert d_optimal(cells, factors, n).index.equals(expected)


def test_impossible_subsets_are_refused():
    for n in (9, 17):
        with pytest.raises(UserError) as error:
            d_optimal(positions(), PAIR, n)
        assert error.value.problems == [
            f"{n}; allowed: 10 (as many as the main effects need) to 16 (all cells)"
        ]
    with pytest.raises(UserError, match="no column 'width'"):
        d_optimal(positions(), ["inp", "width"], 12)
