"""Factors within a training, the whole way: one training, several drawings, one report."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from project import STUDY, content

from fitspace.core.files import IMAGES, read_tensors

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(origin, warm, tmp_path_factory):
    """A finished study with checkpoints, strengths and blocks."""
    project = origin.copy(tmp_path_factory.mktemp("within") / "project").warmed(warm.commands)
    study = content()
    study["train"] |= {"checkpoints": [1]}
    study["arms"][0]["factors"] |= {
        "sample.strength": [0, 1],
        "sample.blocks": ["all", "mid_block", "down_blocks+mid_block+up_blocks"],
    }
    study["sample"] |= {"prompts": 4, "images_per_prompt": 2, "validation": 4}
    lines = [json.loads(s) for s in (project / "images/metadata.jsonl").read_text().splitlines()]
    for line in lines[:9]:
        line["split"] = "test"
    (project / "images/metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    study["arms"][1]["factors"] = {"sample.guidance": [1.0, 2.0]}
    (project / STUDY).write_text(yaml.safe_dump(study))
    done = project.run("snakemake", "--cores", "2", "--config", f"study={STUDY}", ok=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return project


@pytest.fixture(scope="module")
def runs(project):
    return pd.read_csv(project / "reports/two/runs.csv", dtype={"sample.blocks": str})


def images(project, row):
    folder = next((project / "results/sample").glob(f"*~{row.sample_key}"))
    return read_tensors(folder / "samples.safetensors", IMAGES, "np")["images"]


def test_levels_share_their_training(runs):
    ours = runs[runs["method"] == "adapter"]
    assert len(ours) == 2 * 2 * 5  # points, seeds; own, strength 0, two blocks, a checkpoint
    assert ours.groupby("train_key").size().tolist() == [5] * 4
    assert ours["sample_key"].is_unique and ours["status"].eq("ok").all()


def test_no_strength_draws_what_the_base_does_and_all_blocks_what_the_method_does(project, runs):
    base = runs[(runs["method"] == "none") & (runs["sample.guidance"] == 2)].set_index("seed")
    for _, ours in runs[runs["method"] == "adapter"].groupby("train_key"):
        own = ours[
            (ours["sample.strength"] == 1)
            & (ours["sample.blocks"] == "all")
            & (ours["checkpoint"] == ours["steps"])
        ]
        (own,) = own.itertuples()
        (nothing,) = ours[ours["sample.strength"] == 0].itertuples()
        (every,) = ours[ours["sample.blocks"].str.startswith("down")].itertuples()
        (middle,) = ours[ours["sample.blocks"] == "mid_block"].itertuples()
        (early,) = ours[ours["checkpoint"] == 1].itertuples()
        drawn = images(project, own)
        assert np.array_equal(images(project, nothing), images(project, base.loc[own.seed]))
        assert np.array_equal(images(project, every), drawn)
        assert not np.array_equal(images(project, early), drawn)
        assert not np.array_equal(images(project, middle), drawn)


def test_a_caption_has_its_images_one_after_another(project, runs):
    from fitspace.metrics import clip

    row = next(runs[runs["method"] == "none"].itertuples())
    drawn = images(project, row)
    assert len(drawn) == 16 and len(np.unique(drawn.reshape(16, -1), axis=0)) == 16
    told = manifest(project)
    first, last = told["prompts"][:4], told["prompts"][-4:]
    assert row.n == 8 and len(told["prompts"]) == 9 and not set(first) & set(last)
    captions = [told["captions"][row] for row in [*first, *last] for _ in range(2)]
    judge = clip.load(project / "models/emoji-clip")
    seen = clip.image_embeddings(judge, torch.from_numpy(drawn))
    cosines = (seen * clip.text_embeddings(judge, captions)).sum(1)
    assert row.clip_t == pytest.approx(cosines[:8].mean().item(), abs=1e-5)
    assert row.clip_t_validation == pytest.approx(cosines[8:].mean().item(), abs=1e-5)


def manifest(project):
    """That of the task as it is now: the origin's has six held-out images."""
    found = [json.loads(p.read_text()) for p in (project / "results/tasks").glob("*/manifest.json")]
    (told,) = (one for one in found if len(one["prompts"]) == 9)
    return told


def test_each_trainings_best_step_is_that_of_the_validation_captions(project, runs):
    table = pd.read_csv(project / "reports/two/best_steps.csv").set_index("training")
    ours = runs[(runs["method"] == "adapter") & runs["sample.strength"].eq(1)]
    ours = ours[ours["sample.blocks"].eq("all")]
    assert len(table) == 4 and ours.groupby("train_key").size().eq(2).all()
    for training, rows in ours.groupby("train_key"):
        row = table.loc[training]
        best = rows.loc[rows["fd_effnet_validation"].idxmin()]
        last = rows.loc[rows["checkpoint"].idxmax()]
        assert (row["step"], row["last"]) == (best["checkpoint"], 3)
        assert row["gain"] == pytest.approx(last["fd_effnet"] - best["fd_effnet"], abs=1e-6)
    html = (project / "reports/two/report.html").read_text()
    assert "captions of validation, which are not reported" in html


def test_the_report_analyses_one_run_of_a_training_and_compares_the_levels(project, runs):
    folder = project / "reports/two"
    residuals = pd.read_csv(folder / "residuals.csv")
    assert residuals.groupby("response").size().tolist() == [4, 4]
    levels = pd.read_csv(folder / "within_levels.csv", dtype=str)
    own = levels["factor"].eq("sample.guidance")  # varies in the untouched base alone
    assert set(levels[~own]["factor"]) == {"sample.strength", "sample.blocks", "checkpoint"}
    assert set(levels[~own]["units"]) == {"4"} and set(levels[own]["units"]) == {"2"}
    tests = pd.read_csv(folder / "within_tests.csv")
    assert tests["den_df"].dropna().gt(0).all()
    origins = json.loads((folder / "origins.json").read_text())
    assert set(origins["rows"]) >= {"within_levels.csv", "within_tests.csv", "runs.csv"}
    html = (folder / "report.html").read_text()
    assert 'id="within"' in html and "dashed the means of other arms" not in html


def test_the_audit_finds_nothing_changed(project):
    done = project.run("fitspace", "audit", "reports/two", "--tier", "regenerate", ok=False)
    assert done.returncode == 0, done.stdout + done.stderr
