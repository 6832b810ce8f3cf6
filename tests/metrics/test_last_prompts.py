"""Reference features of a task's last prompts: as if there were no others."""

from __future__ import annotations

import numpy as np
import torch

from fitspace.metrics import of_last_prompts, reference_features


def test_they_are_the_features_made_of_those_prompts_alone(monkeypatch):
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    captions = ["a", "b", "c", "b", "d", "e", "f", "g", "h"]
    prompts = [c for c in captions if c != "h"] + ["h", "h"]

    def embedded(of):
        return torch.tensor([[len(str(x)), hash_of(x)] for x in of], dtype=torch.float32)

    def hash_of(x):
        return float(np.asarray(x).sum()) if not isinstance(x, str) else float(ord(x))

    class Extraction:
        def __init__(self, *_):
            pass

        def images(self, name, images):
            return embedded([np.asarray(i) for i in images])

        def texts(self, name, texts):
            return embedded(texts)

    monkeypatch.setattr("fitspace.metrics.measuring.Extraction", Extraction)
    further = ("psnr", "pickscore_score")
    every = reference_features(images, captions, prompts, "judge", {}, further)
    last = reference_features(images, captions, prompts[-4:], "judge", {}, further)
    found = of_last_prompts(every, 4)
    assert found.keys() == last.keys() and "pairs" in last and "pickscore_texts" in last
    for name, wanted in last.items():
        assert torch.equal(found[name], wanted), name
