"""SLURM: the site's file, and the jobs of a project that have not ended.

``profiles/slurm/profile.yaml`` reads the site's file. A driver asks at its start for the jobs that
an earlier driver left behind.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from fitspace.core.errors import UserError
from fitspace.plan.table import STAGES

SITE = Path("profiles/slurm/site.yaml")
LOGS = Path(".snakemake/slurm_logs")  # there as long as a driver's jobs are not all done
# Final states of a job; a job in any other state (held, requeued, suspended, ...) may go on.
OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "REVOKED", "TIMEOUT",
}  # fmt: skip
SQUEUE_SECONDS = 60
GPU_STAGES = tuple(row.name for row in STAGES.values() if row.gpu)  # one GPU each
GROUPED = tuple(row.name for row in STAGES.values() if row.grouped)  # several runs as one job


def _text(pattern: str, allowed: str) -> Any:
    """A string type for texts that match a pattern, with the words that describe them."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value, re.ASCII):
            raise ValueError(f"allowed: {allowed}")
        return value

    return Annotated[str, AfterValidator(check)]


# Texts that go into sbatch's command line unchanged.
Word = _text(r"[\w.:@+-]{1,100}", "letters, digits and _ . : @ + -")
Words = _text(r"[\w.:@+-]+(,[\w.:@+-]+)*", "names of letters, digits and _ . : @ + -, by commas")
Nodes = _text(r"[\w.,\[\]-]{1,400}", "names of nodes by commas, such as node03,node[07-09]")
Features = _text(r"[\w.:&|()\[\]*,-]{1,200}", "features joined by & | and brackets")
GPU = _text(r"[\w.]{1,60}", "letters, digits and _ .")
Line = _text(r"[^\x00-\x1f\x7f]{1,1000}", "one line")
Minutes = Annotated[int, Field(ge=1, le=525_600)]
Memory = Annotated[int, Field(ge=100, le=100_000_000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _of_stages(name: str, kind: Any, column: str) -> type[_Strict]:
    """A model with a number for each stage; the defaults are a column of the table of stages."""
    fields = {row.name: (kind, getattr(row, column)) for row in STAGES.values()}
    return create_model(name, __base__=_Strict, **fields)


Time = _of_stages("Time", Minutes, "minutes")
MemoryMB = _of_stages("MemoryMB", Memory, "memory_mb")


class Site(_Strict):
    """Settings that differ between clusters; ``docs/slurm.md`` explains every key."""

    account: Word | None = None
    partition: Words | None = None
    gpu_partition: Words | None = None
    gpu_type: GPU | None = None
    qos: Word | None = None
    constraint: Features | None = None
    exclude_nodes: Nodes | None = None
    setup: Line | None = None
    gpu_request: Literal["gpu", "gres", "none"] = "gpu"
    memory_request: Literal["mem", "mem_per_cpu", "none"] = "mem"
    compile: bool = False
    gradient_checkpointing: bool = False
    max_jobs: int = Field(100, ge=1, le=100_000)
    runs_per_job: int = Field(1, ge=1, le=1000)
    minutes: Time = Time()
    max_minutes: Minutes = 525_600
    memory_mb: MemoryMB = MemoryMB()
    max_memory_mb: Memory = 100_000_000

    @property
    def gres(self) -> str:
        """One GPU, where a cluster knows them as generic resources alone."""
        return f"gpu:{self.gpu_type}:1" if self.gpu_type else "gpu:1"


# What SLURM tells a job of the GPUs that it has: which, and how many.
_WHICH = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_HOW_MANY = ("SLURM_GPUS", "SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_NODE")


def need_gpu(stage: str) -> None:
    """Stop a stage that a site gives a GPU, in a job of this project that has none: its hours on
    a CPU would be for nothing.

    Raises UserError.
    """
    job, name = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_JOB_NAME", "")
    if not job or not name.startswith(prefix()) or stage not in GPU_STAGES:
        return
    which = any(os.environ.get(name, "") not in ("", "NoDevFiles") for name in _WHICH)
    many = any(os.environ.get(name, "") not in ("", "0") for name in _HOW_MANY)
    if not which and not many and site().gpu_request != "none":
        raise UserError(
            f"{stage}: SLURM job {job} has no GPU, and this stage is given one; was it lost by "
            "--set-resources, which takes the profile's place? Keys of the site's file do not: "
            "compile, gradient_checkpointing; gpu_request: none, for a cluster without GPUs"
        )


@dataclass(frozen=True)
class Job:
    """A SLURM job that has not ended: its id, state, node ("" before it has one) and comment.

    The plugin writes the comment: ``rule_train_wildcards_<folder>``.
    """

    id: str
    state: str
    node: str
    comment: str

    def __str__(self) -> str:
        what = self.comment.removeprefix("rule_").replace("_wildcards_", " ")
        where = f" on {self.node}" if self.node else ""
        return f"{what} (SLURM job {self.id}, {self.state.lower()}{where})"


def site(path: Path | None = None) -> Site:
    """Read a site's file, by default ``FITSPACE_SITE`` or ``profiles/slurm/site.yaml``.

    Raises
    ------
    UserError : a file that is missing or not YAML, and every key that is unknown or wrong.
    """
    path = path or Path(os.environ.get("FITSPACE_SITE") or SITE)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; it says how this cluster is used") from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: not readable as YAML ({error})") from None
    if not isinstance(content, dict | None):
        raise UserError(f"{path}: holds no keys; allowed: {', '.join(Site.model_fields)}")
    try:
        return Site.model_validate(content or {})
    except ValidationError as error:
        raise UserError([f"{path}: {_problem(e)}" for e in error.errors()]) from None


def _problem(error: dict[str, Any]) -> str:
    key = ".".join(map(str, error["loc"]))
    by_stage = ", ".join(Time.model_fields)
    if error["type"] == "extra_forbidden":
        allowed = by_stage if len(error["loc"]) > 1 else ", ".join(Site.model_fields)
        return f"{key}: unknown key; allowed: {allowed}"
    if error["type"] == "model_type":
        return f"{key}: {error['input']!r}; allowed: a number for each of {by_stage}"
    value = repr(error["input"])
    value = value if len(value) <= 80 else f"{value[:77]}..."
    return f"{key}: {value}: {error['msg'].removeprefix('Value error, ').lower()}"


def site_or_exit() -> Site:
    """The site's file, for the profile; if it has problems, the process ends with exit code 2.

    An exception would reach Snakemake, which prints its whole usage above it.
    """
    try:
        return site()
    except UserError as error:
        for problem in error.problems:
            print(f"fitspace: {problem}", file=sys.stderr)
        sys.exit(2)


def prefix(project: Path | None = None) -> str:
    """The prefix of the names of a project's jobs; each project folder has its own."""
    folder = str((project or Path.cwd()).resolve())
    return f"fitspace-{hashlib.sha256(folder.encode()).hexdigest()[:12]}"


def unfinished(project: Path | None = None) -> list[Job]:
    """This user's jobs of a project that have not ended; empty without SLURM.

    Raises
    ------
    UserError : SLURM does not answer, and the project has submitted jobs before.
    """
    project = project or Path.cwd()
    if shutil.which("squeue") is None:
        return []
    # Only the name and the comment can contain a |, and our names do not.
    command = ["squeue", "--noheader", "--me", "--states=all", "--format=%i|%T|%N|%j|%k"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=SQUEUE_SECONDS
        )
        problem = done.stderr.strip() if done.returncode else None
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem is not None:
        if not (project / LOGS).exists():
            return []
        raise UserError(
            f"squeue: {problem}: cannot tell whether jobs of an earlier start still run; "
            f"try again, or delete {project / LOGS} if there are none"
        )
    name = re.escape(prefix(project))
    line = re.compile(rf"([^|]*)\|([^|]*)\|([^|]*)\|{name}_[^|]*\|(.*)")
    found = (match for text in done.stdout.splitlines() if (match := line.fullmatch(text.strip())))
    return [Job(id, state, node, comment) for id, state, node, comment in
            (match.groups() for match in found) if state not in OVER]  # fmt: skip
