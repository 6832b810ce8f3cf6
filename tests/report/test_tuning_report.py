"""What a report says of tuning: the curves, the levels at the edge, the ranks with and without."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import report_study as made_up
from scipy.stats import kendalltau

from fitspace.core.errors import UserError
from fitspace.report import build, tuned
from fitspace.stats import best_levels

RATES = ["0.001", "0.003", "0.01"]
TUNING = {
    "tasks": [{"name": "other", "source": "folder", "path": "other"}],
    "factors": {"train.lr": [0.001, 0.003, 0.01]},
    "seeds": [5, 6, 7],
    "response": "fd_effnet",
}


def study(**tuning):
    return made_up.study(factors={"width": [4, 8, 16]}, tuning=TUNING | tuning)


def levels(own, at_edge: bool = True) -> pd.DataFrame:
    """tuning.csv: each point's best rate is another one; at 0.003 the order is the reverse."""
    points = [f"adapter.{width}" for width in (4, 8, 16)] + ["full"]
    y = {
        "adapter.4": [3.0, 2.0, 1.0], "adapter.8": [3.0, 2.2, 1.2],
        "adapter.16": [1.4, 2.4, 3.0], "full": [1.6, 2.6, 3.0],
    }  # fmt: skip
    if not at_edge:
        y = {name: [3.0, values[1], 3.0] for name, values in y.items()}
    draw = np.random.default_rng(0)
    long = [
        (point, rate, seed, y[point][RATES.index(rate)] + draw.normal(0, 0.05))
        for point in points
        for rate in RATES
        for seed in own.tuning.seeds
    ]
    runs = pd.DataFrame(long, columns=["point", "train.lr", "seed", "y"])
    found = best_levels(runs, "y", "point", "train.lr", "seed", lower=True)
    found.insert(1, "arm", found["point"].str.partition(".")[0])
    found = found.assign(response="fd_effnet", scale="log")
    return found.assign(edge=found["best"] & (found["train.lr"] != "0.003"))


@pytest.fixture
def folder(tmp_path):
    own = study()
    made_up.write(tmp_path, made_up.rows(own))
    levels(own).to_csv(tmp_path / "tuning.csv", index=False, lineterminator="\n")
    return tmp_path


def words(folder) -> str:
    return re.sub(r"<[^>]*>", "", (folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_says_what_was_taken_and_what_lies_at_the_edge(folder):
    before = (folder / "tuning.csv").read_bytes()
    build(study(), folder)
    assert (folder / "tuning.csv").read_bytes() == before
    text = words(folder)
    assert "Each of 4 points takes its own train.lr (3 levels)" in text
    assert "for 4 points (" in text and "so a better one may lie beyond" in text
    assert (folder / "figures/tuning.svg").exists()
    assert "made-up-tuning" in text
    assert "## Tuning" in (folder / "report.md").read_text(encoding="utf-8")


def test_where_no_best_level_is_at_the_edge_it_says_so(folder):
    own = study()
    levels(own, at_edge=False).to_csv(folder / "tuning.csv", index=False)
    build(own, folder)
    assert "No best level is the lowest or the highest" in words(folder)


def test_ranks_with_and_without_are_held_to_scipy(folder):
    own = study()
    build(own, folder)
    table = levels(own)
    untuned = table[table["train.lr"] == "0.003"].set_index("point")["mean"]
    best = table[table["best"]].set_index("point")["mean"]
    row = pd.read_csv(folder / "tuning_ranks.csv").iloc[0]
    assert row["tau"] == pytest.approx(kendalltau(untuned, best[untuned.index]).statistic)
    assert row["moved"] == (untuned.rank() != best[untuned.index].rank()).sum()
    assert (row["first_own"], row["first_tuned"]) == (untuned.idxmin(), best.idxmin())
    assert "On other, with train.lr 0.003 for all" in words(folder)


def test_a_rate_of_the_study_that_was_not_tried_gives_no_ranks(folder):
    own = study().model_copy(update={"train": study().train.model_copy(update={"lr": 0.5})})
    assert tuned.ranks(own, levels(own)).empty
    assert len(tuned.ranks(study(), levels(study()))) == 1


@pytest.mark.slow  # as test_report.py and test_publishing.py have it for every other table
def test_equal_inputs_give_equal_bytes(folder):
    build(study(), folder)
    files = {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    build(study(), folder)
    assert files == {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_without_tuning_a_report_has_no_such_section(folder):
    build(made_up.study(factors={"width": [4, 8, 16]}), folder)
    assert "Tuning" not in words(folder) and not (folder / "tuning_ranks.csv").exists()


BROKEN = {
    "no column": (("worse", "better"), "no column 'worse'"),
    "no truth": (("True", "yes"), "'yes'; allowed: True, False"),
    "another response": (("fd_effnet", "clip_t"), "column 'response': several"),
}


@pytest.mark.parametrize("change, said", BROKEN.values(), ids=BROKEN)
def test_a_broken_table_is_refused_with_its_place(folder, change, said):
    path = folder / "tuning.csv"
    path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises(UserError) as refused:
        build(study(), folder)
    assert said in str(refused.value) and "tuning.csv" in str(refused.value)


def test_two_best_levels_of_a_point_are_refused(folder):
    table = levels(study()).assign(best=True)
    table.to_csv(folder / "tuning.csv", index=False)
    with pytest.raises(UserError, match="has 3 best levels; needed: 1"):
        build(study(), folder)
