"""What has to hold on a GPU. Everything also runs on the CPU, as far as that can show it.

``pytest -m gpu`` where there is one; elsewhere those tests are skipped.
"""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import dit_study as dit
import pytest
import tiny
import torch
from safetensors.torch import load_file

from fitspace import methods, training
from fitspace.core import devices
from fitspace.plan import build_plan
from fitspace.stages import train

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

HAS_GPU = torch.cuda.is_available()
ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="no GPU here")]
ADAPTER = {"input": "CA_out", "output": "FFN_in", "width": 3}
# Up to rounding: of bf16 there are 8 bits, of fp32 24, in sums of another order.
CLOSE = {"bf16": 5e-2, "fp32": 1e-3}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=ON_GPU)])
def device(request, monkeypatch):
    deterministic = torch.are_deterministic_algorithms_enabled()
    devices.set_up()
    yield request.param
    torch.use_deterministic_algorithms(deterministic)


def fit(path: Path, device: str, method: str = "adapter", room=None, **options) -> training.Fit:
    """Train on the device as the train stage does, with a task that has class images."""
    how = {k: options.pop(k) for k in ("gradient_checkpointing", "compiled") if k in options}
    channels_last = options.pop("channels_last", False)
    changes = {k: options.pop(k) for k in list(tiny.SETTINGS) if k in options}
    train = tiny.SETTINGS | changes
    model = tiny.unet().to(device)
    attachment = methods.attach(model, method, ADAPTER if method == "adapter" else {}, 0)
    devices.prepare(model, train["precision"], **how)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    task = replace(tiny.task(), prior=[7, 8, 9], prior_weight=0.5)
    return training.fit(
        model, attachment.trainable, task, tiny.process(), 0.5, train, 0, path, **options
    )


def near(a: training.Fit, b: training.Fit, precision: str) -> None:
    assert a.losses == pytest.approx(b.losses, rel=CLOSE[precision])


# Of a CPU's single precision test_training.py has it after every step.
@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "bf16"])
def test_a_run_resumes_to_the_same_bits(tmp_path, device, precision):
    class Stop(Exception):
        pass

    def interrupt(step):
        if step == 6:
            raise Stop

    whole = fit(tmp_path / "a", device, precision=precision)
    with pytest.raises(Stop):
        fit(tmp_path / "b", device, precision=precision, checkpoint_seconds=0, on_step=interrupt)
    resumed = fit(tmp_path / "b", device, precision=precision)
    assert resumed.losses == whole.losses
    assert all(torch.equal(v, resumed.parameters[n]) for n, v in whole.parameters.items())
    near(whole, fit(tmp_path / "c", "cpu", precision=precision), precision)


WAYS = {
    "gradient checkpointing": {"gradient_checkpointing": True},
    "channels last": {"channels_last": True},
    "channels last, what is trained too": {"channels_last": True, "method": "full"},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_each_way_to_compute_gives_what_the_plain_one_gives(tmp_path, device, way):
    train = {"precision": "bf16", "steps": 6}
    plain = fit(tmp_path / "a", device, method=way.get("method", "adapter"), **train)
    found = fit(tmp_path / "b", device, checkpoint_seconds=0, **train, **way)
    near(found, plain, "bf16")
    if "gradient_checkpointing" in way:
        assert found.losses == plain.losses
    # As files have them, whatever the layout that they were trained in.
    kept = load_file(tmp_path / "b")
    for name, value in found.parameters.items():
        assert value.dtype == torch.float32 and value.device.type == "cpu"
        assert kept[f"value/{name}"].is_contiguous() and kept[f"value/{name}"].shape == value.shape


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no GPU here")
def test_a_compiled_model_trains_as_the_plain_one(tmp_path):
    plain = fit(tmp_path / "a", "cuda", precision="bf16")
    near(fit(tmp_path / "b", "cuda", precision="bf16", compiled=True), plain, "bf16")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_runs_in_one_folded_batch_are_what_they_are_alone(tmp_path, device, precision):
    train = tiny.SETTINGS | {"precision": precision, "steps": 4}

    def attached(seed: int):
        return methods.attach(tiny.unet().to(device), "adapter", ADAPTER, seed)

    alone, members = [], []
    for seed in (0, 1, 2):
        attachment = attached(seed)
        # A model in a fold's frozen parts is what it is alone; see devices.halve_frozen.
        if device == "cuda":
            devices.prepare(attachment.model, precision)
        given = tiny.task(), tiny.process(), 0.5
        path = tmp_path / f"{seed}"
        alone.append(
            training.fit(attachment.model, attachment.trainable, *given, train, seed, path)
        )
        own = training.leaves(attached(seed).trainable, device)
        members.append(training.Member(own, train, seed, tmp_path / f"{seed} in a fold"))
    shared = attached(0).model
    if device == "cuda":
        devices.prepare(shared, precision)
    folded = training.fit_members(shared, members, *given, folded=True)
    for one, other in zip(alone, folded, strict=True):
        near(one, other, precision)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no GPU here")
def test_memory_that_runs_out_halves_what_is_computed_at_once(tmp_path):
    """For real: the process may allocate less than a step of the whole batch takes."""
    devices.set_up()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    whole = fit(tmp_path / "a", "cuda", batch_size=4096, steps=2)
    room = 0.6 * torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    try:
        torch.cuda.set_per_process_memory_fraction(room / total)
        halved = fit(tmp_path / "b", "cuda", batch_size=4096, steps=2)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert halved.examples_at_once < whole.examples_at_once == 8192
    near(halved, whole, "fp32")


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no GPU here")
def test_frozen_layers_in_bf16_and_checkpointing_take_less_memory(tmp_path):
    def peak(**options) -> int:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        fit(tmp_path / f"{options}", "cuda", batch_size=512, steps=2, **options)
        return torch.cuda.max_memory_allocated()

    plain = peak(precision="bf16")
    assert peak(precision="bf16", gradient_checkpointing=True) < plain < peak(precision="fp32")


def test_a_run_goes_through_all_stages(tmp_path, device, monkeypatch):
    """The tiny DiT with a task of its own classes; on a CPU checkpointing changes no byte."""
    monkeypatch.setattr(devices, "device", lambda: device)
    dit.build_base(tmp_path / "base")
    dit.build_images(tmp_path / "own", dit.LABELS["own"])
    changes = {"train": {"steps": 3, "batch_size": 4, "lr": 0.05, "precision": "bf16"}}
    chosen = dit.study({"method": "difffit"}, [dit.task("own")], **changes)
    with contextlib.chdir(tmp_path):
        (run,) = build_plan(chosen).runs
        dit.run_through(chosen, run, "prepare", "reference", "train")
        adapter, key = run.train.folder / "adapter.safetensors", run.train.key
        once = adapter.read_bytes()
        train.train(chosen, run, gradient_checkpointing=True)
        dit.run_through(chosen, run, "sample", "evaluate")
        sidecar = json.loads(run.train.sidecar.read_text())
        facts = sidecar["facts"]
        assert (run.evaluate.folder / "metrics.json").is_file()
        again = adapter.read_bytes()
    assert facts["prepared"] == ["frozen layers in bf16", "gradient checkpointing"]
    assert sidecar["key"] == key and "final_loss" in facts
    assert again == once


def test_the_benchmark_runs_here(capsys, monkeypatch):
    import gpu

    monkeypatch.setattr(gpu, "WARM_UP", 0)
    tiny_run = ["--device", "cpu", "--tiny", "--steps", "1", "--batch", "2", "--bases", "sd15"]
    assert gpu.main([*tiny_run, "--methods", "full", "lora"]) == 0
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("| sd15")]
    assert len(rows) == 2 + 5 and "out of memory" not in printed
    assert all(float(row.split("|")[5]) > 0 for row in rows[:2])


@pytest.mark.skipif(HAS_GPU, reason="a GPU is here")
@pytest.mark.parametrize("arguments", [[], ["--device", "cpu"]], ids=["no GPU", "a CPU, full size"])
def test_the_benchmark_says_what_it_needs(arguments, capsys):
    import gpu

    assert gpu.main(arguments) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "allowed: " in said
