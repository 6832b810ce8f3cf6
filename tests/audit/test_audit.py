"""The audit: an honest tree passes, sabotage is caught and named, what is absent is told apart."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from project import STUDY
from recorded import light_copy

from fitspace.audit import EXIT, audit
from fitspace.audit.show import text
from fitspace.cli import main
from fitspace.core.errors import UserError
from fitspace.core.files import sha256
from fitspace.plan import build_plan, load_study
from fitspace.results import lineage

REPORT = Path("reports/two")
WATCHED = ("results", "reports", "params", "models/emoji-unet/unet", "models/emoji-clip")


@pytest.fixture(scope="module")
def honest(origin, tmp_path_factory):
    """A copy of the finished project."""
    return origin.copy(tmp_path_factory.mktemp("audit") / "project")


@pytest.fixture
def project(honest, monkeypatch):
    """The project as the current folder; whatever a test does to its files is undone."""
    before = honest.files(*WATCHED)
    monkeypatch.chdir(honest.folder)
    yield honest
    for name in honest.files(*WATCHED).keys() - before.keys():
        (honest / name).unlink()
    for name, content in before.items():
        path = honest / name
        if not path.exists() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.write_bytes(content)


def _stage(stage: str, which: int = 0) -> Path:
    room = {"prepare": "tasks"}.get(stage, stage)
    return sorted((Path("results") / room).iterdir())[which]


def _flip(path: Path) -> Path:
    """Flip one bit, keep size and times: only rehashing can tell."""
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=times)
    return path


def _edit(path: Path, before: str, after: str) -> Path:
    content = path.read_text()
    assert before in content
    path.write_text(content.replace(before, after, 1))
    return path


def _swap(one: Path, other: Path) -> Path:
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)
    return one


def _metric(path: Path) -> tuple[str, str]:
    """The Fréchet distance as the file has it, and another."""
    before = str(json.loads(path.read_text())["fd_effnet"])
    return before, str(int(before[0]) % 9 + 1) + before[1:]


def _metric_in_json():
    path = _stage("evaluate") / "metrics.json"
    return _edit(path, *_metric(path))


def _metric_in_table():
    return _edit(REPORT / "runs.csv", *_metric(_stage("evaluate") / "metrics.json"))


def _number_on_page(part: int):
    page = REPORT / "report.html"
    found = re.search(
        r'<data value="([^"]+)" data-table="anova.csv"[^>]*>([^<]+)<', page.read_text()
    )
    return _edit(page, found[0], found[0].replace(found[part], "7.77"))


def _sidecar_with(stage: str, change):
    path = _stage(stage) / f"{stage}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path


def _other_seed():
    return _sidecar_with("train", lambda c: c["material"].update(seed=7))


def _other_package():
    return _sidecar_with("train", lambda c: c["environment"]["packages"].update(torch="2.0.0"))


def _pins_overruled():
    """Sidecar and lineage agree on a version that the project did not pin."""
    _other_package()
    _recollect()
    return "package torch"


def _recollect():
    study = load_study(STUDY)
    lineage.write(lineage.collect(build_plan(study)), REPORT)


def _run_deleted():
    """From the table and from the lineage, and the report made again: nothing else is odd."""
    name = _stage("evaluate").name
    for file in ("runs.csv", "against_n.csv", lineage.NAME):
        lines = (REPORT / file).read_text().splitlines(keepends=True)
        odd = f"results/evaluate/{name}" if file == lineage.NAME else name
        (REPORT / file).write_text("".join(line for line in lines if odd not in line))
    assert main(["report", STUDY]) == 0
    return REPORT / "runs.csv"


def _run_invented():
    lines = (REPORT / "runs.csv").read_text().splitlines(keepends=True)
    (REPORT / "runs.csv").write_text("".join([*lines, lines[-1].replace("none", "other")]))
    return REPORT / "runs.csv"


def _run_twice():
    lines = (REPORT / "runs.csv").read_text().splitlines(keepends=True)
    first = lines[1].split(",")
    twin = ",".join([*first[:7], *("9" if cell.isdecimal() else cell for cell in first[7:])])
    (REPORT / "runs.csv").write_text("".join([*lines[:1], twin, *lines[1:]]))
    return REPORT / "runs.csv"


def _curve():
    lines = (REPORT / "against_n.csv").read_text().splitlines(keepends=True)
    run, n, distance, kid = lines[1].strip().split(",")
    lines[1] = f"{run},{n},{float(distance) / 2!r},{kid}\n"
    (REPORT / "against_n.csv").write_text("".join(lines))
    return REPORT / "against_n.csv"


def _in_lineage(pattern: str, after: str):
    """Something that provenance.json says of the first training, and its sidecar otherwise."""
    path = REPORT / lineage.NAME
    content, count = re.subn(pattern, after, path.read_text(), count=1)
    assert count == 1
    path.write_text(content)


def _machine():
    _in_lineage(r'"model name":"[^"]+"', '"model name":"A quicker processor"')
    return _stage("train") / "train.json"


def _time():
    at = _stage("train").name
    _in_lineage(
        rf'("stage":"train","folder":"[^"]*{at}".*?"started":)"[^"]+"', r'\1"2020-01-01T00:00:00"'
    )
    return _stage("train") / "train.json"


def _cost_carried():
    """The seconds that a metric's sidecar carries; the lineage and the report agree with it."""
    paths = sorted(Path("results/evaluate").glob("adapter*/evaluate.json"))
    path, content = paths[0], json.loads(paths[0].read_text())
    content["facts"]["sample"]["train"]["train_seconds"] = 0.001
    path.write_text(json.dumps(content, indent=2) + "\n")
    assert main(["report", STUDY, "--cached"]) == 0
    return path


def _adapter_replaced_with_its_sidecar():
    """Adapter, its sidecar and the lineage agree; the samples were made from another."""
    folder = _stage("train")
    _flip(folder / "adapter.safetensors")
    found = sha256(folder / "adapter.safetensors")

    def forge(content):
        content["outputs"][0]["sha256"] = found

    _sidecar_with("train", forge)
    _recollect()
    samples = next(
        Path(r.folder) for r in lineage.read(REPORT).records.values()
        if r.stage == "sample" and ("train", folder.name.rpartition("~")[2]) in r.upstream
    )  # fmt: skip
    return samples / "sample.json"


SABOTAGE = {
    "bit of an adapter": (
        "hash", lambda: _flip(_stage("train") / "adapter.safetensors"), "SHA-256 is"),
    "bit of a sample": (
        "hash", lambda: _flip(_stage("sample") / "samples.safetensors"), "SHA-256 is"),
    "bit of a cached latent": (
        "hash", lambda: _flip(_stage("prepare") / "latents.safetensors"), "SHA-256 is"),
    "bit of a base weight": (
        "hash",
        lambda: _flip(Path("models/emoji-unet/unet/diffusion_pytorch_model.safetensors")),
        "the runs were made with"),
    "bit of the judge": (
        "hash",
        lambda: _flip(Path("models/emoji-clip/open_clip_model.safetensors")),
        "the runs were made with"),
    "metric in JSON": ("hash", _metric_in_json, "SHA-256 is"),
    "metric in runs.csv": ("hash", _metric_in_table, "fd_effnet of"),
    "shown number on the page": ("regenerate", lambda: _number_on_page(2), "7.77"),
    "value behind a number on the page": ("regenerate", lambda: _number_on_page(1), "7.77"),
    "adapters of two runs swapped": (
        "hash",
        lambda: _swap(*(_stage("train", i) / "adapter.safetensors" for i in (0, 1))),
        "is results/train/"),
    "sidecar of another run": (
        "hash",
        lambda: Path(shutil.copy(
            _stage("train", 1) / "train.json", _stage("train", 0) / "train.json")),
        "is the sidecar of train"),
    "seed in a sidecar": ("hash", _other_seed, "material.seed is 7; recorded 0"),
    "package version in a sidecar": (
        "hash", _other_package, "environment.packages.torch is '2.0.0'"),
    "package version that is not pinned": ("hash", _pins_overruled, "were made with 2.0.0"),
    "run deleted from the table": ("regenerate", _run_deleted, "is missing"),
    "run invented": ("hash", _run_invented, "is not of this study"),
    "adapter replaced, all its own hashes forged": (
        "hash", _adapter_replaced_with_its_sidecar, "was made from another results/train"),
    "a run twice": ("hash", _run_twice, "stands 2 times"),
    "a distance against n": ("hash", _curve, "are not those of the run's metrics"),
    "the machine in the lineage": ("hash", _machine, "environment.cpu.model name is"),
    "a time in the lineage": ("hash", _time, "provenance.json says otherwise: started is"),
    "a cost that metrics carry": (
        "hash", _cost_carried, "sample.train.train_seconds is 0.001; results/sample/"),
    "setting of the study": (
        "hash",
        lambda: _edit(Path(STUDY), "lr: 0.001", "lr: 0.002") and REPORT / "runs.csv",
        "train.train.lr is '0.002' now; 4 runs were made with '0.001'"),
    "strip of the gallery": (
        "regenerate", lambda: _flip(next((REPORT / "gallery").rglob("*.png"))), "made again"),
    "cell of the analysis": (
        "regenerate", lambda: _edit(REPORT / "anova.csv", "residual", "remainder"), "'remainder'"),
    "design": (
        "regenerate", lambda: _edit(REPORT / "design.json", "Two points", "Many"), "differs"),
    "key in the lineage": (
        "hash",
        lambda: _edit(REPORT / lineage.NAME, '"steps":3', '"steps":4') and _stage("prepare"),
        None),
}  # fmt: skip


# The whole report is made again for these, and others are of the same kind.
SELDOM = ("value behind a number on the page", "design")
SABOTAGES = [
    pytest.param(*case, id=name, marks=pytest.mark.slow if name in SELDOM else ())
    for name, case in SABOTAGE.items()
]


@pytest.mark.parametrize("tier, sabotage, message", SABOTAGES)
def test_sabotage_is_caught_and_named(project, tier, sabotage, message):
    subject = str(sabotage())
    found = audit(Path(STUDY), tier=tier)
    assert found.verdict == "changed"
    changed = [f for f in found.findings if f.kind == "changed"]
    if message is None:  # a record that contradicts itself
        assert any("its material gives" in f.message for f in changed)
        return
    named = [f for f in changed if f.subject == subject and message in f.message]
    assert named, "\n".join(f"{f.subject}: {f.message}" for f in changed)
    assert subject in text(found) and "CHANGED" in text(found)


def test_an_honest_tree_is_verified_and_nothing_is_written(project):
    rooms = [f"results/{room}" for room in ("tasks", "reference", "train", "sample", "evaluate")]
    before = project.files("reports", "params", *rooms)
    found = audit(Path(STUDY))
    assert (found.verdict, found.findings) == ("verified", [])
    assert (found.runs, found.stages) == (6, 18)
    # Sidecar and outputs: 5 + 1 of the task, 1 + 1 reference; 3, 3 and 2 of a run's stages.
    assert found.rehashed == 5 + 2 + 4 * 3 + 6 * 3 + 6 * 2
    assert before == project.files("reports", "params", *rooms)
    assert project.git("status", "--porcelain") == ""


@pytest.mark.slow
def test_what_is_absent_is_told_apart_from_what_is_changed(project, tmp_path):
    clone = project.clone(tmp_path / "clone")
    os.chdir(clone.folder)
    found = audit(Path(STUDY))
    assert found.verdict == "absent"
    assert {f.kind for f in found.findings} == {"absent"}
    shown = text(found)
    assert "absent   results/train: 12 files" in shown and "dvc pull" in shown
    assert main(["audit", STUDY]) == EXIT["absent"] == 3
    # Pulled in part: the metrics alone, and their times are new.
    for room in ("evaluate",):
        shutil.copytree(project / "results" / room, clone / "results" / room)
    found = audit(Path(STUDY))
    assert found.verdict == "absent" and found.rehashed == 12
    _metric_in_json()
    found = audit(Path(STUDY))
    assert found.verdict == "changed"
    assert {f.kind for f in found.findings} == {"absent", "changed"}
    assert main(["audit", STUDY, "--tier", "hash"]) == EXIT["changed"] == 1


@pytest.mark.parametrize("name", ["models/emoji-unet", "models/emoji-clip"])
def test_a_base_or_judge_that_is_not_here_is_absent_and_the_rest_is_held(project, name):
    Path(name).rename("away")
    try:
        found = audit(Path(STUDY))
        assert found.verdict == "absent" and found.rehashed == 49
        assert any(f.subject in ("base", "judge") for f in found.findings)
        assert main(["audit", STUDY, "--tier", "hash"]) == 3
        assert "dvc pull" not in text(found)
        _metric_in_json()
        assert audit(Path(STUDY), tier="hash").verdict == "changed"
    finally:
        Path("away").rename(name)


def test_a_file_that_cannot_be_read_is_absent_with_its_own_cure(project, monkeypatch):
    from fitspace.audit import hashes

    adapter, digests = _stage("train") / "adapter.safetensors", hashes._digests

    def denied(path):
        if path == adapter:
            raise PermissionError(13, "Permission denied", str(path))
        return digests(path)

    monkeypatch.setattr(hashes, "_digests", denied)
    found = audit(Path(STUDY), tier="hash")
    assert found.verdict == "absent"
    (finding,) = found.findings
    assert finding.subject == str(adapter) and "Permission denied; chmod u+r" in finding.message
    assert "chmod u+r" in text(found) and "dvc pull" not in text(found)


def test_a_report_of_a_table_with_a_run_twice_is_refused(project, capsys):
    _run_twice()
    assert main(["report", STUDY]) == 2
    assert "stands 2 times" in capsys.readouterr().err


def test_a_clone_with_all_results_is_verified(project, tmp_path):
    clone = project.clone(tmp_path / "clone")
    shutil.copytree(project / "results", clone / "results", copy_function=shutil.copyfile)
    os.chdir(clone.folder)
    assert audit(REPORT / "report.html").verdict == "verified"


def test_code_that_is_in_no_commit_cannot_be_verified(project, tmp_path):
    shallow = tmp_path / "shallow"
    project.git("clone", "--quiet", "--depth", "1", f"file://{project.folder}", str(shallow))
    shutil.copytree(project / "results", shallow / "results")
    os.chdir(shallow)
    found = audit(Path(STUDY), tier="hash")
    assert found.verdict == "absent"
    assert [f.message for f in found.findings] == [
        "is not in this repository, so its code and pins cannot be looked at"
    ]
    shown = text(found)
    assert "`git fetch --unshallow` gets the commits" in shown and "dvc pull" not in shown


@pytest.mark.slow
def test_dvc_lock_is_a_witness_of_its_own(recorded, tmp_path, monkeypatch):
    """A metric is changed, and all that vouches for it in files and git is forged to agree."""
    copy = light_copy(recorded, tmp_path / "project")
    monkeypatch.chdir(copy.folder)
    assert audit(Path(STUDY)).verdict == "verified"
    metrics = _metric_in_json()

    def forge(content):
        content["outputs"][0]["sha256"] = sha256(metrics)

    sidecar = _sidecar_with("evaluate", forge)
    assert main(["report", STUDY, "--cached"]) == 0
    found = audit(Path(STUDY))
    named = {f.subject for f in found.findings if "dvc.lock recorded" in f.message}
    assert {metrics.as_posix(), sidecar.as_posix(), "reports/two/runs.csv"} <= named
    assert all("dvc.lock recorded" in f.message for f in found.findings)


def _environments(change) -> None:
    path = REPORT / lineage.NAME
    lines = path.read_text().splitlines(keepends=True)
    for i, line in enumerate(lines):
        if line.startswith('{"name":"e1"'):
            content = json.loads(line.rstrip(",\n"))
            change(content)
            lines[i] = json.dumps(content, separators=(",", ":")) + line[len(line.rstrip(",\n")) :]
    path.write_text("".join(lines))


SOURCES = {
    "another source in a clean tree": (
        lambda c: c.update(source_sha256="0" * 64), "changed", "source digest is"),
    "another source in a changed tree": (
        lambda c: c.update(source_sha256="0" * 64, git=c["git"] | {"dirty": True}),
        "absent", "is in no commit"),
    "no repository": (lambda c: c.update(git=None), "absent", "outside a git repository"),
    "a commit that is nowhere": (
        lambda c: c["git"].update(commit="1" * 40), "absent", "is not in this repository"),
}  # fmt: skip


@pytest.mark.parametrize("change, kind, message", SOURCES.values(), ids=SOURCES)
def test_code_and_commit(project, change, kind, message):
    _environments(change)
    found = audit(Path(STUDY), tier="hash").findings
    assert [f.kind for f in found if message in f.message] == [kind]


VALUES = {
    "by number": "reports/two/anova.csv#1/F",
    "by cells": "reports/two/anova.csv#response=fd_effnet,source=output/F",
    "file of the study": "anova.csv#1/F",
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_value_by_name(project, value):
    with (REPORT / "anova.csv").open() as file:
        header, *rows = (line.rstrip("\n").split(",") for line in file)
    found = audit(Path(STUDY) if "/two/" not in value else None, value=value, tier="hash")
    row = rows[found.target.value.row - 1]
    assert found.target.value.text == row[header.index("F")]
    if "source" in value:
        assert (row[0], row[header.index("source")]) == ("fd_effnet", "output")
    # The untouched base is not in the analysis of variance.
    assert found.runs == 4 and found.verdict == "verified"
    shown = text(found)
    for part in ("models/emoji-unet", "models/emoji-clip", "results/train/", "seed 0", "commit ",
                 "torch ", "source images", "samples results", "prepared task", STUDY):  # fmt: skip
        assert part in shown


def test_only_the_runs_behind_a_value_are_looked_at(project):
    others = next(p for p in Path("results/evaluate").iterdir() if p.name.startswith("none"))
    _flip(others / "metrics.json")
    assert audit(None, value="reports/two/anova.csv#1/F", tier="hash").verdict == "verified"
    assert audit(Path("reports/two/ledger.csv"), tier="hash").verdict == "changed"


REFUSED = {
    "no such file": (["audit", "reports/nowhere/report.html"], "no such file"),
    "nothing to audit": (["audit"], "give a study file"),
    "no column": (["audit", "--value", "reports/two/anova.csv#1/G"], "no column 'G'; allowed: re"),
    "no row": (["audit", "--value", "reports/two/anova.csv#99/F"], "no row 99; allowed: 1 to"),
    "no such cell column": (
        ["audit", "--value", "reports/two/anova.csv#sauce=output/F"], "no column 'sauce'"),
    "several rows": (["audit", "--value", "reports/two/anova.csv#source=output/F"], "is in 2 rows"),
    "no selector": (["audit", "--value", "reports/two/anova.csv"], "expected TABLE.csv#ROW/COLUMN"),
    "no report's table": (["audit", "params/other.csv"], "no study file in params/"),
    "a run that is not there": (
        ["audit", STUDY, "--tier", "retrain", "--runs", "nobody"], "'nobody' is not among"),
    "no runs to train": (["audit", STUDY, "--tier", "retrain"], "--runs"),
    "runs without a tier that redoes them": (["audit", STUDY, "--draw", "2"], "--tier"),
}  # fmt: skip


@pytest.mark.parametrize("command, message", REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused(project, capsys, command, message):
    Path("params/other.csv").write_text("a\n1\n")
    assert main(command) == 2
    assert message in capsys.readouterr().err


def test_a_report_without_lineage_is_refused(project):
    (REPORT / lineage.NAME).unlink()
    with pytest.raises(UserError, match="provenance.json: missing"):
        audit(Path(STUDY))


def test_json_holds_the_whole_chain(project, capsys):
    assert main(["audit", STUDY, "--json", "--tier", "hash"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["verdict"] == "verified" and content["findings"] == []
    runs = content["chain"]["made_from"][-1]["made_from"]
    assert len(runs) == 6
    stages = [child["facts"]["stage"] for child in runs[0]["made_from"]]
    assert stages == ["evaluate", "sample", "reference", "train"]


def test_prov_holds_the_value_and_its_sources(project, capsys):
    value = "reports/two/anova.csv#1/F"
    assert main(["audit", "--value", value, "--prov", "--tier", "hash"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert len(content["activity"]) >= 14 and "entity" in content
    assert value in json.dumps(content)


def test_a_crate_is_written_of_what_is_as_recorded_only(project, capsys, tmp_path):
    command = ["audit", STUDY, "--tier", "hash", "--crate"]
    assert main([*command, str(tmp_path / "crate")]) == 0
    names = {p.name for p in (tmp_path / "crate").rglob("*")}
    assert {"ro-crate-metadata.json", "report.html", "runs.csv", "two.yaml"} <= names
    assert "an RO-Crate of" in capsys.readouterr().out
    _metric_in_table()
    assert main([*command, str(tmp_path / "other")]) == 1
    assert not (tmp_path / "other").exists() and "not written" in capsys.readouterr().out
