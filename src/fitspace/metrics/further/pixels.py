"""Distances between a sample and the held-out images of its caption."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fitspace.metrics.further.likeness import paired
from fitspace.metrics.metric import HELD_OUT, IMAGES, PAIRS, Compared, Metric

if TYPE_CHECKING:
    from torch import Tensor

PEAK = 255
ROUNDED = 1 / 12  # grey levels squared: the error that rounding to whole ones leaves
WINDOW, SPREAD = 11, 1.5  # px, of SSIM's Gaussian (Wang et al. 2004, section III-B)
K1, K2 = 0.01, 0.03
_PAIRS = 64  # at once


def psnr(of: Compared) -> float:
    """Peak signal-to-noise ratio [dB]."""
    return of.over_pairs(_by_pair(of, _psnr))


def ssim(of: Compared) -> float:
    """Structural similarity."""
    return of.over_pairs(_by_pair(of, _ssim))


def perceptual(of: Compared) -> float:
    """Distance of the stages' activations, each pixel's scaled to length 1 over the channels."""
    from fitspace.metrics import effnet

    network = effnet.load_network()
    return of.over_pairs(_by_pair(of, lambda a, b: _perceptual(network, a, b)))


def dreamsim(of: Compared) -> float:
    """One minus the cosine of DreamSim's features."""
    return 1 - paired(of, "dreamsim")


def _by_pair(of: Compared, measure) -> Tensor:
    """A value for each pair; ``measure`` takes two sets of images, uint8 (k, 3, h, w)."""
    import torch

    parts = []
    for pairs in of.pairs.split(_PAIRS):
        own, other = pairs.T
        a, b = of.images[own].permute(0, 3, 1, 2), of.shown[other].permute(0, 3, 1, 2)
        parts.append(measure(a, b))
    return torch.cat(parts)


def _psnr(a: Tensor, b: Tensor) -> Tensor:
    error = (a.double() - b.double()).square().mean((1, 2, 3)).clamp(min=ROUNDED)
    return 10 * (PEAK**2 / error).log10()


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    import torch
    from torch.nn.functional import conv2d

    x, y = a.double(), b.double()
    at = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    line = torch.exp(-at.square() / (2 * SPREAD**2))
    line = line / line.sum()
    window = (line[:, None] * line).expand(3, 1, WINDOW, WINDOW)

    def mean(image: Tensor) -> Tensor:
        return conv2d(image, window, groups=3)

    of_x, of_y = mean(x), mean(y)
    xx, yy, xy = mean(x * x) - of_x**2, mean(y * y) - of_y**2, mean(x * y) - of_x * of_y
    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    alike = (2 * of_x * of_y + c1) * (2 * xy + c2)
    return (alike / ((of_x**2 + of_y**2 + c1) * (xx + yy + c2))).mean((1, 2, 3))


def _perceptual(network, a: Tensor, b: Tensor) -> Tensor:
    import torch

    from fitspace.metrics import effnet

    with torch.inference_mode():
        stages = [
            network.forward_intermediates(effnet.preprocess(x), intermediates_only=True)
            for x in (a, b)
        ]
    found = torch.zeros(len(a), dtype=torch.float64)
    for one, other in zip(*stages, strict=True):
        one, other = (x.double() / (x.double().norm(dim=1, keepdim=True) + 1e-10)
                      for x in (one, other))  # fmt: skip
        found += (one - other).square().sum(1).mean((1, 2))
    return found


METRICS = {
    "psnr": Metric(
        "PSNR",
        False,
        "Peak signal-to-noise ratio in decibels between a sample and the held-out images of its "
        "caption, mean over pairs. At most "
        f"{10 * math.log10(PEAK**2 / ROUNDED):.1f}, which rounding to 256 levels leaves.",
        of=(HELD_OUT,),
        rewards_copies=True,
        needs=(PAIRS, IMAGES),
        measure=psnr,
    ),
    "ssim": Metric(
        "SSIM",
        False,
        "Structural similarity between a sample and the held-out images of its caption, mean over "
        f"pairs, colours and Gaussian windows of {WINDOW} px (Wang et al. 2004).",
        of=(HELD_OUT,),
        rewards_copies=True,
        needs=(PAIRS, IMAGES),
        measure=ssim,
    ),
    "perceptual_effnet": Metric(
        "Perceptual distance (EfficientNet-lite0)",
        True,
        "Squared distance between a sample and the held-out images of its caption by the "
        "activations of EfficientNet-lite0's five stages, each place's scaled to length 1 over the "
        "channels, mean over places and sum over stages. LPIPS (1801.03924) without its learned "
        "weights and on another network: its numbers are not LPIPS's.",
        of=(HELD_OUT,),
        rewards_copies=True,
        needs=(PAIRS, IMAGES),
        measure=perceptual,
    ),
    "dreamsim": Metric(
        "DreamSim distance",
        True,
        "One minus the cosine of DreamSim's features (2306.09344) of a sample and of the held-out "
        "images of its caption, mean over pairs.",
        of=(HELD_OUT,),
        extractor="dreamsim",
        rewards_copies=True,
        needs=(PAIRS,),
        measure=dreamsim,
    ),
}
