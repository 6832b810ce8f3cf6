"""Mediation and correlation against statsmodels, SciPy and formulas written out again."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats as scipy_stats
from statsmodels.stats.mediation import Mediation

from fitspace.core.errors import UserError
from fitspace.stats import correlation, mediation


def two_levels(n=60, seed=1, b=1.2, direct=0.5):
    draw = np.random.default_rng(seed)
    x = np.repeat([0, 1], n // 2)
    m = 0.8 * x + draw.normal(size=n) / 2
    y = direct * x + b * m + draw.normal(size=n) * 0.4
    return pd.DataFrame({"x": x, "arm": np.where(x, "b", "a"), "m": m, "y": y})


def test_of_two_levels_it_is_the_product_of_statsmodels_coefficients():
    runs = two_levels()
    (row,) = mediation(runs, "y", "m", "arm", draws=50).to_dict("records")
    a = sm.OLS.from_formula("m ~ x", runs).fit().params["x"]
    both = sm.OLS.from_formula("y ~ x + m", runs).fit().params
    total = sm.OLS.from_formula("y ~ x", runs).fit().params["x"]
    assert row["slope"] == pytest.approx(both["m"], rel=1e-9)
    assert row["share"] == pytest.approx(a * both["m"] / total, rel=1e-9)
    # Root mean squares: two levels with as many runs lie half their difference from the mean.
    assert row["total"] == pytest.approx(total / 2, rel=1e-9)
    assert row["direct"] == pytest.approx(both["x"] / 2, rel=1e-9)
    assert row["low"] < row["share"] < row["high"]


@pytest.mark.slow
def test_of_two_levels_it_agrees_with_statsmodels_mediation():
    runs = two_levels()
    (row,) = mediation(runs, "y", "m", "arm").to_dict("records")
    models = (sm.OLS.from_formula("y ~ x + m", runs), sm.OLS.from_formula("m ~ x", runs))
    np.random.seed(0)  # statsmodels draws from the global generator
    found = Mediation(*models, "x", "m").fit(method="parametric", n_rep=400).summary()
    theirs = found.loc["Prop. mediated (average)"]
    assert row["share"] == pytest.approx(theirs["Estimate"], abs=0.03)
    assert row["low"] == pytest.approx(theirs["Lower CI bound"], abs=0.1)
    assert row["high"] == pytest.approx(theirs["Upper CI bound"], abs=0.1)


def three_levels(seed=3):
    draw = np.random.default_rng(seed)
    rows = [(i, o, s) for i in "uvw" for o in "xy" for s in range(4)]
    runs = pd.DataFrame(rows, columns=["input", "output", "seed"])
    a = runs["input"].map({"u": -1.0, "v": 0.2, "w": 0.9})
    c = runs["input"].map({"u": 0.3, "v": -0.5, "w": 0.1}) + 0.2 * (runs["output"] == "y")
    runs["m"] = a + 0.3 * draw.normal(size=len(runs)) + 0.1 * runs["seed"]
    runs["y"] = 0.7 * runs["m"] + c + 0.1 * draw.normal(size=len(runs))
    return runs


def test_of_several_levels_it_is_the_indirect_effects_along_the_effect():
    """Balanced: level means, their products with the slope, and a regression on the effect."""
    runs = three_levels()
    row = mediation(runs, "y", "m", ["input", "output"], "seed", draws=50).iloc[0]
    slope = sm.OLS.from_formula("y ~ m + input + output + C(seed)", runs).fit().params["m"]
    t, a = (runs.groupby("input")[name].mean() - runs[name].mean() for name in ("y", "m"))
    assert row["slope"] == pytest.approx(slope, rel=1e-9)
    assert row["share"] == pytest.approx(slope * (a * t).sum() / (t * t).sum(), rel=1e-9)
    assert row["total"] == pytest.approx(np.sqrt((t**2).mean()), rel=1e-9)
    assert row["df"] == 2 and row["indirect"] + row["direct"] == pytest.approx(row["total"])


def test_the_interval_tells_a_mediator_from_none():
    runs = two_levels(n=80, b=1.5, direct=0.0)
    (through,) = mediation(runs, "y", "m", "arm", draws=500).to_dict("records")
    assert through["low"] > 0.5
    beside = runs.assign(y=runs["x"] + np.random.default_rng(5).normal(size=len(runs)) * 0.4)
    (none,) = mediation(beside, "y", "m", "arm", draws=500).to_dict("records")
    assert none["low"] < 0 < none["high"] or abs(none["share"]) < 0.3


UNKNOWN = {
    "a mediator that the factor determines": {"m": [1, 1, 1, 2, 2, 2]},
    "a mediator without variation": {"m": [1] * 6},
}


@pytest.mark.parametrize("changes", UNKNOWN.values(), ids=UNKNOWN)
def test_what_cannot_be_told_is_no_number(changes):
    runs = pd.DataFrame({"arm": list("aaabbb"), "y": [1, 2, 3, 5, 4, 6.0]}).assign(**changes)
    (row,) = mediation(runs, "y", "m", "arm", draws=20).to_dict("records")
    assert np.isnan([row["slope"], row["share"], row["low"], row["high"]]).all()


def test_where_a_draw_may_have_no_slope_there_are_no_limits():
    """Of two seeds the residuals of each arm mirror each other: some signs leave nothing."""
    runs = pd.DataFrame([(a, s) for a in "uvwx" for s in (0, 1)], columns=["arm", "seed"])
    draw = np.random.default_rng(3)
    runs["m"], runs["y"] = draw.normal(size=(2, len(runs)))
    (row,) = mediation(runs, "y", "m", "arm", block="seed").to_dict("records")
    assert np.isfinite([row["slope"], row["share"]]).all()
    assert np.isnan([row["slope_low"], row["slope_high"], row["low"], row["high"]]).all()


def test_runs_without_a_value_do_not_count_and_columns_are_needed():
    runs = three_levels()
    more = pd.concat([runs, runs.iloc[:2].assign(m=np.nan)], ignore_index=True)
    one, other = (mediation(t, "y", "m", "input", draws=20) for t in (runs, more))
    pd.testing.assert_frame_equal(one, other)
    with pytest.raises(UserError, match="no column 'q'"):
        mediation(runs, "y", "q", "input")


def test_correlations_are_scipys():
    draw = np.random.default_rng(0)
    cells = pd.DataFrame({"a": draw.normal(size=12)}).assign(
        b=lambda t: t["a"] + draw.normal(size=12)
    )
    cells.loc[0, "b"] = np.nan
    known = cells.dropna()
    found = correlation(cells, "a", "b", draws=200).set_index("measure")
    assert found.loc["Pearson", "estimate"] == pytest.approx(
        scipy_stats.pearsonr(known["a"], known["b"]).statistic
    )
    assert found.loc["Spearman", "estimate"] == pytest.approx(
        scipy_stats.spearmanr(known["a"], known["b"]).statistic
    )
    assert (found["cells"] == 11).all() and (found["low"] < found["estimate"]).all()
    assert found[["low", "high"]].abs().to_numpy().max() <= 1


@pytest.mark.parametrize(("cells", "known"), [(7, False), (8, True)])
def test_few_cells_have_no_limits(cells, known):
    draw = np.random.default_rng(1)
    table = pd.DataFrame(draw.normal(size=(cells, 2)), columns=["a", "b"])
    found = correlation(table, "a", "b", draws=50)
    assert found["estimate"].notna().all()
    assert found[["low", "high"]].notna().to_numpy().all() == known


@pytest.mark.parametrize(
    "values", [[], [1, 2, 3], [1, 1, 1, 1, 1]], ids=["no cells", "few cells", "constant"]
)
def test_too_little_to_correlate(values):
    cells = pd.DataFrame({"a": values, "b": range(len(values))})
    assert correlation(cells, "a", "b", draws=20)["estimate"].isna().all()
