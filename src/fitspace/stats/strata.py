"""Analysis of variance with error strata: factors tested against random effects."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from fitspace.core.errors import UserError
from fitspace.stats import effects
from fitspace.stats.columns import columns as columns_of
from fitspace.stats.formula import Term, label
from fitspace.stats.linear import (
    Data,
    Model,
    as_list,
    left_by,
    orthonormal,
    read,
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


def over_tasks(
    table: pd.DataFrame,
    response: str,
    factors: Sequence[str],
    task: str,
    block: str | Sequence[str] = (),
) -> pd.DataFrame:
    """Tests of factors for tasks in general: each against its interaction with the task.

    >>> runs = pd.DataFrame([(t, a, s) for t in (0, 1, 2) for a in "uvw" for s in (0, 1)])
    >>> runs.columns = ["task", "arm", "seed"]
    >>> runs["y"] = [3, 4, 5, 6, 8, 9.5, 1, 2, 3, 4.5, 5, 6, 2, 3, 5, 6, 9, 9]
    >>> found = over_tasks(runs, "y", "arm", "task", "seed")
    >>> found[["source", "df", "F", "p", "error_df"]].round(4)
      source  df       F       p  error_df
    0    arm   2  45.542  0.0018         4

    Each factor is adjusted for the blocks and the other factors (type II) and tested in the
    stratum that its interaction with the task adds last; with balanced data this is aov's
    with ``Error(task / factor)``. One row per factor: source, ss, df, F, p, p_holm, mde, error
    (the interaction's name), error_ss, error_df. With alike and independent effects of the
    interaction the F is exact if the cells form a full factorial, or the factor has two
    levels. With cells left out the interaction weighs on some contrasts more than on others:
    on the 16 legal pairs of a transformer block a simulated level of .05 was at most .066.

    Raises
    ------
    UserError : a table that cannot be analysed, one task (nothing to generalise over), or
        cells that are not observed alike in every task: no F is exact there.
    """
    factors = as_list(factors)
    blocks = [name for name in as_list(block) if name != task]
    _check_alike(table, response, factors, task, blocks)
    rows = [_over_tasks(table, response, name, factors, task, blocks) for name in factors]
    result = pd.DataFrame(rows)
    result.insert(5, "p_holm", effects.holm(result["p"].tolist()))
    return result


def _over_tasks(table, response, name, factors, task, blocks) -> dict:
    ordered = [*(other for other in factors if other != name), name]
    terms = [(column,) for column in [*blocks, *ordered]]
    error = [(task,), *((column, task) for column in ordered)]
    names = list(dict.fromkeys(column for term in [*terms, *error] for column in term))
    found = strata(read(table, response, names), terms, error, type=1)
    found = found[found["stratum"] == label((name, task))].set_index("source")
    row = {"source": name, "ss": 0.0, "df": 0, "F": NAN, "p": NAN, "mde": NAN}
    if name in found.index:
        row |= found.loc[name, ["ss", "df", "F", "p", "mde"]].to_dict()
    left = found.loc["residual"] if "residual" in found.index else {"ss": 0.0, "df": 0}
    row |= {"error": label((name, task)), "error_ss": left["ss"], "error_df": int(left["df"])}
    return row | {"df": int(row["df"])}


def _check_alike(table, response, factors, task, blocks) -> None:
    """Each combination of factors and blocks must be observed equally often in every task."""
    data = read(table, response, [*factors, *blocks, task])
    levels = {name: np.array(data.levels[name])[codes] for name, codes in data.codes.items()}
    keys = [levels[name] for name in [*factors, *blocks]]
    counts = pd.crosstab(keys, levels[task])
    uneven = counts[counts.nunique(axis=1) > 1]
    if uneven.empty:
        return
    shown = [
        f"{' / '.join(key if isinstance(key, tuple) else (key,))}: "
        + ", ".join(f"{count} in {name}" for name, count in row.items())
        for key, row in uneven.head(3).iterrows()
    ]
    more = f" and {len(uneven) - 3} more" if len(uneven) > 3 else ""
    raise UserError(
        f"{response}: no exact test over {task}: not observed equally often in every {task}: "
        f"{'; '.join(shown)}{more}"
    )
