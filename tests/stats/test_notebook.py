"""What scripts rely on: the names of columns and rows, levels as they were, and plain refusals."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from scipy.special import stdtr
from scipy.stats import studentized_range

from fitspace import stats
from fitspace.cli import main
from fitspace.core.errors import UserError
from fitspace.stats.multiplicity import (
    Largest,
    _General,
    _Pairs,
    product_loadings,
    tukey_critical,
    tukey_p,
)


@pytest.fixture(scope="module")
def runs():
    """Three tasks, four ranks, two arms, two seeds; one run was lost."""
    rng = np.random.default_rng(5)
    index = pd.MultiIndex.from_product(
        [["night", "ink", "flat"], [4, 8, 16, 32], ["lora", "full"], [0, 1]],
        names=["task", "rank", "arm", "seed"],
    )
    table = index.to_frame(index=False)
    shift = table["task"].map({"night": 0.0, "ink": 2.0, "flat": 5.0})
    y = shift + 0.5 * np.log2(table["rank"]) + (table["arm"] == "full") + rng.normal(0, 0.4, 48)
    return table.assign(y=y).drop(index=7).reset_index(drop=True)


COMPARED = ["contrast", "estimate", "se", "df", "t", "p", "p_adjusted", "low", "high"]
TABLES = {
    "anova": (lambda t: stats.anova(t, "y ~ task*arm + task:seed"),
              ["source", "ss", "df", "F", "p", "p_holm"]),
    "within": (lambda t: stats.within(t, response="y", subject="task", within=["arm"]),
               ["source", "df", "num_df", "den_df", "F", "gg_eps", "hf_eps", "p", "p_gg", "p_hf"]),
    "mixed": (lambda t: stats.mixed(t, "y ~ arm", random=["task", "task:arm"]),
              ["source", "num_df", "den_df", "F", "p"]),
    "means": (lambda t: stats.means(t, "arm", "y ~ task + arm"),
              ["arm", "estimate", "se", "df", "low", "high"]),
    "pairs": (lambda t: stats.pairs(t, "task", "y ~ task + arm", adjust="holm"), COMPARED),
    "dunnett": (lambda t: stats.dunnett(t, response="y", factor="task", control="ink",
                                        block=["seed"], alternative="greater"), COMPARED),
    "games_howell": (lambda t: stats.games_howell(t, response="y", factor="task"), COMPARED),
    "contrasts": (lambda t: stats.contrasts(t, "y ~ seed + arm", "arm",
                                            {"gain": {"full": 1, "lora": -1}}), COMPARED),
    "trend": (lambda t: stats.trend(t, response="y", factor="rank", block=["task"]),
              ["source", "estimate", "se", "df", "t", "ss", "num_df", "den_df", "F", "p"]),
    "slopes": (lambda t: stats.trend(t, response="y", factor="rank", by="arm"),
               ["source", "contrast", "estimate", "se", "num_df", "F", "p", "p_adjusted"]),
    "noninferiority": (lambda t: stats.noninferiority(t, response="y", factor="arm",
                                                      control="full", margin=0.01,
                                                      block=["task:seed"]),
                       [*COMPARED, "margin", "noninferior", "equivalent"]),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_columns(runs, name):
    call, columns = TABLES[name]
    before = runs.copy()
    got = call(runs)
    assert set(columns) <= set(got.columns)
    assert got.columns[0] in ("source", "contrast", "arm")
    assert got["p" if "p" in got else "se"].notna().any()
    assert isinstance(got.attrs.get("notes", []), list)
    assert "<table" in got._repr_html_()
    pd.testing.assert_frame_equal(runs, before)


def test_levels_stay_what_they_were(runs):
    got = stats.means(runs, "rank", "y ~ C(rank) * arm", by="arm")
    assert got["rank"].tolist() == [4, 8, 16, 32] * 2 and got["rank"].dtype == np.int64
    assert got["arm"].tolist() == ["lora"] * 4 + ["full"] * 4
    assert stats.pairs(runs, "rank", response="y")["contrast"].tolist()[:3] == [
        "4 - 8", "4 - 16", "4 - 32",
    ]  # fmt: skip
    turned = runs.assign(task=pd.Categorical(runs["task"], ["flat", "ink", "night"]))
    assert stats.pairs(turned, "task", "y ~ task")["contrast"].tolist() == [
        "flat - ink", "flat - night", "ink - night",
    ]  # fmt: skip
    found = stats.dunnett(runs, "y", "rank", 8)
    assert found["contrast"].tolist() == ["4 - 8", "16 - 8", "32 - 8"]
    cells = stats.contrasts(runs, "y ~ C(rank) * arm", ["rank", "arm"], {
        "at 4": {(4, "full"): 1, (4, "lora"): -1}})  # fmt: skip
    direct = runs[runs["rank"] == 4].groupby("arm")["y"].mean()
    assert cells["estimate"][0] == pytest.approx(direct["full"] - direct["lora"])


def test_a_model_is_the_same_however_it_is_given(runs):
    formula = stats.anova(runs, "y ~ seed + task + arm")
    named = stats.anova(runs, response="y", factors=["task", "arm"], block=["seed"])
    columns = ["source", "ss", "df", "F", "p"]
    pd.testing.assert_frame_equal(formula[columns], named[columns])
    assert formula["df"].tolist() == [1, 2, 1, 42]
    of_table = stats.means(runs, "arm", "y ~ seed + task + arm")
    pd.testing.assert_frame_equal(stats.means(formula, "arm"), of_table)
    mixed = stats.mixed(runs, "y ~ arm", random=["task"])
    model = {"formula": "y ~ arm", "random": ["task"]}
    pd.testing.assert_frame_equal(stats.pairs(mixed, "arm"), stats.pairs(runs, "arm", **model))
    # A covariate is held at its mean; what the table of tests is a copy of has no fit.
    slope = stats.anova(runs, "y ~ rank + arm")
    assert slope["df"].tolist() == [1, 1, 44]
    assert "rank is a number" in slope.attrs["notes"][0]
    with pytest.raises(UserError, match="'rank' enters the model as a number: write C"):
        stats.means(slope, "rank")


def test_nested_factors_are_averaged_where_they_exist(runs):
    """Seeds named by their task are the same blocks as seeds named alike in every task."""
    named = runs.assign(seed=runs["task"] + runs["seed"].astype(str))
    formula = "y ~ task*arm + task:seed"
    for model in ({}, {"by": "task"}):
        one = stats.means(runs, "arm", formula, **model)
        pd.testing.assert_frame_equal(stats.means(named, "arm", formula, **model), one)
        assert one["estimate"].notna().all()
    seeds = stats.means(named, "seed", formula)
    alike = stats.means(runs, ["seed", "task"], formula)
    assert seeds["estimate"].tolist() == pytest.approx(alike["estimate"].tolist())
    pairs = stats.pairs(named, "arm", formula, control="lora")
    direct = stats.pairs(runs, "arm", formula, control="lora")
    pd.testing.assert_frame_equal(pairs, direct)
    assert direct["contrast"].tolist() == ["full - lora"]


def test_what_decides_is_the_larger_p(runs):
    formula = "y ~ task*arm + task:seed"
    got = stats.deciding(runs, formula)
    plain, own = (stats.anova(runs, formula, robust=robust) for robust in (None, "cr2"))
    assert got["source"].tolist() == plain["source"].tolist()[:-1]
    larger = np.maximum(plain["p"], own["p"]).iloc[:-1]
    assert got["p_deciding"].tolist() == pytest.approx(larger.tolist(), nan_ok=True)
    apart = stats.separated(runs, "task", formula=formula)
    assert (apart["p_deciding"] >= apart["p_adjusted"]).all()
    wide = stats.pairs(plain, "task")
    assert ((apart["low"] <= wide["low"]) & (apart["high"] >= wide["high"])).all()
    assert not apart["few"].any()
    # One level without a second run: nobody knows how it spreads.
    alone = pd.DataFrame({"y": [1.0, 1.2, 2.0, 2.3, 9.0], "arm": [*"aabbc"]})
    assert stats.separated(alone, "arm", formula="y ~ arm").isna()["p_deciding"].tolist() == [
        False, True, True,
    ]  # fmt: skip


def test_general_is_within_for_one_factor_and_keeps_tasks_that_lost_a_run(runs):
    whole = stats.general(runs, "y", "arm", "task")
    direct = stats.within(runs, "y", "task", "arm")
    pd.testing.assert_frame_equal(whole, direct)
    assert stats.general(runs.drop(index=3), "y", "arm", "task")["den_df"].tolist() == [2]
    # Each factor adjusted for the other, on the cells that exist: by hand, task by task.
    some = runs[~((runs["rank"] == 32) & (runs["arm"] == "full"))]
    got = stats.general(some, "y", ["arm", "rank"], "task").set_index("source")
    slopes = [
        stats.contrasts(part, "y ~ arm + C(rank)", "arm", {"d": {"full": 1, "lora": -1}})
        for _, part in some.groupby(["task", "rank", "arm"], as_index=False)["y"]
        .mean()
        .groupby("task")
    ]
    d = np.array([part["estimate"][0] for part in slopes])
    F = len(d) * d.mean() ** 2 / d.var(ddof=1)
    assert got.loc["arm", "F"] == pytest.approx(F)
    assert got.loc["rank", "df"] == 3
    few = runs[(runs["task"] == "ink") | (runs["rank"] != 8)]
    with pytest.raises(UserError, match="1 of 3 have a value in all 8 cells"):
        stats.general(few, "y", ["arm", "rank"], "task")


def test_a_singular_covariance_is_no_test():
    """Two levels without spread: their difference would have F = 1e30."""
    table = pd.DataFrame({"y": [1, 1, 1, 2, 2, 2, 3, 4, 5.5], "a": list("aaabbbccc")})
    for robust in ("hc0", "hc1", "hc2", "hc3", "hc4"):
        got = stats.anova(table, "y ~ a", robust=robust)
        assert got["F"].isna().all()
        assert f"a has no {robust} test: the covariance of its 2" in got.attrs["notes"][0]


def test_numbers_of_one_control_are_exact_and_the_rest_is_close():
    loads = np.array([0.3, 0.7, 0.5, 0.9])
    correlation = np.outer(loads, loads)
    np.fill_diagonal(correlation, 1)
    assert product_loadings(correlation) == pytest.approx(loads)
    for sides in (1, 2):
        exact, close = Largest.of(correlation, sides), _General(correlation, sides)
        for c in (-0.5, 0.5, 2.0, 4.0):
            for df in (1, 3, 20, 1e6):
                if c > 0 or sides == 1:
                    assert close.tail(c, df) == pytest.approx(exact.tail(c, df), abs=1e-12)
        assert exact.tail(exact.critical(7, 0.05), 7) == pytest.approx(0.05, rel=1e-10)
    signed = correlation.copy()
    signed[0, 1:] *= -1
    signed[1:, 0] *= -1
    assert Largest.of(signed, 2).tail(2.0, 9) == pytest.approx(
        Largest.of(correlation, 2).tail(2.0, 9)
    )
    signed[1, 2] = signed[2, 1] = 0.1
    assert product_loadings(signed) is None
    # Two independent pairs: the product of two probabilities, at one known error.
    apart = np.kron(np.eye(2), np.array([[1, 0.6], [0.6, 1]]))
    alone = Largest.of(apart[:2, :2], 2)
    for c in (1.0, 2.5):
        both = 1 - (1 - alone.tail(c, 1e9)) ** 2
        assert Largest.of(apart, 2).tail(c, 1e9) == pytest.approx(both, abs=1e-4)


@pytest.mark.parametrize("df", [1, 3.7, 36, 1000, 9e4, np.inf])
def test_all_pairs_are_the_studentized_range(df):
    """scipy's quadrature is good to 4e-11; two means have Student's t."""
    for t in (0.0, 0.7, 2.0, 3.5, 12.0):
        assert _Pairs(2).tail(t, df) == pytest.approx(2 * stdtr(df, -t), rel=1e-12, abs=1e-14)
        for k in (3, 8, 40):
            theirs = studentized_range.sf(t * 2**0.5, k, df)
            assert tukey_p(-t, k, df) == pytest.approx(theirs, abs=1e-10)
    assert tukey_p(tukey_critical(8, df, 0.05), 8, df) == pytest.approx(0.05, rel=1e-10)


def test_a_claim_needs_the_control_to_have_beaten_the_base():
    rng = np.random.default_rng(1)
    arms = np.repeat(["none", "full", "lora"], 8)
    gain = {"none": 0.0, "full": 1.0, "lora": 0.95}
    y = np.array([gain[a] for a in arms]) + rng.normal(0, 0.1, 24)
    table = pd.DataFrame({"y": y, "arm": arms})
    got = stats.noninferiority(table, "y", "arm", "full", margin="30%", base="none")
    assert got["contrast"].tolist() == ["lora - full"]
    assert got["noninferior"].tolist() == [True]
    assert got["margin"][0] == pytest.approx(0.3 * got.attrs["assay"]["estimate"])
    flat = table.assign(y=table["y"].where(table["arm"] != "none", table["y"] + 1.0))
    got = stats.noninferiority(flat, "y", "arm", "full", margin="30%", base="none")
    assert got["noninferior"].tolist() == [False]
    assert "full is not shown to differ from none for the better" in got.attrs["notes"][-1]
    own = stats.noninferiority(table, "y", "arm", "full", "30%", base="none", robust="cr3")
    assert own["estimate"].tolist() == pytest.approx([-0.05], abs=0.1) and own["df"][0] < 16
    turned = table.assign(y=-table["y"])
    lower = {"margin": "30%", "base": "none", "higher_is_better": False}
    got = stats.noninferiority(turned, "y", "arm", "full", **lower)
    assert got["noninferior"].tolist() == [True]


REFUSED = {
    "no such control": (lambda t: stats.dunnett(t, "y", "arm", "none"), "has no level 'none'"),
    "margin": (lambda t: stats.noninferiority(t, "y", "arm", "full", 0), "a finite number above 0"),
    "share": (lambda t: stats.noninferiority(t, "y", "arm", "full", "150%", base="x"), "the share"),
    "base": (lambda t: stats.noninferiority(t, "y", "arm", "full", 0.5, base="x"), "no level 'x'"),
    "alternative": (lambda t: stats.dunnett(t, "y", "arm", "full", alternative="more"), "'more'"),
    "adjust": (lambda t: stats.pairs(t, "arm", "y ~ arm", adjust="lsd"), "'lsd'; allowed: none"),
    "no factor": (lambda t: stats.means(t, "arms", "y ~ arm"), "no column 'arms'"),
    "a level": (lambda t: stats.contrasts(t, "y ~ arm", "arm", {"c": {"x": 1}}), "no level 'x'"),
    "random contained": (lambda t: stats.mixed(t, "y ~ task + arm", ["task"]), "is contained in"),
    "random and residual": (
        lambda t: stats.mixed(t, "y ~ arm", ["task:arm:rank:seed"]), "so it is the residual",
    ),
    "random twice": (lambda t: stats.mixed(t, "y ~ arm", ["task", "task"]), "is named twice"),
    "no random": (lambda t: stats.mixed(t, "y ~ arm", []), "stats.anova's"),
    "ddf": (lambda t: stats.mixed(t, "y ~ arm", ["task"], ddf="wald"), "kenward-roger, satt"),
    "subject": (lambda t: stats.within(t, "y", "task", ["task"]), "other than the subject"),
    "one subject": (
        lambda t: stats.within(t[t["task"] != "ink"].iloc[2:], "y", "task", ["arm", "rank"]),
        "1 of 2 have a value in all 8 cells",
    ),
    "scores of text": (lambda t: stats.trend(t, "y", "task"), "levels that are not numbers"),
    "log of nothing": (lambda t: stats.trend(t, "y", "seed", "log2"), "log2 needs levels above 0"),
    "too few scores": (lambda t: stats.trend(t, "y", "rank", [1, 2]), "4 finite numbers"),
    "one factor": (lambda t: stats.surface(t, "y", ["rank"]), "at least 2"),
    "a cluster alone": (lambda t: stats.anova(t, "y ~ arm", cluster="task"), "for robust cr0"),
    "welch-james beside blocks": (
        lambda t: stats.anova(t, "y ~ arm", robust="welch-james", block="task"), "knows no blocks",
    ),
    "p values": (lambda t: stats.adjusted([0.2, 1.2], "holm"), "numbers from 0 to 1"),
    "three levels": (lambda t: stats.cohens_d(t, "y", "task"), "3 levels"),
    "no sums of squares": (
        lambda t: stats.effect_sizes(stats.anova(t, "y ~ arm", robust="hc3")), "effect sizes are",
    ),
}  # fmt: skip


def test_what_would_take_hours_is_refused_at_once():
    n = 6000
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"s": np.arange(n) // 3, "a": np.arange(n) % 3, "y": rng.normal(size=n)})
    table = table.astype({"s": str, "a": str})
    refused = {
        "s has 2000 levels: with so many": lambda: stats.means(table, "s", "y ~ s"),
        "2,000 levels in all": lambda: stats.mixed(table, "y ~ a", ["s"]),
        "robust: 6000 clusters of 6000": lambda: stats.anova(
            table.assign(row=table.index.astype(str)), "y ~ a", cluster="row", robust="cr2"),
        "have 179,700 pairs": lambda: stats.pairs(table[:1800], "s", "y ~ s"),
        "all 600 cells; 400 have no run": lambda: stats.anova(
            table[:600:3].assign(a=np.resize([*"uvw"], 200)), "y ~ a*s", robust="welch-james"),
    }  # fmt: skip
    for why, call in refused.items():
        with pytest.raises(UserError, match=re.escape(why)):
            call()
    with pytest.raises(UserError, match="none has a value in all 198025 cells"):
        stats.within(table[:1333].assign(b=table["s"]), "y", "a", ["b", "s"])


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_what_is_allowed(runs, name):
    call, why = REFUSED[name]
    with pytest.raises(UserError, match=re.escape(why)):
        call(runs)


def test_a_balanced_mixed_model_is_the_exact_f_of_its_stratum():
    """Two arms in three tasks: 2 degrees of freedom, where Kenward and Roger's formula is 0 / 0."""
    rng = np.random.default_rng(2)
    names = ["task", "arm", "seed"]
    for arms, tasks in ((2, 3), (3, 4), (4, 3)):
        index = [range(tasks), [*"abcd"[:arms]], range(2)]
        table = pd.MultiIndex.from_product(index, names=names).to_frame(index=False)
        shift = table.groupby(["task", "arm"]).ngroup().map(dict(enumerate(rng.normal(0, 2, 99))))
        y = 5.0 * table["task"] + shift + rng.normal(0, 0.5, len(table))
        mixed = stats.mixed(table.assign(y=y), "y ~ arm", ["task", "task:arm"]).iloc[0]
        exact = stats.within(table.assign(y=y), "y", "task", "arm").iloc[0]
        assert mixed["den_df"] == pytest.approx(exact["den_df"], rel=1e-8)
        assert mixed["F"] == pytest.approx(exact["F"], rel=1e-8)
        assert mixed["p"] == pytest.approx(exact["p"], rel=1e-7)


def test_the_command_gives_means_and_pairs_of_any_model(runs, tmp_path, capsys):
    path = tmp_path / "runs.csv"
    runs.to_csv(path, index=False)
    command = ["anova", str(path), "--formula", "y ~ arm", "--json"]

    def shown(*more):
        assert main([*command, *more]) == 0
        return pd.DataFrame(json.loads(capsys.readouterr().out))

    random = ["task", "task:arm"]
    fit = stats.mixed(runs, "y ~ arm", random)
    expected = {
        ("--mixed", *random): fit,
        ("--mixed", *random, "--means", "arm"): stats.means(fit, "arm"),
        ("--pairs", "arm"): stats.pairs(runs, "arm", "y ~ arm"),
        ("--pairs", "arm", "--control", "full"): stats.pairs(
            runs, "arm", "y ~ arm", control="full"
        ),
    }
    for more, table in expected.items():
        pd.testing.assert_frame_equal(shown(*more), pd.DataFrame(table), rtol=1e-8)
    refused = {
        ("--control", "full"): "--control: needs --pairs",
        ("--means", "arm", "--pairs", "arm"): "give --means or --pairs, not both",
        ("--pairs", "task"): "'task' is no factor of the model",
        ("--pairs", "arm", "--control", "none"): "has no level 'none'",
    }
    for more, why in refused.items():
        assert main([*command, *more]) == 2
        assert why in capsys.readouterr().err


def test_thousands_of_rows_know_how_they_spread():
    """Degrees of freedom of their own would no longer matter."""
    n = 6000
    rng = np.random.default_rng(0)
    spread = np.array([1.0, 2.0, 3.0])[np.arange(n) % 3]
    table = pd.DataFrame({"a": np.arange(n) % 3, "y": rng.normal(size=n) * spread})
    table["a"] = table["a"].astype(str)
    many, few = (stats.deciding(rows, "y ~ a").iloc[0] for rows in (table, table[:900]))
    hc2 = stats.anova(table, "y ~ a", robust="hc2").iloc[0]
    assert many["p_own_spreads"] == pytest.approx(hc2["p"], rel=0.01)
    assert many["den_df"] == n - 4 and 500 < few["den_df"] < 896
    assert stats.separated(table, "a", formula="y ~ a")["df_own_spreads"].tolist() == [n - 3] * 3


@pytest.mark.parametrize("kind", ["cr2", "cr3"])
def test_rows_by_themselves_are_clusters_of_one(kind):
    rng = np.random.default_rng(4)
    table = pd.DataFrame({"a": list("uvwx") * 6, "b": list("pq") * 12, "y": rng.normal(size=24)})
    table = table.drop(index=[0, 5, 9]).assign(row=lambda t: t.index.astype(str))
    alone = stats.anova(table, "y ~ a + b", robust=kind)
    clustered = stats.anova(table, "y ~ a + b", robust=kind, cluster="row")
    pd.testing.assert_frame_equal(alone, clustered, rtol=1e-9)
    pairs = [stats.pairs(found, "a") for found in (alone, clustered)]
    pd.testing.assert_frame_equal(*pairs, rtol=1e-9)
