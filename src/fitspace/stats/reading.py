"""Analysis of variance of any CSV table, and its rows as JSON."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter

import pandas as pd

from fitspace.core.errors import UserError
from fitspace.stats.anova import anova
from fitspace.stats.digits import plain

MOST_COLUMNS = 10_000


def read_text(path: str | os.PathLike) -> pd.DataFrame:
    """Read a CSV with every cell as its text, so that no digit is lost; empty cells are NaN.

    Columns are separated by commas, semicolons or tabs: what the header has most of.

    Raises
    ------
    UserError : no such file, an empty one, one that is no CSV, or a column named twice.
    """
    try:
        separator = _separator(path)
        table = pd.read_csv(
            path,
            dtype=str,
            keep_default_na=False,
            na_values=[""],
            sep=separator,
            encoding="utf-8-sig",
        )
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; needed: a CSV with a header") from None
    except pd.errors.EmptyDataError:
        raise UserError(f"{path}: empty; needed: a CSV with a header and rows") from None
    except (OSError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise UserError(f"{path}: not a readable CSV: {error}") from None
    if not isinstance(table.index, pd.RangeIndex):
        raise UserError(f"{path}: its rows have more cells than its header has columns")
    if table.empty:
        raise UserError(f"{path}: has a header and no rows; an analysis needs at least 2")
    return table


def _separator(path: str | os.PathLike) -> str:
    """The separator of a file's columns, by its header, which may name no column twice."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        header = file.readline()
    separator = max(",;\t", key=re.sub('"[^"]*"', "", header).count)
    names = next(csv.reader([header], delimiter=separator), [])
    if len(names) > MOST_COLUMNS:
        raise UserError(f"{path}: {len(names)} columns; allowed: at most {MOST_COLUMNS}")
    repeated = sorted(name for name, times in Counter(names).items() if name and times > 1)
    if repeated:
        raise UserError(f"{path}: column(s) {', '.join(map(repr, repeated))} named twice")
    return separator


def _repeated_runs(table: pd.DataFrame) -> list[str]:
    if "run" not in table.columns:
        return []
    runs = table["run"].dropna()
    repeated = list(runs[runs.duplicated()].unique())
    if not repeated:
        return []
    more = f" and {len(repeated) - 5} more" if len(repeated) > 5 else ""
    named = ", ".join(map(repr, repeated[:5]))
    return [f"run: {named}{more} stand(s) in more than one row; a run is counted once"]


def anova_of_file(path: str | os.PathLike, **options) -> pd.DataFrame:
    """`fitspace.stats.anova` of a CSV file, with its options; ``attrs["notes"]`` as there.

    Rows with an empty cell in a used column are set aside; text that is no finite number
    (``nan`` and ``inf`` too) is an error.

    Raises
    ------
    UserError : all problems of the file and the model at once, each with the path.
    """
    table = read_text(path)
    problems = _repeated_runs(table)
    try:
        result = anova(table, **options)
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(f"{path}: {problem}" for problem in problems)
    return result


def rows_for_json(table: pd.DataFrame) -> list[dict]:
    """Rows of a table as plain Python values (see `digits.plain`)."""
    return plain(table.astype(object).to_dict("records"))
