"""What users do with a project that they got from git: each in a really fresh clone."""

import csv
import shutil
import subprocess
from resource import RUSAGE_CHILDREN, getrusage

import project
import pytest

ROOT = project.ROOT
STAGES = ("tasks", "reference", "train", "sample", "evaluate")
# Of a table's columns: how long it took and how much memory, never twice the same.
MEASURED = ("train_seconds", "sample_seconds", "peak_memory_mb")


def _arm(*outputs: str, **more) -> dict:
    (arm, _) = project.content()["arms"]
    return arm | {"factors": {"output": list(outputs)}} | more


def _rows(clone, study: str = "two") -> dict[str, dict[str, str]]:
    with (clone / f"reports/{study}/runs.csv").open() as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def _stands(clone) -> dict[str, tuple[int, int]]:
    """Stage folder -> of which inode its sidecar is and when it was written."""
    found = {}
    for stage in STAGES:
        for sidecar in (clone / "results" / stage).glob("*/*.json"):
            if sidecar.name not in ("metrics.json", "manifest.json"):
                status = sidecar.stat()
                found[f"{stage}/{sidecar.parent.name}"] = status.st_ino, status.st_mtime_ns
    return found


@pytest.fixture
def clone(origin, warm, tmp_path):
    """A fresh clone with the origin's results, as a pull leaves them: new files, in no order."""
    clone = origin.clone(tmp_path / "clone").warmed(warm.commands)
    for stage in reversed(STAGES):
        shutil.copytree(
            origin / "results" / stage, clone / "results" / stage, copy_function=shutil.copy
        )
    return clone


def _made(clone, *arguments: str, study: str = project.STUDY) -> list[str]:
    """Run Snakemake; the stage folders that are new, sorted; all others are as they were."""
    before = _stands(clone)
    clone.snakemake(*arguments, study=study)
    after = _stands(clone)
    assert {folder: after[folder] for folder in before} == before
    return sorted(after.keys() - before.keys())


def _short(folders: list[str]) -> list[str]:
    """Folder names without their keys."""
    return [folder.rpartition("~")[0] for folder in folders]


@pytest.mark.slow
def test_a_first_run_in_a_fresh_clone_gives_the_committed_numbers_to_the_last_bit(origin, tmp_path):
    clone = origin.clone(tmp_path / "clone")
    committed = _rows(clone)
    clone.study(seeds=[1], arms=[_arm("FFN_in", "Trans_out")])
    made = _made(clone, "all")
    assert len(made) == 2 + 3 * 2  # prepare and reference, and three stages of each run
    rows = _rows(clone)
    assert len(rows) == 2
    for name, row in rows.items():
        same = {k: v for k, v in committed[name].items() if k not in MEASURED}
        assert {k: v for k, v in row.items() if k not in MEASURED} == same
    assert "Two points" in (clone / "reports/two/report.html").read_text()
    done = clone.snakemake("all")
    assert "Nothing to be done" in done.stdout + done.stderr


@pytest.mark.slow
def test_b_one_training_setting_trains_only_its_runs_and_changed_back_nothing(clone):
    arms = [_arm("FFN_in", name="one"), _arm("Trans_out", name="other")]
    clone.study(seeds=[0], arms=arms)
    assert _made(clone, "evaluated") == []  # runs are known by content, not by arm or study
    clone.study(seeds=[0], arms=[arms[0], arms[1] | {"train": {"lr": 2.0e-3}}])
    assert _short(_made(clone, "trained")) == ["train/adapter.CA_out-Trans_out.width4~mine~s0"]
    clone.study()
    assert _made(clone, "all") == []
    assert clone.git("status", "--porcelain") == ""  # the report too, to the byte


def _by(*factors: str) -> dict:
    return {"factors": list(factors), "responses": ["fd_effnet", "clip_t"]}


WIDTHS = {"factors": {"output": ["Trans_out"], "width": [4, 8]}, "settings": {"input": "CA_out"}}
ADDED = {
    "a level": (
        {"seeds": [0], "arms": [_arm() | WIDTHS], "analysis": _by("width")},
        ["train/adapter.CA_out-Trans_out.width8~mine~s0"],
    ),
    "a seed": (
        {"seeds": [0, 1, 2]},
        [f"train/adapter.CA_out-{output}.width4~mine~s2" for output in ("FFN_in", "Trans_out")],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("change, new", ADDED.values(), ids=ADDED)
def test_f_what_is_added_to_the_design_trains_and_nothing_else(clone, change, new):
    clone.study(**change)
    assert _short(_made(clone, "trained")) == new


def test_g_two_studies_share_runs_and_do_not_train_them_twice(clone):
    clone.study(name="second", seeds=[0], arms=[_arm("Trans_out", "FFN_in")], title="Second")
    (clone / project.STUDY).rename(clone / "params/second.yaml")
    assert _made(clone, "reports/second/report.html", study="params/second.yaml") == []
    first, second = _rows(clone), _rows(clone, "second")
    assert set(second) == {n for n, r in first.items() if r["seed"] == "0" and r["arm"] != "none"}
    for name, row in second.items():
        # One training: even the seconds it took are the same.
        assert row == {column: first[name][column] for column in row}


# --- the committed reports ------------------------------------------------------------------

HEAVY = ("torch", "torchvision", "diffusers", "transformers", "peft", "open_clip", "timm", "mlflow",
         "dvc", "snakemake")  # fmt: skip
WITHOUT = f"""
import sys

class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Without())
"""
LISTED = ("ls-files", "-z", "--cached", "--others", "--exclude-standard")
STUDIES = sorted(p.parent.name for p in ROOT.glob("reports/*/runs.csv"))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """This checkout as git will hold it, committed."""
    here = project.Project(tmp_path_factory.mktemp("checkout") / "origin")
    listed = subprocess.run(["git", "-C", ROOT, *LISTED], capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/", "benchmarks/")):
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, here / name)
    here.git("init", "--quiet", "--initial-branch", "main")
    here.commit("As it stands")
    return here


@pytest.mark.parametrize(
    "study",
    [n if n == "emoji" else pytest.param(n, marks=pytest.mark.slow) for n in STUDIES],
)
def test_c_the_report_is_made_again_from_git_alone_without_torch(checkout, study, tmp_path):
    clone = checkout.clone(tmp_path / "clone")
    (tmp_path / "without").mkdir()
    (tmp_path / "without/sitecustomize.py").write_text(WITHOUT)
    path = f"{tmp_path / 'without'}:{clone / 'src'}"
    refused = clone.run("python", "-c", "import torch", ok=False, PYTHONPATH=path)
    assert "No module named 'torch'" in refused.stderr
    shutil.rmtree(clone / f"reports/{study}/figures")
    for name in ("report.html", "report.md", "anova.csv", "origins.json"):
        (clone / f"reports/{study}" / name).unlink()
    # After set-up: it is what .venv/ready stands for.
    made = ["make", "--assume-old", ".venv/ready", "report"]
    made = made if study == "emoji" else ["fitspace", "report", f"params/{study}.yaml"]
    before = _cpu_seconds()
    clone.run(*made, PYTHONPATH=path)
    assert clone.git("status", "--porcelain") == ""
    assert _cpu_seconds() - before < 60  # one process: as long on a quiet machine


def _cpu_seconds() -> float:
    used = getrusage(RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
