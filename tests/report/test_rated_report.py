"""What a report says of people's preferences."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
import report_study as made_up

from fitspace.core.errors import UserError
from fitspace.rating.pairs import choose
from fitspace.report import build
from fitspace.stats import abilities

STUDY = made_up.study(factors={"width": [4, 8, 16]})


@pytest.fixture
def folder(tmp_path):
    """A report's inputs with the answers of two raters, who prefer what has the lower distance."""
    table = made_up.rows(STUDY)
    made_up.write(tmp_path, table)
    runs = pd.DataFrame(table)
    score = -np.log(runs.groupby("point")["fd_effnet"].mean())
    plan = type("Plan", (), {"study": STUDY})
    pairs = choose(sorted(score.index), plan, 60, seed=0)
    key = {"study": "made-up", "design": "0", "pairs": {p.name: p.__dict__ for p in pairs}}
    (tmp_path / "ratings").mkdir()
    (tmp_path / "ratings/key.json").write_text(json.dumps(key))
    draw = np.random.default_rng(0)
    for rater in ("ann", "bob"):
        answers = []
        for pair in pairs:
            gap = 3 * (score[pair.left] - score[pair.right]) + draw.normal(0, 0.7)
            choice = "tie" if abs(gap) < 0.1 else "left" if gap > 0 else "right"
            answers.append({"pair": pair.name, "choice": choice, "seconds": 2.0})
        content = {"study": "made-up", "design": "0", "rater": rater, "answers": answers}
        (tmp_path / f"ratings/{rater}.json").write_text(json.dumps(content))
    return tmp_path


def words(folder) -> str:
    return re.sub(r"<[^>]*>", "", (folder / "report.html").read_text(encoding="utf-8"))


def test_preferences_stand_beside_the_metrics(folder):
    build(STUDY, folder)
    text = words(folder)
    assert "What people preferred" in text and "judgements in blinded pairs by 2 people" in text
    found = pd.read_csv(folder / "ratings.csv").set_index("point")
    key = json.loads((folder / "ratings/key.json").read_text())["pairs"]
    votes = [
        key[a["pair"]] | {"outcome": a["choice"], "rater": rater}
        for rater in ("ann", "bob")
        for a in json.loads((folder / f"ratings/{rater}.json").read_text())["answers"]
    ]
    ours = abilities(pd.DataFrame(votes), rater="rater").set_index("item")
    assert found["ability"].to_dict() == pytest.approx(ours["ability"].to_dict(), nan_ok=True)
    tests = pd.read_csv(folder / "ratings_tests.csv").iloc[0]
    assert tests["judgements"] == len(votes) and tests["judged_twice"] == len(key)
    assert tests["rho"] > 0.5 and tests["metric"] == "fd_effnet"
    origins = json.loads((folder / "origins.json").read_text())
    assert {"ratings.csv", "ratings_tests.csv"} <= origins["rows"].keys()
    assert (folder / "figures/ratings.svg").exists()


@pytest.mark.slow  # as test_report.py and test_publishing.py have it for every other table
def test_equal_answers_give_equal_bytes(folder):
    build(STUDY, folder)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    build(STUDY, folder)
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_without_answers_there_is_no_such_section(folder):
    for path in folder.glob("ratings/[ab]*.json"):
        path.unlink()
    build(STUDY, folder)
    assert "What people preferred" not in words(folder)


def test_points_that_the_study_no_longer_has_are_said_and_not_analysed(folder):
    key = json.loads((folder / "ratings/key.json").read_text())
    for pair in key["pairs"].values():
        pair["left"] = pair["left"].replace("adapter.4", "adapter.5")
    (folder / "ratings/key.json").write_text(json.dumps(key))
    build(STUDY, folder)
    assert "ratings: &#39;adapter.5&#39; is no point of the study now" in words(folder)


def test_broken_answers_are_refused_by_file(folder):
    (folder / "ratings/ann.json").write_text("{}")
    with pytest.raises(UserError, match="ann.json"):
        build(STUDY, folder)
