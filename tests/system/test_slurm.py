"""Studies on a real SLURM, and what goes wrong there; the site's file and the profile.

The tests marked slurm start SLURM's daemons (tests/slurm_cluster.py): `make test-slurm`.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml
from project import STUDY, Project
from slurm_cluster import Cluster, obstacle, running, wait_for

from fitspace.core.errors import UserError
from fitspace.plan import STAGES
from fitspace.stages import slurm

ROOT = Path(__file__).parents[2]
PROFILE = "profiles/slurm"
SITE = {"partition": "cpu", "gpu_partition": "gpu", "max_memory_mb": 8000}
ON_GPU = {"prior", "train", "sample", "evaluate", "explain"}
PATIENCE = 1800.0  # seconds: how long a loaded machine may take for what does not come at once
# Of a run's row: what two runs of the same bits need not share.
MEASURED = {"train_seconds", "sample_seconds", "peak_memory_mb"}


# Without SLURM


GOOD = {
    "nothing": {},
    "one key": {"account": "proj-42"},
    "lists": {
        "partition": "short,long",
        "exclude_nodes": "n[01-03],n07",
        "constraint": "a100|h100",
    },
    "a part of the stages": {"minutes": {"train": 600}, "memory_mb": {"train": 16000}},
    "a command": {"setup": "module load cuda/12.6 && . /shared/venv/bin/activate"},
}


@pytest.mark.parametrize("content", GOOD.values(), ids=GOOD)
def test_a_site_file_says_what_it_says_and_the_rest_is_as_usual(content, tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(content))
    found = slurm.site(path).model_dump()
    usual = slurm.Site().model_dump()
    for key, value in content.items():
        assert found[key] == (usual[key] | value if isinstance(value, dict) else value)
    assert {k: v for k, v in found.items() if k not in content} == {
        k: v for k, v in usual.items() if k not in content
    }


BAD = {
    "unknown key": ("partitoin: gpu", ["partitoin: unknown key", "gpu_partition"]),
    "unknown stage": ("minutes: {trian: 5}", ["minutes.trian: unknown key", "train"]),
    "no time": ("minutes: {train: 0}", ["minutes.train: 0", "greater"]),
    "one time for all": ("minutes: 60", ["minutes: 60", "each of prior, prepare"]),
    "a shell's words": ("account: 'a; rm -rf b'", ["account: 'a; rm -rf b'", "letters"]),
    "a variable": ("partition: $HOME", ["partition: '$HOME'", "letters"]),
    "two lines": ('setup: "a\\nb"', ["setup: 'a\\nb'", "one line"]),
    "a number as text": ("max_jobs: '7'", ["max_jobs: '7'", "integer"]),
    "no keys": ("- account", ["holds no keys", "account"]),
    "no YAML": ("account: [", ["not readable as YAML"]),
    "not text": (b"\xff\xfe\x00", ["not readable as YAML"]),
    "several": ("foo: 1\nruns_per_job: 0\nqos: [a]", ["foo", "runs_per_job: 0", "qos: ['a']"]),
}


@pytest.mark.parametrize("text, said", BAD.values(), ids=BAD)
def test_a_bad_site_file_is_one_error_with_all_its_problems(text, said, tmp_path):
    path = tmp_path / "site.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        slurm.site(path)
    for part in said:
        assert part in str(error.value)
    assert all(str(path) in problem for problem in error.value.problems)


def test_a_site_file_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("FITSPACE_SITE", str(tmp_path / "mine.yaml"))
    with pytest.raises(UserError, match="mine.yaml: missing"):
        slurm.site()


def test_the_site_file_of_the_repository_says_what_is_usual():
    assert slurm.site(ROOT / PROFILE / "site.yaml") == slurm.Site()


def test_every_key_of_a_site_is_explained():
    text = (ROOT / "docs/slurm.md").read_text()
    assert [key for key in slurm.Site.model_fields if f"| `{key}`" not in text] == []


def test_a_projects_jobs_have_a_name_of_its_own(tmp_path, monkeypatch):
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    name = slurm.prefix(tmp_path)
    assert name == slurm.prefix(link) != slurm.prefix(tmp_path.parent)
    assert name.replace("-", "").isalnum() and len(name) <= 50
    monkeypatch.chdir(tmp_path)
    assert slurm.prefix() == name


def _squeue(folder: Path, script: str, monkeypatch) -> None:
    """A squeue of our own, first on PATH."""
    (folder / "bin").mkdir()
    command = folder / "bin/squeue"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")


def test_jobs_that_are_not_over_are_this_projects_alone(tmp_path, monkeypatch):
    name = slurm.prefix(tmp_path)
    lines = [
        f"7|RUNNING|node1|{name}_a-b|rule_train_wildcards_x~s0",
        f"8|PENDING||{name}_a-b|rule_sample_wildcards_a|b",
        f"9|COMPLETED|node1|{name}_a-b|rule_train_wildcards_y",
        f"10|CANCELLED||{name}_a-b|rule_train_wildcards_z",
        f"11|COMPLETING|node2|{name}_a-b|rule_evaluate_wildcards_x",
        f"12|SUSPENDED|node2|{name}_a-b|(null)",
        f"13|REQUEUE_HOLD||{name}_a-b|rule_train",
        f"14_[1-3]|CONFIGURING|node2|{name}_a-b|rule_train",
        "15|RUNNING|node1|fitspace-000000000000_a-b|rule_train",
        f"16|RUNNING|node1|mine|{name}_a-b|rule_train",
        f"17|RUNNING|node1|x{name}_a-b|rule_train",
        "",
    ]
    (tmp_path / "out").write_text("\n".join(lines))
    _squeue(tmp_path, f'echo "$@" > {tmp_path}/asked; cat {tmp_path}/out', monkeypatch)
    found = slurm.unfinished(tmp_path)
    assert [job.id for job in found] == ["7", "8", "11", "12", "13", "14_[1-3]"]
    assert found[1] == slurm.Job("8", "PENDING", "", "rule_sample_wildcards_a|b")
    assert str(found[0]) == "train x~s0 (SLURM job 7, running on node1)"
    asked = (tmp_path / "asked").read_text()
    assert "--me" in asked and "--states=all" in asked


@pytest.mark.parametrize("submitted", [True, False])
def test_a_slurm_that_does_not_answer_matters_where_jobs_were_submitted(
    submitted, tmp_path, monkeypatch
):
    _squeue(tmp_path, "echo 'Unable to contact controller' >&2; exit 1", monkeypatch)
    if not submitted:
        assert slurm.unfinished(tmp_path) == []
        return
    (tmp_path / ".snakemake/slurm_logs").mkdir(parents=True)
    with pytest.raises(UserError, match="Unable to contact controller: cannot tell"):
        slurm.unfinished(tmp_path)


def test_without_slurm_there_are_no_jobs(tmp_path, monkeypatch):
    (tmp_path / ".snakemake/slurm_logs").mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.unfinished(tmp_path) == []


@pytest.fixture
def options(tmp_path, monkeypatch) -> Callable:
    """What Snakemake makes of the profile with a site's file."""

    def parsed(**site):
        from snakemake.cli import parse_args

        path = tmp_path / "site.yaml"
        path.write_text(yaml.safe_dump(site))
        monkeypatch.setenv("FITSPACE_SITE", str(path))
        monkeypatch.chdir(ROOT)
        return parse_args(["--workflow-profile", PROFILE])[1]

    return parsed


def _resources(options) -> dict[str, dict[str, list]]:
    """Rule -> resource -> its value at the first, second and third attempt."""
    return {
        rule: {
            name: [eval(str(value.raw), {"attempt": n}) for n in (1, 2, 3)]  # as Snakemake does
            for name, value in values.items()
        }
        for rule, values in options.set_resources.items()
    }


def test_the_profile_asks_for_time_memory_and_one_gpu_by_stage(options):
    found = _resources(
        options(
            gpu_partition="all",  # also the name of a function
            gpu_type="a100",
            minutes={"train": 600},
            max_minutes=1440,
            memory_mb={"train": 16000},
            max_memory_mb=50000,
        )
    )
    assert found["train"] == {
        "runtime": [600, 1200, 1440],
        "mem_mb": [16000, 32000, 50000],
        "gpu": [1, 1, 1],
        "gpu_model": ["a100"] * 3,
        "slurm_partition": ["all"] * 3,
    }
    assert found["prepare"] == {"runtime": [30, 60, 120], "mem_mb": [4000, 8000, 16000]}
    assert {stage for stage, asked in found.items() if "gpu" in asked} == ON_GPU
    assert set(found) == set(STAGES)


def test_the_profile_is_the_default_one_and_more(options):
    found = options()
    usual = yaml.safe_load((ROOT / "profiles/default/profile.yaml").read_text())
    mine = yaml.safe_load((ROOT / PROFILE / "profile.yaml").read_text())
    apart = {"cores", "set-resources"}
    assert {k: mine.get(k) for k in usual.keys() - apart} == {
        k: v for k, v in usual.items() if k not in apart
    }
    # Here a job does one run, unless the site says more; there, several in one process.
    assert usual["set-resources"] == {stage: {"together": 8} for stage in slurm.GROUPED}
    assert not any("together" in asked for asked in found.set_resources.values())
    assert found.executor == "slurm" and found.keep_going and found.retries == 2
    assert found.slurm_jobname_prefix == slurm.prefix(ROOT)
    assert found.slurm_status_command == "squeue" and found.slurm_requeue
    assert found.precommand is None and not found.groups


def test_a_sites_keys_reach_snakemake(options):
    found = options(
        account="a1", partition="p1", qos="q1", constraint="c1|c2", exclude_nodes="n1,n2",
        setup="module load x", max_jobs=7, runs_per_job=3,
    )  # fmt: skip
    usual = dict(item.split("=", 1) for item in found.default_resources.args)
    assert usual["slurm_account"] == "'a1'" and usual["slurm_partition"] == "'p1'"
    assert usual["constraint"] == "'c1|c2'"
    assert found.slurm_qos == "q1" and found.slurm_exclude_failed_nodes == "n1,n2"
    assert found.precommand == "module load x" and found.jobs == 7
    assert found.groups == dict.fromkeys(("train", "sample", "evaluate", "explain"), "runs")
    assert found.group_components == {"runs": 3}
    together = {rule: asked.get("together") for rule, asked in _resources(found).items()}
    assert {rule: n for rule, n in together.items() if n} == dict.fromkeys(slurm.GROUPED, [3] * 3)


REQUESTS = {
    "gres alone": (
        {"gpu_request": "gres", "gpu_type": "a100"},
        {"gres": ["gpu:a100:1"] * 3}, {"gpu", "gpu_model"},
    ),
    "gres of any kind": ({"gpu_request": "gres"}, {"gres": ["gpu:1"] * 3}, {"gpu"}),
    "no GPUs": ({"gpu_request": "none", "gpu_type": "a100"}, {}, {"gpu", "gres", "gpu_model"}),
    "memory by core": (
        {"memory_request": "mem_per_cpu"}, {"mem_mb_per_cpu": [3000, 6000, 12000]}, set(),
    ),
    "no memory": ({"memory_request": "none"}, {"mem_mb": [0] * 3}, {"mem_mb_per_cpu"}),
    "compiled": (
        {"compile": True, "gradient_checkpointing": True},
        {"compile": [1] * 3, "gradient_checkpointing": [1] * 3, "gpu": [1] * 3}, set(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("site, asked, not_asked", REQUESTS.values(), ids=REQUESTS)
def test_a_site_says_how_resources_are_asked_for(options, site, asked, not_asked):
    found = _resources(options(**site))["train"]
    assert {name: found.get(name) for name in asked} == asked
    assert not found.keys() & not_asked
    assert "compile" not in _resources(options(**site))["sample"]


JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "{prefix}_x", "CUDA_VISIBLE_DEVICES": ""}
GPUS = {
    "none": ({}, "train", True),
    "none that can be used": ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, "sample", True),
    "none of none": ({"SLURM_GPUS_ON_NODE": "0"}, "evaluate", True),
    "the first": ({"CUDA_VISIBLE_DEVICES": "0"}, "train", False),
    "one, by number": ({"SLURM_GPUS_ON_NODE": "1"}, "train", False),
    "none, and none needed": ({}, "prepare", False),
    "a job of somebody else's": ({"SLURM_JOB_NAME": "bash"}, "train", False),
    "no job": ({"SLURM_JOB_ID": ""}, "train", False),
    "a cluster without GPUs": ({"site": "gpu_request: none"}, "train", False),
}


@pytest.mark.parametrize("given, stage, stops", GPUS.values(), ids=GPUS)
def test_a_gpu_stage_without_a_gpu_stops(tmp_path, monkeypatch, given, stage, stops):
    path = tmp_path / "site.yaml"
    path.write_text(given.get("site", "account: null"))
    monkeypatch.setenv("FITSPACE_SITE", str(path))
    for name in [name for name in os.environ if name.startswith(("SLURM", "CUDA", "ROCR"))]:
        monkeypatch.delenv(name)
    variables = JOB | {name: value for name, value in given.items() if name != "site"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(prefix=slurm.prefix()))
    if stops:
        with pytest.raises(UserError, match=f"{stage}: SLURM job 7 has no GPU"):
            slurm.need_gpu(stage)
    else:
        slurm.need_gpu(stage)


def test_the_documented_way_to_load_modules_works_in_sh(tmp_path):
    """With a module command as modules define it for sh; dash has none of its own."""
    said = (ROOT / "docs/slurm.md").read_text()
    setup = re.search(r"`setup: (\. /etc/profile\.d/modules\.sh [^`]+)`", said)[1]
    (tmp_path / "modules.sh").write_text('module() { LOADED="$*"; export LOADED; }\n')
    setup = setup.replace("/etc/profile.d/modules.sh", str(tmp_path / "modules.sh"))
    shell = shutil.which("dash") or "sh"
    command = f"{setup} && printenv LOADED"  # as Snakemake puts it before a job
    done = subprocess.run([shell, "-c", command], capture_output=True, text=True)
    assert done.stdout == "load cuda/12.6\n", done.stderr


def test_a_bad_site_file_ends_snakemake_with_its_problems_alone(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text("foo: 1\nruns_per_job: 0")
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--workflow-profile", PROFILE, "--dry-run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"FITSPACE_SITE": str(path)},
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("Using workflow")]
    assert [line.split(": ")[2] for line in lines] == ["runs_per_job", "foo"]


# On a real SLURM


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if why := obstacle():
        required = os.environ.get("FITSPACE_SLURM") == "required"
        (pytest.fail if required else pytest.skip)(why)
    with running(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


class OnSlurm:
    """A copy of the finished project on a cluster; some of its results are to be made again."""

    def __init__(self, project: Project, cluster: Cluster, **site):
        self.project, self.cluster = project, cluster
        (project / PROFILE / "site.yaml").write_text(yaml.safe_dump(SITE | site))
        self.name = slurm.prefix(project.folder)

    def forget(self, *patterns: str) -> None:
        """Remove folders of results."""
        for pattern in patterns:
            found = list((self.project / "results").glob(pattern))
            assert found, pattern
            for folder in found:
                shutil.rmtree(folder)

    def driver(self, *targets: str, log: str = "driver.log") -> subprocess.Popen:
        """Snakemake, started and left at work; it is asked for in :meth:`end`."""
        with open(self.project / log, "wb") as file:
            return subprocess.Popen(
                self.command(*targets),
                cwd=self.project.folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                env=self.project.environment,
                # What a shell started in the background ignores it, and so would the driver.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    @staticmethod
    def command(*targets: str) -> list[str]:
        polling = ["--slurm-init-seconds-before-status-checks", "3"]
        return [
            "snakemake", "--workflow-profile", PROFILE, *polling,
            "--config", f"study={STUDY}", "--", *targets,
        ]  # fmt: skip

    def end(self, driver: subprocess.Popen, log: str = "driver.log"):
        """Exit code and words of a driver that has come to its end."""
        try:
            code = driver.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            driver.kill()
            pytest.fail(f"no end within {PATIENCE} s:\n{(self.project / log).read_text()}")
        return code, (self.project / log).read_text()

    def run(self, *targets: str) -> str:
        """Snakemake to its good end; returns what it said."""
        code, said = self.end(self.driver(*targets))
        assert code == 0, said
        return said

    def jobs(self, stage: str = "", state: str = "") -> list[dict[str, str]]:
        """This project's jobs, by stage and state."""
        return [
            job
            for job in self.cluster.jobs()
            if job["JobName"].startswith(self.name)
            and job["Comment"].startswith(f"rule_{stage}")
            and job["JobState"].startswith(state)
        ]

    def wait_for_jobs(self, count: int, stage: str, state: str) -> list[dict]:
        def found():
            jobs = self.jobs(stage, state)
            return jobs if len(jobs) == count else None

        return wait_for(found, PATIENCE, f"{count} {stage} jobs that are {state}")

    def _process(self, job: dict[str, str], stage: str) -> int | None:
        """The process of a job that does a stage."""
        for pid in self.cluster.pids(job["JobId"]):
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if stage.encode() in words and any(w.endswith(b"fitspace") for w in words):
                    return pid
        return None

    def at_work(self, job: dict[str, str], stage: str) -> int:
        """Wait for the process of a job that does a stage; its id."""
        what = f"process of {stage} in job {job['JobId']}"
        return wait_for(lambda: self._process(job, stage), PATIENCE, what)

    @contextmanager
    def stopped(self, jobs: list[dict[str, str]], stage: str) -> Iterator[None]:
        """Jobs that do not end in here: their processes at a stage, stopped, then let go on."""
        processes = {}

        def all_stopped() -> bool:
            for job in jobs:
                if job["JobId"] not in processes and (pid := self._process(job, stage)):
                    os.kill(pid, signal.SIGSTOP)
                    processes[job["JobId"]] = pid
            return len(processes) == len(jobs)

        try:
            wait_for(all_stopped, PATIENCE, f"processes of {stage}")
            yield
        finally:
            for pid in processes.values():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def on_slurm(origin, cluster, tmp_path_factory):
    def make(**site) -> OnSlurm:
        return OnSlurm(origin.copy(tmp_path_factory.mktemp("project") / "project"), cluster, **site)

    return make


def _sidecars(project: Project, stage: str) -> dict[str, dict]:
    """Folder -> sidecar, after rehashing what it names."""
    found = {}
    for path in sorted((project / "results").glob(f"*/*/{stage}.json")):
        sidecar = json.loads(path.read_text())
        for output in sidecar["outputs"]:
            file = path.parent / Path(output["path"]).name
            done = subprocess.run(["sha256sum", file], capture_output=True, text=True, check=True)
            assert done.stdout.split()[0] == output["sha256"]
        found[path.parent.name] = sidecar
    return found


def _made_by(project: Project, stage: str) -> dict[str, str | None]:
    """Folder -> the SLURM job that made it."""
    return {f: s["environment"]["slurm_job_id"] for f, s in _sidecars(project, stage).items()}


def _same_results(project: Project, origin: Project, *stages: str, seeds: str = "01") -> None:
    """The science of some stages is the origin's to the last bit."""
    names = {"train": "adapter.safetensors", "sample": "samples.safetensors",
             "evaluate": "metrics.json"}  # fmt: skip
    for stage in stages:
        pattern = f"results/{stage}/*~s[{seeds}]~*/{names[stage]}"
        found = {p.parent.name: p.read_bytes() for p in project.folder.glob(pattern)}
        expected = {p.parent.name: p.read_bytes() for p in origin.folder.glob(pattern)}
        assert found == expected and found


def _rows(project: Project) -> list[dict[str, str]]:
    with (project / "reports/two/runs.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in MEASURED} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def cut_off(on_slurm, origin, tmp_path_factory):
    """A training that its time limit is going to end, on a node apart.

    When it has taken a checkpoint it stays stopped, and its limit lowered to a minute: it waits for
    its end without work. What the checkpoint says of the time so far is raised: that it is found
    again in the result shows that the training went on from there. Meanwhile the same training
    runs undisturbed.
    """
    late = on_slurm(gpu_partition="apart", minutes={"train": 30})
    undisturbed = origin.copy(tmp_path_factory.mktemp("project") / "undisturbed")
    for project in (late.project, undisturbed):
        project.study(seeds=[0], arms=[ONE_RUN], train=LONG, analysis=OF_ONE_RUN)
    driver = late.driver("trained")

    def stop() -> dict[str, str]:
        from fitspace.training.loop import CHECKPOINT_SECONDS

        (job,) = late.wait_for_jobs(1, "train", "RUNNING")
        process = late.at_work(job, "train")

        def taken() -> list[Path]:
            """The checkpoint; without one, training works a little, then waits until it is due.

            A fast machine would be at the end before the time of its first checkpoint.
            """
            enough = _worked(process) + 1
            os.kill(process, signal.SIGCONT)
            wait_for(lambda: _worked(process) > enough, PATIENCE, "work")
            os.kill(process, signal.SIGSTOP)
            if found := list((late.project / "results/.resume").glob("*/checkpoint.safetensors")):
                return found
            time.sleep(CHECKPOINT_SECONDS)
            return []

        (checkpoint,) = wait_for(taken, PATIENCE, "checkpoint")
        _raise_time(checkpoint)
        late.cluster.run("scontrol", "update", f"JobId={job['JobId']}", "TimeLimit=1")
        undisturbed.run("snakemake", "--cores", "1", "--config", f"study={STUDY}", "--", "trained")
        return job

    with ThreadPoolExecutor(1) as pool:
        yield late, driver, undisturbed, pool.submit(stop)


def _worked(process: int) -> float:
    """Seconds of a CPU that a process has had."""
    times = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


ONE_RUN = {"method": "adapter", "settings": {"input": "CA_out", "output": "FFN_in", "width": 4}}
OF_ONE_RUN = {"factors": ["method"], "responses": ["fd_effnet"]}
LONG = {"steps": 600, "batch_size": 4, "lr": 1.0e-3}
RAISED = 10_000.0  # seconds


def _raise_time(checkpoint: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    from fitspace.training.member import checkpoint_digest

    tensors = load_file(checkpoint)
    with safe_open(checkpoint, "pt") as file:
        metadata = file.metadata()
    facts = json.loads(metadata["fitspace"])
    assert 0 < len(facts["losses"]) < LONG["steps"]
    facts["seconds"] += RAISED
    text = json.dumps(facts)
    save_file(tensors, checkpoint, {"fitspace": text, "sha256": checkpoint_digest(text, tensors)})


@pytest.mark.slurm
def test_a_study_runs_to_its_report(on_slurm, origin, cut_off):
    here = on_slurm()
    here.project.study(seeds=[0])
    shutil.rmtree(here.project / "results")
    shutil.rmtree(here.project / "reports/two")
    here.run()
    assert _rows(here.project) == [row for row in _rows(origin) if row["seed"] == "0"]
    _same_results(here.project, origin, "train", "sample", "evaluate", seeds="0")
    assert (here.project / "reports/two/report.html").exists()
    jobs = here.jobs()
    stages = Counter(job["Comment"].split("_")[1] for job in jobs)
    assert stages == {"prepare": 1, "reference": 1, "train": 2, "sample": 3, "evaluate": 3}
    assert {job["JobState"] for job in jobs} == {"COMPLETED"}
    by_id = {job["JobId"]: job for job in jobs}
    for stage in stages:
        made = _made_by(here.project, stage)
        assert {by_id[job]["Comment"] for job in made.values()} == {
            f"rule_{stage}_wildcards_{folder}" for folder in made
        }
    for job in jobs:
        wanted = job["Comment"].split("_")[1] in ON_GPU
        assert job["Partition"] == ("gpu" if wanted else "cpu")
        assert job.get("TresPerJob") == ("gres:gpu:1" if wanted else None)
        assert job["JOB_GRES"] == ("gpu:1" if wanted else "(null)")  # what it was given
    assert {job["NodeList"] for job in jobs} == {"node1", "node2"}
    said = here.run()
    assert "Nothing to be done" in said and len(here.jobs()) == len(jobs)


@pytest.mark.slurm
def test_cancelled_jobs_are_run_again_and_a_drained_node_gets_no_more(on_slurm, origin):
    here = on_slurm()
    here.forget("train/*")
    driver = here.driver("trained")
    here.wait_for_jobs(4, "train", "")
    running = here.wait_for_jobs(2, "train", "RUNNING")
    pending = here.wait_for_jobs(2, "train", "PENDING")
    drained, spared = running
    with here.stopped(running, "train"):
        here.cluster.run("scancel", pending[0]["JobId"], spared["JobId"])
        here.cluster.update_node(drained["NodeList"], "drain")
    try:
        code, said = here.end(driver)
    finally:
        here.cluster.update_node(drained["NodeList"], "resume")
    assert code == 0, said
    _same_results(here.project, origin, "train")
    states = Counter(job["JobState"] for job in here.jobs())
    assert states == {"COMPLETED": 4, "CANCELLED": 2}
    where = {job["JobId"]: job["NodeList"] for job in here.jobs(state="COMPLETED")}
    assert where.pop(drained["JobId"]) == drained["NodeList"]
    assert set(where.values()) == {spared["NodeList"]}


@pytest.mark.slurm
def test_jobs_of_a_node_that_dies_are_put_back_and_finish(on_slurm, origin):
    here = on_slurm()
    here.forget("train/*~s1~*")
    driver = here.driver("trained")
    lost, other = here.wait_for_jobs(2, "train", "RUNNING")
    node = lost["NodeList"]
    here.at_work(lost, "train")
    here.cluster.kill_node(node)
    here.cluster.update_node(node, "down")
    try:
        (again,) = here.wait_for_jobs(1, "train", "PENDING")
        assert again["JobId"] == lost["JobId"] and again["Restarts"] == "1"
        # SLURM would wait two minutes.
        here.cluster.run("scontrol", "update", f"JobId={lost['JobId']}", "StartTime=now")
        code, said = here.end(driver)
    finally:
        here.cluster.start_node(node)
        here.cluster.update_node(node, "resume")
    assert code == 0, said
    _same_results(here.project, origin, "train")
    assert {job["NodeList"] for job in here.jobs()} == {other["NodeList"]}
    assert len(here.jobs()) == 2


@pytest.mark.slurm
def test_jobs_of_a_killed_driver_go_on_and_nothing_is_done_twice(on_slurm, origin):
    here = on_slurm()
    here.forget("train/*~s0~*", "train/*Trans*~s1~*")
    first = here.driver("trained", log="first.log")
    here.wait_for_jobs(3, "train", "")
    started = here.wait_for_jobs(2, "train", "RUNNING")
    with here.stopped(started, "train"):
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        # Its lock is still there.
        code, said = here.end(here.driver("trained"))
        assert code != 0 and "cannot be locked" in said and len(here.jobs()) == 3
        here.project.run(*here.command()[:3], "--unlock", "--config", f"study={STUDY}")
        second = here.driver("trained")
        log = here.project / "driver.log"
        wait_for(lambda: "at work; waiting" in log.read_text(), PATIENCE, "waiting")
        assert second.poll() is None
    code, said = here.end(second)
    assert code == 0, said
    assert started[0]["JobId"] in said and "Nothing to be done" in said
    assert [job["JobState"] for job in here.jobs()] == ["COMPLETED"] * 3
    made = {job for job in _made_by(here.project, "train").values() if job is not None}
    assert made == {job["JobId"] for job in here.jobs()}
    _same_results(here.project, origin, "train")


@pytest.mark.slurm
def test_an_interrupted_driver_takes_its_jobs_with_it(on_slurm):
    here = on_slurm()
    here.forget("train/*")
    driver = here.driver("trained")
    started = here.wait_for_jobs(2, "train", "RUNNING")
    here.wait_for_jobs(2, "train", "PENDING")
    with here.stopped(started, "train"):
        driver.send_signal(signal.SIGINT)
        code, _ = here.end(driver)
        assert code != 0
        wait_for(lambda: not slurm.unfinished(here.project.folder), PATIENCE, "jobs that end")
    assert {job["JobState"] for job in here.jobs()} == {"CANCELLED"}


@pytest.mark.slurm
def test_a_run_that_fails_is_named_and_the_rest_of_the_study_is_made(on_slurm, origin):
    here = on_slurm()
    here.forget("sample/adapter*~s0~*", "evaluate/adapter*~s0~*")
    adapter = next((here.project / "results/train").glob("*FFN*~s0~*")) / "adapter.safetensors"
    content = bytearray(adapter.read_bytes())
    content[-1] ^= 1
    adapter.write_bytes(content)
    driver = here.driver()
    # The other run has to come after the failure, or it would finish without --keep-going too.
    (other,) = (j for j in here.wait_for_jobs(2, "sample", "") if "FFN" not in j["Comment"])
    try:
        here.cluster.run("scontrol", "requeuehold", other["JobId"])
    except subprocess.CalledProcessError:  # it has not begun
        here.cluster.run("scontrol", "hold", other["JobId"])
    here.wait_for_jobs(3, "sample", "FAILED")
    time.sleep(8)  # until the driver has looked

    def released() -> bool:
        """Not as long as the job's processes are ending."""
        with suppress(subprocess.CalledProcessError):
            here.cluster.run("scontrol", "release", other["JobId"])
            return True
        return False

    wait_for(released, 120, "release of the job that is held")
    here.cluster.run("scontrol", "update", f"JobId={other['JobId']}", "StartTime=now")
    code, said = here.end(driver)
    assert code != 0 and f"{adapter.relative_to(here.project.folder)}: changed since" in said
    assert Counter(job["JobState"] for job in here.jobs("sample")) == {"FAILED": 3, "COMPLETED": 1}
    asked = [job["MinMemoryNode"] for job in here.jobs("sample", "FAILED")]
    assert asked == ["3000M", "6000M", "8000M"]
    assert len(_sidecars(here.project, "evaluate")) == 5
    # The report says so: here is a run less.
    refused = here.project.fitspace("report", "--cached", STUDY, ok=False)
    assert refused.returncode == 2
    here.project.fitspace("report", "--cached", "--partial", STUDY)
    rows = _rows(here.project)
    assert Counter(row["status"] for row in rows) == {"ok": 5, "missing": 1}
    expected = {row["run"]: row for row in _rows(origin)}
    assert all(row == expected[row["run"]] for row in rows if row["status"] == "ok")
    with (here.project / "reports/two/ledger.csv").open() as file:
        ledger = list(csv.DictReader(file))
    assert ledger != [] and "missing" in json.dumps(ledger)


@pytest.mark.slurm
def test_several_runs_share_one_job_and_one_gpu(on_slurm, origin):
    here = on_slurm(runs_per_job=2)
    here.forget("train/*~s1~*", "sample/adapter*~s1~*")
    here.run("sampled")
    (job,) = here.jobs()
    assert job["TresPerJob"] == "gres:gpu:1" and job["TimeLimit"] == "04:00:00"  # the sum
    _same_results(here.project, origin, "train", "sample")
    times = sorted(
        (sidecar["started"], sidecar["finished"])
        for stage in ("train", "sample")
        for sidecar in _sidecars(here.project, stage).values()
        if sidecar["environment"]["slurm_job_id"] == job["JobId"]
    )
    assert len(times) == 4
    assert all(ended <= began for (_, ended), (began, _) in zip(times, times[1:], strict=False))


@pytest.mark.slurm
def test_a_job_that_its_time_limit_ends_goes_on_from_its_checkpoint(cut_off):
    late, driver, undisturbed, stopped = cut_off
    first = stopped.result(PATIENCE)
    code, said = late.end(driver)
    assert code == 0, said
    jobs = late.jobs("train")
    assert [job["JobState"] for job in jobs] == ["TIMEOUT", "COMPLETED"]
    assert [first["TimeLimit"], jobs[1]["TimeLimit"]] == ["00:30:00", "01:00:00"]
    assert {job["NodeList"] for job in jobs} == {"node3"}
    _same_results(late.project, undisturbed, "train")
    (sidecar,) = (s for s in _sidecars(late.project, "train").values() if _is_long(s))
    assert sidecar["facts"]["train_seconds"] > RAISED
    assert not list((late.project / "results/.resume").glob("*"))


def _is_long(sidecar: dict) -> bool:
    return sidecar["material"]["train"]["steps"] == LONG["steps"]
