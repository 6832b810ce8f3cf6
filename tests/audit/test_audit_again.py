"""The audit's tiers that compute again: what they find, what they allow, what they leave alone."""

import json
import os
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import project
import pytest

from fitspace.audit import again
from fitspace.core.errors import UserError
from fitspace.core.files import sha256, write_json
from fitspace.plan import build_plan, load_study
from fitspace.results import lineage
from fitspace.stages import sidecars

STUDY = Path(project.STUDY)
ELSEWHERE = {"cpu": {"model name": "another"}}


@pytest.fixture(scope="module", autouse=True)
def _as_in_a_job():
    """The settings that jobs compute with, without which no machine is of their kind."""
    import torch

    from fitspace.cli import process

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FITSPACE_THREADS", raising=False)
        threads = torch.get_num_threads()
        process.set_up_torch()
        sidecars.environment.cache_clear()
        yield
        torch.use_deterministic_algorithms(False)
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)
        sidecars.environment.cache_clear()


def _copy(origin, to: Path) -> Path:
    """The origin's study and results to change, its models as a link."""
    for name in ("params", "images", "results", "reports"):
        shutil.copytree(origin / name, to / name)
    (to / "models").symlink_to(origin / "models")
    return to


@pytest.fixture
def plan(origin, tmp_path, monkeypatch):
    """The plan of a copy of the origin; the copy is the working folder."""
    monkeypatch.chdir(_copy(origin, tmp_path / "copy"))
    return build_plan(load_study(STUDY))


def _forge(stage, name: str, change) -> None:
    """Change an artefact, or its sidecar, and make the sidecar fit it."""
    if name:
        change(stage.folder / name)
    sidecar = json.loads(stage.sidecar.read_text())
    if not name:
        change(sidecar)
    for output in sidecar["outputs"]:
        file = stage.folder / Path(output["path"]).name
        output |= {"sha256": sha256(file), "size": file.stat().st_size}
    write_json(stage.sidecar, sidecar)


def _metric(name: str, factor: float):
    def change(path: Path) -> None:
        content = json.loads(path.read_text())
        content[name] *= factor
        write_json(path, content)

    return change


def _pixels(path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    images = load_file(path)["images"].copy()
    images[0] = 255 - images[0]
    save_file({"images": images}, path)


def _made_elsewhere(sidecar: dict) -> None:
    sidecar["environment"] |= ELSEWHERE


def _messages(findings) -> list[str]:
    return [f.message for f in findings]


# --- measured again -----------------------------------------------------------------------


def test_honest_metrics_are_the_same_to_the_last_bit_and_nothing_is_written(plan):
    for run in plan.runs[-2:]:  # two of a kind will do
        assert again.measured_here(run)
    before = _stands()
    assert again.reevaluate(plan, [run.name for run in plan.runs]) == []
    assert _stands() == before


def _stands() -> dict[str, tuple]:
    files = (p for room in ("results", "reports") for p in Path(room).rglob("*"))
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns, p.stat().st_size) for p in files}


def test_what_is_forged_with_its_sidecar_is_found_by_measuring(plan):
    last_bit, samples, near, far, shares, absent = plan.runs
    _forge(last_bit.evaluate, "metrics.json", _metric("fd_effnet", 1 + 4e-16))
    _forge(samples.sample, "samples.safetensors", _pixels)
    _forge(near.evaluate, "metrics.json", _metric("fd_effnet", 1 + 1e-7))
    _forge(far.evaluate, "metrics.json", _metric("fd_effnet", 1 + 1e-3))
    _forge(shares.evaluate, "metrics.json", lambda p: _set(p, "precision", 1 / 6))
    for run in (near, far, shares):
        _forge(run.evaluate, "", _made_elsewhere)
    (absent.sample.folder / "samples.safetensors").unlink()
    found = again.reevaluate(plan, [run.name for run in plan.runs])
    by_subject: dict[str, list] = {}
    for finding in found:
        by_subject.setdefault(finding.subject, []).append(finding)
    expected = {last_bit.name, samples.name, far.name}
    expected.add(f"{absent.sample.folder}/samples.safetensors")
    assert by_subject.keys() == expected
    (finding,) = by_subject[last_bit.name]
    assert finding.kind == "changed" and "allowed: the same number" in finding.message
    recorded = json.loads((last_bit.evaluate.folder / "metrics.json").read_text())["fd_effnet"]
    assert finding.message.startswith(f"fd_effnet: recorded {recorded!r}, computed again ")
    measured = {m.partition(":")[0] for m in _messages(by_subject[samples.name])}
    assert {"clip_t", "clip_i", "fd_effnet", "against_n[3].fd_effnet"} <= measured
    (finding,) = by_subject[far.name]
    assert finding.kind == "changed" and "a difference of 0.01" in finding.message
    (finding,) = by_subject[f"{absent.sample.folder}/samples.safetensors"]
    assert finding.kind == "absent"


def _set(path: Path, name: str, value: float) -> None:
    write_json(path, json.loads(path.read_text()) | {name: value})


UNUSABLE = {
    "no samples": ("sample", lambda f: shutil.rmtree(f), "absent", "sample.json"),
    "no prepared task": ("prepare", lambda f: shutil.rmtree(f), "absent", "prepare.json"),
    "no images of the task": (
        "prepare", lambda f: (f / "images.safetensors").unlink(), "absent", "images.safetensors",
    ),
    "no metrics": (
        "evaluate", lambda f: (f / "metrics.json").unlink(), "absent", "metrics.json",
    ),
    "samples changed, sidecar not": (
        "sample", lambda f: _pixels(f / "samples.safetensors"), "changed", "samples.safetensors",
    ),
    "sidecar broken": (
        "sample", lambda f: (f / "sample.json").write_text("{"), "changed", "sample.json",
    ),
}  # fmt: skip


@pytest.mark.parametrize("stage, change, kind, name", UNUSABLE.values(), ids=UNUSABLE)
def test_what_cannot_be_used_is_said_once_with_its_path(plan, stage, change, kind, name):
    runs = plan.runs[:2] if stage == "prepare" else plan.runs[:1]
    folder = getattr(runs[0], stage).folder
    change(folder)
    (finding,) = again.reevaluate(plan, [run.name for run in runs])
    assert (finding.kind, finding.subject) == (kind, f"{folder}/{name}")


def test_samples_that_are_no_images_are_a_finding(plan):
    run = plan.runs[0]
    _forge(run.sample, "samples.safetensors", lambda path: path.write_bytes(b"no tensors"))
    (finding,) = again.reevaluate(plan, [run.name])
    assert (finding.kind, finding.subject) == ("changed", run.name)
    assert "cannot be measured again" in finding.message


@pytest.mark.parametrize("stage", ["reference", "evaluate"])
def test_bits_are_asked_for_only_of_what_this_kind_of_machine_made(plan, stage):
    run = plan.runs[0]
    assert again.measured_here(run)
    _forge(getattr(run, stage), "", _made_elsewhere)
    assert not again.measured_here(run)
    getattr(run, stage).sidecar.unlink()
    assert not again.measured_here(run)


def test_unknown_runs_are_refused_all_at_once(plan):
    for tier in (again.reevaluate, lambda *a: again.retrain(STUDY, *a)):
        with pytest.raises(UserError) as caught:
            tier(plan, ["a~mine~s0~1", plan.runs[0].name, "b~mine~s0~2"])
        assert [p.split("'")[1] for p in caught.value.problems] == ["a~mine~s0~1", "b~mine~s0~2"]


METRICS = {"clip_t": 0.1, "fd_effnet": 600.0, "precision": 0.25, "recall": 0.2, "n": 80, "m": 185,
           "prior_drift": 0.3, "against_n": [{"n": 10, "fd_effnet": 900.0}]}  # fmt: skip
ALLOWED = {
    "clip_t": 1e-5,
    "fd_effnet": 6e-3,
    "against_n[0].fd_effnet": 9e-3,
    "precision": 1 / 80,
    "recall": 1 / 185,
    "prior_drift": 2e-3,
}


@pytest.mark.parametrize("name, allowed", ALLOWED.items(), ids=ALLOWED)
def test_another_kind_of_machine_may_round_otherwise_and_no_more(name, allowed):
    value = again.numbers(METRICS)[name]
    limit = again.tolerance(name, METRICS)
    for difference, found in ((0.99 * allowed, 0), (-0.99 * allowed, 0), (1.02 * allowed, 1)):
        got = again.differences("r", {name: value}, {name: value + difference}, {name: limit})
        assert len(got) == found


ALWAYS = {
    "a number of images": ({"n": 80}, {"n": 81}),
    "a metric that the record lacks": ({}, {"clip_t": 0.1}),
    "a metric that is not measured": ({"clip_t": 0.1}, {}),
    "text": ({"clip_t": "0.1"}, {"clip_t": 0.1}),
    "no number": ({"clip_t": float("nan")}, {"clip_t": 0.1}),
    "infinity": ({"clip_t": float("inf")}, {"clip_t": 0.1}),
}


@pytest.mark.parametrize("recorded, computed", ALWAYS.values(), ids=ALWAYS)
def test_some_differences_are_allowed_on_no_machine(recorded, computed):
    limits = {name: again.tolerance(name, METRICS) for name in computed}
    (finding,) = again.differences("r", recorded, computed, limits)
    assert finding.subject == "r" and finding.message.startswith(next(iter(recorded | computed)))


KINDS = {
    "as it was": ({}, True),
    "another commit": ({"git": {"commit": "0"}, "source_sha256": "0"}, True),
    "more memory, another kernel": ({"memory_mb": 1, "platform": "Linux-1"}, True),
    "another processor": (ELSEWHERE, False),
    "a GPU": ({"device": "NVIDIA H200", "cuda": "13.0", "cudnn": 91000}, False),
    "another torch": ({"packages": {"torch": "0.1"}}, False),
    "more threads": ({"threads": 8}, False),
    "not deterministic": ({"deterministic": False}, False),
    "other kernels on purpose": ({"kernels": "of no machine"}, False),
}


@pytest.mark.parametrize("change, same", KINDS.values(), ids=KINDS)
def test_the_kind_of_a_machine_is_what_decides_the_bits(change, same):
    here = sidecars.environment()
    assert again.same_kind(here, here | change) is same


# --- drawn --------------------------------------------------------------------------------


def test_a_draw_is_reproducible_and_a_larger_one_keeps_it():
    names = [f"run-{i}" for i in range(40)]
    drawn = again.draw(names, 5, 1)
    assert drawn == again.draw(names[::-1], 5, 1) == again.draw(names, 12, 1)[:5]
    assert set(drawn) < set(names) and len(set(drawn)) == 5
    assert set(drawn) != set(again.draw(names, 5, 2))
    counts = {name: 0 for name in names}
    for seed in range(400):
        for name in again.draw(names, 5, seed):
            counts[name] += 1
    assert min(counts.values()) > 25 and max(counts.values()) < 80  # 50 each, 4 sd: 26


@pytest.mark.parametrize("n", [0, 3])
def test_a_draw_of_too_many_says_how_many_there_are(n):
    with pytest.raises(UserError, match=f"--draw: {n}; allowed: 1 to 2"):
        again.draw(["a", "b", "a"], n, 0)


# --- trained again ------------------------------------------------------------------------


@pytest.fixture
def recorded(plan):
    """The lineage and the table of a copy, to forge, and what a run made again has to give."""
    folder = Path("reports/two")
    return lineage.read(folder), again.read_rows(folder / "runs.csv")


def _other(known, stage, *, output: str = "", environment: str | None = "same"):
    """A lineage in which a stage's record has another file, or was made on another machine."""
    record = known.records[stage.name, stage.key]
    if output:
        record = replace(record, outputs=record.outputs | {output: "0" * 64})
    environments = known.environments
    if environment == "elsewhere":
        environments = environments | {"e9": environments[record.environment] | ELSEWHERE}
        record = replace(record, environment="e9")
    elif environment is None:
        record = replace(record, environment=None)
    records = known.records | {(stage.name, stage.key): record}
    return replace(known, environments=environments, records=records)


def test_the_same_files_and_numbers_are_no_finding(plan, recorded):
    for run in plan.runs:
        findings, distance = again.compare(run, *recorded, Path("."))
        assert (findings, distance.run, distance.metric) == ([], run.name, None)


FILES = {
    "prepare": "latents.safetensors",
    "reference": "features.safetensors",
    "train": "adapter.safetensors",
    "sample": "sheet.png",
    "evaluate": "metrics.json",
}


@pytest.mark.parametrize("stage", FILES)
def test_another_file_is_found_and_the_first_stage_that_gives_it_named(plan, recorded, stage):
    known, rows = recorded
    run, after = plan.runs[0], list(FILES).index(stage)
    for name in list(FILES)[after:]:
        known = _other(known, getattr(run, name), output=FILES[name])
    ((finding,), _) = again.compare(run, known, rows, Path("."))
    assert (finding.kind, finding.subject) == ("changed", run.name)
    assert finding.message.startswith(f"{stage} is the first stage")
    file = getattr(run, stage).folder / FILES[stage]
    assert FILES[stage] in finding.message and sha256(file) in finding.message


def test_a_cell_of_the_table_has_to_be_the_number_of_the_run(plan, recorded):
    known, rows = recorded
    run = plan.runs[0]
    rows[run.name]["clip_t"] = repr(float(rows[run.name]["clip_t"]) + 1e-15)
    ((finding,), _) = again.compare(run, known, rows, Path("."))
    assert finding.message.startswith("clip_t: recorded ") and "the same number" in finding.message


@pytest.mark.parametrize("environment", ["elsewhere", None])
def test_of_another_machine_the_numbers_lie_within_the_spread_of_seeds(plan, recorded, environment):
    known, rows = recorded
    run = plan.runs[0]
    known = _other(known, run.train, output="adapter.safetensors", environment=environment)
    known = _other(known, run.evaluate, output="metrics.json")  # follows from the adapter
    assert again.compare(run, known, rows, Path("."))[0] == []
    spread = again.seed_spread(list(rows.values()), "fd_effnet")
    honest = float(rows[run.name]["fd_effnet"])
    for away, found in ((2.9, 0), (-2.9, 0), (3.1, 1), (-3.1, 1)):
        rows[run.name]["fd_effnet"] = repr(honest + away * spread)
        findings, distance = again.compare(run, known, rows, Path("."))
        assert len(findings) == found
        assert (distance.metric, round(distance.seeds, 1)) == ("fd_effnet", abs(away))
        assert all(f.message.startswith("fd_effnet: recorded ") for f in findings)
        assert all("3 standard deviations over seeds" in f.message for f in findings)


def test_numbers_of_images_are_exact_on_every_machine(plan, recorded):
    known, rows = recorded
    run = plan.runs[0]
    known = _other(known, run.train, output="adapter.safetensors", environment="elsewhere")
    for row in list(rows.values())[3:]:
        row["n"] = "60"  # so that the seeds spread
    rows[run.name]["n"] = "7"
    ((finding,), _) = again.compare(run, known, rows, Path("."))
    assert finding.message == "n: recorded 7.0, computed again 6; allowed: the same number"


@pytest.mark.parametrize("factor, found", [(1.04, 0), (1.06, 1)])
def test_of_another_machine_and_one_seed_a_stated_share_is_allowed(plan, recorded, factor, found):
    known, rows = recorded
    run = plan.runs[0]
    known = _other(known, run.train, output="adapter.safetensors", environment="elsewhere")
    rows = {name: row for name, row in rows.items() if row["seed"] == "0"}
    rows[run.name]["fd_effnet"] = repr(float(rows[run.name]["fd_effnet"]) * factor)
    findings, distance = again.compare(run, known, rows, Path("."))
    assert distance.seeds is None and distance.metric == "fd_effnet"
    assert len(findings) == found
    assert all("5%: no point has two seeds" in f.message for f in findings)


def test_the_spread_of_seeds_is_pooled_over_points():
    rows = [
        {"point": point, "fd": value}
        for point, value in zip("aaabbc", ("1", "2", "3.5", "10", "14", "99"), strict=True)
    ]
    squares = np.var([1, 2, 3.5]) * 3 + np.var([10, 14]) * 2
    assert again.seed_spread(rows, "fd") == pytest.approx(np.sqrt(squares / 3))
    assert np.isnan(again.seed_spread(rows[4:], "fd"))
    assert np.isnan(again.seed_spread(rows, "clip_t"))


@pytest.fixture
def honest(origin, monkeypatch):
    """In place of Snakemake: the very files that honest runs give."""

    def make(folder, study, targets):
        assert not (folder / "results/train").exists() and not (folder / "reports").exists()
        assert (folder / "models").resolve() == (origin / "models").resolve()
        shutil.copytree(origin / "results", folder / "results", dirs_exist_ok=True)
        made.append((folder, list(targets)))

    made: list = []
    monkeypatch.setattr(again, "make", make)
    return made


def test_an_adapter_changed_with_its_sidecar_and_collected_is_found(plan, honest):
    run, other = plan.runs[:2]
    _forge(run.train, "adapter.safetensors", lambda p: p.write_bytes(p.read_bytes()[:-1] + b"!"))
    lineage.write(lineage.collect(plan), Path("reports/two"))
    ((finding,), distances) = again.retrain(STUDY, plan, [other.name, run.name])
    assert [(d.run, d.metric) for d in distances] == [(other.name, None)]
    assert (finding.kind, finding.subject) == ("changed", run.name)
    assert finding.message.startswith("train is the first stage")
    ((folder, targets),) = honest
    assert targets == [other.evaluate.sidecar, run.evaluate.sidecar] and not folder.exists()
    assert Path("models/emoji-unet/unet/config.json").exists()


def test_runs_without_a_record_are_absent_and_not_trained(plan, honest):
    run, folder = plan.runs[0], Path("reports/two")
    known = lineage.read(folder)
    rest = {k: r for k, r in known.records.items() if k != ("evaluate", run.evaluate.key)}
    lineage.write(replace(known, records=rest), folder)
    ((finding,), _) = again.retrain(STUDY, plan, [run.name])
    assert (finding.kind, finding.subject, honest) == ("absent", run.name, [])
    (folder / "runs.csv").unlink()
    with pytest.raises(UserError, match="runs.csv: missing"):
        again.retrain(STUDY, plan, [run.name])


@pytest.mark.slow
def test_a_run_trained_again_from_git_alone_has_the_same_bits(origin, tmp_path, monkeypatch):
    clone = origin.clone(tmp_path / "clone")
    monkeypatch.chdir(clone.folder)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    plan = build_plan(load_study(STUDY))
    run = plan.runs[0]
    known = lineage.read(Path("reports/two"))
    environment = known.environments[known.records["train", run.train.key].environment]
    assert again.same_kind(environment, sidecars.environment())
    found, (distance,) = again.retrain(STUDY.absolute(), plan, [run.name])
    assert (found, distance.run, distance.metric) == ([], run.name, None)
    assert clone.git("status", "--porcelain") == ""
    assert not (clone / "results/train").exists()
    assert not list(tmp_path.glob("fitspace-*"))


@pytest.fixture
def instead(plan, tmp_path, monkeypatch):
    """Writes a shell program that runs in place of Snakemake."""
    path = tmp_path / "program"
    path.touch(0o755)
    monkeypatch.setattr(again.sys, "executable", str(path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return lambda *lines: path.write_text("\n".join(["#!/bin/sh", *lines]))


def test_interrupted_it_leaves_neither_folder_nor_process(plan, instead, tmp_path, monkeypatch):
    """The program has a child, as a job is one."""
    pids = tmp_path / "pids"
    instead(f"sleep 100 & echo $$ $! > {pids}.new; mv {pids}.new {pids}", "wait")
    wait = subprocess.Popen.wait

    def interrupted(process, timeout=None):
        monkeypatch.setattr(subprocess.Popen, "wait", wait)
        while not pids.exists():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        again.retrain(STUDY, plan, [plan.runs[0].name])
    assert not list(tmp_path.glob("fitspace-*"))
    for pid in pids.read_text().split():
        assert not _runs(int(pid))


def test_the_users_own_profile_has_no_say(plan, instead, tmp_path, monkeypatch):
    """It may submit the audit's jobs to a cluster."""
    told = tmp_path / "told"
    instead(f"env > {told}", "exit 1")
    monkeypatch.setenv("SNAKEMAKE_PROFILE", "of-a-cluster")
    with pytest.raises(UserError, match="could not be made again"):
        again.retrain(STUDY, plan, [plan.runs[0].name])
    assert "FITSPACE_LIVE_TRACKING=0" in told.read_text()
    assert "SNAKEMAKE_PROFILE" not in told.read_text()


def _runs(pid: int) -> bool:
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        if state == "Z":  # ended; nobody has asked for its status yet
            return False
        time.sleep(0.01)
    return True


def test_paths_of_a_study_hold_in_another_folder(tmp_path, monkeypatch):
    here = tmp_path / "project"
    (here / "models/base").mkdir(parents=True)
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(here)
    study = {
        "base": "models/base",
        "judge": "hf-hub:org/name",
        "tasks": [{"name": "a", "path": "../pictures"}, {"name": "b", "style": "line"}],
        "train": {"lr": 1e-05},
    }
    write_json(here / "study.yaml", study)
    (here / "study.yaml").write_text((here / "study.yaml").read_text().replace("1e-05", "1.0e-5"))
    found = project.yaml.safe_load(again.elsewhere(here / "study.yaml"))
    assert found["base"] == str(here / "models/base") and found["judge"] == "hf-hub:org/name"
    assert [t.get("path") for t in found["tasks"]] == [str(tmp_path / "pictures"), None]
    assert found["train"] == study["train"] and os.path.isabs(found["tasks"][0]["path"])
