"""The package's rooms stand in order, without a circle; git keeps its bytes."""

from __future__ import annotations

import ast
import re
import subprocess
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src/fitspace"
# From the ground up. A room imports those before it; what stands in one tuple, not each other.
ROOMS = (
    ("core",), ("stats",), ("metrics",), ("study",), ("bases",), ("methods",), ("data",),
    ("training",), ("explaining",), ("plan",), ("stages",), ("results",), ("rating",),
    ("report", "tracking", "recipes"), ("audit",), ("cli",),
)  # fmt: skip
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}


def module(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in sorted(SOURCE.rglob("*.py"))}


def imported(path: Path) -> set[str]:
    """The package's modules that a file imports, inside functions too, but not for types alone."""
    nodes, found = [ast.parse(path.read_text(encoding="utf-8"))], set()
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names = {f"{node.module}.{alias.name}": node.module for alias in node.names}
            found |= {name if name in MODULES else parent for name, parent in names.items()}
        nodes += ast.iter_child_nodes(node)
    return (found & MODULES.keys()) - {"fitspace", module(path)}


GRAPH = {name: imported(path) for name, path in MODULES.items() if name != "fitspace"}


def test_every_module_is_in_a_room():
    assert {name.split(".")[1] for name in GRAPH} == set(FLOOR)


def test_rooms_import_only_rooms_before_them():
    upwards = [
        f"{name} -> {other}"
        for name, others in GRAPH.items()
        for other in others
        if (own := name.split(".")[1]) != (its := other.split(".")[1]) and FLOOR[own] <= FLOOR[its]
    ]
    assert upwards == []


def test_no_circle():
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True).stdout


@pytest.mark.parametrize("name", ["README.md", "models/emoji-unet/model_index.json", "new.csv"])
def test_git_changes_no_line_endings(name):
    """Digests are of bytes, and core.autocrlf would change them."""
    assert _git("check-attr", "text", "--", name) == f"{name}: text: unset\n"


@pytest.mark.parametrize(
    "name", ["dvc_plots/index.html", "results/x", "mlflow.db", "reports/.emoji.new-host-7/x"]
)
def test_git_does_not_see_what_tools_leave(name):
    assert _git("check-ignore", name).strip() == name


def test_no_test_imports_another():
    """What several need stands beside this file, in one that is no test."""
    text = {path: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")}
    assert [p.name for p, t in text.items() if re.search(r"^\s*(from|import) test_", t, re.M)] == []
