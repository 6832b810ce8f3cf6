"""Non-inferiority and equivalence by paired runs."""

import numpy as np
import pandas as pd
import pytest

from fitspace.core.errors import UserError
from fitspace.stats import equivalence

# Student's sleep data (1908; R's datasets): more hours of sleep of ten patients on two drugs.
DRUG_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
DRUG_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def one_task(values, point="p"):
    seeds = range(len(values))
    return pd.DataFrame({"point": point, "task": "t", "seed": seeds, "y": values})


def hold(runs, reference, margin=1.0, lower=False, **more):
    return equivalence(runs, "y", margin, "point", reference, lower_is_better=lower, **more)


def random_runs(rng, pairs, point="p"):
    """Runs of one point with the given number of seeds in each task."""
    rows = [(point, f"t{t}", s) for t, m in enumerate(pairs) for s in range(m)]
    return pd.DataFrame(rows, columns=["point", "task", "seed"]).assign(
        y=rng.normal(size=len(rows))
    )


def test_interval_is_that_of_r_on_the_sleep_data():
    """R's documented t.test(extra ~ group, paired): t = -4.0621, df = 9, p = 0.002833."""
    row = hold(one_task(DRUG_1), one_task(DRUG_2), alpha=0.025).iloc[0]
    assert (row["pairs"], row["unpaired"], row["df"]) == (10, 0, 9)
    assert row["difference"] == pytest.approx(-1.58, abs=1e-12)
    assert row["difference"] / row["se"] == pytest.approx(-4.0621, abs=5e-5)
    assert row["low"] == pytest.approx(-2.4598858, abs=5e-8)
    assert row["high"] == pytest.approx(-0.7001142, abs=5e-8)


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("shift", [-0.4, 0.0, 0.9])
def test_p_values_are_those_of_one_sided_paired_tests(lower, shift):
    from scipy.stats import ttest_1samp, ttest_rel

    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(shift, 1, 8), rng.normal(0, 1, 8)
    row = hold(one_task(ours), one_task(theirs), 0.7, lower).iloc[0]
    difference = ours - theirs
    above = ttest_1samp(difference, -0.7, alternative="greater").pvalue
    below = ttest_rel(ours, theirs + 0.7, alternative="less").pvalue
    assert row["p_noninferior"] == pytest.approx(below if lower else above, rel=1e-12)
    assert row["p_equivalent"] == pytest.approx(max(above, below), rel=1e-12)


def test_tasks_weigh_the_same_whatever_their_pairs():
    """Against the contrast of a regression of the differences on the tasks."""
    rng = np.random.default_rng(2)
    ours, theirs = random_runs(rng, [2, 5, 3]), random_runs(rng, [2, 5, 3])
    X = pd.get_dummies(ours["task"]).to_numpy(float)
    d = (ours["y"] - theirs["y"]).to_numpy()
    inverse = np.linalg.inv(X.T @ X)
    coefficients = inverse @ X.T @ d
    variance = np.sum((d - X @ coefficients) ** 2) / (10 - 3)
    weights = np.full(3, 1 / 3)
    row = hold(ours, theirs.sample(frac=1, random_state=0)).iloc[0]
    assert row["df"] == 7
    assert row["difference"] == pytest.approx(weights @ coefficients, rel=1e-12)
    assert row["se"] == pytest.approx((variance * weights @ inverse @ weights) ** 0.5, rel=1e-12)


def test_runs_without_a_partner_are_left_out_and_counted():
    rng = np.random.default_rng(3)
    ours, theirs = random_runs(rng, [4, 4]), random_runs(rng, [4, 4])
    whole = hold(ours.drop(index=[1, 6]), theirs.drop(index=[1, 6]))
    part = ours.drop(index=1)
    part.loc[2, "y"] = np.nan
    part = hold(part, theirs.drop(index=6)).iloc[0]
    assert (whole["pairs"].item(), whole["unpaired"].item()) == (6, 0)
    assert (part["pairs"], part["unpaired"]) == (5, 3)
    again = hold(ours.drop(index=[1, 2, 6]), theirs.drop(index=[1, 2, 6])).iloc[0]
    assert part.drop("unpaired").equals(again.drop("unpaired"))


def test_equivalence_is_an_interval_within_the_margin():
    rng = np.random.default_rng(4)
    seen = set()
    for _ in range(60):
        ours, theirs = random_runs(rng, [3, 3]), random_runs(rng, [3, 3])
        ours["y"] += rng.normal(0, 0.3)
        row = hold(ours, theirs, 1.5).iloc[0]
        assert row["equivalent"] == (row["low"] > -1.5 and row["high"] < 1.5)
        assert row["noninferior"] == (row["low"] > -1.5)
        seen.add((row["noninferior"], row["equivalent"]))
    assert seen == {(True, True), (True, False), (False, False)}


def test_holm_over_the_points():
    rng = np.random.default_rng(5)
    reference = random_runs(rng, [6])
    points = [
        random_runs(rng, [6], name).assign(y=lambda runs, k=k: runs["y"] * 0.4 + 0.2 * k)
        for k, name in enumerate("abc")
    ]
    table = hold(pd.concat(points), reference)
    one_by_one = pd.concat([hold(runs, reference) for runs in points], ignore_index=True)
    assert list(table["point"]) == ["a", "b", "c"]
    for claim in ("noninferior", "equivalent"):
        p = table[f"p_{claim}"]
        assert p.equals(one_by_one[f"p_{claim}"])
        small, middle, large = p.sort_values()
        first = min(1, 3 * small)
        second = max(first, min(1, 2 * middle))
        expected = [first, second, max(second, large)]
        assert sorted(table[f"p_{claim}_holm"]) == pytest.approx(expected)
        assert list(table[claim]) == list(table[f"p_{claim}_holm"] < 0.05)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    {
        "one pair": ([1.0], [1.0]),
        "no pair": ([1.0, np.nan], [np.nan, 1.0]),
        "no spread but rounding": ([0.1, 0.2, 0.3], [0.8, 0.9, 1.0]),
    }.values(),
    ids=["one pair", "no pair", "no spread but rounding"],
)
def test_nothing_is_shown_without_an_error_variance(ours, theirs):
    row = hold(one_task(ours), one_task(theirs), 5.0).iloc[0]
    assert row[["p_noninferior", "p_equivalent", "p_equivalent_holm"]].isna().all()
    assert not row["noninferior"]
    assert not row["equivalent"]


def test_errors_are_told_at_once():
    runs = one_task([1.0, 2.0, 3.0])
    for margin in (0, -1.0, np.inf, np.nan, "1", None):
        with pytest.raises(UserError, match="margin: .*; allowed: a finite number above 0"):
            hold(runs, runs, margin)
    with pytest.raises(UserError) as error:
        hold(runs.drop(columns="seed"), runs.drop(columns="y"), 0)
    assert [text.split(" in the")[0].split(";")[0] for text in error.value.problems] == [
        "no column 'seed'",
        "reference: no column 'y'",
        "margin: 0",
    ]
    bad = runs.assign(y=["1", "inf", "much"])
    with pytest.raises(UserError) as error:
        hold(pd.concat([runs, runs.iloc[:1]]), bad.assign(task=["t", None, "t"]))
    assert error.value.problems == [
        "more than one run with the same point, task, seed: p, t, 0",
        "reference: response 'y': 'inf', 'much'; allowed: finite numbers",
        "reference: columns ['task']: empty cells; allowed: a label in every row",
    ]
    with pytest.raises(UserError, match="reference: no runs"):
        hold(runs, runs.iloc[:0])
