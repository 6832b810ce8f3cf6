"""The time left, on the recorded events of whole studies."""

import csv
from pathlib import Path

import pytest

from fitspace.stages.timeleft import Progress

# How each was done: up to eight runs a process, one, or on a cluster with four runs a job.
CORES = {"together": 2}
EVENTS = Path(__file__).parents[1] / "data/events"
NEAR_THE_END = 10.0  # seconds: a ratio says nothing there


def recorded(name: str) -> tuple[dict[str, int], list[tuple[float, str, list[dict]]]]:
    """Jobs to do by rule; events: when, what, and the rows that say of what."""
    jobs, events = {}, []
    with (EVENTS / f"{name}.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["what"] == "jobs":
                jobs[row["rule"]] = int(row["run"])
            elif row["what"] == "held":
                events[-1][2].append(row)
            else:
                events.append((float(row["at"]), row["what"], [row]))
    return jobs, events


def replayed(name: str) -> tuple[list[tuple[int, float, float]], Progress]:
    """At each event of a recording: how many jobs are done, when, and the time left [s]."""
    jobs, events = recorded(name)
    progress, done, found = Progress(jobs, CORES[name]), 0, []
    for at, what, rows in events:
        if what == "hold":
            progress.hold(at, {(r["rule"], r["run"]): r["who"] for r in rows[1:]})
        else:
            {"begin": progress.begin, "make": progress.make, "end": progress.end}[what](
                at, (rows[0]["rule"], rows[0]["run"])
            )
        done += what == "end"
        found.append((done, at, progress.left(at)))
    return found, progress


@pytest.mark.parametrize("name", CORES)
def test_the_time_left_is_right_within_a_factor_of_1_5_after_the_first_tenth(name):
    moments, progress = replayed(name)
    end = moments[-1][1]
    assert moments[-1][0] == progress.jobs.total()
    after = [(at, left) for done, at, left in moments if done >= progress.jobs.total() / 10]
    judged = [(at, left, end - at) for at, left in after if end - at > NEAR_THE_END]
    assert len(judged) > 100
    wrong = [(at, left, true) for at, left, true in judged if not true / 1.5 <= left <= true * 1.5]
    assert wrong == []


def test_at_the_end_nothing_is_left():
    moments, _ = replayed("together")
    assert moments[-1][2] == 0.0
