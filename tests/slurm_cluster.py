"""A real SLURM on this machine: a controller, three nodes with one made-up GPU each, on loopback.

Debian's build starts several nodes on one host. Everything that is written lies in one folder,
but for a link at /etc/slurm/slurm.conf: the executor plugin takes SLURM_CONF away from its
inner srun. What stood there is put back.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

NODES = ("node1", "node2", "node3")
CLUSTER = "fitspace-tests"
DEFAULT = Path("/etc/slurm/slurm.conf")
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue")
CONFIGURATION = """\
ClusterName={cluster}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
EnforcePartLimits=ALL
MinJobAge=3600
KillWait=2
SlurmdTimeout=300
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=5,defer_batch=0,requeue_delay=1
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
"""


def obstacle() -> str | None:
    """Why no SLURM can be started here, or None."""
    if os.geteuid() != 0:
        return "SLURM's daemons want root"
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"not installed: {', '.join(missing)}"
    answer = subprocess.run(["scontrol", "ping"], capture_output=True, text=True)
    return "a SLURM is at work here" if "UP" in answer.stdout else None


class Cluster:
    """The running daemons; commands speak to them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.configuration = folder / "slurm.conf"
        self.processes: dict[str, subprocess.Popen] = {}

    def start(self) -> None:
        """Start everything; nodes are idle when it returns."""
        for name in ("state", "spool", "munge"):
            (self.folder / name).mkdir()
        self._configure()
        self._munge()
        self._spawn("slurmctld", "slurmctld", "-D", "-c", "-f", self.configuration)
        for node in NODES:
            self.start_node(node)
        wait_for(lambda: set(self.nodes().values()) == {"idle"}, 60, "nodes that are idle")

    def _configure(self) -> None:
        host = socket.gethostname().partition(".")[0]
        lines = [CONFIGURATION.format(cluster=CLUSTER, host=host, folder=self.folder)]
        devices = []
        for number, node in enumerate(NODES, start=1):
            device = self.folder / f"spool/gpu-{number}"
            os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
            devices.append(f"NodeName={node} Name=gpu File={device}\n")
            lines.append(
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={17000 + number} "
                "CPUs=2 RealMemory=8000 Gres=gpu:1 State=UNKNOWN\n"
            )
        # The third node stands apart, for what takes long.
        both, third = ",".join(NODES[:2]), NODES[2]
        lines += [
            f"PartitionName=cpu Nodes={both} Default=YES State=UP\n",
            f"PartitionName=gpu Nodes={both} State=UP\n",
            f"PartitionName=apart Nodes={third} State=UP\n",
        ]
        (self.folder / "gres.conf").write_text("".join(devices))
        self.configuration.write_text("".join(lines))

    def _munge(self) -> None:
        folder = self.folder / "munge"
        key = folder / "key-file"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        names = ("socket", "key-file", "pid-file", "log-file", "seed-file")
        files = [f"--{name}={folder / name}" for name in names]
        # A test's folder is closed to others, and so is the socket's way; munged warns, no more.
        self._spawn("munged", "munged", "--foreground", "--force", *files)
        wait_for((folder / "socket").exists, 20, "munged's socket")

    def start_node(self, node: str) -> None:
        self._spawn(node, "slurmd", "-D", "-N", node, "-f", self.configuration)

    def kill_node(self, node: str) -> None:
        """A node dies: its daemon and all that runs on it, at once."""
        jobs = {job["JobId"] for job in self.jobs() if job["NodeList"] == node}
        _end(self.processes.pop(node), signal.SIGKILL)
        # First the daemons of the steps, which would tell the controller how their jobs ended.
        for pid, command, job in _of_jobs():
            if job in jobs and command.startswith("slurmstepd"):
                os.kill(pid, signal.SIGKILL)
        for pid in self.pids(*jobs):
            os.kill(pid, signal.SIGKILL)

    def pids(self, *jobs: str) -> list[int]:
        """Processes of some jobs."""
        return [pid for pid, _, job in _of_jobs() if job in jobs]

    def jobs(self) -> list[dict[str, str]]:
        """All jobs, those that are over too, as scontrol tells them; a field by its name."""
        lines = self.run("scontrol", "--oneliner", "--details", "show", "job").splitlines()
        return [
            dict(item.partition("=")[::2] for item in line.split())
            for line in lines
            if line.startswith("JobId=")
        ]

    def _spawn(self, name: str, *command: str | Path) -> None:
        log = open(self.folder / f"{name}.out", "ab")  # noqa: SIM115 (the child's)
        with log:
            self.processes[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_with_parent,
            )

    def nodes(self) -> dict[str, str]:
        """Node -> state; nothing while the controller does not answer."""
        try:
            lines = self.run("sinfo", "--noheader", "--Node", "--format=%N %T").splitlines()
        except subprocess.CalledProcessError:
            return {}
        return dict(line.split() for line in lines)

    def run(self, *command: str) -> str:
        """What a command of SLURM prints."""
        return subprocess.run(
            command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
        ).stdout.strip()

    def update_node(self, node: str, state: str) -> None:
        reason = ["Reason=test"] if state in ("drain", "down") else []
        self.run("scontrol", "update", f"NodeName={node}", f"State={state}", *reason)

    def stop(self) -> None:
        """Cancel all jobs and end all daemons; nothing is left behind."""
        if self.nodes():
            self.run("scancel", "--user", "root")
            with suppress(TimeoutError):
                wait_for(lambda: not self.run("squeue", "--noheader"), 15, "jobs that end")
        for name in [*NODES, "slurmctld", "munged"]:
            if name in self.processes:
                _end(self.processes.pop(name), signal.SIGTERM)
        for pid, _, _ in _of_jobs():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _of_jobs() -> list[tuple[int, str, str]]:
    """Process id, command line and job id of every process of this cluster's jobs."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            environment = (folder / "environ").read_bytes().decode().split("\0")
        except (OSError, ValueError):
            continue
        known = dict(item.partition("=")[::2] for item in environment)
        step = re.match(r"slurmstepd: \[(\d+)", command)
        if step is not None:
            found.append((int(folder.name), command, step[1]))
        elif known.get("SLURM_CLUSTER_NAME") == CLUSTER and "SLURM_JOB_ID" in known:
            found.append((int(folder.name), command, known["SLURM_JOB_ID"]))
    return found


def _with_parent() -> None:
    """In a child: end when the test process does, however it does."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _end(process: subprocess.Popen, with_signal: int) -> None:
    process.send_signal(with_signal)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> object:
    """Wait until a condition holds and return its value; TimeoutError when it does not in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.2)
    raise TimeoutError(f"no {what} within {seconds} s")


@contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """A cluster that is up, one at a time on this machine; all of it is gone afterwards."""
    with FileLock("/run/fitspace-slurm.lock"):
        kept = DEFAULT.with_name("slurm.conf.before-tests")
        if DEFAULT.is_symlink() and not DEFAULT.exists():
            DEFAULT.unlink()  # of a test run that was killed
        if DEFAULT.exists():
            DEFAULT.rename(kept)
        DEFAULT.parent.mkdir(exist_ok=True)
        cluster = Cluster(folder)
        try:
            DEFAULT.symlink_to(cluster.configuration)
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
            DEFAULT.unlink(missing_ok=True)
            if kept.exists():
                kept.rename(DEFAULT)
