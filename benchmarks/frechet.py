"""The Fréchet distance against torch-fidelity's: equal, and how much faster its trace term is.

    python benchmarks/frechet.py

Features are random, with a spectrum that falls off as those of images do, d = 2048 as Inception's.
The reference is fitted once, as a study does.
"""

from __future__ import annotations

import numpy as np
import torch
from timing import Pairs, pairs, seconds

DIMENSIONS = 2048


def features(n: int, seed: int) -> torch.Tensor:
    """Shape (n, 2048): correlated, eigenvalues of the covariance falling as 1/k."""
    draw = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, DIMENSIONS + 1, dtype=torch.float64) ** -0.5
    mixing = torch.linalg.qr(
        torch.randn(DIMENSIONS, DIMENSIONS, generator=torch.Generator().manual_seed(0)).double()
    ).Q
    return (torch.randn(n, DIMENSIONS, generator=draw).double() * scale) @ mixing + 0.01 * seed


def main() -> None:
    from fitspace.core.imports import import_torchvision

    import_torchvision()
    from scipy.linalg import sqrtm
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    from fitspace.metrics.frechet import between, fit, trace

    print("| n | torch-fidelity | fitspace | apart | trace term: sqrtm | fitspace | ratio |")
    print("|---|---|---|---|---|---|---|")
    for n, count in ((1000, 3), (5000, 3)):
        theirs, ours = features(n, 1), features(n, 2)
        statistics = [
            {"mu": x.mean(0).numpy(), "sigma": np.cov(x.numpy(), rowvar=False)}
            for x in (theirs, ours)
        ]
        expected = fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
        reference, made = fit(theirs), fit(ours)
        found = between(made, reference)
        product = statistics[0]["sigma"] @ statistics[1]["sigma"]
        slow = [seconds(lambda p=product: sqrtm(p))]
        taken = pairs(lambda r=reference: None, lambda m=made, r=reference: trace(m, r), count)
        both = Pairs(slow * count, taken.fast)
        apart = abs(found / expected - 1)
        print(f"| {n:,} | {expected:.6f} | {found:.6f} | {apart:.1e} | {both} |", flush=True)
        # With fewer samples than features the product is singular, and sqrtm inexact.
        assert apart <= (1e-6 if n >= DIMENSIONS else 1e-5), (found, expected)


if __name__ == "__main__":
    main()
