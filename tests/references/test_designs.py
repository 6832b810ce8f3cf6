"""The statistics against R's answers to 41 designs: one row of CASES each, at 8 digits or more.

R has fewer in some: the limits of studentized ranges (qtukey stops at 1e-4 in q), p values below
1e-11 that are one less an integral, and lmerTest's Satterthwaite degrees of freedom where they
are not by exact information. Then the tolerance says so.
"""

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fitspace import stats
from fitspace.core.errors import UserError
from fitspace.stats import effects
from fitspace.stats.clusters import ClusterFit
from fitspace.stats.fits import wald
from fitspace.stats.given import given
from fitspace.stats.linear import Model
from fitspace.stats.trends import polynomials

DATA = Path(__file__).parents[1] / "data" / "stats" / "designs"


@cache
def case(name):
    """Table with factors as R had their levels, and R's answers."""
    answers = json.loads((DATA / f"{name}.json").read_text())
    table = pd.read_csv(DATA / f"{name}.csv", dtype=dict.fromkeys(answers["levels"], str))
    for column, levels in answers["levels"].items():
        if column in table:
            table[column] = pd.Categorical(table[column], levels)
    return table, answers


def hold(got, expected, digits=8, absolute=1e-13):
    """Equal to so many significant digits, or within ``absolute`` (integrals, differences)."""
    if expected is None or expected == "NaN":
        assert math.isnan(got)
        return
    assert got == pytest.approx(expected, rel=0.5 * 10.0**-digits, abs=absolute)


def holds(rows, expected, names, digits=8, **tolerances):
    """Rows of a table against rows of R's, by (our name, R's name) of the columns."""
    rows = rows.to_dict("records") if isinstance(rows, pd.DataFrame) else list(rows)
    expected = list(expected.values()) if isinstance(expected, dict) else list(expected)
    assert len(rows) == len(expected) > 0
    for got, theirs in zip(rows, expected, strict=True):
        for mine, column in names.items():
            hold(got[mine], theirs[column], *tolerances.get(mine, (digits,)))


def by_source(table):
    return table.set_index("source")


ANOVA = {"ss": "Sum Sq", "df": "Df", "F": "F value", "p": "Pr(>F)"}
MEANS = {"estimate": "emmean", "se": "SE", "df": "df", "low": "lower.CL", "high": "upper.CL"}
PAIRS = {"estimate": "estimate", "se": "SE", "df": "df", "t": "t.ratio", "p_adjusted": "p.value"}
LIMITS = {"low": "lower.CL", "high": "upper.CL"}
# R's ptukey is off by 3e-10 on few, fractional degrees of freedom (scipy's and a quadrature of
# ours agree to 1e-14 there). Ends of its studentized ranges have 6 digits.
TUKEY = {"p_adjusted": (8, 1e-9)}
QTUKEY = {"low": (4, 1e-4), "high": (4, 1e-4)}
# An end near 0 is a difference of larger numbers.
ENDS = {"low": (7, 1e-9), "high": (7, 1e-9)}


def terms(expected, *leave_out):
    left_out = {"(Intercept)", "Residuals", *leave_out}
    return {name: row for name, row in expected.items() if name not in left_out}


def anovas_hold(table, formula, answers, robust=()):
    for type in (1, 2, 3):
        expected = terms(answers[f"type{type}"])
        holds(stats.anova(table, formula, type=type).iloc[:-1], expected, ANOVA)
        for hc in robust:
            found = answers.get(f"type{type}_{hc}", {})
            found = found.get("value", found)
            if found:
                got = stats.anova(table, formula, type=type, robust=hc).iloc[:-1]
                holds(got, terms(found), {"df": "Df", "F": "F", "p": "Pr(>F)"})


# --- kinds ------------------------------------------------------------------------------


def within(name, subject, factors, response):
    table, r = case(name)
    got = by_source(stats.within(table, response, subject, factors))
    univariate = terms(r["car_univariate"])
    assert list(got.index) == list(univariate)
    names = {"F": "F value", "num_df": "num Df", "den_df": "den Df", "p": "Pr(>F)", "df": "num Df"}
    holds(got, univariate, names)
    epsilon = r["epsilon_by_formula"]
    names = {
        "gg_eps": "GG_eps",
        "hf_eps": "HF_eps_Lecoutre_1991",
        "p_gg": "p_GG",
        "p_hf": "p_HF_Lecoutre",
    }
    holds(got.loc[list(epsilon)], epsilon, names)
    # What has one degree of freedom cannot be aspherical.
    alone = got[got["df"] == 1]
    assert (alone[["gg_eps", "hf_eps"]] == 1).all(axis=None)
    assert alone["p_gg"].equals(alone["p"])
    # statsmodels' own, which has no epsilon.
    theirs = pytest.importorskip("statsmodels.stats.anova").AnovaRM(
        table.astype(dict.fromkeys([subject, *factors], str)),
        response, subject, list(factors), aggregate_func="mean",
    ).fit().anova_table  # fmt: skip
    np.testing.assert_allclose(got["F"], theirs["F Value"], rtol=1e-9)
    multivariate(table, r, response, subject, factors)


def multivariate(table, r, response, subject, factors):
    """The strata of all rows, as aov has them."""
    error = f"Error({subject}/({'*'.join(factors)}))"
    got = stats.anova(table, f"{response} ~ {'*'.join(factors)} + {error}", type=1)
    strata_hold(got, r["aov_strata"])


def strata_hold(got, expected):
    checked = 0
    for stratum, rows in expected.items():
        name = stratum.removeprefix("Error: ").replace("Within", "within")
        ours = by_source(got[got["stratum"] == name])
        for source, row in rows.items():
            mine = ours.loc["residual" if source == "Residuals" else source]
            hold(mine["ss"], row["Sum Sq"])
            assert mine["df"] == row["Df"]
            if row.get("F value") is not None:
                hold(mine["F"], row["F value"])
                hold(mine["p"], row["Pr(>F)"])
                checked += 1
    assert checked


def mixed_holds(table, r, formula, random):
    kr = stats.mixed(table, formula, random, ddf="kenward-roger")
    exact = stats.mixed(table, formula, random, ddf="satterthwaite")
    variances = {row["grp"]: row["vcov"] for row in r["varcomp"]}
    assert variances.pop("Residual") == pytest.approx(kr.attrs["variances"]["residual"], rel=1e-10)
    for group, value in variances.items():
        hold(kr.attrs["variances"][group], value, 10)
    assert any("estimated as 0" in note for note in kr.attrs["notes"]) == r["singular"]
    names = {"num_df": "NumDF", "den_df": "DenDF", "F": "F value", "p": "Pr(>F)"}
    assert kr["source"].tolist() == list(r["anova_KR"])
    holds(kr, r["anova_KR"], names, 10)
    detail = {"num_df": "ndf", "den_df": "ddf", "F": "F_scaled", "p": "p_scaled"}
    holds(kr, r["KR_detail"], detail, 10)
    holds(exact, r["satterthwaite_exact_information"], names, 10)
    if "anova_KR_type2" in r:
        got = stats.mixed(table, formula, random, type=2)
        holds(got, r["anova_KR_type2"], names, 10)
    for key in [key for key in r if key.startswith("emmeans_KR ~")]:
        factors = key.removeprefix("emmeans_KR ~").split(" * ")
        one = factors[0] if len(factors) == 1 else factors
        holds(stats.means(kr, one), r[key], MEANS)
        holds(stats.means(exact, one), r[key.replace("KR", "satt")], MEANS, 7)
        for fit, ddf, digits in ((kr, "KR", 8), (exact, "satt", 7)):
            pairs_hold(fit, one, r, lambda a, k=key, d=ddf: f"pairs_{d}_{a} {k.split(' ', 1)[1]}",
                       digits)  # fmt: skip


def pairs_hold(fit, factor, r, key_of, digits=8, by=None, **model):
    checked = 0
    for adjust in ("none", "tukey", "holm"):
        if (expected := r.get(key_of(adjust))) is None:
            continue
        got = stats.pairs(fit, factor, adjust=adjust, by=by, **model)
        prefix = factor if isinstance(factor, str) else ""
        ours = [name.replace(prefix, "") for name in got["contrast"]]
        assert ours == [row["contrast"].replace(prefix, "") for row in expected]
        holds(got, expected, PAIRS, digits, **(TUKEY if adjust == "tukey" else {}))
        if "lower.CL" in expected[0]:
            holds(got, expected, LIMITS, **(QTUKEY if adjust == "tukey" else ENDS))
        checked += 1
    assert checked


def mixed(name, formula, random):
    table, r = case(name)
    mixed_holds(table, r, formula, random)


def fixed_tasks(name):
    table, r = case(name)
    formula = "y ~ task * arm + task:seed"
    anovas_hold(table, formula, r, ("hc0", "hc2", "hc3"))
    found = by_source(stats.anova(table, formula))
    ratio = r["arm_against_task_arm"]
    ms = found["ss"] / found["df"]
    hold(ms["arm"] / ms["task:arm"], ratio["F value"])
    holds(stats.means(table, "arm", formula), r["emmeans ~arm"], MEANS)
    fit = stats.anova(table, formula)
    pairs_hold(fit, "arm", r, lambda adjust: f"pairs_{adjust} ~arm")
    inside = stats.means(fit, "arm", by="task")
    holds(inside, r["emmeans ~arm|task"], MEANS)
    assert inside["task"].tolist() == [row["task"] for row in r["emmeans ~arm|task"]]
    pairs_hold(fit, "arm", r, lambda adjust: f"pairs_{adjust} ~arm|task", by="task")


def dunnett(name, response, factor, control, block=None):
    table, r = case(name)
    model = {"response": response, "factor": factor, "control": control, "block": block}
    exact = r["exact"]
    got = stats.dunnett(table, **model)
    assert got["contrast"].tolist() == [row["contrast"] for row in r["emmeans_none"]]
    one = {"estimate": "estimate", "se": "SE", "df": "df", "t": "t.ratio", "p": "p.value"}
    holds(got, r["emmeans_none"], one)
    for side, alternative in (("two_sided", "two-sided"), ("greater", "greater"), ("less", "less")):
        got = stats.dunnett(table, **model, alternative=alternative)
        for mine, theirs in zip(got["p_adjusted"], exact[f"p_{side}"], strict=True):
            hold(mine, theirs, 8)
        lower = {"two_sided": "lower", "greater": "one_sided_lower"}.get(side)
        upper = {"two_sided": "upper", "less": "one_sided_upper"}.get(side)
        for column, key, end in (("low", lower, -math.inf), ("high", upper, math.inf)):
            expected = exact[key] if key else [end] * len(got)
            np.testing.assert_allclose(got[column], expected, rtol=1e-9)
    alone = stats.means(table, factor, response=response, factors=[factor], block=block)
    holds(alone, r[f"emmeans ~{factor}"], MEANS)


def games_howell(name, response, factor):
    table, r = case(name)
    got = stats.games_howell(table, response, factor)
    assert got.equals(stats.pairs(table, factor, response=response, adjust="games-howell"))
    flipped = got.assign(estimate=-got["estimate"], t=-got["t"], low=-got["high"], high=-got["low"])
    names = {
        "estimate": "estimate",
        "se": "SE",
        "df": "df",
        "t": "t",
        "p": "p_welch_t",
        "p_adjusted": "p_games_howell",
    }
    holds(flipped, r["games_howell"], names, **TUKEY)
    holds(flipped, r["games_howell"], LIMITS, 4)
    groups = [(row["group1"], row["group2"]) for row in r["games_howell"]]
    assert got["contrast"].tolist() == [f"{a} - {b}" for a, b in groups]
    welch = stats.welch(table, response, [factor]).iloc[0]
    for column, value in r["welch"].items():
        hold(welch[column], value)


def welch_james(name, formula):
    table, r = case(name)
    got = stats.anova(table, formula, robust="welch-james").iloc[:-1]
    names = {"F": "F_WJ", "df": "df1", "den_df": "df2", "p": "p"}
    holds(got, r["welch_james_by_formula"], names)
    anovas_hold(table, formula, r, ("hc0", "hc1", "hc2", "hc3", "hc4"))


def clustered(name):
    table, r = case(name)
    formula = "y ~ arm + steps"
    for kind in ("cr2", "cr3"):
        got = by_source(stats.anova(table, formula, robust=kind, cluster="task"))
        names = {"F": "Fstat", "df": "df_num", "den_df": "df_denom", "p": "p_val"}
        expected = r[f"Wald_HTZ_{kind.upper()}"]
        holds(got.loc[list(expected)], expected, names)
        one = r[f"coef_test_{kind.upper()}"]["steps"]
        hold(got.loc["steps", "F"], one["tstat"] ** 2)
        hold(got.loc["steps", "den_df"], one["df_Satt"])
    # The covariances themselves, by Wald's F on n - p degrees of freedom.
    for kind in ("cr0", "cr1", "cr2", "cr3"):
        clusters = clusters_of(table, formula, kind)
        model = clusters.model
        for term in model.terms:
            rows = model.added(term, 2)[0].T @ clusters.basis
            F = wald(rows, clusters.coefficients, clusters.covariance)
            expected = r["wald_df2_n_minus_p"][f"clubSandwich_{kind.upper()}"][term[0]]
            hold(F, expected["F"])
    holds(stats.means(table, "arm", formula), r["emmeans_CR2 ~arm"], {"estimate": "emmean"})


def clusters_of(table, formula, kind):
    data = given(table, formula).data(table, ["task"])
    model = Model(data, given(table, formula).terms)
    return ClusterFit(model, data.codes["task"], kind)


def rank_deficient(name):
    table, r = case(name)
    with pytest.raises(UserError, match=f"rank {r['rank']} for {r['columns']}"):
        stats.anova(table, "y ~ inp * out", type=3)
    got = by_source(stats.anova(table, "y ~ inp * out"))
    joint = r["type3_singular_ok"]["value"]["inp:out"]
    hold(got.loc["inp:out", "F"], joint["F values"])
    # car refuses these covariances; ours are of the estimable hypotheses, and not singular.
    assert np.isfinite(stats.anova(table, "y ~ inp * out", robust="hc3")["F"].iloc[:3]).all()
    for robust, key in ((None, "additive_type2"), ("hc3", "additive_type2_hc3")):
        found = stats.anova(table, "y ~ inp + out", robust=robust).iloc[:-1]
        names = ANOVA if robust is None else {"df": "Df", "F": "F", "p": "Pr(>F)"}
        holds(found, terms(r[key]), names)
    holds(stats.means(table, "inp", "y ~ inp + out"), r["additive_emmeans_inp"], MEANS)
    holds(stats.means(table, "inp", "y ~ inp * out"), r["emmeans_inp"]["value"], MEANS)
    cells = stats.means(table, ["inp", "out"], "y ~ inp * out")
    holds(cells, r["emmeans_cells"]["value"], MEANS)
    lack = stats.lack_of_fit(table, "y", ["inp", "out"]).iloc[0]
    hold(lack["F"], r["lack_of_fit_of_additive"]["F"])


def polynomial_holds(got, expected, limit=None):
    got = by_source(got)
    rows = got[~got.index.str.startswith("lack of fit")]
    coefficients = expected["coefficients"]
    one = {"estimate": "Estimate", "se": "Std. Error", "t": "t value"}
    holds(rows.iloc[: len(coefficients)], coefficients, one)
    names = {"ss": "Sum Sq", "num_df": "Df", "F": "F_full_model_error", "p": "p"}
    holds(rows.iloc[: len(expected["sequential_SS"])], expected["sequential_SS"], names)
    for degree, row in expected["lack_of_fit"].items():
        mine = got.loc[f"lack of fit: {['linear', 'quadratic'][int(degree[-1]) - 1]}"]
        for column, key in (("num_df", "df_lof"), ("ss", "SS_lof"), ("F", "F"), ("p", "p")):
            hold(mine[column], row[key])
    assert set(rows["den_df"]) == {expected["error"]["df"]}


def polynomial(name, response, factor, scores):
    table, r = case(name)
    for key, value in scores.items():
        polynomial_holds(stats.trend(table, response, factor, scores=value), r[key])


def trend(name, response, factor, by, block):
    table, r = case(name)
    main = [*r["main"]["type1"]][:-2]  # in R's order, the factor and the residuals last
    polynomial_holds(stats.trend(table, response, factor, block=main, scores="log2"), r["main"])
    expected = next(value for key, value in r.items() if key.startswith("by_"))
    got = stats.trend(table, response, factor, scores="log2", block=block, by=by)
    slopes = got[got["source"] == "slope"]
    one = {"estimate": "s.trend", "se": "SE", "df": "df", "t": "t.ratio", "p": "p.value", **LIMITS}
    holds(slopes, expected["emtrends"], one)
    assert slopes["contrast"].tolist() == [row[by] for row in expected["emtrends"]]
    apart = got[got["source"] == "difference of slopes"]
    assert apart["contrast"].tolist() == [row["contrast"] for row in expected["emtrends_pairs"]]
    names = {"estimate": "estimate", "se": "SE", "t": "t.ratio", "p": "p.value"}
    holds(apart, expected["emtrends_pairs"], names)
    if "emtrends_pairs_tukey" in expected:
        holds(apart, expected["emtrends_pairs_tukey"], {"p_adjusted": "p.value"}, **TUKEY)
    got = by_source(got)
    for key in ("sequential_trend_by_group", "sequential_trend_main"):
        for source, row in expected[key].items():
            if source == "f" and key == "sequential_trend_by_group":
                continue  # there without the degrees
            ours = source.replace("P1", "linear").replace("P2", "quadratic")
            ours = factor if ours == "f" else ours.replace(":f", f":{factor}")
            for column, theirs in (("ss", "Sum Sq"), ("num_df", "Df"), ("F", "F"), ("p", "p")):
                hold(got.loc[ours, column], row[theirs])
    lack = expected["lack_of_fit_of_lines"]
    for column, key in (("num_df", "df_lof"), ("ss", "SS_lof"), ("F", "F"), ("p", "p")):
        hold(got.loc["lack of fit: lines", column], lack[key])
    hold(got.loc["equal slopes", "p"], expected["slopes_equal"]["p.value"])
    polynomials_by_group(table, response, factor, by, block, expected)


def polynomials_by_group(table, response, factor, by, block, expected):
    """Trends of each group as contrasts of the cells' means."""
    levels = [str(level) for level in expected["levels_numeric"]]
    shapes = polynomials(np.array(expected["scores"]))
    formula = f"{response} ~ {block} + C({factor}) * {by}"
    groups = [row[by] for row in expected["poly_by_group"] if row["contrast"] == "linear"]
    asked = {
        f"{name} {group}": dict(zip([(level, group) for level in levels], shape, strict=True))
        for group in groups
        for name, shape in zip(("linear", "quadratic"), shapes, strict=False)
    }
    got = stats.contrasts(table, formula, [factor, by], asked, adjust="none")
    order = [f"{row['contrast']} {row[by]}" for row in expected["poly_by_group"]]
    got = got.set_index("contrast").loc[order]
    names = {"estimate": "estimate", "se": "SE", "df": "df", "t": "t.ratio", "p": "p.value"}
    holds(got, expected["poly_by_group"], names | LIMITS)


def surface(name):
    table, r = case(name)
    coded = table.assign(x1=(table["Time"] - 85) / 5, x2=(table["Temp"] - 175) / 5)
    got = stats.surface(coded, "Yield", ["x1", "x2"], "Block")
    rows = by_source(got)
    names = {"estimate": "Estimate", "se": "Std. Error", "t": "t value", "p": "Pr(>|t|)"}
    ours = ["x1", "x2", "x1:x2", "x1^2", "x2^2"]
    holds(rows.loc[ours], [r["coefficients"][name] for name in ours], names)
    table_ = {k.split("(")[0]: v for k, v in r["lof_table"].items()}
    kinds = ["first order", "interactions", "pure quadratic", "lack of fit"]
    names = {"ss": "Sum Sq", "num_df": "Df", "F": "F value", "p": "Pr(>F)"}
    holds(rows.loc[kinds], [table_[k] for k in ("FO", "TWI", "PQ", "Lack of fit")], names)
    for factor, value in r["stationary_coded"].items():
        hold(rows.loc[f"stationary point: {factor}", "estimate"], value)
    assert got.attrs["eigenvalues"] == pytest.approx(r["eigenvalues"], rel=1e-9)
    predicted = np.mean([row["fit"] for row in r["predicted_at_stationary"]])
    assert got.attrs["stationary_value"] == pytest.approx(predicted, rel=1e-10)
    assert got.attrs["kind"] == "maximum"
    raw = stats.surface(table, "Yield", ["Time", "Temp"], "Block").attrs["stationary"]
    assert raw == pytest.approx(r["stationary_original"], rel=1e-9)


def contrasts(name, formula, factor):
    table, r = case(name)
    factors = [factor] if isinstance(factor, str) else factor
    cells = [tuple(row[f] for f in factors) for row in r["grid"]]
    cells = cells if len(factors) > 1 else [cell[0] for cell in cells]
    asked = {k: dict(zip(cells, row, strict=True)) for k, row in r["coefficients"].items()}
    of_types(table, formula, r)
    holds(stats.means(table, factor, formula), r["grid"], MEANS)
    for adjust in ("none", "holm", "bonferroni", "sidak", "scheffe", "BH"):
        expected = r[f"contrast_{adjust}"]
        got = stats.contrasts(table, formula, factor, asked, adjust=adjust)
        assert got["contrast"].tolist() == [row["contrast"] for row in expected]
        holds(got, expected, PAIRS)
        if "lower.CL" in expected[0]:
            holds(got, expected, LIMITS)
        joint = got.attrs["joint"]
        for column, key in (("F", "F"), ("num_df", "df1"), ("den_df", "df2"), ("p", "p")):
            hold(joint[column], r["joint"][key])
    some = {k: asked[k] for k in r["joint_subset"]["contrasts"]}
    joint = stats.contrasts(table, formula, factor, some).attrs["joint"]
    hold(joint["F"], r["joint_subset"]["F"])
    hold(joint["p"], r["joint_subset"]["p"])
    single = stats.contrasts(table, formula, factor, asked, adjust="dunnett")
    if "exact_mvt" in r:
        exact = r["exact_mvt"]
        np.testing.assert_allclose(single["p_adjusted"], exact["p_two_sided"], rtol=1e-8)
        np.testing.assert_allclose(single["low"], exact["lower"], rtol=1e-9)
        for side in ("greater", "less"):
            got = stats.contrasts(table, formula, factor, asked, adjust="dunnett", alternative=side)
            np.testing.assert_allclose(got["p_adjusted"], exact[f"p_{side}"], rtol=1e-8)
    else:  # correlations without a product form: both are approximations
        np.testing.assert_allclose(single["p_adjusted"], r["genz_bretz"]["p"], atol=5e-5)
        np.testing.assert_allclose(single["low"], r["genz_bretz"]["lower"], atol=1e-4)


def of_types(table, formula, r):
    for type in (2, 3):
        holds(stats.anova(table, formula, type=type).iloc[:-1], terms(r[f"type{type}"]), ANOVA)


def split(name, formula, error, random, response="y"):
    table, r = case(name)
    if "aov_strata" in r:
        strata_hold(stats.anova(table, f"{formula} + Error({error})", type=1), r["aov_strata"])
    answers = r.get("mixed", r)
    if "anova_KR" in answers:
        mixed_holds(table, answers, formula, random)
    if "aov_strata" in r:
        fit = stats.mixed(table, formula, random)
        for key in [key for key in r if key.startswith("pairs_none ~")]:
            factors = key.removeprefix("pairs_none ~").split(" * ")
            factor = factors[0] if len(factors) == 1 else factors
            ends = key.removeprefix("pairs_none")
            pairs_hold(fit, factor, r, lambda adjust, e=ends: f"pairs_{adjust}{e}")
            holds(stats.means(fit, factor), r[f"emmeans{ends}"], MEANS)


def adjusted_crabs(name):
    table, r = case(name)
    rows = pd.DataFrame(r["table"])
    for response, of in rows.groupby("response", sort=False):
        got = by_source(stats.anova(table, f"{response} ~ sp * sex", type=3))
        np.testing.assert_allclose(got.loc[of["term"], "F"], of["F"], rtol=1e-9)
        np.testing.assert_allclose(got.loc[of["term"], "p"], of["p"], rtol=1e-8)
    families = {"over_responses": rows["term"], "over_terms": rows["response"], "over_all": None}
    for prefix, family in families.items():
        for method in ("holm", "hochberg", "hommel", "bonferroni", "BH", "BY"):
            got = stats.adjusted(rows["p"], method, family=family)
            np.testing.assert_allclose(got, rows[f"{prefix}_{method}"], rtol=1e-12)


def adjusted_families(name):
    table, r = case(name)
    for key, options in {
        "one_family": {},
        "within_family": {"family": table["family"]},
        "one_family_n_plus_5": {"n": int(table["p"].notna().sum()) + 5},
    }.items():
        for method, expected in r[key].items():
            got = stats.adjusted(table["p"], method, **options)
            expected = np.array([np.nan if value is None else value for value in expected])
            np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-300)


def effect_sizes(name, formula):
    table, r = case(name)
    for type in (2, 3):
        tests = stats.anova(table, formula, type=type)
        expected = r[f"effects_type{type}_exact"]
        got = stats.effect_sizes(tests)
        assert got["source"].tolist() == list(expected)
        names = ["F", "eta2", "eta2_partial", "omega2", "omega2_partial_by_F", "epsilon2_partial"]
        names = {name: name for name in names}
        holds(got, expected, names | {"omega2_partial": "omega2_partial_by_N"})
        for level in (90, 95):
            got = by_source(stats.effect_sizes(tests, confidence=level / 100))
            for source, row in expected.items():
                mine = got.loc[source]
                for columns, key in {
                    ("ncp_low", "ncp_high"): f"ncp_{level}",
                    ("eta2_low", "eta2_high"): f"eta2_partial_CI{level}_ncp_over_ncp_plus_df2",
                    ("omega2_low", "omega2_high"): f"eta2_partial_CI{level}_ncp_over_ncp_plus_N",
                }.items():
                    for column, value in zip(columns, row[key], strict=True):
                        hold(mine[column], value)
        for row in by_source(tests).loc[list(expected)].itertuples():
            rule = expected[row.Index]["omega2_partial_CI95_effectsize_rule"]
            for mine, theirs in zip((row.omega2_p_low, row.omega2_p_high), rule, strict=True):
                hold(mine, theirs)
    if name == "r_es_mtcars":
        expected = r["d_am1_minus_am0"]
        got = stats.cohens_d(table.assign(am=pd.Categorical(table["am"], ["1", "0"])), "mpg", "am")
        d_holds(got.iloc[0], expected, "d", "hedges_g", "hedges_g_CI95_exact")


def d_holds(got, expected, d, g, g_limits=None):
    hold(got["d"], expected[d])
    hold(got["g"], expected[g])
    hold(got["d_av"], expected["d_av"])
    limits = expected[f"{d}_CI95_exact"]
    assert [got["low"], got["high"]] == pytest.approx(limits, rel=1e-9)
    if g_limits:
        assert [got["g_low"], got["g_high"]] == pytest.approx(expected[g_limits], rel=1e-9)


def paired_sizes(name):
    table, r = case(name)
    long = table.reset_index().melt(["index", "group"], ["post.test.1", "pretest.1"], "time", "y")
    for key in ("all", *table["group"].unique()):
        part = long if key == "all" else long[long["group"] == key]
        got = stats.cohens_d(part, "y", "time", pair="index").iloc[0]
        sign = -1 if r[key]["mean_difference"] * got["d"] < 0 else 1
        flipped = got.copy()
        if sign < 0:
            flipped[["d", "g", "d_av", "d_rm"]] *= -1
            flipped["low"], flipped["high"] = -got["high"], -got["low"]
        d_holds(flipped, r[key], "d_z", "hedges_g_z")
        hold(flipped["d_rm"], r[key]["d_rm"])
    post = table[table["group"].isin(["DRTA", "Basal"])]
    post = post.assign(group=pd.Categorical(post["group"], ["DRTA", "Basal"]))
    got = stats.cohens_d(post, "post.test.1", "group").iloc[0]
    d_holds(got, r["DRTA_minus_Basal_post"], "d", "hedges_g", "hedges_g_CI95_exact")


def powers(name):
    table, r = case(name)
    for row, expected in zip(table.itertuples(), r["oneway"], strict=True):
        groups, size = int(row.groups), int(row.per_group)
        hold(stats.power_oneway(groups, size, row.f, row.alpha), expected["power"], 12)
        hold(stats.effect_oneway(groups, size, 0.8, row.alpha), expected["f_for_power_80"], 10)
        found = stats.size_oneway(groups, row.f, 0.8, row.alpha)
        hold(found, expected["per_group_for_power_80_real"], 10)
    for row in r["contrasts"].values():
        for alternative, key in (("two-sided", "power_two_sided_t"),
                                 ("greater", "power_one_sided_upper")):  # fmt: skip
            hold(stats.power_contrast(row["ncp"], row["df"], alternative=alternative), row[key], 10)
        hold(stats.power_contrast(row["ncp"], row["df"], 0.05 / 4), row["power_bonferroni_4"], 10)
    for row in r["strata"]:
        for design in ("random_tasks", "fixed_tasks_seed_blocks"):
            one = row[design]
            got = effects.power(one["lambda"], one["df1"], one["df2"])
            hold(got, one["power"], 10)
    for row in r["t_tests"]:
        hold(stats.power_t(row["d"], row["n"]), row["two_sample_strict_formula"], 10, 1e-11)
        hold(stats.power_t(row["d"], row["n"], paired=True), row["paired"], 10, 1e-11)
        got = stats.power_t(row["d"], row["n"], paired=True, alternative="greater")
        hold(got, row["paired_greater"], 10, 1e-11)


def noninferiority(name):
    table, r = case(name)
    model = {"response": "y", "factor": "arm", "control": r["control"], "margin": r["margin"]}
    model["block"] = ["block"]
    assert r["higher_is_better"]
    for adjust in ("none", "holm", "bonferroni"):
        got = stats.noninferiority(table, **model, adjust=adjust)
        expected = r[f"pooled_noninferiority_{adjust}"]
        assert got["contrast"].tolist() == [row["contrast"] for row in expected]
        holds(got, expected, PAIRS)
        holds(got, r[f"pooled_equivalence_{adjust}"], {"p_equivalent_adjusted": "p.value"})
        lower = stats.noninferiority(table, **model, adjust=adjust, higher_is_better=False)
        holds(
            lower, r[f"pooled_nonsuperiority_{adjust}"], {"t": "t.ratio", "p_adjusted": "p.value"}
        )
    got = stats.noninferiority(table, **model, adjust="none")
    names = {"low": "one_sided_95_lower", "high": "one_sided_95_upper", "p": "p_lower"}
    holds(got, r["pooled_by_formula"], names | {"p_equivalent": "p_TOST"})
    exact = stats.noninferiority(table, **model)
    for mine, theirs in zip(
        exact["p_adjusted"], r["pooled_noninferiority_mvt_exact_p"], strict=True
    ):
        hold(mine, theirs, 8, 1e-14)
    assert (exact["noninferior"] == (exact["low"] > -r["margin"])).all()


# --- what cannot be tested --------------------------------------------------------------


def absorbed_clusters(name):
    table, r = case(name)
    formula = "y ~ task + arm"
    got = stats.anova(table, formula, robust="cr2", cluster="task")
    expected = r["arm_test_CR2"]["value"]
    row = by_source(got).loc["arm"]
    for column, key in (("F", "Fstat"), ("den_df", "df_denom"), ("p", "p_val")):
        hold(row[column], expected[key])
    assert math.isnan(by_source(got).loc["task", "F"])
    assert "task has no robust test" in got.attrs["notes"][0]
    with pytest.raises(UserError, match="without one of them a coefficient"):
        stats.anova(table, formula, robust="cr3", cluster="task")


def constant_group(name):
    table, r = case(name)
    holds(stats.anova(table, "y ~ g").iloc[:-1], terms(r["ols"]), ANOVA)
    got = stats.anova(table, "y ~ g", robust="welch")
    assert got["F"].isna().all() and "without spread" in got.attrs["notes"][0]
    got = stats.games_howell(table, "y", "g")
    assert np.isfinite(got[["se", "df", "t", "p_adjusted"]]).all(axis=None)
    for mine, row in zip(got.itertuples(), r["games_howell_rstatix"]["value"], strict=True):
        assert abs(mine.t) == pytest.approx(row["statistic"], rel=1e-9)
        assert mine.df == pytest.approx(row["df"], rel=1e-9)
        assert round(mine.p_adjusted, 3) == row["p.adj"]
    assert "g k has runs without spread" in got.attrs["notes"]


def constant_response(name):
    table, _ = case(name)
    got = stats.anova(table, "y ~ g")
    assert got["ss"].tolist() == [0, 0] and got[["F", "p"]].isna().all(axis=None)
    assert "y has no variation: there is nothing to test" in got.attrs["notes"]
    assert stats.pairs(table, "g", "y ~ g")[["t", "p", "p_adjusted"]].isna().all(axis=None)
    assert stats.games_howell(table, "y", "g")["t"].isna().all()
    assert stats.dunnett(table, "y", "g", "k")["p_adjusted"].isna().all()


def exact_fit(name):
    table, _ = case(name)
    got = stats.anova(table, "y ~ a + b")
    assert got["F"].isna().all() and got["ss"].iloc[-1] == 0
    assert "the model fits the response exactly" in got.attrs["notes"][0]
    pairs = stats.pairs(table, "a", "y ~ a + b")
    assert pairs["estimate"].tolist() == pytest.approx([-3, -8, -5])
    assert pairs[["t", "p", "p_adjusted", "low"]].isna().all(axis=None)


def one_df(name):
    table, r = case(name)
    expected = terms(r["anova_type1"]["value"])
    holds(stats.anova(table, "y ~ g").iloc[:-1], expected, ANOVA)
    holds(stats.means(table, "g", "y ~ g"), r["emmeans"], MEANS)
    with pytest.raises(UserError, match=r"1 - leverage, which is 0 for row\(s\) 2, 3"):
        stats.anova(table, "y ~ g", robust="hc3")
    got = stats.anova(table, "y ~ g", robust="welch")
    assert got["F"].isna().all() and "has one run" in got.attrs["notes"][0]
    # R has no studentized range on one degree of freedom; the integral exists.
    tukey = stats.pairs(table, "g", "y ~ g")
    assert ((tukey["p"] < tukey["p_adjusted"]) & (tukey["p_adjusted"] < 3 * tukey["p"])).all()


def few_subjects(name):
    within(name, "subject", ["cond"], "y")


def missing_cell(name):
    table, r = case(name)
    got = stats.within(table, "y", "subject", ["cond"])
    expected = terms(r["complete_subjects_only"])
    names = {"F": "F value", "num_df": "num Df", "den_df": "den Df", "p": "Pr(>F)"}
    holds(got, expected, names)
    assert "s3: no value in some cell, set aside" in got.attrs["notes"][0]
    block = stats.anova(table, "y ~ subject + cond").iloc[:-1]
    holds(block, terms(r["subject_as_fixed_block_type2"]), ANOVA)
    mixed_holds(table, r["mixed"], "y ~ cond", ["subject"])


def saturated(name):
    table, r = case(name)
    got = stats.anova(table, "y ~ a * b")
    assert got["F"].isna().all()
    np.testing.assert_allclose(
        got["ss"].iloc[:3], [row["Sum Sq"] for row in terms(r["anova_type1"]["value"]).values()]
    )
    assert got.attrs["notes"] == [
        "no degrees of freedom are left for error, so nothing can be tested"
    ]
    holds(stats.means(table, "a", "y ~ a * b"), r["emmeans"]["value"], {"estimate": "emmean"})


CASES = {
    "r_rm_ergoStool": (within, "subject", ["type"], "effort"),
    "r_rm_md_12_1": (within, "id", ["angle", "noise"], "rt"),
    "r_rm_tasks_seeds": (within, "task", ["step", "guidance"], "y"),
    "r_mixed_lostrun_arm": (mixed, "y ~ arm", ["task", "task:arm"]),
    "r_mixed_lostrun_factorial": (mixed, "y ~ arm * step", ["task", "task:seed"]),
    "r_mixed_lostrun_twoway": (
        mixed, "y ~ step * guidance", ["task", "task:step", "task:guidance"]
    ),
    "r_mixed_singular": (mixed, "y ~ arm", ["task", "task:arm"]),
    "r_fixedtasks_balanced": (fixed_tasks,),
    "r_fixedtasks_lostrun": (fixed_tasks,),
    "r_dunnett_OrchardSprays": (dunnett, "decrease", "treatment", "A", ["rowpos", "colpos"]),
    "r_dunnett_block_lost": (dunnett, "y", "arm", "a0", "block"),
    "r_dunnett_recovery": (dunnett, "minutes", "blanket", "b0"),
    "r_gh_airquality": (games_howell, "Ozone", "Month"),
    "r_wj_womenStereotype": (welch_james, "y ~ condition * sex"),
    "r_cluster_tasks": (clustered,),
    "r_hc_rankdef": (rank_deficient,),
    "r_poly_nitrofen": (
        polynomial, "total", "conc",
        {"scores_conc": "linear", "scores_log2_conc_plus_40": np.log2([40, 120, 200, 275, 350])},
    ),
    "r_trend_CO2": (trend, "uptake", "conc", "Type", "Treatment"),
    "r_trend_steps_arm": (trend, "y", "steps", "arm", "block"),
    "r_rsm_ChemReact": (surface,),
    "r_contrasts_cabbages": (contrasts, "HeadWt ~ Cult * Date", ["Cult", "Date"]),
    "r_contrasts_morley": (contrasts, "Speed ~ Run + Expt", "Expt"),
    "r_split_Oats": (
        split, "yield ~ Variety * nitro", "Block/Variety", ["Block", "Block:Variety"]
    ),
    "r_split_arm": (split, "y ~ arm * step * guidance", "task/arm", ["task", "task:arm"]),
    "r_split_arm_lost": (split, "y ~ arm * step * guidance", "task/arm", ["task", "task:arm"]),
    "r_padj_crabs": (adjusted_crabs,),
    "r_padj_families": (adjusted_families,),
    "r_es_Adler": (effect_sizes, "rating ~ instruction * expectation"),
    "r_es_Baumann_paired": (paired_sizes,),
    "r_es_mtcars": (effect_sizes, "mpg ~ cyl * am"),
    "r_power_oneway": (powers,),
    "r_noninf_paired": (noninferiority,),
    "r_noninf_paired_lost": (noninferiority,),
    "r_neg_cluster_absorbed": (absorbed_clusters,),
    "r_neg_constant_group": (constant_group,),
    "r_neg_constant_response": (constant_response,),
    "r_neg_exactfit": (exact_fit,),
    "r_neg_one_df_error": (one_df,),
    "r_neg_rm_few_subjects": (few_subjects,),
    "r_neg_rm_missing_cell": (missing_cell,),
    "r_neg_saturated": (saturated,),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_r_is_held(name):
    check, *arguments = CASES[name]
    check(name, *arguments)
