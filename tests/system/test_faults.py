"""What goes wrong by itself: kills, full and read-only disks, damaged files, clocks, divergence.

Every command here runs in a process of its own (see warm.py), on a copy of a finished project.
docs/reliability.md says what is guaranteed and names these tests.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from project import STUDY, Project, content
from warm import CLOCK, KILLED

# Stage -> the folder of its results.
ROOMS = {"prepare": "tasks", "reference": "reference", "train": "train", "sample": "sample",
         "evaluate": "evaluate"}  # fmt: skip
# The same of every stage: one of them always, the others where there is time.
STAGES = [s if s == "train" else pytest.param(s, marks=pytest.mark.slow) for s in ROOMS]


@pytest.fixture(scope="module")
def finished(origin, warm, tmp_path_factory):
    """A copy of the finished project that tests put back as it was."""
    return origin.copy(tmp_path_factory.mktemp("faults") / "project").warmed(warm.commands)


def folder(project: Project, stage: str) -> Path:
    """The results of a stage of the first trained run, or of its task."""
    return sorted((project / "results" / ROOMS[stage]).glob("[!n]*"))[0]


def bits(place: Path) -> dict[str, bytes]:
    """What a stage made: name -> bytes, without what differs from one time to the next."""
    found = {p.name: p.read_bytes() for p in place.iterdir()}
    return {n: b for n, b in found.items() if n not in {f"{s}.json" for s in ROOMS}}


@pytest.fixture
def apart(finished, tmp_path):
    """Put a stage's results aside: a function; afterwards they are back."""
    kept = []

    def put(place: Path) -> dict[str, bytes]:
        before = bits(place)
        kept.append((place, place.rename(finished / f"kept-{len(kept)}")))
        return before

    yield put
    for place, there in kept:
        shutil.rmtree(place, ignore_errors=True)
        there.rename(place)
    shutil.rmtree(finished / "results/.resume", ignore_errors=True)


@pytest.fixture
def reports_kept(finished):
    """The report's files as they are; put back afterwards."""
    before = finished.files("reports")
    kept = shutil.copytree(finished / "reports", finished / "kept-of-reports")
    yield before
    shutil.rmtree(finished / "reports")
    kept.rename(finished / "reports")


def refused(done, *words: str) -> None:
    """Exit code 2 and a message with these words; no traceback."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def leftovers(place: Path) -> list[str]:
    return [p.name for p in place.rglob(".*")] if place.exists() else []


# --- killed -----------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_any_write_it_is_made_again_with_the_same_bits(finished, warm, apart, stage):
    """Just before and just after each file takes its place, the sidecar included."""
    place = folder(finished, stage)
    before = apart(place)
    moments = 0
    while not (place / f"{stage}.json").exists():
        done = warm.fitspace(finished, stage, STUDY, place.name,
                             fault=KILLED.format(n=moments))  # fmt: skip
        assert done.returncode == -signal.SIGKILL, done.stderr
        moments += 1
        # At most what this one was writing: images and latents side by side, else one file.
        assert len(leftovers(place)) <= (2 if stage == "prepare" else 1)
    assert moments == 2 * (len(before) + 1)
    # Where the sidecar stands all is whole, and nothing is done again.
    done = warm.fitspace(finished, stage, STUDY, place.name)
    assert done.returncode == 0 and "finished already" in done.stderr
    assert bits(place) == before


# --- disks ------------------------------------------------------------------------------


@pytest.fixture
def mounted():
    """Mount file systems: a function of mount's arguments; they are unmounted afterwards."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small or read-only file system needs root")
    points = []

    def mount(*arguments: str) -> None:
        subprocess.run(["mount", *arguments], check=True)
        if arguments[-1] not in points:
            points.append(arguments[-1])

    yield mount
    for point in reversed(points):
        subprocess.run(["umount", point], check=True)


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_one_message_and_leaves_nothing_half(finished, warm, apart, mounted, stage):
    place = folder(finished, stage)
    needed = sum(-(-p.stat().st_size // 4096) for p in place.iterdir())
    before = apart(place)
    disk = str(place.parent)
    mounted("-t", "tmpfs", "-o", "size=4k", "tmpfs", disk)
    for pages in sorted({1, needed // 2, needed - 1} - {0}):
        mounted("-t", "tmpfs", "-o", f"remount,size={4 * pages}k", "tmpfs", disk)
        done = warm.fitspace(finished, stage, STUDY, place.name)
        refused(done, str(place.relative_to(finished.folder)), "No space left on device")
        assert not (place / f"{stage}.json").exists() and leftovers(place) == []
    mounted("-t", "tmpfs", "-o", "remount,size=64m", "tmpfs", disk)
    done = warm.fitspace(finished, stage, STUDY, place.name)
    assert done.returncode == 0, done.stderr
    assert bits(place) == before


def test_a_full_disk_leaves_the_report_that_was_there(finished, warm, mounted):
    """Where there is no room for what is new in it."""
    reports = finished / "reports"
    before = finished.files("reports")
    kept = shutil.copytree(reports, finished / "kept-reports")
    mounted("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(reports))
    shutil.copytree(kept, reports, dirs_exist_ok=True)
    disk = os.statvfs(reports)
    (reports / "filler").write_bytes(bytes(disk.f_bavail * disk.f_frsize))
    longer = finished / "params/longer.yaml"
    longer.write_text(yaml.safe_dump(content() | {"question": "why " * 500}))
    done = warm.fitspace(finished, "report", "params/longer.yaml", "--cached")
    refused(done, "reports/two", "No space left on device")
    (reports / "filler").unlink()
    longer.unlink()
    assert finished.files("reports") == before
    shutil.rmtree(kept)


@pytest.mark.parametrize("stage", ROOMS)
def test_read_only_results_are_one_message(finished, warm, apart, mounted, stage):
    place = folder(finished, stage)
    apart(place)
    results = str(finished / "results")
    mounted("--bind", results, results)
    mounted("-o", "remount,ro,bind", results)
    done = warm.fitspace(finished, stage, STUDY, place.name)
    refused(done, "cannot be written: Read-only file system")
    assert not place.exists()


# --- damaged files ----------------------------------------------------------------------

DAMAGES = {
    "a bit": lambda b: b[: len(b) // 2] + bytes([b[len(b) // 2] ^ 1]) + b[len(b) // 2 + 1 :],
    "truncated": lambda b: b[:-1],
}
INPUTS = [
    ("reference", "prepare", "images.safetensors"),
    ("reference", "prepare", "manifest.json"),
    ("train", "prepare", "latents.safetensors"),
    ("train", "prepare", "text.safetensors"),
    ("train", "prepare", "manifest.json"),
    ("sample", "prepare", "text.safetensors"),
    ("sample", "train", "adapter.safetensors"),
    ("sample", "train", "history.csv"),
    ("evaluate", "sample", "samples.safetensors"),
    ("evaluate", "reference", "features.safetensors"),
    ("report", "evaluate", "metrics.json"),
]


# A bit in each of them; the end of one of JSON and one of tensors, of others if there is time.
ENDS = INPUTS[1:3]
DAMAGED = [
    pytest.param(
        *place,
        damage,
        id="-".join((*place, how)),
        marks=pytest.mark.slow if how == "truncated" and place not in ENDS else (),
    )
    for place in INPUTS
    for how, damage in DAMAGES.items()
]


@pytest.mark.parametrize("stage, upstream, name, damage", DAMAGED)
def test_a_damaged_input_is_found_before_it_is_used(
    finished, warm, apart, stage, upstream, name, damage
):
    source = folder(finished, upstream)
    good = (source / name).read_bytes()
    command = ["report", STUDY, "--cached"]
    before = finished.files("reports")
    if stage != "report":
        place = folder(finished, stage)
        apart(place)
        command = [stage, STUDY, place.name]
    (source / name).write_bytes(damage(good))
    try:
        done = warm.fitspace(finished, *command)
    finally:
        (source / name).write_bytes(good)
    refused(done, f"{name}: changed since it was written")
    assert stage == "report" or not place.exists() or list(place.iterdir()) == []
    assert finished.files("reports") == before


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"outputs": 1}'])
def test_a_damaged_sidecar_is_one_message(finished, warm, apart, text):
    place = folder(finished, "sample")
    apart(place)
    sidecar = folder(finished, "train") / "train.json"
    good = sidecar.read_bytes()
    sidecar.write_text(text)
    try:
        done = warm.fitspace(finished, "sample", STUDY, place.name)
    finally:
        sidecar.write_bytes(good)
    refused(done, "train.json: not a sidecar", "to redo it")


# --- another base -----------------------------------------------------------------------


@pytest.mark.parametrize("key", ["base_sha256", "judge_sha256"])
def test_a_base_or_judge_that_the_study_was_not_made_for_is_refused(finished, warm, key):
    wrong = "0" * 64
    path = finished / "params/pinned.yaml"
    shown = json.loads(warm.fitspace(finished, "plan", STUDY, "--json").stdout)["digests"]
    try:
        path.write_text(yaml.safe_dump(content() | shown))
        assert warm.fitspace(finished, "plan", str(path)).returncode == 0
        path.write_text(yaml.safe_dump(content() | shown | {key: wrong}))
        done = warm.fitspace(finished, "plan", str(path))
    finally:
        path.unlink()
    refused(done, f"{key}: {wrong}", shown[key], "allowed: ")


def test_a_changed_base_is_another_base_and_never_a_silent_one(finished, warm):
    """Its digest is in every key: what the old one made is not taken for the new one's."""
    run = folder(finished, "sample").name
    index = finished / "models/emoji-unet/scheduler/scheduler_config.json"
    good, times = index.read_bytes(), index.stat()
    planned = warm.fitspace(finished, "plan", STUDY, "--json")
    assert json.loads(planned.stdout)["cached"]["sample"] == 6
    index.write_bytes(good.replace(b"0.00", b"0.01", 1))
    assert index.read_bytes() != good
    try:
        done = warm.fitspace(finished, "sample", STUDY, run)
        planned = warm.fitspace(finished, "plan", STUDY, "--json")
    finally:
        index.write_bytes(good)
        os.utime(index, ns=(times.st_atime_ns, times.st_mtime_ns))
    refused(done, "is not in study 'two' as it stands now")
    assert set(json.loads(planned.stdout)["cached"].values()) == {0}


@pytest.mark.parametrize("command", ["check", "plan", "fetch"])
def test_a_hub_id_without_network_is_one_message(finished, tmp_path, command):
    """On a machine that never saw it; `check` and `plan` need nothing of the network."""
    path = finished / "params/hub.yaml"
    path.write_text(yaml.safe_dump(content() | {"base": "someone/some-base"}))
    try:
        done = finished.fitspace(
            command, "params/hub.yaml", ok=False, HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path),
            HF_ENDPOINT="http://127.0.0.1:9",
        )  # fmt: skip
    finally:
        path.unlink()
    refused(done, "someone/some-base")
    said = "downloaded from the hub" if command == "fetch" else "run: fitspace fetch"
    assert said in done.stderr and len(done.stderr.splitlines()) <= 2


# --- the clock --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_clock_that_goes_back_changes_no_number(finished, warm, apart, reports_kept):
    places = {stage: folder(finished, stage) for stage in ROOMS}
    before = {stage: apart(place) for stage, place in places.items()}
    for stage, place in places.items():
        done = warm.fitspace(finished, stage, STUDY, place.name, fault=CLOCK)
        assert done.returncode == 0, done.stderr
        said = json.loads((place / f"{stage}.json").read_text())
        assert said["finished"] < said["started"]
        assert bits(place) == before[stage]
    assert warm.fitspace(finished, "report", STUDY, "--cached").returncode == 0
    # Only the seconds that the run made again took are others.
    old = table(reports_kept["reports/two/runs.csv"].decode())
    new = table((finished / "reports/two/runs.csv").read_text())
    assert [numbers(row) for row in new] == [numbers(row) for row in old]
    assert warm.fitspace(finished, "track", STUDY).returncode == 0


def test_files_from_the_future_make_nothing_again(finished, reports_kept):
    """Only the report follows times: Snakemake refuses to write one older than its inputs."""
    tomorrow = time.time() + 86_400
    times = {}
    for ago, room in enumerate(ROOMS.values()):  # and what comes later is older
        for path in (finished / "results" / room).rglob("*.*"):
            times[path] = int(tomorrow - 3600 * ago)
            os.utime(path, (times[path], times[path]))
    # As in a clone, where Snakemake remembers no checksums, and commands that were run are seen.
    for folder_ in (".snakemake/metadata", "results/logs"):
        shutil.rmtree(finished / folder_, ignore_errors=True)
    done = finished.snakemake("evaluated")
    assert {path: int(path.stat().st_mtime) for path in times} == times, done.stderr
    assert not {p.name for p in finished.folder.glob("results/logs/*")} & ROOMS.keys()
    assert finished.files("reports") == reports_kept


# --- divergence, and runs that fail -----------------------------------------------------


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def numbers(row: dict[str, str]) -> dict[str, str]:
    return {n: v for n, v in row.items() if not n.endswith(("seconds", "memory_mb"))}


@pytest.fixture(scope="module")
def diverged(origin, warm, tmp_path_factory):
    """The study with one more level, whose runs cannot but diverge; run to its report."""
    folder = tmp_path_factory.mktemp("diverged") / "project"
    project = origin.copy(folder).warmed(warm.commands)
    arms = content()["arms"]
    exploding = {"method": "adapter", "name": "exploding",
                 "factors": {"output": ["CA_in"]},
                 "settings": {"input": "SA_out", "width": 4, "scale": 1.0e20},
                 "train": {"lr": 10.0, "grad_clip": None}}  # fmt: skip
    project.study(arms=[arms[0], exploding, arms[1]])
    project.snakemake("all")
    return project


def test_a_diverged_run_is_a_row_that_says_so_and_the_study_finishes(diverged):
    rows = table((diverged / "reports/two/runs.csv").read_text())
    failed = [row for row in rows if row["status"] == "failed"]
    assert [(r["arm"], r["seed"]) for r in failed] == [("exploding", "0"), ("exploding", "1")]
    for row in failed:
        assert row["diverged"].startswith("the loss is ") and row["train_seconds"]
        assert not any(row[name] for name in ("fd_effnet", "clip_t", "clip_i", "n", "final_loss"))
    done = [row for row in rows if row["status"] == "ok"]
    assert len(done) == 6 and all(row["fd_effnet"] and not row["diverged"] for row in done)


def test_the_loss_is_in_the_ledger_and_in_no_mean(diverged, origin):
    ledger = table((diverged / "reports/two/ledger.csv").read_text())
    assert [(r["arm"], r["planned"], r["ok"], r["failed"]) for r in ledger] == [
        ("adapter", "4", "4", "0"), ("exploding", "2", "0", "2"), ("none", "2", "2", "0"),
        ("all", "8", "6", "2"),
    ]  # fmt: skip
    page = (diverged / "reports/two/report.html").read_text()
    assert "lost by output: CA_in 2 of 2" in page and "conditional on runs that finish" in page
    # What is said of the others is what it was without it.
    for name in ("anova.csv", "effects.csv", "cells.csv", "points.csv"):
        old, new = (table((p / "reports/two" / name).read_text()) for p in (origin, diverged))
        assert [numbers(row) for row in new] == [numbers(row) for row in old]


def test_a_diverged_run_keeps_its_evidence(diverged):
    import numpy as np
    from safetensors.numpy import load_file

    (place,) = (
        p for p in (diverged / "results/train").glob("*") if "1e+20" in p.name and "~s0~" in p.name
    )
    said = json.loads((place / "train.json").read_text())["facts"]
    losses = [float(row["loss"]) for row in table((place / "history.csv").read_text())]
    assert not np.isfinite(losses[-1]) and np.isfinite(losses[:-1]).all()
    assert said["diverged"] == f"the loss is {losses[-1]} at step {len(losses) - 1}"
    assert load_file(place / "adapter.safetensors")
    sample = diverged / "results/sample" / place.name.rpartition("~")[0]
    (samples,) = sample.parent.glob(f"{sample.name}~*/samples.safetensors")
    assert len(load_file(samples)["images"]) == 0


def test_nobody_loads_the_parameters_of_a_diverged_run(diverged, warm):
    place = sorted((diverged / "results/train").glob("*1e+20*"))[0]
    done = warm.fitspace(diverged, "export", str(place), "--out", "out")
    refused(done, "adapter.safetensors: is of a run that diverged: the loss is ")
    assert not (diverged / "out").exists()


@pytest.mark.slow
def test_a_diverged_run_is_not_trained_again_and_verifies(diverged, warm):
    done = diverged.snakemake("all")
    assert "Nothing to be done" in done.stdout + done.stderr
    for tier in ("hash", "regenerate", "reevaluate"):
        done = warm.fitspace(diverged, "audit", STUDY, "--tier", tier)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_diverged_run_is_a_failed_one_in_mlflow(diverged, warm):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{diverged / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("two").experiment_id
    runs = {r.info.run_name: r for r in client.search_runs([experiment])}
    failed = {name for name, run in runs.items() if run.info.status == "FAILED"}
    rows = table((diverged / "reports/two/runs.csv").read_text())
    assert failed == {row["run"] for row in rows if row["status"] == "failed"}
    assert all(runs[name].data.tags["fitspace.diverged"].startswith("the loss") for name in failed)
    assert " 0 new, 0 updated" in warm.fitspace(diverged, "track", STUDY).stdout.replace("(", " ")


def test_samples_that_are_not_finite_are_a_divergence_too(finished, warm, apart):
    place = folder(finished, "sample")
    apart(place)
    spoil = """
import fitspace.stages, torch
from fitspace import methods
load = methods.load
def spoiled(model, path, *where):
    attachment = load(model, path, *where)
    with torch.no_grad():
        next(iter(attachment.trainable.values())).fill_(torch.nan)
    return attachment
methods.load = spoiled
"""
    done = warm.fitspace(finished, "sample", STUDY, place.name, fault=spoil)
    assert done.returncode == 0 and "diverged: " in done.stderr
    said = json.loads((place / "sample.json").read_text())["facts"]
    assert said["images"] == 0 and "samples are not finite" in said["diverged"]


def test_a_run_that_fails_is_named_and_the_rest_is_reported_on_demand(origin, warm, tmp_path):
    """Its job fails, all others go on; the report of what is there is one command more."""
    project = origin.copy(tmp_path / "project").warmed(warm.commands)
    (victim,) = (p.name for p in (project / "results/evaluate").glob("*FFN_in*~s1~*"))
    blocked = victim.rpartition("~")[0]
    for room in ("train", "sample", "evaluate"):
        for place in (project / "results" / room).glob(f"{blocked}~*"):
            shutil.rmtree(place)
    # Another run of which only metrics have to be made again.
    shutil.rmtree(next((project / "results/evaluate").glob("none~*~s1~*")))
    before = project.files("reports")
    wrapper = project / "bin/fitspace"
    wrapper.parent.mkdir()
    wrapper.write_text(
        f'#!/bin/sh\ncase "$*" in "train "*"{blocked}~"*) echo "fitspace: no luck" >&2; exit 2;; '
        "esac\n"
        f'exec {warm.commands}/fitspace "$@"\n'
    )
    wrapper.chmod(0o755)
    path = f"{wrapper.parent}:{project.environment['PATH']}"
    done = project.run("snakemake", "--cores", "2", "--keep-going", "--config",
                       f"study={STUDY}", ok=False, PATH=path)  # fmt: skip
    assert done.returncode == 1 and blocked in done.stdout + done.stderr
    assert len(list((project / "results/evaluate").glob("*/evaluate.json"))) == 5
    assert project.files("reports") == before  # not silently another one

    refused(warm.fitspace(project, "report", STUDY, "--cached"), victim)
    refused(warm.fitspace(project, "report", STUDY, "--partial"), "--cached")
    done = warm.fitspace(project, "report", STUDY, "--cached", "--partial")
    assert done.returncode == 0, done.stderr
    assert f"missing: {victim}: no train: fitspace: no luck" in done.stderr
    rows = {row["run"]: row for row in table((project / "reports/two/runs.csv").read_text())}
    assert rows[victim]["status"] == "missing" and not rows[victim]["fd_effnet"]
    old = {row["run"]: row for row in table(before["reports/two/runs.csv"].decode())}
    kept = [numbers(row) for name, row in rows.items() if name != victim]
    assert kept == [numbers(row) for name, row in old.items() if name != victim]
    page = (project / "reports/two/report.html").read_text()
    assert "lost by output: FFN_in 1 of 2" in page and f"{victim}: missing" in page
    done = warm.fitspace(project, "audit", STUDY)
    assert done.returncode == 0, done.stdout

    # And all of it later, from where it stood.
    project.snakemake("reports/two/report.html")
    after = table((project / "reports/two/runs.csv").read_text())
    assert [numbers(row) for row in after] == [numbers(row) for row in old.values()]
