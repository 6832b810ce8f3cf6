"""What is committed has the same bytes on every processor.

OpenBLAS takes its kernels by the processor, and with them the order of sums;
``OPENBLAS_CORETYPE`` makes it take those of another.
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from committed import REPORTS, copy_inputs
from numpy._core._multiarray_umath import __cpu_features__ as CAN

ROOT = Path(__file__).parents[2]
CASES = ROOT / "tests/data/stats"
# Kernels -> what a processor needs to run them, and what OpenBLAS then says it uses.
KERNELS = {
    "Prescott": ("SSE3", {"Prescott", "Katmai"}),
    "SandyBridge": ("AVX", {"Sandybridge"}),
    "Haswell": ("AVX2", {"Haswell"}),
    "Zen": ("AVX2", {"Zen", "Haswell"}),
    "SkylakeX": ("AVX512_SKX", {"SkylakeX"}),
}
PROGRAM = """
import json, sys
from pathlib import Path
import numpy
from threadpoolctl import threadpool_info
from fitspace.cli import main
from fitspace.plan import load_study
from fitspace.report import build

kernels = {{i["architecture"] for i in threadpool_info() if i["internal_api"] == "openblas"}}
print(json.dumps(sorted(kernels)))
{body}
"""
MADE_AGAIN = """
for name, folder in json.loads(sys.argv[1]).items():
    build(load_study(Path("params") / f"{name}.yaml"), Path(folder))
"""
COMMANDS = """
for command in json.loads(sys.argv[1]):
    print(command, main(command))
"""


def _under(kernel: str, body: str, content) -> list[str]:
    """Lines that a program prints in a process of its own whose OpenBLAS has these kernels."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body), json.dumps(content)],
        cwd=ROOT,
        env=os.environ | {"OPENBLAS_CORETYPE": kernel},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    found, *lines = done.stdout.splitlines()
    assert found and set(json.loads(found)) <= KERNELS[kernel][1]
    return lines


def _files(place: Path, reports: list[str]) -> dict[str, bytes]:
    paths = (path for name in reports for path in (place / name).rglob("*") if path.is_file())
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in paths}


def _needs(kernel: str) -> None:
    needed, _ = KERNELS[kernel]
    if not CAN.get(needed):
        pytest.skip(f"this processor has no {needed}")


# The smallest report with the oldest kernels always; where there is time, all with those of three
# generations, and the smallest with the others.
SMALLEST = ["emoji-mmdit"]
REMADE = [pytest.param("Prescott", SMALLEST, id="Prescott")] + [
    pytest.param(k, reports, id=f"{k}-{len(reports)}", marks=pytest.mark.slow)
    for k in KERNELS
    for reports in [REPORTS if k in ("Prescott", "Haswell", "SkylakeX") else SMALLEST]
]


@pytest.mark.parametrize("kernel, reports", REMADE)
def test_committed_reports_have_the_same_bytes(kernel, reports, tmp_path):
    _needs(kernel)
    again = {name: str(copy_inputs(name, tmp_path / name)) for name in reports}
    _under(kernel, MADE_AGAIN, again)
    committed, made = _files(ROOT / "reports", reports), _files(tmp_path, reports)
    assert committed and committed.keys() == made.keys()
    assert [name for name in committed if committed[name] != made[name]] == []


def _analyses() -> list[list[str]]:
    """`fitspace anova` of every shared case that a command can analyse, plain and otherwise."""
    commands = []
    for path in sorted(CASES.glob("*.csv")):
        with path.open(newline="") as file:
            columns = next(csv.reader(file))
        formula = json.loads(path.with_suffix(".json").read_text()).get("formula")
        if path.name.startswith("nist_"):
            model = ["--response", columns[-1], "--factors", columns[0]]
            more = [["--exact-decimals"]]
        elif isinstance(formula, str) and "|" not in formula:
            model = ["--formula", formula]
            more = [["--robust", "hc3"], ["--permutations", "499"], ["--type", "1"]]
        else:
            continue
        commands += [["anova", str(path), *model, "--json", *m] for m in ([], *more)]
    return commands


def _plans() -> list[list[str]]:
    """`fitspace plan` of the studies of the embedded models; one with a D-optimal subset."""
    studies = [str(path) for path in sorted(ROOT.glob("params/emoji*.yaml"))]
    plans = [["plan", path, "--json"] for path in studies]
    return [*plans, ["plan", str(ROOT / "params/emoji.yaml"), "--json", "--subset", "12"]]


@pytest.fixture(scope="module")
def here():
    """What the commands print with the kernels that every processor has."""
    return _under("Prescott", COMMANDS, _analyses() + _plans())


@pytest.mark.parametrize(
    "kernel", [pytest.param(k, marks=pytest.mark.slow) for k in list(KERNELS)[1:]]
)
def test_analyses_and_plans_are_the_same_text(kernel, here):
    _needs(kernel)
    assert len(_analyses()) > 15
    assert _under(kernel, COMMANDS, _analyses() + _plans()) == here
