"""Drivers that are killed, started twice, started again: one job a stage, and nothing is lost.

Jobs of a driver that got SIGKILL go on: here, as on a cluster (tests/system/test_slurm.py).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from drivers import end, start, until
from project import STUDY, Project

from fitspace.plan import Stage
from fitspace.stages import running

TRAIN = {"steps": 5, "batch_size": 4, "lr": 1.0e-3}


def claims(project: Project, stage: str) -> list[str]:
    """Who works on a stage of this project, of each run that somebody works on."""
    found = []
    for path in (project / "results/.cache/claims").glob(f"{stage}~*"):
        with suppress(FileNotFoundError):  # given back meanwhile
            found.append(path.read_text())
    return [who for who in found if who]


def sidecars(project: Project, stage: str) -> list[Path]:
    return list((project / "results").glob(f"*/*/{stage}.json"))


def trained(project: Project) -> list[Path]:
    """Sidecars of the trainings that these tests start."""
    made = ((p, json.loads(p.read_text())["material"]) for p in sidecars(project, "train"))
    return [path for path, material in made if material["train"]["steps"] == TRAIN["steps"]]


@pytest.mark.slow
def test_a_second_driver_is_refused_and_a_killed_ones_jobs_count(origin, tmp_path):
    project = origin.copy(tmp_path / "project")
    project.study(train=TRAIN, seeds=[0])
    log = tmp_path / "third.log"
    first, third, jobs = start(project), None, {}

    def stopped() -> bool:
        """Both trainings have begun, and end when the third driver has seen them."""
        for who in claims(project, "train"):
            if (job := int(who.split()[1])) not in jobs:  # "process 77 on ..."
                os.kill(job, signal.SIGSTOP)
                jobs[job] = who
        return len(jobs) == 2

    try:
        until(stopped, first)
        second = start(project)
        said, _ = second.communicate()
        assert second.returncode == 1 and "locked" in said and "Traceback" not in said
        assert first.poll() is None
        first.kill()
        first.wait()

        # Its lock stays, so that nobody starts a driver unawares; its jobs are still there.
        locked = start(project)
        said, _ = locked.communicate()
        assert locked.returncode == 1 and "--unlock" in said
        project.run("snakemake", "--unlock", "--config", f"study={STUDY}")
        assert sorted(claims(project, "train")) == sorted(jobs.values())
        assert trained(project) == []
        with log.open("w") as file:
            third = start(project, output=file)
        until(lambda: "2 jobs of an earlier start are still at work" in log.read_text(), third)
        assert all(who in log.read_text() for who in jobs.values())
        for job in jobs:
            os.kill(job, signal.SIGCONT)
        assert third.wait() == 0, log.read_text()
    finally:
        for driver in filter(None, (first, third)):
            end(driver)
    # They made both, and nobody else did: of the third driver's jobs none is a training.
    (planned,) = (line for line in log.read_text().splitlines() if " jobs: " in line)
    assert "2 evaluate" in planned and "train" not in planned
    assert len(trained(project)) == 2
    assert list((project / "results/.cache/claims").iterdir()) == []
    assert not list((project / "results/.resume").glob("*"))
    assert project.fitspace("audit", STUDY).returncode == 0


@pytest.mark.slow
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


# Of a study that runs: what has happened when driver and jobs are killed, one after the other.
# What lasts moments only may have passed unseen; what it leaves behind is then the sign.
MOMENTS = {
    "the task is prepared": lambda p: claims(p, "prepare") or sidecars(p, "train"),
    "two runs train": lambda p: len(claims(p, "train")) == 2 or sidecars(p, "train"),
    "a run is trained": lambda p: sidecars(p, "train"),
    "a run is sampled": lambda p: claims(p, "sample") or sidecars(p, "sample"),
    "a run has its samples": lambda p: sidecars(p, "sample"),
    "a run is evaluated": lambda p: claims(p, "evaluate") or sidecars(p, "evaluate"),
    "all runs are evaluated": lambda p: len(sidecars(p, "evaluate")) == 6,
}


@pytest.mark.slow
def test_killed_at_any_moment_and_started_again_a_study_ends_in_the_same_results(origin, tmp_path):
    """Driver and jobs at once, as when a machine goes down, several times."""
    project = origin.copy(tmp_path / "project")
    kinds = (".safetensors", "history.csv", "sheet.png", "metrics.json")

    def results() -> dict[str, bytes]:
        """Without the cache of features, whose files have metadata in an order that varies."""
        found = project.files("results").items()
        return {n: b for n, b in found if n.endswith(kinds) and "/.features/" not in n}

    before = results()
    for folder in ("results", "reports/two"):
        subprocess.run(["rm", "-r", str(project / folder)], check=True)
    for come in MOMENTS.values():
        driver = start(project)
        try:
            until(lambda come=come: come(project), driver)
        finally:
            end(driver)
        project.run("snakemake", "--unlock", "--config", f"study={STUDY}")
    project.snakemake("all")
    assert results() == before
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


def test_who_holds_a_claim_is_said_and_waited_for(stage, monkeypatch, capsys):
    (held, hold), (end, ended) = os.pipe(), os.pipe()

    def work():
        with running.claimed(stage):
            os.write(hold, b"x")
            os.read(end, 1)

    child = fork(work)
    os.read(held, 1)
    (who,) = running.others()
    assert f"process {child} on " in who and "train a~1" in who
    looks = []

    def pause(seconds):
        looks.append(running.others())
        if len(looks) == 3:
            os.write(ended, b"x")
            os.waitpid(child, 0)

    monkeypatch.setattr(running, "time", SimpleNamespace(sleep=pause))
    running.wait_for_others()
    assert looks == [[who]] * 3
    said = capsys.readouterr().err
    assert said.count("1 jobs of an earlier start") == 1 and who in said


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
