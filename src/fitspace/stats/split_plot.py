"""A factor whose levels share their unit: images drawn in several ways from one training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.linalg import helmert
from scipy.special import fdtrc, stdtrit

from fitspace.core.errors import UserError
from fitspace.stats.anova import anova
from fitspace.stats.formula import label
from fitspace.stats.strata import WITHIN
from fitspace.stats.within import epsilon


def split_plot(
    table: pd.DataFrame,
    response: str,
    unit: str,
    within: str,
    between: Sequence[str] = (),
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means of a within-unit factor's levels, and its tests against what varies within units.

    >>> runs = pd.DataFrame(
    ...     [(u, arm, s, y) for u, (arm, *ys) in enumerate([("a", 1, 2, 4), ("a", 2, 3, 4),
    ...      ("b", 3, 6, 8), ("b", 2, 4, 8)]) for s, y in zip((25, 50, 100), ys)],
    ...     columns=["training", "arm", "step", "y"],
    ... )
    >>> means, tests = split_plot(runs, "y", unit="training", within="step", between=["arm"])
    >>> means[["level", "units", "mean"]].values.tolist()
    [['25', 4, 2.0], ['50', 4, 3.75], ['100', 4, 6.0]]
    >>> tests[["source", "df", "F"]].round(3).values.tolist()
    [['step', 2, 48.25], ['arm:step', 2, 6.75], ['residual', 4, nan]]

    Units without a value at some level are set aside, with a note in ``attrs["notes"]``.

    Parameters
    ----------
    unit : whose levels were treated once each, such as a training.
    within : the factor that varies within units; its levels in the order in which they stand.
    between : factors that vary between units; the tests have their interactions with ``within``.

    Returns
    -------
    means : level, units, mean, low, high: 95% limits of the mean by what varies within units alone:
        each unit's own mean is taken off, the variance multiplied by k/(k - 1) for k levels
        (Cousineau 2005, Morey 2008). They compare levels, not units.
    tests : source, df, num_df (the same), den_df, F, p of R's ``aov`` with ``Error(unit)``, in the
        stratum within units: ``within``, its interactions, ``residual``; gg_eps, p_gg: Greenhouse
        and Geisser's (1959), as R's car has them. p takes the differences of levels to vary alike,
        p_gg does not.

    Raises
    ------
    UserError : columns that are missing, fewer than two levels or two complete units.
    """
    between = list(between)
    names = [response, unit, within, *between]
    if missing := [name for name in names if name not in table]:
        raise UserError(f"split plot: no column {name!r}" for name in missing)
    rows = table[names].dropna().reset_index(drop=True)
    text = rows[within].astype(str)
    levels = list(dict.fromkeys(text))
    if len(levels) < 2:
        raise UserError(f"{within}: {len(levels)} level(s) with values; needed: at least 2")
    wide = rows.assign(**{within: text}).pivot_table(response, unit, within, sort=False)[levels]
    whole = wide.dropna()
    if len(whole) < 2:
        raise UserError(f"{within}: {len(whole)} {unit}(s) have all levels; needed: at least 2")
    notes = []
    if lost := len(wide) - len(whole):
        notes.append(f"{within}: {lost} {unit}(s) lack a level and were set aside")
    means = _means(whole)
    kept = rows[rows[unit].isin(whole.index)].assign(**{within: text})
    varying = [name for name in between if kept[name].nunique() > 1]
    tests = _tests(kept, response, unit, within, varying)
    of_units = kept.drop_duplicates(unit).set_index(unit).loc[whole.index, varying]
    tests["gg_eps"] = pd.Series(_epsilon(whole, of_units), tests.index).where(tests["F"].notna())
    df, df2 = (tests[name] * tests["gg_eps"] for name in ("num_df", "den_df"))
    tests["p_gg"] = fdtrc(df, df2, tests["F"])
    means.attrs["notes"] = tests.attrs["notes"] = notes
    return means, tests


def _means(wide: pd.DataFrame) -> pd.DataFrame:
    """Of units (rows) at all levels (columns)."""
    values = wide.to_numpy(float)
    n, k = values.shape
    own = values - values.mean(axis=1, keepdims=True) + values.mean()
    half = stdtrit(n - 1, 0.975) * np.sqrt(own.var(axis=0, ddof=1) * k / (k - 1) / n)
    mean = values.mean(axis=0)
    columns = {"level": list(wide), "units": n, "mean": mean, "low": mean - half}
    return pd.DataFrame(columns | {"high": mean + half})


def _epsilon(wide: pd.DataFrame, of_units: pd.DataFrame) -> float:
    """How alike the differences of levels vary, beside what the factors between units explain."""
    contrasts = wide.to_numpy(float) @ helmert(wide.shape[1]).T
    codes = [pd.get_dummies(of_units[name].astype(str)).to_numpy(float) for name in of_units]
    design = np.column_stack([np.ones(len(wide)), *codes])
    left = contrasts - design @ np.linalg.lstsq(design, contrasts, rcond=None)[0]
    return epsilon(left.T @ left) if left.any() else float("nan")


def _tests(
    rows: pd.DataFrame, response: str, unit: str, within: str, varying: list[str]
) -> pd.DataFrame:
    # Names of a table's columns need not be names in a formula.
    safe = {name: f"f{i}" for i, name in enumerate([response, unit, within, *varying])}
    y, of, level, *others = safe.values()
    terms = [*others, level, *(f"{other}:{level}" for other in others)]
    renamed = rows[list(safe)].rename(columns=safe)
    found = anova(renamed, formula=f"{y} ~ {' + '.join(terms)} + Error({of})")
    found = found[found["stratum"] == WITHIN].reset_index(drop=True)
    back = {short: name for name, short in safe.items()}
    source = [label([back.get(p, p) for p in s.split(":")]) for s in found["source"]]
    tested = found["source"].ne("residual")
    rest = found["df"].iloc[-1]
    found = found.assign(source=source, num_df=found["df"].where(tested))
    found["den_df"] = pd.Series(rest, found.index).where(tested)
    return found[["source", "df", "num_df", "den_df", "F", "p"]]
