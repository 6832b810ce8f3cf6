"""The numbers of a report that ``dvc metrics diff`` compares between commits."""

from __future__ import annotations

import json
import math

import pandas as pd

from fitspace.report.results import Results

NAME = "summary.json"


def text(found: Results) -> str:
    """summary.json: runs, and for each response its best cell, its baselines and its tests.

    Values are those of cells.csv, points.csv, anova.csv and robustness.csv; unknown ones are left
    out.
    """
    ledger = found.tables["ledger.csv"].iloc[-1]
    content = {
        "runs": {name: int(ledger[name]) for name in ("planned", "ok")},
        **{response: _of(found, response) for response in found.responses},
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _of(found: Results, response: str) -> dict:
    numbers: dict = {}
    cells = found.best_cells(response)
    if len(cells):
        best = cells.iloc[0]
        numbers["best cell"] = {"cell": found.label(best), **_known(best, ["mean"])}
    points = found.tables["points.csv"]
    for method, name in (("full", "full fine-tuning"), ("none", "untouched base")):
        means = points.loc[points["method"] == method, response].dropna()
        # Several arms of full fine-tuning have no single mean; cells.csv distinguishes them.
        if len(means) == 1:
            numbers[name] = {"mean": float(means.iloc[0])}
    for factor in found.factors:
        rows = found.rows("anova.csv", response=response, test=found.test, source=factor)
        if len(rows):
            numbers[factor] = _known(rows.iloc[0], ["F", "omega2_p"])
        where = {"response": response, "test": "deciding", "source": factor}
        decided = found.rows("robustness.csv", **where)
        if len(decided) and math.isfinite(decided["p"].iloc[0]):
            numbers.setdefault(factor, {})["p_deciding"] = float(decided["p"].iloc[0])
    return numbers


def _known(row: pd.Series, columns: list[str]) -> dict[str, float]:
    return {name: float(row[name]) for name in columns if math.isfinite(row[name])}
