"""Scales on which a response is analysed: log, logit and Box-Cox."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import brentq, minimize_scalar
from scipy.special import boxcox, chdtri, expit, logit

from fitspace.core.errors import UserError
from fitspace.stats.formula import Term
from fitspace.stats.linear import Model, left_by, missing_columns, numbers, read

# Name to open range of the values that have a place on the scale.
TRANSFORMS = {"log": (0.0, np.inf), "logit": (0.0, 1.0), "box-cox": (0.0, np.inf)}
POWERS = (-3.0, 3.0)


@dataclass(frozen=True)
class Scale:
    """A monotone scale of a response; ``parameter`` is lambda of Box and Cox's family."""

    name: str = "identity"
    parameter: float | None = None

    @property
    def label(self) -> str:
        """The scale as written in a table: ``log``, ``Box-Cox, lambda = 0.31``."""
        return self.name if self.parameter is None else f"Box-Cox, lambda = {self.parameter:.2f}"

    def __str__(self) -> str:
        return self.label

    def forward(self, y):
        """Measured values on this scale."""
        y = np.asarray(y, dtype=float)
        if self.name == "box-cox":
            return boxcox(y, self.parameter)
        return {"identity": np.positive, "log": np.log, "logit": logit}[self.name](y)

    def inverse(self, x):
        """Values of this scale as measured; beyond what Box-Cox can reach, its end (0, inf)."""
        x = np.asarray(x, dtype=float)
        if self.name == "box-cox":
            return _inverse_boxcox(x, self.parameter)
        return {"identity": np.positive, "log": np.exp, "logit": expit}[self.name](x)


def fit_transform(
    table: pd.DataFrame, response: str, name: str | None, terms: Sequence[Term] = ()
) -> tuple[pd.Series, Scale]:
    """A response on the scale ``name`` (None: as measured), and the scale.

    ``terms`` are those of the model for which "box-cox" finds its power (see `box_cox`).
    Empty cells stay NaN.

    Raises
    ------
    UserError : an unknown scale, a response that is not finite numbers, or values that the
        scale has no place for; for "box-cox" also those of `box_cox`.
    """
    if name is not None and name not in TRANSFORMS:
        raise UserError(f"transform: {name!r}; allowed: {', '.join(TRANSFORMS)}")
    y = _legal(table, response, name)
    if name is None:
        scale = Scale()
    elif name == "box-cox":
        scale = Scale(name, box_cox(table, response, terms)[0])
    else:
        scale = Scale(name)
    return pd.Series(scale.forward(y), y.index, name=response), scale


def _legal(table: pd.DataFrame, response: str, name: str | None) -> pd.Series:
    """The response as floats, each of which has a place on the scale."""
    problems = missing_columns(table, [response])
    if problems:
        raise UserError(problems)
    values, problems = numbers(table[response])
    if problems:
        raise UserError(problems)
    y = pd.Series(values.astype(float), table.index, name=response)
    low, high = TRANSFORMS.get(name, (-np.inf, np.inf))
    outside = y.notna() & ~((y > low) & (y < high))
    if outside.any():
        rows = [str(row) for row in np.flatnonzero(outside) + 1]
        more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
        allowed = "above 0" if high == np.inf else f"between {low:g} and {high:g}"
        raise UserError(
            f"response {response!r}: {name} needs values {allowed}; {len(rows)} of "
            f"{int(y.notna().sum())} are not: row(s) {', '.join(rows[:5])}{more}"
        )
    return y


def box_cox(
    table: pd.DataFrame, response: str, terms: Sequence[Term]
) -> tuple[float, float, float]:
    """Power of Box and Cox's family (1964) for a linear model: lambda and its 95% limits.

    >>> table = pd.DataFrame({"y": [1.1, 1.4, 2.9, 4.2, 9.8, 12.5], "arm": list("aabbcc")})
    >>> [round(x, 3) for x in box_cox(table, "y", [("arm",)])]
    [0.007, -0.8, 0.786]

    Lambda has the largest profile likelihood under ``1 + terms`` with normal errors; the
    limits are where twice the log likelihood is chi-square(1)'s 95% point below its largest.
    Searched between -3 and 3, where limits end too.

    Raises
    ------
    UserError : a table that cannot be analysed, values that are not above 0, or a model that
        leaves no residuals.
    """
    table = table.reset_index(drop=True)
    y = _legal(table, response, "box-cox")
    names = list(dict.fromkeys(name for term in terms for name in term))
    data = read(table.assign(**{response: y}), response, names)
    basis = Model(data, terms).basis
    y = y[data.index].to_numpy()
    if basis.shape[1] == len(y) or not left_by(basis, data.y).any():
        raise UserError(f"response {response!r}: box-cox needs a model that leaves residuals")
    unit = y / np.exp(np.mean(np.log(y)))  # so that the Jacobian of every power is 1

    def lost(power: float) -> float:
        """Twice the negative profile log likelihood, but for a constant."""
        rest = left_by(basis, boxcox(unit, power))
        return len(y) * np.log(rest @ rest)

    grid = np.linspace(*POWERS, 61)
    start = grid[np.argmin([lost(power) for power in grid])]
    near = (max(start - 0.1, POWERS[0]), min(start + 0.1, POWERS[1]))
    best = minimize_scalar(lost, bounds=near, method="bounded", options={"xatol": 1e-10})
    allowed = best.fun + chdtri(1, 0.05)
    low, high = (_crossing(lambda x: lost(x) - allowed, best.x, end) for end in POWERS)
    return float(best.x), low, high


def _crossing(function, inside: float, end: float) -> float:
    """Where a function that is negative ``inside`` becomes 0 on the way to ``end``, or the end."""
    return float(brentq(function, inside, end)) if function(end) > 0 else end


def _inverse_boxcox(x: np.ndarray, power: float) -> np.ndarray:
    if power == 0:
        return np.exp(x)
    with np.errstate(divide="ignore"):
        return np.exp(np.log1p(np.maximum(power * x, -1)) / power)
