"""What explanations say, arranged as tables: by point, time step and block, beside the metrics."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from fitspace import stats
from fitspace.core.errors import UserError
from fitspace.explaining.reading import UNTOUCHED
from fitspace.report.inputs import Inputs
from fitspace.stats.blocks import TASK, blocks_of

SENSITIVITY = "prompt_sensitivity"
# Tables with a row for the runs of a point.
OF_POINTS = (
    "sensitivity_points.csv", "sensitivity_steps.csv", "sensitivity_blocks.csv",
    "anatomy_points.csv",
)  # fmt: skip
OTHERS = ("correlation.csv", "mediation.csv")


def outcome(responses: Sequence[str]) -> str | None:
    """The response that sensitivity is held beside: the first other one."""
    return next((name for name in responses if name != SENSITIVITY), None)


def tables(
    given: Inputs, analysis: stats.Analysis, responses: Sequence[str]
) -> dict[str, pd.DataFrame]:
    """The tables of a study's explanations, by file; empty ones without any.

    ``responses`` are those that were analysed.
    """
    found = {name: pd.DataFrame() for name in (*OF_POINTS, *OTHERS)}
    if given.sensitivity is None or SENSITIVITY not in given.runs:
        return found
    finished = given.runs[given.runs["status"].eq("ok") & given.runs[SENSITIVITY].notna()]
    if finished.empty:
        return found
    point = finished.set_index("run")["point"]
    moved = _of_points(given.sensitivity, point)
    depth = {block: i + 1 for i, block in enumerate(moved["block"].dropna().unique())}
    keys = ["point", "model"]
    steps, blocks = moved[moved["step"].notna()], moved[moved["block"].notna()]
    by_step = _mean(steps, [*keys, "step"], ["ratio"])
    found["sensitivity_steps.csv"] = by_step.astype({"step": int})
    by_block = _mean(blocks, [*keys, "block"], ["ratio"])
    found["sensitivity_blocks.csv"] = by_block.assign(depth=by_block["block"].map(depth))
    found["sensitivity_points.csv"] = _points(finished, steps)
    if given.anatomy is not None:
        found["anatomy_points.csv"] = _anatomy(_of_points(given.anatomy, point), depth)
    found["correlation.csv"] = _correlation(finished, analysis, responses)
    found["mediation.csv"] = _mediation(finished, analysis, responses)
    return found


def _of_points(rows: pd.DataFrame, point: pd.Series) -> pd.DataFrame:
    """The rows of finished runs, with their point."""
    rows = rows[rows["run"].isin(point.index)]
    return rows.assign(point=rows["run"].map(point))


def _mean(rows: pd.DataFrame, keys: list[str], columns: list[str]) -> pd.DataFrame:
    """Means over the runs of each group, in the order of first appearance."""
    return rows.groupby(keys, sort=False, dropna=False)[columns].mean().reset_index()


def _points(finished: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """Each point's sensitivity with its interval, and the untouched model's on the same tasks.

    The interval is that of the point's marginal mean in ``blocks + point``, with the error of all
    trained points together. The untouched base has none: its seeds agree.
    """
    untrained = finished["method"].eq("none")
    trained, base = finished[~untrained], finished[untrained]
    blocks = blocks_of(trained, ["point"])
    try:
        means = stats.cell_means(
            trained,
            SENSITIVITY,
            ["point"],
            blocks.common,
            within=TASK if blocks.by_task else None,
        )
    except UserError:  # one point, or one run
        means = _plain(trained)
    means = pd.concat([part for part in (means, _plain(base)) if len(part)], ignore_index=True)
    untouched = _mean(steps[steps["model"] == UNTOUCHED], ["point"], ["ratio"])
    means["untouched"] = means["point"].map(untouched.set_index("point")["ratio"])
    return means[["point", "runs", "mean", "adjusted", "low", "high", "untouched"]]


def _plain(runs: pd.DataFrame) -> pd.DataFrame:
    """Means by point, without intervals."""
    means = runs.groupby("point", sort=False)[SENSITIVITY].agg(["size", "mean"])
    means = means.rename(columns={"size": "runs"}).reset_index()
    return means.assign(adjusted=means["mean"], low=float("nan"), high=float("nan"))


def _anatomy(rows: pd.DataFrame, depth: dict[str, int]) -> pd.DataFrame:
    """Changes by block and kind of layer; factors and ranks by block, mean over its layers."""
    rows = rows.assign(
        block=rows["block"].fillna(""),
        kind=rows["kind"].where(rows["part"].eq("change"), ""),
        relative=rows["value"] / rows["base"].where(rows["base"] > 0),
    )
    found = _mean(rows, ["point", "part", "block", "kind"], ["value", "relative"])
    return found.assign(depth=found["block"].map(depth))


def _correlation(
    finished: pd.DataFrame, analysis: stats.Analysis, responses: Sequence[str]
) -> pd.DataFrame:
    """Sensitivity beside each other response, over the cells of the design (means of runs)."""
    inside = finished[stats.in_design(finished, analysis.factors)]
    others = [name for name in responses if name != SENSITIVITY]
    cells = inside.groupby("point", sort=False)[[SENSITIVITY, *others]].mean()
    parts = [stats.correlation(cells, SENSITIVITY, name).assign(response=name) for name in others]
    every = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    return every[["response", *every.columns[:-1]]].dropna(subset="estimate") if parts else every


def _mediation(
    finished: pd.DataFrame, analysis: stats.Analysis, responses: Sequence[str]
) -> pd.DataFrame:
    """Whether the factors act on the outcome through sensitivity; empty where it cannot be told."""
    response = outcome(responses)
    if response is None:
        return pd.DataFrame()
    used = analysis.residuals.loc[analysis.residuals["response"] == response, "run"]
    runs = finished[finished["run"].isin(used)].reset_index(drop=True)
    scaled = analysis.fitted[response].forward(runs[response])
    runs = runs.assign(**{response: scaled})
    try:
        rows = stats.mediation(runs, response, SENSITIVITY, analysis.factors, analysis.blocks.terms)
    except UserError:
        return pd.DataFrame()
    rows.insert(0, "response", response)
    return rows.dropna(subset=["low", "high"])
