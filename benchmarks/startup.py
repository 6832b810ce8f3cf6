"""Start-up of the commands, and a plan of a thousand runs: medians of whole processes.

    python benchmarks/startup.py

Timings depend on the machine: compare rows of one run, not of two. What a finished study costs to
look at again, and a job that finds its work done, is in benchmarks/study.py.
"""

from __future__ import annotations

import copy
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
RUNS = 3
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
_IMPORT = "import torch; import fitspace.core.imports as i; i.{0}(); "
_MODELS = "from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel"


def thousand_runs() -> dict:
    """The default study at 21 widths and three seeds: 16 × 21 × 3 = 1,008 runs."""
    study = yaml.safe_load((ROOT / "params/emoji.yaml").read_text())
    arm = copy.deepcopy(study["arms"][0])
    arm["factors"]["width"] = list(range(1, 22))
    del arm["settings"]["width"]
    return study | {"name": "thousand", "arms": [arm], "seeds": [0, 1, 2]}


def seconds(command: list[str]) -> float:
    """Median wall time of a command [s]. An audit without the results ends with 3."""
    times = []
    for _ in range(RUNS):
        start = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True)
        times.append(time.monotonic() - start)
        if done.returncode not in (0, 3):
            raise SystemExit(f"{command}: {done.stderr.decode()}")
    return statistics.median(times)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "thousand.yaml"
        study.write_text(yaml.safe_dump(thousand_runs()))
        python = [sys.executable, "-c"]
        rows = {
            "fitspace --version": ["fitspace", "--version"],
            "fitspace check params/emoji.yaml": ["fitspace", "check", "params/emoji.yaml"],
            "fitspace plan params/emoji.yaml": ["fitspace", "plan", "params/emoji.yaml"],
            "fitspace anova reports/emoji/runs.csv ...": [
                *("fitspace", "anova", "reports/emoji/runs.csv", "--response", "clip_i"),
                *("--factors", "input", "output", "--block", "seed"),
            ],
            "fitspace audit --tier hash params/emoji.yaml": [
                *("fitspace", "audit", "--tier", "hash", "params/emoji.yaml"),
            ],
            "fitspace gc": ["fitspace", "gc"],
            "one number of the report, audited": [
                *("fitspace", "audit", "--value", "reports/emoji/runs.csv#3/clip_i"),
            ],
            "fitspace count --base sd15 ...": [
                *("fitspace", "count", "--base", "sd15", "--method", "adapter"),
                *("--set", "input=CA_out", "--set", "output=FFN_in"),
            ],
            "import of a U-Net, with all that diffusers pulls in": [
                *python,
                _IMPORT.format("import_torchvision") + _MODELS,
            ],
            "import of a U-Net, as training jobs do": [
                *python,
                _IMPORT.format("import_only_models") + _MODELS,
            ],
            "snakemake -n, default study": ["snakemake", "-n", "--quiet", "all"],
            "snakemake -n, 1,008 runs": [
                *("snakemake", "-n", "--quiet", "all", "--config", f"study={study}"),
            ],
        }
        print("| command | seconds |\n|---|---|")
        for name, command in rows.items():
            print(f"| {name} | {seconds(command):.2f} |", flush=True)


if __name__ == "__main__":
    main()
