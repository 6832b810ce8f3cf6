"""Faithfulness to the image that a task gives, by edges."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fitspace.metrics.metric import GIVEN, HELD_OUT, PAIRS, Compared, Metric

if TYPE_CHECKING:
    from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def edge_agreement(of: Compared) -> float:
    """Mean correlation of two images' edges; 0 where one of them has none."""
    own, other = of.pairs.T
    a, b = edges(of.images[own]), edges(of.given[other])
    a, b = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (a, b))
    scale = a.norm(dim=1) * b.norm(dim=1)
    return of.over_pairs((a * b).sum(1).where(scale > 0, 0) / scale.where(scale > 0, 1))


def edges(images: Tensor) -> Tensor:
    """Strength of the edges of uint8 images (n, h, w, 3): the length of Sobel's gradient of their
    luma, float64 (n, h - 2, w - 2)."""
    import torch
    from torch.nn.functional import conv2d

    luma = images.double() @ torch.tensor(LUMA, dtype=torch.float64)
    across = torch.tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64)
    gradient = conv2d(luma[:, None], torch.stack([across, across.T])[:, None])
    return gradient.norm(dim=1)


METRICS = {
    "edge_agreement": Metric(
        "Edge agreement with the given image",
        False,
        "Correlation over pixels between the strengths of the edges (Sobel's gradient of the luma) "
        "of a sample and of the image given with its caption, mean over samples; 0 where one has "
        "no edge.",
        of=(HELD_OUT,),
        needs=(PAIRS, GIVEN),
        measure=edge_agreement,
    ),
}
