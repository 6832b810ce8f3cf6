"""The analysis that a study gets, on made-up runs whose truth is known."""

import itertools

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from statsmodels.stats.anova import anova_lm

from fitspace.stats import (
    adjusted,
    analyse,
    anova,
    brown_forsythe,
    contrasts,
    deciding,
    general,
    lenth,
    levene,
    noninferiority,
    power,
    separated,
    surface,
    trend,
)
from fitspace.stats.effects import power as power_of_f
from fitspace.stats.effects import share_limits

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


def same_but_for_what_is_detectable(found, direct):
    """An effect is detected at the level that Holm's adjustment asks of the first factor."""
    for table in (found, direct):
        factors = table["source"].isin(["input", "output"])
        rest = table["df"].iloc[-1]
        alpha = 0.025 if table is found else 0.05
        for row in table[factors].itertuples():
            n = table["df"].sum() + 1
            assert power_of_f(row.mde / (1 - row.mde) * n, row.df, rest, alpha) == (
                pytest.approx(0.8, abs=1e-9)
            )
    # One effect size, with the limits of just that.
    rest = found["df"].iloc[-1]
    for row in found[found["F"].notna()].itertuples():
        low, high = share_limits(row.F, row.df, rest, found["df"].sum() + 1)
        assert (row.omega2_p_low, row.omega2_p_high) == (low, high)
    own = ["mde", "omega2_p_low", "omega2_p_high"]
    found = found.drop(columns=["response", *own])
    direct = direct.drop(columns=[*own, "eta2_p", "eta2_p_low", "eta2_p_high"])
    pd.testing.assert_frame_equal(found, direct, check_dtype=False)


def inside(runs):
    return runs[runs["method"] == "adapter"].reset_index(drop=True)


def test_a_complete_factorial_is_analysed_by_type_iii_with_its_interactions():
    runs = made_up(WHOLE, seeds=3, interaction=2.0).drop(index=3)
    got = of(runs)
    assert got.interactions
    direct = anova(
        inside(runs), "score", ["input", "output"], interactions=True, block="seed", type=3
    )
    same_but_for_what_is_detectable(got.anova, direct)
    assert got.anova.set_index("source").loc["input:output", "p_holm"] < 0.001
    assert set(got.robustness["test"]) == {"type III", "permutation", "own spreads", "deciding"}


def test_with_cells_that_cannot_be_built_it_is_additive_and_type_ii():
    runs = made_up(LEGAL)
    got = of(runs)
    assert not got.interactions
    direct = anova(inside(runs), "score", ["input", "output"], block="seed")
    same_but_for_what_is_detectable(got.anova, direct)
    assert any("type III and separate interactions are undefined" in note for note in got.notes)


def test_without_replicates_contrasts_stand_instead_of_p():
    runs = made_up(WHOLE, seeds=1)
    got = of(runs)
    assert got.anova["ss"].notna().all()
    assert got.anova[["F", "p", "p_holm"]].isna().all(axis=None)
    assert got.robustness.empty and got.pairs.empty
    direct = lenth(inside(runs), "score", ["input", "output"])
    pd.testing.assert_frame_equal(got.contrasts.drop(columns="response"), direct)
    assert any("no error to test against" in note for note in got.notes)
    assert got.ranking.empty and got.power.empty
    assert got.marginal_means["low"].isna().all()
    assert not got.marginal_means["tied_with_best"].any()


def test_what_holds_of_all_responses_is_noted_once():
    runs = made_up(WHOLE, seeds=1)
    got = analyse(runs.assign(other=-runs["score"]), ["input", "output"], ["score", "other"])
    assert got.notes == [
        "score, other: each cell has one run, so there is no error to test against and no p values",
        "score, other: no error to tell differences from: one run of each point",
    ]


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
    direct = general(inside(runs), "score", ["input", "output"], "task")
    assert got.general["source"].tolist() == ["input", "output"]
    np.testing.assert_allclose(got.general["p_gg"], direct["p_gg"])
    # The means of a cell over seeds, one per task: what a paired test of two inputs sees.
    means = inside(runs).groupby(["task", "input"])["score"].mean().unstack()
    assert got.general["p"][0] < 0.05
    assert (means["c"] > means["a"]).all()
    assert set(got.left_out["left_out"]) == {"t", "u", "v"}
    assert of(made_up(LEGAL)).general.empty


def test_a_lost_run_leaves_the_claim_beyond_the_tasks_and_a_lost_cell_takes_its_task():
    runs = made_up(LEGAL, tasks=("t", "u", "v"))
    got = of(runs.drop(index=1))
    assert got.general["den_df"].tolist() == of(runs).general["den_df"].tolist()
    whole = runs.index[(runs["point"] == "adapter.ax") & (runs["task"] == "u")]
    lost = of(runs.drop(index=whole))
    assert lost.general["den_df"].tolist() == [2, 2]
    assert any("task u: no value in some cell, set aside" in note for note in lost.notes)


def test_the_model_has_the_tasks_their_seeds_and_what_each_factor_does_in_each():
    got = of(made_up(LEGAL, tasks=("t", "u", "v")))
    assert got.blocks.terms == ["task", "task:seed", "task:input", "task:output"]
    assert got.anova["source"].tolist() == [*got.blocks.terms, "input", "output", "residual"]
    # 36 runs of 6 cells: the mean, 2 for tasks, 3 for their seeds, 3 times 2 and 2 for factors.
    assert got.anova["df"].tolist() == [2, 3, 4, 4, 2, 2, 18]
    decided = got.robustness[got.robustness["test"] == "deciding"]
    asked = ["task:input", "task:output", "input", "output", "lack of fit", "task:lack of fit"]
    assert decided["source"].tolist() == asked


def test_what_factors_do_together_in_single_tasks_is_tested_as_nested_models():
    runs = made_up(LEGAL, tasks=("t", "u"))
    turned = runs["input"].eq("a") & runs["output"].eq("y")
    runs["score"] += 2.0 * turned * runs["task"].map({"t": 1.0, "u": -1.0})  # 0 over both tasks
    got = of(runs)
    table = inside(runs).assign(cell=lambda t: t["input"] + t["output"])
    common = "score ~ C(task) * C(seed) + C(task) * C(input) + C(task) * C(output) + C(cell)"
    models = [smf.ols(f"{common}{more}", table).fit() for more in ("", " + C(task):C(cell)")]
    nested = anova_lm(*models).iloc[1]
    fit = got.lack_of_fit.set_index("source").loc["task:lack of fit"]
    assert fit["df"] == nested["df_diff"] and fit["F"] == pytest.approx(nested["F"])
    assert fit["p"] == pytest.approx(nested["Pr(>F)"])
    tests = got.robustness[got.robustness["test"] == "deciding"].set_index("source")
    assert tests.loc["task:lack of fit", "p"] < 0.05 < tests.loc["lack of fit", "p"]


def test_without_a_level_the_model_is_that_of_the_analysis():
    runs = made_up(LEGAL, tasks=("t", "u"))
    got = of(runs).without_level
    rest = of(runs[runs["input"] != "c"]).anova.set_index("source")
    for factor in ("input", "output"):
        row = got[(got["level"] == "c") & (got["factor"] == factor)].iloc[0]
        assert row["p"] == pytest.approx(rest.loc[factor, "p"])


def test_an_effect_that_differs_between_tasks_is_no_error():
    """Pooled with the error it would hide the effect that the tasks share."""
    runs = made_up(LEGAL, tasks=("t", "u"))
    turned = runs["input"].eq("a") & runs["task"].eq("u")
    runs["score"] += 6.0 * turned
    got = of(runs).anova.set_index("source")
    pooled = anova(inside(runs), "score", ["input", "output"], block=["task", "seed"])
    assert got.loc["task:input", "p"] < 1e-9
    assert got.loc["residual", "ss"] / got.loc["residual", "df"] < 0.1
    assert pooled["ss"].iloc[-1] / pooled["df"].iloc[-1] > 1


def test_where_runs_spread_unalike_an_effect_is_claimed_only_if_it_survives_that():
    rng = np.random.default_rng(0)
    runs = inside(made_up(LEGAL, seeds=2))
    wide = runs["input"].eq("c")
    claimed = {"p": 0, "p_deciding": 0}
    for _ in range(40):
        noise = rng.normal(size=len(runs)) * np.where(wide, 9.0, 0.3)
        formula = "score ~ seed + input + output"
        tests = deciding(runs.assign(score=noise), formula=formula).set_index("source")
        for test in claimed:
            claimed[test] += tests.loc["input", test] < 0.05
    assert claimed["p"] > 8 and claimed["p_deciding"] <= 4
    got = of(runs.assign(score=noise)).robustness.set_index(["test", "source"])["p"]
    assert got["deciding", "input"] == pytest.approx(tests.loc["input", "p_deciding"])


def test_the_deciding_row_is_that_of_the_test_with_the_larger_p():
    got = of(made_up(LEGAL)).robustness
    for _, rows in got.groupby("source"):
        rows = rows.set_index("test")
        others = rows.drop(index=["deciding", "permutation"], errors="ignore")
        if others["p"].notna().all() and len(others) > 1:
            largest = others.loc[others["p"].idxmax(), ["df2", "F", "p"]].astype(float)
            decided = rows.loc["deciding", ["df2", "F", "p"]].astype(float)
            np.testing.assert_allclose(decided, largest)


def test_levels_are_told_apart_only_where_their_factor_has_a_shown_effect():
    runs = made_up(LEGAL).assign(score=lambda t: np.sin(np.arange(len(t)) ** 2))
    got = of(runs)
    tests = got.robustness[got.robustness["test"] == "deciding"].set_index("source")["p_holm"]
    for factor, rows in got.marginal_means.groupby("factor"):
        assert rows["tied_with_best"].notna().all() == (tests[factor] < 0.05)


def test_the_primary_response_is_one_family_and_all_others_are_another():
    runs = made_up(LEGAL, seeds=3)
    rng = np.random.default_rng(5)
    for name in ("second", "third"):
        runs[name] = runs["score"] + rng.normal(0, 1.5, len(runs))
    got = analyse(runs, ["input", "output"], ["score", "second", "third"]).robustness
    got = got[got["test"].eq("deciding") & got["source"].isin(["input", "output"])]
    got = got.set_index(["response", "source"])
    for rows in (got.loc[["score"]], got.loc[["second", "third"]]):
        np.testing.assert_allclose(rows["p_holm"], adjusted(rows["p"], "holm"))


def test_points_are_held_against_the_untouched_base_and_full_fine_tuning():
    runs = made_up(LEGAL, seeds=6)
    got = of(runs).against
    points = [f"adapter.{one}{two}" for one, two in LEGAL]
    assert got[got["control"] == "none"]["level"].tolist() == [*points, "full"]
    assert got[got["control"] == "full"]["level"].tolist() == points
    direct = separated(runs, "point", control="none", formula="score ~ seed + point")
    ours = got[got["control"] == "none"]
    np.testing.assert_allclose(ours["p_deciding"], direct["p_deciding"])
    assert (ours["p_deciding"] < 0.05).all() and not ours["few"].any()
    # With two seeds hardly anything is known of how the runs of a point spread.
    assert of(made_up(LEGAL)).against["few"].all()
    assert of(runs[~runs["method"].isin(["full", "none"])]).against.empty


def test_differences_from_the_base_are_told_for_each_task():
    runs = made_up(LEGAL, tasks=("t", "u"))
    got = of(runs).by_task
    assert len(got) == 2 * 7 and set(got["task"]) == {"t", "u"}
    means = runs.groupby(["task", "point"])["score"].mean()
    for row in got.itertuples():
        truth = means[row.task, row.point] - means[row.task, "none"]
        assert row.estimate == pytest.approx(truth, abs=1e-9)
    assert of(made_up(LEGAL)).by_task.empty


def test_points_are_held_against_full_within_the_margin():
    runs = made_up(LEGAL, seeds=6)
    found = of(runs, margins={"score": 1.5})
    table = found.equivalence.set_index("point")
    assert list(table.index) == [f"adapter.{one}{two}" for one, two in LEGAL]
    options = {"margin": 1.5, "block": ["seed"]}
    claims = [
        noninferiority(runs, "score", "point", "full", base="none", **kind, **options)
        for kind in ({}, {"robust": "cr3", "adjust": "bonferroni"})
    ]
    both = np.maximum(*(claim["p_adjusted"] for claim in claims))
    np.testing.assert_allclose(table["p_noninferior"], both)
    assert table["noninferior"].tolist() == [name[-2] != "a" for name in table.index]
    assert found.assay["task"].tolist() == ["all"] and found.assay["beaten"].all()
    lower = of(runs, margins={"score": 0.5}, lower_is_better=["score"])
    # Where lower is better, full did not beat the base: nothing is as good as it.
    assert not lower.assay["beaten"].any() and not lower.equivalence["noninferior"].any()
    assert of(runs).equivalence.empty


def test_a_margin_may_be_a_share_of_what_full_gains():
    runs = made_up(LEGAL, seeds=6)
    found = of(runs, margins={"score": "25%"})
    assert found.equivalence["margin"].unique() == pytest.approx(0.25 * found.assay["gain"][0])
    without = of(runs[runs["method"] != "none"], margins={"score": "25%"})
    assert without.equivalence.empty
    assert any("of whose gain the margin is a share" in note for note in without.notes)


def test_full_fine_tuning_is_held_against_the_base_in_each_task():
    runs = made_up(LEGAL, seeds=4, tasks=("t", "u"))
    runs["score"] -= 7.0 * (runs["method"].eq("full") & runs["task"].eq("u"))
    assay = of(runs, margins={"score": 1.0}).assay.set_index("task")
    assert assay["beaten"].to_dict() == {"all": True, "t": True, "u": False}
    assert assay.loc["u", "gain"] == pytest.approx(0, abs=0.6)


def test_the_contrasts_that_a_study_declares_come_with_their_joint_test():
    runs = made_up(LEGAL, seeds=4)
    asked = {
        "c against a": {"input": {"c": 1, "a": -1}},
        "c against b": {"input": {"c": 1, "b": -1}},
        "one cell against another": {"input:output": {"c:z": 1, "b:z": -1}},
    }
    got = of(runs, contrasts=asked).questions
    assert got["contrast"].tolist() == [*asked, "jointly"]
    named = {name: levels["input"] for name, levels in list(asked.items())[:2]}
    formula = "score ~ seed + input + output"
    direct = contrasts(inside(runs), formula, "input", named, adjust="none")
    np.testing.assert_allclose(got["estimate"][:2], direct["estimate"])
    np.testing.assert_allclose(got["p"][:2], direct["p"])
    joint = direct.attrs["joint"]
    assert got["F"].iloc[3] == pytest.approx(joint["F"])
    cells = inside(runs).groupby(["input", "output"])["score"].mean()
    assert got["estimate"][2] == pytest.approx(cells["c", "z"] - cells["b", "z"])
    assert (got["p_deciding_holm"][:3] >= got["p_deciding"][:3]).all()
    unknown = of(runs, contrasts={"nothing": {"input": {"d": 1, "a": -1}}})
    assert unknown.questions.empty
    assert any("contrast 'nothing': no 'd'; there are a, b, c" in note for note in unknown.notes)


def test_a_factor_of_numbers_has_its_trend_on_the_scale_that_it_has_by_name():
    draw = np.random.default_rng(2)
    rows = list(itertools.product([2, 4, 8, 16], "xy", range(3)))
    runs = pd.DataFrame(rows, columns=["width", "output", "seed"])
    runs["score"] = np.log2(runs["width"]) + draw.normal(0, 0.1, len(runs))
    runs = runs.assign(status="ok", task="t")
    got = analyse(runs, ["width", "output"], ["score"]).trends
    direct = trend(runs, "score", "width", "log2", ["seed", "output"])
    assert got["factor"].eq("width").all()
    np.testing.assert_allclose(got["p"], direct["p"])
    assert got["p"].iloc[0] < 1e-9 < got["p"].iloc[1]
    linear = analyse(runs, ["width", "output"], ["score"], scores={"width": "linear"}).trends
    assert linear["p"].iloc[1] < 1e-6


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


def test_power_grows_with_the_difference_from_the_level_of_the_test():
    got = of(made_up(LEGAL)).power
    assert got["factor"].unique().tolist() == ["input", "output"]
    for _, rows in got.groupby("factor"):
        assert rows["power"].is_monotonic_increasing
        assert 0.025 < rows["power"].iloc[0] < 0.05  # at the level of Holm's first of two
    options = {"delta": 2, "sigma": 1, "family": 2}
    at_two = power(inside(made_up(LEGAL)), ["input", "output"], **options)["power"]
    np.testing.assert_allclose(got.loc[got["ratio"] == 2, "power"], at_two)
    rest = of(made_up(LEGAL)).anova.iloc[-1]
    sigma = (rest["ss"] / rest["df"]) ** 0.5
    np.testing.assert_allclose(got["delta"], got["ratio"] * sigma)
    for name, rows in got.groupby("factor"):
        [smallest] = rows["detectable"].unique()
        below, above = rows[rows["delta"] <= smallest], rows[rows["delta"] > smallest]
        assert not below["power"].gt(0.8).any(), name
        assert not above["power"].lt(0.8).any(), name


def test_two_factors_of_numbers_have_a_surface_and_its_stationary_point():
    draw = np.random.default_rng(4)
    rows = list(itertools.product([2, 4, 8], [1e-4, 2e-4, 4e-4], range(3)))
    runs = pd.DataFrame(rows, columns=["width", "train.lr", "seed"])
    off = (np.log2(runs["width"]) - 2) ** 2 + np.log2(runs["train.lr"] / 2e-4) ** 2
    runs["score"] = 5 - off + draw.normal(0, 0.05, len(runs))
    runs = runs.assign(status="ok", task="t")
    got = analyse(runs, ["width", "train.lr"], ["score"]).surfaces
    direct = surface(runs, "score", ["width", "train.lr"], ["seed"])
    np.testing.assert_allclose(got["estimate"], direct["estimate"])
    at = got.dropna(subset="at").set_index("source")["at"]
    assert at["stationary point: width"] == pytest.approx(4, rel=0.05)
    assert at["stationary point: train.lr"] == pytest.approx(2e-4, rel=0.05)
    assert set(got["kind"]) == {"maximum"} and set(got["of"]) == {"width and train.lr"}
    assert analyse(runs, ["width"], ["score"]).surfaces.empty


def test_a_baseline_beyond_the_scale_is_noted_and_left_out():
    runs = made_up(LEGAL, seeds=3)
    runs.loc[runs["method"] == "none", "score"] = 0.0
    got = of(runs, transform={"score": "log"})
    assert set(got.against["control"]) == {"full"} and len(got.anova)
    assert any("3 value(s) of baselines are beyond the log scale" in note for note in got.notes)


def test_the_primary_response_is_the_first_declared_also_where_it_cannot_be_analysed():
    runs = made_up(LEGAL, seeds=3).assign(other=lambda t: t["score"] + 1, first=float("nan"))
    got = analyse(runs, ["input", "output"], ["first", "score", "other"]).robustness
    got = got[got["test"].eq("deciding") & got["source"].isin(["input", "output"])]
    np.testing.assert_allclose(got["p_holm"], adjusted(got["p"], "holm"))


def test_spreads_that_differ_by_rounding_alone_have_an_F_of_zero():
    """As of residuals that mirror each other: which digits are left depends on the machine."""
    first = np.array([0.1, 0.27, 0.71, 1.3])
    table = pd.DataFrame({"y": [*first, *(0.3 - first)], "arm": list("aaaabbbb")})
    for test in (levene, brown_forsythe):
        (row,) = test(table, "y", "arm").itertuples()
        assert (row.F, row.p) == (0, 1)
