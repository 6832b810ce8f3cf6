"""Analysis of variance of any CSV table, and its rows as JSON."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence

import pandas as pd

from fitspace.core.errors import UserError
from fitspace.stats.anova import anova
from fitspace.stats.digits import plain
from fitspace.stats.formula import parse
from fitspace.stats.given import LABELS
from fitspace.stats.linear import MISSING, as_list, numbers
from fitspace.stats.mixed import mixed

MOST_COLUMNS = 10_000
MOST_BYTES = 2**30
# What a file's first bytes say of its text; the longer marks first.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DECIMAL_COMMA = re.compile(r"[-+]?\d*,\d+([eE][-+]?\d+)?")


def read_text(path: str | os.PathLike) -> pd.DataFrame:
    """Read a CSV with every cell as its text, so that no digit is lost; empty cells are NaN.

    Columns are separated by commas, semicolons or tabs: what the header has most of, or what a
    first line ``sep=;`` says. Text is UTF-8, or UTF-16 with its mark; the file may be gzipped.
    Where commas separate no columns they may be decimal commas: a column of such numbers is read
    with points. ``attrs["notes"]`` says so.

    Raises
    ------
    UserError : no such file, an empty one, one that is no CSV, or a column named twice.
    """
    text = _text(path)
    first, _, rest = text.partition("\n")
    told = re.fullmatch(r'"?sep=(.)"?\r?', first, re.IGNORECASE)
    if told:
        text = rest
    try:
        separator = told[1] if told else _separator(path, text)
        header = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        _check_names(path, next(header, []))
        table = pd.read_csv(
            io.StringIO(text, newline=""),
            dtype=str,
            keep_default_na=False,
            na_values=[""],
            sep=separator,
        )
    except pd.errors.EmptyDataError:
        raise UserError(f"{path}: empty; needed: a CSV with a header and rows") from None
    except (pd.errors.ParserError, csv.Error) as error:
        raise UserError(f"{path}: not a readable CSV: {error}") from None
    if not isinstance(table.index, pd.RangeIndex):
        raise UserError(f"{path}: its rows have more cells than its header has columns")
    if table.empty:
        raise UserError(f"{path}: has a header and no rows; an analysis needs at least 2")
    return table if separator == "," else _with_points(table)


def _text(path: str | os.PathLike) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
        if content.startswith(b"\x1f\x8b"):
            with gzip.open(io.BytesIO(content)) as file:
                content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; needed: a CSV with a header") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a readable CSV: {error}") from None
    if len(content) > MOST_BYTES:
        raise UserError(f"{path}: more than {MOST_BYTES >> 30} GiB; allowed: at most that")
    encoding = next((name for mark, name in MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a readable CSV: {error}; save it as UTF-8") from None
    if "\0" in text:
        raise UserError(
            f"{path}: not a readable CSV: it has NUL characters (UTF-16 without its mark, or no "
            "text at all); save it as UTF-8"
        )
    return text


def _separator(path: str | os.PathLike, text: str) -> str:
    """The separator of a file's columns, by its header; quoted cells may hold line breaks."""
    quoted = False
    counts = Counter()
    for character in text:
        if character == '"':
            quoted = not quoted
        elif not quoted and character in "\r\n":
            break
        elif not quoted:
            counts[character] += 1
    else:
        if quoted:
            raise UserError(f"{path}: not a readable CSV: a quote in its header is never closed")
    return max(",;\t", key=lambda mark: counts[mark])


def _check_names(path: str | os.PathLike, names: list[str]) -> None:
    if len(names) > MOST_COLUMNS:
        raise UserError(f"{path}: {len(names)} columns; allowed: at most {MOST_COLUMNS}")
    repeated = sorted(name for name, times in Counter(names).items() if name and times > 1)
    if repeated:
        raise UserError(f"{path}: column(s) {', '.join(map(repr, repeated))} named twice")


def _with_points(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the decimal commas of its columns of numbers as points."""
    changed = []
    for name in table:
        cells = table[name].dropna().str.strip()
        commas = cells.str.contains(",", regex=False)
        with_comma = cells[commas]
        if with_comma.empty or not with_comma.map(_DECIMAL_COMMA.fullmatch).all():
            continue
        if numbers(cells[~commas])[1]:
            continue
        table[name] = table[name].str.replace(",", ".", regex=False)
        changed.append(repr(name))
    if changed:
        table.attrs["notes"] = [f"decimal commas read as points in {', '.join(changed)}"]
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


def anova_of_file(path: str | os.PathLike, **options) -> pd.DataFrame:
    """`fitspace.stats.anova` of a CSV file, with its options; ``attrs["notes"]`` as there.

    >>> import tempfile
    >>> table = pd.DataFrame({"y": [4.1, 4.5, 5.2, 5.0], "arm": list("aabb")})
    >>> with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
    ...     table.to_csv(file.name, sep=";", decimal=",", index=False)
    ...     found = anova_of_file(file.name, formula="y ~ arm")
    >>> found.attrs["notes"], round(float(found["F"][0]), 4)
    (["decimal commas read as points in 'y'"], 12.8)

    Rows with an empty cell in a used column are set aside; a response that is no finite number
    (``nan`` and ``inf`` too) is an error. Where a formula names a column of numbers it enters as
    a number (see `given`); factors and blocks named beside a response are factors.

    Raises
    ------
    UserError : all problems of the file and the model at once, each with the path.
    """
    return _analysed(path, options, lambda table: anova(table, **options))


def mixed_of_file(
    path: str | os.PathLike, formula: str, random: Sequence[str], ddf: str = "kenward-roger"
) -> pd.DataFrame:
    """`fitspace.stats.mixed` of a CSV file, read as by `anova_of_file`.

    >>> import tempfile
    >>> rows = [(t, a, s, 10 * t + (a == "b") + 0.1 * s * (t + 1) ** 2)
    ...         for t in range(3) for a in "ab" for s in range(2)]
    >>> with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
    ...     pd.DataFrame(rows, columns=["task", "arm", "seed", "y"]).to_csv(file.name, index=False)
    ...     found = mixed_of_file(file.name, "y ~ arm", ["task", "task:arm"])
    >>> found.round(4)
      source  num_df  den_df        F       p
    0    arm       1     2.0  24.4898  0.0385

    Raises
    ------
    UserError : as `mixed`, each problem with the path.
    """
    options = {"formula": formula, "block": list(random)}  # what groups is no number
    return _analysed(path, options, lambda table: mixed(table, formula, random, ddf))


def _analysed(path, options: dict, analysis: Callable[[pd.DataFrame], pd.DataFrame]):
    """An analysis of a file, with all problems of both at once."""
    table = read_text(path)
    problems, notes = _repeated_runs(table), table.attrs.get("notes", [])
    try:
        table, more = _measured(table, options)
        result = analysis(table)
        result.attrs["notes"] = notes + more + result.attrs["notes"]
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(f"{path}: {problem}" for problem in problems)
    return result


def _measured(table: pd.DataFrame, options: dict) -> tuple[pd.DataFrame, list[str]]:
    """The table with its formula's columns of numbers as numbers, and what was not one."""
    formula = options.get("formula") or options.get("response") or ""
    if "~" not in formula:
        return table, []
    read = parse(formula)
    blocks = {name for term in as_list(options.get("block")) for name in term.split(":")}
    named = read.factors | blocks | set(LABELS) | {read.response, options.get("cluster")}
    notes = []
    for name in read.names:
        if name in named or name not in table:
            continue
        cells = table[name].str.strip()
        cells = cells.where(~cells.str.casefold().isin(MISSING))
        values, problems = numbers(cells.dropna())
        odd = sum(value is None for value in values)
        if not problems and len(values):
            lost = int((table[name].notna() & cells.isna()).sum())
            if lost:
                notes.append(f"{name}: {lost} cell(s) such as NA are no numbers: taken as empty")
            table = table.assign(**{name: pd.to_numeric(cells)})
        elif 0 < odd < len(values) / 2:
            notes.append(
                f"{name} is taken as a factor, because {odd} of {len(values)} cells are no numbers"
            )
    return table, notes


def rows_for_json(table: pd.DataFrame) -> list[dict]:
    """Rows of a table as plain Python values (see `digits.plain`).

    >>> rows_for_json(pd.DataFrame({"source": ["arm"], "F": [float("nan")], "p": [1 / 3]}))
    [{'source': 'arm', 'F': None, 'p': 0.3333333333}]
    """
    return plain(table.astype(object).to_dict("records"))
