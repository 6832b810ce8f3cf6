"""Training targets, weights and losses, chosen by the scheduler's own configuration."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from fitspace.core.errors import UserError

if TYPE_CHECKING:
    from fitspace.training.batch import Batch


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
    # get_velocity takes the schedule along to the device of what it is given.
    alpha = scheduler.alphas_cumprod.to(t.device)[t].double()
    snr = alpha / (1 - alpha)
    clipped = snr.clamp(max=min_snr_gamma)
    velocity = scheduler.config.prediction_type == "v_prediction"
    # At zero terminal SNR noise prediction carries no gradient: weigh it by the limit, 1.
    weight = clipped / (snr + 1) if velocity else torch.where(snr > 0, clipped / snr, 1.0)
    return weight.float()


def loss(scheduler, predicted: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Loss of each example, shape (n,): weighted squared error, averaged over the latent.

    Where ``predicted`` has twice the latent's channels, its second half says how wide the
    reverse step's distribution is, and one term of the variational bound is added to train it
    (2102.09672, eq. 16; weight 1 as in DiT): the first half is detached there.
    """
    mean, widths = predicted.tensor_split([batch.noisy.shape[1]], dim=1)
    wanted = target(scheduler, batch.clean, batch.noise, batch.t)
    losses = (mean - wanted).square().mean((1, 2, 3)) * batch.weight
    if widths.shape[1]:
        losses = losses + variational_bound(
            scheduler, mean.detach(), widths, batch.clean, batch.noisy, batch.t
        )
    return losses


def variational_bound(
    scheduler,
    predicted: torch.Tensor,
    widths: torch.Tensor,
    clean: torch.Tensor,
    noisy: torch.Tensor,
    t: torch.Tensor,
) -> torch.Tensor:
    """One term of the variational bound [bits per dimension], shape (n,) (2102.09672, eq. 4-6).

    ``predicted`` (n, c, h, w) as the scheduler's prediction type says; ``widths``, same shape:
    -1 for the true posterior's variance, 1 for beta, logarithmic between (eq. 15). At the first
    step the term is the likelihood of the clean latent, in cells of 2/255 as in DiT's code.

    Raises
    ------
    UserError : noise prediction by a process whose last step is noise alone: infinite there.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon" and scheduler.config.rescale_betas_zero_snr:
        raise UserError(
            f"scheduler: prediction_type: {kind!r} with rescale_betas_zero_snr has no variational "
            "bound, which a learned variance needs; allowed: v_prediction"
        )
    alphas = scheduler.alphas_cumprod.double().to(t.device)
    before = torch.cat([alphas.new_ones(1), alphas[:-1]])
    betas = 1 - alphas / before
    posterior = betas * (1 - before) / (1 - alphas)
    # The first step's posterior has no width: the second's stands in, as in the authors' code.
    narrowest = torch.cat([posterior[1:2], posterior[1:]]).log()

    def at(values: torch.Tensor) -> torch.Tensor:
        return values[t].float().reshape(-1, 1, 1, 1)

    if kind == "epsilon":
        estimate = (noisy - at((1 - alphas).sqrt()) * predicted) / at(alphas.sqrt())
    else:
        estimate = at(alphas.sqrt()) * noisy - at((1 - alphas).sqrt()) * predicted
    # The posterior's mean is linear in the clean latent (2006.11239, eq. 7): by this factor.
    of_clean = at(betas * before.sqrt() / (1 - alphas))
    share = (widths + 1) / 2
    log_variance = share * at(betas.log()) + (1 - share) * at(narrowest)
    divergence = 0.5 * (
        log_variance
        - at(narrowest)
        + torch.exp(at(narrowest) - log_variance)
        + (of_clean * (clean - estimate)).square() * torch.exp(-log_variance)
        - 1
    )
    # At the first step the mean is the estimate itself.
    likelihood = -_log_likelihood(clean, estimate, 0.5 * log_variance)
    nats = torch.where((t == 0).reshape(-1, 1, 1, 1), likelihood, divergence)
    return nats.mean((1, 2, 3)) / math.log(2)


def _log_likelihood(x: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    """Log of a normal distribution's mass in the cell of width 2/255 around ``x``."""

    def below(edge: torch.Tensor) -> torch.Tensor:
        return torch.special.ndtr((edge - mean) * torch.exp(-log_std))

    left = torch.where(x < -0.999, torch.zeros_like(x), below(x - 1 / 255))
    right = torch.where(x > 0.999, torch.ones_like(x), below(x + 1 / 255))
    return (right - left).clamp(min=1e-12).log()
