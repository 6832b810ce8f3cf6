"""Several runs in one process, and on a GPU in one folded batch: what each would be alone.

The folded batch is tried on the CPU, by its argument; commands fold on a GPU alone.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import dit_study as dit
import pytest
import tiny
import torch

from fitspace import methods, stages, training
from fitspace.core import devices
from fitspace.core.errors import UserError
from fitspace.core.files import write_text
from fitspace.plan import Stage, build_plan
from fitspace.stages import common, running, sample, train
from fitspace.stages.sidecars import now, write_sidecar


def fork(work) -> int:
    """Run ``work`` in a process of its own; its id."""
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            work()
            code = 0
        os._exit(code)
    return child


def alone(work) -> None:
    """Run ``work`` in a process of its own, to its good end."""
    assert os.waitpid(fork(work), 0)[1] == 0


def until(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


# --- which runs, in which order ---------------------------------------------------------


def run(index: int, task: str = "a", trains: bool = True, **point) -> SimpleNamespace:
    """A run of which only what `running` asks for is there; its task is prepared."""

    def stage(name: str, folder: str) -> Stage:
        return Stage(name, Path(f"results/{name}/{folder}"), folder, {"of": folder})

    prepare = stage("prepare", task)
    prepare.folder.mkdir(parents=True, exist_ok=True)
    prepare.sidecar.touch()
    own = stage("train", str(index)) if trains else None
    return SimpleNamespace(
        name=str(index), prepare=prepare, train=own, upstream=lambda _: [prepare], **point
    )


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Five runs of one task; the base stays as it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "unchanged", lambda *_: True)
    return SimpleNamespace(study=None, runs=[run(i) for i in range(5)])


class Making:
    """Makes stages, and knows in which order; ``failing`` raise what they name."""

    def __init__(self, **failing: Exception):
        self.calls, self.failing = [], failing

    def __call__(self, *runs) -> None:
        self.calls.append("+".join(r.name for r in runs))
        for each in runs:
            if error := self.failing.get(f"run{each.name}"):
                raise error
            finish(each.train)


def finish(stage: Stage) -> None:
    write_text(stage.folder / "a.txt", "a")
    write_sidecar(
        stage, inputs=[], outputs=[stage.folder / "a.txt"], started=now(), facts={"trainable": 1}
    )


def test_its_own_run_comes_first_then_the_next_in_the_plans_order(plan):
    make = Making()
    running.work(plan, "train", plan.runs[3], make, together=4)
    assert make.calls == ["3", "4", "0", "1"]
    running.work(plan, "train", plan.runs[3], make, together=4)  # it is finished: no others
    assert len(make.calls) == 4 and list(running.CLAIMS.iterdir()) == []


def test_without_the_option_a_run_is_done_alone(plan):
    make = Making()
    running.work(plan, "train", plan.runs[0], make)
    assert make.calls == ["0"]


def test_of_other_runs_only_those_that_could_start_now_are_done(plan):
    plan.runs[1:1] = [run(9, task="b"), run(10, trains=False)]
    finish(plan.runs[3].train)
    plan.runs[4].upstream = lambda _: [Stage("prepare", Path("results/nowhere"), "", {})]
    make = Making()
    with running.claimed(plan.runs[5].train):  # somebody is at it
        running.work(plan, "train", plan.runs[0], make, together=8)
    assert make.calls == ["0", "4"]


def test_a_run_that_another_process_is_at_is_waited_for_after_the_others(plan, capsys):
    go, gone = os.pipe()

    def hold():
        with running.claimed(plan.runs[0].train):
            os.write(gone, b"x")
            until(plan.runs[2].train.sidecar.exists)
            finish(plan.runs[0].train)

    child = fork(hold)
    os.read(go, 1)
    make = Making()
    running.work(plan, "train", plan.runs[0], make, together=2)
    assert make.calls == ["1", "2"]
    assert "finished already" in capsys.readouterr().err
    assert os.waitpid(child, 0)[1] == 0


def test_what_goes_wrong_with_another_run_is_said_and_left_to_its_own_job(plan, capsys):
    make = Making(run1=UserError("a: changed"), run3=OSError(errno.ENOSPC, "No space"))
    running.work(plan, "train", plan.runs[0], make, together=8)
    # After a message of ours it goes on; after anything else nobody knows what is left.
    assert make.calls == ["0", "1", "2", "3"]
    said = capsys.readouterr().err
    assert "results/train/1: left to its own job: a: changed" in said
    assert "results/train/3: left to its own job: OSError(28, 'No space')" in said
    assert list(running.CLAIMS.iterdir()) == []


def test_what_goes_wrong_with_its_own_run_ends_it(plan):
    make = Making(run0=UserError("a: changed"))
    with pytest.raises(UserError, match="a: changed"):
        running.work(plan, "train", plan.runs[0], make, together=8)
    assert make.calls == ["0"]


def test_other_runs_are_not_done_with_another_base(plan, monkeypatch):
    make = Making()
    looks = iter([True, False])
    monkeypatch.setattr(running, "unchanged", lambda *_: next(looks))
    running.work(plan, "train", plan.runs[0], make, together=8)
    assert make.calls == ["0", "1"]


def test_where_nobody_can_claim_a_run_only_its_own_is_done(plan, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(running.fcntl, "flock", flock)
    make = Making()
    running.work(plan, "train", plan.runs[0], make, together=8, folds=lambda *_: True)
    assert make.calls == ["0"]


@pytest.mark.parametrize(
    ("name", "calls"),
    [(None, ["3", "4", "0"]), ("project", ["3", "4"]), ("other", ["3", "4", "0"])],
)
def test_a_group_in_one_slurm_job_takes_so_many_in_all(plan, monkeypatch, name, calls):
    from fitspace.stages import slurm

    if name is not None:
        prefix = slurm.prefix(Path.cwd() if name == "project" else Path("/elsewhere"))
        monkeypatch.setenv("SLURM_JOB_ID", "77")
        monkeypatch.setenv("SLURM_JOB_NAME", f"{prefix}_a-b")
    finish(plan.runs[1].train)
    finish(plan.runs[2].train)
    for index, job in ((1, "77"), (2, "78")):
        path = plan.runs[index].train.sidecar
        sidecar = json.loads(path.read_text())
        sidecar["environment"]["slurm_job_id"] = job
        path.write_text(json.dumps(sidecar))
    make = Making()
    running.work(plan, "train", plan.runs[3], make, together=3)
    assert make.calls == calls


# --- folds: which runs, and what when they fail -----------------------------------------


def even(a, b) -> bool:
    return int(a.name) % 2 == int(b.name) % 2


def test_runs_that_fold_are_made_at_once_and_the_others_after_them(plan):
    make = Making()
    running.work(plan, "train", plan.runs[0], make, together=8, folds=even)
    assert make.calls == ["0+2+4", "1+3"]


def test_a_fold_has_so_many_runs_at_most(plan):
    make = Making()
    running.work(plan, "train", plan.runs[1], make, together=1, folds=even)
    running.work(plan, "train", plan.runs[3], make, together=2, folds=lambda *_: True)
    assert make.calls == ["1", "3+4"]


def test_a_fold_takes_no_run_that_is_taken(plan):
    make = Making()
    with running.claimed(plan.runs[2].train):
        running.work(plan, "train", plan.runs[0], make, together=3, folds=even)
    assert make.calls == ["0+4", "1"]


def test_a_fold_that_fails_is_made_one_by_one(plan, capsys):
    make = Making(run2=RuntimeError("no rule"))
    running.work(plan, "train", plan.runs[4], make, together=8, folds=even)
    # Of the first fold 4 and 0 were written when 2 failed: they are whole, and stay.
    assert make.calls == ["4+0+2", "1+3", "2"]
    assert "4: not made in a fold of 3: RuntimeError('no rule')" in capsys.readouterr().err
    make = Making(run0=RuntimeError("no rule"))
    (plan.runs[4].train.folder / "a.txt").unlink()
    with pytest.raises(RuntimeError, match="no rule"):
        plan.runs[0].train.sidecar.unlink()
        running.work(plan, "train", plan.runs[0], make, together=8, folds=even)


SEED = {"seed": 1}
FOLDS = {
    "another seed": (SEED, True),
    "another learning rate": ({"train.lr": 0.5}, True),
    "another average": ({"train.ema": 0.5}, True),
    "other steps": ({"train.steps": 9}, False),
    "other examples": ({"train.batch_size": 2}, False),
    "another precision": ({"train.precision": "bf16"}, False),
    "another structure": ({"settings.width": 5}, False),
    "another strength": ({"settings.scale": 2.0}, False),
    "on a CPU": (SEED | {"device": "cpu"}, False),
    "a method that does not fold": (SEED | {"method": "oft"}, False),
    "dropout": (SEED | {"method": "lora", "settings.dropout": 0.1}, False),
    "LoRA": (SEED | {"method": "lora"}, True),
}


@pytest.mark.parametrize(("change", "expected"), FOLDS.values(), ids=FOLDS)
def test_which_runs_fold(tmp_path, monkeypatch, change, expected):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(devices, "device", lambda: change.get("device", "cuda"))
    method = change.get("method", "adapter")
    both = {"method", "settings.dropout"}  # what both runs have

    def run(**own) -> SimpleNamespace:
        parts = {"settings": {"width": 4}, "train": dict(tiny.SETTINGS)}
        for key, value in own.items():
            part, _, name = key.partition(".")
            if name:
                parts[part][name] = value
        point = SimpleNamespace(method=method, learnt=None, **parts)
        folder = Stage("train", Path(f"results/train/{len(own)}"), "", {})
        return SimpleNamespace(point=point, train=folder, seed=own.get("seed", 0))

    first = run(**{k: v for k, v in change.items() if k in both})
    assert train.folds(first, run(**change)) == expected


# --- the same files as alone -------------------------------------------------------------

ARMS = [
    {"method": "adapter", "settings": {"input": "SA_out", "output": "FFN_in", "width": 3}},
    {"method": "lora", "settings": {"rank": 2, "dropout": 0.5}},
    {"method": "full"},
    {"method": "none"},
]
KINDS = (".safetensors", ".png", "history.csv", "metrics.json")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A class-conditional DiT and two prepared tasks, one with classes of its own."""
    folder = tmp_path_factory.mktemp("together")
    dit.build_base(folder / "base")
    for name in ("known", "own"):
        dit.build_images(folder / name, dit.LABELS[name])
    study = dit.study(ARMS[0], [dit.task("known"), dit.task("own")], arms=ARMS)
    with contextlib.chdir(folder):
        plan = build_plan(study)
        for first in {r.task.name: r for r in plan.runs}.values():
            dit.run_through(study, first, "prepare", "reference")
    return folder, plan


def files(folder: Path) -> dict[str, bytes]:
    """What runs made, without what differs from one time to the next."""
    found = (p for room in ("train", "sample", "evaluate") for p in (folder / room).glob("*/*"))
    return {f"{p.parent.name}/{p.name}": p.read_bytes() for p in found if p.name.endswith(KINDS)}


def test_runs_of_one_process_write_what_each_writes_alone(prepared, monkeypatch, capfd):
    folder, plan = prepared
    monkeypatch.chdir(folder)
    spoilt = ("own", "none")  # the base does not know the task's classes
    costly = ("evaluate", "own")  # one task's metrics are enough

    def make(name):
        return lambda *runs: stages.function(name)(plan.study, *runs)

    results = folder / "results"
    for name in ("train", "sample", "evaluate"):
        for r in plan.runs:
            left_out = (r.task.name, r.point.method) == spoilt or (name, r.task.name) == costly
            if getattr(r, name) is not None and not left_out:
                alone(lambda r=r, name=name: running.work(plan, name, r, make(name)))
    expected = files(results)
    for room in ("train", "sample", "evaluate"):
        (results / room).rename(folder / f"alone-{room}")

    def together():
        for name in ("train", "sample", "evaluate"):
            for task in ("own", "known"):
                runs = [r for r in plan.runs if r.task.name == task]
                if (name, task) != costly:
                    running.work(plan, name, runs[1], make(name), together=8)

    alone(together)
    found = files(results)
    assert len(expected) == 6 * 2 + 7 * 2 + 4 and found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    assert "none~own~s3" in capfd.readouterr().err
    sidecars = [json.loads(p.read_text()) for p in results.glob("train/*/train.json")]
    assert all("folded" not in s["facts"] for s in sidecars)


def test_peak_memory_is_the_runs_own():
    common.forget_peak()
    before = common.peak_memory_mb()
    big = torch.ones(64, 2**20)  # 256 MiB
    assert common.peak_memory_mb() > before + 200
    del big
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("no /proc/self/clear_refs here")
    common.forget_peak()
    assert common.peak_memory_mb() < before + 100


FINISHED = """
import sys
from fitspace import cli
code = cli.main(sys.argv[1:])
heavy = {"torch", "diffusers", "pandas"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else code)
"""


def test_a_job_that_finds_its_run_finished_imports_no_torch(origin):
    """In a default study seven of eight jobs are such."""
    (run,) = list((origin / "results/train").glob("*FFN*~s0~*"))
    command = [sys.executable, "-c", FINISHED, "train", "--together", "8", "params/two.yaml"]
    done = origin.run(*command, run.name)
    assert "finished already" in done.stderr


def test_the_default_profile_does_several_runs_in_one_process(origin):
    """Four trainings on two cores: whoever comes first, two processes are enough."""
    logs = [path.read_text() for path in (origin / "results/logs/train").glob("*.log")]
    assert len(logs) == 4 and sum("finished already" in log for log in logs) >= 2


def test_a_number_of_runs_below_one_is_refused(capsys):
    from fitspace import cli

    assert cli.main(["train", "--together", "0", "params/emoji.yaml", "x"]) == 2
    assert "--together: 0; allowed: a whole number from 1" in capsys.readouterr().err


# --- folded batches ----------------------------------------------------------------------

CELL = {"input": "CA_out", "output": "FFN_in", "width": 3}
RES = CELL | {"input": "Res_in", "output": "Res_in"}
ON_DIT = {"input": "SA_out", "output": "FFN_in", "width": 3}
FOLDED = {
    "adapter": ("unet", "adapter", CELL),
    "adapter of a ResNet block": (
        "unet",
        "adapter",
        RES,
    ),
    "bitfit": ("unet", "bitfit", {}),
    "difffit": ("unet", "difffit", {}),
    "difffit with MLPs": ("unet", "difffit", {"gamma": "mlp", "width": 3}),
    "lora": ("unet", "lora", {"rank": 2}),
    "dora": ("unet", "lora", {"rank": 2, "dora": True}),
    "lora from its weights": ("unet", "lora", {"rank": 2, "init": "pissa", "lr_ratio": 4.0}),
    "lora by time": ("unet", "lora", {"rank": 3, "min_rank": 1}),
    "custom_diffusion": ("unet", "custom_diffusion", {}),
    "lora of the fused layer": ("unet", "lora", {"rank": 2, "fused": True}),
    "ia3": ("unet", "ia3", {}),
    "lokr": ("unet", "lokr", {}),
    "full": ("unet", "full", {}),
    "adapter on a DiT": ("tiny_dit", "adapter", ON_DIT),
    "bitfit on a DiT": ("tiny_dit", "bitfit", {}),
    "difffit on a DiT": ("tiny_dit", "difffit", {}),
    "lora on a DiT": ("tiny_dit", "lora", {"rank": 2}),
    "vpt on a DiT": ("tiny_dit", "vpt", {"prompts": 2}),
    "full on a DiT": ("tiny_dit", "full", {}),
}
# One seed with another learning rate, average and clipping, and another seed.
OWN = [(0, {}), (0, {"lr": 3e-3, "ema": None, "grad_clip": None}), (1, {"caption_dropout": 0.0})]
# Five steps at lr 1e-2. Rounding differs, and Adam makes whole steps of gradients that are nothing
# but rounding: so parameters are held to the length of all of them.
LOSSES, PARAMETERS = 1e-5, 1e-4


def task(kind: str):
    found = tiny.task()
    if kind == "unet":
        return found
    g = torch.Generator().manual_seed(2)
    return replace(
        found,
        mean=torch.randn(10, 4, 8, 8, generator=g),
        std=torch.rand(10, 4, 8, 8, generator=g),
        conditions={"labels": torch.tensor([3, *([0, 1, 2] * 4)[:11]])},
    )


def settings(change: dict) -> dict:
    return tiny.SETTINGS | {"steps": 5, "warmup_steps": 1} | change


def each_alone(folder: Path, kind: str, method: str, given: dict, own=OWN) -> list[training.Fit]:
    found = []
    for i, (seed, change) in enumerate(own):
        attachment = methods.attach(getattr(tiny, kind)(), method, given, seed)
        found.append(
            training.fit(
                attachment.model, attachment.trainable, task(kind), tiny.process(), 0.5,
                settings(change), seed, folder / f"alone{i}", rates=attachment.rates,
            )
        )  # fmt: skip
    return found


def fold(
    folder: Path, kind: str, method: str, given: dict, own=OWN, model=lambda m: m, **options
) -> list[training.Fit]:
    shared = methods.attach(getattr(tiny, kind)(), method, given, 0)
    members = []
    for i, (seed, change) in enumerate(own):
        mine = methods.attach(getattr(tiny, kind)(), method, given, seed).trainable
        leaves = training.leaves(mine, "cpu")
        place = folder / f"fold{i}"
        members.append(training.Member(leaves, settings(change), seed, place, rates=shared.rates))
    return training.fit_members(
        model(shared.model), members, task(kind), tiny.process(), 0.5, folded=True, **options
    )


def near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    a, b = (torch.cat([v.double().flatten() for v in x.values()]) for x in (found, expected))
    assert (a - b).norm() < PARAMETERS * b.norm()


def agree(found: training.Fit, expected: training.Fit) -> None:
    assert found.losses == pytest.approx(expected.losses, rel=LOSSES)
    near(found.parameters, expected.parameters)
    assert found.diverged == expected.diverged


OFTEN = ("adapter", "bitfit", "difffit", "lora", "full", "adapter on a DiT", "vpt on a DiT")


@pytest.mark.parametrize(
    ("kind", "method", "given"),
    [
        pytest.param(*case, id=name, marks=() if name in OFTEN else pytest.mark.slow)
        for name, case in FOLDED.items()
    ],
)
def test_a_folded_run_is_what_it_is_alone_up_to_rounding(tmp_path, kind, method, given):
    own = OWN if method == "adapter" else OWN[1:]
    expected = each_alone(tmp_path, kind, method, given, own)
    found = fold(tmp_path, kind, method, given, own)
    for each, other in zip(found, expected, strict=True):
        agree(each, other)
        assert (each.folded, other.folded) == (len(own), 1)
    assert len({tuple(f.losses) for f in found}) == len(own)
    assert found[0].losses[0] != found[-1].losses[0]  # data and noise of another seed


def test_methods_that_say_so_and_no_others_fold():
    folding = {n for n, m in methods.METHODS.items() if getattr(m, "folds", False)}
    assert folding == {method for _, method, _ in FOLDED.values()}


def test_only_what_is_trained_depends_on_the_seed():
    """A fold shares the rest."""
    for kind, method, given in FOLDED.values():
        a, b = (methods.attach(getattr(tiny, kind)(), method, given, seed) for seed in (0, 1))
        frozen = [
            {n: v for n, v in x.model.state_dict(keep_vars=True).items() if not v.requires_grad}
            for x in (a, b)
        ]
        assert frozen[0].keys() == frozen[1].keys()
        assert all(torch.equal(v, frozen[1][n]) for n, v in frozen[0].items())


def test_a_member_that_diverges_leaves_the_fold_and_changes_no_other(tmp_path):
    explodes = {"lr": 1e30, "grad_clip": None, "ema": None}
    own = [(0, {}), (0, explodes), (1, {})]
    found = fold(tmp_path, "unet", "adapter", CELL, own)
    assert found[1].diverged.startswith("the loss is") and len(found[1].losses) < 5
    expected = fold(tmp_path, "unet", "adapter", CELL, [own[0], own[2]])
    for each, other in zip(found[::2], expected, strict=True):
        agree(each, other)
    # Not even where the first one goes.
    first = fold(tmp_path, "unet", "adapter", CELL, [own[1], own[0]])
    assert first[0].diverged == found[1].diverged
    agree(first[1], expected[0])


class Stop(Exception):
    pass


@pytest.mark.parametrize("then", ["in a fold", "alone"])
def test_an_interrupted_fold_goes_on_from_its_checkpoints(tmp_path, then):
    def interrupt(step):
        if step == 2:
            raise Stop

    expected = each_alone(tmp_path, "unet", "lora", {"rank": 2})
    options = {"checkpoint_seconds": 0.0, "on_step": interrupt}
    with pytest.raises(Stop):
        fold(tmp_path, "unet", "lora", {"rank": 2}, **options)
    checkpoints = [tmp_path / f"fold{i}" for i in range(3)]
    steps = {training.steps_done(path) for path in checkpoints}
    assert len(steps) == 1 and 0 < steps.pop() < 5
    if then == "in a fold":
        found = fold(tmp_path, "unet", "lora", {"rank": 2})
    else:
        for i, path in enumerate(checkpoints):
            path.rename(tmp_path / f"alone{i}")
        found = each_alone(tmp_path, "unet", "lora", {"rank": 2})
    for each, other in zip(found, expected, strict=True):
        agree(each, other)
    assert [f.folded for f in found] == [3, 3, 3]  # also of what went on alone


def test_runs_at_different_steps_do_not_fold(tmp_path):
    def interrupt(step):
        if step == 1:
            raise Stop

    with pytest.raises(Stop):
        fold(tmp_path, "unet", "bitfit", {}, checkpoint_seconds=0.0, on_step=interrupt)
    (tmp_path / "fold1").write_bytes(b"damaged")
    assert training.steps_done(tmp_path / "fold1") == 0
    with pytest.raises(UserError, match="others of the fold are at another step"):
        fold(tmp_path, "unet", "bitfit", {})


def test_too_little_memory_takes_fewer_runs_at_once_and_then_fewer_examples(tmp_path, capsys):
    own = [(seed, {"steps": 2}) for seed in range(4)]
    expected = each_alone(tmp_path, "unet", "adapter", CELL, own)
    seen = []

    def look(_, args) -> None:
        seen.append(tuple(torch._C._functorch.get_unwrapped(args[0]).shape[:2]))
        if math.prod(seen[-1]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    def small(model):
        model.register_forward_pre_hook(look)
        return model

    found = fold(tmp_path, "unet", "adapter", CELL, own, small)
    assert seen[:4] == [(4, 4), (2, 4), (1, 4), (1, 2)]
    assert seen[3:] == [(1, 2)] * (2 * 4 * 2)
    assert [f.examples_at_once for f in found] == [2] * 4
    for each, other in zip(found, expected, strict=True):
        assert each.losses == pytest.approx(other.losses, rel=LOSSES)
    assert "train: runs: the GPU's memory does not hold 4 at once" in capsys.readouterr().err


def test_bf16_folds_too(tmp_path):
    own = [(seed, {"precision": "bf16"}) for seed in (0, 1)]
    expected = each_alone(tmp_path, "unet", "adapter", CELL, own)
    for each, other in zip(fold(tmp_path, "unet", "adapter", CELL, own), expected, strict=True):
        assert each.losses == pytest.approx(other.losses, rel=2e-2)


def test_a_fold_writes_each_runs_own_files(prepared, monkeypatch):
    folder, plan = prepared
    monkeypatch.chdir(folder)
    study = dit.study(ARMS[0], [dit.task("own")], seeds=[3, 4])
    runs = build_plan(study).runs
    for one in runs:
        train.train(study, one)
    expected = [methods.read(one.train.folder / "adapter.safetensors") for one in runs]
    facts = [json.loads(one.train.sidecar.read_text())["facts"] for one in runs]
    for one in runs:
        one.train.sidecar.unlink()
    train.train(study, *runs)
    for one, (said, tensors), before in zip(runs, expected, facts, strict=True):
        again, values = methods.read(one.train.folder / "adapter.safetensors")
        assert again == said
        near(values, tensors)
        after = json.loads(one.train.sidecar.read_text())["facts"]
        assert after.pop("folded") == 2 and after.keys() == before.keys()
        assert after["final_loss"] == pytest.approx(before["final_loss"], rel=LOSSES)
        sample.sample(study, one)  # what was written is whole, and its own
    assert not list((folder / "results/.resume").glob("*"))
