"""The statistics against R (car, emmeans, effectsize) and the NIST certified values."""

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.special
import scipy.stats
from printed import printed

from fitspace.core.errors import UserError
from fitspace.stats import (
    anova,
    anova_of_file,
    brown_forsythe,
    lack_of_fit,
    levene,
    means,
    pairs,
    welch,
)
from fitspace.stats.effects import ncp, power

DATA = Path(__file__).parents[1] / "data" / "stats"
FORMULAS = {
    "PlantGrowth": "weight ~ group",
    "ToothGrowth": "len ~ supp * dose",
    "warpbreaks": "breaks ~ wool * tension",
    "npk": "yield ~ block + (N + P + K)^2",
    "positions_main": "y ~ data + inp + out",
    "positions_empty_cells": "y ~ data + inp*out",
}
EMPTY = "positions_empty_cells"
FULL = [name for name in FORMULAS if name != EMPTY]
NIST = Path(scipy.stats.__file__).parent / "tests" / "data" / "nist_anova"


@cache
def case(name):
    table = pd.read_csv(DATA / f"r_{name}.csv", dtype=str)
    return table, json.loads((DATA / f"r_{name}.json").read_text())


def digits(got, truth):
    """Correct significant digits (log relative error), at most 15."""
    if got == truth:
        return 15.0
    error = abs(got - truth) / (abs(truth) or 1.0)
    return 0.0 if math.isnan(error) else min(15.0, -math.log10(error))


def value(row, *names):
    return next(row[name] for name in names if name in row)


def terms(expected):
    return {k: v for k, v in expected.items() if k not in ("(Intercept)", "Residuals")}


@pytest.mark.parametrize("type", [1, 2, 3])
@pytest.mark.parametrize("name", FORMULAS)
def test_anova_holds_r_tables(name, type):
    table, r = case(name)
    if name == EMPTY and type == 3:
        with pytest.raises(UserError, match="rank 18 for 30"):
            anova(table, formula=FORMULAS[name], type=3)
        return
    got = anova(table, formula=FORMULAS[name], type=type).set_index("source")
    expected = r[f"type{type}"]
    assert list(got.index) == [*terms(expected), "residual"]
    assert digits(got.loc["residual", "ss"], expected["Residuals"]["Sum Sq"]) > 11
    assert got.loc["residual", "df"] == expected["Residuals"]["Df"]
    for source, row in terms(expected).items():
        assert got.loc[source, "df"] == row["Df"]
        assert digits(got.loc[source, "ss"], row["Sum Sq"]) > 10
        assert digits(got.loc[source, "F"], value(row, "F value", "F values")) > 10
        assert digits(got.loc[source, "p"], row["Pr(>F)"]) > 10


@pytest.mark.parametrize("robust", ["hc0", "hc1", "hc2", "hc3", "hc4"])
@pytest.mark.parametrize("type", [2, 3])
@pytest.mark.parametrize("name", FULL)
def test_robust_tests_hold_car(name, type, robust):
    table, r = case(name)
    got = anova(table, formula=FORMULAS[name], type=type, robust=robust).set_index("source")
    for source, row in terms(r[f"type{type}_{robust}"]).items():
        assert got.loc[source, "df"] == row["Df"]
        assert digits(got.loc[source, "F"], row["F"]) > 9
        assert digits(got.loc[source, "p"], row["Pr(>F)"]) > 9
    assert got[["ss", "eta2_p", "omega2_p"]].isna().all(axis=None)


def test_robust_test_with_empty_cells_holds_the_sandwich():
    """car refuses these columns; here the Wald test is written out on the unaliased ones."""
    table, _ = case(EMPTY)
    dummies = pd.get_dummies(table[["data", "inp", "out"]], drop_first=True).astype(float)
    cells = pd.get_dummies(table["inp"] + table["out"]).astype(float)
    x = np.column_stack([np.ones(len(table)), dummies])
    lower = x.shape[1]
    for column in cells.T.to_numpy():
        longer = np.column_stack([x, column])
        if np.linalg.matrix_rank(longer) > x.shape[1]:
            x = longer
    y = table["y"].astype(float).to_numpy()
    bread = np.linalg.inv(x.T @ x)
    beta = bread @ x.T @ y
    h = np.einsum("ij,jk,ik->i", x, bread, x)
    meat = x.T @ (((y - x @ beta) / (1 - h)) ** 2 * x.T).T
    cov = (bread @ meat @ bread)[lower:, lower:]
    wald = beta[lower:] @ np.linalg.solve(cov, beta[lower:]) / 6
    got = anova(table, formula=FORMULAS[EMPTY], robust="hc3").set_index("source")
    assert got.loc["inp:out", "df"] == x.shape[1] - lower == 6
    assert digits(got.loc["inp:out", "F"], wald) > 9


def noncentral_f(F, df1, df2, ncp):
    """Distribution function by its definition, a Poisson mixture of beta integrals."""
    j = np.arange(2000)
    beta = scipy.special.betainc(df1 / 2 + j, df2 / 2, df1 * F / (df1 * F + df2))
    return float(scipy.stats.poisson.pmf(j, ncp / 2) @ beta)


@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize("effect", ["eta2", "omega2"])
def test_effect_sizes_and_limits_hold_effectsize(name, effect):
    table, r = case(name)
    got = anova(table, formula=FORMULAS[name]).set_index("source")
    df2 = got.loc["residual", "df"]
    for source, row in r["effects_type2"][f"{effect}_partial"].items():
        size, df1 = got.loc[source, f"{effect}_p"], got.loc[source, "df"]
        title = effect.capitalize()
        assert digits(size, value(row, title, f"{title}_partial")) > 9
        F = size / df1 / ((1 - size) / df2)
        for side, tail in (("low", 0.975), ("high", 0.025)):
            limit = got.loc[source, f"{effect}_p_{side}"]
            # effectsize's optimizer stops at a tail off by up to 3e-5 (P:K of npk);
            # ours solves the definition.
            assert limit == pytest.approx(row[f"CI_{side}"], abs=2e-4 if size < 0.01 else 2e-6)
            if row[f"CI_{side}"] == 0:
                assert limit == 0
                continue
            assert noncentral_f(F, df1, df2, odds(limit) * df2) == pytest.approx(tail, abs=1e-12)
            # Nothing else differs: at the tail where it stopped, ours is its limit.
            theirs = odds(row[f"CI_{side}"]) * df2
            stopped = noncentral_f(F, df1, df2, theirs)
            assert abs(stopped - tail) < 5e-5
            assert digits(ncp(F, df1, df2, stopped), theirs) > 9


def odds(share):
    return share / (1 - share)


def test_power_holds_r():
    table, r = case("PlantGrowth")
    F = anova(table, formula=FORMULAS["PlantGrowth"])["F"][0]
    assert digits(power(2 * F, 2, 27), r["power"]) > 9


def keyed(name):
    return [key for key in case(name)[1] if key.startswith("emmeans ~")]


@pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name in FULL for key in keyed(name)], ids=str
)
def test_marginal_means_and_pairs_hold_emmeans(name, key):
    table, r = case(name)
    factor, _, by = key.removeprefix("emmeans ~").partition("|")
    model = {"factor": factor, "by": by or None, "formula": FORMULAS[name]}
    of_levels = means(table, **model).set_index([*([by] if by else []), factor])
    for row in r[key]:
        got = of_levels.loc[(row[by], row[factor]) if by else row[factor]]
        assert got["df"] == row["df"]
        for mine, theirs in (
            ("estimate", "emmean"), ("se", "SE"), ("low", "lower.CL"), ("high", "upper.CL"),
        ):  # fmt: skip
            assert digits(got[mine], row[theirs]) > 9
    for adjust in ("none", "holm", "tukey"):
        found = pairs(table, **model, adjust=adjust)
        for row in r[key.replace("emmeans", f"pairs_{adjust}")]:
            names = [text.removeprefix(factor) for text in row["contrast"].split(" - ")]
            match = found[[set(text.split(" - ")) == set(names) for text in found["contrast"]]]
            match = match[match[by] == row[by]] if by else match
            sign = 1 if match["contrast"].item() == " - ".join(names) else -1
            assert digits(sign * match["estimate"].item(), row["estimate"]) > 8
            assert digits(match["se"].item(), row["SE"]) > 9
            assert digits(sign * match["t"].item(), row["t.ratio"]) > 8
            # Both programs take Tukey's tail as 1 - integral: equal to 1e-12, not relatively.
            tolerance = 1e-11 if adjust == "tukey" else 1e-300
            expected = pytest.approx(row["p.value"], rel=1e-8, abs=tolerance)
            assert match["p_adjusted"].item() == expected


def test_means_that_the_design_cannot_tell_are_not_given():
    table, r = case(EMPTY)
    got = means(table, factor="inp", formula=FORMULAS[EMPTY]).set_index("inp")
    cells = means(table, factor="inp", by="out", formula=FORMULAS[EMPTY])
    cells = cells.set_index(["out", "inp"])
    expected = [(got.loc[row["inp"]], row) for row in r["emm_inp"]]
    expected += [(cells.loc[(row["out"], row["inp"])], row) for row in r["estimable_cells"]]
    assert len(expected) == 7 + 28
    for mine, row in expected:
        if row["emmean"] is None:
            assert math.isnan(mine["estimate"])
            assert math.isnan(mine["se"])
        else:
            assert digits(mine["estimate"], row["emmean"]) > 9
            assert digits(mine["se"], row["SE"]) > 9


def test_lack_of_fit_is_the_interaction_with_aliased_columns():
    table, r = case(EMPTY)
    got = lack_of_fit(table, "y", ["inp", "out"], "data").set_index("source")
    row = r["type2"]["inp:out"]
    assert got.loc["lack of fit", "df"] == row["Df"] == 6
    assert digits(got.loc["lack of fit", "F"], row["F value"]) > 10
    assert digits(got.loc["lack of fit", "p"], row["Pr(>F)"]) > 10
    assert digits(got.loc["residual", "ss"], r["type2"]["Residuals"]["Sum Sq"]) > 10
    whole = anova(table, formula=FORMULAS[EMPTY]).set_index("source").loc["inp:out"]
    assert got.loc["lack of fit", "mde"] == pytest.approx(whole["mde"], rel=1e-12)


@pytest.mark.parametrize(
    ("name", "response", "factors"),
    [
        ("PlantGrowth", "weight", ["group"]),
        ("ToothGrowth", "len", ["supp", "dose"]),
        ("warpbreaks", "breaks", ["wool", "tension"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tests_of_variances_hold_r(name, response, factors):
    table, r = case(name)
    checked = 0
    for key, test in (("levene_mean", levene), ("brown_forsythe", brown_forsythe)):
        if key in r:
            row = next(iter(r[key].values()))
            got = test(table, response, factors).iloc[0]
            assert got["df1"] == row["Df"]
            assert digits(got["F"], row["F value"]) > 10
            assert digits(got["p"], row["Pr(>F)"]) > 10
            checked += 1
    if "welch" in r:
        got = welch(table, response, factors).iloc[0]
        for column in ("F", "df1", "df2", "p"):
            assert digits(got[column], r["welch"][column]) > 10
        checked += 1
    assert checked >= 2


SPRAYS = """
10 7 20 14 14 12 10 23 17 20 14 13   11 17 21 11 16 14 17 17 19 21 7 13
0 1 7 2 3 1 2 1 3 0 1 4              3 5 12 6 4 3 5 5 5 5 2 4
3 5 3 5 3 6 1 1 3 2 6 4              11 9 15 22 15 16 13 10 26 26 24 13
"""


def test_insect_sprays_hold_published_results():
    """Beall (1942); aov and oneway.test as the documentation of R's datasets has them."""
    counts = [int(word) for word in SPRAYS.split()]
    table = pd.DataFrame(
        {"count": counts, "spray": [letter for letter in "ABCDEF" for _ in "x" * 12]}
    )
    got = anova(table, "count", ["spray"])
    assert got["ss"].tolist() == [printed("2668.8"), printed("1015.2")]
    assert got["F"][0] == printed("34.7")
    robust = anova(table, "count", ["spray"], robust="welch")
    assert (robust["F"][0], robust["df"][1]) == (printed("36.065"), printed("30.043"))


def nist(name):
    """Table with the response as printed, and the certified F."""
    lines = (NIST / f"{name}.dat").read_text().splitlines()
    rows = [line.split() for line in lines[60:] if line.strip()]
    between = next(line for line in lines if line.startswith("Between"))
    return pd.DataFrame(rows, columns=["treatment", "response"]), float(between.split()[-1])


@pytest.mark.parametrize("exact", [True, False], ids=["decimal", "float"])
@pytest.mark.parametrize("name", sorted(path.stem for path in NIST.glob("*.dat")))
def test_nist_certified_f(name, exact, tmp_path):
    table, certified = nist(name)
    table.to_csv(tmp_path / "nist.csv", index=False)
    got = anova_of_file(
        tmp_path / "nist.csv", response="response", factors=["treatment"], exact_decimals=exact
    )
    lre = digits(got["F"][0], certified)
    if exact:
        assert lre >= 13
    elif (path := DATA / f"nist_{name}.json").exists():
        ceiling = json.loads(path.read_text())["F_of_float64_rounded_data"]
        assert lre >= min(digits(ceiling, certified), 15) - 0.5
