"""Sum-coded linear models on a centred response, by rank-revealing orthogonal blocks."""

from __future__ import annotations

import difflib
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from functools import cached_property, reduce

import numpy as np
import pandas as pd

from fitspace.core.errors import UserError
from fitspace.core.texts import one_number
from fitspace.stats.formula import Term, label

# Singular values of coded columns lie within a few orders of each other; rounding is at 1e-15.
RANK_TOLERANCE = 1e-10
# A sum of squares this small, relative to that of the response, is rounding.
ROUNDING = 1e-28
# Of two float64 that mean one number, as 0.1 + 0.2 and 0.3: relative to the larger.
ULPS = 2 * np.finfo(float).eps
# Text that other programs take for an empty cell.
MISSING = {"na", "n/a", "nan", "null", "."}
# Fourth powers of it, in the variances of robust tests, are still finite.
LARGEST = 1e75


@dataclass(frozen=True)
class Data:
    """Complete rows of a table: centred response ``y`` (n,), its ``mean``, factor codes.

    ``index`` holds the labels of the rows in the table, ``notes`` what was set aside,
    ``quantities`` the columns that enter as numbers (n,), ``originals`` each level as the
    table has it (a number stays one), and ``rounding`` what one value of ``y`` can be off
    because the response is float64.
    """

    y: np.ndarray
    mean: float
    levels: dict[str, list[str]]
    codes: dict[str, np.ndarray]
    index: pd.Index
    notes: list[str] = field(default_factory=list)
    quantities: dict[str, np.ndarray] = field(default_factory=dict)
    originals: dict[str, list] = field(default_factory=dict)
    rounding: float = 0.0

    @property
    def total(self) -> float:
        """Sum of squares of the centred response."""
        return float(self.y @ self.y)

    def is_rounding(self, ss: float, df: int) -> bool:
        """Whether a sum of squares with ``df`` degrees of freedom is nothing but rounding."""
        return ss <= max(ROUNDING * self.total, df * self.rounding**2)


def read(
    table: pd.DataFrame,
    response: str,
    names: Sequence[str],
    exact_decimals: bool = False,
    quantities: Sequence[str] = (),
) -> Data:
    """Take the complete rows of a table, with unused levels dropped.

    Rows with an empty cell in ``response``, a factor or one of the ``quantities`` (columns that
    enter as numbers) are set aside and counted in ``notes``. With ``exact_decimals`` the
    response is read as decimal text (a float by its shortest form) and centred in exact
    arithmetic before it becomes float64.

    Raises
    ------
    UserError : missing columns, a response that is not finite numbers, fewer than two
        rows, a factor with one level; all at once.
    """
    used = [response, *names, *quantities]
    problems = missing_columns(table, used)
    if len(set(used)) < len(used):
        problems.append(f"columns {used}: each may be named once")
    if problems:
        known = response in table.columns and not table.columns.duplicated().any()
        more = numbers(table[response], exact_decimals)[1] if known else []
        raise UserError([*problems, *more])
    values, problems = numbers(table[response], exact_decimals)
    labels = {name: as_labels(table[name]) for name in names}
    complete = ~pd.isna(values)
    for column in labels.values():
        complete &= column.notna().to_numpy()
    measured = {}
    for name in quantities:
        column, more = numbers(table[name])
        problems += [text.replace("response", "column", 1) for text in more]
        measured[name] = column
        complete &= ~pd.isna(column)
    if len(table) < 2 or (not problems and complete.sum() < 2):
        problems.append(
            f"the table has {len(table)} row(s), {complete.sum()} of them with a value in each of "
            f"{used}; an analysis needs at least 2"
        )
    else:
        for name, column in labels.items():
            kept = column[complete].unique()
            if len(kept) < 2:
                problems.append(
                    f"factor {name!r} has {len(kept)} level(s) {list(kept)}; it needs at least 2"
                )
            problems += [
                f"factor {name!r}: {' and '.join(map(repr, same))} are one number; write it one way"
                for same in one_number(kept)
            ]
        problems += [
            f"column {name!r} has one value; a trend needs at least 2"
            for name, column in measured.items()
            if len(set(column[complete])) < 2
        ]
    if not problems:
        problems = _unsquarable(response, values[complete])
    if problems:
        raise UserError(problems)
    y, mean = _centred(values[complete], exact_decimals)
    rounding = 0.0 if exact_decimals else ULPS * max(abs(float(v)) for v in values[complete])
    if np.ptp(y) <= rounding:  # 0.1 + 0.2 and 0.3 are one value
        y = np.zeros(len(y))
    levels = {name: _ordered(table[name], column[complete]) for name, column in labels.items()}
    originals = {name: _originals(table[name], labels[name], levels[name]) for name in names}
    codes = {name: _codes(column[complete], levels[name]) for name, column in labels.items()}
    aside = len(table) - int(complete.sum())
    notes = []
    if aside:
        notes.append(f"{aside} of {len(table)} rows set aside: an empty cell in one of {used}")
    notes += [note for name in names for note in _look_alikes(name, levels[name])]
    if not y.any():
        notes.append(f"{response} has no variation: there is nothing to test")
    measured = {name: column[complete].astype(float) for name, column in measured.items()}
    return Data(y, mean, levels, codes, table.index[complete], notes, measured, originals, rounding)


def _codes(labels: pd.Series, levels: list[str]) -> np.ndarray:
    """The number of each row's level (n,)."""
    number = {level: i for i, level in enumerate(levels)}
    return np.array([number[label] for label in labels.tolist()])


def _originals(column: pd.Series, labels: pd.Series, levels: list[str]) -> list:
    """The levels as the column has them: numbers stay numbers."""
    first = dict(zip(reversed(labels.tolist()), reversed(column.tolist()), strict=True))
    return [first[level] for level in levels]


def reserved(names: Sequence[str]) -> list[str]:
    """One problem per name that a table of tests could not tell from its own rows."""
    why = "a table of tests would mistake it for its own row or for an interaction; rename it"
    return [f"column {name!r}: {why}" for name in names if name == "residual" or ":" in name]


def _look_alikes(name: str, levels: Sequence[str]) -> list[str]:
    """Notes on levels that read as missing, or as one level written in two ways."""
    notes = []
    missing = [level for level in levels if level.casefold() in MISSING]
    if missing:
        notes.append(
            f"factor {name!r} has the level(s) {', '.join(map(repr, missing))}; if that means no "
            "value, leave the cell empty"
        )
    ways: dict[str, list[str]] = {}
    for level in levels:
        plain = " ".join(unicodedata.normalize("NFKC", level).split()).casefold()
        ways.setdefault(plain, []).append(level)
    return notes + [
        f"factor {name!r}: {' and '.join(map(ascii, same))} differ only in case, spaces or the "
        "form of their characters, and are taken as different levels"
        for same in ways.values()
        if len(same) > 1
    ]


def as_list(names: str | Sequence[str] | None) -> list[str]:
    """One name, several or none, as a list."""
    return [names] if isinstance(names, str) else list(names or [])


def missing_columns(table: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """One problem per name that is no column of the table."""
    have = [str(column) for column in table.columns]
    shown = ", ".join(have[:100]) + (f" and {len(have) - 100} more" if len(have) > 100 else "")
    problems = []
    for name in dict.fromkeys(names):
        if name not in table.columns:
            near = difflib.get_close_matches(name, have[:1000], 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            problems.append(f"no column {name!r} in the table{hint}; columns: {shown}")
    return problems


def numbers(column: pd.Series, exact: bool = False) -> tuple[np.ndarray, list[str]]:
    """Cells (n,) as floats, or as decimals if ``exact``, None where empty; and the problems."""
    values, bad = [], []
    for row, cell in enumerate(column, start=1):
        number = None
        if not (pd.isna(cell) or (isinstance(cell, str) and not cell.strip())):
            try:
                number = Decimal(str(cell).strip()) if exact else float(cell)
                # Python reads 1_000 as a number; a table means something else by it.
                finite = math.isfinite(number) and "_" not in str(cell)
            except (InvalidOperation, ValueError, TypeError):
                finite = False
            if not finite:
                bad.append(f"{str(cell)!r} in row {row}")
                number = None
        values.append(number)
    problems = []
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        problems.append(
            f"response {column.name!r}: {', '.join(bad[:5])}{more}; allowed: finite numbers"
        )
    return np.array(values, dtype=object), problems


def _unsquarable(response: str, values: np.ndarray) -> list[str]:
    """A problem where squares of the values or their differences leave the range of float64."""
    low, high = float(min(values)), float(max(values))
    spread = high / 2 - low / 2
    if max(abs(low), abs(high)) <= LARGEST and not 0 < spread < 1 / LARGEST:
        return []
    return [
        f"response {response!r}: values from {low:g} to {high:g} have no squares in float64; "
        f"allowed: sizes below {LARGEST:g} and differences above {1 / LARGEST:g}; rescale it"
    ]


def _centred(values: np.ndarray, exact: bool) -> tuple[np.ndarray, float]:
    if exact:
        fractions = [Fraction(value) for value in values]
        mean = sum(fractions) / len(fractions)
        return np.array([float(value - mean) for value in fractions]), float(mean)
    y = values.astype(float)
    first = y.mean()
    y = y - first
    # The first mean is rounded at the scale of y; what is left is removed at its own scale.
    second = y.mean()
    return y - second, first + second


def as_labels(column: pd.Series) -> pd.Series:
    """Levels as text, NaN where a cell is empty; whole floats print as integers."""
    known = ~column.isna().to_numpy()
    cells = column[known].tolist()
    if pd.api.types.is_float_dtype(column) and all(c % 1 == 0 and abs(c) < 2**53 for c in cells):
        cells = map(int, cells)
    # Plain Python on purpose: tables are short, and a pandas call costs as much as a hundred cells.
    labels = np.full(len(column), np.nan, dtype=object)
    labels[known] = [str(cell).strip() or np.nan for cell in cells]
    return pd.Series(labels, column.index, name=column.name)


def with_cells(table: pd.DataFrame, factors: Sequence[str]) -> tuple[pd.DataFrame, str]:
    """The table with one more column, and its name: the observed cells of the factors."""
    problems = missing_columns(table, factors)
    if problems:
        raise UserError(problems)
    labels = [as_labels(table[name]) for name in factors]
    cells = pd.Series(list(zip(*labels, strict=True)), index=table.index)
    empty = pd.concat(labels, axis=1).isna().any(axis=1)
    name = f"cell of {' and '.join(factors)}"
    return table.assign(**{name: cells.map(str).mask(empty)}), name


def _ordered(column: pd.Series, labels: pd.Series) -> list[str]:
    """Levels in the order of the categories, of the numbers, or of first appearance."""
    present = list(labels.unique())
    if isinstance(column.dtype, pd.CategoricalDtype):
        categories = as_labels(pd.Series(column.cat.categories))
        return [level for level in categories if level in set(present)]
    try:
        return sorted(present, key=float)
    except ValueError:
        return present


def orthonormal(
    blocks: Sequence[np.ndarray],
    within: np.ndarray | None = None,
    constant: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Orthonormal bases of what each block (n, k) adds to the constant and earlier blocks.

    ``within``, an orthonormal basis (n, m) outside the constant, projects the blocks on its
    space first: a stratum. ``constant`` (n, 1) is the constant's direction where the blocks
    are given in other coordinates than the rows.
    """
    n = len(blocks[0])
    basis = np.full((n, 1), n**-0.5) if constant is None else constant
    added = []
    for block in blocks:
        seen = block if within is None else within @ (within.T @ block)
        rest = _outside(seen, basis)
        u, s, _ = np.linalg.svd(rest, full_matrices=False)
        new = u[:, s > RANK_TOLERANCE * np.linalg.norm(block, 2)]
        new = np.linalg.qr(_outside(new, basis))[0]
        added.append(new)
        basis = np.hstack([basis, new])
    return added


def _outside(block: np.ndarray, basis: np.ndarray) -> np.ndarray:
    for _ in range(2):  # twice is enough (Kahan and Parlett)
        block = block - basis @ (basis.T @ block)
    return block


def spanned(blocks: Sequence[np.ndarray], n: int) -> np.ndarray:
    """Orthonormal basis (n, rank) of the constant and the blocks, the constant first."""
    return np.hstack([np.full((n, 1), n**-0.5), *(orthonormal(blocks) if blocks else [])])


def left_by(basis: np.ndarray, y: np.ndarray, rounding: float = 0.0) -> np.ndarray:
    """Residuals (n,) of ``y`` (n,) on an orthonormal basis (n, rank).

    Residuals at the rounding of ``y``, or of what it was centred from (see `Data`), are an exact
    fit, not an error variance: they are 0.
    """
    rest, df = _outside(y[:, None], basis)[:, 0], len(y) - basis.shape[1]
    exact = not df or rest @ rest <= max(ROUNDING * (y @ y), df * rounding**2)
    return np.zeros(len(y)) if exact else rest


def sum_of_squares(basis: np.ndarray, data: Data) -> float:
    """Squared length of the projection of the response on an orthonormal basis (n, k).

    Sums are exact (Shewchuk): at n = 18009 plain ones cost two of fifteen digits. What is at the
    rounding of the response is 0.
    """
    ss = math.fsum(math.fsum(column * data.y) ** 2 for column in basis.T)
    return 0.0 if data.is_rounding(ss, basis.shape[1]) else ss


class Model:
    """A linear model ``y ~ 1 + terms`` of factors in sum-to-zero coding, and of quantities.

    Parameters
    ----------
    data : complete rows.
    terms : tuples of names; ``("A", "B")`` is the interaction.
    """

    def __init__(self, data: Data, terms: Sequence[Term]):
        self.data = data
        self.terms = list(terms)
        self.n = len(data.y)
        self._present = {frozenset(), *map(frozenset, terms)}

    def coding(self, term: Term, name: str) -> np.ndarray:
        """Coding matrix (levels, columns) of one factor within a term.

        Sum contrasts where the term without the factor is in the model too, else one column
        per level (R's rule, so that nested models keep their meaning).
        """
        k = len(self.data.levels[name])
        if frozenset(term) - {name} not in self._present:
            return np.eye(k)
        return np.vstack([np.eye(k - 1), -np.ones(k - 1)])

    def columns(self, term: Term) -> np.ndarray:
        """Columns (n, k) of a term in the model matrix."""
        parts = [self._variable(term, name) for name in term]
        return reduce(lambda a, b: (a[:, :, None] * b[:, None, :]).reshape(self.n, -1), parts)

    def _variable(self, term: Term, name: str) -> np.ndarray:
        if name in self.data.quantities:
            return self.data.quantities[name][:, None]
        return self.coding(term, name)[self.data.codes[name]]

    @cached_property
    def matrix(self) -> np.ndarray:
        """The model matrix (n, p), the constant first."""
        return np.hstack([np.ones((self.n, 1)), *map(self.columns, self.terms)])

    @cached_property
    def basis(self) -> np.ndarray:
        """Orthonormal basis (n, rank) of the model, the constant first."""
        return spanned([self.columns(term) for term in self.terms], self.n)

    @property
    def rank(self) -> int:
        return self.basis.shape[1]

    @property
    def df(self) -> int:
        """Residual degrees of freedom."""
        return self.n - self.rank

    @cached_property
    def residuals(self) -> np.ndarray:
        return left_by(self.basis, self.data.y, self.data.rounding)

    @property
    def rss(self) -> float:
        """Residual sum of squares."""
        return math.fsum(self.residuals**2)

    @cached_property
    def leverage(self) -> np.ndarray:
        return np.einsum("ij,ij->i", self.basis, self.basis)

    def relatives(self, term: Term) -> list[Term]:
        """Terms that contain a term."""
        return [other for other in self.terms if set(term) < set(other)]

    def ordered(self, term: Term, type: int) -> tuple[list[Term], list[Term]]:
        """Terms before a term and terms after it, in the order in which the type adds them.

        Type I adds them as they stand, type II a term after all that do not contain it, type
        III after all others.
        """
        if type == 1:
            at = self.terms.index(term)
            return self.terms[:at], self.terms[at + 1 :]
        after = self.relatives(term) if type == 2 else []
        return [other for other in self.terms if other != term and other not in after], after

    def added(self, term: Term, type: int) -> tuple[np.ndarray, np.ndarray]:
        """Orthonormal bases (n, df) of what a term adds, and of what comes after it."""
        before, after = self.ordered(term, type)
        blocks = [self._coordinates[t] for t in [*before, term, *after]]
        bases = orthonormal(blocks, constant=np.eye(self.rank, 1))
        at = len(before)
        after = np.hstack([np.empty((self.rank, 0)), *bases[at + 1 :]])
        return self.basis @ bases[at], self.basis @ after

    @cached_property
    def _coordinates(self) -> dict[Term, np.ndarray]:
        """Columns (rank, k) of each term by the basis: few numbers, however many the rows."""
        return {term: self.basis.T @ self.columns(term) for term in self.terms}

    def names(self) -> list[str]:
        """Labels of the terms."""
        return [label(term) for term in self.terms]


class CellsModel:
    """The model ``y ~ 1 + blocks + cell``, whose cells may be as many as a third of the rows.

    Blocks are centred within the cells, so that only they are decomposed (Frisch, Waugh and
    Lovell): time and memory grow with the rows, where `Model` takes rows times cells squared.

    Parameters
    ----------
    data : complete rows; names of the ``blocks``, which are terms, and ``cell`` are factors of it.
    """

    def __init__(self, data: Data, blocks: Sequence[Term], cell: str):
        model = Model(data, blocks)
        self.data, self.n = data, len(data.y)
        self._codes = data.codes[cell]
        self._size = np.bincount(self._codes)
        columns = model.matrix[:, 1:]
        self._means = np.zeros((len(self._size), columns.shape[1]))
        np.add.at(self._means, self._codes, columns)
        self._means /= self._size[:, None]
        within = columns - self._means[self._codes]
        u, s, vt = np.linalg.svd(within, full_matrices=False)
        keep = s > RANK_TOLERANCE * np.linalg.norm(columns)
        self._u, self._rows, self._roots = u[:, keep], vt[keep], vt[keep].T / s[keep]
        self.df = self.n - len(self._size) - int(keep.sum())

    def _of_cells(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self._codes, values) / self._size

    @cached_property
    def residuals(self) -> np.ndarray:
        """Residuals (n,); an exact fit leaves 0, as `left_by` has it."""
        y = self.data.y
        rest = y - self._of_cells(y)[self._codes]
        rest = _outside(rest[:, None], self._u)[:, 0]
        rest = rest - self._of_cells(rest)[self._codes]
        exact = not self.df or self.data.is_rounding(rest @ rest, self.df)
        return np.zeros(self.n) if exact else rest

    @property
    def rss(self) -> float:
        """Residual sum of squares."""
        return math.fsum(self.residuals**2)

    @property
    def variance(self) -> float:
        """Residual mean square; NaN without residual degrees of freedom."""
        return self.rss / self.df if self.df else np.nan

    def adjusted(self, variance: float) -> tuple[np.ndarray, np.ndarray]:
        """Each cell's marginal mean and its standard error, (cells,); NaN if not estimable.

        ``variance`` is that of a run.
        """
        y = self.data.y
        within = y - self._of_cells(y)[self._codes]
        slopes = self._roots @ (self._u.T @ within)
        # Sum contrasts are 0 on the grid's average: a cell is moved from its own blocks there.
        means = self._of_cells(y) - self._means @ slopes + self.data.mean
        spread = 1 / self._size + np.sum((self._means @ self._roots) ** 2, axis=1)
        outside = self._means - self._means @ self._rows.T @ self._rows
        size = 1 + np.linalg.norm(self._means, axis=1)
        known = np.linalg.norm(outside, axis=1) <= 1e-8 * size
        return np.where(known, means, np.nan), np.where(known, (variance * spread) ** 0.5, np.nan)
