"""Drivers that are killed, started twice, started again: one job a stage, and nothing is lost.

Jobs of a driver that got SIGKILL go on: here, as on a cluster (tests/system/test_slurm.py).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from project import STUDY, Project

from fitspace.plan import Stage
from fitspace.stages import running

TRAIN = {"steps": 120, "batch_size": 4, "lr": 1.0e-3}


def start(project: Project, *arguments: str) -> subprocess.Popen:
    """A driver in a session of its own: what kills it does not reach its jobs."""
    return subprocess.Popen(
        ["snakemake", "--cores", "2", "--config", f"study={STUDY}", *arguments, "--", "all"],
        cwd=project.folder,
        env=project.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def until(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def trained(project: Project) -> list[dict]:
    """Sidecars of the trainings that these tests start."""
    found = (json.loads(p.read_text()) for p in (project / "results/train").glob("*/train.json"))
    return [facts for facts in found if facts["material"]["train"]["steps"] == TRAIN["steps"]]


@pytest.mark.slow
def test_a_second_driver_is_refused_and_a_killed_ones_jobs_count(origin, tmp_path):
    project = origin.copy(tmp_path / "project")
    project.study(train=TRAIN, seeds=[0])
    claims = project / "results/.cache/claims"
    first = start(project)
    try:
        until(lambda: len(list(claims.glob("train~*"))) == 2)

        second = start(project)
        said, _ = second.communicate()
        assert second.returncode == 1 and "locked" in said and "Traceback" not in said
        assert first.poll() is None and trained(project) == []
    finally:
        first.kill()
        first.wait()

    # Its lock stays, so that nobody starts a driver unawares; its jobs go on.
    locked = start(project)
    said, _ = locked.communicate()
    assert locked.returncode == 1 and "--unlock" in said
    project.run("snakemake", "--unlock", "--config", f"study={STUDY}")
    assert len(running_claims(project)) == 2
    again = datetime.now(UTC).isoformat()
    third = start(project)
    said, _ = third.communicate()
    assert third.returncode == 0, said
    assert "2 jobs of an earlier start are still at work" in said
    assert [facts["started"] < again for facts in trained(project)] == [True, True]
    assert list(claims.iterdir()) == [] and not list((project / "results/.resume").glob("*"))
    assert project.fitspace("audit", STUDY).returncode == 0


def test_snakemake_never_deletes_a_finished_result(origin, tmp_path):
    """Told to run finished jobs again, it finds them finished."""
    project = origin.copy(tmp_path / "project")
    rooms = [f"results/{room}" for room in ("tasks", "reference", "train", "sample", "evaluate")]
    before = project.files(*rooms)
    project.run("snakemake", "--cores", "2", "--forceall", "--config", f"study={STUDY}", "--",
                "evaluated")  # fmt: skip
    assert project.files(*rooms) == before
    logs = list((project / "results/logs/train").glob("*.log"))
    assert len(logs) == 4 and all("finished already" in log.read_text() for log in logs)


def running_claims(project: Project) -> list[str]:
    before = Path.cwd()
    os.chdir(project.folder)
    try:
        return running.others()
    finally:
        os.chdir(before)


@pytest.mark.slow
def test_two_drivers_that_were_told_not_to_look_still_agree(origin, tmp_path):
    project = origin.copy(tmp_path / "project")
    before = {
        n: b for n, b in project.files("results").items() if n.endswith("adapter.safetensors")
    }
    for room in ("train", "sample", "evaluate"):
        subprocess.run(["rm", "-r", str(project / "results" / room)], check=True)
    drivers = [start(project, "--nolock", "--retries", "2", "--keep-going") for _ in range(2)]
    for driver in drivers:
        driver.communicate()
    done = project.snakemake("all")
    assert done.returncode == 0
    after = {n: b for n, b in project.files("results").items() if n.endswith("adapter.safetensors")}
    assert after == before
    assert project.fitspace("audit", STUDY).returncode == 0


@pytest.mark.slow
def test_killed_at_any_moment_and_started_again_a_study_ends_in_the_same_results(origin, tmp_path):
    """Driver and jobs at once, as when a machine goes down, several times."""
    project = origin.copy(tmp_path / "project")
    kinds = (".safetensors", "history.csv", "sheet.png", "metrics.json")
    before = {n: b for n, b in project.files("results").items() if n.endswith(kinds)}
    subprocess.run(["rm", "-r", str(project / "results")], check=True)
    kills = 0
    while True:
        driver = start(project)
        try:
            driver.communicate(timeout=[9, 14, 21, 33, 13, 17][kills] if kills < 6 else None)
        except subprocess.TimeoutExpired:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.communicate()
            kills += 1
            project.run("snakemake", "--unlock", "--config", f"study={STUDY}")
            continue
        assert driver.returncode == 0
        break
    assert kills >= 3
    assert {n: b for n, b in project.files("results").items() if n.endswith(kinds)} == before
    assert project.fitspace("audit", STUDY).returncode == 0


# --- claims -----------------------------------------------------------------------------


@pytest.fixture
def stage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Stage("train", Path("results/train/a~1"), "1", {})


def fork(work) -> int:
    """Run ``work`` in a process of its own; its id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def test_processes_work_on_a_stage_one_after_another(stage):
    wait, go = os.pipe()

    def work():
        os.close(go)
        os.read(wait, 1)  # all start at once
        with running.claimed(stage):
            log = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(log, b"(")
            time.sleep(0.02)
            os.write(log, b")")

    children = [fork(work) for _ in range(12)]
    os.close(go)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    assert Path("log").read_text() == "()" * 12
    assert list(running.CLAIMS.iterdir()) == []


def test_stages_do_not_wait_for_each_other(stage):
    other = Stage("sample", Path("results/sample/a~1"), "1", {})
    with running.claimed(stage), running.claimed(other):
        assert len(list(running.CLAIMS.iterdir())) == 2


def test_the_claim_of_a_killed_process_is_free(stage, capsys):
    def die():
        with running.claimed(stage):
            os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(fork(die), 0)
    assert len(list(running.CLAIMS.iterdir())) == 1
    with running.claimed(stage):
        pass
    os.waitpid(fork(die), 0)
    assert running.others() == [] and list(running.CLAIMS.iterdir()) == []


def test_who_holds_a_claim_is_said_and_waited_for(stage, capsys):
    go, gone = os.pipe()

    def hold():
        with running.claimed(stage):
            os.write(gone, b"x")
            time.sleep(0.6)

    child = fork(hold)
    os.read(go, 1)
    until(lambda: "process" in running.others()[0])
    (who,) = running.others()
    assert f"process {child} on " in who and "train a~1" in who
    began = time.monotonic()
    running.wait_for_others(seconds=0.05)
    assert time.monotonic() - began > 0.2
    said = capsys.readouterr().err
    assert "1 jobs of an earlier start" in said and who in said
    os.waitpid(child, 0)


@pytest.mark.parametrize("job", ["77", None])
def test_a_claim_names_its_job(stage, monkeypatch, job):
    who = f"SLURM job {job} on " if job else f"process {os.getpid()} on "
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if job:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    with running.claimed(stage):
        (claim,) = running.CLAIMS.iterdir()
        assert claim.read_text().startswith(who)


def test_a_file_system_without_locks_costs_a_warning(stage, monkeypatch, capsys):
    def flock(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(running.fcntl, "flock", flock)
    with running.claimed(stage):
        pass
    assert "no file locks here" in capsys.readouterr().err
    assert running.others() == []


def test_finished_work_is_not_done_again(stage, capsys):
    from fitspace.core.files import write_text
    from fitspace.stages.sidecars import now, write_sidecar

    done = []

    def make():
        done.append(1)
        write_text(stage.folder / "a.txt", "a")
        facts = {"trainable": 1}
        write_sidecar(
            stage, inputs=[], outputs=[stage.folder / "a.txt"], started=now(), facts=facts
        )

    running.once(stage, make)
    running.once(stage, make)
    assert len(done) == 1 and "finished already" in capsys.readouterr().err
    (stage.folder / "a.txt").unlink()
    running.once(stage, make)
    assert len(done) == 2
