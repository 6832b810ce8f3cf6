"""The repairs of how libraries import each other, each in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]
FORWARD = """
import sys, torch
from fitspace.core import imports
imports.import_only_models()
sys.path.insert(0, {tests!r})
import tiny
model = tiny.unet()
model(torch.zeros(1, 4, 4, 4), 3, torch.zeros(1, 5, 12)).sample.sum().backward()
print([name for name in ("peft", "torchvision", "scipy.stats") if name in sys.modules])
"""


def _run(code: str, path: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(path)}
    )


# Where a broken one is not imported, none is missed: that alone is tried every time.
@pytest.mark.parametrize(
    "peft", [pytest.param("absent", marks=pytest.mark.slow), "installed, and broken"]
)
def test_models_alone_work_whatever_else_is_installed(tmp_path, peft):
    if peft != "absent":
        (tmp_path / "peft").mkdir()
        (tmp_path / "peft/__init__.py").write_text("raise ImportError('not to be imported')")
        info = tmp_path / "peft-9.9.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 9.9\n")
    done = _run(FORWARD.format(tests=str(HERE)), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_torchvision_imports_beside_this_torch(tmp_path):
    code = "from fitspace.core.imports import import_torchvision as i; i(); i(); import torchvision"
    done = _run(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_importing_fitspace_imports_no_heavy_library(tmp_path):
    code = (
        "import sys, fitspace, fitspace.cli, fitspace.study, fitspace.plan, fitspace.methods, "
        "fitspace.report, fitspace.results.table, fitspace.metrics; "
        "print([m for m in ('torch', 'diffusers', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    done = _run(code, tmp_path)
    assert done.stdout.strip() == "[]", done.stderr
