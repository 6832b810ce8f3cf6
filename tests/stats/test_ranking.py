"""Which factor matters most, and whether one task decides it."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fitspace.core.errors import UserError
from fitspace.stats import anova, leave_one_out, ranking

STATS = Path(__file__).parents[1] / "data" / "stats"


@pytest.fixture(scope="module")
def positions():
    return pd.read_csv(STATS / "r_positions_main.csv")


def factorial(rng, tasks=2, seeds=2, size=1.0):
    rows = [
        {"A": a, "B": b, "task": t, "seed": s, "y": size * a + rng.normal()}
        for a in range(3)
        for b in range(4)
        for t in range(tasks)
        for s in range(seeds)
    ]
    return pd.DataFrame(rows)


def test_order_and_sizes_are_those_of_r(positions):
    """Partial omega squared from R's type II F values; R's own stops at 0, ours does not."""
    r = json.loads((STATS / "r_positions_main.json").read_text())
    table = ranking(positions, "y", ["out", "inp"], ["data"])
    assert list(table["factor"]) == ["inp", "out"]
    assert table["next"].isna().tolist() == [False, True]
    for row in table.itertuples():
        known = r["type2"][row.factor]
        excess = known["Df"] * (known["F value"] - 1)
        assert row.omega2_p == pytest.approx(excess / (excess + r["n"]), rel=1e-10)
        published = r["effects_type2"]["omega2_partial"][row.factor]["Omega2_partial"]
        assert row.omega2_p == pytest.approx(published, rel=1e-10)
    first, last = table.iloc[0], table.iloc[1]
    assert first["next"] == "out"
    assert first["difference"] == first["omega2_p"] - last["omega2_p"]
    assert 0 < first["low"] < first["difference"] < first["high"] < 1
    assert first["rank_one"] == 1
    assert last[["difference", "low", "high"]].isna().all()


def by_nested_models(y, blocks):
    """Type II F of the last two blocks by residual sums of squares of least squares fits."""

    def rss(*kept):
        X = np.hstack([np.ones((len(y), 1)), *kept])
        fit = X @ np.linalg.lstsq(X, y, rcond=None)[0]
        return np.sum((y - fit) ** 2), fit, len(y) - np.linalg.matrix_rank(X)

    *others, a, b = blocks
    whole, fit, df = rss(*blocks)
    F = []
    for without in ([*others, b], [*others, a]):
        part, _, df_part = rss(*without)
        F.append(((part - whole) / (df_part - df)) / (whole / df))
    return np.array(F), fit, df


def test_interval_is_the_basic_bootstrap_by_the_book():
    """Every bootstrap sample refitted, the correction written on the ncp scale."""
    data = factorial(np.random.default_rng(0), size=0.4).drop(index=[3, 17])
    blocks = [pd.get_dummies(data[name]).to_numpy(float) for name in ("task", "seed", "A", "B")]
    y, n, df1, draws = data["y"].to_numpy(), len(data), np.array([2, 3]), 200
    F, fit, df2 = by_nested_models(y, blocks)
    rng = np.random.default_rng(7)
    noise = rng.choice((y - fit) * (n / df2) ** 0.5, size=(n, draws))
    again = np.array([by_nested_models(fit + e, blocks)[0] for e in noise.T])
    # 1 + ncp / n = 1 / (1 - omega squared): a basic bootstrap on the logarithm is a ratio.
    estimate, drawn = 1 + df1 * (F - 1) / n, 1 + df1 * (again - 1) / n
    corrected = 1 - 1 / (estimate * (1 + df1 * F / n) / drawn)
    sizes = dict(zip("AB", 1 - 1 / estimate, strict=True))
    table = ranking(data, "y", ["A", "B"], ["task", "seed"], draws=draws, seed=7, confidence=0.9)
    first, second = table["factor"]
    sign = 1 if first == "A" else -1
    row = table.iloc[0]
    assert row["difference"] == pytest.approx(sizes[first] - sizes[second], rel=1e-9)
    assert row[["low", "high"]].tolist() == pytest.approx(
        np.quantile(sign * (corrected[:, 0] - corrected[:, 1]), [0.05, 0.95]), rel=1e-9
    )
    share = np.mean(corrected[:, 0] > corrected[:, 1])
    assert table.set_index("factor").loc["A", "rank_one"] == pytest.approx(share)


def test_of_no_effect_nothing_is_claimed():
    data = factorial(np.random.default_rng(12), size=0.0)
    data["C"] = np.tile(["u", "v", "w", "x"], 12)
    data["C"] = data["C"].sample(frac=1, random_state=0).to_numpy()
    table = ranking(data, "y", ["A", "B", "C"], "task")
    assert (table["omega2_p"].diff().dropna() <= 0).all()
    assert table["omega2_p"].min() < 0
    assert table["rank_one"].sum() == pytest.approx(1)
    assert table["rank_one"].between(0.02, 0.9).all()
    assert (table["low"].iloc[:2] < 0).all()


def test_scale_offset_order_and_seed_do_not_decide(positions):
    table = ranking(positions, "y", ["inp", "out"], "data", draws=500)
    moved = positions.assign(y=1e3 * positions["y"] + 1e6)
    pd.testing.assert_frame_equal(
        ranking(moved, "y", ["inp", "out"], "data", draws=500), table, rtol=1e-6
    )
    pd.testing.assert_frame_equal(
        ranking(positions, "y", ["out", "inp"], "data", draws=500), table, rtol=1e-9
    )
    other = ranking(positions, "y", ["inp", "out"], "data", draws=500, seed=1)
    assert other["low"][0] != table["low"][0]
    assert other["low"][0] == pytest.approx(table["low"][0], abs=0.03)


def test_what_cannot_be_estimated_comes_last():
    data = factorial(np.random.default_rng(2)).assign(C=lambda table: "c" + table["A"].astype(str))
    table = ranking(data, "y", ["A", "B", "C"], "task")
    assert table[["omega2_p", "rank_one"]].iloc[1:].isna().all(axis=None)
    assert table["factor"].iloc[0] == "B"
    assert table["low"].isna().all()


def test_no_interval_without_an_error_variance():
    data = factorial(np.random.default_rng(3), tasks=1, seeds=1)
    exact = ranking(data.assign(y=data["A"] + 2.0 * data["B"]), "y", ["A", "B"])
    data["B"] = data["A"].astype(str) + data["B"].astype(str)
    for table in (exact, ranking(data, "y", ["A", "B"])):
        assert len(table) == 2
        assert table[["omega2_p", "rank_one", "low", "high"]].isna().all(axis=None)


def test_errors():
    data = factorial(np.random.default_rng(4))
    with pytest.raises(UserError, match=r"factors: \['A'\]; a ranking needs at least 2"):
        ranking(data, "y", ["A"])
    with pytest.raises(UserError, match="no column 'D'"):
        ranking(data, "y", ["A", "D"])
    with pytest.raises(UserError, match="no column 'Task'"):
        leave_one_out(data, "y", ["A", "B"], "Task")


def test_leave_one_out_is_the_analysis_of_the_rest(positions):
    factors = ["inp", "out"]
    table = leave_one_out(positions, "y", factors, "data", ["seed"])
    assert table.columns.tolist() == ["left_out", "factor", "omega2_p", "p", "rank"]
    assert table["left_out"].tolist() == ["A", "A", "B", "B", "C", "C"]
    for left_out, rows in table.groupby("left_out"):
        rest = positions[positions["data"] != left_out]
        expected = anova(rest, "y", factors, block=["data", "seed"]).set_index("source")
        rows = rows.set_index("factor")
        assert rows["p"].tolist() == pytest.approx(expected.loc[factors, "p"].tolist(), rel=1e-8)
        assert rows["omega2_p"].tolist() == pytest.approx(
            expected.loc[factors, "omega2_p"].tolist(), rel=1e-9
        )
        assert rows.loc[rows["omega2_p"].idxmax(), "rank"] == 1


def test_leave_one_out_of_few_tasks():
    data = factorial(np.random.default_rng(5), tasks=1)
    none = leave_one_out(data, "y", ["A", "B"], "task", ["seed"])
    assert none.columns.tolist() == ["left_out", "factor", "omega2_p", "p", "rank"]
    assert none.empty
    # Of two tasks one is left, and the seeds of the other no longer vary.
    extra = data.assign(task=1, seed=0)
    extra = extra[extra["A"] == 0]
    table = leave_one_out(pd.concat([data, extra]), "y", ["A", "B"], "task", ["seed"])
    alone = anova(data, "y", ["A", "B"], block=["seed"])["p"]
    assert table[table["left_out"] == "1"]["p"].tolist() == pytest.approx(alone[1:3].tolist())
    assert table[table["left_out"] == "0"][["omega2_p", "p", "rank"]].isna().all(axis=None)
