"""The command line as a whole: names that are none, and completion in a shell."""

from __future__ import annotations

import subprocess

import pytest

from fitspace.cli import main, parser

NEAR = {"chek": "check", "evalute": "evaluate", "Plan": "plan"}


@pytest.mark.parametrize(("typed", "meant"), NEAR.items())
def test_a_command_that_is_none_is_told_the_near_one(capsys, typed, meant):
    assert main([typed, "study.yaml"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fitspace: {typed}: no command (did you mean '{meant}'?); allowed: ")


def test_a_command_near_none_is_told_all(capsys):
    assert main(["xyzzy"]) == 2
    _, commands = parser()
    said = capsys.readouterr().err
    assert said == f"fitspace: xyzzy: no command; allowed: {', '.join(commands.names)}\n"


def test_bash_completes_commands_and_options(capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    asked = 'COMP_WORDS=(fitspace {}); COMP_CWORD={}; {}; echo "${{COMPREPLY[@]}}"'
    function = next(
        word for line in script.splitlines() if line.startswith("complete ")
        for word in line.split() if word.startswith("_shtab")
    )  # fmt: skip

    def completed(*words: str) -> list[str]:
        code = script + asked.format(" ".join(words), len(words), function)
        return subprocess.run(
            ["bash", "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()

    assert completed("pre") == ["prepare"]
    assert "--subset" in completed("plan", "--su")
