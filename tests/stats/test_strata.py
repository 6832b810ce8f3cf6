"""Error strata, against R's aov and lmerTest, a published split plot, and their definition."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from printed import printed

from fitspace.core.errors import UserError
from fitspace.stats import anova, means
from fitspace.stats.formula import Formula, parse

DATA = Path(__file__).parents[1] / "data" / "stats"
FIELDS = {"df": "Df", "ss": "Sum Sq", "F": "F value", "p": "Pr(>F)"}


def case(name):
    table = pd.read_csv(DATA / f"r_{name}.csv", dtype=str)
    return table, json.loads((DATA / f"r_{name}.json").read_text())


def test_npk_holds_aov():
    table, r = case("npk")
    got = anova(table, formula="yield ~ N*P*K + Error(block)")
    assert got.columns[:2].tolist() == ["stratum", "source"]
    expected = {
        (stratum.removeprefix("Error: ").lower(), source.replace("Residuals", "residual")): row
        for stratum, rows in r["error_strata"].items()
        for source, row in rows.items()
    }
    assert list(zip(got["stratum"], got["source"], strict=True)) == list(expected)
    for (_, mine), row in zip(got.iterrows(), expected.values(), strict=True):
        for field, theirs in FIELDS.items():
            if row[theirs] is None:
                assert math.isnan(mine[field])
            else:
                assert mine[field] == pytest.approx(row[theirs], rel=1e-10)
    assert got.attrs["notes"] == []


def test_effect_sizes_are_those_of_the_stratums_f():
    """As effectsize has them of an F: (F - 1) df / (F df + df_error + 1)."""
    got = anova(case("npk")[0], formula="yield ~ N*P*K + Error(block)").iloc[2]
    F = 12.2587342136509
    assert (got["source"], got["stratum"]) == ("N", "within")
    assert got["eta2_p"] == pytest.approx(F / (F + 12), rel=1e-10)
    assert got["omega2_p"] == pytest.approx((F - 1) / (F + 12 + 1), rel=1e-10)
    noncentrality = got["mde"] / (1 - got["mde"]) * 14
    limit = scipy.stats.f.ppf(0.95, 1, 12)
    assert scipy.stats.ncf.sf(limit, 1, 12, noncentrality) == pytest.approx(0.8, abs=1e-9)


def test_machines_hold_kenward_and_roger():
    """In a balanced design their F and degrees of freedom are the stratum's.

    They come from lmer's iterations, and so agree to the eight digits of those.
    """
    table, r = case("Machines_mixed")
    row = r["anova_KR"]["Machine"]
    got = anova(table, formula="score ~ Machine + Error(Worker/Machine)")
    assert got["stratum"].tolist() == ["Worker", *["Worker:Machine"] * 2, "within"]
    test, error = got.iloc[1], got.iloc[2]
    assert (test["df"], error["df"]) == (2, 10)
    assert test["F"] == pytest.approx(row["F value"], rel=1e-8)
    assert test["p"] == pytest.approx(row["Pr(>F)"], rel=1e-7)
    pd.testing.assert_frame_equal(got, anova(table, "score", ["Machine"], random="Worker"))
    # Variances of lmer by the strata's expected mean squares: 3 workers' runs a cell.
    variances = {row["grp"]: row["vcov"] for row in r["varcomp"]}
    mean = (error["ss"] / 10 - got.iloc[3]["ss"] / 36) / 3
    assert mean == pytest.approx(variances["Worker:Machine"], rel=1e-5)


OATS = """
I    Victory 111 130 157 174 Golden 117 114 161 141 Marvel 105 140 118 156
II   Victory  61  91  97 100 Golden  70 108 126 149 Marvel  96 124 121 144
III  Victory  68  64 112  86 Golden  60 102  89  96 Marvel  89 129 132 124
IV   Victory  74  89  81 122 Golden  64 103 132 133 Marvel  70  89 104 117
V    Victory  62  90 100 116 Golden  80  82  94 126 Marvel  63  70 109  99
VI   Victory  53  74 118 113 Golden  89  82  86 104 Marvel  97  99 119 121
"""


def oats():
    """Yates's split plot (1935): yields of six blocks, three varieties, four rates of nitrogen."""
    rows = []
    for line in OATS.strip().splitlines():
        block, *words = line.split()
        for at in (0, 5, 10):
            variety, *yields = words[at : at + 5]
            rows += [(block, variety, str(rate), y) for rate, y in enumerate(yields)]
    return pd.DataFrame(rows, columns=["B", "V", "N", "Y"])


def test_split_plot_holds_the_published_table():
    """Venables and Ripley (2002), section 10.2."""
    got = anova(oats(), formula="Y ~ N*V + Error(B/V)").set_index(["stratum", "source"])
    published = {
        ("B", "residual"): ("15875", 5, None),
        ("B:V", "V"): ("1786", 2, "1.485"),
        ("B:V", "residual"): ("6013", 10, None),
        ("within", "N"): ("20020", 3, "37.686"),
        ("within", "N:V"): ("322", 6, "0.303"),
        ("within", "residual"): ("7969", 45, None),
    }
    assert list(got.index) == list(published)
    for key, (ss, df, F) in published.items():
        assert got.loc[key, "ss"] == printed(ss)
        assert got.loc[key, "df"] == df
        if F is not None:
            assert got.loc[key, "F"] == printed(F)


DYESTUFF = """
1545 1440 1440 1520 1580  1540 1555 1490 1560 1495  1595 1550 1605 1510 1560
1445 1440 1595 1465 1545  1595 1630 1515 1635 1625  1520 1455 1450 1480 1445
"""


def test_a_random_factor_alone_holds_the_published_variances():
    """Davies and Goldsmith (1972), table 6.1: 1764 between batches, 2451 within."""
    y = [int(word) for word in DYESTUFF.split()]
    table = pd.DataFrame({"y": y, "batch": [row // 5 for row in range(30)]})
    got = anova(table, formula="y ~ 1 + Error(batch)")
    assert got["source"].tolist() == ["residual"] * 2
    between, within = got["ss"] / got["df"]
    assert within == pytest.approx(2451.25)
    assert (between - within) / 5 == pytest.approx(1764.05)


def least_squares(x, y):
    fit = x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return float(np.sum((y - fit) ** 2)), int(np.linalg.matrix_rank(x))


def test_unbalanced_strata_hold_their_definition():
    """Three treatments in six blocks of two: between the blocks' means, and within blocks."""
    rng = np.random.default_rng(0)
    blocks = [(block, pair) for block, pair in enumerate(["ab", "bc", "ca", "ab", "bc", "ba"])]
    table = pd.DataFrame([(b, t) for b, pair in blocks for t in pair], columns=["block", "t"])
    table["y"] = rng.normal(size=12) + table["block"] + table["t"].map({"a": 0, "b": 1, "c": 3})
    got = anova(table, formula="y ~ t + Error(block)").set_index(["stratum", "source"])
    ones, treatment = np.ones((12, 1)), pd.get_dummies(table["t"]).to_numpy(float)
    inside = np.hstack([ones, pd.get_dummies(table["block"]).to_numpy(float)])
    (r0, k0), (r1, k1) = (
        least_squares(x, table["y"]) for x in (inside, np.hstack([inside, treatment]))
    )
    assert got.loc[("within", "t"), "F"] == pytest.approx((r0 - r1) / 2 / (r1 / (12 - k1)))
    means = table.groupby("block")["y"].mean().to_numpy() * 2**0.5
    x = np.array([[sum(t == level for t in pair) for level in "abc"] for _, pair in blocks])
    (r0, _), (r1, k1) = (least_squares(x, means) for x in (np.ones((6, 1)), x / 2**0.5))
    assert got.loc[("block", "t"), "F"] == pytest.approx((r0 - r1) / 2 / (r1 / (6 - k1)))
    note = anova(table, formula="y ~ t + Error(block)").attrs["notes"]
    assert "t has information in the strata block, within" in note[0]
    assert got["ss"].sum() == pytest.approx(np.sum((table["y"] - table["y"].mean()) ** 2))
    assert got["df"].sum() == 11


def test_types_differ_within_a_stratum():
    table = oats().drop(index=[5, 17, 40])
    one, two = (anova(table, formula="Y ~ N + V + Error(B)", type=t) for t in (1, 2))
    one, two = (t[t["stratum"] == "within"].set_index("source")["F"] for t in (one, two))
    fixed = [anova(table, formula="Y ~ B + N + V", type=t).set_index("source")["F"] for t in (1, 2)]
    for source in "NV":
        assert one[source] == pytest.approx(fixed[0][source])
        assert two[source] == pytest.approx(fixed[1][source])
    assert one["N"] != pytest.approx(two["N"], rel=1e-6)


def test_aliased_terms_and_strata_without_error():
    table = oats()
    odd = table.assign(M=table["N"].isin(["1", "3"]))
    aliased = anova(odd, formula="Y ~ N + M + Error(B)")
    assert "M has no degrees of freedom in any stratum" in aliased.attrs["notes"][0]
    empty = anova(table, formula="Y ~ B + N + Error(B)").set_index(["stratum", "source"])
    assert empty.loc[("B", "residual"), "df"] == 0
    assert math.isnan(empty.loc[("B", "B"), "p"])
    random = anova(table, formula="Y ~ 1 + Error(B)")
    assert random[["stratum", "source", "df"]].to_numpy().tolist() == [
        ["B", "residual", 5],
        ["within", "residual", 66],
    ]


def test_formula_with_strata():
    terms, error = [("A",), ("B",), ("A", "B")], [("w",), ("w", "B")]
    assert parse("y ~ A*B + Error(w/B)") == Formula("y", terms, error, {"w", "B"})
    assert parse("y ~ Error(w) + A") == Formula("y", [("A",)], [("w",)], {"w"})
    assert parse("y ~ C(A)") == Formula("y", [("A",)], [], {"A"})
    with pytest.raises(UserError, match="only in an anova"):
        means(oats(), "N", "Y ~ N + Error(B)")


ERRORS = {
    "nested": ({"formula": "Y ~ N:Error(B)"}, "Error(terms) once"),
    "twice": ({"formula": "Y ~ N + Error(B) + Error(V)"}, "Error(terms) once"),
    "subtracted": ({"formula": "Y ~ N - Error(B)"}, "Error(terms) once"),
    "crossed": ({"formula": "Y ~ Error(B)*N"}, "Error(terms) once"),
    "empty": ({"formula": "Y ~ N + Error()"}, "expected a column name"),
    "constant": ({"formula": "Y ~ N + Error(1)"}, "Error(terms) once"),
    "robust": ({"formula": "Y ~ N + Error(B)", "robust": "hc3"}, "robust: not with error"),
    "type 3": ({"formula": "Y ~ N + Error(B)", "type": 3}, "type 3: not with error strata"),
    "permuted": ({"formula": "Y ~ N + Error(B)", "permutations": 9}, "permutations: not with"),
    "random twice": ({"formula": "Y ~ N", "random": "B"}, "names its strata itself"),
    "random factor": ({"response": "Y", "factors": ["N"], "random": "N"}, "also a factor"),
    "no column": ({"formula": "Y ~ N + Error(Q)"}, "no column 'Q'"),
}


@pytest.mark.parametrize(("options", "says"), ERRORS.values(), ids=ERRORS)
def test_errors(options, says):
    with pytest.raises(UserError) as error:
        anova(oats(), **options)
    assert says in str(error.value)
