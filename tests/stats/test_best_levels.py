"""The best level of each unit, held against statsmodels' two-way layout and Tukey's quantile."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy.stats import studentized_range

from fitspace.stats import best_levels


def table(units=("a", "b"), levels=4, blocks=5, noise=0.3, seed=0) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    rows = [
        (unit, level, block, 0.5 * level * (1 - at) + block + draw.normal(0, noise))
        for at, unit in enumerate(units)
        for level in range(levels)
        for block in range(blocks)
    ]
    return pd.DataFrame(rows, columns=["unit", "level", "block", "y"])


def test_one_unit_is_a_two_way_layout_with_tukeys_limits():
    runs = table(units=("a",))
    fit = smf.ols("y ~ C(level) + C(block)", runs).fit()
    found = best_levels(runs, "y", "unit", "level", "block")
    assert found.attrs["df"] == fit.df_resid == 12
    assert found.attrs["sd"] == pytest.approx(fit.mse_resid**0.5, rel=1e-12)
    reach = studentized_range.ppf(0.95, 4, 12) * (fit.mse_resid / 5) ** 0.5
    means = runs.groupby("level")["y"].mean()
    for row in found.query("not best").itertuples():
        assert row.worse == pytest.approx(means.max() - means[row.level], rel=1e-8)
        assert (row.low, row.high) == pytest.approx((row.worse - reach, row.worse + reach))
        assert row.tied == (row.worse < reach)


def test_the_error_is_that_of_all_units_each_with_its_own_blocks():
    runs = table()
    own = [smf.ols("y ~ C(level) + C(block)", rows).fit() for _, rows in runs.groupby("unit")]
    found = best_levels(runs, "y", "unit", "level", "block")
    assert found.attrs["df"] == sum(fit.df_resid for fit in own)
    pooled = sum(fit.ssr for fit in own) / found.attrs["df"]
    assert found.attrs["sd"] == pytest.approx(pooled**0.5, rel=1e-12)


def test_lower_is_better_finds_the_other_end_and_worse_stays_positive():
    runs = table(units=("a",))
    high = best_levels(runs, "y", "unit", "level", "block")
    low = best_levels(runs, "y", "unit", "level", "block", lower=True)
    mirrored = best_levels(runs.assign(y=-runs["y"]), "y", "unit", "level", "block")
    assert high.query("best")["level"].item() == 3 and low.query("best")["level"].item() == 0
    assert (low["worse"] >= 0).all() and (high["worse"] >= 0).all()
    assert low["worse"].tolist() == pytest.approx(mirrored["worse"].tolist())


def test_a_level_with_a_lost_run_is_neither_best_nor_compared():
    runs = table(units=("a",))
    lost = runs.copy()
    lost.loc[(lost["level"] == 3) & (lost["block"] == 0), "y"] = np.nan
    found = best_levels(lost, "y", "unit", "level", "block").set_index("level")
    others = best_levels(runs[runs["level"] < 3], "y", "unit", "level", "block")
    assert found.loc[3, "runs"] == 4 and np.isnan(found.loc[3, "mean"])
    assert not found.loc[3, "best"] and not found.loc[3, "tied"]
    rest = found.loc[:2, ["mean", "worse", "low", "high"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(rest, others[rest.columns])


def test_one_block_gives_means_and_no_limits():
    found = best_levels(table(blocks=1), "y", "unit", "level", "block")
    assert found.attrs["df"] == 0 and found["low"].isna().all()
    assert found.groupby("unit")["best"].sum().eq(1).all()
    assert found["tied"].equals(found["best"])


def test_the_best_level_is_missed_no_more_often_than_the_level_of_the_limits():
    """Of 400 tables with one truly best level, at most 5% (plus chance) call it separable."""
    missed = 0
    for seed in range(400):
        found = best_levels(
            table(("a",), 3, 3, noise=0.6, seed=seed), "y", "unit", "level", "block"
        )
        missed += not found.loc[found["level"] == 2, "tied"].item()
    assert missed <= 400 * 0.05 + 2 * (400 * 0.05 * 0.95) ** 0.5
