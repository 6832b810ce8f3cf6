"""Analysis of variance of any CSV table, and its rows as JSON."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import pandas as pd

from fitspace.errors import UserError
from fitspace.stats.anova import anova


def read_text(path: str | os.PathLike) -> pd.DataFrame:
    """Read a CSV with every cell as its text, so that no digit is lost; empty cells are NaN.

    Raises
    ------
    UserError : no such file, an empty one, one that is no CSV, or repeated runs.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; needed: a CSV with a header") from None
    except pd.errors.EmptyDataError:
        raise UserError(f"{path}: empty; needed: a CSV with a header and rows") from None
    except (OSError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise UserError(f"{path}: not a readable CSV: {error}") from None
    if table.empty:
        raise UserError(f"{path}: has a header and no rows; an analysis needs at least 2")
    return table


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


def anova_of_file(
    path: str | os.PathLike,
    *,
    formula: str | None = None,
    response: str | None = None,
    factors: Sequence[str] | None = None,
    interactions: bool = False,
    block: str | Sequence[str] | None = None,
    type: int = 2,
    robust: str | None = None,
    exact_decimals: bool = False,
) -> pd.DataFrame:
    """`fitspace.stats.anova` of a CSV file; ``attrs["notes"]`` says what was set aside.

    Rows with an empty cell in a used column are set aside; text that is no finite number
    (``nan`` and ``inf`` too) is an error.

    Raises
    ------
    UserError : all problems of the file and the model at once, each with the path.
    """
    table = read_text(path)
    problems = _repeated_runs(table)
    try:
        result = anova(
            table,
            response,
            factors,
            interactions=interactions,
            block=block,
            type=type,
            robust=robust,
            formula=formula,
            exact_decimals=exact_decimals,
        )
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(f"{path}: {problem}" for problem in problems)
    return result


def rows_for_json(table: pd.DataFrame) -> list[dict]:
    """Rows of a table as plain Python values; NaN and infinity become null."""
    rows = table.astype(object).to_dict("records")
    return [{key: _plain(value) for key, value in row.items()} for row in rows]


def _plain(value):
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
