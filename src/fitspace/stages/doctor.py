"""What a run needs of a machine and a project, looked at before anything runs."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from fitspace.core import git
from fitspace.core.errors import UserError
from fitspace.core.files import is_pointer
from fitspace.core.paths import RESULTS

PINS = Path("constraints.txt")
MODELS = Path("models")
LEAST_MEMORY = 4 * 2**30  # bytes: one job of the embedded studies and the driver
LEAST_DISK = 2 * 2**30
LOCKS = Path(".snakemake/locks")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    ``state``: ``ok``; ``note``, if it can be better; ``wrong``, if nothing runs so. ``help``: what
    to do, empty if nothing.
    """

    what: str
    state: str
    found: str
    help: str = ""


def examine() -> list[Finding]:
    """Everything that was looked at, in the folder of a project."""
    return [finding for look in _LOOKS for finding in look()]


def render(findings: list[Finding], as_json: bool = False) -> str:
    """The findings as lines, or as JSON."""
    if as_json:
        return json.dumps([asdict(finding) for finding in findings], indent=2)
    width = max(len(finding.what) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:5}  {finding.what:{width}}  {finding.found}")
        if finding.help:
            lines.append(f"{'':{width + 7}}  {finding.help}")
    return "\n".join(lines)


def _python() -> Iterator[Finding]:
    found = f"{platform.python_version()} at {sys.prefix}"
    fits = sys.version_info[:2] == (3, 11)
    yield Finding("Python", "ok" if fits else "wrong", found, "" if fits else "needed: Python 3.11")


def _packages() -> Iterator[Finding]:
    """Packages of the pins that are here in another version."""
    if not PINS.exists():
        yield Finding("packages", "note", f"no {PINS} here", "run it in the project's folder")
        return
    others, count = [], 0
    for line in PINS.read_text(encoding="utf-8").splitlines():
        name, _, pinned = line.split("#")[0].split(";")[0].strip().partition("==")
        if not pinned:
            continue
        try:
            installed = version(name)
        except PackageNotFoundError:
            continue
        count += 1
        if installed.partition("+")[0] != pinned.partition("+")[0]:
            others.append(f"{name} {installed}, pinned {pinned}")
    if others:
        yield Finding(
            "packages", "note", "; ".join(others[:5]) + "; ..." * (len(others) > 5),
            "other versions may give other numbers; make .venv/ready installs the pins",
        )  # fmt: skip
    else:
        yield Finding("packages", "ok", f"{count} as {PINS} pins them")


def _torch() -> Iterator[Finding]:
    from fitspace.core.imports import import_torchvision

    try:
        import torch

        import_torchvision()
    except Exception as error:  # a broken installation raises anything
        yield Finding("torch", "wrong", f"{type(error).__name__}: {error}", "make .venv/ready")
        return
    yield Finding("torch", "ok", torch.__version__)
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        named = ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in gpus)
        yield Finding("GPU", "ok", named)
    else:
        yield Finding(
            "GPU", "note", "none", "enough for the embedded studies; not for SD or DiT-XL"
        )


def _machine() -> Iterator[Finding]:
    yield Finding("cores", "ok", str(len(psutil.Process().cpu_affinity())))
    free = psutil.virtual_memory().available
    short = free < LEAST_MEMORY
    yield Finding(
        "free memory", "note" if short else "ok", f"{free / 2**30:.1f} GiB",
        "fewer jobs at once: snakemake --cores 1" if short else "",
    )  # fmt: skip
    place = RESULTS if RESULTS.exists() else Path()
    disk = shutil.disk_usage(place).free
    short = disk < LEAST_DISK
    yield Finding(
        "free disk", "wrong" if short else "ok", f"{disk / 2**30:.1f} GiB for {RESULTS}",
        "fitspace gc lists results that no study names" if short else "",
    )  # fmt: skip


def _project() -> Iterator[Finding]:
    if not Path("Snakefile").exists():
        yield Finding("project", "wrong", f"no Snakefile in {Path.cwd()}", "cd to the project")
    try:
        commit = git.run("rev-parse", "--short=12", "HEAD").decode().strip()
        changed = git.run("status", "--porcelain").decode().splitlines()
        state = f"commit {commit}" + f", {len(changed)} files not committed" * bool(changed)
        advice = "fitspace record wants them committed" if changed else ""
        yield Finding("git", "note" if changed else "ok", state, advice)
    except git.GitError as error:
        said = str(error).splitlines()[0]
        yield Finding("git", "note", said, "results are then recorded without a commit")
    if LOCKS.exists() and any(LOCKS.iterdir()):
        yield Finding(
            "lock", "note", "another snakemake runs here, or was killed",
            "if none runs: snakemake --unlock",
        )  # fmt: skip


def _weights() -> Iterator[Finding]:
    """Embedded weights that git holds as pointers, and the text encoder's package."""
    files = sorted(MODELS.rglob("*.safetensors")) if MODELS.exists() else []
    pointers = [path.as_posix() for path in files if is_pointer(path)]
    if pointers:
        yield Finding("weights", "wrong", f"pointers: {', '.join(pointers[:3])}", "git lfs pull")
    else:
        yield Finding("weights", "ok", f"{len(files)} files in {MODELS}")


def _slurm() -> Iterator[Finding]:
    from fitspace.stages.slurm import SITE, unfinished

    if shutil.which("sbatch") is None:
        yield Finding("SLURM", "ok", "none: jobs run on this machine")
        return
    try:
        left = unfinished()
    except UserError as error:
        yield Finding("SLURM", "wrong", str(error), "is slurmctld up?")
        return
    site = "" if SITE.exists() else f"; no {SITE}: the cluster's defaults"
    yield Finding("SLURM", "ok", f"{len(left)} jobs of this project left{site}")


_LOOKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _python, _packages, _torch, _machine, _project, _weights, _slurm,
)  # fmt: skip
