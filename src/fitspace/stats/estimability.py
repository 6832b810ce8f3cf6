"""Which cells hang together: the connected components of an incomplete factorial."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fitspace.core.errors import UserError
from fitspace.stats.linear import as_labels, missing_columns


def components(table: pd.DataFrame, factors: Sequence[str]) -> pd.DataFrame:
    """Connected components of the design graph, whose nodes are the levels of all factors.

    >>> cells = pd.DataFrame({"input": list("aabcc"), "output": list("uvvww")})
    >>> components(cells, ["input", "output"])
      input output  runs  component
    0     a      u     1          0
    1     a      v     1          0
    2     b      v     1          0
    3     c      w     2          1

    An observed cell connects its levels. Additive contrasts between levels of different
    components are not estimable (Searle 1987, section 5.3); within one they are, always for
    two factors, and for more where the model has full rank. Returns one row per observed
    cell: the factors, ``runs`` (rows of the table) and ``component``, 0 the largest by
    cells, then runs. Rows with an empty factor cell are no part of the design.

    Raises
    ------
    UserError : a factor that is no column.
    """
    factors = list(factors)
    problems = missing_columns(table, factors)
    if problems:
        raise UserError(problems)
    labels = pd.DataFrame({name: as_labels(table[name]) for name in factors}).dropna()
    cells = labels.groupby(factors, sort=False).size().rename("runs").reset_index()
    cells["component"] = _numbered(cells, factors)
    return cells


def largest(
    table: pd.DataFrame, cells: pd.DataFrame, factors: Sequence[str]
) -> tuple[pd.DataFrame, list[str]]:
    """The rows of component 0 of ``cells`` (see `components`), and the factors that vary there."""
    labels = pd.DataFrame({name: as_labels(table[name]) for name in factors})
    component = labels.merge(cells, on=list(factors), how="left")["component"]
    part = table[(component == 0).to_numpy()]
    return part, [name for name in factors if part[name].nunique() > 1]


def in_design(runs: pd.DataFrame, factors: Sequence[str]) -> pd.Series:
    """Rows that have a level of every factor; the untouched base, method none, is no level.

    >>> runs = pd.DataFrame({"method": ["lora", "none", "full"], "rank": [8, None, None]})
    >>> in_design(runs, ["rank"]).tolist()
    [True, False, False]

    The other rows are baselines: what the design is held against.
    """
    filled = runs[list(factors)].astype(object).map(_filled).all(axis=1)
    return filled & runs["method"].ne("none") if "method" in runs else filled


def _filled(cell) -> bool:
    return not pd.isna(cell) and str(cell).strip() != ""


def _numbered(cells: pd.DataFrame, factors: list[str]) -> np.ndarray:
    parent: dict = {}

    def root(node):
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    for cell in cells[factors].itertuples(index=False):
        first, *others = zip(factors, cell, strict=True)
        for node in others:
            parent[root(node)] = root(first)
    # One factor alone has no rows to connect its levels, and none are needed.
    roots = [root((factors[0], level)) if len(factors) > 1 else None for level in cells[factors[0]]]
    sizes = {
        r: (-roots.count(r), -sum(cells["runs"][np.array([x == r for x in roots])]))
        for r in dict.fromkeys(roots)
    }
    order = sorted(sizes, key=sizes.get)
    return np.array([order.index(r) for r in roots], dtype=int)
