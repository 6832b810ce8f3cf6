"""The page of all studies: what it says is what their reports say."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitspace.cli import main
from fitspace.core.errors import UserError
from fitspace.report import index
from fitspace.report.page import escape_markdown, quoted_answer
from fitspace.report.words import number
from fitspace.study import TUNING

REPORTS = Path(__file__).parents[2] / "reports"


@pytest.fixture
def reports(tmp_path):
    """The committed reports' inputs of this page."""
    for path in REPORTS.glob("*/summary.json"):
        folder = tmp_path / "reports" / path.parent.name
        folder.mkdir(parents=True)
        for name in ("summary.json", "design.json", "gallery.json", "report.md"):
            shutil.copy(path.parent / name, folder / name)
        shutil.copytree(path.parent / "gallery", folder / "gallery")
    return tmp_path / "reports"


def test_the_committed_page_is_the_one_made_now(reports):
    """But for the compression of its pictures, which zlib chooses by the processor."""
    pages = [index.write(reports), REPORTS / "index.html"]
    texts = [re.sub(r"base64,[^\"]*", "", page.read_text(encoding="utf-8")) for page in pages]
    assert texts[0] == texts[1]
    strips = {
        (strip.parents[2], strip.name)
        for role in index.SHOWN
        for strip in reports.glob(f"*/gallery/*/{role}.png")
        if not strip.parents[2].name.endswith(TUNING)
    }
    assert texts[0].count("data:image/png;") == len(strips)


def test_every_study_is_linked_with_its_answer_its_best_and_its_baselines(reports):
    text = html.unescape(index.write(reports).read_text(encoding="utf-8"))
    folders = [p for p in reports.iterdir() if p.is_dir()]
    for folder in folders:
        study = json.loads((folder / "design.json").read_text())["study"]
        answer = (folder / "report.md").read_text().split("## Answer\n\n")[1].splitlines()[0]
        assert f'href="{folder.name}/report.html"' in text
        assert answer.replace("\\", "").replace("&lt;", "<") in text
        if folder.name.endswith(TUNING):  # stands with its study
            assert f">{study['question']}</a>" in text and f">{study['title']}</a>" not in text
            continue
        assert f'href="{folder.name}/report.html">{study["title"]}</a>' in text
        assert f'href="#h-{folder.name}">{study["title"]}</a>' in text
        summary = json.loads((folder / "summary.json").read_text())
        numbers = summary[study["analysis"]["responses"][0]]
        rows = ("best cell", "full fine-tuning", "untouched base")
        for key in (key for key in rows if key in numbers):  # not every study has full fine-tuning
            assert f'<td class="n">{number(numbers[key]["mean"], 4)}</td>' in text
    studies = [folder for folder in folders if not folder.name.endswith(TUNING)]
    assert text.count('alt="Target: first samples') == len(studies)
    assert f"{len(studies)} studies; {len(folders) - len(studies)} had" in text


def test_a_tuning_without_its_study_stands_for_itself(reports):
    shutil.rmtree(reports / "emoji-methods")
    text = index.write(reports).read_text(encoding="utf-8")
    assert 'id="h-emoji-methods-tuning"' in text and 'id="h-emoji-budget-tuning"' not in text


@given(st.text(min_size=1))
def test_an_answer_is_quoted_as_it_was_written(text):
    line = " ".join(text.split())
    written = f"# T\n\nQ\n\n## Answer\n\n{escape_markdown(text)}\n\n![F](f.svg)\n\n## Summary\n"
    assert "".join(quoted_answer(written)) == line


def test_nothing_of_a_users_text_is_read_as_html_and_nothing_is_requested(reports):
    script = "<script>alert(1)</script>"
    for path in reports.glob("*/design.json"):
        design = json.loads(path.read_text())
        design["study"] |= {"title": script, "question": script}
        path.write_text(json.dumps(design))
        said = escape_markdown(script)
        path.with_name("report.md").write_text(f"\n## Answer\n\n{said}\n")
    text = index.write(reports).read_text(encoding="utf-8")
    assert "<script>" not in text and "&lt;script&gt;" in text
    assert not re.search(r'(src|href)="(?!data:|#|[\w-]+/report\.html)', text)


BROKEN = {
    "no numbers of the first response": (
        "summary.json", lambda c: {"runs": c["runs"]}, "no numbers of",
    ),
    "a mean that is none": (
        "summary.json",
        lambda c: {k: {"best cell": {"mean": "high"}} if k != "runs" else v for k, v in c.items()},
        "mean",
    ),
    "a report without an answer": (
        "report.md", lambda text: text.replace("Answer", ""), "no answer",
    ),
    "a design without its study": ("design.json", lambda c: {"points": []}, "study"),
}  # fmt: skip


@pytest.mark.parametrize("name, change, said", BROKEN.values(), ids=BROKEN)
def test_a_file_that_is_none_is_named(reports, name, change, said):
    path = reports / "emoji" / name
    text = path.read_text()
    path.write_text(change(text) if name.endswith(".md") else json.dumps(change(json.loads(text))))
    with pytest.raises(UserError, match=said) as refused:
        index.write(reports)
    assert str(path) in str(refused.value)
    assert not (reports / "index.html").exists()


def test_without_a_report_it_says_what_makes_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["index"]) == 2
    assert "fitspace report makes one" in capsys.readouterr().err
