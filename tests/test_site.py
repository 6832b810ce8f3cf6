"""The site of the documentation: it builds strictly, opens from disk, and has all keys."""

from __future__ import annotations

import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from fitspace.cli import parser
from fitspace.metrics import METRICS
from fitspace.study.schema import schema

ROOT = Path(__file__).parents[1]
pytest.importorskip("mkdocs", reason="mkdocs is not installed")


class Links(HTMLParser):
    """A page's addresses: what it loads, what it links to, and the ids that it has."""

    def __init__(self, path: Path):
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        if address := given.get("src"):
            self.loaded.append(address)
        if (address := given.get("href")) and given.get("rel") != "canonical":
            (self.linked if tag == "a" else self.loaded).append(address)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site; strict: a warning is an error."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder))
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Links]:
    """The pages that mkdocs made, without the reports, which have tests of their own."""
    made = (path for path in site.rglob("*.html") if "reports" not in path.relative_to(site).parts)
    return {path: Links(path) for path in made if path.name != "404.html"}


def test_pages_load_nothing_from_a_network(pages):
    loaded = [address for page in pages.values() for address in page.loaded]
    assert len(loaded) > 100
    assert [a for a in loaded if not a.startswith("data:") and urlsplit(a).netloc] == []


def test_every_link_leads_to_a_page_and_a_heading(site, pages):
    wrong, followed = [], 0
    for path, page in pages.items():
        for address in [*page.loaded, *page.linked]:
            parts = urlsplit(address)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            followed += 1
            known = not parts.fragment or target not in pages
            if not target.is_file() or not (known or unquote(parts.fragment) in pages[target].ids):
                wrong.append(f"{path.relative_to(site)}: {address}")
    assert followed > 1000 and wrong == []


def test_search_is_a_script_so_that_it_works_from_disk(site):
    index = (site / "search/search_index.js").read_text(encoding="utf-8")
    assert index.startswith("var __index = ") and "docs/tutorial.html" in index
    assert "iframe-worker.js" in (site / "docs/tutorial.html").read_text(encoding="utf-8")


def test_the_reference_has_every_key_every_metric_and_every_command(site):
    def coded(name: str) -> set[str]:
        text = (site / f"docs/reference/{name}.html").read_text(encoding="utf-8")
        return set(re.findall(r"<td><code>([^<]+)</code></td>", text))

    models = [schema(), *schema()["$defs"].values()]
    keys = {key for model in models for key in model.get("properties", {})}
    assert {"base", "tasks", "lr", "dreambooth"} < keys <= coded("study")
    assert coded("metrics") == set(METRICS)
    commands = Links(site / "docs/reference/commands.html").ids
    assert set(parser()[1].names) <= commands


# --- containers ---------------------------------------------------------------------------


def packages(text: str) -> set[str]:
    """What a script installs from Debian."""
    (line,) = re.findall(r"apt-get install -y --no-install-recommends ([^\n\\]+)", text)
    return set(line.split())


def test_both_containers_are_one_environment_from_the_pins():
    docker = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    apptainer = (ROOT / "apptainer.def").read_text(encoding="utf-8")
    assert packages(docker) == packages(apptainer)
    assert re.findall("^FROM (.*)", docker, re.M) == re.findall("^From: (.*)", apptainer, re.M)
    # What is copied suffices for make .venv/ready, which installs by constraints.txt.
    copied = {"Makefile", "pyproject.toml", "constraints.txt", "README.md", "LICENSE", "src"}
    lines = re.findall(r"^COPY (.*) \S+$", docker, re.M)
    assert {name for line in lines for name in line.split()} == copied
    assert set(re.findall(r"^    (\S+) /fitspace/", apptainer, re.M)) == copied
    ours = "make BIN=/opt/fitspace/bin .venv/ready"
    install = f"python3.11 -m venv /opt/fitspace && ln -s /opt/fitspace .venv && {ours}"
    assert install in docker and install in apptainer
    # Programs name the Python that installed them, and a mounted clone hides /fitspace/.venv.
    said = subprocess.run(
        [*ours.split(), "--dry-run", "--always-make"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout.count("/opt/fitspace/bin/python -m pip install") == 2
    assert " .venv/bin/python -m pip" not in said.stdout
    assert "pip install" not in docker + apptainer
    assert "-c constraints.txt" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_containers_have_the_projects_python_and_packages():
    ours = packages((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (version,) = re.findall(r'requires-python = ">=(\d+\.\d+),', project)
    assert {f"python{version}", f"python{version}-venv"} <= ours
    # .ci/run installs what tests need beside: a browser and SLURM's daemons.
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    needed = {name for line in re.findall(r"missing\+=\((.*?)\)", ci) for name in line.split()}
    assert len(needed) > 6
    assert {n for n in needed if not re.match("chromium|slurm|munge", n)} <= ours
