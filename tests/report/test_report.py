"""The report: what it writes, what it says, and that no input can break or forge it."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean, stdev
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
import report_study as made_up
from committed import REPORTS, ROOT, copy_inputs

from fitspace.core.errors import UserError
from fitspace.metrics import METRICS
from fitspace.plan import build_plan, load_study
from fitspace.report import build, words
from fitspace.results.table import write_design
from fitspace.study import DRAWN

VOID = {"meta", "link", "br", "img", "input", "hr", "col"}
TWO = ("fd_effnet", "clip_t")
HOSTILE = "<script>alert('x')</script>\"&amp;`$x$`|</style>"


class Page(HTMLParser):
    """Elements, text and numbers of a page; fails on tags that are not closed in order.

    ``texts`` are the pieces of text, each with its section and the tags and roles around it.
    """

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.numbers: list[tuple[dict, str]] = []
        self.texts: list[tuple[str, set[str], str]] = []
        self.text, self._open, self._section = "", [], ""
        self._roles: list[str] = []
        self.feed(html)
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)
            self._roles.append(dict(attributes).get("role", ""))
        if tag == "data":
            self.numbers.append((dict(attributes), ""))
        if tag == "section":
            self._section = dict(attributes)["id"]

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open and self._open.pop() == tag, f"</{tag}> closes nothing"
        self._roles.pop()

    def handle_data(self, text):
        self.text += text
        self.texts.append((self._section, {*self._open, *self._roles}, text))
        if self._open and self._open[-1] == "data":
            self.numbers[-1] = (self.numbers[-1][0], text)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def made(folder: Path, study, table, **more) -> Path:
    made_up.write(folder, table, **more)
    return build(study, folder)


def plain(number: str) -> float:
    """A shown number back as a float."""
    number = number.replace(",", "").replace("−", "-").removeprefix("<")
    if "×" in number:
        mantissa, power = number.split(" × 10")
        digits = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
        return float(mantissa) * 10 ** int(power.translate(digits))
    if number.endswith("%"):
        return float(number[:-1]) / 100
    return float(number)


@pytest.fixture(scope="module", autouse=True)
def no_syncing():
    """Durability is not tested here, and a busy disk takes seconds a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fitspace.core.files.os.fsync", lambda handle: None)
        yield


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """The folder of a whole report: two factors with illegal cells, baselines, a gallery."""
    folder = tmp_path_factory.mktemp("report")
    study, captions = made_up.study(responses=TWO), [f"caption {i}" for i in range(10)]
    table = made_up.rows(study)
    made_up.write(folder, table, dropped=["adapter (input=CA_in, output=SA_in): flows back"])
    made_up.write_gallery(folder, table, captions)
    build(study, folder)
    return folder


@pytest.fixture(scope="module")
def page(report) -> Page:
    return Page((report / "report.html").read_text(encoding="utf-8"))


def test_every_file_is_written(report):
    written = {str(p.relative_to(report)) for p in report.rglob("*") if p.is_file()}
    figures = {
        *("heatmap-fd_effnet", "runs-fd_effnet", "omega2", "cost-trainable"),
        *("cost-train_seconds", "qq-fd_effnet", "residuals-fd_effnet"),
        *(f"means-{r}-{f}" for r in TWO for f in ("input", "output")),
    }
    tables = ("anova", "effects", "cells", "baselines", "ledger", "spread", "variances")
    assert {f"figures/{name}.{kind}" for name in figures for kind in ("svg", "csv")} < written
    assert {f"{name}.csv" for name in tables} < written
    assert {"origins.json", "report.md", "report.html"} < written


def test_made_again_it_is_the_same_to_the_byte(report, tmp_path):
    for name in ("runs.csv", "gallery.json", "design.json"):
        (tmp_path / name).write_bytes((report / name).read_bytes())
    shutil.copytree(report / "gallery", tmp_path / "gallery")
    build(made_up.study(responses=TWO), tmp_path)
    for path in report.rglob("*"):
        if path.is_file():
            again = tmp_path / path.relative_to(report)
            assert again.read_bytes() == path.read_bytes(), path.name


def said_by(origin: dict[str, str], study: dict, tables: dict[str, list[dict]]) -> str:
    """What stands where a number of the page says that it is from."""
    table, rows, column = (origin[f"data-{name}"] for name in ("table", "row", "column"))
    if table == "study":
        value = study
        for key in column.split("."):
            value = value[int(key)] if isinstance(value, list) else value[key]
        return str(value)
    found = [tables[table][int(row) - 1] for row in rows.split()]
    if not column:
        return str(len(found))
    (row,) = found
    return row[column]


def check_numbers(folder: Path, study, page: Page) -> None:
    """Every number shown is that of its file, rounded, and names the runs behind it."""
    tables = {path.name: rows_of(path) for path in folder.glob("*.csv")}
    declared = study.model_dump(mode="json")
    origins = json.loads((folder / "origins.json").read_text(encoding="utf-8"))
    known = {run["evaluate_key"] or run["run"] for run in tables["runs.csv"]}
    assert len(page.numbers) > 500
    for origin, shown in page.numbers:
        raw = said_by(origin, declared, tables)
        assert origin["value"] == raw, origin
        sets = origin["data-runs"].split()
        assert bool(sets) == (origin["data-table"] != "study"), origin
        assert all(set(origins["sets"][name]) <= known for name in sets), origin
        if not raw:
            assert shown == words.NONE
        elif shown.startswith("<"):
            assert float(raw) < plain(shown)
        else:
            digits = re.sub(r" ×.*|[^0-9.]", "", shown).partition(".")[2]
            size = (
                10 ** (round(float(re.search(r"e(.*)", f"{float(raw):e}")[1])))
                if "×" in shown
                else 0.01
                if shown.endswith("%")
                else 1
            )
            assert plain(shown) == pytest.approx(float(raw), abs=0.5001 * size * 10 ** -len(digits))


def test_every_number_is_that_of_its_file(report, page):
    check_numbers(report, made_up.study(responses=TWO), page)


def test_the_runs_behind_a_cell_are_its_runs(report, page):
    runs = rows_of(report / "runs.csv")
    origins = json.loads((report / "origins.json").read_text(encoding="utf-8"))
    cells = rows_of(report / "cells.csv")
    assert len(cells) == len(origins["rows"]["cells.csv"]) == 17 * len(TWO)
    for cell, name in zip(cells, origins["rows"]["cells.csv"], strict=True):
        of_cell = {
            run["evaluate_key"]
            for run in runs
            if (run["input"], run["output"]) == (cell["input"], cell["output"])
        }
        assert set(origins["sets"][name]) == of_cell
    sets = [tuple(keys) for keys in origins["sets"].values()]
    assert len(set(sets)) == len(sets)
    island = next(t for _, tags, t in page.texts if "script" in tags and '"sets"' in t)
    assert json.loads(island) == origins


RESULTS = {
    *("answer", "summary", "design", "cells", "anova", "means"),
    *("spread", "cost", "diagnostics", "robustness"),
}
# Constants of the method that the text states.
CONSTANTS = r"9[05]%|80% power|\b[57]%|\bHC[23]\b|above 0\.1\b"


def check_no_bare_number(folder: Path, study, page: Page) -> None:
    """No numeral stands in a section of results but in a number with its origin, or in a name."""
    named = (*study.analysis.factors, "point", "checkpoint", *DRAWN)
    contrasts = folder / "contrasts.csv"  # of a study whose every point has one run
    measured = METRICS.keys() & rows_of(folder / "runs.csv")[0].keys()
    names = {
        *(row["contrast"] for row in (rows_of(contrasts) if contrasts.exists() else [])),
        *(row.get(column) for row in rows_of(folder / "runs.csv") for column in named),
        *(words.metric(name).label for name in measured),
        *(words.named(name) for name in measured),
        *measured,
        *(arm.title for arm in study.arms),
        *(task.name for task in study.tasks),
        *re.findall(r"caption \d+", " ".join(text for _, _, text in page.texts)),
    }
    names = sorted(map(re.escape, filter(None, names)), key=len, reverse=True)
    allowed = re.compile(rf"(?<!\w)(?:{'|'.join(names)})(?!\w)|{CONSTANTS}")
    outside = {"data", "code", "svg", "script", "style", "note"}
    texts = [t for section, tags, t in page.texts if section in RESULTS and not tags & outside]
    assert len(texts) > 200
    assert [t for t in texts if re.search(r"\d", allowed.sub("", t))] == []


def test_no_number_stands_without_its_origin(report, page):
    check_no_bare_number(report, made_up.study(responses=TWO), page)


def test_the_data_of_a_figure_is_that_of_its_tables(report):
    tables = {path.name: rows_of(path) for path in report.glob("*.csv")}
    checked = 0
    for path in (report / "figures").glob("*.csv"):
        for drawn in rows_of(path):
            rows = [tables[drawn["table"]][int(row) - 1] for row in drawn["row"].split()]
            if drawn.get("baseline"):
                response = path.stem.split("-")[1]
                (value,) = (
                    v for k, v in drawn.items() if v and k not in ("table", "row", "baseline")
                )
                assert float(value) == pytest.approx(fmean(float(r[response]) for r in rows))
                assert len({row["arm"] for row in rows}) == 1
                continue
            for name in drawn.keys() & rows[0].keys():
                values = {row[name] for row in rows}
                if values != {drawn[name]}:  # Not one text: then the mean of numbers.
                    assert float(drawn[name]) == pytest.approx(fmean(map(float, values)))
                checked += 1
    assert checked > 500


def test_the_data_of_a_figure_is_what_is_drawn(report):
    for name, column in (("heatmap-fd_effnet", "mean"), ("means-fd_effnet-input", "level")):
        drawn = (report / f"figures/{name}.svg").read_text(encoding="utf-8")
        rows = [row for row in rows_of(report / f"figures/{name}.csv") if not row["baseline"]]
        texts = [row[column] if column == "level" else f"{float(row[column]):.1f}" for row in rows]
        assert len(texts) > 4 and all(f">{text}<" in drawn for text in texts)


def test_the_data_of_a_figure_can_be_downloaded(report, page):
    links = [a for tag, a in page.elements if tag == "a" and a.get("download")]
    figures = sorted((report / "figures").glob("*.csv"))
    assert sorted(link["download"] for link in links) == [path.name for path in figures]
    for link in links:
        kind, _, content = link["href"].partition(",")
        assert kind == "data:text/csv;charset=utf-8"
        assert unquote(content) == (report / "figures" / link["download"]).read_text("utf-8")


def test_cell_means_are_the_means_of_the_runs(report):
    runs = rows_of(report / "runs.csv")
    for cell in rows_of(report / "cells.csv"):
        values = [
            float(run[cell["response"]])
            for run in runs
            if (run["input"], run["output"]) == (cell["input"], cell["output"])
        ]
        assert int(cell["runs"]) == len(values) == 2
        assert float(cell["mean"]) == pytest.approx(sum(values) / 2, rel=1e-9)
    best = min(
        (c for c in rows_of(report / "cells.csv") if c["response"] == "fd_effnet"),
        key=lambda c: float(c["mean"]),
    )
    drawn = (report / "figures/heatmap-fd_effnet.svg").read_text(encoding="utf-8")
    assert f">{float(best['mean']):.1f}<" in drawn


def test_the_page_asks_nothing_of_any_host(report, page):
    policy = [a["content"] for t, a in page.elements if "http-equiv" in a]
    assert policy and policy[0].startswith("default-src 'none'")
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "action", "data"):
            link = attributes.get(name) or "#"
            assert link.startswith(("#", "data:")), (tag, name, link)
    css = re.findall(r"url\(([^)]*)\)|@import", (report / "report.html").read_text("utf-8"))
    assert all(link.startswith(("data:", "#")) for link in css)


def test_the_page_can_be_read_by_everyone(page):
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    heads = [a for tag, a in page.elements if tag == "th"]
    assert heads and all(a.get("scope") in ("row", "col") for a in heads)
    links = [a["href"][1:] for t, a in page.elements if a.get("href", "").startswith("#")]
    assert set(links) <= set(ids)
    for tag, attributes in page.elements:
        if attributes.get("role") in ("img", "region"):
            named = attributes.get("aria-label") or attributes.get("aria-labelledby") in ids
            assert named, (tag, attributes)
    assert [a["lang"] for t, a in page.elements if t == "html"] == ["en"]


def test_figures_take_the_colours_of_the_page(report):
    html = (report / "report.html").read_text(encoding="utf-8")
    inline = "".join(re.findall(r"<svg.*?</svg>", html, re.S))
    assert "var(--ink)" in inline and "#1f2328" not in inline
    for path in (report / "figures").glob("*.svg"):
        root = ElementTree.parse(path).getroot()
        assert root.get("viewBox") and "var(" not in path.read_text(encoding="utf-8")


def test_markdown_says_the_same(report, page):
    text = (report / "report.md").read_text(encoding="utf-8")
    summary = text.split("## Summary\n")[1].split("##")[0]
    sentences = [line[2:] for line in summary.splitlines() if line.startswith("- ")]
    shown = re.sub(r"\s+", " ", page.text)
    for sentence in sentences:
        sentence = sentence.removeprefix("Note: ").replace("&lt;", "<").replace("\\", "")
        assert sentence in shown
    links = re.findall(r"\[[^\]]*\]\(([^)]*)\)", text)
    assert {Path(link).suffix for link in links} == {".png", ".svg", ".csv"}
    assert all((report / link).is_file() for link in links)


# --- what it says -------------------------------------------------------------------------


def summary_of(folder: Path) -> str:
    text = (folder / "report.md").read_text(encoding="utf-8")
    return text.split("## Summary")[1].split("\n## ")[0].replace("\\", "").replace("&lt;", "<")


SMALL = {"input": ["a", "b", "c"], "output": ["x", "y"]}
ONE = {"responses": ("fd_effnet",), "baselines": False}


@pytest.mark.parametrize(
    ("effect", "noise", "said", "never"),
    [
        pytest.param(
            1.0,
            0.02,
            ["output: an effect on .* is shown", "input: an effect on .* is not shown",
             "matters most is shown: output", "x is better than y"],
            ["interaction of .* is shown"],
            id="one-strong-effect",
        ),
        pytest.param(
            0.0,
            0.03,
            ["output: an effect on .* is not shown", "input: an effect on .* is not shown",
             "matters most is not shown", "does not prove absence",
             "not shown to be the best cell"],
            ["is shown"],
            id="no-effect",
        ),
    ],
)  # fmt: skip
def test_it_claims_what_the_data_show_and_no_more(tmp_path, effect, noise, said, never):
    study = made_up.study(SMALL, seeds=(0, 1, 2), **ONE)
    table = made_up.rows(study, effect, noise)
    made(tmp_path, study, table)
    text = summary_of(tmp_path)
    for pattern in said:
        assert re.search(pattern, text), pattern
    for pattern in never:
        assert not re.search(pattern, text), pattern


def changed(table: list[dict], where: slice, **changes) -> list[dict]:
    for row in table[where]:
        row.update(changes)
    return table


@pytest.mark.parametrize(
    ("factors", "changes", "said", "figure"),
    [
        pytest.param(
            SMALL,
            {},
            [r"On the task blueprint, an effect on .* is shown for output \(adjusted p .*\), "
             r"and not shown for input \(adjusted p = ",
             r"has the lowest mean Fréchet distance .*; it is not shown to be the best cell",
             r"Against the untouched base \(mean [\d,.]+\), an improvement is shown for "],
            "heatmap-fd_effnet", id="two factors",
        ),
        pytest.param(
            {"output": ["x", "y", "z"]},
            {"margins": {"fd_effnet": 5.0}},
            [r"an effect on .* is shown for output \(p .*\)\.",
             r"x has the lowest mean .*; that it is the best level is not shown\.",
             r"^Non-inferiority to full fine-tuning at a margin of 5\.00 is not shown for any"],
            "means-fd_effnet-output", id="one factor and a margin",
        ),
        pytest.param(
            SMALL,
            {"contrasts": {"y against x": {"output": {"y": 1, "x": -1}}}},
            [r"a difference in .* on the log scale is shown for y against x \([−\d.]+, p .*\)\.",
             r"not shown to be the best cell: .* not separable from it by a test of all pairs",
             "Against the untouched base"],
            "heatmap-fd_effnet", id="the study's own question",
        ),
        pytest.param(
            {"input": ["a", "b"], "output": ["x", "y"], "width": [4, 8]},
            {},
            ["is shown for width .*, and not shown for input .* and output ",
             "has the lowest mean", "Against the untouched base"],
            "omega2", id="three factors",
        ),
    ],
)  # fmt: skip
def test_the_answer_comes_first(tmp_path, factors, changes, said, figure):
    """Two or three sentences, each with its number, and the one figure that shows it."""
    analysis = {"factors": list(factors), "responses": list(TWO), "transform": {"fd_effnet": "log"}}
    study = made_up.study(factors, seeds=(0, 1, 2), analysis=analysis | changes)
    made(tmp_path, study, made_up.rows(study))
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    answer = text.split("## Answer\n")[1].split("## Summary")[0]
    sentences = [line for line in answer.splitlines() if line and line[0] not in "![" and line]
    plain_text = [line.replace("\\", "").replace("&lt;", "<") for line in sentences]
    assert len(plain_text) == len(said) == 3
    for pattern, sentence in zip(said, plain_text, strict=True):
        assert re.search(pattern, sentence), (pattern, sentence)
    assert re.findall(r"figures/([\w-]+)\.svg", answer) == [figure]
    assert text.count(f"figures/{figure}.svg") == 1
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.index('id="answer"') < html.index(f'id="fig-{figure}"') < html.index('class="toc"')
    page = Page(html)
    check_no_bare_number(tmp_path, study, page)


def test_an_answer_does_not_list_everything_that_is_not_shown(tmp_path):
    factors = {"output": ["a", "b", "c", "d", "e", "z"]}
    contrasts = {f"{x} against b": {"output": {x: 1, "b": -1}} for x in "acdez"}
    analysis = {"factors": ["output"], "responses": list(TWO), "contrasts": contrasts}
    study = made_up.study(factors, seeds=(0, 1, 2), analysis=analysis)
    table = [
        row
        | {"fd_effnet": 700 + (7 * row["seed"] + ord(row["output"])) ** 2 % 11}
        | ({"fd_effnet": 1600 + row["seed"] ** 2} if row["output"] == "z" else {})
        if row.get("output")
        else row
        for row in made_up.rows(study)
    ]
    made(tmp_path, study, table)
    answer = (tmp_path / "report.md").read_text(encoding="utf-8").split("## Summary")[0]
    assert re.search(r"is shown for z against b \(.*\), and not shown for the others\.", answer)


def test_an_answer_names_points_that_are_no_better_than_doing_nothing(tmp_path):
    """That none is as good as full fine-tuning would hide that one is worse than the base."""
    factors = {"output": ["x", "y", "z"]}
    analysis = {"factors": ["output"], "responses": list(TWO), "margins": {"fd_effnet": 5.0}}
    study = made_up.study(factors, seeds=(0, 1, 2), analysis=analysis)
    table = made_up.rows(study)
    made(tmp_path, study, [r | {"fd_effnet": 9 * r["fd_effnet"]} if r.get("output") == "z" else r
                           for r in table])  # fmt: skip
    answer = (tmp_path / "report.md").read_text(encoding="utf-8").split("## Summary")[0]
    assert re.search(
        r"Against the untouched base \(mean .*\), an improvement is shown for every point except "
        r"\S*z\S*, where it is not shown; for full fine-tuning it is shown; a worsening is "
        r"shown for \S*z\S*, not shown for the others\. "
        r"Non-inferiority to full fine-tuning at a margin of 5\.00 is not shown for any point\.",
        answer,
    ), answer


def test_an_answer_names_what_every_point_loses(tmp_path):
    study = made_up.study(SMALL, seeds=(0, 1, 2), responses=TWO)
    table = [
        r if r["method"] == "none" else r | {TWO[1]: r[TWO[1]] - 9} for r in made_up.rows(study)
    ]
    made(tmp_path, study, table)
    answer = (tmp_path / "report.md").read_text(encoding="utf-8").split("## Summary")[0]
    assert "In CLIP-T a worsening is shown for every point." in answer


def test_an_interval_beyond_0_of_a_difference_that_is_shown_is_explained():
    """Simultaneous intervals are wider than Holm's tests: two recorded reports have such ones."""
    explained = []
    for path in sorted((ROOT / "reports").glob("*/questions.csv")):
        study = load_study(ROOT / f"params/{path.parent.name}.yaml")
        lines = (
            (path.parent / "report.md").read_text(encoding="utf-8").replace("\\", "").splitlines()
        )
        for row in rows_of(path):
            if row["response"] != study.analysis.responses[0] or row["contrast"] == "jointly":
                continue
            (said,) = [x for x in lines if x.startswith(f"- {row['contrast']}: a difference in ")]
            wider = float(row["low"]) < 0 < float(row["high"])
            wider = wider and float(row["p_deciding_holm"]) < 0.05
            assert ("simultaneous intervals are wider than Holm's tests" in said) == wider, said
            explained += [path.parent.name] * wider
    assert len(explained) >= 2


def test_an_answer_of_part_of_the_runs_says_so(tmp_path):
    study = made_up.study(SMALL, seeds=(0, 1, 2), responses=TWO)
    table = made_up.rows(study)
    made(tmp_path, study, changed(table, slice(0, 1), status="failed", fd_effnet=None))
    answer = (tmp_path / "report.md").read_text(encoding="utf-8").split("## Summary")[0]
    assert re.search(r"\d+ of \d+ planned runs finished, 1 failed\.", answer)


@pytest.mark.parametrize(
    ("factors", "said"),
    [
        (
            {"width": [4, 8, 16], "train.lr": [0.01, 0.001]},
            "train.lr 0.01 is best for 2 of 3 levels of width, train.lr 0.001 is best for 1.",
        ),
        (
            {"width": [4, 8], "activation": ["relu", "silu"], "train.lr": [0.01, 0.001]},
            "train.lr 0.01 is best for 3 of 4 combinations of width and activation, train.lr 0.001 "
            "is best for 1.",
        ),
        (
            {"input": made_up.INPUTS[:3], "output": made_up.OUTPUTS[:2], "train.lr": [0.01, 0.001]},
            "train.lr 0.01 is best for 3 of 4 combinations of input and output, train.lr 0.001 is "
            "best for 1.",
        ),
        (
            {"width": [4, 8], "train.prior_weight": [0, 1], "train.lr": [0.01, 0.001]},
            "train.lr 0.01 is best for 3 of 4 combinations of width and train.prior_weight, "
            "train.lr 0.001 is best for 1.",
        ),
    ],
)
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_a_study_that_chooses_is_answered_by_the_best_for_each_combination(
    tmp_path, factors, seeds, said
):
    analysis = {"factors": list(factors), "choose": ["train.lr"], "responses": ["fd_effnet"]}
    study = made_up.study(factors, seeds=seeds, baselines=False, analysis=analysis)
    table = made_up.rows(study)
    first = [r for r in table if all(r[f] == table[0][f] for f in factors if f != "train.lr")]
    for row in first:  # of the first combination, the second level
        row["fd_effnet"] *= 0.5 if float(row["train.lr"]) == 0.001 else 1
    made(tmp_path, study, table)
    answer = (tmp_path / "report.md").read_text(encoding="utf-8").split("## Summary")[0]
    assert said in answer.replace("\\_", "_")


def test_a_level_at_which_a_run_diverged_is_not_chosen(tmp_path):
    factors = {"width": [4, 8], "train.lr": [0.01, 0.001]}
    analysis = {"factors": list(factors), "choose": ["train.lr"], "responses": ["fd_effnet"]}
    study = made_up.study(factors, seeds=(0, 1), baselines=False, analysis=analysis)
    table = made_up.rows(study)
    high = [i for i, r in enumerate(table) if (r["width"], r["train.lr"]) == (4, 0.01)]
    made(
        tmp_path,
        study,
        changed(table, slice(high[0], high[0] + 1), status="failed", fd_effnet=None),
    )
    answer = (tmp_path / "report.md").read_text(encoding="utf-8").split("## Summary")[0]
    assert (
        "train.lr 0.01 is best for 1 of 2 levels of width, train.lr 0.001 is best for 1" in answer
    )


def failed(table):
    empty = {"status": "failed", "fd_effnet": None}
    return changed(
        changed(table, slice(0, 1), **empty), slice(4, 6), **empty | {"status": "missing"}
    )


CASES = {
    "one-factor": (
        {"factors": {"width": [4, 8, 16]}},
        None,
        ["width: an effect"],
        {"means-fd_effnet-width.svg"},
        {"heatmap-fd_effnet.svg"},
    ),
    "three-factors": (
        {"factors": {"width": [4, 8], "activation": ["relu", "silu"], "scale": [0.5, 1.0]}},
        None,
        ["width: an effect", "scale: an effect", "Interactions: width with activation"],
        {"means-fd_effnet-scale.svg"},
        {"heatmap-fd_effnet.svg"},
    ),
    "three-factors-once": (
        {
            "factors": {"width": [4, 8], "activation": ["relu", "silu"], "scale": [0.5, 1.0]},
            "seeds": (0,),
        },
        None,
        [
            "width, activation and scale: an effect .* is not shown .no test is possible",
            "Lenth's margin of error",
        ],
        {"half-normal-fd_effnet.svg"},
        {"power-fd_effnet.svg"},
    ),
    "several-tasks": (
        {"factors": SMALL, "tasks": ("night", "sepia")},
        None,
        ["taken as a sample of tasks, an effect", "hold for the tasks studied"],
        {"runs-fd_effnet.svg", "omega2-left-out.svg", "heatmap-fd_effnet.svg"},
        set(),
    ),
    "runs-lost": (
        {"factors": SMALL},
        failed,
        ["of 16 planned runs finished, 1 failed, 2 missing"],
        {"heatmap-fd_effnet.svg"},
        set(),
    ),
    "constant-response": (
        {"factors": SMALL},
        lambda table: changed(table, slice(None), fd_effnet=3.5),
        ["no test is possible", "matters most is not shown"],
        {"heatmap-fd_effnet.svg"},
        {"qq-fd_effnet.svg"},
    ),
    "not-finite": (
        {"factors": SMALL},
        lambda table: changed(table, slice(2, 3), fd_effnet="nan"),
        ["fd_effnet: 1 value"],
        set(),
        set(),
    ),
    "one-seed-and-no-costs": (
        {"factors": SMALL, "seeds": (5,), "baselines": False},
        lambda table: changed(table, slice(None), trainable=None, train_seconds=None),
        ["one seed", "not known", "not shown to be the best cell .not tested"],
        set(),
        {"cost-trainable.svg", "cost-train_seconds.svg"},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_any_study(tmp_path, case):
    settings, change, said, drawn, not_drawn = case
    study = made_up.study(**{"responses": ("fd_effnet",)} | settings)
    table = made_up.rows(study)
    html = made(tmp_path, study, change(table) if change else table)
    Page(html.read_text(encoding="utf-8"))
    for pattern in said:
        assert re.search(pattern, summary_of(tmp_path)), pattern
    figures = {path.name for path in (tmp_path / "figures").glob("*.svg")}
    assert drawn <= figures and not figures & not_drawn


def test_what_holds_on_single_tasks_alone_is_said_and_drawn(tmp_path):
    study = made_up.study(tasks=("night", "sepia"), responses=("fd_effnet",))
    table = made_up.rows(study)
    one = next(row for row in table if (row["input"], row["output"]) == ("SA_in", "FFN_in"))
    for row in table:
        if row["point"] == one["point"] and row["task"] == "night":
            row["fd_effnet"] *= 9
    made(tmp_path, study, table)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    answer, _ = text.split("## Summary")
    said = r"On single tasks worse than the base, if runs spread alike: SA\_in → FFN\_in on night."
    assert said in answer
    assert "what they do together differs between the tasks is shown" in answer
    assert "read the cells of each task, not levels. Which factor matters most is" in answer
    assert "input and output do together differs between these tasks: shown (F(" in text
    assert "sample of tasks, an effect is not shown: so few tasks cannot tell." in text
    for task in ("night", "sepia"):
        assert (tmp_path / f"figures/heatmap-fd_effnet-{task}.svg").exists()
    for row in rows_of(tmp_path / "task_cells.csv"):
        at = [t for t in table if all(t[n] == row[n] for n in ("task", "input", "output"))]
        own = [t["fd_effnet"] for t in at]
        assert float(row["mean"]) == pytest.approx(fmean(own)) and row["runs"] == "2"
        assert float(row["replicate_sd"]) == pytest.approx(stdev(own), rel=1e-8)


def test_cells_without_runs_are_told_from_cells_that_cannot_be(tmp_path):
    study = made_up.study({"input": made_up.INPUTS[:3], "output": made_up.OUTPUTS[:2]}, **ONE)
    table = made_up.rows(study)
    lost = [i for i, row in enumerate(table) if row["point"] == table[0]["point"]]
    for i in lost:
        changed(table, slice(i, i + 1), status="missing", fd_effnet=None)
    page = Page(made(tmp_path, study, table).read_text(encoding="utf-8"))
    kinds = [
        a["class"].split()[-1]
        for t, a in page.elements
        if t == "td" and "part" in a.get("class", "")
    ]
    assert kinds.count("none") == 1
    assert kinds.count("illegal") == 6 - len({row["point"] for row in table})


# --- what it is given ---------------------------------------------------------------------


def test_user_text_stays_text(tmp_path):
    factors = {"activation": [HOSTILE, "b", "$\\frac"], "scale": ["x", "<b>", "y"]}
    study = made_up.study(factors, **ONE, title=HOSTILE, question=HOSTILE)
    table = made_up.rows(study)
    made_up.write(tmp_path, table, dropped=[HOSTILE])
    made_up.write_gallery(tmp_path, table, [HOSTILE, "line\nbreak"] * 3)
    gallery = json.loads((tmp_path / "gallery.json").read_text())
    for entry in gallery:
        entry["attribution"] = HOSTILE
    (tmp_path / "gallery.json").write_text(json.dumps(gallery))
    html = build(study, tmp_path).read_text(encoding="utf-8")
    page = Page(html)
    scripts = [attributes.get("type") for tag, attributes in page.elements if tag == "script"]
    assert scripts == ["application/json", None]
    assert "<script>alert" not in html and "<b>" not in html
    assert page.text.count(HOSTILE) >= 6
    assert "<script" not in (tmp_path / "report.md").read_text(encoding="utf-8")
    for path in (tmp_path / "figures").glob("*.svg"):
        ElementTree.parse(path)


def test_figures_and_tables_of_an_earlier_study_go(tmp_path):
    old, new = (made_up.study({"width": [4, 8], "scale": s}, **ONE) for s in ([1, 2], [1]))
    made(tmp_path, old, made_up.rows(old))
    assert (tmp_path / "figures/means-fd_effnet-scale.svg").exists()
    assert (tmp_path / "ranking.csv").exists()
    made(tmp_path, new, made_up.rows(new))
    assert not list((tmp_path / "figures").glob("means-fd_effnet-scale.*"))
    assert not (tmp_path / "ranking.csv").exists()
    assert "scale has one level" in summary_of(tmp_path)


def test_the_studys_questions_come_first_then_the_untouched_base(tmp_path):
    study = made_up.study(
        {"width": [4, 8, 16], "scale": [1, 2, 4]},
        tasks=("night", "sepia"),
        seeds=(0, 1, 2),
        responses=TWO,
        analysis={
            "factors": ["width", "scale"],
            "responses": list(TWO),
            "transform": {"fd_effnet": "log"},
            "margins": {"fd_effnet": "20%"},
            "contrasts": {
                "much against little": {"scale": {"4": 1, "1": -1}},
                "wide against narrow": {"width": {"16": 1, "4": -1}},
                "two cells": {"width:scale": {"4:4": 1, "4:1": -1}},
            },
        },
    )
    html = made(tmp_path, study, made_up.rows(study, noise=0.01))
    Page(html.read_text(encoding="utf-8"))
    text = summary_of(tmp_path)
    said = [
        "much against little: a difference in .* is shown",
        "wide against narrow: a difference in .* is not shown",
        "two cells: a difference in .* is shown",
        "Against the untouched base: an improvement in .* is shown for every point",
        "width: an effect on .* is not shown",
        "width, as a number, if runs spread alike: linear trend F",
        "scale: an effect on .* is shown",
        "scale, as a number, if runs spread alike: linear trend F",
        "width and scale together: the fitted second-degree surface has",
        "Non-inferiority to full fine-tuning",
    ]
    places = [re.search(pattern, text).start() for pattern in said]
    assert places == sorted(places)
    figures = {path.stem for path in (tmp_path / "figures").glob("*.svg")}
    assert {"against-fd_effnet", "by-task-fd_effnet-scale", "trend-fd_effnet-width"} <= figures
    gain = float(rows_of(tmp_path / "assay.csv")[0]["gain"])
    [margin] = {float(row["margin"]) for row in rows_of(tmp_path / "equivalence.csv")}
    assert margin == pytest.approx(0.2 * gain)


def test_arms_can_be_the_factor(tmp_path):
    study = made_up.study({"width": [4, 8]}, responses=("fd_effnet",))
    analysis = study.analysis.model_copy(update={"factors": ["arm"]})
    study = study.model_copy(update={"analysis": analysis})
    made(tmp_path, study, made_up.rows(study))
    assert "arm: an effect on" in summary_of(tmp_path)
    assert [row["arm"] for row in rows_of(tmp_path / "baselines.csv")] == ["none"]


def test_large_images_are_shown_reduced(tmp_path):
    study = made_up.study(SMALL, **ONE)
    table = made_up.rows(study)
    made_up.write(tmp_path, table)
    made_up.write_gallery(tmp_path, table, ["one", "two"], size=512)
    strip = (tmp_path / "gallery/blueprint/best.png").stat().st_size
    assert build(study, tmp_path).stat().st_size < strip


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param(lambda f: (f / "runs.csv").unlink(), ["runs.csv: no such file"], id="no-runs"),
        pytest.param(
            lambda f: (f / "runs.csv").write_text("run,seed\na,0\n"),
            ["no column 'point'", "no column 'input'", "no column 'fd_effnet'"],
            id="columns-missing",
        ),
        pytest.param(
            lambda f: (f / "runs.csv").write_text(
                (f / "runs.csv").read_text().replace(",ok,", ",fine,").replace("42.", "low.")
            ),
            ["status 'fine'; allowed: ok, failed, missing", "column 'fd_effnet': 'low."],
            id="cells-wrong",
        ),
        pytest.param(
            lambda f: (f / "gallery.json").write_text(
                json.dumps(
                    [
                        dict.fromkeys(
                            ("task", "role", "run", "point", "attribution"), "x"
                        ) | {"file": "../../secret.png", "size": 32, "captions": []},
                        {"task": "x"},
                    ]
                )
            ),
            ["leads out of the report's folder", "gallery.json[1]"],
            id="gallery-wrong",
        ),
        pytest.param(
            lambda f: (f / "design.json").write_text("[1"), ["design.json"], id="design-wrong"
        ),
    ],
)  # fmt: skip
def test_bad_inputs_are_all_named(tmp_path, change, named):
    study = made_up.study(SMALL, **ONE)
    made_up.write(tmp_path, made_up.rows(study))
    change(tmp_path)
    with pytest.raises(UserError) as error:
        build(study, tmp_path)
    for message in named:
        assert any(message in problem for problem in error.value.problems), error.value.problems


# --- numbers and imports ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "value", "shown"),
    [
        pytest.param(words.number, 0.012345, "0.0123", id="significant"),
        pytest.param(words.number, 1234567.0, "1,234,567", id="thousands"),
        pytest.param(words.number, 9.996, "10.0", id="carry"),
        pytest.param(words.number, -0.5, "−0.500", id="minus"),
        pytest.param(words.number, 3.2e-7, "3.20 × 10⁻⁷", id="small"),
        pytest.param(words.number, 0.0, "0", id="zero"),
        pytest.param(words.number, float("nan"), "–", id="nothing"),
        pytest.param(words.number, float("inf"), "∞", id="infinite"),
        pytest.param(words.p_value, 0.0004, "<0.001", id="p-small"),
        pytest.param(words.p_value, 0.04951, "0.050", id="p"),
        pytest.param(words.count, 4312328.0, "4,312,328", id="count"),
    ],
)
def test_numbers_are_written_alike(write, value, shown):
    assert write(value) == shown


def test_every_metric_has_its_words_and_its_direction():
    assert all(row.label and row.definition.endswith(".") for row in METRICS.values())
    lower = {name for name in METRICS if words.metric(name).lower}
    kinds = ("fid", "fd", "kid", "prior", "drift", "cmmd", "perceptual", "dreamsim", "copies")
    assert lower == {name for name in METRICS if name.startswith(kinds)}
    depending = {name for name, row in METRICS.items() if row.depends_on_n}
    kinds = ("fid", "fd", "precision", "recall", "cmmd", "coverage", "vendi", "r_precision")
    assert depending == {name for name in METRICS if name.startswith(kinds)}


def test_a_report_needs_no_torch():
    code = (
        "import sys, fitspace.report; early = {'pandas', 'matplotlib', 'torch'} & set(sys.modules);"
        "import fitspace.report.page; assert not early, early; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# A style, a word that is taught, a tuning; the others are repeats.
KINDS = ("emoji", "emoji-positions-dreambooth", "emoji-budget-tuning")


@pytest.fixture(
    scope="module",
    params=[n if n in KINDS else pytest.param(n, marks=pytest.mark.slow) for n in REPORTS],
)
def remade(request, tmp_path_factory) -> tuple[Path, Path, object]:
    """A committed report's folder, a copy made again from its table, and the study."""
    copy = copy_inputs(request.param, tmp_path_factory.mktemp("remade") / request.param)
    study = load_study(ROOT / "params" / f"{request.param}.yaml")
    build(study, copy)
    return ROOT / "reports" / request.param, copy, study


def test_the_committed_report_is_what_its_table_gives(remade):
    committed, copy, _ = remade
    files = sorted(p.relative_to(committed) for p in committed.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(copy) for p in copy.rglob("*") if p.is_file())
    assert [f for f in files if (committed / f).read_bytes() != (copy / f).read_bytes()] == []


def test_every_number_of_a_committed_report_has_its_origin(remade):
    _, copy, study = remade
    page = Page((copy / "report.html").read_text(encoding="utf-8"))
    check_numbers(copy, study, page)
    check_no_bare_number(copy, study, page)


@pytest.mark.parametrize("name", REPORTS)
def test_the_committed_design_is_what_its_study_plans(tmp_path, name):
    """A key added to the schema is in it, and an audit finds one that is not."""
    write_design(build_plan(load_study(ROOT / f"params/{name}.yaml")), tmp_path / "design.json")
    committed = ROOT / f"reports/{name}/design.json"
    assert (tmp_path / "design.json").read_bytes() == committed.read_bytes()


def test_the_untouched_base_is_a_baseline_where_arms_are_compared():
    folder = ROOT / "reports/emoji-mmdit"
    assert {row["arm"] for row in rows_of(folder / "baselines.csv")} == {"none"}
    levels = {row["level"] for row in rows_of(folder / "effects.csv")}
    assert "full" in levels and "none" not in levels
    assert ("none", "4") in [(r["arm"], r["ok"]) for r in rows_of(folder / "ledger.csv")]


@pytest.mark.parametrize("high", [1.0, 0.0], ids=["constant within its cells", "constant"])
def test_a_response_without_variation_is_reported_as_such(tmp_path, high):
    """Precision is 0 or 1 for all samples of many a small run."""
    made = made_up.study(
        {"output": ["CA_in", "FFN_in"]}, responses=("precision", "clip_t"), transform={}
    )
    table = made_up.rows(made)
    for row in table:
        row["precision"] = high if row["output"] == "FFN_in" else 0.0
    made_up.write(tmp_path, table)
    build(made, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["runs"]["ok"] == len(table)
    if high:
        text = (tmp_path / "report.md").read_text()
        assert "no variation between the seeds of a cell" in text
