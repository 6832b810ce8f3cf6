"""docs/reliability.md: every guarantee has its test, and every test is there."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]
PAGE = (HERE.parent / "docs/reliability.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith(("| what happens |", "| what comes in |"))
]


@cache
def marks(file: str) -> dict[str, set[str]]:
    """Test -> its marks, read from the source."""
    tests = (n for n in ast.parse((HERE / file).read_text()).body if isinstance(n, ast.FunctionDef))
    return {
        test.name: set(
            re.findall(r"pytest\.mark\.(\w+)", " ".join(map(ast.unparse, test.decorator_list)))
        )
        for test in tests
    }


def test_the_page_is_read():
    assert len(ROWS) > 30 and all(len(row) == 4 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:60])
def test_every_guarantee_names_tests_that_are_there(row):
    named = re.findall(r"`(\w+/test_\w+\.py)::(test_\w+)`( \(\w+\))?", row[2])
    assert named and row[1]
    for file, test, mark in named:
        assert test in marks(file), f"{file} has no {test}"
        own = marks(file)[test] & {"slow", "slurm", "gpu"}
        assert own == ({mark.strip(" ()")} if mark else set())
