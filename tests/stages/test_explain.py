"""The stage that explains a run, on a class-conditional DiT and on the embedded U-Net."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import project
import pytest
import torch
from dit_study import BITFIT, LABELS, build_base, build_images, run_through, study, task
from PIL import Image

from fitspace import bases, methods, stages
from fitspace.core.errors import UserError
from fitspace.explaining.reading import measured, read_explanation
from fitspace.plan import STAGES, build_plan
from fitspace.results import table
from fitspace.results.lineage import Lineage, Record
from fitspace.study import Study
from fitspace.study.reading import form

NONE = {"method": "none"}


def explained(arms, tasks=("known",), **changes) -> Study:
    own = {"arms": arms, "seeds": [3, 4], "explain": {"images": 3, "times": [0.05, 0.6]}}
    return study(BITFIT, [task(name) for name in tasks], **(own | changes))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a base, and a study's runs, all explained: (folder, study, runs by name)."""
    folder = tmp_path_factory.mktemp("explain")
    build_base(folder / "base")
    for name, labels in LABELS.items():
        build_images(folder / name, labels)
    chosen = explained([BITFIT, NONE])
    with contextlib.chdir(folder):
        runs = build_plan(chosen).runs
        run_through(chosen, runs[0], "prepare")
        for run in runs:
            run_through(chosen, run, *(["train"] if run.train else []), "explain")
    return folder, chosen, runs


@pytest.fixture
def runs(made, monkeypatch):
    monkeypatch.chdir(made[0])
    return made[2]


def by(runs, method, seed=3):
    return next(r for r in runs if (r.point.method, r.seed) == (method, seed))


def bits(run) -> dict[str, bytes]:
    return {n: (run.explain.folder / n).read_bytes() for n in STAGES["explain"].outputs}


def test_an_explanation_has_what_was_asked(runs):
    found = read_explanation(by(runs, "bitfit"))
    assert found["steps"] == [50, 600]
    assert found["asked"] == {
        "images": "held-out images", "taught": "the class", "without": "no class",
    }  # fmt: skip
    assert [len(found[m]["by_image"]) for m in ("tuned", "untouched")] == [3, 3]
    assert list(found["tuned"]["by_block"]) == ["transformer_blocks.0", "transformer_blocks.1"]
    assert found["attention"] is None
    assert found["prompt_sensitivity"] == pytest.approx(np.mean(found["tuned"]["by_time"]))
    kinds = {row["kind"] for row in found["anatomy"]["changes"]}
    assert {"class table", "self-attention", "feed-forward"} <= kinds
    with Image.open(by(runs, "bitfit").explain.folder / "difference.png") as picture:
        assert min(picture.size) > 200


def test_the_untouched_base_is_its_own_tuned_model(runs):
    found = read_explanation(by(runs, "none"))
    assert found["tuned"] == found["untouched"]
    assert found["anatomy"] == {"changes": [], "gamma": [], "rank": []}


def test_all_points_and_seeds_see_the_same_noise(runs):
    """The untouched model's numbers are the same to the last bit; the tuned ones are not."""
    every = [read_explanation(run) for run in runs]
    assert all(found["untouched"] == every[0]["untouched"] for found in every)
    tuned = [read_explanation(by(runs, "bitfit", seed))["tuned"]["by_time"] for seed in (3, 4)]
    assert tuned[0] != tuned[1] and every[0]["untouched"]["by_time"] not in tuned


def test_made_again_it_has_the_same_bytes(made, runs):
    run = by(runs, "bitfit")
    before = bits(run)
    stages.function("explain")(made[1], run)
    assert bits(run) == before


def test_diverged_training_is_an_outcome(made, runs, monkeypatch, capsys):
    run = by(runs, "bitfit")
    facts = {"facts": {"diverged": "the loss is nan"}}
    monkeypatch.setattr("fitspace.stages.explain.load_sidecar", lambda path: facts)
    _explained_as(made[1], run, "the loss is nan", capsys)


def test_predictions_that_are_not_finite_are_an_outcome(made, runs, monkeypatch, capsys):
    load = methods.load

    def broken(model, path):
        attachment = load(model, path)
        with torch.no_grad():
            next(iter(attachment.trainable.values())).fill_(float("nan"))
        return attachment

    monkeypatch.setattr(methods, "load", broken)
    why = "explain: the prediction at time step 50 is not finite"
    _explained_as(made[1], by(runs, "bitfit"), why, capsys)


def _explained_as(chosen, run, why, capsys):
    before = {p: p.read_bytes() for p in run.explain.folder.iterdir()}
    try:
        stages.function("explain")(chosen, run)
        assert read_explanation(run) == {"diverged": why} and measured(run) == {}
        assert json.loads(run.explain.sidecar.read_text())["facts"]["diverged"] == why
        rows = table.explanation(build_plan(chosen), run)
        assert rows == {"sensitivity.csv": [], "anatomy.csv": []}
        assert f"{run.name} diverged: {why}" in capsys.readouterr().err
    finally:
        for path, content in before.items():
            path.write_bytes(content)


@pytest.mark.parametrize("name", ["own", "large"])
def test_classes_of_its_own_and_larger_images(made, runs, name):
    """Untouched is the model before training, its new class table as it was drawn."""
    chosen = explained([BITFIT], [name], seeds=[3])
    (run,) = build_plan(chosen).runs
    run_through(chosen, run, "prepare", "train", "explain")
    found = read_explanation(run)
    assert found["tuned"]["by_time"] != found["untouched"]["by_time"]
    assert None not in found["tuned"]["by_time"]


def test_of_several_looks_at_a_training_its_own_has_the_rows(runs):
    looks = BITFIT | {"factors": {"sample.guidance": [1.0, 2.0]}}
    plan = build_plan(explained([looks], seeds=[3]))
    found = [table.explanation(plan, run)["sensitivity.csv"] for run in plan.runs]
    assert [len(rows) > 0 for rows in found].count(True) == 1 and len(found) == 2
    assert table.explanations(plan)["sensitivity.csv"] == [row for rows in found for row in rows]


def test_rows_of_the_tables(made, runs):
    run = by(runs, "bitfit")
    content, found = read_explanation(run), table.explanation(build_plan(made[1]), run)
    moved = found["sensitivity.csv"]
    assert [r["ratio"] for r in moved if r["model"] == "tuned" and r["step"] is not None] == (
        content["tuned"]["by_time"]
    )
    (block,) = (
        r["ratio"] for r in moved
        if r["model"] == "untouched" and r["block"] == "transformer_blocks.1"
    )  # fmt: skip
    assert block == np.mean(content["untouched"]["by_block"]["transformer_blocks.1"])
    assert len(found["anatomy.csv"]) == len(content["anatomy"]["changes"])


# --- keys, lineage -------------------------------------------------------------------------


def keys(chosen) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for stage in build_plan(chosen).stages.values():
        found.setdefault(stage.name, []).append(stage.key)
    return found


def test_only_its_own_key_depends_on_it(runs):
    without = keys(explained([BITFIT, NONE], explain=None))
    some, other = keys(explained([BITFIT, NONE])), keys(explained([BITFIT, NONE], explain={}))
    assert "explain" not in without
    assert {k: v for k, v in some.items() if k != "explain"} == without
    assert {k: v for k, v in other.items() if k != "explain"} == without
    assert not set(some["explain"]) & set(other["explain"])
    assert len(set(some["explain"])) == 4


def test_what_samples_are_drawn_with_does_not_matter_to_it(runs):
    sample = {"prompts": 4, "steps": 5, "guidance": 2.0}
    some, other = (keys(explained([BITFIT, NONE], **own)) for own in ({}, {"sample": sample}))
    assert some["explain"] == other["explain"] and some["sample"] != other["sample"]


def test_a_run_is_finished_when_it_is_explained_too(runs):
    run = by(runs, "bitfit")
    assert [stage.name for stage in run.ends] == ["evaluate", "explain"]
    assert run.explain.sidecar.exists() and not run.finished


def test_behind_an_evaluation_stands_its_runs_explanation(runs):
    """The same task, adapter and seed; the untouched base's runs are told apart by the seed."""
    records = {
        (s.name, s.key): Record(
            s.name, s.folder.as_posix(), s.key, s.material, "", {}, None, None, None
        )
        for run in runs
        for s in run.stages
    }
    lineage = Lineage("dit", {}, {}, records)
    for run in runs:
        record = records["evaluate", run.evaluate.key]
        behind = {(r.stage, r.key) for r in lineage.behind(record)}
        assert behind == {(s.name, s.key) for s in run.stages}
        trained = lineage.behind(records["explain", run.explain.key])
        assert {r.stage for r in trained} >= {"explain", "evaluate", "sample"}
        if run.train:
            upstream = lineage.behind(records["train", run.train.key])
            assert {r.stage for r in upstream} == {"train", "prepare"}


# --- study files ---------------------------------------------------------------------------

REFUSED = {
    "a share": ({"times": [1.5]}, "explain.times[0]: 1.5"),
    "no time": ({"times": []}, "explain.times"),
    "twice": ({"times": [0.5, 0.5]}, "0.5 stands more than once"),
    "no image": ({"images": 0}, "explain.images: 0"),
    "unknown": ({"noise": 1}, "unknown key"),
}


@pytest.mark.parametrize("asked, message", REFUSED.values(), ids=REFUSED)
def test_what_a_study_file_may_not_ask(asked, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = explained([BITFIT]).model_dump(mode="json", exclude_none=True)
    Path("s.json").write_text(json.dumps(content | {"explain": asked}))  # JSON is YAML
    with pytest.raises(UserError) as caught:
        form("s.json")
    assert message in str(caught.value)


def test_the_response_needs_the_stage():
    analysis = {"factors": ["arm"], "responses": ["fd_effnet", "prompt_sensitivity"]}
    assert explained([BITFIT], analysis=analysis).explain is not None
    with pytest.raises(ValueError, match="'prompt_sensitivity': needs the key 'explain'"):
        explained([BITFIT], analysis=analysis, explain=None)


# --- a forged file -------------------------------------------------------------------------

FORGED = {
    "another number of time steps": lambda c: c["tuned"]["by_time"].pop(),
    "text": lambda c: c.update(prompt_sensitivity="0.1"),
    "negative": lambda c: c["untouched"]["by_image"].__setitem__(0, -1.0),
    "another key": lambda c: c.update(status="ok"),
    "diverged, and yet explained": lambda c: c.update(diverged="so"),
    "a change without a block": lambda c: c["anatomy"]["changes"][0].pop("block"),
}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED)
def test_a_forged_explanation_is_told(runs, change):
    run = by(runs, "bitfit")
    path = run.explain.folder / "explanation.json"
    before = path.read_bytes()
    content = json.loads(before)
    change(content)
    try:
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match="explanation.json: not a run's explanation"):
            read_explanation(run)
    finally:
        path.write_bytes(before)


# --- the embedded U-Net: captions and a subject ---------------------------------------------

SUBJECT = {
    "name": "wave", "source": "openmoji", "style": "sepia", "subject": "waving hand",
    "dreambooth": {"noun": "hand", "token": "sks", "prompts": ["{} in snow"], "class_images": 2,
                   "prior_weight": 0.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    project.images(folder / "images")
    (folder / "models").symlink_to(project.ROOT / "models")
    content = project.content()
    content |= {
        "seeds": [0],
        "tasks": [*content["tasks"], SUBJECT],
        "arms": [content["arms"][0] | {"factors": {"output": ["FFN_in"]}}],
        "explain": {"images": 2, "times": [0.4]},
        "analysis": {"factors": ["arm"], "responses": ["clip_t"]},
    }
    chosen, found = Study.model_validate(content), {}
    with contextlib.chdir(folder):
        for run in build_plan(chosen).runs:
            run_through(chosen, run, "prepare", "train", "explain")
            found[run.task.name] = read_explanation(run)
    return found


def test_attention_is_to_the_words_that_were_taught(words):
    captions, subject = words["mine"], words["wave"]
    assert captions["attention"]["of"] == "all words of the caption"
    assert subject["attention"]["of"] == "the rare word"
    assert subject["asked"]["images"] == "images of the subject"
    for found in words.values():
        shares = found["attention"]["untouched"]
        assert len(shares) == 7 and all(0 < share < 1 for share in shares.values())
        # Layers are in the order of computing, the middle between down and up.
        assert [path.split("_")[0] for path in shares] == ["down"] * 2 + ["mid"] + ["up"] * 4
        assert shares.keys() == found["attention"]["tuned"].keys()
    assert sum(captions["attention"]["tuned"].values()) > sum(
        subject["attention"]["tuned"].values()
    )


def test_a_rare_word_is_what_its_prompt_has_more(words):
    base = project.ROOT / "models/emoji-unet"
    rare, plain = bases.caption_tokens(base, ["photo of a sks hand", "photo of a hand"])
    (tokens,) = [[token for _, token in rare if token not in {t for _, t in plain}]]
    assert tokens and len(rare) == len(plain) + len(tokens)
    assert [at for at, _ in plain] == list(range(1, len(plain) + 1))  # after the start
