"""The whole default study against the naive way: the same runs, as `benchmarks/naive.py` does them.

    python benchmarks/study.py [--study params/emoji.yaml] [--naive 4] [--cores 2]

The study is made from nothing in a clone of the last commit, by `snakemake --cores N`: task,
references, all runs, analysis and report. Of its runs so many are made by the script too, one after
another with torch's own number of threads; the time of all of them is their method's median times
the number of runs. Metrics of both stand beside each other: neither way may be better.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
METRICS = ("clip_i", "clip_t", "fd_effnet")


def exported(study, folder: Path) -> tuple[Path, Path, list[str]]:
    """The task as a user would have it: folders of PNG files; and the prompts to draw."""
    from PIL import Image

    from fitspace import bases
    from fitspace.data import load_examples
    from fitspace.stages.prepare import prompt_images

    base = bases.resolve(study.base)
    found, *_ = load_examples(study.tasks[0], bases.image_size(base))
    found.sort(key=lambda e: (e.split != "train", e.name))
    held_out = [e for e in found if e.split == "test"]
    shown = [held_out[i] for i in prompt_images(held_out)]  # what is asked for, and compared with
    splits = {"train": [e for e in found if e.split == "train"], "test": shown}
    for split, examples in splits.items():
        (folder / split).mkdir(parents=True)
        lines = []
        for i, example in enumerate(examples):
            Image.fromarray(example.image).save(folder / split / f"{i:05}.png")
            lines.append(json.dumps({"file_name": f"{i:05}.png", "text": example.caption}))
        (folder / split / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    prompts = [example.caption for example in shown][: study.sample.prompts]
    return folder / "train", folder / "test", prompts


def naive(study, runs: list, folder: Path) -> dict[str, dict]:
    """Run name -> what the script says of it, with the ``wall`` time of its process."""
    images, held_out, prompts = exported(study, folder / "task")
    said = {}
    for i, run in enumerate(runs):
        job = {
            "base": str(ROOT / study.base),
            "judge": str(ROOT / study.judge),
            "images": str(images),
            "held_out": str(held_out),
            "prompts": prompts,
            "method": run.point.method,
            "settings": run.point.settings,
            "train": run.point.train,
            "sample": study.sample.model_dump(),
            "seed": run.seed,
            "out": str(folder / f"run{i}"),
        }
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, str(ROOT / "benchmarks/naive.py"), json.dumps(job)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        said[run.name] = json.loads(done.stdout.splitlines()[-1]) | {
            "wall": time.monotonic() - start
        }
        print(f"{run.name}: {said[run.name]}", file=sys.stderr, flush=True)
    return said


def ours(study_file: str, cores: int, folder: Path) -> tuple[float, dict[str, dict]]:
    """Seconds of the whole study from nothing, and its rows by the run's name."""
    clone = folder / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    start = time.monotonic()
    subprocess.run(
        ["snakemake", "--cores", str(cores), "--config", f"study={study_file}"],
        cwd=clone,
        env=environment,
        check=True,
    )
    seconds = time.monotonic() - start
    again = {
        "snakemake, nothing to do": [
            "snakemake",
            "--cores",
            "1",
            "--config",
            f"study={study_file}",
        ],
        "a training that is finished": ["fitspace", "train", study_file, "FOLDER"],
        "fitspace report --cached": ["fitspace", "report", "--cached", study_file],
        "fitspace track, nothing new": ["fitspace", "track", study_file],
    }
    folder_of_one = next((clone / "results/train").iterdir()).name
    print("| afterwards | seconds |\n|---|---|")
    for name, command in again.items():
        words = [folder_of_one if word == "FOLDER" else word for word in command]
        taken = []
        for _ in range(3):
            start = time.monotonic()
            subprocess.run(words, cwd=clone, env=environment, check=True, capture_output=True)
            taken.append(time.monotonic() - start)
        print(f"| {name} | {statistics.median(taken):.2f} |", flush=True)
    name = Path(study_file).stem
    with (clone / f"reports/{name}/runs.csv").open() as file:
        return seconds, {row["run"]: row for row in csv.DictReader(file)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", default="params/emoji.yaml")
    parser.add_argument("--naive", type=int, default=4, help="how many runs the script makes")
    parser.add_argument("--cores", type=int, default=2)
    arguments = parser.parse_args()
    os.chdir(ROOT)
    from fitspace.plan import build_plan, load_study

    study = load_study(Path(arguments.study))
    runs = build_plan(study).runs
    # One of each method first, then others in the plan's order.
    first = list({run.point.method: run for run in reversed(runs)}.values())
    chosen = [*first, *(run for run in runs if run not in first)][: arguments.naive]
    with tempfile.TemporaryDirectory() as folder:
        said = naive(study, chosen, Path(folder))
        seconds, rows = ours(arguments.study, arguments.cores, Path(folder))
    walls: dict[str, list[float]] = {}
    for run in chosen:
        walls.setdefault(run.point.method, []).append(said[run.name]["wall"])
    known = {method: statistics.median(taken) for method, taken in walls.items()}
    estimate = sum(known.get(r.point.method, statistics.median(known.values())) for r in runs)
    print(f"\n{len(runs)} runs, {arguments.cores} cores; {len(chosen)} of them by the script")
    print(f"naive {estimate:.0f} s | fitspace {seconds:.0f} s | {estimate / seconds:.2f} times")
    print("\n| run | | " + " | ".join(METRICS) + " |\n|---|---|" + "---|" * len(METRICS))
    for run in chosen:
        values = {"naive": said[run.name]["metrics"], "fitspace": rows[run.name]}
        for way, found in values.items():
            shown = " | ".join(f"{float(found[m]):.4g}" for m in METRICS)
            print(f"| {run.name} | {way} | {shown} |")


if __name__ == "__main__":
    main()
