"""The computed content of a report: the analysis, arranged as tables."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fitspace import stats
from fitspace.report import agreement, drawn, explained, rated, tuned, words
from fitspace.report.inputs import COSTS, Inputs
from fitspace.stats.digits import on_scale, rounded
from fitspace.study import Study

TASK_CELLS = "task_cells.csv"


@dataclass(frozen=True)
class Results:
    """``tables`` are the CSV files by name; a row's number in a file is its index + 1.

    ``empty`` are the tables without rows in this study, which are not written. ``origins`` has,
    for each row of each table, the keys of the runs that it was computed from (the names of runs
    without a key). ``drawn`` are the rows of runs.csv as numbers, ``runs`` those that are analysed,
    ``planned`` the set of the study's factor cells, finished or not. ``notes`` are of what varies
    within a training.
    """

    study: Study
    analysis: stats.Analysis
    runs: pd.DataFrame
    drawn: pd.DataFrame
    notes: list[str]
    tables: dict[str, pd.DataFrame]
    empty: list[str]
    origins: dict[str, list[list[str]]]
    responses: list[str]
    primary: str
    factors: list[str]
    levels: dict[str, list[str]]
    planned: set[tuple[str, ...]]

    def rows(self, file: str, **where: object) -> pd.DataFrame:
        """The rows of a table whose columns have these values, with their index; empty if none."""
        table = self.tables.get(file, pd.DataFrame(columns=list(where)))
        if not where:
            return table
        return table[np.logical_and.reduce([table[name] == value for name, value in where.items()])]

    @property
    def test(self) -> str:
        """The analysis of variance that the design admits: ``type II`` or ``type III``."""
        return self.analysis.test

    def scale(self, response: str) -> str:
        """The scale on which a response was analysed; ``identity`` if as measured."""
        return self.analysis.fitted[response].label

    def label(self, row: pd.Series) -> str:
        """The name of a row's cell."""
        return words.cell_name(self.factors, (row[f] for f in self.factors))

    def best_cells(self, response: str) -> pd.DataFrame:
        """The cells of a response, best first."""
        cells = self.rows("cells.csv", response=response).dropna(subset="mean")
        return cells.sort_values("mean", ascending=words.metric(response).lower, kind="stable")

    @property
    def best_points(self) -> list[str]:
        """The points by the primary response, best first."""
        lower = words.metric(self.primary).lower
        points = self.tables["points.csv"]
        return list(points.sort_values(self.primary, ascending=lower, kind="stable")["point"])


def analyse(study: Study, given: Inputs) -> Results:
    """Analyse the runs as the study declares, and arrange the results as tables.

    Raises
    ------
    UserError : runs that cannot be analysed.
    """
    declared, runs = study.analysis, given.runs
    factors = declared.factors
    analysis = stats.analyse(
        runs,
        factors,
        declared.responses,
        transform=declared.transform,
        margins=declared.margins,
        contrasts=declared.contrasts,
        scores=declared.scales,
        lower_is_better=[name for name in declared.responses if words.metric(name).lower],
    )
    responses = list(analysis.scales["response"])
    filled = runs[stats.in_design(runs, factors)]
    tables = {
        "anova.csv": _anova(analysis),
        "effects.csv": _effects(analysis),
        "robustness.csv": analysis.robustness,
        "questions.csv": analysis.questions,
        "against.csv": analysis.against,
        "by_task.csv": analysis.by_task,
        "pairs.csv": _factor_first(analysis.pairs),
        "trends.csv": _factor_first(analysis.trends),
        "curves.csv": _factor_first(analysis.curves),
        "surfaces.csv": analysis.surfaces,
        "over_tasks.csv": analysis.general,
        "ranking.csv": analysis.ranking,
        "leave_one_out.csv": analysis.left_out,
        "leave_one_level_out.csv": analysis.without_level,
        "contrasts.csv": analysis.contrasts,
        "equivalence.csv": analysis.equivalence,
        "assay.csv": analysis.assay,
        "power.csv": analysis.power,
        "cells.csv": analysis.cells,
        TASK_CELLS: _task_cells(filled, factors, responses),
        "descriptives.csv": _descriptives(filled, responses),
        "points.csv": _points(runs, factors, responses),
        "baselines.csv": _baselines(runs, factors, responses),
        "ledger.csv": analysis.ledger,
        "spread.csv": analysis.spread,
        "variances.csv": analysis.variances,
        "residuals.csv": _residuals(analysis),
        agreement.NAME: agreement.table(runs, responses[0]),
        **explained.tables(given, analysis, responses),
        tuned.RANKS: tuned.ranks(study, given.tuning),
    }
    groups = drawn.groups(study, given.drawn, factors)
    within, notes = drawn.tables(groups, responses)
    tables |= within
    preferred, said = rated.tables(given.answers, runs, responses[0])
    tables |= preferred
    notes += said
    tables[drawn.BEST_STEPS] = drawn.best_steps(study, given.drawn, responses[0])
    tables[drawn.GAINS] = drawn.gains(tables[drawn.BEST_STEPS])
    scaled = ("anova.csv", "effects.csv", "spread.csv", "power.csv", "residuals.csv")
    scaled += ("questions.csv", "against.csv", "by_task.csv", "pairs.csv")
    scaled += ("trends.csv", "curves.csv", "surfaces.csv")
    tables |= {n: _with_scale(tables[n], analysis) for n in scaled if len(tables[n])}
    for name in ("against.csv", "by_task.csv", "pairs.csv", "equivalence.csv"):
        tables[name] = _probabilities(tables[name])
    for name in ("against.csv", "by_task.csv", "pairs.csv", "questions.csv", "equivalence.csv"):
        tables[name] = _differences(tables[name], runs, analysis)
    empty = [name for name, table in tables.items() if table.empty]
    tables = {
        name: rounded(table.reset_index(drop=True)) for name, table in tables.items() if len(table)
    }
    sources = Sources(runs, analysis, factors)
    origins = {name: sources.of(name, table) for name, table in tables.items()}
    keys = {factor: list(keys_of(own.rows)) for factor, own in groups.items()}
    origins |= {
        name: [keys[factor] for factor in tables[name]["factor"]]
        for name in within
        if name in tables
    }
    if drawn.BEST_STEPS in tables:
        by_training = given.drawn.groupby(drawn.UNIT, sort=False)
        own = {training: list(keys_of(rows)) for training, rows in by_training}
        origins[drawn.BEST_STEPS] = [own[name] for name in tables[drawn.BEST_STEPS]["training"]]
    if drawn.GAINS in tables:
        origins[drawn.GAINS] = [[key for keys in origins[drawn.BEST_STEPS] for key in keys]]
    if given.against_n is not None:
        tables["against_n.csv"] = given.against_n
        origins["against_n.csv"] = sources.of("against_n.csv", given.against_n)
    if given.tuning is not None:  # its runs, and those of its ranks, are another report's
        tables[tuned.NAME] = given.tuning
        origins[tuned.NAME] = [[] for _ in given.tuning.index]
    origins["runs.csv"] = [[key] for key in keys_of(given.drawn)]
    return Results(
        study=study,
        analysis=analysis,
        runs=runs,
        drawn=given.drawn,
        notes=notes,
        tables=tables,
        empty=empty,
        origins=origins,
        responses=responses,
        primary=responses[0],
        factors=factors,
        levels={name: _levels(runs[name], filled[name]) for name in factors},
        planned={tuple(cell) for cell in filled[factors].astype(str).to_numpy()},
    )


class Sources:
    """Finds the runs that the rows of a table were computed from, by their evaluate keys."""

    def __init__(self, runs: pd.DataFrame, analysis: stats.Analysis, factors: list[str]):
        self.keys = keys_of(runs)
        self.runs, self.factors = runs, factors
        self.ok = runs["status"].eq("ok")
        self.design = stats.in_design(runs, factors)
        self.residuals = analysis.residuals
        self.labels = {name: runs[name].astype(str).to_numpy() for name in factors}
        self.tested: dict[str | None, np.ndarray] = {}
        # There can be as many runs, cells and points as rows: look them up, do not search.
        levels = zip(*(runs[name].astype(str) for name in factors), strict=True)
        self.places = {
            "run": _places(runs["run"]),
            "cell": _places(levels),
            "task cell": _places(zip(runs["task"].astype(str), *self.labels.values(), strict=True)),
            "point": _places(runs["point"]),
        }

    def of(self, file: str, table: pd.DataFrame) -> list[list[str]]:
        keys, there = self.keys.to_numpy(), {}
        sets: dict[tuple, list[str]] = {}
        found = []
        for row in table.to_dict("records"):
            kind, response, _ = which = self._which(file, row)
            if which not in sets:
                if response not in there:
                    there[response] = self._there(response)
                sets[which] = list(keys[self._rows(*which, there[response])])
            found.append(sets[which])
        return found

    def _which(self, file: str, row: dict) -> tuple:
        """What identifies the runs of a row, so that rows of the same runs are looked up once."""
        response = row.get("response")
        if file in ("residuals.csv", "against_n.csv"):
            return "run", None, row["run"]
        if file == "cells.csv":
            return "cell", response, tuple(str(row[name]) for name in self.factors)
        if file == TASK_CELLS:
            return "task cell", response, tuple(str(row[n]) for n in ("task", *self.factors))
        kinds = {
            "ledger.csv": ("planned", "arm"),
            "points.csv": ("point", "point"),
            **dict.fromkeys(explained.OF_POINTS, ("point", "point")),
            "equivalence.csv": ("compared", None),
            "assay.csv": ("compared", None),
            agreement.NAME: ("compared", None),
            tuned.RANKS: ("none", None),
            rated.ABILITIES: ("point", "point"),
            rated.TESTS: ("compared", None),
            "against.csv": ("compared", None),
            "by_task.csv": ("compared", None),
            "baselines.csv": ("baseline", "arm"),
            "descriptives.csv": ("task", "task"),
            "leave_one_out.csv": ("without", "left_out"),
        }
        if file == "leave_one_level_out.csv":
            return "without level", response, (row["left_out"], str(row["level"]))
        kind, column = kinds.get(file, ("tested", None))
        return kind, response, str(row[column]) if column else None

    def _there(self, response: str | None) -> pd.Series:
        """The finished runs that have a response."""
        return self.ok & (self.runs[response].notna() if response else True)

    def _rows(self, kind: str, response: str | None, value, there: pd.Series):
        """The row numbers of runs.csv for a row of a table."""
        if kind in ("tested", "without level"):
            if response not in self.tested:
                self.tested[response] = self.mask("tested", response, None, there).to_numpy()
            factor, level = value or (None, None)
            own = self.tested[response]
            return own & (self.labels[factor] != level) if factor else own
        if kind not in self.places:
            return self.mask(kind, response, value, there)
        rows = self.places[kind].get(value, [])
        if kind == "run":
            return rows
        inside = (there & self.design if kind.endswith("cell") else there).to_numpy()
        return [row for row in rows if inside[row]]

    def mask(self, kind: str, response: str | None, value, there: pd.Series) -> pd.Series:
        runs = self.runs
        if kind == "planned":
            return runs["arm"].astype(str).eq(value) | (value == "all")
        if kind == "baseline":
            return there & ~self.design & runs["arm"].astype(str).eq(value)
        if kind == "none":
            return pd.Series(False, runs.index)
        if kind == "compared":  # the error of a difference is that of all points together
            return there
        if kind == "task":
            return there & self.design & runs["task"].eq(value)
        used = self.residuals.loc[self.residuals["response"] == response, "run"]
        tested = runs["run"].isin(used)
        return tested & runs["task"].ne(value) if kind == "without" else tested


def keys_of(runs: pd.DataFrame) -> pd.Series:
    """The evaluate key of each run, or its name where it has none."""
    keys = runs["evaluate_key"] if "evaluate_key" in runs else pd.Series(None, runs.index)
    return keys.where(keys.notna() & (keys != ""), runs["run"])


def _places(labels: Iterable[Hashable]) -> dict[Hashable, list[int]]:
    """Label -> the numbers of the rows that have it, from 0."""
    places: dict[Hashable, list[int]] = {}
    for row, label in enumerate(labels):
        places.setdefault(label, []).append(row)
    return places


def _levels(every: pd.Series, filled: pd.Series) -> list[str]:
    """A factor's levels, unfinished ones too, but not those that only baselines have."""
    only_baselines = set(every.dropna()) - set(filled)
    return [level for level in every.cat.categories if level not in only_baselines]


def _residuals(analysis: stats.Analysis) -> pd.DataFrame:
    """Round residuals to the digits of the response's deviations, influences to the largest's."""
    table = analysis.residuals.copy()
    for _, rows in table.groupby("response"):
        y, influence = rows["fitted"] + rows["residual"], rows["cooks_distance"]
        table.loc[rows.index, "residual"] = on_scale(
            rows["residual"], float((y - y.mean()).abs().max())
        )
        table.loc[rows.index, "cooks_distance"] = on_scale(influence, influence.max())
    return table


def _probabilities(table: pd.DataFrame) -> pd.DataFrame:
    """Round adjusted p to eight decimals: the tails of the largest of many are integrals.

    What an integral gets wrong, 1e-13, is relative to 1, not to the tail, and differs between
    kernels. A table has thousands of them: with ten decimals one in a thousand lies at a tie.
    """
    names = [name for name in table if name.startswith("p_")]
    return table.assign(**{name: table[name].round(8) for name in names})


def _differences(table: pd.DataFrame, runs: pd.DataFrame, analysis: stats.Analysis) -> pd.DataFrame:
    """Differences and their limits to the digits of what they were taken between.

    Of two large numbers a small one carries the rounding, which differs between kernels.
    """
    if table.empty:
        return table
    table = table.copy()
    names = [name for name in ("estimate", "difference", "low", "high") if name in table]
    for response, rows in table.groupby("response", sort=False):
        values = runs[response].dropna().to_numpy()
        if "margin" not in table:  # a margin is in the metric's own units
            with np.errstate(divide="ignore", invalid="ignore"):
                values = analysis.fitted[response].forward(values)
        largest = float(np.abs(values[np.isfinite(values)]).max())
        for name in names:
            table.loc[rows.index, name] = on_scale(rows[name].to_numpy(float), largest)
    if "t" in table:  # as exact as its numerator
        table["t"] = table["estimate"] / table["se"]
    return table


def _with_scale(table: pd.DataFrame, analysis: stats.Analysis) -> pd.DataFrame:
    scales = {name: scale.label for name, scale in analysis.fitted.items()}
    table = table.copy()
    table.insert(1, "scale", table["response"].map(scales))
    return table


def _factor_first(table: pd.DataFrame) -> pd.DataFrame:
    return table[list(dict.fromkeys(["response", "factor", *table]))] if len(table) else table


def _anova(analysis: stats.Analysis) -> pd.DataFrame:
    parts = [analysis.anova.assign(test=analysis.test)]
    if len(analysis.factors) > 1 and not analysis.interactions:
        parts.append(analysis.lack_of_fit.assign(test="lack of fit"))
    every = pd.concat([part.dropna(axis=1, how="all") for part in parts], ignore_index=True)
    order = dict.fromkeys(["response", "test", *analysis.anova.columns])
    return every.reindex(columns=list(order))


def _effects(analysis: stats.Analysis) -> pd.DataFrame:
    """Marginal means, also transformed back to the measured scale."""
    table = analysis.marginal_means.copy()
    for name in ("mean", "low", "high"):
        table[f"{name}_measured"] = [
            analysis.fitted[response].inverse(value)
            for response, value in zip(table["response"], table[name], strict=True)
        ]
    return table


def _descriptives(filled: pd.DataFrame, responses: list[str]) -> pd.DataFrame:
    """The finished runs of the design as measured, by task."""
    rows = []
    for response in responses:
        for task, group in filled[filled["status"] == "ok"].groupby("task", sort=False):
            rows.append({"response": response, "task": task} | _summary(group[response]))
    return pd.DataFrame(rows)


def _task_cells(filled: pd.DataFrame, factors: list[str], responses: list[str]) -> pd.DataFrame:
    """Every cell on each of several tasks, as measured; ``replicate_sd`` is that of its seeds."""
    finished = filled[filled["status"] == "ok"]
    if finished["task"].nunique() < 2:
        return pd.DataFrame()
    rows = []
    for response in responses:
        groups = finished.groupby(["task", *factors], sort=False, observed=True)[response]
        for at, values in groups:
            if runs := values.count():
                cell = dict(zip(["task", *factors], at, strict=True))
                of = {"runs": runs, "mean": values.mean(), "replicate_sd": values.std()}
                rows.append({"response": response} | cell | of)
    return pd.DataFrame(rows)


def _summary(values: pd.Series) -> dict:
    values = values.dropna()
    row = {"runs": len(values), "mean": values.mean(), "sd": values.std()}
    return row | {"min": values.min(), "median": values.median(), "max": values.max()}


def _points(runs: pd.DataFrame, factors: list[str], responses: list[str]) -> pd.DataFrame:
    """Every point's cost (median of its finished runs) and every measured metric (mean).

    Costs are medians because times are taken on shared machines, where some runs wait for others.
    """
    finished = runs[runs["status"] == "ok"]
    measured = (*words.METRICS, "n", "fd_effnet_jackknife")
    metrics = dict.fromkeys([*responses, *(name for name in finished if name in measured)], "mean")
    costs = {name: "median" for name in COSTS if name in finished}
    levels = dict.fromkeys((name for name in factors if name not in ("arm", "method")), "first")
    points = finished.groupby("point", sort=False, observed=True)
    names = {"arm": "first", "method": "first"}
    table = points.agg(names | levels | {"run": "count"} | costs | metrics).reset_index()
    inside = stats.in_design(table, factors)
    table = table.rename(columns={"run": "runs"})
    table.insert(1, "in_design", inside)
    return table


def _baselines(runs: pd.DataFrame, factors: list[str], responses: list[str]) -> pd.DataFrame:
    """Finished runs outside the design, by arm: the baselines of the cells."""
    rows = []
    outside = runs[~stats.in_design(runs, factors) & (runs["status"] == "ok")]
    for response in responses:
        for (arm, method), group in outside.groupby(["arm", "method"], sort=False):
            row = {"response": response, "arm": arm, "method": method}
            rows.append(row | _summary(group[response]))
    return pd.DataFrame(rows)
