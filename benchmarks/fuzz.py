"""Hostile input of every kind, for as long as wanted: how many were tried, and what came of them.

    python benchmarks/fuzz.py --minutes 10 --seed 1 [--kinds tables images] [--again tables/1/123]

Each input is drawn from its kind, the seed and a number, and is tried under the watch of
tests/hostile.py. Refused is an input that ended in a UserError, accepted one that was used;
anything else is a failure, named so that ``--again`` makes it once more. Exits with 1 if any is.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
SLICE = 10.0  # seconds that one kind has before the next has its turn


def outcome(kind, seed: int, number: int) -> tuple[str, str, str]:
    """accepted, refused or failed; of a failure also what was raised where, and its words."""
    from hostile import Slow

    try:
        return ("refused" if kind(seed, number) else "accepted"), "", ""
    except (Exception, Slow) as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if "/fitspace/" in f.filename] or frames
        where = f"{Path(own[-1].filename).name}:{own[-1].lineno} {own[-1].name}"
        return "failed", f"{type(error).__name__} at {where}", str(error)[:300]


def fuzz(kinds: list, seed: int, minutes: float) -> tuple[dict[str, Counter], dict[str, list[str]]]:
    """Counts by kind and outcome, and the names of the inputs behind each failure."""
    counts = {kind.name: Counter() for kind in kinds}
    failures: dict[str, list[str]] = {}
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        for kind in kinds:
            stop = min(end, time.monotonic() + SLICE)
            while time.monotonic() < stop:
                number = counts[kind.name].total()
                result, where, why = outcome(kind, seed, number)
                counts[kind.name][result] += 1
                if where:
                    found = failures.setdefault(f"{kind.name}: {where}", [])
                    found.append(f"{seed}/{number}: {why}")
    return counts, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", default=None)
    parser.add_argument("--again", metavar="KIND/SEED/NUMBER", help="one input, with its traceback")
    parser.add_argument("--project", type=Path, help="a copy of a finished study, to be damaged")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    from hostile_kinds import KINDS, OF_A_STUDY, made

    with tempfile.TemporaryDirectory(prefix="fitspace-fuzz-") as name:
        tempfile.tempdir = name
        if arguments.again:
            kind, seed, number = arguments.again.rsplit("/", 2)
            refused = made(kind, Path(name), arguments.project)(int(seed), int(number))
            print("refused" if refused else "accepted")
            return 0
        names = arguments.kinds or [*KINDS, *(OF_A_STUDY if arguments.project else ())]
        kinds = [made(kind, Path(name), arguments.project) for kind in names]
        counts, failures = fuzz(kinds, arguments.seed, arguments.minutes)
    print(f"{'kind':16} {'tried':>9} {'accepted':>9} {'refused':>9} {'failed':>9}")
    for kind, found in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        row = (found.total(), found["accepted"], found["refused"], found["failed"])
        print(f"{kind:16} " + " ".join(f"{n:9,}" for n in row))
    for why, which in sorted(failures.items(), key=lambda item: -len(item[1])):
        print(f"\n{len(which)} x {why}")
        print("\n".join(f"    {one}" for one in which[:3]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
