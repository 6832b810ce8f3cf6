"""Blinded pairs: a balanced design, a page that gives nothing away, answers that are checked."""

from __future__ import annotations

import json
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from fitspace import rating
from fitspace.core.errors import UserError
from fitspace.rating import pairs as module
from fitspace.rating.pairs import choose


def plan(tasks=("a", "b"), seeds=(0, 1), prompts=12):
    """What `choose` looks at of a plan."""
    study = SimpleNamespace(
        name="mine",
        title="Which <b>is</b> best?",
        tasks=[SimpleNamespace(name=name, dreambooth=None) for name in tasks],
        seeds=list(seeds),
        sample=SimpleNamespace(prompts=prompts, images_per_prompt=1),
    )
    return SimpleNamespace(study=study, runs=[])


SIZES = {"2 points": 2, "3 points": 3, "7 points": 7, "18 points": 18}


@pytest.mark.parametrize("count", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("asked", [1, 20, 60, 400])
def test_every_point_stands_as_often_as_any_other_and_all_are_connected(count, asked):
    points = [f"p{i}" for i in range(count)]
    found = choose(points, plan(), asked, seed=0)
    stands = Counter(point for pair in found for point in (pair.left, pair.right))
    assert set(stands) == set(points)
    assert max(stands.values()) - min(stands.values()) <= (1 if count % 2 else 0) + 1
    met = Counter(frozenset((pair.left, pair.right)) for pair in found)
    assert max(met.values()) - min(met.values()) <= 1 and all(len(pair) == 2 for pair in met)
    if len(found) >= count * (count - 1) // 2:
        assert len(met) == count * (count - 1) // 2
    reached = {points[0]}
    for _ in points:
        reached |= {p for pair in met if pair & reached for p in pair}
    assert reached == set(points)


def test_about_as_many_pairs_as_asked_and_the_same_for_a_seed():
    points = [f"p{i}" for i in range(10)]
    assert len(choose(points, plan(), 60, seed=0)) == 60
    assert choose(points, plan(), 60, seed=0) == choose(points, plan(), 60, seed=0)
    assert choose(points, plan(), 60, seed=0) != choose(points, plan(), 60, seed=1)


def test_sides_change_and_names_tell_nothing():
    points = [f"p{i}" for i in range(10)]
    found = choose(points, plan(), 450, seed=0)
    lefts = Counter(pair.left for pair in found)
    assert all(20 <= lefts[point] <= 70 for point in points)
    assert all(re.fullmatch("[0-9a-f]{12}", pair.name) for pair in found)
    assert len({pair.name for pair in found}) == len(found)
    assert {pair.task for pair in found} == {"a", "b"} and {pair.seed for pair in found} == {0, 1}


REFUSED = {"one point": (["p"], 10, "fewer than two"), "no pair": (["p", "q"], 0, "--pairs: 0")}


@pytest.mark.parametrize("points, count, said", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_compared_is_refused(points, count, said):
    with pytest.raises(UserError, match=said):
        choose(points, plan(), count, seed=0)


# --- the page -----------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A page of made-up samples of four points; its text and its key."""
    own = plan()
    draw = np.random.default_rng(0)
    names = ["adapter.CA_out", "lora.rank8", "full", "none"]

    def run(point, task, seed):
        sidecar = SimpleNamespace(exists=lambda: True)
        stage = SimpleNamespace(folder="results/sample/x", sidecar=sidecar)
        point = SimpleNamespace(name=point)
        task = SimpleNamespace(name=task)
        return SimpleNamespace(point=point, task=task, seed=seed, sample=stage, prepare=None)

    own.runs = [run(n, t, s) for n in names for t in ("a", "b") for s in (0, 1)]
    images = draw.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    captions = [f"</script><b>thing {i}" for i in range(12)]
    manifest = {"captions": captions, "prompts": list(range(12)), "prompt_images": list(range(12))}
    monkeypatch.setattr(module, "own_drawing", lambda study, point: True)
    monkeypatch.setattr("fitspace.stages.evaluate.drawn", lambda study, run: images)
    monkeypatch.setattr("fitspace.data.prepared.read_manifest", lambda stage: manifest)
    monkeypatch.setattr("fitspace.data.prepared.read_images", lambda stage, manifest: images)
    path = rating.write(own, tmp_path, 12, seed=0)
    return path, json.loads((tmp_path / "ratings/key.json").read_text())


def test_the_page_names_no_point_requests_nothing_and_escapes_what_users_wrote(page):
    path, key = page
    text = path.read_text(encoding="utf-8")
    points = {pair[side] for pair in key["pairs"].values() for side in ("left", "right")}
    assert points == {"adapter.CA_out", "lora.rank8", "full", "none"}
    for point in ("adapter", "CA_out", "lora", "rank8"):
        assert point not in text
    assert '"full"' not in text and '"none"' not in text
    assert "default-src 'none'" in text and not re.search(r'(src|href)="(?!data:)', text)
    assert text.count("</script>") == 2 and "<b>" not in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert {pair["name"] for pair in data["pairs"]} == set(key["pairs"])
    assert data["design"] == key["design"]


# --- answers ------------------------------------------------------------------------------


def answers(key, rater="ann", **changes):
    names = list(key["pairs"])
    given = [{"pair": name, "choice": "left", "seconds": 1.5} for name in names]
    return {"study": "mine", "design": key["design"], "rater": rater, "answers": given} | changes


def save(page, name, content):
    (page[0].parent / name).write_text(json.dumps(content))
    return rating.read(page[0].parents[1], "mine")


def test_answers_are_told_by_points(page):
    given = answers(page[1])
    given["answers"][0]["choice"] = "tie"
    found = save(page, "ann.json", given)
    first, second = found.rows[:2]
    shown = page[1]["pairs"][second["pair"]]
    assert (first["winner"], second["winner"]) == ("tie", shown["left"])
    assert (second["left"], second["right"], second["task"]) == (
        shown["left"], shown["right"], shown["task"],
    )  # fmt: skip
    assert len(found.rows) == 12 and found.files[0].name == "ann.json"


def test_without_answers_there_are_none(page, tmp_path):
    assert rating.read(page[0].parents[1], "mine") is None
    assert rating.read(tmp_path / "nowhere", "mine") is None
    assert save(page, "ann.json", answers(page[1], answers=[])) is None


BROKEN = {
    "of another page": (lambda g: g | {"design": "0"}, "of the page mine 0; needed: mine "),
    "of another study": (lambda g: g | {"study": "other"}, "of the page other"),
    "a pair that was not shown": (
        lambda g: g | {"answers": [{"pair": "x", "choice": "tie", "seconds": 0}]}, "'x' is not in",
    ),
    "a pair twice": (lambda g: g | {"answers": g["answers"][:1] * 2}, "twice"),
    "a choice that is none": (
        lambda g: g | {"answers": [g["answers"][0] | {"choice": "both"}]}, "choice",
    ),
    "no rater": (lambda g: g | {"rater": ""}, "rater"),
    "another key": (lambda g: g | {"score": 1}, "score"),
}  # fmt: skip


@pytest.mark.parametrize("change, said", BROKEN.values(), ids=BROKEN)
def test_answers_that_are_none_are_refused_by_file(page, change, said):
    with pytest.raises(UserError, match=said) as refused:
        save(page, "ann.json", change(answers(page[1])))
    assert "ann.json" in str(refused.value)


def test_a_rater_who_stands_twice_is_refused(page):
    save(page, "ann.json", answers(page[1]))
    with pytest.raises(UserError, match="rater 'ann' is ann.json's too"):
        save(page, "copy.json", answers(page[1]))
