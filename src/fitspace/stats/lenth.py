"""Lenth's analysis of a design whose model leaves no residual degrees of freedom."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtrit

from fitspace.core.errors import UserError
from fitspace.stats.digits import cleared
from fitspace.stats.formula import Term, label
from fitspace.stats.linear import Model, as_list, orthonormal, read


def lenth(
    table: pd.DataFrame,
    response: str,
    factors: Sequence[str],
    block: str | Sequence[str] | None = None,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Single-degree contrasts of a design without replicates, judged by Lenth's method (1989).

    >>> runs = pd.DataFrame([(a, b, c) for a in "lh" for b in "lh" for c in "lh"])
    >>> runs.columns = ["width", "rate", "steps"]
    >>> runs["y"] = [1, 1.2, 3, 3.3, 1.1, 1.3, 5.2, 5.4]
    >>> lenth(runs, "y", ["width", "rate", "steps"]).iloc[:2, :2]
      contrast  estimate
    0     rate  4.348707
    1    width  1.590990

    The contrasts are orthonormal, so that each one's standard error is that of one run: of
    the factors, then of their interactions up to all of them, each adjusted for the blocks
    and for the contrasts before it, as many as the cells tell apart. A factor of several
    levels has one contrast per degree of freedom, ``A[1]`` onwards: the first level with the
    last, the next with these two, and so on. One row each, largest first: contrast, estimate,
    quantile (half-normal, of its rank), pse (pseudo standard error), margin and
    simultaneous_margin (t with a third as many degrees of freedom as contrasts), active
    (beyond the margin of error; false for a NaN margin).

    Raises
    ------
    UserError : a table that cannot be analysed, or fewer than three contrasts.
    """
    factors, blocks = as_list(factors), [name for name in as_list(block)]
    data = read(table, response, [*blocks, *factors])
    terms = [term for k in range(1, len(factors) + 1) for term in combinations(factors, k)]
    model = Model(data, [(name,) for name in blocks] + terms)
    named = _contrasts(model, terms, [(name,) for name in blocks])
    if len(named) < 3:
        raise UserError(f"{response}: Lenth's method needs 3 or more contrasts, not {len(named)}")
    largest = float(np.linalg.norm(data.y))
    result = pd.DataFrame(
        [
            {"contrast": name, "estimate": cleared(float(column @ data.y), largest)}
            for name, column in named
        ]
    )
    size = result["estimate"].abs()
    m = len(size)
    result["quantile"] = ndtri(0.5 + (size.rank(method="first") - 0.5) / (2 * m))
    result["pse"] = pse = pseudo_standard_error(size.to_numpy())
    single = (1 + confidence) / 2
    result["margin"] = stdtrit(m / 3, single) * pse
    result["simultaneous_margin"] = stdtrit(m / 3, (1 + confidence ** (1 / m)) / 2) * pse
    result["active"] = size > result["margin"]
    return result.loc[size.sort_values(ascending=False, kind="stable").index].reset_index(drop=True)


def pseudo_standard_error(estimates: np.ndarray) -> float:
    """Lenth's robust scale (1989, equation 2) of contrasts (m,), most of them inactive."""
    size = np.abs(estimates)
    first = 1.5 * np.median(size)
    return 1.5 * float(np.median(size[size < 2.5 * first])) if first else 0.0


def _contrasts(
    model: Model, terms: Sequence[Term], blocks: Sequence[Term]
) -> list[tuple[str, np.ndarray]]:
    """Orthonormal contrasts of the terms and their names."""
    columns = [(term, column) for term in terms for column in model.columns(term).T]
    bases = orthonormal([*map(model.columns, blocks), *(column[:, None] for _, column in columns)])
    named = []
    for term in terms:
        own = [
            basis[:, 0]
            for (of, _), basis in zip(columns, bases[len(blocks) :], strict=True)
            if of == term and basis.shape[1]
        ]
        name = label(term)
        named += [(name if len(own) == 1 else f"{name}[{i}]", c) for i, c in enumerate(own, 1)]
    return named
