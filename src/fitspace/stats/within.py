"""Factors within subjects: univariate tests, corrected where the differences are not alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.linalg import helmert
from scipy.special import fdtrc

from fitspace.core.errors import UserError
from fitspace.stats.formula import label
from fitspace.stats.linear import Data, Model, as_list, read, with_cells

NAN = float("nan")


def within(
    table: pd.DataFrame, response: str, subject: str, within: str | Sequence[str]
) -> pd.DataFrame:
    """Tests of factors that every subject (a task, say) has at all levels, for subjects in general.

    >>> runs = pd.DataFrame(
    ...     [(t, a, y) for t, ys in enumerate([(3, 5, 4), (1, 4, 4), (2, 6, 3), (5, 7, 8)])
    ...      for a, y in zip("abc", ys)], columns=["task", "arm", "y"]
    ... )
    >>> found = within(runs, "y", subject="task", within="arm")
    >>> found[["source", "F", "gg_eps", "p", "p_gg"]].round(4)
      source       F  gg_eps       p    p_gg
    0    arm  9.3871  0.6664  0.0142  0.0346

    Replicates are averaged first. One row per term of the full factorial: source, df, num_df (the
    same), den_df, F, gg_eps (Greenhouse and Geisser 1959), hf_eps (Huynh and Feldt's, as Lecoutre
    1991 corrects it, not cut off at 1), p, p_gg, p_hf (of both degrees of freedom times
    min(1, epsilon)). Where differences between levels vary alike over subjects both epsilons
    are 1 and p holds; where they do not it is too small, and p_gg holds.

    Subjects without a value in some cell are set aside, with a note: `mixed` keeps them.

    Raises
    ------
    UserError : a table that cannot be analysed, or fewer than two complete subjects.
    """
    factors = as_list(within)
    if subject in factors or not factors:
        raise UserError(f"within: {factors}; needed: factors other than the subject")
    data = read(table, response, [subject, *factors])
    shape = [len(data.levels[name]) for name in factors]
    cell = np.ravel_multi_index([data.codes[name] for name in factors], shape)
    means, notes = _means(data, subject, cell, math.prod(shape))
    terms = [term for k in range(len(factors)) for term in combinations(factors, k + 1)]
    rows = []
    for term in terms:
        parts = [
            helmert(k) if name in term else np.full((1, k), k**-0.5)
            for name, k in zip(factors, shape, strict=True)
        ]
        z = means @ reduce(np.kron, parts).T
        rows.append(_tested(label(term), z, means, data.rounding))
    result = pd.DataFrame(rows)
    if result["F"].isna().any():
        notes.append("a term without F: the subjects' differences have no spread")
    result.attrs["notes"] = notes
    return result


def general(
    table: pd.DataFrame, response: str, factors: str | Sequence[str], task: str
) -> pd.DataFrame:
    """Tests of factors for tasks in general, each against how its effect varies over these tasks.

    >>> runs = pd.DataFrame(
    ...     [(t, a, s, y + s) for t, ys in enumerate([(3, 5, 4), (1, 4, 4), (2, 6, 3), (5, 7, 8)])
    ...      for a, y in zip("abc", ys) for s in (0, 1)], columns=["task", "arm", "seed", "y"]
    ... )
    >>> general(runs.drop(index=4), "y", "arm", "task")[["source", "F", "p", "p_gg"]].round(4)
      source        F       p    p_gg
    0    arm  10.2308  0.0117  0.0347

    Runs are averaged within each task and cell, so that a lost run leaves its cell where another
    seed ran. Each factor is adjusted for the others (type II, additive), on the cells that the
    design has; with one factor the test is `within`'s. Columns as there; p_gg is the one to rely
    on. A task without runs in some cell is set aside, with a note.

    On the committed study of fifteen arms and seven tasks, whose effects vary unalike, p errs in
    15% to 25% of cases instead of 5%, and so does Kenward and Roger's test, which takes them to
    vary alike; p_gg errs in 5% to 7% (benchmarks/error_rates.py).

    Raises
    ------
    UserError : a table that cannot be analysed, or fewer than two complete tasks.
    """
    factors = as_list(factors)
    if task in factors:
        raise UserError(f"factors: {task!r} is the task")
    table, cell = with_cells(table, factors)
    data = read(table, response, [task, cell, *factors])
    means, notes = _means(data, task, data.codes[cell], len(data.levels[cell]))
    first = np.unique(data.codes[cell], return_index=True)[1]
    codes = {name: data.codes[name][first] for name in factors}
    design = Data(np.zeros(len(first)), 0.0, data.levels, codes, data.index[first])
    model = Model(design, [(name,) for name in factors])
    rows = []
    for term in model.terms:
        basis, _ = model.added(term, 2)
        if not basis.shape[1]:
            notes.append(f"{label(term)} cannot be told apart from the other factors")
        rows.append(_tested(label(term), means @ basis, means, data.rounding))
    result = pd.DataFrame(rows)
    result.attrs["notes"] = notes
    return result


def _means(data: Data, subject: str, cell: np.ndarray, cells: int) -> tuple[np.ndarray, list[str]]:
    """Means (subjects, cells) of the subjects that have them all, and notes."""
    if cells > len(data.y):
        raise UserError(f"{subject}: none has a value in all {cells} cells; needed: at least 2")
    size = (len(data.levels[subject]), cells)
    counts, sums = np.zeros(size), np.zeros(size)
    np.add.at(counts, (data.codes[subject], cell), 1)
    np.add.at(sums, (data.codes[subject], cell), data.y)
    whole = (counts > 0).all(axis=1)
    notes = list(data.notes)
    if not whole.all():
        names = [name for name, kept in zip(data.levels[subject], whole, strict=True) if not kept]
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        notes.append(f"{subject} {shown}: no value in some cell, set aside; stats.mixed keeps them")
    if whole.sum() < 2:
        kept = f"{whole.sum()} of {len(whole)} have a value in all {cells} cells"
        raise UserError(f"{subject}: {kept}; needed: at least 2")
    return sums[whole] / counts[whole], notes


def epsilon(cov: np.ndarray) -> float:
    """Greenhouse and Geisser's (1959), of the covariance (k, k) of orthonormal contrasts, up to a
    factor: 1 where the differences of levels vary alike."""
    return float(np.trace(cov)) ** 2 / (len(cov) * float(np.sum(cov**2)))


def _tested(source: str, z: np.ndarray, means: np.ndarray, rounding: float) -> dict:
    """Row of a hypothesis, given orthonormal contrasts (subjects, k) of the cells' means."""
    subjects, k = z.shape
    r = subjects - 1
    centred = z - z.mean(axis=0)
    cov = centred.T @ centred / r
    trace = float(np.trace(cov))
    row = {"source": source, "df": k, "num_df": k, "den_df": k * r}
    names = ["F", "gg_eps", "hf_eps", "p", "p_gg", "p_hf"]
    if not k or trace * r <= max(1e-28 * float(np.sum(means**2)), k * r * rounding**2):
        return row | dict.fromkeys(names, NAN)
    F = subjects * float(np.sum(z.mean(axis=0) ** 2)) / trace
    gg = epsilon(cov)
    rest = k * (r - k * gg)
    hf = ((r + 1) * k * gg - 2) / rest if k > 1 and abs(rest) > 1e-9 else 1.0 if k == 1 else NAN
    p = [float(fdtrc(k * e, k * r * e, F)) for e in (1.0, gg, min(1.0, hf) if hf == hf else NAN)]
    return row | dict(zip(names, [F, gg, hf, *p], strict=True))
