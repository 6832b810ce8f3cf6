"""Tables, figures and the methods paragraph for a paper: they compile, and say what pages say."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import report_study as made_up
import typst
import yaml

from fitspace import methods
from fitspace.metrics import METRICS
from fitspace.report import build, paragraph, publishing
from fitspace.report.tables import Column, Table
from fitspace.report.tex import escaped
from fitspace.report.words import Value
from fitspace.study import Study

POSITIONS = yaml.safe_load((Path(__file__).parents[1] / "data/positions.yaml").read_text())


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a made-up study, with names that want escaping."""
    folder = tmp_path_factory.mktemp("reports") / "made-up"
    own = made_up.study(factors={"width": [4, 8], "act_fn": ["a_b", "50% #1 {x}"]})
    made_up.write(folder, made_up.rows(own))
    build(own, folder)
    return own, folder


@pytest.fixture(scope="module")
def exported(report, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported")
    study, folder = report
    return {
        form: (out / form, publishing.export(study, folder, out / form, form))
        for form in publishing.FORMS
    }


def test_every_form_has_all_tables_of_the_page_and_all_figures(report, exported):
    _, folder = report
    names = {form: {path.stem for path in files if path.parent.name == "tables"}
             for form, (_, files) in exported.items()}  # fmt: skip
    assert names["latex"] == names["typst"] == names["csv"]
    assert {"anova-fd_effnet", "cells-clip_t", "points", "means-fd_effnet-width"} <= names["csv"]
    figures = {path.stem for path in exported["latex"][1] if path.suffix == ".pdf"}
    assert figures == {path.stem for path in (folder / "figures").glob("*.svg")}
    for path in exported["latex"][1]:
        assert path.stat().st_size > 0


def test_csv_has_the_numbers_of_the_reports_own_table(report, exported):
    _, folder = report
    ours = pd.read_csv(exported["csv"][0] / "tables/anova-fd_effnet.csv")
    theirs = pd.read_csv(folder / "anova.csv").query("response == 'fd_effnet'")
    assert ours["F"].tolist() == pytest.approx(theirs["F"].tolist(), nan_ok=True)
    low = ours["partial ω², low"].dropna().tolist()
    assert low == pytest.approx(theirs["omega2_p_low"].dropna().tolist())


def test_typst_compiles_all_of_it(exported):
    folder, files = exported["typst"]
    tables = sorted(path.name for path in files if path.parent.name == "tables")
    lines = [f'#include "tables/{name}"' for name in tables]
    lines += ['#include "methods.typ"', '#bibliography("references.bib")']
    (folder / "main.typ").write_text("\n".join(lines), encoding="utf-8")
    assert typst.compile(str(folder / "main.typ")).startswith(b"%PDF")


def test_latex_is_well_formed_row_by_row(exported):
    folder, files = exported["latex"]
    for path in (p for p in files if p.parent.name == "tables"):
        text = path.read_text(encoding="utf-8")
        assert text.startswith("% Verify: fitspace audit ")
        spec = re.search(r"\\begin\{tabular\}\{(.*)\}\n", text)[1]
        columns = len(re.findall(r"S\[[^]]*\]|l", spec))
        body = text[text.index("\\toprule") : text.index("\\bottomrule")]
        rows = [line for line in body.splitlines() if line.endswith("\\\\")]
        assert len(rows) > 1
        for row in rows:
            assert len(re.findall(r"(?<!\\)&", row)) == columns - 1, row
        plain = re.sub(r"\\[{}\\]", "", text)
        assert plain.count("{") == plain.count("}")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex")
def test_latex_compiles_all_of_it(exported, tmp_path):
    folder, files = exported["latex"]
    tables = [path for path in files if path.parent.name == "tables"]
    lines = [r"\documentclass{article}", r"\usepackage[utf8]{inputenc}", r"\usepackage{natbib}",
             r"\usepackage{booktabs,siunitx,graphicx}", r"\begin{document}"]  # fmt: skip
    lines += [rf"\input{{{path}}}\clearpage" for path in tables]
    lines += [rf"\input{{{folder / 'methods.tex'}}}", r"\end{document}"]
    (tmp_path / "main.tex").write_text("\n".join(lines), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]


CELLS = {
    "a number": (Value("0.907", "0.9069", "t.csv", 1, "x"), "0.907"),
    "thousands": (Value("1,234", "1234.1", "t.csv", 1, "x"), "1234"),
    "a sign": (Value("−0.5", "-0.5", "t.csv", 1, "x"), "-0.5"),
    "a power": (Value("2.94 × 10⁻⁹", "2.9412e-09", "t.csv", 1, "x"), "2.94e-09"),
    "a bound": (Value("<0.001", "1e-5", "t.csv", 1, "x"), "{$<$0.001}"),
    "nothing": (Value("–", "", "t.csv", 1, "x"), "{--}"),
}


@pytest.mark.parametrize("value, written", CELLS.values(), ids=CELLS)
def test_numbers_are_written_as_siunitx_reads_them(value, written):
    other = Value("1.5", "1.5", "t.csv", 2, "x")
    table = Table("t.csv", "A caption.", [Column("x", "x")], [[[value]], [[other]]])
    rows = publishing.latex(table, "command").splitlines()
    assert f"    {written} \\\\" in rows


def test_special_characters_of_users_are_text():
    said = r"50% of a_b & {c} #1 ~x^2 \input{y} $z$"
    assert escaped(said) == (
        r"50\% of a\_b \& \{c\} \#1 \textasciitilde{}x\textasciicircum{}2 "
        r"\textbackslash{}input\{y\} \$z\$"
    )


def test_the_paragraph_cites_works_that_are_in_the_bibliography(exported):
    for form, mark in (("latex", r"\\citep\{([^}]*)\}"), ("typst", r"@(\w+)"), ("csv", r"@(\w+)")):
        folder, _ = exported[form]
        text = (folder / f"methods.{paragraph.FORMS[form]}").read_text(encoding="utf-8")
        cited = {key for found in re.findall(mark, text) for key in found.split(",")}
        bib = (folder / "references.bib").read_text(encoding="utf-8")
        assert cited == set(re.findall(r"^@\w+\{([^,]+),", bib, re.M)) and len(cited) > 5
        assert "2 seeds each" in text and "18 runs" not in text


def test_every_method_and_metric_has_its_works():
    assert set(paragraph.METHODS) == set(methods.METHODS)
    every = [key for keys in paragraph.METHODS.values() for key in keys]
    every += [key for name in METRICS for key in paragraph.of_metric(name)]
    every += [key for _, key in paragraph.CONTROLS.values()]
    assert paragraph.bibliography(every).count("@") >= len(set(every))


def rate(arms: list[dict], tuned: dict | None = None) -> str:
    """What the paragraph says of the learning rate of a study with these arms."""
    analysis = {"factors": ["arm"], "responses": ["clip_t"]}
    content = POSITIONS | {"arms": arms, "analysis": analysis}
    if tuned:
        task = {"name": "other", "source": "openmoji", "style": "line"}
        content["tuning"] = {"tasks": [task], "factors": tuned, "seeds": [0], "response": "clip_t"}
    return paragraph._rate(SimpleNamespace(study=Study.model_validate(content)))


def test_the_paragraph_names_the_learning_rates_there_were():
    own = f"{POSITIONS['train']['lr']:g}"
    full, lora = {"method": "full"}, {"method": "lora"}
    assert rate([full, lora | {"train": {"lr": 0.5}}]) == f" of {own} (0.5 for lora)"
    tried = {"factors": {"train.lr": [0.1, 0.2, 0.5]}}
    assert rate([full | tried, lora | tried, {"method": "none"}]) == " of 0.1, 0.2 or 0.5"
    assert rate([full, lora | tried]) == f" of {own} (0.1, 0.2 or 0.5 for lora)"
    said = " chosen for each point among {} by CLIP-T on another task (other)"
    assert rate([full], {"train.lr": [0.1, 0.2]}) == "," + said.format("train.lr 0.1 or 0.2")
    decays = said.format("train.weight_decay 0.0 or 0.1")
    assert rate([full], {"train.weight_decay": [0.0, 0.1]}) == f" of {own} and at settings{decays}"


def test_equal_reports_give_equal_bytes(report, exported, tmp_path):
    study, folder = report
    publishing.export(study, folder, tmp_path / "again", "latex")
    out, files = exported["latex"]
    for path in files:
        assert (tmp_path / "again" / path.relative_to(out)).read_bytes() == path.read_bytes(), path


def test_csv_keeps_a_comma_in_its_cell():
    table = Table("t.csv", "c", [Column("x", "x, y", "text")], [[["a, b"]]])
    (header, row) = csv.reader(publishing.as_csv(table, "").splitlines())
    assert (header, row) == (["x, y"], ["a, b"])
