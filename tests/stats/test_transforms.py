"""Scales of a response: Box and Cox's own example, scipy, and the definition."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from printed import printed

from fitspace.core.errors import UserError
from fitspace.stats import anova, box_cox
from fitspace.stats.transforms import TRANSFORMS, Scale, fit_transform

POISON = """
I   A .31 .45 .46 .43  B .82 1.10 .88 .72  C .43 .45 .63 .76  D .45 .71 .66 .62
II  A .36 .29 .40 .23  B .92 .61 .49 1.24  C .44 .35 .31 .40  D .56 1.02 .71 .38
III A .22 .21 .18 .23  B .30 .37 .38 .29   C .23 .25 .24 .22  D .30 .36 .31 .33
"""
TERMS = [("poison",), ("treatment",)]


def poison():
    """Survival times of Box and Cox (1964), table 1."""
    rows = []
    for line in POISON.strip().splitlines():
        name, *words = line.split()
        for at in range(0, 20, 5):
            rows += [(name, words[at], time) for time in words[at + 1 : at + 5]]
    return pd.DataFrame(rows, columns=["poison", "treatment", "time"])


def test_box_cox_holds_the_papers_example():
    """Box and Cox (1964), section 5: the additive model has its largest likelihood at -0.75."""
    power, low, high = box_cox(poison(), "time", TERMS)
    assert power == pytest.approx(-0.75, abs=0.005)
    assert low < -1 < high < 0  # the reciprocal is within, the log and the time itself are not
    table = poison().astype({"time": float})
    reciprocal = anova(table.assign(time=1 / table["time"]), formula="time ~ poison*treatment")
    assert reciprocal["F"][:3].tolist() == [*map(printed, ("72.63", "28.34", "1.09"))]


def test_box_cox_limits_hold_the_likelihood():
    table = poison().astype({"time": float})
    y = table["time"].to_numpy()
    x = pd.get_dummies(table[["poison", "treatment"]]).to_numpy(float)

    def log_likelihood(power):
        z = np.log(y) if power == 0 else (y**power - 1) / power
        rest = z - x @ np.linalg.lstsq(x, z, rcond=None)[0]
        return -len(y) / 2 * np.log(np.mean(rest**2)) + (power - 1) * np.sum(np.log(y))

    power, low, high = box_cox(table, "time", TERMS)
    grid = np.linspace(-3, 3, 601)
    assert log_likelihood(power) >= max(map(log_likelihood, grid))
    drop = scipy.stats.chi2.ppf(0.95, 1) / 2
    for limit in (low, high):
        assert log_likelihood(power) - log_likelihood(limit) == pytest.approx(drop, rel=1e-7)
    scaled = box_cox(table.assign(time=y * 1e6), "time", TERMS)
    assert scaled == pytest.approx((power, low, high), abs=1e-6)


@pytest.mark.parametrize("power", [-0.5, 0.0, 0.4, 1.0])
def test_box_cox_without_terms_holds_scipy(power):
    x = np.random.default_rng(1).normal(1, 0.2, 60)
    y = scipy.special.inv_boxcox(x, power)
    got = box_cox(pd.DataFrame({"y": y}), "y", [])
    _, best, (low, high) = scipy.stats.boxcox(y, alpha=0.05)
    assert got[0] == pytest.approx(best, abs=1e-5)
    assert got[1:] == pytest.approx((max(low, -3), min(high, 3)), abs=1e-5)


@pytest.mark.parametrize(
    ("scale", "formula"),
    [
        (Scale("log"), math.log),
        (Scale("logit"), lambda y: math.log(y / (1 - y))),
        (Scale("box-cox", -0.7), lambda y: (y**-0.7 - 1) / -0.7),
        (Scale("box-cox", 0.0), math.log),
        (Scale("box-cox", 2.0), lambda y: (y**2 - 1) / 2),
        (Scale(), lambda y: y),
    ],
    ids=lambda value: str(value) if isinstance(value, Scale) else "",
)
def test_scales_and_their_inverses(scale, formula):
    y = np.array([0.001, 0.3, 0.97])
    assert scale.forward(y) == pytest.approx([formula(value) for value in y], rel=1e-13)
    assert scale.inverse(scale.forward(y)) == pytest.approx(y, rel=1e-12)


def test_inverse_beyond_the_family_is_the_end_of_the_range():
    assert Scale("box-cox", 0.5).inverse([-2.0, -7.0]).tolist() == [0, 0]
    assert Scale("box-cox", -0.5).inverse([2.0, 7.0]).tolist() == [math.inf, math.inf]
    assert Scale("box-cox", 0.314).label == "Box-Cox, lambda = 0.31"
    assert Scale("logit").label == "logit"


@pytest.mark.parametrize("name", TRANSFORMS)
def test_anova_on_a_scale_is_that_of_the_transformed_response(name):
    table = poison().astype({"time": float})
    table["time"] /= 2
    factors = ["poison", "treatment"]
    got = anova(table, "time", factors, transform=name)
    y = table["time"]
    x = {"log": np.log(y), "logit": np.log(y / (1 - y)), "box-cox": y**-0.7501625441644669}[name]
    by_hand = anova(table.assign(time=x), "time", factors)
    assert got["F"][:2].tolist() == pytest.approx(by_hand["F"][:2].tolist(), rel=1e-5)
    says = {"box-cox": "Box-Cox, lambda = -0.75"}.get(name, name)
    assert got.attrs["notes"] == [f"time is on the {says} scale"]


def test_empty_cells_stay_empty():
    table = pd.DataFrame({"y": ["1", "", "4", "2"], "g": [*"aabb"]})
    values, scale = fit_transform(table, "y", "log")
    assert values.isna().tolist() == [False, True, False, False]
    assert scale.label == "log"
    assert fit_transform(table, "y", None)[0][2] == 4
    assert "1 of 4 rows set aside" in anova(table, "y", ["g"], transform="log").attrs["notes"][1]


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        ({}, {"transform": "sqrt"}, "transform: 'sqrt'; allowed: log, logit, box-cox"),
        ({0: "0", 3: "-1"}, {"transform": "log"}, "above 0; 2 of 48 are not: row(s) 1, 4"),
        ({}, {"transform": "logit"}, "between 0 and 1; 3 of 48 are not: row(s) 6, 24, 30"),
        ({2: "0"}, {"transform": "box-cox"}, "box-cox needs values above 0; 1 of 48"),
        ({1: "x"}, {"transform": "log"}, "'x' in row 2; allowed: finite numbers"),
        ({}, {"transform": "log", "exact_decimals": True}, "no exact decimals"),
        ({}, {"response": "tme", "transform": "log"}, "did you mean 'time'"),
    ],
    ids=["unknown", "log", "logit", "box-cox", "text", "exact", "column"],
)
def test_errors(change, options, says):
    table = poison()
    table["time"] = [change.get(row, value) for row, value in enumerate(table["time"])]
    with pytest.raises(UserError) as error:
        anova(table, **{"response": "time", "factors": ["poison", "treatment"]} | options)
    assert says in str(error.value)


def test_box_cox_needs_residuals():
    table = poison().assign(row=range(48))
    for terms in ([("row",)], [("row",), ("poison",)]):
        with pytest.raises(UserError, match="a model that leaves residuals"):
            box_cox(table, "time", terms)
    with pytest.raises(UserError, match="a model that leaves residuals"):
        box_cox(table.assign(time=2), "time", TERMS)
