"""The analysis that a study gets: everything its report shows, from its table of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fitspace.errors import UserError
from fitspace.stats.anova import anova, lack_of_fit
from fitspace.stats.estimability import components
from fitspace.stats.linear import Model, as_labels, missing_columns, read
from fitspace.stats.means import cell_means, marginal_means, pooled_sd
from fitspace.stats.variances import brown_forsythe

NAN = float("nan")
TRANSFORMS = {
    "log": (np.log, lambda y: y > 0, "above 0"),
    "logit": (lambda y: np.log(y / (1 - y)), lambda y: (y > 0) & (y < 1), "between 0 and 1"),
}


@dataclass(frozen=True)
class Analysis:
    """Tables of an analysis; all but the first two start with the column ``response``.

    Attributes
    ----------
    ledger : arm (``all`` last), planned, ok, failed, missing: counts of runs.
    components : one row per cell that has finished runs (see `components`).
    scales : response, scale (log, logit or identity: where it was analysed), runs.
    anova, robust : type II on ``blocks + factors`` within component 0, classical and HC3.
    lack_of_fit : rows ``lack of fit`` and ``residual`` of the cell means (see `lack_of_fit`).
    marginal_means : factor, level, mean, se, low, high, df, estimable, within component 0.
    cells : the factors, component, and the columns of `cell_means`, for every cell; on the
        response as measured, never transformed.
    spread : cell_sd (of the adjusted cell means), replicate_sd (over seeds), ratio.
    variances : Brown-Forsythe on the additive model's residuals: source, F, df1, df2, p.
    residuals : run, fitted, residual, leverage of the additive model.
    notes : what was set aside, dropped or not possible, in sentences.
    """

    factors: list[str]
    blocks: list[str]
    ledger: pd.DataFrame
    components: pd.DataFrame
    scales: pd.DataFrame
    anova: pd.DataFrame
    robust: pd.DataFrame
    lack_of_fit: pd.DataFrame
    marginal_means: pd.DataFrame
    cells: pd.DataFrame
    spread: pd.DataFrame
    variances: pd.DataFrame
    residuals: pd.DataFrame
    notes: list[str]


def analyse(
    runs: pd.DataFrame,
    factors: Sequence[str],
    responses: Sequence[str],
    block: Sequence[str] = ("task", "seed"),
    *,
    transform: Mapping[str, str] | None = None,
) -> Analysis:
    """Analyse a table of runs: one row per run, its factors, blocks and metrics.

    Takes the rows with status ok that are in the design (see `in_design`), blocks on the
    columns of ``block`` that vary, and fits the additive model within the largest connected
    component; all cells, of the others too, are reported as cells. A response that cannot be
    analysed, or not on the scale asked for, is named in ``notes``.

    Raises
    ------
    UserError : missing columns, an unknown transform, or no response that can be analysed.
    """
    factors, responses, transform = list(factors), list(responses), dict(transform or {})
    problems = missing_columns(runs, ["status", *factors, *responses])
    problems += [
        f"transform: {name}: {scale!r}; allowed: {', '.join(TRANSFORMS)}"
        for name, scale in transform.items()
        if scale not in TRANSFORMS
    ]
    if problems:
        raise UserError(problems)
    chosen = runs[runs["status"].eq("ok") & in_design(runs, factors)]
    chosen = chosen.reset_index(drop=True)
    if chosen.empty:
        raise UserError(f"no run has status ok and a level of each of {factors}")
    cells = components(chosen, factors)
    notes = _notes(chosen, cells)
    main = _largest(chosen, cells, factors)
    varying = [name for name in factors if main[name].nunique() > 1]
    notes += [
        f"{name} has one level in the part analysed and was left out of the model"
        for name in factors
        if name not in varying
    ]
    blocks = [name for name in block if name in main and main[name].nunique() > 1]
    if not varying:
        raise UserError(f"no factor of {factors} has two levels among the finished runs")
    parts, failures = [], []
    for response in responses:
        try:
            scaled, scale, more = _on_scale(main, response, transform.get(response))
            part = _one(chosen, cells, scaled, response, factors, varying, blocks)
        except UserError as error:
            failures += [f"{response} was not analysed: {problem}" for problem in error.problems]
            continue
        scales = {"scale": scale, "runs": len(part["residuals"])}
        parts.append(_named(part | {"scales": pd.DataFrame([scales])}, response))
        notes += more + part["anova"].attrs["notes"] + _robust_notes(part["robust"], response)
    if not parts:
        raise UserError(failures)
    tables = {name: pd.concat([p[name] for p in parts], ignore_index=True) for name in parts[0]}
    notes = list(dict.fromkeys(notes + failures))
    return Analysis(varying, blocks, _ledger(runs), cells, notes=notes, **tables)


def in_design(runs: pd.DataFrame, factors: Sequence[str]) -> pd.Series:
    """Rows that have a level of every factor; the untouched base, method none, is no level.

    The other rows are baselines: what the design is held against.
    """
    filled = runs[list(factors)].astype(object).map(_filled).all(axis=1)
    return filled & runs["method"].ne("none") if "method" in runs else filled


def _filled(cell) -> bool:
    return not pd.isna(cell) and str(cell).strip() != ""


def _named(part: dict[str, pd.DataFrame], response: str) -> dict[str, pd.DataFrame]:
    for table in part.values():
        table.insert(0, "response", response)
    return part


def _notes(chosen: pd.DataFrame, cells: pd.DataFrame) -> list[str]:
    notes = []
    count = cells["component"].max() + 1
    if count > 1:
        outside = int((cells["component"] > 0).sum())
        notes.append(
            f"the design falls into {count} parts that share no level; the {outside} cell(s) "
            "outside the largest are reported as cells, not in the analysis of variance"
        )
    if "arm" in chosen and "arm" not in cells and chosen["arm"].nunique() > 1:
        arms = ", ".join(map(str, chosen["arm"].unique()))
        notes.append(f"several arms ({arms}) have all factors and are analysed together")
    return notes


def _largest(chosen: pd.DataFrame, cells: pd.DataFrame, factors: list[str]) -> pd.DataFrame:
    labels = pd.DataFrame({name: as_labels(chosen[name]) for name in factors})
    component = labels.merge(cells, on=factors, how="left")["component"]
    return chosen[(component == 0).to_numpy()].reset_index(drop=True)


def _on_scale(
    main: pd.DataFrame, response: str, scale: str | None
) -> tuple[pd.DataFrame, str, list[str]]:
    """The table with the response transformed, unless it has values the scale cannot hold."""
    if scale is None:
        return main, "identity", []
    function, legal, allowed = TRANSFORMS[scale]
    y = pd.to_numeric(main[response], errors="coerce")
    outside = y.notna() & ~legal(y)
    if outside.any():
        note = (
            f"{response} was analysed untransformed: {scale} needs values {allowed}, and "
            f"{int(outside.sum())} of {int(y.notna().sum())} are not"
        )
        return main, "identity", [note]
    return main.assign(**{response: function(y)}), scale, []


def _one(chosen, cells, main, response, factors, varying, blocks) -> dict[str, pd.DataFrame]:
    table = anova(main, response, varying, block=blocks)
    every = cell_means(chosen, response, factors, blocks)
    numbers = every[factors].merge(cells, on=factors, how="left")["component"]
    every.insert(len(factors), "component", numbers)
    means = []
    for name in varying:
        others = [other for other in varying if other != name]
        rows = marginal_means(main, response, name, others, blocks)
        rows.insert(0, "factor", name)
        means.append(rows)
    residuals = _residuals(main, response, varying, blocks)
    return {
        "anova": table,
        "robust": _robust(main, response, varying, blocks),
        "lack_of_fit": lack_of_fit(main, response, varying, blocks),
        "marginal_means": pd.concat(means, ignore_index=True),
        "cells": every,
        "spread": _spread(main, response, varying, blocks),
        "variances": _variances(main, residuals, varying),
        "residuals": residuals,
    }


def _robust(main, response, factors, blocks) -> pd.DataFrame:
    try:
        return anova(main, response, factors, block=blocks, robust="hc3")
    except UserError as error:
        empty = anova(main, response, factors, block=blocks, robust="hc0")
        empty[["F", "p", "p_holm"]] = NAN
        empty.attrs["problems"] = error.problems
        return empty


def _robust_notes(robust: pd.DataFrame, response: str) -> list[str]:
    return [f"{response}: no HC3 test: {text}" for text in robust.attrs.get("problems", [])]


def _residuals(main, response, factors, blocks) -> pd.DataFrame:
    data = read(main, response, [*blocks, *factors])
    model = Model(data, [(name,) for name in [*blocks, *factors]])
    fitted = data.y - model.residuals + data.mean
    columns = {"fitted": fitted, "residual": model.residuals, "leverage": model.leverage}
    residuals = pd.DataFrame(columns, index=data.index)
    run = main["run"] if "run" in main else pd.Series(main.index, main.index)
    residuals.insert(0, "run", run.loc[data.index])
    return residuals


def _spread(main, response, factors, blocks) -> pd.DataFrame:
    cells = cell_means(main, response, factors, blocks)
    within = [*factors, *(name for name in blocks if name != "seed")]
    complete = main[pd.to_numeric(main[response], errors="coerce").notna()]
    row = {
        "cell_sd": cells["adjusted"].std(),
        "replicate_sd": pooled_sd(complete, response, within),
    }
    row["ratio"] = row["cell_sd"] / row["replicate_sd"] if row["replicate_sd"] else NAN
    return pd.DataFrame([row])


def _variances(main, residuals, factors) -> pd.DataFrame:
    table = main.loc[residuals.index].assign(residual=residuals["residual"])
    tests = [[name] for name in factors] + ([factors] if len(factors) > 1 else [])
    rows = [brown_forsythe(table, "residual", names) for names in tests]
    return pd.concat(rows, ignore_index=True)


def _ledger(runs: pd.DataFrame) -> pd.DataFrame:
    def counts(arm: str, rows: pd.DataFrame) -> dict:
        status = rows["status"]
        row = {"arm": arm, "planned": len(rows)}
        return row | {name: int(status.eq(name).sum()) for name in ("ok", "failed", "missing")}

    arms = runs.groupby("arm", sort=False) if "arm" in runs else ()
    return pd.DataFrame([*(counts(str(arm), rows) for arm, rows in arms), counts("all", runs)])
