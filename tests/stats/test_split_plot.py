"""A factor whose levels share their unit, held against the sums of squares written out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats as theirs

from fitspace.core.errors import UserError
from fitspace.stats import split_plot, within


def table(units=12, seed=0, arms="abc"):
    draw = np.random.default_rng(seed)
    rows = []
    for unit in range(units):
        arm = arms[unit % len(arms)]
        own = draw.normal(0, 3)
        for k, step in enumerate((25, 50, 100)):
            y = own + k * (1 + arms.index(arm)) + draw.normal(0, 0.5)
            rows.append((f"t{unit}", arm, step, y))
    return pd.DataFrame(rows, columns=["training", "arm", "step", "y"])


def test_the_tests_are_the_split_plots_written_out():
    runs = table()
    _, found = split_plot(runs, "y", "training", "step", ["arm"])
    y = runs.pivot(index="training", columns="step", values="y")
    arm = runs.drop_duplicates("training").set_index("training")["arm"].loc[y.index]
    grand, n, k = y.to_numpy().mean(), len(y), y.shape[1]
    by_arm = y.groupby(arm).mean()
    sizes = arm.value_counts().loc[by_arm.index].to_numpy()
    ss = n * ((y.mean() - grand) ** 2).sum()
    cells = by_arm.sub(by_arm.mean(axis=1), axis=0).sub(y.mean() - grand, axis=1)
    interaction = (sizes[:, None] * cells.to_numpy() ** 2).sum()
    left = y.sub(y.mean(axis=1), axis=0) - by_arm.sub(by_arm.mean(axis=1), axis=0).loc[arm].values
    rest, df = (left.to_numpy() ** 2).sum(), (n - len(by_arm)) * (k - 1)
    expected = [ss / (k - 1), interaction / ((k - 1) * (len(by_arm) - 1))]
    assert list(found["source"]) == ["step", "arm:step", "residual"]
    assert list(found["df"]) == [k - 1, (k - 1) * (len(by_arm) - 1), df]
    F = np.array(expected) / (rest / df)
    assert found["F"][:2].tolist() == pytest.approx(F.tolist(), rel=1e-9)
    p = theirs.f.sf(F, found["df"][:2], df)
    assert found["p"][:2].tolist() == pytest.approx(p.tolist(), rel=1e-6)


def test_without_other_factors_it_is_the_test_within_subjects():
    runs = table(arms="a", units=7)
    _, found = split_plot(runs, "y", "training", "step")
    theirs_ = within(runs, "y", subject="training", within="step").iloc[0]
    ours = found.iloc[0]
    for name in ("F", "p", "gg_eps", "p_gg"):
        assert ours[name] == pytest.approx(theirs_[name], rel=1e-9), name


def test_epsilon_leaves_out_what_arms_differ_by():
    runs = table(units=30)
    _, plain = split_plot(runs, "y", "training", "step", ["arm"])
    bent = runs.assign(y=runs["y"] + 50 * (runs["arm"].eq("b") & runs["step"].eq(100)))
    _, moved = split_plot(bent, "y", "training", "step", ["arm"])
    assert plain["gg_eps"].iloc[0] == pytest.approx(moved["gg_eps"].iloc[0], rel=1e-9)
    assert 0.5 <= plain["gg_eps"].iloc[0] <= 1


def test_the_limits_are_moreys():
    runs = table(arms="a")
    means, _ = split_plot(runs, "y", "training", "step")
    y = runs.pivot(index="training", columns="step", values="y").to_numpy()
    own = y - y.mean(1, keepdims=True) + y.mean()
    for k in range(3):
        half = theirs.t.ppf(0.975, 11) * (own[:, k].var(ddof=1) * 3 / 2 / 12) ** 0.5
        row = means.iloc[k]
        assert (row["mean"], row["low"]) == pytest.approx((y[:, k].mean(), y[:, k].mean() - half))


def test_what_all_units_share_changes_no_limits():
    runs = table(arms="a")
    shifts = {f"t{i}": 100.0 * i for i in range(12)}
    moved = runs.assign(y=runs["y"] + runs["training"].map(shifts))
    (a, _), (b, _) = (split_plot(t, "y", "training", "step") for t in (runs, moved))
    assert (a["high"] - a["low"]).tolist() == pytest.approx((b["high"] - b["low"]).tolist())


def test_a_unit_without_a_level_is_set_aside_and_named():
    means, tests = split_plot(table().iloc[1:], "y", "training", "step", ["arm"])
    assert means["units"].tolist() == [11] * 3
    assert means.attrs["notes"] == ["step: 1 training(s) lack a level and were set aside"]
    assert tests["df"].iloc[-1] == (11 - 3) * 2


WRONG = {
    "no column": (lambda t: t.drop(columns="arm"), "no column 'arm'"),
    "one level": (lambda t: t[t["step"] == 25], "1 level"),
    "one unit": (lambda t: t[t["training"] == "t0"], "1 training"),
    "nothing": (lambda t: t.iloc[:0], "0 level"),
}


@pytest.mark.parametrize(("change", "said"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_compared_is_refused(change, said):
    with pytest.raises(UserError, match=said):
        split_plot(change(table()), "y", "training", "step", ["arm"])
