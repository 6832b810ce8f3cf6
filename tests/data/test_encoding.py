"""Captions as conditions where a GPU's memory is too small for the text encoders."""

from pathlib import Path

import pipelines
import pytest
import torch
from torch import nn

from fitspace import bases
from fitspace.core import devices
from fitspace.data import encoding

CAPTIONS = [f"caption {i}" for i in range(2 * encoding.BATCH + 1)]


@pytest.fixture(params=["as they are loaded", "as they read"])
def small(request, monkeypatch):
    """A GPU that does not hold the text encoders; the devices on which captions were told."""
    seen = []

    def load(base, device):
        if device == "cuda" and request.param == "as they are loaded":
            raise torch.OutOfMemoryError("CUDA out of memory.")

        def tell(captions):
            if device == "cuda":
                raise torch.OutOfMemoryError("CUDA out of memory.")
            seen.append(device)
            return {"embeddings": torch.tensor([[float(c.split()[1])] for c in captions])}

        return tell

    monkeypatch.setattr(encoding.devices, "device", lambda: "cuda")
    monkeypatch.setattr(encoding.bases, "load_teller", load)
    return seen


def test_text_encoders_that_a_gpu_does_not_hold_run_on_the_cpu(small, capsys):
    told = encoding.encode_captions(Path("base"), CAPTIONS)
    assert told.flatten().tolist() == list(range(len(CAPTIONS))) and small == ["cpu"] * 3
    said = capsys.readouterr().err
    assert said.count("does not hold the text encoders; going on with them on the CPU") == 1


def where(models):
    return [{t.device.type for t in (*m.parameters(), *m.buffers())} for m in models]


def encoder():
    """Weights of which two are one, and a buffer."""
    found = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    found[1].weight = found[0].weight
    return found.requires_grad_(False)


def test_one_text_encoder_at_a_time_is_on_the_device():
    """The meta device, which every machine has, in place of a GPU."""
    models = [encoder() for _ in range(3)]
    before = [{n: t.clone() for n, t in m.state_dict().items()} for m in models]
    devices.one_at_a_time(models, "meta")
    assert where(models) == [{"cpu"}] * 3
    for called in (0, 0, 2, 1, 0):
        assert models[called](torch.ones(2, 3, device="meta")).is_meta
        there = [{"meta"} if i == called else {"cpu"} for i in range(3)]
        assert where(models) == there
        for model, own in zip(models, before, strict=True):
            if model is not models[called]:
                assert all(torch.equal(t, own[n]) for n, t in model.state_dict().items())
    assert models[0][0].weight is models[0][1].weight
    alone = encoder()
    devices.one_at_a_time([alone], "meta")
    assert where([alone]) == [{"meta"}]


@pytest.mark.parametrize("name, encoders", [("sd3", 3), ("sdxl", 2), ("flux", 2), ("pixart", 1)])
def test_a_pipelines_text_encoders_take_turns(name, encoders, tmp_path, monkeypatch):
    """What they are told and tell is the same, whoever came before."""
    folder = pipelines.BUILT[name](tmp_path / name)
    given, plain = [], devices.one_at_a_time

    def turns(models, device):
        given.extend(models)
        plain(models, device)

    monkeypatch.setattr(devices, "one_at_a_time", lambda *_: None)
    wanted = bases.load_teller(folder)(["", "red apple"])
    monkeypatch.setattr(devices, "one_at_a_time", turns)
    tell = bases.load_teller(folder)
    assert len(given) == encoders
    for _ in range(2):
        found = tell(["", "red apple"])
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], value) for key, value in wanted.items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("name", ["sd3", "sdxl", "flux"])
def test_on_a_gpu_text_encoders_take_turns(name, tmp_path, monkeypatch):
    folder, given, plain = pipelines.BUILT[name](tmp_path / name), [], devices.one_at_a_time
    monkeypatch.setattr(
        devices, "one_at_a_time", lambda models, to: (given.extend(models), plain(models, to))
    )
    wanted = bases.load_teller(folder)(["", "red apple"])
    given.clear()
    found = bases.load_teller(folder, "cuda")(["", "red apple"])
    assert sum("cuda" in there for there in where(given)) == 1
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4)
