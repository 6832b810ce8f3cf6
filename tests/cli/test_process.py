"""A command as a process: its exit code and one line, whatever the machine does to it."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fitspace import cli
from fitspace.cli import studies
from fitspace.core import git
from fitspace.core.errors import UserError
from fitspace.core.files import renewing
from fitspace.stages import sidecars
from fitspace.study.reading import of_config

CONFIGS = {
    "another case": ({"Study": "params/a.yaml"}, ["--config Study: unknown key"]),
    "a number": ({"study": 5}, ["--config study=5: no study file"]),
    "nothing": ({"study": None}, ["--config study=: no study file"]),
    "an empty text": ({"study": " "}, ["--config study= : no study file"]),
    "both": ({"studdy": 1, "study": []}, ["--config studdy: unknown", "--config study=[]: no"]),
}


@pytest.mark.parametrize("config, problems", CONFIGS.values(), ids=CONFIGS)
def test_a_configuration_that_names_no_study_is_refused(config, problems):
    with pytest.raises(UserError) as caught:
        of_config(config, default="params/emoji.yaml")
    assert len(caught.value.problems) == len(problems)
    for found, problem in zip(caught.value.problems, problems, strict=True):
        assert found.startswith(problem) and "allowed: --config study=params/NAME.yaml" in found


def test_a_configuration_that_names_a_study_is_taken():
    assert of_config({}, "a.yaml") == "a.yaml"
    assert of_config({"study": "params/o'brien.yaml"}, "a.yaml") == "params/o'brien.yaml"


# --- crashes -----------------------------------------------------------------------------


def run(monkeypatch, error: BaseException, tmp_path: Path) -> int:
    def broken(arguments):
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(studies, "_check", broken)
    return cli.main(["check", "study.yaml"])


CRASHES = {
    "a broken library": ImportError("numpy.core.multiarray failed to import"),
    "no passwd entry": KeyError("getpwuid(): uid not found: 12345"),
    "an error of Python's": RecursionError("maximum recursion depth exceeded"),
    "a network": OSError(errno.ECONNRESET, "Connection reset by peer"),
}


@pytest.mark.parametrize("error", CRASHES.values(), ids=CRASHES)
def test_a_crash_is_one_line_a_file_and_a_code_of_its_own(monkeypatch, tmp_path, capsys, error):
    assert run(monkeypatch, error, tmp_path) == 70
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fitspace: internal error: {type(error).__name__}: ")
    log = tmp_path / line.rpartition(": ")[2]
    story = log.read_text()
    assert "check study.yaml" in story and "Traceback" in story and "broken" in story
    assert log.parent == tmp_path / "results/logs/crashes"


def test_a_crash_where_nothing_can_be_written_is_told_on_the_terminal(
    monkeypatch, tmp_path, capsys
):
    (tmp_path / "results").write_text("a file, no folder")
    monkeypatch.setattr(cli, "_has_temporary", lambda: False)
    monkeypatch.setattr("builtins.open", lambda *_, **__: exec("raise OSError(28, 'full')"))
    assert run(monkeypatch, ValueError("x"), tmp_path) == 70
    said = capsys.readouterr().err
    assert said.startswith("fitspace: internal error: ValueError: x\n") and "Traceback" in said


def test_a_full_temporary_folder_is_bad_input_not_a_crash(monkeypatch, tmp_path, capsys):
    error = OSError(errno.ENOSPC, "No space left on device", "/tmp/x")
    assert run(monkeypatch, error, tmp_path) == 2
    assert "/tmp/x: cannot be written: No space left" in capsys.readouterr().err


def test_a_file_that_cannot_be_read_is_not_said_to_be_unwritable(monkeypatch, tmp_path, capsys):
    (tmp_path / "secret").write_text("x")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)
    error = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "secret"))
    assert run(monkeypatch, error, tmp_path) == 2
    assert "secret: cannot be read: Permission denied" in capsys.readouterr().err


def test_a_terminal_of_another_encoding_is_printed_to(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    out = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(studies, "_check", lambda arguments: print("Fréchet ≤ 3 → ok"))
    assert cli.main(["check", "study.yaml"]) == 0
    out.flush()
    assert out.buffer.getvalue().decode("latin-1") == "Fréchet \\u2264 3 \\u2192 ok\n"


def test_a_user_without_a_name_is_known_by_number(monkeypatch):
    import getpass

    from fitspace.tracking import importing

    def nobody():
        raise OSError("No username set in the environment")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert importing.user() == f"uid{os.getuid()}"


# --- a folder renewed as a whole -----------------------------------------------------------


@pytest.fixture
def report(tmp_path):
    folder = tmp_path / "reports/two"
    folder.mkdir(parents=True)
    (folder / "a.csv").write_text("old")
    (folder / "uncommitted.json").write_text("{}")
    return folder


def state(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in folder.iterdir()}


@pytest.mark.parametrize("atomic", [True, False], ids=["exchanged", "renamed"])
def test_a_new_report_takes_the_place_of_the_old_one_as_a_whole(report, monkeypatch, atomic):
    import ctypes

    if not atomic:
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    with renewing(report) as new:
        (new / "a.csv").write_text("new")
        (new / "b.csv").write_text("new")
        assert state(report) == {"a.csv": "old", "uncommitted.json": "{}"}
    assert state(report) == {"a.csv": "new", "b.csv": "new", "uncommitted.json": "{}"}
    assert [p.name for p in report.parent.iterdir()] == ["two"]


ENDS = {
    "bad input": (UserError("{}/a.csv: wrong"), "two/a.csv: wrong"),
    "a full disk": (OSError(errno.ENOSPC, "No space left"), "No space left"),
    "a key": (KeyboardInterrupt(), ""),
}


@pytest.mark.parametrize("error, said", ENDS.values(), ids=ENDS)
def test_an_error_leaves_the_old_report_as_it_was(report, error, said):
    with pytest.raises(type(error)) as caught, renewing(report) as new:
        (new / "a.csv").write_text("half")
        if isinstance(error, UserError):
            raise UserError(p.format(new) for p in error.problems)
        raise error
    assert said in str(caught.value) and ".new-" not in str(caught.value)
    assert state(report) == {"a.csv": "old", "uncommitted.json": "{}"}
    assert [p.name for p in report.parent.iterdir()] == ["two"]


def test_what_a_killed_process_left_is_cleared_and_a_living_ones_stays(report):
    import socket

    start = report.with_name(f".two.new-{socket.gethostname()}-")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left, living = Path(f"{start}{dead.pid}"), Path(f"{start}{os.getppid()}")
    left.mkdir(), living.mkdir()
    with renewing(report):
        pass
    assert not left.exists() and living.exists()


def test_the_first_report_of_a_study_is_made_from_nothing(tmp_path):
    with renewing(tmp_path / "reports/new") as new:
        (new / "a.csv").write_text("new")
    assert state(tmp_path / "reports/new") == {"a.csv": "new"}


# --- git ----------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A package in a project in a sub-folder of a repository, committed."""
    package = tmp_path / "repo/project/src/fitspace"
    package.mkdir(parents=True)
    (package / "a.py").write_text("a = 1\n")
    monkeypatch.setattr(sidecars, "PACKAGE", str(package))
    sidecars.checkout.cache_clear()
    for variable in ("AUTHOR_NAME", "AUTHOR_EMAIL", "COMMITTER_NAME", "COMMITTER_EMAIL"):
        monkeypatch.setenv(f"GIT_{variable}", "tester@example.org")
    top = tmp_path / "repo"
    git.run("init", "--quiet", folder=top)
    commit(top)
    yield top
    sidecars.checkout.cache_clear()


def commit(top: Path) -> str:
    git.run("add", "--all", folder=top)
    git.run("commit", "--quiet", "--allow-empty", "--message", "x", folder=top)
    sidecars.checkout.cache_clear()
    return git.run("rev-parse", "HEAD", folder=top).decode().strip()


def test_the_commit_is_that_of_the_package_wherever_git_dir_points(
    repository, tmp_path, monkeypatch
):
    other = tmp_path / "other"
    other.mkdir()
    git.run("init", "--quiet", folder=other)
    commit(other)
    mine = commit(repository)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    assert sidecars.checkout()[0] == {"commit": mine, "dirty": False}


def test_new_files_are_a_change_whatever_the_user_has_git_show(repository):
    git.run("config", "status.showUntrackedFiles", "no", folder=repository)
    (repository / "project/src/fitspace/b.py").write_text("b = 1\n")
    sidecars.checkout.cache_clear()
    assert sidecars.checkout()[0]["dirty"]


def test_reports_make_no_code_dirty_in_a_sub_folder_either(repository):
    (repository / "project/reports/two").mkdir(parents=True)
    (repository / "project/reports/two/a.csv").write_text("x")
    (repository / "project/dvc.lock").write_text("x")
    sidecars.checkout.cache_clear()
    assert not sidecars.checkout()[0]["dirty"]
    (repository / "other.txt").write_text("x")
    sidecars.checkout.cache_clear()
    assert sidecars.checkout()[0]["dirty"]


REFUSALS = {
    "dubious ownership": (
        "fatal: detected dubious ownership in repository at '/x'\n"
        "To add an exception for this directory, call:\n"
        "\tgit config --global --add safe.directory /x"
    ),
    "no repository": "fatal: not a git repository (or any of the parent directories): .git",
}


@pytest.mark.parametrize("words", REFUSALS.values(), ids=REFUSALS)
def test_a_git_that_refuses_is_said_once_in_its_own_words(repository, monkeypatch, capsys, words):
    def refused(*arguments, folder=None):
        raise git.GitError(words)

    monkeypatch.setattr(git, "run", refused)
    sidecars.snapshot()
    said = capsys.readouterr().err
    assert said.count("no commit will stand beside these results") == 1 and words in said
    assert sidecars.checkout()[0] is None


def test_a_machine_without_git_says_so(repository, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    sidecars.snapshot()
    assert "cannot be run (No such file" in capsys.readouterr().err


# --- make ---------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]
FAKE_PYTHON = """#!/bin/sh
# A Python that makes an environment whose pip notes when it begins and ends.
folder=$4
mkdir -p "$folder/bin"
cat > "$folder/bin/python" <<'EOF'
#!/bin/sh
case "$*" in *--version*) exit 0;; esac
echo "begin" >> pip.log; sleep 0.2; echo "end" >> pip.log
EOF
chmod +x "$folder/bin/python"
"""


@pytest.fixture
def clone(tmp_path):
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "python3.11").write_text(FAKE_PYTHON)
    (tmp_path / "python3.11").chmod(0o755)
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.Popen:
    command = ["make", *arguments, ".venv/ready"]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_makes_at_once_install_one_after_the_other(clone):
    both = [make(clone, f"PYTHON={clone}/python3.11") for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0], both[0].stderr.read()
    assert (clone / "pip.log").read_text().split() == ["begin", "end"] * 2
    assert (clone / ".venv/ready").exists()


def test_a_missing_python_is_one_line_that_says_what_to_install(clone):
    process = make(clone, "PYTHON=python9.99")
    assert process.wait() != 0
    said = process.stderr.read()
    assert "Python 3.11 is not here: install python9.99, or name one: make PYTHON=" in said
    assert not (clone / ".venv/ready").exists()
