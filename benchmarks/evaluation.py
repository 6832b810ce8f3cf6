"""What evaluating a study's runs took beside training and sampling them, by their own records.

    python benchmarks/evaluation.py [STUDY ...]

provenance.json has when each stage started and finished: seconds of work, without a process's
start-up. Target: evaluation takes at most a third of training and sampling.
"""

from __future__ import annotations

import statistics
import sys
from datetime import datetime
from pathlib import Path

from fitspace.results import lineage

STUDIES = ("emoji", "emoji-dreambooth")
STAGES = ("train", "sample", "evaluate")
TARGET = 1 / 3


def main() -> None:
    print(f"| study | {' | '.join(STAGES)} | evaluation / (training + sampling) |")
    print("|" + "---|" * (len(STAGES) + 2))
    for name in sys.argv[1:] or STUDIES:
        taken: dict[str, list[float]] = {stage: [] for stage in STAGES}
        for record in lineage.read(Path("reports") / name).records.values():
            if record.stage in taken and record.started:
                started, finished = map(datetime.fromisoformat, (record.started, record.finished))
                taken[record.stage].append((finished - started).total_seconds())
        cells = [f"{statistics.median(own):.1f} s ({len(own)})" for own in taken.values()]
        share = sum(taken["evaluate"]) / (sum(taken["train"]) + sum(taken["sample"]))
        said = "" if share <= TARGET else ": **not met**"
        print(f"| {name} | {' | '.join(cells)} | {share:.2f}{said} |")


if __name__ == "__main__":
    main()
