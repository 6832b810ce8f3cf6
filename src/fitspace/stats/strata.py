"""Analysis of variance with error strata: factors tested against random effects."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from fitspace.stats import effects
from fitspace.stats.columns import columns as columns_of
from fitspace.stats.formula import Term, label
from fitspace.stats.linear import (
    Data,
    Model,
    left_by,
    orthonormal,
    spanned,
    sum_of_squares,
)

NAN = float("nan")
WITHIN = "within"


def strata(
    data: Data,
    terms: Sequence[Term],
    error: Sequence[Term],
    *,
    blocks: Sequence[Term] = (),
    type: int = 2,
) -> pd.DataFrame:
    """Analysis of variance within each error stratum, as R's aov does with ``Error()``.

    A stratum is what an error term adds to the error terms before it; the last, ``within``,
    is what none of them explains. In each the terms are tested against what they leave of
    it: one row per term that has information there, then ``residual``. Columns as in
    `anova`, after ``stratum``; p_holm over all terms but ``blocks``. Effect sizes are those
    of F and its degrees of freedom, with ``n = df1 + df2 + 1`` in omega squared and in the
    detectable effect (effectsize's F_to_omega2). ``attrs["notes"]`` names terms with
    information in several strata, whose tests use a part of it each.

    Parameters
    ----------
    type : 1 (terms as they stand; aov's) or 2, the same where the design is balanced.
    """
    model, layers = Model(data, terms), Model(data, error)
    columns = [layers.columns(term) for term in error]
    rows = []
    for term, space in zip(error, orthonormal(columns), strict=True):
        if space.shape[1]:
            rows += _rows(label(term), model, type, [], space)
    rows += _rows(WITHIN, model, type, columns, None)
    result = pd.DataFrame(rows, columns=columns_of("stratum"))
    ours = result["source"].isin([label(term) for term in terms if term not in blocks])
    result["p_holm"] = effects.holm(result["p"].where(ours).tolist())
    result.attrs["notes"] = _spread(result, model)
    return result


def _rows(
    name: str, model: Model, type: int, under: list[np.ndarray], space: np.ndarray | None
) -> list[dict]:
    """Rows of one stratum: of a ``space`` (n, m), or of all outside the columns ``under``."""
    rss, df2 = _residual(model, under, space)
    rows = []
    for term in model.terms:
        before, _ = model.ordered(term, type)
        blocks = [*under, *map(model.columns, [*before, term])]
        basis = orthonormal(blocks, space)[-1]
        df1 = basis.shape[1]
        if df1:
            ss = sum_of_squares(basis, model.data)
            F = effects.f_ratio(ss, df1, rss, df2)
            rows.append(effects.tested(label(term), ss, df1, F, df2, df1 + df2 + 1))
    rows.append({"source": "residual", "ss": rss, "df": df2})
    return [{"stratum": name, **row} for row in rows]


def _residual(model: Model, under: list[np.ndarray], space: np.ndarray | None) -> tuple[float, int]:
    """Sum of squares and degrees of freedom that the terms leave of a stratum."""
    data, columns = model.data, [*under, *map(model.columns, model.terms)]
    if space is None:
        basis = spanned(columns, model.n)
        return math.fsum(left_by(basis, data.y, data.rounding) ** 2), model.n - basis.shape[1]
    rest = orthonormal([*columns, space], space)[-1]
    return sum_of_squares(rest, data), rest.shape[1]


def _spread(result: pd.DataFrame, model: Model) -> list[str]:
    """Notes on terms that are tested in several strata, or in none."""
    notes = []
    for name in model.names():
        found = result.loc[result["source"] == name, "stratum"].tolist()
        if len(found) > 1:
            notes.append(
                f"{name} has information in the strata {', '.join(found)} (the design is not "
                "balanced): each test uses a part of it"
            )
        elif not found:
            notes.append(f"{name} has no degrees of freedom in any stratum: it is aliased")
    return notes
