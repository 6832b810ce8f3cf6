"""The figures of a report: what is drawn is what the tables hold, and no input breaks them."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import report_study as made_up
from matplotlib.figure import Figure as Canvas
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from fitspace.report import figures as package
from fitspace.report import inputs, results
from fitspace.report.figures import draw_all
from fitspace.report.figures.axes import label_points
from fitspace.report.figures.cost import on_front
from fitspace.report.figures.diagnostics import order_statistics
from fitspace.report.figures.heatmap import shades
from fitspace.report.figures.style import FACE, MAIN, SECOND, THIRD

SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"
HOSTILE = ("<script>alert('x')</script>", 'id="x" #1f2328', "$\\frac", "&amp;")


def analysed(folder, change=lambda table: table, margins=None, **settings) -> results.Results:
    """The results of a made-up study."""
    study = made_up.study(**{"responses": ("fd_effnet",)} | settings)
    analysis = study.analysis.model_copy(update={"margins": margins or {}})
    study = study.model_copy(update={"analysis": analysis})
    made_up.write(folder, change(made_up.rows(study)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fitspace.stats.analysis.PERMUTATIONS", 19)
        return results.analyse(study, inputs.read(study, folder))


def with_memory(table: list[dict]) -> list[dict]:
    return [row | {"peak_memory_mb": 500 + 7 * (i % 5)} for i, row in enumerate(table)]


def against_n(runs: pd.DataFrame) -> pd.DataFrame:
    rows = [
        {"run": row.run, "n": n, "fd_effnet": row.fd_effnet + 900 / n, "kid_effnet": row.kid_effnet}
        for row in runs.itertuples()
        for n in (12, 24, 48, 96)
    ]
    return pd.DataFrame(rows)


def with_tables(found: results.Results, **tables: pd.DataFrame) -> results.Results:
    """The results with these tables instead of its own; names without their ending."""
    return replace(found, tables=found.tables | {f"{k}.csv": v for k, v in tables.items()})


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> dict[str, results.Results]:
    """``tasks``: all cells on three tasks. ``pairs``: legal pairs. ``alone``: no replicates."""
    folder = tmp_path_factory.mktemp("figures")
    small = {"input": ["a", "b", "c"], "output": ["x", "y"]}
    tasks = analysed(
        folder / "tasks",
        with_memory,
        {"fd_effnet": 12.0, "clip_t": 0.004},
        factors=small,
        tasks=("night", "sepia", "line"),
        responses=("fd_effnet", "clip_t"),
    )
    pairs = {"input": made_up.INPUTS[:5], "output": made_up.OUTPUTS[:3]}
    alone = {"width": [4, 8, 16], "scale": [1, 2], "activation": ["relu", "silu"]}
    numbers = {"width": [4, 8, 16, 32]}
    return {
        "tasks": with_tables(tasks, against_n=against_n(tasks.runs)),
        "pairs": analysed(folder / "pairs", factors=pairs),
        "numbers": analysed(folder / "numbers", factors=numbers),
        "alone": analysed(folder / "alone", factors=alone, seeds=(5,), baselines=False),
    }


@pytest.fixture(scope="module")
def figures(studies) -> dict[str, dict]:
    return {name: by_name(found) for name, found in studies.items()}


def by_name(found: results.Results, *kinds: str) -> dict:
    """All figures, or those of some kinds: names of the functions that draw them."""
    with pytest.MonkeyPatch.context() as patch:
        every = package._DRAWN
        patch.setattr(package, "_DRAWN", [d for d in every if not kinds or d.__name__ in kinds])
        return {figure.name: figure for figure in draw_all(found)}


def texts(figure) -> list[str]:
    return [
        "".join(element.itertext())
        for element in ElementTree.fromstring(figure.svg).iter(f"{SVG}text")
    ]


def marks(figure, style: str = MAIN) -> list[tuple[float, float, str]]:
    """x, y (upwards) and style of the marks that have a colour, in the order drawn."""
    return [
        (float(use.get("x")), -float(use.get("y")), use.get("style"))
        for use in ElementTree.fromstring(figure.svg).iter(f"{SVG}use")
        if style in use.get("style", "")
    ]


def lines(figure, colour: str) -> list[str]:
    """The outlines of the lines of a colour."""
    return [
        path.get("d")
        for path in ElementTree.fromstring(figure.svg).iter(f"{SVG}path")
        if f"stroke: {colour}" in path.get("style", "") and path.get("clip-path")
    ]


def assert_drawn_at(found: list, x, y) -> None:
    """The marks stand at these values, but for origin and unit of each axis."""
    expected = pd.DataFrame({"x": np.asarray(x, float), "y": np.asarray(y, float)})
    drawn = pd.DataFrame([mark[:2] for mark in found[: len(expected)]], columns=["x", "y"])
    assert len(drawn) == len(expected)
    expected, drawn = ((t - t.min()) / (t.max() - t.min()) for t in (expected, drawn))
    apart = cdist(expected, drawn, "chebyshev")
    assert apart[linear_sum_assignment(apart)].max() < 3e-4


# --- what is drawn ------------------------------------------------------------------------

OF_TABLE = {
    "heat map": ("pairs", "heatmap-fd_effnet", "cells", {}, ["input", "output", "mean"]),
    "omega squared": (
        "tasks", "omega2", "anova", {"test": "type III"},
        ["source", "omega2_p", "omega2_p_low", "omega2_p_high"]),
    "all tasks": ("tasks", "omega2-left-out", "ranking", {}, ["factor", "omega2_p"]),
    "a task left out": (
        "tasks", "omega2-left-out", "leave_one_out", {}, ["factor", "left_out", "omega2_p"]),
    "marginal means": (
        "tasks", "means-clip_t-input", "effects", {"response": "clip_t", "factor": "input"},
        ["level", "mean_measured", "low_measured", "high_measured"]),
    "against": (
        "tasks", "against-clip_t", "against", {"response": "clip_t", "control": "none"},
        ["level", "estimate", "low", "high", "p_deciding"]),
    "trend": (
        "numbers", "trend-fd_effnet-width", "curves", {"response": "fd_effnet"},
        ["at", "estimate", "low", "high"]),
    "interaction": (
        "pairs", "interaction-fd_effnet-output-input", "cells", {}, ["input", "output", "mean"]),
    "equivalence": (
        "tasks", "equivalence-clip_t", "equivalence", {"response": "clip_t"},
        ["point", "difference", "low", "high", "margin", "noninferior"]),
    "contrasts": (
        "alone", "half-normal-fd_effnet", "contrasts", {},
        ["contrast", "estimate", "quantile", "active"]),
    "power": (
        "tasks", "power-fd_effnet", "power", {"response": "fd_effnet"},
        ["factor", "ratio", "delta", "power"]),
    "quantiles": ("pairs", "qq-fd_effnet", "residuals", {}, ["run", "residual"]),
    "fitted": ("pairs", "residuals-fd_effnet", "residuals", {}, ["run", "fitted", "residual"]),
    "influence": ("pairs", "influence-fd_effnet", "residuals", {}, ["run", "cooks_distance"]),
}  # fmt: skip


@pytest.mark.parametrize("case", OF_TABLE.values(), ids=OF_TABLE)
def test_the_data_is_that_of_the_table(studies, figures, case):
    study, name, file, where, columns = case
    table = studies[study].rows(f"{file}.csv", **where)
    if file == "anova":
        table = table[~table["source"].isin(["task", "task:seed", "residual"])]
    data = figures[study][name].data
    data = data[data["table"] == f"{file}.csv"]
    row = data["row"].astype(int) - 1
    assert len(table) > 2 and sorted(row) == list(table.index)
    shown = data[columns].set_axis(row).sort_index()
    pd.testing.assert_frame_equal(
        shown.astype(object), table[columns].astype(object), check_names=False
    )


@pytest.mark.parametrize("column", ["trainable", "train_seconds", "peak_memory_mb"])
def test_costs_are_those_of_the_points(studies, figures, column):
    points = studies["tasks"].tables["points.csv"]
    figure = figures["tasks"][f"cost-{column}"]
    paid = points[points[column] > 0]
    assert list(figure.data["point"]) == list(paid["point"])
    assert list(figure.data["fd_effnet"]) == list(paid["fd_effnet"])
    cells = paid[paid["in_design"]]
    ordered = pd.concat([cells, paid[~paid["in_design"]]])
    drawn = marks(figure)[: len(cells)]
    outside = zip(range(len(cells), len(paid)), (SECOND, THIRD), strict=False)
    drawn += [marks(figure, colour)[0] for _, colour in outside]
    cost = np.log(ordered[column]) if column == "trainable" else ordered[column]
    assert_drawn_at(drawn, cost, np.log(ordered["fd_effnet"]))


def test_the_marks_of_diagnostics_stand_at_their_values(figures):
    qq, fitted, cook = (
        figures["pairs"][f"{kind}-fd_effnet"] for kind in ("qq", "residuals", "influence")
    )
    assert_drawn_at(marks(qq), qq.data["normal_quantile"], qq.data["residual"])
    assert_drawn_at(marks(fitted), fitted.data["fitted"], fitted.data["residual"])
    assert_drawn_at(marks(cook), range(len(cook.data)), cook.data["cooks_distance"])


def test_dots_stand_in_the_row_of_their_cell_the_best_on_top(figures):
    figure = figures["pairs"]["runs-fd_effnet"]
    data = figure.data[figure.data["baseline"].isna()]
    means = data.groupby(["input", "output"], observed=True)["fd_effnet"].transform("mean")
    seeds = [data[data["seed"] == seed] for seed in ("0", "1")]
    drawn = pd.concat(seeds)
    row = means.rank(method="dense")[drawn.index]
    assert_drawn_at(marks(figure), np.log(drawn["fd_effnet"]), -row)


@pytest.mark.parametrize("response", ["fd_effnet", "clip_t"])
def test_marginal_means_stand_at_their_value_filled_where_tied_with_the_best(figures, response):
    figure = figures["tasks"][f"means-{response}-output"]
    data = figure.data[figure.data["baseline"].isna()]
    tied = data["tied_with_best"].to_numpy(bool)
    assert sorted(tied) == [False, True]
    drawn = marks(figure, f"fill: {MAIN}") + marks(figure, f"fill: {FACE}")
    value = data["mean_measured"].to_numpy(float)
    (filled,), (hollow,) = np.flatnonzero(tied), np.flatnonzero(~tied)
    assert len(drawn) == 2
    assert (drawn[0][0] > drawn[1][0]) == (value[filled] > value[hollow])
    assert (drawn[0][1] > drawn[1][1]) == (filled < hollow)


def test_lines_stand_at_their_values(figures):
    interaction = figures["tasks"]["interaction-fd_effnet-output-input"]
    ours = interaction.data[interaction.data["output"] == "x"]
    assert_drawn_at(marks(interaction), ["abc".index(i) for i in ours["input"]],
                    np.log(ours["mean"]))  # fmt: skip
    curves = figures["tasks"]["against-n"]
    ours = curves.data[curves.data["of"].str.startswith("best")]
    frechet, kid = (marks(curves)[i : i + 4] for i in (0, 4))
    assert_drawn_at(frechet, np.log(ours["n"]), ours["fd_effnet"])
    assert len({y for _, y, _ in kid}) == 1


def test_effect_sizes_stand_at_their_values(studies):
    found = studies["tasks"]
    made = {"response": "fd_effnet", "left_out": ["night", "sepia", "line"] * 2}
    made |= {"factor": ["input"] * 3 + ["output"] * 3, "omega2_p": [-0.1, 0.2, 0.3, 0.5, 0.6, 0.9]}
    ranking = found.rows("ranking.csv", response="fd_effnet")
    tables = {"leave_one_out": pd.DataFrame(made), "ranking": ranking}
    (figure,) = by_name(with_tables(found, **tables), "left_out").values()
    rows = [-list(ranking["factor"]).index(name) for name in made["factor"]]
    order = np.argsort(rows, kind="stable")[::-1]
    values = np.array(made["omega2_p"])[order]
    assert_drawn_at(marks(figure), values, np.array(rows)[order])


def test_contrasts_stand_at_their_size_against_the_margins(figures):
    figure = figures["alone"]["half-normal-fd_effnet"]
    data, drawn = figure.data, marks(figure)
    assert_drawn_at(drawn, data["quantile"], data["estimate"].abs())
    unit = (drawn[0][1] - drawn[-1][1]) / (
        data["estimate"].abs().iloc[0] - data["estimate"].abs().iloc[-1]
    )
    (line,) = lines(figure, SECOND)
    height = -float(re.match(r"M \S+ (\S+)", line)[1])
    expected = data["simultaneous_margin"].iloc[0] - data["estimate"].abs().iloc[0]
    assert height - drawn[0][1] == pytest.approx(expected * unit, abs=0.01)
    active = set(data["contrast"][data["active"]])
    assert active == {"activation"}
    assert active == set(data["contrast"]) & set(texts(figure))
    assert sum(f"fill: {MAIN}" in style for *_, style in drawn) == len(active)


def test_every_finished_run_is_a_dot_in_the_panel_of_its_task(studies, figures):
    runs = studies["tasks"].runs
    cells = runs[runs["input"].notna()]
    figure = figures["tasks"]["runs-fd_effnet"]
    drawn = figure.data[figure.data["baseline"].isna()]
    assert sorted(drawn["row"]) == sorted(cells.index + 1)
    assert list(drawn["fd_effnet"]) == list(runs["fd_effnet"][drawn["row"].astype(int) - 1])
    seeds_in_legend = 2
    assert len(marks(figure)) == len(cells) + seeds_in_legend
    assert {"night", "sepia", "line", "seed 0", "seed 1"} <= set(texts(figure))
    for task, rows in cells.groupby("task"):
        full = figure.data[(figure.data["task"] == task) & (figure.data["baseline"] ==
                                                           "Full fine-tuning")]  # fmt: skip
        both = runs[(runs["task"] == task) & (runs["arm"] == "full")]["fd_effnet"]
        assert list(full["fd_effnet"]) == pytest.approx([both.mean()])
        order = drawn[drawn["task"] == task]
        assert len(order) == len(rows)


def test_lines_of_more_factors_are_means_of_cells(studies, figures):
    found = studies["alone"]
    names = [name for name in figures["alone"] if name.startswith("interaction")]
    assert len(names) == 3
    cells = found.tables["cells.csv"]
    data = figures["alone"]["interaction-fd_effnet-scale-width"].data
    for row in data.itertuples():
        ours = cells[(cells["scale"] == row.scale) & (cells["width"] == row.width)]
        assert row.mean == pytest.approx(ours["mean"].mean(), rel=1e-12)
        assert row.row == " ".join(str(i + 1) for i in ours.index)
    assert len(data) == 6


def test_a_cell_that_does_not_exist_is_a_gap(studies):
    found = studies["tasks"]
    cells = found.tables["cells.csv"]
    gone = (cells["input"] == "b") & (cells["output"] == "x")
    (figure,) = by_name(with_tables(found, cells=cells[~gone]), "interactions").values()
    x, y = (next(iter(lines(figure, colour))) for colour in (MAIN, SECOND))
    assert (x.count("M"), x.count("L")) == (2, 0)
    assert (y.count("M"), y.count("L")) == (1, 2)
    assert len(figure.data) == 5


def test_interaction_lines_are_drawn_where_they_can_be_told_apart(studies):
    found = studies["alone"]
    many = {name: [str(i) for i in range(9)] for name in found.levels}
    assert not by_name(replace(found, levels=many), "interactions")
    part = replace(found, analysis=replace(found.analysis, interactions=False))
    assert not by_name(part, "interactions")


def test_what_is_noninferior_is_filled_and_the_better_side_named(studies, figures):
    for response, better in (("fd_effnet", "← better than full"), ("clip_t", "better than full →")):
        figure = figures["tasks"][f"equivalence-{response}"]
        assert better in texts(figure)
        assert figure.data["difference"].is_monotonic_increasing == (response == "fd_effnet")
    table = studies["tasks"].tables["equivalence.csv"]
    claims = table.assign(noninferior=table.index % 3 == 0)
    figure = by_name(with_tables(studies["tasks"], equivalence=claims), "equivalence")[
        "equivalence-fd_effnet"
    ]
    filled = figure.data["noninferior"].to_numpy(bool)
    rows = np.arange(len(filled))
    found = marks(figure, f"fill: {MAIN}") + marks(figure, f"fill: {FACE}")
    difference = figure.data["difference"].to_numpy()
    assert_drawn_at(
        found, [*difference[filled], *difference[~filled]], [*-rows[filled], *-rows[~filled]]
    )
    assert len(marks(figure, f"fill: {MAIN}")) == filled.sum() == 2


def test_many_points_are_not_named(studies):
    found = studies["tasks"]
    one = found.rows("equivalence.csv", response="fd_effnet").iloc[[0]]
    points = found.tables["points.csv"].iloc[[0]]
    names = [f"point-{i}" for i in range(61)]
    for count, named in ((60, 60), (61, 0)):
        many, all_points = (
            pd.concat([table] * count, ignore_index=True).assign(point=names[:count])
            for table in (one, points)
        )
        drawn = by_name(with_tables(found, equivalence=many, points=all_points), "equivalence")
        shown = [text for text in texts(drawn["equivalence-fd_effnet"]) if text in names]
        assert len(shown) == named


def test_the_largest_influences_are_named_and_the_limit_drawn(studies, figures):
    figure, found = figures["tasks"]["influence-fd_effnet"], studies["tasks"]
    runs = found.runs.set_index("run")
    top = figure.data.nlargest(3, "cooks_distance")["run"]
    expected = {
        f"{runs['input'][run]} → {runs['output'][run]}, {runs['task'][run]}, "
        f"seed {runs['seed'][run]}"
        for run in top
    }
    assert {text for text in texts(figure) if "seed" in text} == expected
    drawn, data = marks(figure), figure.data["cooks_distance"].to_numpy()
    unit = (drawn[data.argmax()][1] - drawn[data.argmin()][1]) / (data.max() - data.min())
    (line,) = lines(figure, SECOND)
    height = -float(re.match(r"M \S+ (\S+)", line)[1])
    limit = data.min() + (height - drawn[data.argmin()][1]) / unit
    assert limit == pytest.approx(4 / len(data), rel=1e-3)


def test_factors_of_equal_power_share_a_line(studies):
    found = studies["tasks"]
    table = found.rows("power.csv", response="fd_effnet")
    one = table[table["factor"] == "input"]
    same = pd.concat([one, one.assign(factor="output")], ignore_index=True)
    figure = by_name(with_tables(found, power=same), "power")["power-fd_effnet"]
    assert "input and output" in texts(figure)
    assert_drawn_at(marks(figure), one["ratio"], one["power"])
    assert len(marks(figure)) == len(one) + 1  # the legend's
    assert "80%" in texts(figure)


def test_distances_against_n_are_means_over_the_runs_of_what_is_shown(studies, figures):
    found, figure = studies["tasks"], figures["tasks"]["against-n"]
    runs = found.runs
    means = runs[runs["input"].notna()].groupby(["input", "output"], observed=True)["fd_effnet"]
    best, worst = means.mean().idxmin(), means.mean().idxmax()
    of = {
        f"best cell: {' → '.join(best)}": (runs["input"] == best[0]) & (runs["output"] == best[1]),
        f"worst cell: {' → '.join(worst)}": (
            (runs["input"] == worst[0]) & (runs["output"] == worst[1])
        ),
        "Full fine-tuning": runs["arm"] == "full",
        "Untouched base": runs["arm"] == "none",
    }
    assert list(dict.fromkeys(figure.data["of"])) == list(of)
    table = found.tables["against_n.csv"]
    for name, mask in of.items():
        ours = table[table["run"].isin(runs["run"][mask])]
        expected = ours.groupby("n")[["fd_effnet", "kid_effnet"]].mean()
        shown = figure.data[figure.data["of"] == name].set_index("n")
        pd.testing.assert_frame_equal(shown[["fd_effnet", "kid_effnet"]], expected)
        assert shown["row"].str.split().map(len).tolist() == [mask.sum()] * 4
        assert name in texts(figure)


def test_distances_of_other_runs_at_another_n_are_left_out(studies):
    found = studies["tasks"]
    table = found.tables["against_n.csv"]
    first = found.runs[found.runs["arm"] == "full"]["run"].iloc[0]
    short = table[(table["run"] != first) | (table["n"] != 12)].reset_index(drop=True)
    data = by_name(with_tables(found, against_n=short), "against_n")["against-n"].data
    sizes = data.groupby("of")["n"].min()
    assert sizes["Full fine-tuning"] == 24 and sizes["Untouched base"] == 12


# --- what is not drawn --------------------------------------------------------------------

DRAWN_FROM = {
    "power": "power-",
    "leave_one_out": "omega2-left-out",
    "equivalence": "equivalence-",
    "against_n": "against-n",
    "contrasts": "half-normal-",
}


@pytest.mark.parametrize(("file", "start"), DRAWN_FROM.items(), ids=DRAWN_FROM)
def test_no_table_no_figure(studies, figures, file, start):
    study = "alone" if file == "contrasts" else "tasks"
    kinds = ("power", "left_out", "equivalence", "against_n", "half_normal")
    starts = tuple(DRAWN_FROM.values())
    there = {name for name in figures[study] if name.startswith(starts)}
    lost = {name for name in there if name.startswith(start)}
    tables = studies[study].tables
    without = replace(studies[study], tables={k: v for k, v in tables.items() if k[:-4] != file})
    assert lost and set(by_name(without, *kinds)) == there - lost


def test_what_was_not_measured_or_tested_is_not_drawn(figures):
    assert not {"omega2", "cost-peak_memory_mb"} & set(figures["alone"])
    assert "cost-peak_memory_mb" not in figures["pairs"]
    assert not [
        name for name in figures["pairs"] if name.startswith(("half-", "equiv", "against-n"))
    ]


def test_lines_by_task_are_means_less_that_of_their_task(studies, figures):
    found, figure = studies["tasks"], figures["tasks"]["by-task-fd_effnet-input"]
    assert {f for f in figures["tasks"] if f.startswith("by-task-")} == {
        "by-task-fd_effnet-input", "by-task-fd_effnet-output"
    }  # fmt: skip
    assert not [name for name in figures["pairs"] if name.startswith("by-task-")]
    runs = found.runs.assign(log=np.log(found.runs["fd_effnet"])).set_index(found.runs.index + 1)
    for row in figure.data.itertuples():
        own = runs.loc[[int(number) for number in row.row.split()], "log"].mean()
        task = runs[(runs["task"] == row.task) & (runs["method"] == "adapter")]["log"].mean()
        assert row.difference == pytest.approx(own - task, abs=1e-9)


def test_contrasts_of_a_constant_are_not_drawn(studies):
    table = studies["alone"].tables["contrasts.csv"]
    zero = table.assign(estimate=0.0, margin=0.0, simultaneous_margin=0.0, active=False)
    assert not by_name(with_tables(studies["alone"], contrasts=zero), "half_normal")


def test_distances_of_runs_that_are_not_shown_are_not_drawn(studies):
    table = studies["tasks"].tables["against_n.csv"].assign(run="another")
    assert not by_name(with_tables(studies["tasks"], against_n=table), "against_n")


def test_numbers_that_are_not_known_are_not_drawn(studies):
    found = studies["tasks"]
    unknown = {
        "power": "power", "leave_one_out": "omega2_p", "equivalence": "difference",
        "residuals": "cooks_distance",
    }  # fmt: skip
    tables = {
        file: found.tables[f"{file}.csv"].assign(**{column: float("nan")})
        for file, column in unknown.items()
    }
    names = by_name(with_tables(found, **tables))
    starts = ("power-", "omega2-left-out", "equivalence-", "influence-")
    assert not [name for name in names if name.startswith(starts)]
    assert {"qq-fd_effnet", "residuals-fd_effnet", "omega2"} <= set(names)


# --- as a file and on the page ------------------------------------------------------------


def test_drawn_again_it_is_the_same_to_the_byte(studies, figures):
    again = by_name(studies["tasks"])
    assert again.keys() == figures["tasks"].keys()
    for name, first in figures["tasks"].items():
        second = again[name]
        assert (second.svg, second.csv) == (first.svg, first.csv), name
        assert (second.caption, second.alt) == (first.caption, first.alt), name


def test_each_figure_has_its_section_words_and_own_name(figures):
    for drawn in figures.values():
        sections = {re.sub("^means-.*", "means", figure.section) for figure in drawn.values()}
        assert sections <= {
            *("cells", "anova", "means", "interactions", "ranking", "contrasts", "equivalence"),
            *("cost", "power", "diagnostics", "bias", "against", "trends", "agreement"),
        }
        for figure in drawn.values():
            assert figure.caption.endswith(".") and figure.alt and len(figure.data)
            assert {"table", "row"} <= set(figure.data.columns)


def test_ids_are_the_figures_own_and_those_used_are_there(figures):
    for figure in (figure for drawn in figures.values() for figure in drawn.values()):
        ids = set(re.findall(r'\bid="([^"]*)"', figure.inline))
        used = set(re.findall(r'(?:href="#|url\(#)([^")]*)', figure.inline))
        assert used <= ids and all(name.startswith(figure.name) for name in ids), figure.name


def test_names_of_levels_stay_text(tmp_path):
    factors = {"activation": list(HOSTILE), "scale": ["x", "<b>"]}
    found = analysed(tmp_path, factors=factors, baselines=False)
    found = with_tables(found, against_n=against_n(found.runs))
    for figure in draw_all(found):
        tags = {element.tag for element in ElementTree.fromstring(figure.svg).iter()}
        assert not {f"{SVG}{tag}" for tag in ("script", "b")} & tags, figure.name
    drawn = by_name(found)
    shown = texts(drawn["means-fd_effnet-activation"])
    assert [level[:23] for level in HOSTILE[1:]] == [t for t in shown if t in HOSTILE]
    assert any(text.startswith("<script>alert") for text in shown)
    inline = drawn["means-fd_effnet-activation"].inline
    assert '>id="x" #1f2328</text>' in inline


# --- the parts ----------------------------------------------------------------------------


@pytest.mark.parametrize("lower", [True, False])
def test_the_front_is_what_nothing_cheaper_or_as_cheap_beats(lower):
    draw = np.random.default_rng(5)
    points = pd.DataFrame(draw.integers(1, 30, (90, 2)), columns=["cost", "y"]).drop_duplicates()
    assert points["y"].duplicated().any() and points["cost"].duplicated().any()
    sign = 1 if lower else -1
    for index, on in on_front(points, "cost", "y", lower).items():
        rivals = points[points["cost"] <= points["cost"][index]].drop(index)
        beaten = (sign * rivals["y"] <= sign * points["y"][index]).any()
        assert on == (not beaten)


def test_order_statistics_of_normal_samples():
    middle, low, high = order_statistics(1)
    assert (middle[0], low[0], high[0]) == pytest.approx((0, -1.959964, 1.959964), abs=1e-6)
    n, draws = 9, 40_000
    ordered = np.sort(np.random.default_rng(3).normal(size=(draws, n)), axis=1)
    for computed, share in zip(order_statistics(n), (0.5, 0.025, 0.975), strict=True):
        np.testing.assert_allclose(computed, np.quantile(ordered, share, axis=0), atol=0.04)


def test_names_of_points_collide_with_nothing():
    draw = np.random.default_rng(2)
    axes = (canvas := Canvas(figsize=(4, 3), layout="constrained")).subplots()
    points = draw.normal(size=(40, 2))
    axes.plot(*points.T, "o", ms=4)
    label_points(axes, [(x, y, f"point {i}") for i, (x, y) in enumerate(points)])
    canvas.draw_without_rendering()
    boxes = [note.get_window_extent() for note in axes.texts]
    assert 10 < len(boxes) < 40
    assert not [one for one, two in combinations(boxes, 2) if one.overlaps(two)]
    at = axes.transData.transform(points)
    assert not [box for box in boxes if any(box.contains(*point) for point in at)]
    assert all(axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max) for box in boxes)


@pytest.mark.parametrize(
    ("means", "ends"),
    [
        pytest.param([1.2, 1.4, 1.5, 1.6, 1.8], (1.2, 1.8), id="all-alike"),
        pytest.param([1.2, 1.4, 1.5, 1.6, 7.3], (1.2, 1.6), id="one-far-above"),
        pytest.param([-9.0, 1.4, 1.5, 1.6, 1.8], (1.4, 1.8), id="one-far-below"),
        pytest.param([2.0, 2.0], (0, 4.0), id="equal"),
        pytest.param([2.0, 2.0, 2.0, 2.0, 2.0, 5.0], (0, 10.0), id="one-apart-from-equals"),
        pytest.param([0.0], (0, 1), id="zero"),
    ],
)
def test_one_cell_does_not_take_all_shades_of_a_heat_map(means, ends):
    assert shades(pd.Series(means)) == ends
