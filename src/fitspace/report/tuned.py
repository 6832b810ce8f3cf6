"""What tuning tried and chose for each point, and how the points would rank without it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from fitspace.core.texts import cell
from fitspace.metrics import METRICS
from fitspace.results.tuning import NAME
from fitspace.study import Study

RANKS = "tuning_ranks.csv"
_TEXTS, _TRUTHS = ("point", "arm", "response", "scale"), ("best", "tied", "edge")
_NUMBERS = ("runs", "mean", "worse", "low", "high")


def read(study: Study, path: Path) -> tuple[pd.DataFrame | None, list[str]]:
    """tuning.csv with its numbers as numbers, and what is wrong with the file."""
    from fitspace.stats.reading import read_text

    if study.tuning is None or not path.exists():
        return None, []
    text = read_text(path)
    needed = (*_TEXTS, *study.tuning.factors, *_NUMBERS, *_TRUTHS)
    if missing := [name for name in needed if name not in text]:
        listed = ", ".join(text.columns)
        return None, [f"{path}: no column {name!r}; columns: {listed}" for name in missing]
    table, problems = text.copy(), []
    for name in _NUMBERS:
        values = pd.to_numeric(text[name], errors="coerce").astype(float)
        bad = text[name][text[name].notna() & ~(values.abs() < float("inf"))].unique()
        problems += [f"{path}: column {name!r}: {value!r} is no number" for value in bad[:5]]
        table[name] = values
    for name in _TRUTHS:
        odd = sorted(set(text[name].fillna("")) - {"True", "False"})
        problems += [f"{path}: column {name!r}: {value!r}; allowed: True, False" for value in odd]
        table[name] = text[name].eq("True")
    if text["response"].nunique() > 1:
        problems.append(f"{path}: column 'response': several; needed: the one of the tuning")
    for point, rows in table.groupby("point", sort=False):
        if rows["best"].sum() != 1:
            problems.append(
                f"{path}: point {point!r} has {rows['best'].sum()} best levels; needed: 1"
            )
    return (None if problems else table.astype({"runs": int})), problems


def ranks(study: Study, table: pd.DataFrame | None) -> pd.DataFrame:
    """How the points rank at the study's own settings for all, and each at its best: one row.

    ``tau`` is Kendall's correlation of both rankings; ``moved`` the number of points whose place
    differs; ``gain`` the mean over points of what tuning gains, on the table's scale. Empty where
    the study's own settings are among the levels of some points only, or there is one point.
    """
    if table is None or not all(name.startswith("train.") for name in study.tuning.factors):
        return pd.DataFrame()
    own = {n: cell(getattr(study.train, n.removeprefix("train."))) for n in study.tuning.factors}
    inside = (table[list(own)] == pd.Series(own)).all(axis=1)
    untuned = table[inside].set_index("point")
    tuned = table[table["best"]].set_index("point")
    if len(tuned) < 2 or len(untuned) < len(tuned):
        return pd.DataFrame()
    lower = METRICS[table["response"].iloc[0]].lower
    both = pd.DataFrame({"own": untuned["mean"], "tuned": tuned["mean"]})
    places = both.rank(ascending=lower, na_option="bottom")
    row = {
        "response": table["response"].iloc[0],
        "at": ", ".join(f"{name} {level}" for name, level in own.items()),
        "points": len(both),
        "tau": places["own"].corr(places["tuned"], method="kendall"),
        "moved": int((places["own"] != places["tuned"]).sum()),
        "first_own": places["own"].idxmin(),
        "first_tuned": places["tuned"].idxmin(),
        "gain": untuned["worse"].mean(),
        "diverged": int(both["own"].isna().sum()),
    }
    return pd.DataFrame([row])


__all__ = ["NAME", "RANKS", "ranks", "read"]
