"""A model as a user gives it: a formula, or a response with factors and blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import pandas as pd

from fitspace.core.errors import UserError
from fitspace.stats.absorbed import absorbed_of
from fitspace.stats.formula import Term, parse, term_of
from fitspace.stats.linear import (
    CellsModel,
    Data,
    Model,
    as_list,
    missing_columns,
    read,
    reserved,
    with_cells,
)

# Numbers in these columns are names: one more task or seed is not one more of anything.
LABELS = ("task", "seed", "run", "block", "subject")


@dataclass(frozen=True)
class Given:
    """A model: terms with the blocks first, error terms, and the columns that are numbers."""

    response: str
    terms: list[Term]
    blocks: list[Term]
    error: list[Term] = field(default_factory=list)
    quantities: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Names of all columns but the response, each once."""
        every = [*self.terms, *self.error]
        return list(dict.fromkeys(name for term in every for name in term))

    @property
    def factors(self) -> list[str]:
        """Names of the columns that enter as levels."""
        return [name for name in self.names if name not in self.quantities]

    def data(
        self, table: pd.DataFrame, also: Sequence[str] = (), exact_decimals: bool = False
    ) -> Data:
        """The complete rows of a table, with the factors ``also`` beside the model's own."""
        names = list(dict.fromkeys([*self.factors, *also]))
        return read(table, self.response, names, exact_decimals, self.quantities)

    def model(self, table: pd.DataFrame, also: Sequence[str] = ()) -> Model:
        """The linear model of a table."""
        data = self.data(table, also)
        many = absorbed_of(data, self.terms)
        if many:
            raise UserError(
                f"{many[0]} has {len(data.levels[many[0]])} levels: with so many there is the "
                "classical F of stats.anova alone"
            )
        return Model(data, self.terms)

    def cells(
        self, table: pd.DataFrame, factors: Sequence[str], within: str | None = None
    ) -> CellsModel:
        """The model of the blocks and the factors' cells; each level of ``within`` has its own."""
        table, cell = with_cells(table, [*factors, *([within] if within else [])])
        blocks = [term for term in self.blocks if term != (within,)]
        names = [*(name for term in self.blocks for name in term), cell]
        return CellsModel(read(table, self.response, list(dict.fromkeys(names))), blocks, cell)


def given(
    table: pd.DataFrame,
    model: str | None = None,
    factors: str | Sequence[str] | None = None,
    block: str | Sequence[str] | None = None,
    *,
    interactions: bool = False,
    formula: str | None = None,
) -> Given:
    """Read a model: ``model`` is a formula where it has a ``~``, else the response.

    A column of numbers in a formula enters as a number, unless the formula says ``C(x)`` or its
    name is one of `LABELS`; factors and blocks that are named beside a response are always
    factors. A block may be a combination of columns: ``task:seed``.

    Raises
    ------
    UserError : neither or both, names given twice, missing columns, or names that a table of
        tests could not hold.
    """
    blocks = [term_of(name) for name in as_list(block)]
    if model is not None and "~" in model:
        model, formula = None, model
    if formula is not None:
        if model or factors or interactions:
            raise UserError("a formula stands instead of response, factors and interactions")
        read_formula = parse(formula)
        response, terms, error = read_formula.response, read_formula.terms, read_formula.error
        known = {name for term in blocks for name in term} | read_formula.factors
        quantities = [n for n in read_formula.names if n not in known and _is_measured(table, n)]
    elif model and factors:
        response, error, quantities = model, [], []
        factors = as_list(factors)
        terms = [(name,) for name in factors]
        if interactions:
            terms += list(combinations(factors, 2))
        repeated = {name for name in factors if factors.count(name) > 1 or (name,) in blocks}
        if repeated:
            raise UserError(f"factors {sorted(repeated)}: named more than once")
    else:
        raise UserError("give either a formula, or a response and its factors")
    terms = blocks + [term for term in terms if term not in blocks]
    found = Given(response, terms, blocks, error, quantities)
    problems = reserved(found.names)
    if problems:
        raise UserError(problems + missing_columns(table, [response, *found.names]))
    return found


def _is_measured(table: pd.DataFrame, name: str) -> bool:
    if name in LABELS or name not in table or table.columns.duplicated().any():
        return False
    column = table[name]
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def slopes(found: Given) -> list[str]:
    """A note on each column that enters as a number."""
    return [
        f"{name} is a number: a slope, 1 degree of freedom; C({name}) makes it a factor"
        for name in found.quantities
    ]
