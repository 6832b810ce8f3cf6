"""A study of each family from its file to its metrics, on a tiny pipeline of random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pipelines
import pytest
import torch
import yaml
from PIL import Image

from fitspace import bases, cli, methods, stages, training
from fitspace.core.errors import UserError
from fitspace.data import prepared
from fitspace.plan import planned
from fitspace.plan.checks import usable

ROOT = Path(__file__).parents[2]
# One family always: it has all that others have.
FAMILIES = [n if n == "sd3" else pytest.param(n, marks=pytest.mark.slow) for n in pipelines.BUILT]
FLOWS = [name for name in pipelines.BUILT if bases.FAMILIES[name].flows]
ADAPTER = {"input": "SA_out", "output": "FFN_in", "width": 4}
PROMPTS, STEPS = 4, 2


def images(out):
    """Twelve images, every third held out."""
    out.mkdir()
    draw, lines = np.random.default_rng(0), []
    for i in range(12):
        Image.fromarray(draw.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(out / f"{i}.png")
        text = f"{pipelines.WORDS[2 + i % 2]} {pipelines.WORDS[4 + i % 3]} {'a' * (1 + i // 6)}"
        row = {"file_name": f"{i}.png", "text": text, "split": "train" if i % 3 else "test"}
        lines.append(json.dumps(row))
    (out / "metadata.jsonl").write_text("\n".join(lines))


def study_file(path="study.yaml", **train):
    content = {
        "name": "tiny",
        "title": "A tiny pipeline",
        "base": "base",
        "judge": str(ROOT / "models/emoji-clip"),
        "tasks": [{"name": "own", "source": "folder", "path": "own"}],
        "arms": [
            {"method": "adapter", "settings": ADAPTER},
            {"method": "lora", "settings": {"rank": 2, "target": "attention+ff"}},
        ],
        "seeds": [3],
        "train": {"steps": 4, "batch_size": 2, "lr": 0.05, **train},
        "sample": {"prompts": PROMPTS, "steps": STEPS, "guidance": 2.0},
        "explain": {"images": 2, "times": [0.2, 0.8]},
        "analysis": {"factors": ["method"], "responses": ["fd_effnet"]},
    }
    Path(path).write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module", params=FAMILIES)
def ready(request, tmp_path_factory):
    """A project folder with a family's base and images; its plan."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp(request.param)
        patch.chdir(folder)
        pipelines.BUILT[request.param](folder / "made").rename(folder / "base")
        images(folder / "own")
        density = {"density": "mode"} if request.param in FLOWS else {}
        plan = planned(study_file(**density))
        usable(plan)
        for run in plan.runs:
            for stage in run.stages:
                if not stage.sidecar.exists():
                    stages.function(stage.name)(plan.study, run)
        yield request.param, plan


def test_every_stage_is_done(ready):
    name, plan = ready
    drawn = set()
    for run in plan.runs:
        values = json.loads((run.evaluate.folder / "metrics.json").read_text())
        assert "diverged" not in values and np.isfinite(values["fd_effnet"])
        explained = json.loads((run.explain.folder / "explanation.json").read_text())
        assert explained["prompt_sensitivity"] > 0
        assert (explained["attention"] is not None) == bases.FAMILIES[name].maps
        drawn.add((run.sample.folder / "samples.safetensors").read_bytes())
    assert len(drawn) == 2


def test_conditions_are_kept_by_name(ready):
    name, plan = ready
    run, base = plan.runs[0], Path("base")
    task = prepared.load(run.prepare, base)
    assert task.conditions.keys() == bases.FAMILIES[name].told.keys()
    rows = {len(values) for values in task.conditions.values()}
    assert rows == {len(prepared.read_manifest(run.prepare)["captions"])}
    assert prepared.load(run.prepare).conditions.keys() == task.conditions.keys()


def test_a_plan_costs_and_counts_it(ready, capsys):
    _, plan = ready
    assert cli.main(["plan", "study.yaml", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    counted = {point["point"]: point["trainable"] for point in found["points"]}
    for run in plan.runs:
        _, tensors = methods.read(run.train.folder / "adapter.safetensors")
        assert sum(t.numel() for t in tensors.values()) == counted[run.point.name]


def fit(run, members, folded=False, on_step=None):
    """Trains, of a run, the member of each checkpoint's file and seed; their results."""
    base = Path("base")
    task, process = prepared.load(run.prepare, base), bases.load_process(base)
    scaling, shift = bases.load_scaling(base)
    model, own = bases.load_denoiser(base), []
    for path, seed in reversed(members.items()):
        shared = bases.load_denoiser(base) if own else model
        attached = methods.attach(shared, run.point.method, run.point.settings, seed)
        leaves = training.leaves(attached.trainable, "cpu") if folded else attached.trainable
        own.append(training.Member(leaves, run.point.train, seed, path))
    given = (model, own, task, process, scaling, 0.0, "training", on_step)
    return training.fit_members(*given, shift=shift, folded=folded)


def test_a_training_that_was_interrupted_ends_with_the_same_bits(ready, tmp_path):
    run = ready[1].runs[0]

    def stop(step):
        if step == 1:
            raise InterruptedError

    members = {tmp_path / "c": run.seed}
    with pytest.raises(InterruptedError):
        fit(run, members, on_step=stop)
    (found,) = fit(run, members)
    _, wanted = methods.read(run.train.folder / "adapter.safetensors")
    assert found.parameters.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in found.parameters.items())


@pytest.mark.parametrize("number", [0, 1], ids=["adapter", "lora"])
def test_runs_in_one_batch_learn_what_each_learns_alone(ready, tmp_path, number):
    run = ready[1].runs[number]
    if not bases.FAMILIES[ready[0]].folds:
        pytest.skip("its masks decide shapes: runs are trained one after another")
    together = fit(run, {tmp_path / "a": 3, tmp_path / "b": 4}, folded=True)
    for found, seed in zip(together, (4, 3), strict=True):
        (alone,) = fit(run, {tmp_path / f"alone{seed}": seed})
        assert found.losses == pytest.approx(alone.losses, rel=1e-4)
        a, b = (torch.cat([v.flatten() for v in x.parameters.values()]) for x in (found, alone))
        assert (a - b).norm() < 1e-3 * b.norm()


def test_settings_of_the_other_process_are_refused(ready):
    name, _ = ready
    wrong = {"min_snr_gamma": 5.0} if name in FLOWS else {"density": "uniform"}
    with pytest.raises(UserError) as caught:
        planned(study_file("wrong.yaml", **wrong))
    key = next(iter(wrong))
    assert all(f"train.{key}: " in p and "allowed: null" in p for p in caught.value.problems)
    assert len(caught.value.problems) == 2
