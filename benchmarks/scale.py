"""Studies of up to 10,000 runs, finished with stand-ins: what planning and reporting them costs.

Run by `python benchmarks/scale.py`. Each size is a project of its own in a temporary folder: the
real workflow, profiles and models, a valid study file, and for every stage small files and made-up
metrics, with the sidecars that the stages themselves write. Nothing is trained. Commands are whole
processes, measured once; the last column is the slope between the smallest and the largest size on
logarithmic scales: 1 is linear, 2 is quadratic.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT / "src"),
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
STUDY = Path("params/scale.yaml")
STYLES = ("sepia", "blueprint", "line", "night")
SEEDS = 5
PROMPTS = 8
PER_JOB = 10
PER_WIDTH = 16 * 2 * len(STYLES) * SEEDS  # legal pairs, activations, tasks, seeds
# What an adapter of a real run names in its sidecar.
SHAPES = {f"down_blocks.{i // 2}.attentions.0.adapter.{i}.weight": [8, 64] for i in range(28)}


def study(runs: int) -> dict:
    """At least so many runs: the default study's pairs at some widths, on four tasks, five seeds.

    Three responses; the untouched base and full fine-tuning beside them.
    """
    content = yaml.safe_load((ROOT / "params/emoji.yaml").read_text(encoding="utf-8"))
    del content["metrics"]
    arm, *others = content["arms"]
    del arm["settings"]["width"], arm["settings"]["activation"]
    arm["factors"] |= {
        "activation": ["relu", "silu"],
        "width": list(range(1, max(2, math.ceil(runs / PER_WIDTH)) + 1)),
    }
    return content | {
        "name": "scale",
        "title": "Many runs",
        "tasks": [{"name": s, "source": "openmoji", "style": s} for s in STYLES],
        "arms": [arm, {"method": "full"}, *others],
        "seeds": list(range(SEEDS)),
        "sample": {"prompts": PROMPTS, "steps": 10, "guidance": 3.0},
        "analysis": {
            "factors": list(arm["factors"]),
            "responses": ["clip_i", "fd_effnet", "clip_t"],
            "transform": {"fd_effnet": "log"},
            "margins": {"clip_i": 0.01},
        },
    }


# --- stand-ins --------------------------------------------------------------------------


def project(folder: Path, content: dict) -> None:
    """A project with this study: models and workflow are links to this checkout's."""
    for name in ("models", "workflow", "Snakefile", ".gitignore"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "profiles", folder / "profiles")
    site = folder / "profiles/slurm/site.yaml"
    site.write_text(site.read_text().replace("runs_per_job: 1 ", f"runs_per_job: {PER_JOB} "))
    (folder / STUDY).parent.mkdir()
    (folder / STUDY).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def fill(folder: Path) -> None:
    """Finish the study in ``folder``: every stage has its files, by no computation."""
    os.chdir(folder)
    os.fsync = lambda handle: None  # made for minutes only
    from fitspace.plan import build_plan, load_study

    plan = build_plan(load_study(STUDY))
    for write in (_task, _run):
        done = set()
        for run in plan.runs:
            write(run, done)


def _task(run, done: set) -> None:
    import numpy as np
    from safetensors.numpy import save

    from fitspace.core.files import canonical

    if run.prepare.key in done:
        return
    done.add(run.prepare.key)
    pixels = save({"images": np.full((PROMPTS, 8, 8, 3), 127, np.uint8)})
    captions = ["", *(f"thing {i}" for i in range(PROMPTS))]
    manifest = {
        "task": run.task.name,
        "attribution": "",
        "captions": captions,
        "examples": [
            {"name": c, "caption": i, "group": c, "split": "test", "sha256": ""}
            for i, c in enumerate(captions[1:], 1)
        ],
        "prompts": list(range(1, len(captions))),
        "prompt_images": list(range(PROMPTS)),
    }
    files = {f"{name}.safetensors": pixels for name in ("latents", "text", "images")}
    _finish(run.prepare, files | {"manifest.json": canonical(manifest).encode()}, {})
    _finish(run.reference, {"features.safetensors": pixels}, {}, run.prepare)


def _run(run, done: set) -> None:
    draw = random.Random(run.name)
    cost = None
    if run.train is not None:
        cost = {
            "trainable": 1000 * run.point.settings.get("width", 4000),
            "total": 4_648_072,
            "final_loss": draw.uniform(0.1, 0.2),
            "train_seconds": draw.uniform(10, 12),
            "peak_memory_mb": 420.0,
        }
        files = {"adapter.safetensors": _adapter(), "history.csv": _history()}
        _finish(run.train, files, cost | {"trainables": SHAPES}, run.prepare)
    facts = {"images": PROMPTS, "sample_seconds": draw.uniform(5, 6), "train": cost}
    upstream = [stage for stage in (run.prepare, run.train) if stage]
    files = {"samples.safetensors": _samples(), "sheet.png": _sheet()}
    _finish(run.sample, files, facts, *upstream)
    from fitspace.core.files import canonical

    metrics = canonical(_metrics(run, draw)).encode()
    facts = {"seconds": 5.5, "sample": facts}
    _finish(run.evaluate, {"metrics.json": metrics}, facts, run.sample, run.reference)


def _metrics(run, draw: random.Random) -> dict:
    """What a run may have measured: where it writes matters, the rest hardly does."""
    last = ["SA_in", "CA_in", "FFN_in", "Trans_out"].index(run.point.factors.get("output", "SA_in"))
    y = 0.1 * last + 0.05 * math.log(run.point.factors.get("width", 1)) + draw.gauss(0, 0.03)
    numbers = {
        "clip_t": 0.3 + 0.01 * y + draw.gauss(0, 0.001),
        "clip_i": 0.7 + 0.05 * y,
        "clip_i_paired": 0.78 + 0.04 * y + draw.gauss(0, 0.002),
        "diversity": 0.2 + draw.gauss(0, 0.01),
        "fd_effnet": 42 * math.exp(-y),
        "kid_effnet": 0.02 - 0.01 * y,
        "precision": 0.6,
        "recall": 0.5,
    }
    distance = numbers["fd_effnet"]
    limits = {"jackknife": 0.9, "low": 0.8, "high": 1.0}
    numbers |= {f"fd_effnet_{name}": share * distance for name, share in limits.items()}
    curve = [
        {"n": n, "fd_effnet": distance * (1 + 1 / n), "kid_effnet": numbers["kid_effnet"]}
        for n in (2, 4, 6, PROMPTS)
    ]
    return numbers | {"n": PROMPTS, "m": PROMPTS, "against_n": curve}


@functools.cache
def _adapter() -> bytes:
    import numpy as np
    from safetensors.numpy import save

    return save({"weight": np.zeros(4, np.float32)})


@functools.cache
def _samples() -> bytes:
    import numpy as np
    from safetensors.numpy import save

    return save({"images": np.full((PROMPTS, 8, 8, 3), 100, np.uint8)})


@functools.cache
def _sheet() -> bytes:
    import io

    from PIL import Image

    page = io.BytesIO()
    Image.new("RGB", (8, 8)).save(page, "PNG")
    return page.getvalue()


@functools.cache
def _history() -> bytes:
    return "".join(["step,loss,lr\n", *(f"{i},0.1{i},0.003\n" for i in range(70))]).encode()


def _finish(stage, files: dict[str, bytes], facts: dict, *upstream) -> None:
    from fitspace.stages.sidecars import now, write_sidecar

    stage.folder.mkdir(parents=True)
    for name, content in files.items():
        (stage.folder / name).write_bytes(content)
    inputs = [path for above in upstream for path in sorted(above.folder.iterdir())]
    outputs = [stage.folder / name for name in files]
    write_sidecar(stage, inputs=inputs, outputs=outputs, started=now(), facts=facts)


# --- measuring --------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Wall and CPU seconds, and peak memory [MiB], of a process and those it started."""

    wall: float
    cpu: float
    memory: float


def measure(folder: Path, *command: str, ends: tuple[int, ...] = (0,)) -> Cost:
    """Run a command in ``folder`` that has to end with one of these exit codes."""
    with tempfile.TemporaryFile() as said:
        start = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        _, status, used = os.wait4(process.pid, 0)
        wall = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in ends:
            said.seek(0)
            sys.exit(f"{' '.join(command)}\n{said.read().decode(errors='replace')}")
    return Cost(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def measured(folder: Path, runs: int, track: bool) -> dict[str, Cost | int]:
    """Every command on a study of that size, first with nothing done, then finished."""
    project(folder, study(runs))
    config = ("--config", f"study={STUDY}")
    dry = ("snakemake", "-n", "--quiet", "all", *config)
    found: dict[str, Cost | int] = {}

    def row(name: str, *command: str, **options) -> None:
        found[name] = measure(folder, *command, **options)
        show = found[name]
        print(f"  {name}: {show.wall:.1f} s, {show.memory:.0f} MiB", file=sys.stderr, flush=True)

    row("fitspace check", "fitspace", "check", str(STUDY))
    row("fitspace plan", "fitspace", "plan", str(STUDY))
    row("fitspace plan, again", "fitspace", "plan", str(STUDY))
    row("snakemake -n, nothing done", *dry)
    row(f"the same, {PER_JOB} runs a SLURM job", *dry, "--workflow-profile", "profiles/slurm")
    measure(folder, sys.executable, __file__, "--fill", str(folder))
    row("a job's look at its run, finished before", *_job(folder))
    row("fitspace report --cached", "fitspace", "report", "--cached", str(STUDY))
    row("fitspace report", "fitspace", "report", str(STUDY))
    row("snakemake, everything done", "snakemake", "--cores", "1", *config)
    for command in ("init --quiet", "add params reports", "commit --quiet --message Study"):
        measure(folder, "git", *_WHO, *command.split())
    # 3: the commit of this checkout is not in the project's own repository.
    audit = ("fitspace", "audit", str(STUDY), "--tier", "hash")
    row("fitspace audit --tier hash", *audit, ends=(0, 3))
    row("fitspace gc", "fitspace", "gc")
    if track:
        row("fitspace track", "fitspace", "track", str(STUDY))
        row("fitspace track, again", "fitspace", "track", str(STUDY))
    found["runs"] = len(os.listdir(folder / "results/evaluate"))
    report = folder / "reports/scale"
    for name in ("report.html", "provenance.json", "origins.json", "runs.csv"):
        found[f"{name} [kB]"] = (report / name).stat().st_size // 1000
    return found


_WHO = ("-c", "user.name=scale", "-c", "user.email=scale@example.org")


def _job(folder: Path) -> tuple[str, ...]:
    """Reading the plan as every job does, of some run in the middle."""
    names = sorted(os.listdir(folder / "results/evaluate"))
    code = (
        "import sys; from fitspace.plan import planned; planned(sys.argv[1]).run_of(*sys.argv[2:])"
    )
    return (sys.executable, "-c", code, str(STUDY), "evaluate", names[len(names) // 2])


def slope(small: tuple[int, float], large: tuple[int, float]) -> float:
    """The exponent of growth between (runs, cost) of two sizes."""
    (n, a), (m, b) = small, large
    return math.log(b / a) / math.log(m / n)


def table(sizes: dict[int, dict]) -> str:
    """A Markdown table: a row for each command, a column for each size, and the exponent."""
    lines = ["| | " + " | ".join(f"{n:,} runs" for n in sizes) + " | exponent |"]
    lines.append("|" + "---|" * (len(sizes) + 2))
    for name in dict.fromkeys(name for found in sizes.values() for name in found):
        cells, values = [], []
        for n, found in sizes.items():
            cost = found.get(name)
            if isinstance(cost, Cost):
                cells.append(f"{cost.wall:.1f} s ({cost.cpu:.1f}), {cost.memory:.0f} MiB")
            else:
                cells.append("" if cost is None else f"{cost:,}")
            if cost:
                values.append((n, cost.cpu if isinstance(cost, Cost) else cost))
        grown = f"{slope(values[0], values[-1]):.2f}" if len(values) > 1 else ""
        lines.append(f"| {name} | {' | '.join(cells)} | {grown} |")
    return "\n".join(lines)


def entries(count: int) -> dict[str, float]:
    """Milliseconds of one folder with so many: of all for a listing, of one for the others."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        times = {}

        def timed(what: str, act, per: int) -> None:
            start = time.perf_counter()
            act()
            times[what] = 1000 * (time.perf_counter() - start) / per

        names = [f"adapter.CA_out-FFN_in.width8~sepia~s0~{i:012x}" for i in range(count)]
        some = random.Random(0).sample(names, 1000)
        timed("create", lambda: [(folder / n).mkdir() for n in names], count)
        timed("list all", lambda: os.listdir(folder), 1)
        timed("look at one", lambda: [(folder / n / "x.json").exists() for n in some], len(some))
        timed("remove", lambda: shutil.rmtree(folder, ignore_errors=True), count)
        folder.mkdir()
        return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, nargs="+", default=[1000, 2500, 5000, 10_000])
    parser.add_argument("--track", type=int, default=2500, help="up to how many runs to MLflow")
    parser.add_argument("--keep", type=Path, help="keep the projects in this folder")
    parser.add_argument("--fill", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.fill:
        return fill(given.fill)
    sizes = {}
    for runs in given.runs:
        if given.keep:
            given.keep.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=given.keep, prefix=f"scale-{runs}-"))
        print(f"{runs:,} runs in {folder}", file=sys.stderr, flush=True)
        try:
            found = measured(folder, runs, track=runs <= given.track)
        finally:
            if given.keep is None:
                shutil.rmtree(folder)
        sizes[found.pop("runs")] = found
    print(table(sizes))
    for count in (1000, 10_000, 100_000):
        times = ", ".join(f"{what} {value:.3f} ms" for what, value in entries(count).items())
        print(f"a folder of {count:,} folders: {times}")


if __name__ == "__main__":
    main()
