"""A class-conditional DiT through all stages, from a folder of images to metrics."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from dit_study import (
    BITFIT,
    JUDGE,
    LABELS,
    PROMPTS,
    STEPS,
    build_base,
    build_images,
    run_through,
    study,
    task,
)
from safetensors.numpy import load_file

import fitspace
from fitspace import bases, methods, metrics
from fitspace.core import rng
from fitspace.core.errors import UserError
from fitspace.data import prepared
from fitspace.plan import Run, build_plan
from fitspace.training import sampling

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a base, and with a run of every task, by task."""
    folder = tmp_path_factory.mktemp("project")
    build_base(folder / "base")
    for name, labels in LABELS.items():
        build_images(folder / name, labels)
    chosen = study(BITFIT, [task(name) for name in LABELS])
    with contextlib.chdir(folder):
        runs = {run.task.name: run for run in build_plan(chosen).runs}
        for run in runs.values():
            run_through(chosen, run, "prepare", "reference", "train", "sample", "evaluate")
    return folder, runs


@pytest.fixture
def runs(project, monkeypatch):
    monkeypatch.chdir(project[0])
    return project[1]


every_task = pytest.mark.parametrize("task", LABELS)


def samples(run: Run) -> np.ndarray:
    return load_file(run.sample.folder / "samples.safetensors")["images"]


# --- what is prepared -------------------------------------------------------------------


@pytest.mark.parametrize(
    "task, captions, labels, own",
    [
        ("known", ["", "dog", "kitty"], [3, 1, 0], None),
        ("own", ["", "teapot", "anvil"], [2, 1, 0], 2),
        ("large", ["", "dog", "kitty"], [3, 1, 0], None),
    ],
)
def test_labels_are_the_bases_or_new_ones(runs, task, captions, labels, own):
    found = prepared.load(runs[task].prepare)
    manifest = prepared.read_manifest(runs[task].prepare)
    assert manifest["captions"] == captions
    told = found.conditions["labels"]
    assert told.tolist() == labels and told.dtype == torch.int64
    assert found.own_classes == own
    expected = [LABELS[task][int(e["name"].removesuffix(".png")) // 2 % 2]
                for e in manifest["examples"]]  # fmt: skip
    assert [captions[e["caption"]] for e in manifest["examples"]] == expected


@pytest.mark.parametrize("task, side", [("known", 16), ("own", 16), ("large", 32)])
def test_images_latents_and_samples_have_the_tasks_size(runs, task, side):
    run = runs[task]
    images = load_file(run.prepare.folder / "images.safetensors")["images"]
    assert images.shape == (4, side, side, 3)
    assert prepared.load(run.prepare).mean.shape == (8, 4, side // 2, side // 2)
    assert samples(run).shape == (PROMPTS, side, side, 3)


# --- what is trained --------------------------------------------------------------------


@every_task
def test_the_class_table_is_trained_and_saved(runs, task):
    facts, tensors = methods.read(runs[task].train.folder / "adapter.safetensors")
    model = bases.load_denoiser(Path("base"))
    name, table = bases.class_table(model)
    assert facts.get("classes") == (2 if task == "own" else None)
    assert facts.get("scale") == (2 if task == "large" else None)
    assert tensors[name].shape == ((3 if task == "own" else 4), 8)
    if task != "own":
        moved = (tensors[name] != table).any(1).tolist()
        assert moved == [True, True, False, True]  # no image shows a bird


def test_a_new_table_starts_near_zero_and_its_undoing_gives_the_bases_back(runs):
    model = bases.load_denoiser(Path("base"))
    before = bases.class_table(model)[1].clone()
    attachment = methods.load(model, runs["own"].train.folder / "adapter.safetensors")
    assert bases.class_table(model)[1].shape == (3, 8)
    attachment.remove()
    assert torch.equal(bases.class_table(model)[1], before)


FROZEN = {
    "class table frozen": ({"method": "bitfit", "settings": {"class_embedding": False}}, "train"),
    "untouched base": ({"method": "none"}, "sample"),
}


@pytest.mark.parametrize("arm, stage", FROZEN.values(), ids=FROZEN)
def test_classes_of_its_own_need_a_method_that_trains_them(runs, arm, stage):
    chosen = study(arm, [task("own")])
    (run,) = build_plan(chosen).runs
    with pytest.raises(UserError) as caught:
        run_through(chosen, run, stage)
    assert str(caught.value) == (
        f"{run.name}: task 'own' has classes that the base does not know, and method "
        f"{arm['method']!r} does not train their embeddings; allowed: a method that trains them "
        "(class_embedding: true)"
    )
    assert not getattr(run, stage).folder.exists()


@pytest.mark.parametrize("arm", [FROZEN["class table frozen"][0], {"method": "none"}],
                         ids=FROZEN)  # fmt: skip
def test_the_bases_own_classes_need_none(runs, arm):
    chosen = study(arm, [task("known"), task("large")])
    for run in build_plan(chosen).runs:
        run_through(chosen, run, *(["train"] if run.train else []), "sample")
        assert not np.array_equal(samples(run), samples(runs[run.task.name]))


def test_full_fine_tuning_takes_the_tasks_classes(runs):
    chosen = study({"method": "full"}, [task("own")])
    (run,) = build_plan(chosen).runs
    run_through(chosen, run, "train", "sample")
    facts, tensors = methods.read(run.train.folder / "adapter.safetensors")
    name = bases.class_table(bases.load_denoiser(Path("base")))[0]
    assert facts["classes"] == 2 and tensors[name].shape == (3, 8)


# --- what is sampled --------------------------------------------------------------------


def test_samples_differ_by_class_and_not_only_by_noise(runs):
    """Two prompts of one class: the same noise gives the same image, another class does not."""
    run, model = runs["known"], bases.load_denoiser(Path("base"))
    methods.load(model, run.train.folder / "adapter.safetensors")
    noise = rng.initial_noise(0, 1, (4, 8, 8)).expand(3, -1, -1, -1)
    conditions, none = {"labels": torch.tensor([1, 1, 0])}, {"labels": torch.tensor([3])}
    images = sampling.generate(
        model, bases.load_vae(Path("base")), bases.load_process(Path("base")),
        conditions, none, noise, STEPS, guidance=2.0,
    )  # fmt: skip
    assert np.array_equal(images[0], images[1]) and not np.array_equal(images[0], images[2])


@every_task
def test_a_plain_pipeline_with_the_adapter_draws_the_same(runs, task, monkeypatch):
    run = runs[task]
    pipeline = diffusers.DiTPipeline.from_pretrained("base")
    pipeline.set_progress_bar_config(disable=True)
    attachment = fitspace.load_adapter(pipeline, run.train.folder / "adapter.safetensors")
    found = prepared.load(run.prepare)

    def noise(shape, **_):
        assert shape == (PROMPTS, *found.mean.shape[1:])
        return rng.initial_noise(3, PROMPTS, shape[1:])

    monkeypatch.setattr("diffusers.pipelines.dit.pipeline_dit.randn_tensor", noise)
    labels = found.conditions["labels"][found.prompts[:PROMPTS]].tolist()
    drawn = pipeline(labels, guidance_scale=1.0, num_inference_steps=STEPS, output_type="np").images
    apart = np.abs(samples(run) - 255 * drawn.astype(float))
    assert apart.max() <= 1
    attachment.remove()
    assert pipeline.transformer.config.sample_size == 8


# --- what is measured -------------------------------------------------------------------


@every_task
def test_every_metric_is_measured(runs, task):
    values = json.loads((runs[task].evaluate.folder / "metrics.json").read_text())
    assert values.pop("n") == PROMPTS == values.pop("against_n")[-1]["n"]
    assert set(values) == {*metrics.OF_HELD_OUT, *metrics.INTERVAL, "m"}
    assert np.isfinite(list(values.values())).all()


def test_prompts_repeat_and_are_compared_with_all_images_of_their_class(runs):
    run = runs["known"]
    manifest = prepared.read_manifest(run.prepare)
    classes = np.array([manifest["captions"][row] for row in manifest["prompts"]])
    assert sorted(classes) == ["dog", "dog", "kitty", "kitty"]
    reference = load_file(run.reference.folder / "features.safetensors")
    drawn = metrics.clip.image_embeddings(
        metrics.clip.load(JUDGE), torch.from_numpy(samples(run))
    ).numpy()
    cosines = drawn @ reference["judge_images"].T
    values = json.loads((run.evaluate.folder / "metrics.json").read_text())
    assert values["clip_i"] == pytest.approx(cosines.mean(), abs=1e-6)
    # Equally many images of each class: every sample with those of its own, on average.
    same = classes[:, None] == classes
    assert values["clip_i_paired"] == pytest.approx(cosines[same].mean(), abs=1e-6)
    texts = metrics.clip.text_embeddings(metrics.clip.load(JUDGE), list(classes)).numpy()
    assert values["clip_t"] == pytest.approx((drawn * texts).sum(1).mean(), abs=1e-6)


def test_more_samples_than_held_out_images_are_refused(runs):
    chosen = study(BITFIT, [task("known")], sample={"prompts": 5, "steps": 1})
    (run,) = build_plan(chosen).runs
    with pytest.raises(UserError) as caught:
        run_through(chosen, run, "sample")
    assert "only 4 held-out images" in str(caught.value) and "allowed: 4 to 4" in str(caught.value)


def test_a_task_too_small_for_any_study_says_so(runs, tmp_path):
    build_images(tmp_path / "few", ["dog", "kitty"])
    for name in ("0.png", "3.png"):
        (tmp_path / "few" / name).unlink()
    metadata = tmp_path / "few" / "metadata.jsonl"
    kept = [line for line in metadata.read_text().split("\n") if '"0.png"' not in line]
    kept = [line for line in kept if '"3.png"' not in line]
    metadata.write_text("\n".join(kept))
    chosen = study(BITFIT, [{"name": "few", "source": "folder", "path": str(tmp_path / "few")}])
    (run,) = build_plan(chosen).runs
    with pytest.raises(UserError, match="only 2 held-out images .*allowed: a task with 4 or more"):
        run_through(chosen, run, "prepare")


def test_positions_of_larger_images_are_a_factor(project, monkeypatch):
    folder, known = project
    monkeypatch.chdir(folder)
    levels = ["interpolated", "extrapolated"]
    analysis = {"factors": ["train.positions"], "responses": ["fd_effnet"]}
    arm = BITFIT | {"factors": {"train.positions": levels}}
    chosen = study(arm, [task("large")], analysis=analysis)
    same, other = build_plan(chosen).runs
    assert same.sample.key == known["large"].sample.key  # its own key, and no other
    run_through(chosen, other, "prepare", "train", "sample")
    facts = [methods.read(r.train.folder / "adapter.safetensors")[0] for r in (same, other)]
    assert [f.get("extrapolated") for f in facts] == [None, True]
    assert (samples(same) != samples(other)).any()
    # Read back, it gives the pipeline the positions that it was trained with.
    model = bases.load_denoiser(Path("base"))
    loaded = methods.load(model, other.train.folder / "adapter.safetensors")
    assert bases.extrapolates(model)
    loaded.remove()
    assert not bases.extrapolates(model)


def test_a_copy_of_the_study_elsewhere_gives_the_same_bytes(project, tmp_path, monkeypatch):
    folder, runs = project
    for name in ("base", "large"):
        shutil.copytree(folder / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    chosen = study(BITFIT, [task("large")])
    (run,) = build_plan(chosen).runs
    run_through(chosen, run, "prepare", "train", "sample")
    assert run.sample.key == runs["large"].sample.key
    for stage, file in (("train", "adapter.safetensors"), ("sample", "samples.safetensors")):
        path = getattr(run, stage).folder / file
        assert path.read_bytes() == (folder / path).read_bytes()
