"""Training targets and loss weights, chosen by the scheduler's own configuration."""

from __future__ import annotations

import torch


def target(scheduler, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """What the denoiser should predict: the noise, or the velocity (2202.00512, eq. 8).

    Shapes: ``latents`` and ``noise`` (n, c, h, w), ``t`` (n,).
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, t)
    raise ValueError(f"prediction_type: {kind!r}; allowed: epsilon, v_prediction")


def weights(scheduler, t: torch.Tensor, min_snr_gamma: float | None) -> torch.Tensor:
    """Per-example loss weights, shape (n,): ones, or min-SNR (2303.09556, section 3.4).

    min(SNR, γ)/SNR for noise prediction, min(SNR, γ)/(SNR + 1) for velocity prediction.
    """
    if min_snr_gamma is None:
        return torch.ones(len(t))
    alpha = scheduler.alphas_cumprod[t].double()
    snr = alpha / (1 - alpha)
    clipped = snr.clamp(max=min_snr_gamma)
    velocity = scheduler.config.prediction_type == "v_prediction"
    # At zero terminal SNR noise prediction carries no gradient: weigh it by the limit, 1.
    weight = clipped / (snr + 1) if velocity else torch.where(snr > 0, clipped / snr, 1.0)
    return weight.float()
