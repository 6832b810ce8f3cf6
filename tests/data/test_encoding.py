"""Captions as conditions where a GPU's memory is too small for the text encoders."""

from pathlib import Path

import pytest
import torch

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
