"""Agreement of edges, against SciPy's Sobel filter and NumPy's correlation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import sobel

from fitspace.metrics import METRICS, Compared

DRAW = np.random.default_rng(0)
SAMPLES = DRAW.integers(0, 256, (4, 12, 12, 3), dtype=np.uint8)
GIVEN = DRAW.integers(0, 256, (3, 12, 12, 3), dtype=np.uint8)
PAIRS = [(0, 0), (1, 0), (2, 1), (3, 2)]


def measured(samples: np.ndarray, given: np.ndarray, pairs=PAIRS) -> float:
    reference = {"given": torch.from_numpy(given), "pairs": torch.tensor(pairs)}
    compared = Compared(torch.from_numpy(samples), reference, lambda name: None)
    return METRICS["edge_agreement"].measure(compared)


def strength(image: np.ndarray) -> np.ndarray:
    luma = image.astype(float) @ [0.299, 0.587, 0.114]
    return np.hypot(sobel(luma, 0), sobel(luma, 1))[1:-1, 1:-1]


def test_it_is_the_mean_correlation_of_edges():
    expected = [
        np.corrcoef(strength(SAMPLES[i]).ravel(), strength(GIVEN[j]).ravel())[0, 1]
        for i, j in PAIRS
    ]
    assert measured(SAMPLES, GIVEN) == pytest.approx(np.mean(expected), abs=1e-9)


def test_an_image_agrees_with_itself_and_with_its_negative_in_any_brightness():
    ramp = np.linspace(40, 200, 12)[:, None, None] * np.ones((12, 12, 3))
    ramp[4:8, 3:9] = 90
    image = ramp.astype(np.uint8)[None]
    own = [(0, 0)]
    assert measured(image, image, own) == pytest.approx(1)
    assert measured(255 - image, image, own) == pytest.approx(1)
    assert measured(image // 2, image, own) == pytest.approx(1, abs=0.02)


def test_an_image_without_edges_agrees_with_nothing():
    blank = np.full((1, 12, 12, 3), 77, np.uint8)
    assert measured(blank, GIVEN[:1], [(0, 0)]) == 0
    assert measured(SAMPLES[:1], blank, [(0, 0)]) == 0
