"""Nearest neighbours: density, coverage, and samples that copy a training image."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from fitspace.metrics.extractors import SPACES
from fitspace.metrics.metric import HELD_OUT, TRAINING, Compared, Metric

if TYPE_CHECKING:
    from torch import Tensor

NEAREST = 5  # neighbours of density and coverage (2002.09797, section 4)
RARE = 0.05  # share of held-out images that are as near to a training image by chance
_ROWS = 1024  # at once


def _within(of: Compared, space: str) -> tuple[Tensor, int]:
    """Whether each sample lies in each held-out image's ball: bool, shape (m, n); and how many
    neighbours reach a ball's edge."""
    import torch

    samples, others = of.samples(space), of.others(space)
    nearest = min(NEAREST, len(others) - 1)
    # An image's nearest neighbour is itself.
    radii = torch.cdist(others, others).kthvalue(nearest + 1, dim=1).values
    return torch.cdist(others, samples) < radii[:, None], nearest


def density(of: Compared, space: str) -> float:
    """The mean number of balls that a sample lies in, by the number of neighbours."""
    within, nearest = _within(of, space)
    return (within.sum(0).double().mean() / nearest).item()


def coverage(of: Compared, space: str) -> float:
    """The share of balls with a sample."""
    return _within(of, space)[0].any(1).double().mean().item()


def copies(of: Compared, space: str) -> float:
    """The share of samples nearer to a training image than all but few held-out images are."""
    training = of.training(space)
    usual = nearest(of.held_out(space), training).quantile(RARE)
    return (nearest(of.samples(space), training) < usual).double().mean().item()


def nearest(some: Tensor, others: Tensor) -> Tensor:
    """The distance of each of some features (n, d) to the nearest of others (t, d): shape (n,)."""
    import torch

    parts = [torch.cdist(some, part).amin(1) for part in others.split(_ROWS)]
    return torch.stack(parts).amin(0)


METRICS = (
    {
        f"density_{space}": Metric(
            f"Density ({label})",
            False,
            f"In how many held-out images' {NEAREST}-nearest-neighbour balls a sample lies, mean "
            f"over samples, over {NEAREST}; about 1 if both are alike (2002.09797). On features of "
            f"{label}.",
            of=(HELD_OUT,),
            extractor=space,
            share="n",
            measure=partial(density, space=space),
        )
        for space, label in SPACES.items()
    }
    | {
        f"coverage_{space}": Metric(
            f"Coverage ({label})",
            False,
            f"Share of held-out images with a sample in their {NEAREST}-nearest-neighbour ball "
            f"(2002.09797), on features of {label}.",
            depends_on_n=True,
            of=(HELD_OUT,),
            extractor=space,
            share="m",
            measure=partial(coverage, space=space),
        )
        for space, label in SPACES.items()
    }
    | {
        f"copies_{space}": Metric(
            f"Copies ({label})",
            True,
            f"Share of samples nearer to their nearest training image than {1 - RARE:.0%} of the "
            f"held-out images are to theirs, on features of {label}; about {RARE:.0%} where "
            "samples are as near by chance as held-out images. Training and held-out images are as "
            "the autoencoder gives them back.",
            of=(HELD_OUT,),
            extractor=space,
            shows_copies=True,
            share="n",
            needs=(TRAINING,),
            measure=partial(copies, space=space),
        )
        for space, label in SPACES.items()
    }
)
