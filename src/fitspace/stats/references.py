"""Every point of a study held against its references: the untouched base and full fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from fitspace.core.errors import UserError
from fitspace.stats.best import ALPHA
from fitspace.stats.blocks import TASK, Blocks, blocks_of
from fitspace.stats.control import noninferiority, share_of
from fitspace.stats.deciding import FEW, apart, of_limits
from fitspace.stats.fits import LinearFit
from fitspace.stats.given import given
from fitspace.stats.linear import Model
from fitspace.stats.means import differences
from fitspace.stats.multiplicity import tail

# Methods that are references; each is one point of a study, or none.
BASE, FULL = "none", "full"
POINT = "point"
# More are not compared one by one: the model of all points grows with their square.
MOST_POINTS = 150


@dataclass(frozen=True)
class Against:
    """``pairs``: control (the reference's method), level, other, and the columns of `apart`.

    ``by_task``: task, point, estimate, se, df, low, high and p_adjusted (Dunnett's within each
    task, one variance for all runs) of each point's difference from the untouched base.
    """

    pairs: pd.DataFrame = field(default_factory=pd.DataFrame)
    by_task: pd.DataFrame = field(default_factory=pd.DataFrame)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class AsGood:
    """``points``: point, difference (from full), se, df, se_limits, df_limits (see
    `separated`), low, high, margin, p_noninferior, p_equivalent, noninferior, equivalent, few.

    Both p are adjusted over the points, and the larger of the one with one variance for all runs
    (Dunnett's) and the one by which each has its own (Bonferroni's); low and high, one-sided
    limits each, are the wider.
    ``assay``: task (``all`` first), gain (full less the base, above 0 where full is better), se,
    df, p (one-sided, the larger of both), beaten.
    """

    points: pd.DataFrame = field(default_factory=pd.DataFrame)
    assay: pd.DataFrame = field(default_factory=pd.DataFrame)
    notes: list[str] = field(default_factory=list)


def against(runs: pd.DataFrame, response: str) -> Against:
    """Differences of every point from each reference that the finished runs have.

    >>> arms = [("none", 0), ("full", 3), ("lora", 2)]
    >>> runs = pd.DataFrame([(m, s, y + s / 9) for m, y in arms for s in (0, 1, 2)])
    >>> runs.columns = ["method", "seed", "y"]
    >>> runs["y"] += [0.1, 0, 0, 0, 0.2, 0, 0, 0, 0.1]
    >>> found = against(runs.assign(point=runs["method"]), "y").pairs
    >>> found[["control", "level", "estimate", "p_deciding"]].round(3)
      control level  estimate  p_deciding
    0    none  full     3.033       0.000
    1    none  lora     2.000       0.000
    2    full  lora    -1.033       0.006

    ``runs`` has one row per finished run: point, method, task, seed and the response, on the
    scale of the analysis. Nothing is compared where no error is known, or with more than
    `MOST_POINTS` points.
    """
    held = _held(runs, response)
    if isinstance(held, str):
        return Against(notes=[held] if held else [])
    _, references, blocks, model = held
    parts = []
    for method, point in references.items():
        found = apart(model, POINT, control=point)
        # The base is held against nothing; full against the base alone.
        keep = ~found["level"].isin([references.get(BASE)])
        parts.append(found[keep].assign(control=method))
    pairs = pd.concat(parts, ignore_index=True)
    by_task = pd.DataFrame()
    if BASE in references and blocks.by_task:
        by_task = differences(
            LinearFit(model), POINT, by=TASK, adjust="dunnett", control=references[BASE]
        )
        columns = [TASK, POINT, "estimate", "se", "df", "low", "high", "p_adjusted"]
        by_task = by_task.rename(columns={"level": POINT})[columns]
    return Against(pairs[["control", *(n for n in pairs if n != "control")]], by_task)


def as_good(
    runs: pd.DataFrame, response: str, margin: float | str, *, lower_is_better: bool
) -> AsGood:
    """Which points are worse than full fine-tuning by less than a margin (see `noninferiority`).

    ``runs`` as in `against`, the response as measured. A claim needs full fine-tuning to have
    beaten the untouched base, where the study has one.
    """
    held = _held(runs, response)
    if isinstance(held, str):
        return AsGood(notes=[f"not held against full: {held}"] if held else [])
    used, references, blocks, model = held
    if FULL not in references:
        return AsGood(notes=["no finished run of method full to be held against"])
    base = references.get(BASE)
    if base is None and share_of(margin) is not None:
        return AsGood(notes=["no finished run of method none, of whose gain the margin is a share"])
    asked = {"response": response, "factor": POINT, "control": references[FULL]}
    asked |= {"block": blocks.terms, "margin": margin, "base": base}
    asked |= {"higher_is_better": not lower_is_better}
    try:
        plain = noninferiority(used, **asked)
        own = noninferiority(used, robust="cr3", adjust="bonferroni", **asked)
    except UserError as error:
        return AsGood(notes=[f"not held against full: {problem}" for problem in error.problems])
    points = pd.DataFrame(
        {
            POINT: plain["contrast"].str.removesuffix(f" - {references[FULL]}"),
            "difference": plain["estimate"],
            "se": plain["se"],
            "df": plain["df"],
            **of_limits(plain, own),
            "low": np.minimum(plain["low"], own["low"]),
            "high": np.maximum(plain["high"], own["high"]),
            "margin": plain["margin"],
            "p_noninferior": np.maximum(plain["p_adjusted"], own["p_adjusted"]),
            "p_equivalent": np.maximum(
                plain["p_equivalent_adjusted"], own["p_equivalent_adjusted"]
            ),
        }
    )
    assay = _assay(used, references, blocks, model, lower_is_better)
    beaten = assay.empty or bool(assay["beaten"].iloc[0])
    for claim in ("noninferior", "equivalent"):
        points[claim] = beaten & (points[f"p_{claim}"] < ALPHA)
    points["few"] = ~(own["df"] >= FEW)
    return AsGood(points, assay)


def _assay(used, references, blocks: Blocks, model: Model, lower: bool) -> pd.DataFrame:
    """Whether full fine-tuning beat the base: over all tasks, then in each."""
    if BASE not in references:
        return pd.DataFrame()
    both = used[used[POINT].isin([references[BASE], references[FULL]])]
    options = {"control": references[BASE], "adjust": "none"}
    found = apart(model, POINT, **options).assign(**{TASK: "all"})
    if blocks.by_task and both[TASK].nunique() > 1:
        tasks = apart(model, POINT, by=TASK, **options)
        found = pd.concat([found, tasks], ignore_index=True)
    found = found[found["level"] == references[FULL]]
    better = -1 if lower else 1
    gain = better * found["estimate"]
    p = tail(np.where(found["se"] > 0, gain / found["se"], np.nan), found["df"], "greater")
    own = np.where(gain > 0, found["p_own_spreads"] / 2, 1 - found["p_own_spreads"] / 2)
    p = np.maximum(p, own)
    rows = {TASK: found[TASK], "gain": gain, "se": found["se"], "df": found["df"], "p": p}
    return pd.DataFrame(rows).assign(beaten=p < ALPHA).reset_index(drop=True)


def _held(runs: pd.DataFrame, response: str):
    """The runs to compare, the references' points by method, blocks and model; or why not."""
    if not {POINT, "method"} <= set(runs):
        return ""
    used = runs[runs[response].notna() & runs[POINT].notna()]
    by_method = used.groupby("method", observed=True)[POINT].unique()
    # Several points of full fine-tuning are levels of a factor, and none of them the reference.
    references = {
        method: str(by_method[method][0])
        for method in (BASE, FULL)
        if method in by_method and len(by_method[method]) == 1
    }
    count = used[POINT].nunique()
    if not references or count < 2:
        return ""
    if count > MOST_POINTS:
        return f"{count} points; up to {MOST_POINTS} are compared one by one"
    blocks = blocks_of(used, [POINT])
    model = given(used, response, [POINT], blocks.terms).model(used)
    if not model.df:
        return "no error to tell differences from: one run of each point"
    return used, references, blocks, model
