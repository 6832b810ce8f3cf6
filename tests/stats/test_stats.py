"""Models, designs with holes, errors and the whole analysis of a study's runs."""

import json
import math
from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitspace.cli import main
from fitspace.core.errors import UserError
from fitspace.stats import (
    analyse,
    anova,
    anova_of_file,
    cell_means,
    components,
    means,
    pairs,
    rows_for_json,
    welch,
)
from fitspace.stats.effects import detectable, holm, interval, power
from fitspace.stats.formula import parse
from fitspace.stats.schema import schema

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("formula", "terms"),
    {
        "y ~ a": "a",
        "y ~ block + A*B": "block A B A:B",
        "y ~ A:B + A": "A A:B",
        "y ~ B:A": "B:A",
        "y ~ A + B:A": "A A:B",
        "y ~ (A + B + C)^2": "A B C A:B A:C B:C",
        "y ~ (A + B + C)**3": "A B C A:B A:C B:C A:B:C",
        "y ~ (A + B)^9": "A B A:B",
        "y ~ A*B*C - A:B:C": "A B C A:B A:C B:C",
        "y ~ A*B - A": "B A:B",
        "y ~ A/B": "A A:B",
        "y ~ 1 + C(A) + A": "A",
        "y ~ (A + B):C": "A:C B:C",
        "y~`my factor`+x.2_b": "my factor|x.2_b",
        "`a y` ~ é": "é",
    }.items(),
)
def test_formula(formula, terms):
    got = parse(formula)
    assert got.response in ("y", "a y") and not got.error
    assert [":".join(term) for term in got.terms] == terms.split("|" if "|" in terms else " ")


@pytest.mark.parametrize(
    ("formula", "says"),
    {
        "y": "expected '~', found 'the end'",
        "y ~": "expected a column name, found 'the end'",
        "~ a": "expected a column name",
        "y ~ a +": "found 'the end'",
        "y ~ a b": "did not expect 'b'",
        "y ~ (a + b": "expected ')'",
        "y ~ 1": "has no terms",
        "y ~ a - 1": "removes the intercept",
        "y ~ 0 + a": "number other than 1",
        "y ~ log(a)": "calls log()",
        "y ~ a ^ b": "expected a number",
        "y ~ a ^ 0": "power below 1",
        "y ~ a & b": "cannot read '& b'",
    }.items(),
)
def test_formula_errors(formula, says):
    with pytest.raises(UserError) as error:
        parse(formula)
    assert says in str(error.value)
    assert repr(formula) in str(error.value)


def grid(effects, seeds=3, noise=0.1, tasks=("t",), seed=0):
    """Runs of the cells of ``effects``: {(input, output): mean}."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "run": f"{a}-{b}-{task}-{s}",
            "arm": "adapter",
            "status": "ok",
            "task": task,
            "seed": s,
            "input": a,
            "output": b,
            "score": mean + shift + noise * rng.normal(),
        }
        for (a, b), mean in effects.items()
        for shift, task in enumerate(tasks)
        for s in range(seeds)
    ]
    return pd.DataFrame(rows)


CHAIN = {("a", "x"): 1.0, ("a", "y"): 2.0, ("b", "y"): 2.5, ("b", "z"): 1.0, ("c", "z"): 3.0}
ISLAND = {("d", "w"): 9.0, ("d", "v"): 8.0}


def test_components_are_numbered_by_size():
    got = components(grid(ISLAND | CHAIN), ["input", "output"])
    assert got["component"].tolist() == [1, 1, 0, 0, 0, 0, 0]
    assert got["runs"].tolist() == [3] * 7


def test_components_of_one_factor_are_one():
    assert components(grid(ISLAND | CHAIN), ["input"])["component"].tolist() == [0] * 4


def test_differences_across_components_are_not_given():
    table = grid(ISLAND | CHAIN)
    both = {"response": "score", "factors": ["input", "output"]}
    got = pairs(table, "input", **both).set_index("contrast")["estimate"].notna()
    assert got["a - b"]
    assert got["b - c"]
    assert not got["d - a"]
    assert pairs(table, "output", **both).set_index("contrast")["estimate"].notna()["w - v"]
    assert means(table, "input", **both)["estimate"].isna().all()


def test_disconnected_degrees_of_freedom():
    """7 cells, 4 + 5 levels, 2 components: rank 7; each factor loses the link of the parts."""
    got = anova(grid(ISLAND | CHAIN), "score", ["input", "output"]).set_index("source")["df"]
    assert got.to_dict() == {"input": 2, "output": 3, "residual": 14}


@pytest.mark.parametrize("type", [1, 2])
def test_aliased_terms_have_no_degrees_of_freedom(type):
    table = pd.DataFrame({"a": list("xxyy") * 2, "b": list("uuvv") * 2, "y": range(8)})
    got = anova(table, "y", ["a", "b"], type=type).set_index("source")
    assert got.loc["b", "df"] == 0
    assert got.loc["b", "ss"] == 0
    assert math.isnan(got.loc["b", "F"])
    with pytest.raises(UserError, match="type 3 has no meaning"):
        anova(table, "y", ["a", "b"], type=3)


def test_unused_levels_and_empty_cells_of_the_table_do_not_count():
    table = grid({(a, b): 1.0 for a in "abc" for b in "xy"})
    table["input"] = table["input"].astype("category")
    full = anova(table[table["input"] != "c"], "score", ["input", "output"], type=3)
    plain = table[table["input"] != "c"].astype({"input": str})
    pd.testing.assert_frame_equal(full, anova(plain, "score", ["input", "output"], type=3))
    baseline = pd.concat([plain, pd.DataFrame([{"score": 5.0}])], ignore_index=True)
    got = anova(baseline, "score", ["input", "output"], type=3)
    pd.testing.assert_frame_equal(got, full)
    assert got.attrs["notes"][0].startswith("1 of 13 rows set aside")


def test_without_replicates_there_is_no_p_value():
    table = grid({(a, b): 1.0 for a in "abc" for b in "xy"}, seeds=1)
    got = anova(table, "score", ["input", "output"], interactions=True)
    assert got["df"].tolist() == [2, 1, 2, 0]
    assert got["F"].isna().all()
    assert got.iloc[-1]["ss"] == 0


def test_an_exact_fit_is_no_error_variance():
    table = grid({(a, b): ord(a) + 0.3 * ord(b) for a in "abc" for b in "xy"}, noise=0)
    got = anova(table, "score", ["input", "output"])
    assert got[["F", "p"]].isna().all(axis=None)
    assert "exactly: there is no error to test against" in got.attrs["notes"][0]
    assert rows_for_json(got)[0]["F"] is None
    constant = anova(table.assign(score=0.1), "score", ["input", "output"])
    assert constant["p"].isna().all()


def test_block_is_first_and_outside_holm():
    table = grid({(a, b): ord(a) for a in "abc" for b in "xy"}, tasks=("t", "u"))
    got = anova(table, "score", ["input", "output"], block=["task", "seed"])
    assert got["source"].tolist() == ["task", "seed", "input", "output", "residual"]
    assert got["p_holm"].isna().tolist() == [True, True, False, False, True]
    assert got["p_holm"].dropna().tolist() == holm(got["p"][2:4].tolist())
    formula = anova(table, formula="score ~ input + task + seed + output", block=["task", "seed"])
    pd.testing.assert_frame_equal(formula, got)


def test_holm():
    assert holm([0.01, 0.04, math.nan, 0.03])[:2] == pytest.approx([0.03, 0.06])
    assert math.isnan(holm([0.01, math.nan])[1])


@pytest.mark.parametrize(("df1", "df2", "n"), [(1, 12, 24), (6, 132, 144), (9, 3, 20)])
def test_detectable_effect_is_found_at_80_percent(df1, df2, n):
    effect = detectable(df1, df2, n)
    assert power(effect / (1 - effect) * n, df1, df2) == pytest.approx(0.8, abs=1e-9)
    rng = np.random.default_rng(0)
    z = rng.normal(size=(40_000, df1))
    z[:, 0] += (effect / (1 - effect) * n) ** 0.5
    numerator = (z**2).sum(axis=1) / df1
    F = numerator / (rng.chisquare(df2, 40_000) / df2)
    null = rng.f(df1, df2, 400_000)
    found = np.quantile(null, 0.95) < F
    assert found.mean() == pytest.approx(0.8, abs=0.012)


def test_intervals_of_extreme_effects():
    assert interval(0.0, 2, 10) == (0, 0)
    assert all(map(math.isnan, interval(1 - 1e-13, 2, 10)))
    assert all(map(math.isnan, interval(0.5, 2, 0)))
    low, high = interval(0.9999, 2, 10)
    assert 0.999 < low < 0.9999 < high < 1


def test_robust_needs_no_row_of_its_own():
    table = grid({("a", "x"): 1, ("a", "y"): 1, ("b", "x"): 2}).iloc[:7]
    assert anova(table, "score", ["input", "output"], robust="hc1")["F"][:2].notna().all()
    with pytest.raises(UserError, match=r"leverage, which is 0 for row\(s\) 6 "):
        anova(table, "score", ["input", "output"], robust="hc3")


def test_cell_means_correct_for_missing_runs():
    cells = {(a, b): float(i) for i, (a, b) in enumerate([("a", "x"), ("a", "y"), ("b", "x")])}
    table = grid(cells, noise=0, tasks=("t", "u"))
    got = cell_means(table.iloc[3:], "score", ["input", "output"], ["task", "seed"])
    assert got["runs"].tolist() == [3, 6, 6]
    assert got["mean"].tolist() == pytest.approx([1, 1.5, 2.5])
    assert got["adjusted"].tolist() == pytest.approx([0.5, 1.5, 2.5])
    assert got["replicate_sd"].tolist() == pytest.approx([0, 0, 0], abs=1e-12)


# Property tests: nothing may depend on the order of rows or the names of levels.


@st.composite
def designs(draw):
    cells = draw(
        st.lists(
            st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=6, max_size=24, unique=False
        )
    )
    y = draw(
        st.lists(
            st.floats(-100, 100, allow_nan=False).map(lambda v: round(v, 3)),
            min_size=len(cells),
            max_size=len(cells),
        )
    )
    table = pd.DataFrame(cells, columns=["a", "b"]).assign(y=y)
    return (
        table
        if table[["a", "b"]].nunique().min() > 1
        else table.assign(a=np.arange(len(table)) % 2, b=np.arange(len(table)) // 2 % 2)
    )


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(table=designs(), order=st.randoms(use_true_random=False), type=st.sampled_from([1, 2]))
def test_order_and_names_do_not_matter(table, order, type):
    rows = list(table.index)
    order.shuffle(rows)
    names = {level: f"level {9 - level}" for level in range(10)}
    moved = table.loc[rows].assign(a=lambda t: t["a"].map(names), b=lambda t: t["b"].map(names))
    one = anova(table, formula="y ~ C(a)*C(b)", type=type)
    two = anova(moved, formula="y ~ a*b", type=type)
    assert one["df"].tolist() == two["df"].tolist()
    scale = table["y"].var() * len(table) + 1e-300
    np.testing.assert_allclose(one["ss"] / scale, two["ss"] / scale, atol=1e-11)


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(
    y=st.lists(st.integers(-(10**6), 10**6), min_size=24, max_size=24),
    type=st.sampled_from([1, 2, 3]),
)
def test_balanced_sums_of_squares_add_up(y, type):
    table = pd.DataFrame(
        {"y": y, "a": [*"uvw"] * 8, "b": [*"xxxyyy"] * 4, "s": [0] * 12 + [1] * 12}
    )
    got = anova(table, "y", ["a", "b"], interactions=True, block="s", type=type)
    total = np.sum((np.array(y) - np.mean(y)) ** 2)
    assert got["ss"].sum() == pytest.approx(total, rel=1e-12, abs=1e-6)
    assert got["df"].sum() == 23


@pytest.mark.parametrize("shift", [0, 10**9, 10**15])
def test_exact_decimals_ignore_a_shift(shift):
    digits = [".431", ".512", ".499", ".618", ".703", ".655"]
    table = pd.DataFrame({"g": [*"aaabbb"], "y": [f"{shift}{text}" for text in digits]})
    got = anova(table, "y", ["g"], exact_decimals=True)
    base = anova(table.assign(y=digits), "y", ["g"])
    assert got["F"][0] == pytest.approx(base["F"][0], rel=1e-13)


# Reading files.

CSV = {
    "empty file": ("", {}, ["empty; needed"]),
    "header only": ("y,a\n", {}, ["no rows"]),
    "one row": ("y,a\n1,u\n", {}, ["1 row(s)"]),
    "missing column": ("y,aa\n1,u\n2,v\n", {}, ["no column 'a'", "did you mean 'aa'"]),
    "two missing": ("q,r\n1,u\n2,v\n", {}, ["no column 'y'", "no column 'a'"]),
    "text response": ("y,a\n1,u\nbad,v\n3,v\n", {}, ["'bad' in row 2", "finite numbers"]),
    "infinite response": ("y,a\n1,u\ninf,v\n3,v\n", {}, ["'inf' in row 2"]),
    "nan response": ("y,a\n1,u\nnan,v\n3,v\n", {}, ["'nan' in row 2"]),
    "infinite decimal": ("y,a\n1,u\nInfinity,v\n3,v\n", {"exact_decimals": True}, ["'Infinity'"]),
    "one level": ("y,a\n1,u\n2,u\n", {}, ["factor 'a' has 1 level(s) ['u']"]),
    "same run twice": ("run,y,a\nr,1,u\nr,2,v\ns,3,v\n", {}, ["run: 'r'"]),
    "all at once": ("run,y,a\nr,x,u\nr,2,u\n", {}, ["run: 'r'", "'x' in row 1", "1 level(s)"]),
    "bad type": ("y,a\n1,u\n2,v\n", {"type": 4}, ["type: 4; allowed: 1, 2, 3"]),
    "bad robust": ("y,a\n1,u\n2,v\n", {"robust": "hc9"}, ["robust: 'hc9'; allowed: hc0"]),
    "robust type 1": ("y,a\n1,u\n2,v\n", {"type": 1, "robust": "hc3"}, ["not of type 1"]),
    "column twice": ("y,a,y\n1,u,1\n2,v,1\n", {}, ["column(s) 'y' named twice"]),
    "cells without a column": ("y,a\n1,5,u\n2,5,v\n", {}, ["more cells than its header"]),
    "trailing commas": ("y,a,,\n1,u,,\nx,v,,\n", {}, ["'x' in row 2"]),
    "one number, two levels": (
        "y,a\n1,1\n2,1.0\n4,2\n",
        {},
        ["factor 'a': '1' and '1.0' are one number"],
    ),
    "decimal comma": ('y,a\n"1,5",u\n2,v\n3,v\n', {}, ["'1,5' in row 1"]),
    "underscore": ("y,a\n1_0,u\n2,v\n3,v\n", {}, ["'1_0' in row 1"]),
    "too large": ("y,a\n1e200,u\n2,v\n3,v\n", {}, ["have no squares in float64"]),
    "too small": ("y,a\n1e-200,u\n2e-200,v\n0,v\n", {}, ["have no squares in float64"]),
    "welch and a block": (
        "y,a,b\n1,u,x\n2,v,y\n",
        {"robust": "welch", "block": "b"},
        ["robust: 'welch' compares the levels of one factor"],
    ),
    "welch of two": (
        "y,a,b\n1,u,x\n2,v,y\n",
        {"robust": "welch", "factors": ["a", "b"]},
        ["robust: 'welch' compares the levels of one factor"],
    ),
    "response as factor": ("y,a\n1,u\n2,v\n", {"factors": ["y"]}, ["named once"]),
    "repeated factor": ("y,a\n1,u\n2,v\n", {"factors": ["a", "a"]}, ["more than once"]),
    "both": ("y,a\n1,u\n2,v\n", {"formula": "y ~ a"}, ["instead of"]),
}


@pytest.mark.parametrize(("text", "options", "says"), CSV.values(), ids=CSV)
def test_file_errors(tmp_path, text, options, says):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        anova_of_file(path, **{"response": "y", "factors": ["a"]} | options)
    assert all(part in str(error.value) for part in says)
    assert all(str(path) in problem for problem in error.value.problems)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        anova_of_file(tmp_path / "none.csv", formula="y ~ a")
    (tmp_path / "binary.csv").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x81" * 9)
    with pytest.raises(UserError, match="not a readable CSV"):
        anova_of_file(tmp_path / "binary.csv", formula="y ~ a")


@pytest.mark.parametrize("separator", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_separators_marks_and_odd_names(tmp_path, separator, encoding):
    rows = [("y", "a;b", "schön, c"), (1, "u:1", "x y"), (2, "ü", "z"), (4, "u:1", "z")]
    rows += [(6, "ü", "x y"), (3, "ü", "z"), (2, "u:1", "x y ")]
    quoted = [separator.join(f'"{cell}"' for cell in row) for row in rows]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(quoted), encoding=encoding)
    got = anova_of_file(path, formula="y ~ `a;b` * `schön, c`")
    assert got["source"].tolist() == ["a;b", "schön, c", "a;b:schön, c", "residual"]
    assert got["df"].tolist() == [1, 1, 1, 2]
    # By the means of the cells, of 2, 1, 1 and 2 runs.
    assert got["ss"][2] == pytest.approx((1.5 - 4 - 6 + 2.5) ** 2 / (1 / 2 + 1 + 1 + 1 / 2))


def test_a_term_beside_an_exact_fit_has_no_f():
    table = pd.DataFrame({"a": [*"uuvvuv"], "b": [*"xyxyxy"], "y": [1, 1, 3, 3, 1, 3]})
    got = anova(table, "y", ["a", "b"]).set_index("source")
    assert math.isnan(got.loc["a", "F"])
    assert math.isnan(got.loc["b", "F"])
    assert math.isnan(got.loc["b", "p"])


def test_a_large_table_of_five_factors_is_quick():
    """Sums of squares of a balanced 4^5 design with 20 runs a cell, by the cell means."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=(4,) * 5 + (20,)) + rng.normal(size=(4, 1, 1, 1, 1, 1))
    table = pd.DataFrame(np.indices(y.shape)[:5].reshape(5, -1).T, columns=[*"abcde"])
    formula = "y ~ (C(a) + C(b) + C(c) + C(d) + C(e))^2"
    got = anova(table.assign(y=y.ravel()), formula=formula).set_index("source")
    two = y.mean(axis=(2, 3, 4, 5)) - y.mean()
    one, other = (two.mean(axis=k, keepdims=True) for k in (1, 0))
    assert got.loc["a", "ss"] == pytest.approx(y.size / 4 * np.sum(one**2), rel=1e-10)
    assert got.loc["a:b", "ss"] == pytest.approx(y.size / 16 * np.sum((two - one - other) ** 2))
    assert got.loc["residual", "df"] == y.size - 1 - 15 - 90


@pytest.fixture
def subjects():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"s": rng.integers(0, 40, 300).astype(str), "x": rng.normal(size=300)})
    table = table.assign(a=rng.choice([*"abc"], 300), b=rng.choice([*"xy"], 300))
    return table.assign(y=rng.normal(size=300) + 0.1 * table["s"].astype(int) + (table["a"] == "a"))


@pytest.mark.parametrize("type", [1, 2, 3])
@pytest.mark.parametrize("terms", ["s + a*b + x", "a + s + x", "a + x + s", "s"])
def test_a_factor_of_many_levels_is_taken_out_by_its_means(subjects, terms, type, monkeypatch):
    whole = anova(subjects, f"y ~ {terms}", type=type)
    monkeypatch.setattr("fitspace.stats.absorbed.MOST_NUMBERS", 300 * 20)
    pd.testing.assert_frame_equal(anova(subjects, f"y ~ {terms}", type=type), whole, rtol=1e-9)


def test_many_levels_are_quick_or_refused():
    n = 6000
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"id": np.arange(n).astype(str), "a": rng.choice([*"abc"], n)})
    table = table.assign(s=(np.arange(n) % 2000).astype(str), y=rng.normal(size=n))
    got = anova(table, "y ~ s + a").set_index("source")
    assert got["df"].tolist() == [1999, 2, 3998]
    centred = table["y"] - table.groupby("s")["y"].transform("mean")
    alone = anova(table, "y ~ s").set_index("source")
    assert alone.loc["residual", "ss"] == pytest.approx((centred**2).sum(), rel=1e-10)
    for formula, why in {
        "y ~ id": "'id' has 6000 levels in 6000 rows: none are left for error",
        "y ~ s*a": "up to 8004 columns for 6000 rows",
    }.items():
        with pytest.raises(UserError, match=why):
            anova(table, formula)
    with pytest.raises(UserError, match="s has 2000 levels: with so many"):
        anova(table, "y ~ s + a", robust="hc3")


MODES = {
    "formula": ["--formula", "score ~ seed + input*output"],
    "factors": ["--response", "score", "--factors", "input", "output", "--block", "task"],
    "blocks": ["--response", "score", "--factors", "input", "--block", "task", "seed"],
    "interactions": ["--response", "score", "--factors", "input", "output", "--interactions"],
    "strata": ["--formula", "score ~ input + Error(task/input)"],
    "random": ["--response", "score", "--factors", "input", "--random", "task"],
    "robust": ["--formula", "score ~ input", "--robust", "hc3"],
    "welch": ["--formula", "score ~ input", "--robust", "welch"],
    "permuted": ["--formula", "score ~ input", "--permutations", "99", "--seed", "4"],
    "type 3": ["--formula", "score ~ input", "--type", "3"],
    "log": ["--formula", "score ~ input", "--transform", "log"],
    "box-cox": ["--formula", "score ~ input", "--transform", "box-cox"],
    "decimals": ["--formula", "score ~ input", "--exact-decimals"],
    "exact fit": ["--formula", "run ~ seed"],
}


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_command_prints_rows_of_the_schema(tmp_path, capsys, options):
    table = grid(CHAIN, tasks=("t", "u"))
    table.assign(run=table["seed"] * 2 + 1).drop_duplicates("run").to_csv(tmp_path / "run.csv")
    table.drop(columns="run").to_csv(tmp_path / "table.csv", index=False)
    path = tmp_path / ("run.csv" if "run ~ seed" in options else "table.csv")
    assert main(["anova", str(path), *options, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator(schema()).validate(rows)
    assert rows[-1]["source"] == "residual"
    assert ("stratum" in rows[0]) == bool(
        {"--random", "score ~ input + Error(task/input)"} & {*options}
    )
    assert ("p_permutation" in rows[0]) == ("--permutations" in options)
    if "--block" in options:
        blocks = options[options.index("--block") + 1 :]
        assert [row["source"] for row in rows[: len(blocks)]] == blocks
        assert rows[0]["p_holm"] is None
    assert main(["anova", str(path), *options]) == 0
    text = capsys.readouterr().out.splitlines()
    assert text[0].split() == list(rows[0])
    assert len(text) == 1 + len(rows)


def test_schema_is_the_generated_one_and_refuses():
    committed = json.loads((ROOT / "workflow/schemas/anova.schema.json").read_text())
    assert committed == schema(), "run: python -m fitspace.stats.schema > workflow/schemas/..."
    good = rows_for_json(anova(grid(CHAIN), "score", ["input"]))
    validator = jsonschema.Draft202012Validator(schema())
    assert validator.is_valid(good)
    for change in ({"p": 1.5}, {"F": "2"}, {"df": -1}, {"other": 1}, {"source": None}):
        assert not validator.is_valid([{**good[0], **change}])
    assert not validator.is_valid([{k: v for k, v in good[0].items() if k != "mde"}])


def test_welch_rows_are_those_of_the_test():
    table = grid({("a", "x"): 1.0, ("b", "x"): 2.0, ("c", "x"): 2.5}, seeds=4)
    got = anova(table, "score", ["input"], robust="welch")
    alone = welch(table, "score", "input").iloc[0]
    assert got["source"].tolist() == ["input", "residual"]
    assert got[["df", "F", "p"]].iloc[0].tolist() == alone[["df1", "F", "p"]].tolist()
    assert got["df"][1] == alone["df2"]
    assert got[["ss", "eta2_p", "mde"]].isna().all(axis=None)


def test_rows_for_json_are_json(tmp_path):
    path = tmp_path / "table.csv"
    grid(CHAIN).to_csv(path, index=False)
    rows = rows_for_json(anova_of_file(path, formula="score ~ input + output"))
    rows = json.loads(json.dumps(rows, allow_nan=False))
    assert [row["source"] for row in rows] == ["input", "output", "residual"]
    assert rows[-1]["F"] is None
    assert rows[0]["df"] == 2


# The whole analysis.


@pytest.fixture(scope="module")
def runs():
    table = grid(CHAIN | ISLAND, tasks=("t", "u"))
    table["fd"] = np.exp(-table["score"])
    table["recall"] = (np.arange(len(table)) % 5) / 4
    table["flat"] = 0.0
    table["never"] = np.nan
    table.loc[table["run"] == "a-x-t-0", ["status", "score", "fd"]] = ["failed", None, None]
    baseline = {"run": "full-t-0", "arm": "full", "status": "ok", "task": "t", "seed": 0}
    return pd.concat([table, pd.DataFrame([baseline | {"score": 99.0}])], ignore_index=True)


def test_analysis_of_a_study(runs):
    got = analyse(
        runs,
        ["input", "output"],
        ["score", "fd", "recall", "flat", "never"],
        transform={"fd": "log", "recall": "logit"},
    )
    assert got.blocks.terms == ["task", "task:seed", "task:input", "task:output"]
    assert got.ledger.to_dict("records") == [
        {"arm": "adapter", "planned": 42, "ok": 41, "failed": 1, "missing": 0},
        {"arm": "full", "planned": 1, "ok": 1, "failed": 0, "missing": 0},
        {"arm": "all", "planned": 43, "ok": 42, "failed": 1, "missing": 0},
    ]
    assert got.scales.set_index("response")["scale"].to_dict() == {
        "score": "identity",
        "fd": "log",
        "recall": "identity",
        "flat": "identity",
    }
    text = "\n".join(got.notes)
    assert "has 2 unconnected parts" in text
    assert "recall was analysed untransformed" in text
    assert "never was not analysed" in text
    main = runs[~runs["input"].isin(["d"]) & runs["input"].notna() & (runs["status"] == "ok")]
    score = got.anova[got.anova["response"] == "score"].drop(columns="response")
    direct = anova(main, "score", ["input", "output"], block=got.blocks.terms)
    same = ["source", "ss", "df", "F", "p", "p_holm", "omega2_p"]
    pd.testing.assert_frame_equal(
        score[same].reset_index(drop=True), direct[same], check_dtype=False
    )
    fd = got.anova[got.anova["response"] == "fd"]
    np.testing.assert_allclose(fd["F"], score["F"], rtol=1e-9)
    robust = anova(main, "score", ["input", "output"], block=got.blocks.terms, robust="cr2")
    own = got.robustness.query("response == 'score' and test == 'own spreads'")
    own = own[~own["source"].str.endswith("lack of fit")]
    np.testing.assert_allclose(own["p"], robust.set_index("source").loc[own["source"], "p"])
    cells = got.cells.query("response == 'score'")
    assert cells["component"].tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert cells["runs"].tolist() == [5, 6, 6, 6, 6, 6, 6]
    assert got.marginal_means.query("response == 'score'")["level"].tolist() == [*"abcxyz"]
    assert got.lack_of_fit.query("response == 'score'")["df"].tolist() == [
        *(0, 0),  # of the cells, and of how they differ between the tasks
        15,
    ]  # 5 cells in 2 tasks, 29 runs
    assert got.spread["replicate_sd"][0] == pytest.approx(0.1, rel=0.4)
    assert got.residuals.query("response == 'score'")["run"].nunique() == 29


def test_analysis_leaves_out_a_factor_that_does_not_vary(runs):
    got = analyse(runs[runs["input"] == "a"], ["input", "output"], ["score"])
    assert got.factors == ["output"]
    assert "input has one level" in got.notes[0]


def test_analysis_with_one_seed_has_effects_but_no_p():
    table = grid({("a", "x"): 1, ("a", "y"): 2, ("b", "x"): 3}, seeds=1)
    got = analyse(table, ["input", "output"], ["score"])
    assert got.blocks.terms == []
    assert got.anova["p"].isna().all()
    assert got.marginal_means["mean"].notna().all()
    assert got.marginal_means["se"].isna().all()


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        ({"status": "failed"}, {}, "no run has status ok"),
        ({}, {"responses": ["clip"]}, "no column 'clip'"),
        ({}, {"transform": {"score": "sqrt"}}, "transform: score: 'sqrt'; allowed: log, logit"),
        ({"input": "a", "output": "x"}, {}, "has two levels among the finished runs"),
        ({"score": "n/a"}, {}, "score was not analysed: response 'score': 'n/a' in row 1"),
    ],
    ids=["all failed", "no column", "transform", "no levels", "no numbers"],
)
def test_analysis_errors(runs, change, options, says):
    with pytest.raises(UserError) as error:
        analyse(runs.assign(**change), ["input", "output"], **{"responses": ["score"]} | options)
    assert says in str(error.value)
