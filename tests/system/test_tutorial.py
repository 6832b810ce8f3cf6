"""The tutorial, followed in a fresh clone: its commands, in its order, with a few steps."""

from __future__ import annotations

import re
import shlex

import project
import pytest

PAGE = (project.ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
TEXT = re.sub(r"```.*?```", "", PAGE, flags=re.S)
COMMANDS = [line.strip() for line in re.findall(r"^    \w+ .*(?=\n(?:\n|    \w))", TEXT, re.M)]
# What makes the environment that the test runs in.
INSTALLS = ("make .venv/ready", "source .venv/bin/activate")


def test_the_tutorials_commands_are_found():
    assert [command.split()[0] for command in COMMANDS] == [
        *("make", "source", "fitspace", "python"),
        *("fitspace", "fitspace", "fitspace", "snakemake", "fitspace"),
    ]
    assert set(INSTALLS) < set(COMMANDS)


@pytest.mark.slow
def test_the_tutorial_leads_to_a_report(origin, tmp_path):
    clone = origin.clone(tmp_path / "clone")
    (script,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    (clone / "draw.py").write_text(script)
    for command in (command for command in COMMANDS if command not in INSTALLS):
        if command.startswith("snakemake"):
            study = clone / "params/mine.yaml"
            text = study.read_text()
            fewer = re.sub(r"(?m)^(  steps): \d+$", r"\1: 4", text)
            assert text.count("steps: ") == fewer.count("steps: 4") == 2
            study.write_text(fewer)
        done = clone.run(*shlex.split(command))
    assert "reports/mine/report.html" in command and done.returncode == 0
    page = (clone / "reports/mine/report.html").read_text(encoding="utf-8")
    assert 'id="answer"' in page and "planned runs finished" in page
