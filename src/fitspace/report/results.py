"""The computed content of a report: the analysis, arranged as the tables that are written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from fitspace import stats
from fitspace.config import Study
from fitspace.report import words
from fitspace.report.inputs import Inputs
from fitspace.stats.analysis import TRANSFORMS

ALPHA = 0.05
# Tukey's studentized range costs about 10 ms a pair; beyond this the cells are only ranked.
MOST_CELLS_COMPARED = 24
_INVERSE = {"log": np.exp, "logit": lambda x: 1 / (1 + np.exp(-x)), "identity": lambda x: x}


@dataclass(frozen=True)
class Results:
    """``tables`` are the CSV files by name; a row's number in a file is its index + 1.

    ``runs`` are the rows of runs.csv as numbers, ``tested`` those in the analysis on its
    scale, ``planned`` the set of factor cells that the study has, finished or not.
    """

    study: Study
    analysis: stats.Analysis
    runs: pd.DataFrame
    tables: dict[str, pd.DataFrame]
    responses: list[str]
    primary: str
    factors: list[str]
    levels: dict[str, list[str]]
    planned: set[tuple[str, ...]]
    tied_cells: set[tuple[str, ...]] | None

    def rows(self, file: str, **where: object) -> pd.DataFrame:
        """The rows of a table whose columns have these values, with their index."""
        table = self.tables[file]
        for column, value in where.items():
            table = table[table[column] == value]
        return table

    def scale(self, response: str) -> str:
        return self.analysis.scales.set_index("response").loc[response, "scale"]

    def label(self, row: pd.Series) -> str:
        return words.cell_name(self.factors, (row[f] for f in self.factors))

    def best_cells(self, response: str) -> pd.DataFrame:
        """The cells of a response, best first."""
        cells = self.rows("cells.csv", response=response).dropna(subset="mean")
        return cells.sort_values("mean", ascending=words.metric(response).lower, kind="stable")


def analyse(study: Study, given: Inputs) -> Results:
    """Analyse the runs as the study declared and arrange what comes out as tables.

    Raises
    ------
    UserError : runs that cannot be analysed.
    """
    factors, runs = study.analysis.factors, given.runs
    analysis = stats.analyse(
        runs, factors, study.analysis.responses, transform=study.analysis.transform
    )
    responses = list(analysis.scales["response"])
    scales = dict(zip(responses, analysis.scales["scale"], strict=True))
    filled = runs[stats.in_design(runs, factors)]
    main = _main(filled, analysis, factors)
    tested = main.assign(**{name: _scaled(main[name], scales[name]) for name in responses})
    tables = {
        "anova.csv": _anova(analysis, scales),
        "effects.csv": _effects(analysis, scales, tested),
        "cells.csv": analysis.cells,
        "baselines.csv": _baselines(runs, factors, responses),
        "ledger.csv": analysis.ledger,
        "spread.csv": _with_scale(analysis.spread, scales),
        "variances.csv": analysis.variances,
        "residuals.csv": analysis.residuals,
    }
    return Results(
        study=study,
        analysis=analysis,
        runs=runs,
        tables={name: table.reset_index(drop=True) for name, table in tables.items()},
        responses=responses,
        primary=responses[0],
        factors=factors,
        levels={name: _levels(runs[name], filled[name]) for name in factors},
        planned={tuple(cell) for cell in filled[factors].astype(str).to_numpy()},
        tied_cells=_tied_cells(tested, responses[0], factors, analysis.blocks),
    )


def _levels(every: pd.Series, filled: pd.Series) -> list[str]:
    """A factor's levels, unfinished ones too, but not those that only baselines have."""
    only_baselines = set(every.dropna()) - set(filled)
    return [level for level in every.cat.categories if level not in only_baselines]


def _main(filled: pd.DataFrame, analysis: stats.Analysis, factors: list[str]) -> pd.DataFrame:
    """The finished runs of the largest connected component."""
    cells = analysis.components[analysis.components["component"] == 0]
    inside = {tuple(cell) for cell in cells[factors].astype(str).to_numpy()}
    finished = filled[filled["status"] == "ok"]
    keep = [tuple(cell) in inside for cell in finished[factors].astype(str).to_numpy()]
    main = finished[keep]
    return main.assign(**{f: main[f].cat.remove_unused_categories() for f in factors})


def _scaled(values: pd.Series, scale: str) -> pd.Series:
    return TRANSFORMS[scale][0](values) if scale in TRANSFORMS else values


def _with_scale(table: pd.DataFrame, scales: dict[str, str]) -> pd.DataFrame:
    table = table.copy()
    table.insert(1, "scale", table["response"].map(scales))
    return table


def _anova(analysis: stats.Analysis, scales: dict[str, str]) -> pd.DataFrame:
    parts = []
    for test, part in (
        ("type II", analysis.anova),
        ("HC3", analysis.robust),
        ("lack of fit", analysis.lack_of_fit),
    ):
        part = _with_scale(part, scales)
        part.insert(2, "test", test)
        parts.append(part)
    every = pd.concat([part.dropna(axis=1, how="all") for part in parts], ignore_index=True)
    return every.reindex(columns=parts[0].columns)


def _effects(
    analysis: stats.Analysis, scales: dict[str, str], tested: pd.DataFrame
) -> pd.DataFrame:
    """Marginal means, back on the measured scale too, and who is level with the best."""
    table = _with_scale(analysis.marginal_means, scales)
    for name in ("mean", "low", "high"):
        table[f"{name}_measured"] = [
            _INVERSE[scale](value) for scale, value in zip(table["scale"], table[name], strict=True)
        ]
    table["tied_with_best"] = False
    for (response, factor), rows in table.groupby(["response", "factor"], sort=False):
        others = [name for name in analysis.factors if name != factor]
        pairs = stats.pairs(tested, response, factor, others, analysis.blocks)
        known = rows.dropna(subset="mean")
        if len(known):
            tied = _tied(known.set_index("level")["mean"], pairs, words.metric(response).lower)
            table.loc[rows.index, "tied_with_best"] = rows["level"].isin(tied)
    return table


def _tied(means: pd.Series, pairs: pd.DataFrame, lower: bool) -> set[str]:
    """The best level and all that Tukey's test does not separate from it."""
    best = means.idxmin() if lower else means.idxmax()
    ours = pairs[(pairs["level"] == best) | (pairs["other"] == best)]
    apart = ours[ours["p_tukey"] < ALPHA]
    return set(means.index) - (set(apart["level"]) | set(apart["other"])) | {best}


def _tied_cells(
    tested: pd.DataFrame, response: str, factors: list[str], blocks: list[str]
) -> set[tuple[str, ...]] | None:
    """Cells not separable from the best one; None where that cannot be tested."""
    known = tested.dropna(subset=response)
    codes = known.groupby(factors, observed=True).ngroup().astype(str)
    if not 2 <= codes.nunique() <= MOST_CELLS_COMPARED or len(known) == codes.nunique():
        return None
    known = known.assign(cell=codes.to_numpy())
    pairs = stats.pairs(known, response, "cell", None, blocks)
    means = stats.marginal_means(known, response, "cell", None, blocks).set_index("level")["mean"]
    if pairs["p_tukey"].isna().all():
        return None
    tied = _tied(means, pairs, words.metric(response).lower)
    return {tuple(c) for c in known[known["cell"].isin(tied)][factors].astype(str).to_numpy()}


def _baselines(runs: pd.DataFrame, factors: list[str], responses: list[str]) -> pd.DataFrame:
    """Finished runs outside the design, by arm: what the cells are held against."""
    rows = []
    outside = runs[~stats.in_design(runs, factors) & (runs["status"] == "ok")]
    for response in responses:
        for (arm, method), group in outside.groupby(["arm", "method"], sort=False):
            values = group[response].dropna()
            rows.append(
                {
                    "response": response,
                    "arm": arm,
                    "method": method,
                    "runs": len(values),
                    "mean": values.mean(),
                    "sd": values.std(),
                    "min": values.min(),
                    "max": values.max(),
                }
            )
    columns = ["response", "arm", "method", "runs", "mean", "sd", "min", "max"]
    return pd.DataFrame(rows, columns=columns)
