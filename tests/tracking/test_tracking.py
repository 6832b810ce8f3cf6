"""Runs in MLflow: against a real server, and as files."""

import csv
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from project import STUDY, Project
from recorded import light_copy

from fitspace.core.errors import UserError
from fitspace.plan import build_plan, load_study
from fitspace.stages.sidecars import now
from fitspace.tracking import importing, sending, track
from fitspace.tracking import server as mlflow
from fitspace.tracking.importing import KEY, STUDY_RUN
from fitspace.tracking.sending import LIVE, SEEN


@pytest.fixture(scope="module")
def server(empty, tmp_path_factory):
    """A real server on loopback; yields its address."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty, folder / "server.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    store = ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/server.db"]
    place = ["--artifacts-destination", str(folder / "artifacts")]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, *store, *place],
            cwd=folder,
            env=os.environ | quiet,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(address, process, folder / "log")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(address: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(3000):  # a busy machine takes minutes to import it
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
                assert answer.read() == b"OK"
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A database with nothing in it: to make one takes longer than an import."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    mlflow.library().MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def project(origin, empty, tmp_path, monkeypatch):
    """The finished study, not yet in MLflow, as this process's working folder."""
    copied = light_copy(origin, tmp_path / "project")
    shutil.copy(empty, copied / "mlflow.db")
    shutil.rmtree(copied / "mlartifacts", ignore_errors=True)
    monkeypatch.chdir(copied.folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where the locks of servers are
    monkeypatch.setattr(tempfile, "tempdir", None)
    return copied


@pytest.fixture
def served(project, server, monkeypatch):
    """The same, with the server to track to, and nothing of the study in it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    client = mlflow.library().MlflowClient(server)
    found = client.get_experiment_by_name("two")
    if found is not None:
        client.rename_experiment(found.experiment_id, f"two-{time.monotonic_ns()}")
    return project


def plan():
    return build_plan(load_study(Path(STUDY)))


def client():
    return mlflow.library().MlflowClient(mlflow.client_uri(mlflow.tracking_uri()))


def in_mlflow(experiment="two"):
    """Every run of the study's experiment that is not deleted."""
    found = client().get_experiment_by_name(experiment)
    return client().search_runs([found.experiment_id]) if found else []


def children():
    """Key -> run; each key once, each whole, each under the one run of the study."""
    runs = in_mlflow()
    (parent,) = [r for r in runs if r.data.tags.get(KEY) == STUDY_RUN]
    below = [r for r in runs if r.data.tags.get(KEY) not in (None, STUDY_RUN)]
    assert {r.info.status for r in runs} == {"FINISHED"}
    assert {r.data.tags["mlflow.parentRunId"] for r in below} <= {parent.info.run_id}
    found = {r.data.tags[KEY]: r for r in below}
    assert len(found) == len(below)
    return found


def counts(tracked):
    return tracked.runs, tracked.new, tracked.updated, tracked.unfinished


def milliseconds(time: str) -> int:
    return int(datetime.fromisoformat(time).timestamp() * 1000)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- what a run says ----------------------------------------------------------------------


def test_a_server_has_all_that_the_files_say(served):
    assert counts(track(plan())) == (6, 6, 0, 0)
    runs = children()
    with (served / "reports/two/runs.csv").open() as file:
        rows = {row["evaluate_key"]: row for row in csv.DictReader(file)}
    assert runs.keys() == rows.keys()
    for planned in plan().runs:
        row, run = rows[planned.evaluate.key], runs[planned.evaluate.key]
        assert run.info.run_name == row["run"]
        _check_params(planned, row, run.data.params)
        _check_metrics(planned, row, run)
        _check_digests(planned, run.data.tags)
        _check_artefacts(planned, run.info.run_id)
        _check_dataset(planned, run)
        own = [stage for stage in planned.stages if stage.name in ("train", "sample", "evaluate")]
        made = [json.loads(stage.sidecar.read_text()) for stage in own]
        spans = [(milliseconds(m["started"]), milliseconds(m["finished"])) for m in made]
        assert run.info.start_time == min(spans)[0]
        assert run.info.end_time - run.info.start_time == sum(end - start for start, end in spans)
    again = {r.info.run_id: r.to_dictionary() for r in in_mlflow()}
    assert counts(track(plan())) == (6, 0, 0, 0)
    assert {r.info.run_id: r.to_dictionary() for r in in_mlflow()} == again


def _check_params(planned, row, params):
    for name in ("point", "arm", "method", "task", "seed", "output"):
        assert params.get(name, "") == row[name]
    settings = {f"settings.{k}": str(v) for k, v in planned.point.settings.items()}
    settings |= {f"train.{k}": str(v) for k, v in (planned.point.train or {}).items()}
    settings |= {"sample.prompts": "6", "sample.steps": "3", "sample.guidance": "2.0"}
    assert settings.items() <= params.items()
    assert params.keys() - settings.keys() <= {"point", "arm", "method", "task", "seed", "output"}


def _check_metrics(planned, row, run):
    wanted = json.loads((planned.evaluate.folder / "metrics.json").read_text())
    against_n = wanted.pop("against_n")
    assert wanted.items() <= run.data.metrics.items()
    assert run.data.metrics["trainable"] == float(row["trainable"])
    for name in ("train_seconds", "sample_seconds", "peak_memory_mb"):
        assert run.data.metrics.get(f"system/{name}", "") == (float(row[name] or 0) or "")
    history = client().get_metric_history
    found = history(run.info.run_id, "against_n/fd_effnet")
    assert [(m.step, m.value) for m in found] == [(c["n"], c["fd_effnet"]) for c in against_n]
    if planned.train is None:
        assert "loss" not in run.data.metrics
        return
    with (planned.train.folder / "history.csv").open() as file:
        steps = list(csv.DictReader(file))
    for name in ("loss", "lr"):
        found = [(m.step, m.value) for m in history(run.info.run_id, name)]
        assert found == [(int(s["step"]), float(s[name])) for s in steps] and len(found) == 3


def _check_digests(planned, tags):
    for stage in planned.stages:
        assert tags[f"fitspace.{stage.name}.key"] == stage.key
        assert tags[f"fitspace.{stage.name}.sha256"] == sha256(stage.sidecar)
        for path in stage.folder.iterdir():
            if path != stage.sidecar:
                assert tags[f"fitspace.{stage.name}.{path.name}.sha256"] == sha256(path)
    sidecar = json.loads(planned.evaluate.sidecar.read_text())["environment"]
    assert tags["fitspace.base.digest"] == planned.sample.material["base"]
    assert len(tags["fitspace.judge.digest"]) == 64
    assert tags["mlflow.source.git.commit"] == sidecar["git"]["commit"]
    assert tags["fitspace.commit"] == sidecar["git"]["commit"]
    assert tags["fitspace.source.sha256"] == sidecar["source_sha256"]
    assert f"torch=={sidecar['packages']['torch']}" in tags["fitspace.packages"].split()


def _check_artefacts(planned, run):
    names = sorted(item.path for item in client().list_artifacts(run))
    assert names == ["references.json", "sheet.png"]
    folder = Path("fetched") / run
    folder.mkdir(parents=True)
    sheet = Path(client().download_artifacts(run, "sheet.png", str(folder)))
    assert sheet.read_bytes() == (planned.sample.folder / "sheet.png").read_bytes()
    listed = client().download_artifacts(run, "references.json", str(folder))
    files = json.loads(Path(listed).read_text())["files"]
    assert all(sha256(Path(f["path"])) == f["sha256"] for f in files)
    here = {p.as_posix() for stage in planned.stages for p in stage.folder.iterdir()}
    assert {f["path"] for f in files} == here


def _check_dataset(planned, run):
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, len(used.dataset.digest)) == ("mine", 36)
    assert json.loads(used.dataset.source)["uri"] == planned.prepare.folder.as_posix()
    use = "training" if planned.train else "evaluation"
    assert {t.key: t.value for t in used.tags} == {"mlflow.data.context": use}


def test_the_study_s_run_says_what_it_asks_and_how_far_it_is(project):
    project.study(question="Which one?")
    track(plan())
    (parent,) = [r for r in in_mlflow() if r.data.tags[KEY] == STUDY_RUN]
    assert parent.data.tags["mlflow.note.content"] == "Two points\n\nWhich one?"
    assert parent.data.tags["fitspace.runs"] == "6 of 6 finished"
    kind = client().get_experiment(parent.info.experiment_id).tags["mlflow.experimentKind"]
    assert kind == "custom_model_development"


# --- again, and what is not all here --------------------------------------------------------


def _away(paths, name="away"):
    """Move paths out of results, to where ``_back`` finds them."""
    moved = [(path, Path(name) / path) for path in paths]
    for path, to in moved:
        to.parent.mkdir(parents=True, exist_ok=True)
        path.rename(to)
    return moved


def _back(moved):
    for path, to in moved:
        to.rename(path)


def test_runs_that_finish_later_join_the_others(project):
    moved = _away([r.evaluate.folder for r in plan().runs[:2]])
    assert counts(track(plan())) == (4, 4, 0, 2)
    before = {r.info.run_id for r in in_mlflow()}
    _back(moved)
    assert counts(track(plan())) == (6, 2, 0, 0)
    assert len(children()) == 6 and before < {r.info.run_id for r in in_mlflow()}


def test_metrics_alone_are_imported_and_completed_when_more_is_pulled(project):
    everything = [p for p in Path("results").iterdir() if p.name not in ("evaluate", ".cache")]
    moved = _away(everything)
    assert counts(track(plan())) == (6, 6, 0, 0)
    poor = children()
    assert all("loss" not in run.data.metrics for run in poor.values())
    adapters = [run for run in poor.values() if "fitspace.train.key" in run.data.tags]
    # From provenance.json.
    assert all("fitspace.train.adapter.safetensors.sha256" in r.data.tags for r in adapters)
    assert len(adapters) == 4
    _back(moved)
    assert counts(track(plan())) == (6, 0, 6, 0)
    rich = children()
    assert sum("loss" in run.data.metrics for run in rich.values()) == 4
    _away(everything, "again")  # and somebody who has the metrics alone takes nothing away
    assert counts(track(plan())) == (6, 0, 0, 0)
    assert {r.info.run_id for r in children().values()} == {r.info.run_id for r in rich.values()}


CHANGED = {
    "metrics": ("evaluate", "metrics.json"),
    "curves": ("train", "history.csv"),
    "sheet": ("sample", "sheet.png"),
}


@pytest.mark.parametrize("stage, name", CHANGED.values(), ids=CHANGED)
def test_a_changed_file_is_named_and_nothing_is_imported(project, stage, name):
    chosen = [getattr(r, stage) for r in plan().runs if r.train][:2]
    for found in chosen:
        path = found.folder / name
        path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UserError) as error:
        track(plan())
    assert len(error.value.problems) == 2
    for found, problem in zip(chosen, error.value.problems, strict=True):
        assert str(found.folder / name) in problem and "changed" in problem
    assert in_mlflow() == []


def test_a_run_made_again_with_other_numbers_takes_the_old_one_s_place(project):
    track(plan())
    before, stage = children(), plan().runs[0].evaluate
    metrics = json.loads((stage.folder / "metrics.json").read_text()) | {"clip_t": 0.5}
    (stage.folder / "metrics.json").write_text(json.dumps(metrics))
    sidecar = json.loads(stage.sidecar.read_text())
    path = stage.folder / "metrics.json"
    sidecar["outputs"][0] |= {"sha256": sha256(path), "size": path.stat().st_size}
    stage.sidecar.write_text(json.dumps(sidecar))
    assert counts(track(plan())) == (6, 0, 1, 0)
    after = children()
    assert after[stage.key].data.metrics["clip_t"] == 0.5
    assert [k for k in after if after[k].info.run_id != before[k].info.run_id] == [stage.key]


def test_what_a_user_deleted_in_mlflow_comes_back(project):
    track(plan())
    victim = children()[plan().runs[0].evaluate.key]
    client().delete_run(victim.info.run_id)
    assert counts(track(plan())) == (6, 1, 0, 0)
    client().delete_experiment(victim.info.experiment_id)
    track(plan())
    assert len(children()) == 6


# --- interrupted, and two at once -----------------------------------------------------------

POINTS = {
    "before the first": ("create_run", 1),
    "study's run made": ("create_run", 2),
    "run made": ("log_batch", 1),
    "half of its figures": ("log_inputs", 2),
    "before its content tag": ("set_tag", 2),
    "before it is finished": ("set_terminated", 3),
    "before the study's end": ("set_terminated", 7),
}


@contextmanager
def _stopped_at(monkeypatch, method, call, how):
    """Call ``how`` in place of the n-th call of a client's method."""
    kind, left = mlflow.library().MlflowClient, [call]
    original = getattr(kind, method)

    def counted(*arguments, **named):
        left[0] -= 1
        return how() if left[0] == 0 else original(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(kind, method, counted)
        yield


def _interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("method, call", POINTS.values(), ids=POINTS)
def test_an_interrupted_import_is_completed_by_the_next(project, monkeypatch, method, call):
    with _stopped_at(monkeypatch, method, call, _interrupt), pytest.raises(KeyboardInterrupt):
        track(plan())
    track(plan())
    assert len(children()) == 6


KILLED = """
import os, signal, sys
from mlflow import MlflowClient
from fitspace.cli import main
original, left = MlflowClient.log_dict, [3]
def log_dict(*arguments, **named):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **named)
MlflowClient.log_dict = log_dict
main(["track", sys.argv[1]])
"""


def test_a_killed_import_to_a_server_is_completed_by_the_next(served):
    done = served.run(sys.executable, "-c", KILLED, STUDY, ok=False)
    assert done.returncode == -signal.SIGKILL
    left = sorted(run.info.status for run in in_mlflow())
    assert left == ["FINISHED", "FINISHED", "RUNNING", "RUNNING"]
    assert counts(track(plan())) == (6, 4, 0, 0)
    assert len(children()) == 6


@pytest.mark.slow
def test_two_at_once_on_a_new_database_give_each_run_once(project):
    (project / "mlflow.db").unlink()
    command = [sys.executable, "-m", "fitspace.cli", "track", STUDY]
    started = [
        subprocess.Popen(
            command,
            cwd=project.folder,
            env=project.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert sorted("6 new" in out for out, _ in said) == [False, True]
    assert [err for _, err in said] == ["", ""]  # no migrations, no progress, no advice
    wanted = "6 runs of study two in sqlite:///mlflow.db ("
    assert all(out.startswith(wanted) and out.count("\n") == 1 for out, _ in said)
    assert len(children()) == 6


MEETINGS = [
    pytest.param("_parent", 1, id="before either has a study's run"),
    pytest.param("_import", 1, id="before the first run", marks=pytest.mark.slow),
    pytest.param("_import", 4, id="in the middle"),
    pytest.param("_import", 6, id="before the last", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("method, call", MEETINGS)
def test_another_machine_at_the_same_time_leaves_no_duplicates(served, monkeypatch, method, call):
    original, left = getattr(importing.Store, method), [call]

    def met(store, *arguments):
        left[0] -= 1
        if left[0] == 0:
            with monkeypatch.context() as patch:
                patch.setattr(socket, "gethostname", lambda: "elsewhere")
                assert counts(track(plan()))[0] == 6
        return original(store, *arguments)

    @contextmanager
    def no_lock(uri):
        yield

    monkeypatch.setattr(importing, "_alone", no_lock)
    monkeypatch.setattr(importing.Store, method, met)
    track(plan())
    assert left[0] <= 0
    assert len(children()) == 6


def test_an_import_under_way_on_another_machine_is_left_alone_until_it_is_dead(served, monkeypatch):
    def elsewhere():
        return "elsewhere"

    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", elsewhere)
        with (
            _stopped_at(monkeypatch, "set_tag", 1, _interrupt),
            pytest.raises(KeyboardInterrupt),
        ):
            track(plan())
    track(plan())
    under_way = [r for r in in_mlflow() if r.info.status == "RUNNING"]
    assert len(under_way) == 1 and under_way[0].data.tags[KEY] != STUDY_RUN
    monkeypatch.setattr(importing, "DEAD_AFTER", timedelta(0))
    track(plan())
    assert len(children()) == 6


# --- live -----------------------------------------------------------------------------------


@pytest.fixture
def live(served, monkeypatch):
    monkeypatch.setenv("FITSPACE_LIVE_TRACKING", "1")
    monkeypatch.setattr(sending, "LIVE_SECONDS", 0.3)
    # However slow server and machine are, what is sent arrives before a test looks.
    monkeypatch.setattr(sending, "REQUEST_SECONDS", 600)
    monkeypatch.setattr(sending, "LAST_SECONDS", 600)
    return served


def live_runs():
    return [run for run in in_mlflow() if LIVE in run.data.tags]


def trained():
    return next(run for run in plan().runs if run.train)


def _train_again(monkeypatch):
    """Train one run anew; the adapter has to have the same bits. Returns the run."""
    from fitspace.stages.train import train

    run = trained()
    before = (run.train.folder / "adapter.safetensors").read_bytes()
    shutil.rmtree(run.train.folder)
    train(plan().study, run, live=sending.live)
    assert (run.train.folder / "adapter.safetensors").read_bytes() == before
    return run


def test_a_live_run_has_the_curves_and_gives_way_to_the_finished_one(live, monkeypatch):
    run = _train_again(monkeypatch)
    (found,) = live_runs()
    assert (found.data.tags[LIVE], found.info.status) == (run.train.key, "FINISHED")
    with (run.train.folder / "history.csv").open() as file:
        steps = list(csv.DictReader(file))
    for name in ("loss", "lr"):
        curve = client().get_metric_history(found.info.run_id, name)
        assert [(m.step, m.value) for m in curve] == [
            (int(s["step"]), float(s[name])) for s in steps
        ]
    assert counts(track(plan())) == (6, 6, 0, 0)
    assert len(children()) == 6 and live_runs() == []


def test_training_again_goes_on_with_its_live_run_and_a_failure_ends_it(live):
    for attempt in range(2):
        with (
            pytest.raises(UserError),
            sending.live(plan().study, trained()) as log,
        ):
            for step in range(700):
                log(step + 700 * attempt, 1.0 / (step + 1), 0.1)
            raise UserError("the loss is nan")
        (found,) = live_runs()
        assert found.info.status == "FAILED"
        curve = client().get_metric_history(found.info.run_id, "loss")
        assert len(curve) == 700 * (attempt + 1)


AGO = "2020-01-01T00:00:00+00:00"
LEFT = {
    "killed": (True, AGO, ["KILLED"]),
    "still training": (True, None, ["RUNNING"]),
    "trained, not yet evaluated": (False, None, ["FINISHED"]),
}


@pytest.mark.parametrize("untrained, seen, wanted", LEFT.values(), ids=LEFT)
def test_what_becomes_of_a_live_run_left_running(served, untrained, seen, wanted):
    run = trained()
    shutil.rmtree(run.evaluate.folder)
    if untrained:
        shutil.rmtree(run.train.folder)
        shutil.rmtree(run.sample.folder)
    experiment = mlflow.experiment_of(client(), mlflow.tracking_uri(), "two")
    tags = {LIVE: run.train.key, SEEN: seen or now()}
    client().create_run(experiment, tags=tags)
    track(plan())
    assert [found.info.status for found in live_runs()] == wanted


@pytest.fixture
def no_server(live, monkeypatch):
    """A socket in the place of the server, which does not listen yet."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        found.settimeout(600)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{found.getsockname()[1]}")
        yield found


def test_a_server_that_is_down_costs_one_warning(no_server, capfd):
    said, looks = "", 60_000
    with sending.live(plan().study, trained()) as log:
        log(0, 1.0, 0.1)
        while not said and looks:  # it is asked once more at the end
            time.sleep(0.01)
            said, looks = capfd.readouterr().err, looks - 1
        log(1, 1.0, 0.1)
    said += capfd.readouterr().err
    assert said.count("fitspace: live tracking: ") == 1 and "training goes on" in said


def test_a_server_that_never_answers_is_waited_for_by_nobody_who_trains(no_server, monkeypatch):
    monkeypatch.setattr(sending, "LAST_SECONDS", 0.5)
    no_server.listen()
    with sending.live(plan().study, trained()) as log:
        question, _ = no_server.accept()
        for step in range(5):
            log(step, 1.0, 0.1)
    (waiting,) = (thread for thread in threading.enumerate() if thread.name == "fitspace-live")
    no_server.close()
    question.close()
    waiting.join()


def test_without_the_switch_nothing_is_sent(project):
    with sending.live(plan().study, trained()) as log:
        assert log is None


SWITCHES = {
    "no switch": ("yes", "http://127.0.0.1:1", "FITSPACE_LIVE_TRACKING: 'yes'; allowed: 0, 1"),
    "no server": ("1", "sqlite:///mlflow.db", "http://... or https://..."),
}


@pytest.mark.parametrize("value, uri, message", SWITCHES.values(), ids=SWITCHES)
def test_a_wrong_switch_is_said_before_training(project, monkeypatch, value, uri, message):
    monkeypatch.setenv("FITSPACE_LIVE_TRACKING", value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with (
        pytest.raises(UserError, match=message.replace(".", r"\.")),
        sending.live(plan().study, trained()),
    ):
        raise AssertionError("training began")


JOB = """
import sys
from fitspace import cli
def main(arguments, command=cli.main):
    code = command(arguments)
    assert "mlflow" not in sys.modules and "fitspace.tracking" in sys.modules
    return code
cli.main = main
"""


def test_a_training_job_imports_no_mlflow(project, warm):
    run = trained()
    shutil.rmtree(run.train.folder)
    done = warm.fitspace(project, "train", STUDY, run.train.folder.name, fault=JOB)
    assert done.returncode == 0, done.stderr


# --- the command and the rule ---------------------------------------------------------------

ADDRESSES = {
    "no server": "http://tester:secret@127.0.0.1:1",
    "unknown scheme": "nonsense://place",
    "a folder": "file:./mlruns",
    "not a database": "sqlite:///README.md",
}


@pytest.mark.parametrize("uri", ADDRESSES.values(), ids=ADDRESSES)
def test_an_address_that_does_not_work_is_one_message(project, monkeypatch, capsys, uri):
    from fitspace.cli import main

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert main(["track", STUDY]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fitspace: MLFLOW_TRACKING_URI: ") and said.count("\n") == 1
    assert "secret" not in said


@pytest.mark.slow
def test_each_project_folder_has_a_database_of_its_own(project, origin, tmp_path, monkeypatch):
    track(plan())
    other = light_copy(origin, tmp_path / "other")
    shutil.copy(project / "mlflow.db", other / "mlflow.db")
    client().delete_run(next(iter(children().values())).info.run_id)
    monkeypatch.chdir(other.folder)
    with pytest.raises(UserError, match="made in another folder .*delete it"):
        track(plan())
    (other / "mlflow.db").unlink()
    done = other.fitspace("track", STUDY)  # this process remembers the database
    assert done.returncode == 0 and "6 new" in done.stdout + done.stderr


def test_a_study_s_end_imports_it_and_git_does_not_see_it(origin):
    said = (origin / "results/logs/track/two.log").read_text()
    assert said.startswith("6 runs of study two in sqlite:///mlflow.db (6 new, 0 updated); look: ")
    assert (origin / "mlflow.db").exists() and "mlflow" not in origin.git("status", "--porcelain")


def test_a_server_that_is_down_fails_no_study(project: Project, warm):
    stamp = "results/.cache/tracked/two"
    command = ["snakemake", "--cores", "1", "--config", f"study={STUDY}", "--forcerun", "track"]
    project = project.warmed(warm.commands)
    done = project.run(*command, "--", stamp, MLFLOW_TRACKING_URI="http://127.0.0.1:1")
    assert "not in MLflow, see results/logs/track/two.log" in done.stderr
    assert "MLFLOW_TRACKING_URI" in (project / "results/logs/track/two.log").read_text()


def test_a_database_that_came_from_another_folder_is_said_with_its_cure(tmp_path, monkeypatch):
    client = mlflow.library().MlflowClient
    for name in ("here", "moved"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    uri = mlflow.DEFAULT_URI
    own = client(tracking_uri=mlflow.client_uri(uri))
    number = mlflow.experiment_of(own, uri, "two")
    assert mlflow.experiment_of(own, uri, "two") == number
    shutil.copy("mlflow.db", tmp_path / "moved/mlflow.db")
    monkeypatch.chdir(tmp_path / "moved")
    other = client(tracking_uri=mlflow.client_uri(uri))
    with pytest.raises(
        UserError, match="made in another folder and would write into .*here/mlarti"
    ):
        mlflow.experiment_of(other, uri, "two")
