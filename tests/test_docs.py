"""The pages: links lead somewhere, commands exist, the first page is short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fitspace.cli import parser
from fitspace.plan import expand, load_study

ROOT = Path(__file__).parents[1]
NAMES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "params/README.md", "config/README.md")
PAGES = [*(ROOT / name for name in NAMES), *sorted((ROOT / "docs").glob("*.md"))]
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())


def anchors(page: Path) -> set[str]:
    """The anchors that a forge gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


@by_page
def test_every_link_leads_to_a_file_and_a_heading(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        assert place.exists(), target
        if anchor and place.suffix == ".md":
            assert anchor in anchors(place), target


@by_page
def test_every_command_exists(page):
    known = {*parser()[1].names, "nosuch"}  # an example of what is none
    said = re.findall(r"(?:^    |`)fitspace ([a-z][a-z-]*)", page.read_text(encoding="utf-8"), re.M)
    assert set(said) <= known, set(said) - known


def test_the_first_page_is_short_and_every_page_is_linked():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    linked = {name for page in PAGES for name in re.findall(r"([\w-]+\.md)", page.read_text())}
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= linked


# Rows of params/README.md's table of studies that need a GPU: the file, and how many runs it has.
COSTED = re.findall(
    r"^\| `(\S+)\.yaml` \|.*\| ([\d,]+) \| \d+ \| [\d.]+ GB \|$",
    (ROOT / "params/README.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)


@pytest.mark.parametrize(("name", "runs"), COSTED)
def test_the_studies_for_a_gpu_have_the_runs_that_the_table_says(name, runs, monkeypatch):
    monkeypatch.chdir(ROOT)
    study = load_study(f"params/{name}.yaml")
    points, _ = expand(study)
    assert len(points) * len(study.tasks) * len(study.seeds) == int(runs.replace(",", ""))


def test_the_table_has_every_study_for_a_gpu():
    every = {path.stem for path in (ROOT / "params").glob("*.yaml")}
    assert {name for name, _ in COSTED} == {n for n in every if not n.startswith("emoji")}
