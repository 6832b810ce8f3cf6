"""The analysis that a study gets, on made-up runs whose truth is known."""

import itertools

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from fitspace.stats import analyse, anova, lenth, power

LEGAL = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("b", "z"), ("c", "z")]
WHOLE = list(itertools.product("abc", "xyz"))


def made_up(cells, seeds=2, tasks=("t",), interaction=0.0, seed=3):
    """Runs of an adapter's cells, of full fine-tuning and of the untouched base."""
    draw = np.random.default_rng(seed)
    rows = []
    for task, replicate in itertools.product(tasks, range(seeds)):
        for one, two in cells:
            y = "abc".index(one) + interaction * (one == "a" and two == "x")
            rows.append({"point": f"adapter.{one}{two}", "arm": "adapter", "method": "adapter",
                         "input": one, "output": two, "score": 10 + y})  # fmt: skip
        for method, y in (("full", 12.0), ("none", 5.0)):
            rows.append({"point": method, "arm": method, "method": method, "score": y})
        for row in rows[-len(cells) - 2 :]:
            row |= {"task": task, "seed": str(replicate), "status": "ok"}
            row |= {"run": f"{row['point']}~{task}~s{replicate}"}
            row["score"] += 0.3 * replicate + draw.normal(0, 0.2)
    return pd.DataFrame(rows)


def of(runs, **options):
    return analyse(runs, ["input", "output"], ["score"], **options)


def inside(runs):
    return runs[runs["method"] == "adapter"].reset_index(drop=True)


def test_a_complete_factorial_is_analysed_by_type_iii_with_its_interactions():
    runs = made_up(WHOLE, seeds=3, interaction=2.0).drop(index=3)
    got = of(runs)
    assert got.interactions
    direct = anova(
        inside(runs), "score", ["input", "output"], interactions=True, block="seed", type=3
    )
    pd.testing.assert_frame_equal(got.anova.drop(columns="response"), direct, check_dtype=False)
    assert got.anova.set_index("source").loc["input:output", "p_holm"] < 0.001
    assert set(got.robustness["test"]) == {"type III", "permutation", "HC3", "Welch"}


def test_with_cells_that_cannot_be_built_it_is_additive_and_type_ii():
    runs = made_up(LEGAL)
    got = of(runs)
    assert not got.interactions
    direct = anova(inside(runs), "score", ["input", "output"], block="seed")
    pd.testing.assert_frame_equal(got.anova.drop(columns="response"), direct, check_dtype=False)
    assert any("type III and separate interactions are undefined" in note for note in got.notes)


def test_without_replicates_contrasts_stand_instead_of_p():
    runs = made_up(WHOLE, seeds=1)
    got = of(runs)
    assert got.anova["ss"].notna().all()
    assert got.anova[["F", "p", "p_holm"]].isna().all(axis=None)
    assert "permutation" not in set(got.robustness["test"])
    assert got.robustness["p"][got.robustness["test"] != "Welch"].isna().all()
    direct = lenth(inside(runs), "score", ["input", "output"])
    pd.testing.assert_frame_equal(got.contrasts.drop(columns="response"), direct)
    assert any("no error to test against" in note for note in got.notes)
    assert got.ranking.empty and got.power.empty
    assert got.marginal_means["low"].isna().all()
    assert not got.marginal_means["tied_with_best"].any()


def test_too_few_contrasts_for_lenth_are_a_note():
    runs = made_up([("a", "x"), ("b", "x"), ("c", "x")], seeds=1)
    got = of(runs)
    assert got.contrasts.empty
    assert got.marginal_means["mean"].notna().all()
    assert any("no half-normal plot" in note for note in got.notes)


def test_one_seed_on_several_tasks_has_an_error_to_test_against():
    got = of(made_up(WHOLE, seeds=1, tasks=("t", "u", "v")))
    assert got.contrasts.empty
    assert got.anova["p"].notna().sum() == 4


def test_a_claim_beyond_the_tasks_is_tested_against_its_interaction_with_them():
    runs = made_up(LEGAL, tasks=("t", "u", "v"))
    got = of(runs)
    assert got.general["error"].tolist() == ["input:task", "output:task"]
    assert got.general["df"].tolist() == [2, 2]
    # The means of a cell over seeds, one per task: what a paired test of two inputs sees.
    means = inside(runs).groupby(["task", "input"])["score"].mean().unstack()
    assert got.general["p"][0] < 0.05
    assert (means["c"] > means["a"]).all()
    assert set(got.left_out["left_out"]) == {"t", "u", "v"}
    assert of(made_up(LEGAL)).general.empty


def test_a_lost_run_leaves_no_exact_claim_beyond_the_tasks():
    got = of(made_up(LEGAL, tasks=("t", "u", "v")).drop(index=1))
    assert got.general.empty
    assert any("no claim beyond these tasks" in note for note in got.notes)


def test_points_are_held_against_full_within_the_margin():
    runs = made_up(LEGAL, seeds=6)
    table = of(runs, margins={"score": 1.5}).equivalence.set_index("point")
    assert list(table.index) == [f"adapter.{one}{two}" for one, two in LEGAL]
    scores = runs.set_index(["point", "seed"])["score"]
    for point, row in table.iterrows():
        pair = scipy.stats.ttest_rel(scores[point] + 1.5, scores["full"], alternative="greater")
        assert row["p_noninferior"] == pytest.approx(pair.pvalue, rel=1e-9)
    assert table["noninferior"].tolist() == [name[-2] != "a" for name in table.index]
    lower = of(runs, margins={"score": 0.5}, lower_is_better=["score"]).equivalence
    assert lower["noninferior"].all()
    assert of(runs).equivalence.empty


def test_a_margin_without_full_fine_tuning_is_a_note():
    runs = made_up(LEGAL)
    got = of(runs[runs["method"] != "full"], margins={"score": 1.0})
    assert got.equivalence.empty
    assert any("no finished run of method full" in note for note in got.notes)


def test_the_best_cell_and_what_is_not_separable_from_it():
    cells = of(made_up(LEGAL, seeds=6)).cells
    tied = {row.input + row.output for row in cells.itertuples() if row.tied_with_best}
    assert tied == {"cz"}
    lower = of(made_up(LEGAL, seeds=6), lower_is_better=["score"]).cells
    assert {row.input for row in lower.itertuples() if row.tied_with_best} == {"a"}


def test_cooks_distance_is_what_leaving_a_run_out_does():
    runs = inside(made_up(LEGAL))
    got = of(runs).residuals
    dummies = pd.get_dummies(runs[["input", "output", "seed"]], drop_first=True).astype(float)
    x = np.column_stack([np.ones(len(runs)), dummies])
    y = runs["score"].to_numpy()

    def fit(keep):
        return x @ np.linalg.lstsq(x[keep], y[keep], rcond=None)[0]

    every = np.ones(len(y), bool)
    rank = np.linalg.matrix_rank(x)
    variance = np.sum((y - fit(every)) ** 2) / (len(y) - rank)
    for row in range(len(y)):
        moved = fit(every) - fit(every & (np.arange(len(y)) != row))
        truth = moved @ moved / rank / variance
        assert got["cooks_distance"][row] == pytest.approx(truth, rel=1e-8)


def test_welch_is_free_of_what_the_blocks_explain():
    runs = made_up(LEGAL)
    shifted = runs.assign(score=runs["score"] + 100 * runs["seed"].astype(int))
    one, two = of(runs).robustness, of(shifted).robustness
    for table in (one, two):
        assert table["test"].eq("Welch").sum() == 2
    np.testing.assert_allclose(one["F"], two["F"], rtol=1e-6)


def test_power_grows_with_the_difference_from_the_level_of_the_test():
    got = of(made_up(LEGAL)).power
    assert got["factor"].unique().tolist() == ["input", "output"]
    for _, rows in got.groupby("factor"):
        assert rows["power"].is_monotonic_increasing
        assert 0.05 < rows["power"].iloc[0] < 0.1
    at_two = power(inside(made_up(LEGAL)), ["input", "output"], delta=2, sigma=1)["power"]
    np.testing.assert_allclose(got.loc[got["ratio"] == 2, "power"], at_two)
    rest = of(made_up(LEGAL)).anova.iloc[-1]
    sigma = (rest["ss"] / rest["df"]) ** 0.5
    np.testing.assert_allclose(got["delta"], got["ratio"] * sigma)
    for name, rows in got.groupby("factor"):
        [smallest] = rows["detectable"].unique()
        below, above = rows[rows["delta"] <= smallest], rows[rows["delta"] > smallest]
        assert not below["power"].gt(0.8).any(), name
        assert not above["power"].lt(0.8).any(), name
