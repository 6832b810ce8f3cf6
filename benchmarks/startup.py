"""Start-up of the commands, and a plan of a thousand runs: medians of whole processes.

Run by `make bench`. Timings depend on the machine: compare rows of one run, not of two.
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
_IMPORT = "import torch; import fitspace.imports as i; i.{0}(); "
_MODELS = "from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel"


def thousand_runs() -> dict:
    """The default study at 21 widths and three seeds: 16 × 21 × 3 = 1,008 runs."""
    study = yaml.safe_load((ROOT / "params/emoji.yaml").read_text())
    arm = copy.deepcopy(study["arms"][0])
    arm["factors"]["width"] = list(range(1, 22))
    del arm["settings"]["width"]
    return study | {"name": "thousand", "arms": [arm], "seeds": [0, 1, 2]}


def seconds(command: list[str]) -> float:
    """Median wall time of a command [s]."""
    times = []
    for _ in range(RUNS):
        start = time.monotonic()
        subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True)
        times.append(time.monotonic() - start)
    return statistics.median(times)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "thousand.yaml"
        study.write_text(yaml.safe_dump(thousand_runs()))
        python = [sys.executable, "-c"]
        rows = {
            "fitspace --version": ["fitspace", "--version"],
            "fitspace check params/emoji.yaml": ["fitspace", "check", "params/emoji.yaml"],
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
        width = max(map(len, rows))
        for name, command in rows.items():
            print(f"{name:<{width}}  {seconds(command):6.2f} s", flush=True)


if __name__ == "__main__":
    main()
