"""Inception-v3 features for FID as in the literature: torch-fidelity's network and weights.

The features are those of 1706.08500, from a port of its TensorFlow graph. Images of any size are
resized to 299 x 299 as TensorFlow 1 did. torch-fidelity stores its weights as a pickle; here they
are read from a safetensors file with the same tensors; ``params/README.md`` says how to make it.
"""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from fitspace.core.files import every_tensor, opened
from fitspace.core.imports import import_torchvision
from fitspace.metrics.weights import named_network

import_torchvision()

from torch_fidelity import feature_extractor_inceptionv3 as theirs  # noqa: E402

LAYER = "2048"
BATCH = 32


def load_network(path: Path) -> torch.nn.Module:
    """torch-fidelity's extractor with the weights of a safetensors file.

    Raises UserError for a file that cannot be read or holds other tensors.
    """
    with opened(path) as file:
        weights = every_tensor(file)
    # The constructor would download and load a pickle; give it these weights instead.
    with (
        patch.object(theirs, "load_state_dict_from_url", lambda *_, **__: weights),
        named_network("inception", path, "other weights than torch-fidelity's Inception-v3"),
    ):
        return theirs.FeatureExtractorInceptionV3("fid", [LAYER])


@torch.inference_mode()
def features(images: Tensor, path: Path) -> Tensor:
    """Features of uint8 images, shape (n, h, w, 3): float64, shape (n, 2048)."""
    network = load_network(path)
    batches = images.permute(0, 3, 1, 2).split(BATCH)
    return torch.cat([network(batch)[0].double() for batch in batches])
