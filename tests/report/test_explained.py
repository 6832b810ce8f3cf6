"""The report's section on explanations, from made-up runs whose mediation is known."""

from __future__ import annotations

import base64
import csv
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import project
import pytest
import report_study as made_up
from PIL import Image

from fitspace import stats
from fitspace.core.errors import UserError
from fitspace.core.files import sha256
from fitspace.plan import build_plan
from fitspace.report import explained, figures, inputs, page, results, summary
from fitspace.results import table as collected
from fitspace.study import Study

LEVELS = {"input": ["SA_in", "CA_in", "FFN_in"], "output": ["FFN_in", "Trans_out"]}
SEEN = {"SA_in": 0.9, "CA_in": 0.5, "FFN_in": 0.1}
STEPS, BLOCKS = (100, 500, 900), ("down.0", "mid.0", "up.0")
BASE = 1.3


def table(study):
    """Runs whose clip_t follows their sensitivity, which follows the input."""
    draw, rows = np.random.default_rng(2), made_up.rows(study)
    for row in rows:
        seen = SEEN.get(row.get("input"), BASE) + 0.05 * draw.normal()
        row["prompt_sensitivity"] = abs(seen)
        row["clip_t"] = 0.2 + 0.1 * seen + 0.004 * draw.normal()
        row["explain_key"] = row["evaluate_key"]
    return rows


def write(folder, rows):
    moved, anatomy = [], []
    for row in rows:
        run, seen = row["run"], row["prompt_sensitivity"]
        for model, level in (("tuned", seen), ("untouched", BASE)):
            for i, step in enumerate(STEPS):
                moved.append((run, model, step, None, level * (1.5 - i / 2)))
            for i, block in enumerate(BLOCKS):
                moved.append((run, model, None, block, level * (i + 1)))
        if row["method"] == "adapter":
            anatomy += [(run, "change", block, "adapter", 2.0 + i, None)
                        for i, block in enumerate(BLOCKS)]  # fmt: skip
        if row["method"] == "full":
            for i, block in enumerate(BLOCKS):
                anatomy.append((run, "change", block, "self-attention", 1.0 + i, 4.0))
                anatomy.append((run, "change", block, "norm", 0.1, 2.0))
                anatomy.append((run, "gamma", block, "attn1", 0.2 * i, None))
                anatomy.append((run, "rank", block, "attn1.to_q", 1.5 + i, None))
                anatomy.append((run, "rank", block, "attn1.to_k", 2.5 + i, None))
    files = {
        "sensitivity.csv": (("run", "model", "step", "block", "ratio"), moved),
        "anatomy.csv": (("run", "part", "block", "kind", "value", "base"), anatomy),
    }
    for name, (columns, own) in files.items():
        with (folder / name).open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *own])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explained")
    study = made_up.study(
        factors=LEVELS,
        responses=("clip_t", "fd_effnet", "prompt_sensitivity"),
        explain={},
        tasks=("blueprint", "night"),
    )
    rows = table(study)
    made_up.write(folder, rows)
    write(folder, rows)
    given = inputs.read(study, folder)
    return folder, study, rows, given, results.analyse(study, given)


def test_a_points_sensitivity_is_the_mean_of_its_runs(made):
    *_, rows, _, found = made
    points = found.tables["sensitivity_points.csv"].set_index("point")
    for point in ("adapter.CA_in-FFN_in", "none"):
        own = [row["prompt_sensitivity"] for row in rows if row["point"] == point]
        assert points.loc[point, "mean"] == pytest.approx(np.mean(own), rel=1e-9)
        assert points.loc[point, "runs"] == len(own) == 4
    assert points["untouched"].tolist() == pytest.approx([BASE] * len(points))
    assert points.loc["none", ["low", "high"]].isna().all()  # its seeds agree
    points = points.drop("none")
    assert points["adjusted"].between(points["low"], points["high"], inclusive="neither").all()


def test_steps_and_blocks_are_averaged_over_runs(made):
    *_, rows, _, found = made
    own = [row["prompt_sensitivity"] for row in rows if row["point"] == "full"]
    steps = found.rows("sensitivity_steps.csv", point="full", model="tuned")
    assert steps["step"].tolist() == list(STEPS)
    assert steps["ratio"].tolist() == pytest.approx([np.mean(own) * f for f in (1.5, 1, 0.5)])
    blocks = found.rows("sensitivity_blocks.csv", point="full", model="untouched")
    assert blocks["block"].tolist() == list(BLOCKS) and blocks["depth"].tolist() == [1, 2, 3]
    assert blocks["ratio"].tolist() == pytest.approx([BASE, 2 * BASE, 3 * BASE])


def test_the_correlation_is_over_cells(made):
    *_, rows, _, found = made
    runs = pd.DataFrame([row for row in rows if row["method"] == "adapter"])
    cells = runs.groupby("point")[["prompt_sensitivity", "clip_t", "fd_effnet"]].mean()
    for name in ("clip_t", "fd_effnet"):
        row = found.rows("correlation.csv", response=name, measure="Pearson").iloc[0]
        assert row["estimate"] == pytest.approx(cells.corr().loc["prompt_sensitivity", name])
        assert row["cells"] == 6
    assert "prompt_sensitivity" not in set(found.tables["correlation.csv"]["response"])


def test_mediation_is_of_the_analysed_runs(made):
    *_, rows, _, found = made
    runs = pd.DataFrame([row for row in rows if row["method"] == "adapter"])
    wanted = stats.mediation(
        runs, "clip_t", "prompt_sensitivity", ["input", "output"], found.analysis.blocks.terms
    )
    table = found.tables["mediation.csv"]
    assert table["share"].tolist() == pytest.approx(wanted["share"].tolist(), rel=1e-6)
    share = table.set_index("factor").loc["input"]
    assert share["low"] > 0.3 and share["share"] == pytest.approx(1, abs=0.3)


def test_a_sentence_for_each_factor_says_what_is_shown(made):
    found = made[-1]
    one, other = ("".join(map(str, parts)) for parts in summary.through(found))
    assert re.fullmatch(
        r"input: that its effect on CLIP-T runs through prompt sensitivity is shown \(\d+% of the "
        r"effect, 95% bootstrap interval \d+% to \d+%\)\.",
        one,
    )
    assert other == (
        "output: no effect on CLIP-T is shown that could run through prompt sensitivity."
    )


def test_a_share_of_an_effect_that_is_hardly_there_is_not_told(made):
    found = made[-1]
    wide = found.tables["mediation.csv"].assign(share=-3.8, low=-26.0, high=10.0)
    unsure = replace(found, tables=found.tables | {"mediation.csv": wide})
    one, _ = ("".join(map(str, parts)) for parts in summary.through(unsure))
    assert one.endswith("is not shown: the effect is too uncertain to be divided.")


def test_anatomy_is_relative_to_the_base_where_there_is_one(made):
    found = made[-1]
    rows = found.rows("anatomy_points.csv", point="full", block="mid.0")
    change = rows[rows["part"] == "change"].set_index("kind")
    assert change["relative"].to_dict() == pytest.approx({"self-attention": 0.5, "norm": 0.05})
    rest = rows[rows["part"] != "change"].set_index("part")["value"]
    assert rest.to_dict() == pytest.approx({"gamma": 0.2, "rank": 3.0})
    added = found.rows("anatomy_points.csv", point="adapter.CA_in-FFN_in")
    assert added["relative"].isna().all() and added["value"].tolist() == [2.0, 3.0, 4.0]


def test_figures_and_page_show_them(made):
    folder, _, _, given, found = made
    drawn = figures.draw_all(found)
    ours = [figure for figure in drawn if figure.section == "explain"]
    assert [figure.name for figure in ours] == [
        "sensitivity-step", "sensitivity-depth", "sensitivity-clip_t",
        "anatomy-relative", "anatomy-added", "anatomy-gamma", "anatomy-rank",
    ]  # fmt: skip
    for figure in ours:
        for file, rows in figure.data.groupby("table"):
            assert set(rows["row"]) <= set(range(1, len(found.tables[file]) + 1))
    html, markdown = page.render(given, found, drawn)
    assert 'id="explain"' in html and "Prompt sensitivity and parameters" in html
    assert "Prompt sensitivity by point." in markdown
    assert html.count("runs through prompt sensitivity is") == 2  # in the summary too


def test_of_which_runs_a_row_is(made):
    *_, rows, _, found = made
    table, origins = found.tables["sensitivity_steps.csv"], found.origins["sensitivity_steps.csv"]
    for row, keys in zip(table.to_dict("records"), origins, strict=True):
        assert keys == [r["evaluate_key"] for r in rows if r["point"] == row["point"]]


def test_a_study_without_explanations_has_no_such_table(made, tmp_path):
    _, study, rows, *_ = made
    made_up.write(tmp_path, rows)
    given = inputs.read(study, tmp_path)
    names = explained.tables(given, made[-1].analysis, ["clip_t"])
    assert all(table.empty for table in names.values())


WRONG = {
    "no number": ("sensitivity.csv", "ratio", "x", "column 'ratio': 'x' is no finite number"),
    "infinite": ("sensitivity.csv", "ratio", "inf", "column 'ratio': 'inf' is no finite number"),
    "another model": ("sensitivity.csv", "model", "other", "model 'other'; allowed: tuned, unto"),
    "another run": ("anatomy.csv", "run", "nobody", "run 'nobody' is not in runs.csv"),
    "no part": ("anatomy.csv", "part", "", "column 'part': an empty cell"),
    "no column": ("anatomy.csv", "base", None, "no column 'base'"),
}


@pytest.mark.parametrize("file, column, cell, message", WRONG.values(), ids=WRONG)
def test_a_changed_table_is_told(made, tmp_path, file, column, cell, message):
    _, study, rows, *_ = made
    made_up.write(tmp_path, rows)
    write(tmp_path, rows)
    text = pd.read_csv(tmp_path / file, dtype=str, keep_default_na=False)
    if cell is None:
        text = text.drop(columns=column)
    else:
        text.loc[1, column] = cell
    text.to_csv(tmp_path / file, index=False)
    with pytest.raises(UserError) as caught:
        inputs.read(study, tmp_path)
    assert any(message in problem for problem in caught.value.problems)


# --- pictures -----------------------------------------------------------------------------


def paint(path, shade):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30, 20), (shade, 0, 0)).save(path)


def uri(path):
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def test_the_page_shows_the_pictures_of_best_and_worst(tmp_path):
    study = made_up.study(
        factors=LEVELS, responses=("clip_t", "fd_effnet"), explain={}, tasks=("blueprint", "night")
    )
    rows = table(study)
    made_up.write(tmp_path, rows)
    write(tmp_path, rows)
    made_up.write_gallery(tmp_path, rows, ["a", "b"])
    html, _ = rendered(study, tmp_path)
    assert "<img" not in html
    files = [
        f"explained/{task}/{role}.png"
        for task in ("blueprint", "night")
        for role in ("best", "worst")
    ]
    for shade, file in enumerate(files):
        paint(tmp_path / file, shade)
    html, text = rendered(study, tmp_path)
    section = html.partition('id="explain"')[2].partition("</section>")[0]
    shown, folded = section.partition("<summary>Other tasks")[::2]
    for file, part in zip(files, (shown, shown, folded, folded), strict=True):
        assert uri(tmp_path / file) in part and f"]({file})" in text
    assert "Best cell, blueprint: <code>adapter." in shown and 'width="30" height="20"' in shown
    (tmp_path / files[0]).write_bytes(b"GIF")
    with pytest.raises(UserError, match=r"best.png: no PNG \(UnidentifiedImageError\)"):
        inputs.read(study, tmp_path)


def rendered(study, folder):
    given = inputs.read(study, folder)
    return page.render(given, results.analyse(study, given), [])


def test_the_pictures_are_those_of_the_record(tmp_path, monkeypatch):
    """Copied from the results; without these kept, if the record has them, and else removed."""
    project.images(tmp_path / "images")
    (tmp_path / "models").symlink_to(Path(__file__).parents[2] / "models")
    monkeypatch.chdir(tmp_path)
    plan = build_plan(Study.model_validate(project.content() | {"explain": {}}))
    rows = [
        collected.identity(plan, run, "ok") | {"fd_effnet": float(i)}
        for i, run in enumerate(plan.runs)
    ]
    records, folder = {}, tmp_path / "report"
    for shade, run in enumerate(plan.runs):
        path = run.explain.folder / "difference.png"
        paint(path, shade)
        record = SimpleNamespace(outputs={"difference.png": sha256(path)})
        records["explain", run.explain.key] = record
    monkeypatch.setattr(collected.lineage, "read", lambda folder: SimpleNamespace(records=records))
    paint(folder / "explained/gone/best.png", 200)

    def there():
        collected.write_pictures(plan, rows, folder)
        return {p.relative_to(folder).as_posix(): p for p in folder.rglob("*.png")}

    found = there()
    assert set(found) == {"explained/mine/best.png", "explained/mine/worst.png"}
    best, worst = plan.runs[0], plan.runs[1]  # by the first seed; the lower distance is better
    for run, path in ((best, found["explained/mine/best.png"]),
                      (worst, found["explained/mine/worst.png"])):  # fmt: skip
        assert path.read_bytes() == (run.explain.folder / "difference.png").read_bytes()
    for run in plan.runs:
        (run.explain.folder / "difference.png").unlink()
    assert set(there()) == set(found)
    paint(found["explained/mine/best.png"], 250)
    assert set(there()) == {"explained/mine/worst.png"}
