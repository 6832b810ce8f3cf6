"""Distances between the distributions of samples and held-out images."""

from __future__ import annotations

from functools import partial

from fitspace.metrics.extractors import JUDGE, SPACES
from fitspace.metrics.metric import HELD_OUT, Compared, Metric

STANDARD = "effnet"  # fd_effnet and kid_effnet are always measured
SIGMA, SCALE = 10, 1000  # of CMMD (2401.09603, section 4)


def frechet(of: Compared, space: str) -> float:
    """Squared Fréchet distance."""
    from fitspace.metrics.frechet import frechet_distance

    return frechet_distance(of.samples(space), of.others(space))


def kernel(of: Compared, space: str) -> float:
    """Kernel distance with the cubic polynomial kernel."""
    from fitspace.metrics.kernel import kernel_distance

    return kernel_distance(of.samples(space), of.others(space))


def cmmd(of: Compared) -> float:
    """Squared maximum mean discrepancy with a Gaussian kernel, times 1000."""
    import torch

    x, y = of.samples(JUDGE), of.others(JUDGE)

    def mean(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        apart = (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp(min=0)
        # expm1: all kernel values are near 1, and the ones cancel in the sum.
        return torch.expm1(-apart / (2 * SIGMA**2)).mean()

    return (SCALE * (mean(x, x) + mean(y, y) - 2 * mean(x, y))).item()


METRICS = (
    {
        f"fd_{space}": Metric(
            f"Fréchet distance ({label})",
            True,
            f"Squared Fréchet distance between Gaussians fitted to features of {label}, of the "
            "samples and of the held-out images (1706.08500). Biased upwards by about c/n, so only "
            "values from equal numbers of images are comparable.",
            depends_on_n=True,
            of=(HELD_OUT,),
            extractor=space,
            measure=partial(frechet, space=space),
        )
        for space, label in SPACES.items()
        if space not in (STANDARD, "inception")  # on Inception-v3 it is fid
    }
    | {
        f"kid_{space}": Metric(
            f"KID ({label})",
            True,
            "Kernel distance: unbiased squared maximum mean discrepancy with the cubic polynomial "
            f"kernel, mean over subsets, on features of {label} (1801.01401).",
            of=(HELD_OUT,),
            extractor=space,
            measure=partial(kernel, space=space),
        )
        for space, label in SPACES.items()
        if space != STANDARD
    }
    | {
        "cmmd": Metric(
            "CMMD",
            True,
            "Squared maximum mean discrepancy with a Gaussian kernel of width 10, times 1000, "
            "between samples and held-out images, embedded by the study's own judge (2401.09603, "
            "which embeds by CLIP ViT-L/14 at 336 px: other judges give other numbers). Biased "
            "upwards by about c/n.",
            depends_on_n=True,
            of=(HELD_OUT,),
            extractor=JUDGE,
            measure=cmmd,
        )
    }
)
