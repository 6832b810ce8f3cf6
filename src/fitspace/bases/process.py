"""The process that noises latents, and what a denoiser learns to predict of it.

A process draws a time step, mixes latents with noise, says what to predict and how much each
example counts, and goes back from noise by a solver. Nobody else looks at a scheduler.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from fitspace.core.errors import UserError
from fitspace.core.imports import import_torchvision


class Diffusion:
    """Discrete-time diffusion (2006.11239), as a pipeline's scheduler is configured.

    The denoiser predicts the noise or the velocity, and where it has twice the latent's channels
    the variance of the reverse step too (2102.09672).

    Parameters
    ----------
    settings : configuration of diffusers' DDPMScheduler, or of one of its solvers.
    """

    def __init__(self, settings: dict[str, Any]):
        import_torchvision()
        from diffusers import DDPMScheduler

        self.settings = settings
        self.scheduler = DDPMScheduler.from_config(settings)

    @property
    def predicts(self) -> str:
        return self.scheduler.config.prediction_type

    @property
    def steps(self) -> int:
        """How many time steps there are."""
        return self.scheduler.config.num_train_timesteps

    def draw_time(self, draw: np.random.Generator, density: str | None = None) -> int:
        """A time step of a training example, uniform; there is no other density."""
        return int(draw.integers(self.steps))

    def mix(self, clean: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Noisy latents, shape (n, c, h, w), at time steps ``t`` (n,)."""
        return self.scheduler.add_noise(clean, noise, t)

    def solver(self, steps: int, device: str | torch.device) -> Any:
        """DPM-Solver++ (2M) with its time steps set. It keeps a history: one for each batch."""
        from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

        solver = DPMSolverMultistepScheduler.from_config(self.settings)
        solver.set_timesteps(steps, device=device)
        return solver

    def target(self, clean: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What the denoiser should predict: the noise, or the velocity (2202.00512, eq. 8).

        Shapes: ``clean`` and ``noise`` (n, c, h, w), ``t`` (n,).
        """
        if self.predicts == "epsilon":
            return noise
        if self.predicts == "v_prediction":
            return self.scheduler.get_velocity(clean, noise, t)
        raise ValueError(f"prediction_type: {self.predicts!r}; allowed: epsilon, v_prediction")

    def noise(self, predicted: torch.Tensor, noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The noise that a prediction stands for: what `target` says, solved for the noise.

        Shapes: ``predicted`` and ``noisy`` (n, c, h, w), ``t`` (n,).
        """
        if self.predicts == "epsilon":
            return predicted
        alpha = self.scheduler.alphas_cumprod.to(noisy.device)[t].reshape(-1, 1, 1, 1)
        return alpha.sqrt() * predicted + (1 - alpha).sqrt() * noisy

    def estimate(
        self, predicted: torch.Tensor, noisy: torch.Tensor, t: torch.Tensor
    ) -> torch.Tensor:
        """The clean latents that a prediction stands for; shapes as :meth:`noise` has them."""
        alphas = self.scheduler.alphas_cumprod.double().to(t.device)

        def at(values: torch.Tensor) -> torch.Tensor:
            return values[t].float().reshape(-1, 1, 1, 1)

        if self.predicts == "epsilon":
            return (noisy - at((1 - alphas).sqrt()) * predicted) / at(alphas.sqrt())
        return at(alphas.sqrt()) * noisy - at((1 - alphas).sqrt()) * predicted

    def weights(self, t: torch.Tensor, min_snr_gamma: float | None) -> torch.Tensor:
        """Per-example loss weights, shape (n,): ones, or min-SNR (2303.09556, section 3.4).

        min(SNR, γ)/SNR for noise prediction, min(SNR, γ)/(SNR + 1) for velocity prediction.
        """
        if min_snr_gamma is None:
            return torch.ones(len(t))
        # get_velocity takes the schedule along to the device of what it is given.
        alpha = self.scheduler.alphas_cumprod.to(t.device)[t].double()
        snr = alpha / (1 - alpha)
        clipped = snr.clamp(max=min_snr_gamma)
        velocity = self.predicts == "v_prediction"
        # At zero terminal SNR noise prediction carries no gradient: weigh it by the limit, 1.
        weight = clipped / (snr + 1) if velocity else torch.where(snr > 0, clipped / snr, 1.0)
        return weight.float()

    def losses(
        self,
        predicted: torch.Tensor,
        clean: torch.Tensor,
        noise: torch.Tensor,
        noisy: torch.Tensor,
        t: torch.Tensor,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """Loss of each example, shape (n,): weighted squared error, averaged over the latent.

        Where ``predicted`` has twice the latent's channels, its second half says how wide the
        reverse step's distribution is, and one term of the variational bound is added to train it
        (2102.09672, eq. 16; weight 1 as in DiT): the first half is detached there.
        """
        mean, widths = predicted.tensor_split([noisy.shape[1]], dim=1)
        losses = (mean - self.target(clean, noise, t)).square().mean((1, 2, 3)) * weight
        if widths.shape[1]:
            losses = losses + self.variational_bound(mean.detach(), widths, clean, noisy, t)
        return losses

    def variational_bound(
        self,
        predicted: torch.Tensor,
        widths: torch.Tensor,
        clean: torch.Tensor,
        noisy: torch.Tensor,
        t: torch.Tensor,
    ) -> torch.Tensor:
        """One term of the variational bound [bits per dimension], (n,) (2102.09672, eq. 4-6).

        ``predicted`` (n, c, h, w) as the scheduler's prediction type says; ``widths``, same shape:
        -1 for the true posterior's variance, 1 for beta, logarithmic between (eq. 15). At the
        first step the term is the likelihood of the clean latent, in cells of 2/255 as in DiT's
        code.

        Raises
        ------
        UserError : noise prediction by a process whose last step is noise alone: infinite there.
        """
        kind = self.predicts
        if kind == "epsilon" and self.scheduler.config.rescale_betas_zero_snr:
            raise UserError(
                f"scheduler: prediction_type: {kind!r} with rescale_betas_zero_snr has no "
                "variational bound, which a learned variance needs; allowed: v_prediction"
            )
        alphas = self.scheduler.alphas_cumprod.double().to(t.device)
        before = torch.cat([alphas.new_ones(1), alphas[:-1]])
        betas = 1 - alphas / before
        posterior = betas * (1 - before) / (1 - alphas)
        # The first step's posterior has no width: the second's stands in, as in the authors' code.
        narrowest = torch.cat([posterior[1:2], posterior[1:]]).log()

        def at(values: torch.Tensor) -> torch.Tensor:
            return values[t].float().reshape(-1, 1, 1, 1)

        estimate = self.estimate(predicted, noisy, t)
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


class FlowMatching:
    """Flow matching (2210.02747) along straight lines, as a pipeline's scheduler is configured.

    A noisy latent is ``(1 - σ)·clean + σ·noise``; the denoiser predicts the velocity
    ``noise - clean`` (2403.03206, eq. 12 to 14). A time step is σ times `steps`. The scheduler's
    ``shift`` s moves all σ towards the noise, ``s·σ/(1 + (s - 1)·σ)``, as larger images need
    (section 5.3.2), in training and in sampling. A dynamic shift depends on the number of image
    tokens, and is one of sampling alone, as in diffusers' training scripts.

    Parameters
    ----------
    settings : configuration of diffusers' FlowMatchEulerDiscreteScheduler, or of a
        DPMSolverMultistepScheduler for flows, which calls the shift ``flow_shift``.
    tokens : how many tokens an image has in the denoiser, for a dynamic shift.
    choice : which steps a solver takes, before any shift; one of `STEPS`.
    """

    def __init__(self, settings: dict[str, Any], tokens: int = 0, choice: str = "solver"):
        import_torchvision()
        from diffusers import FlowMatchEulerDiscreteScheduler

        self.settings, self.tokens, self.choice = settings, tokens, choice
        self.dpm = bool(settings.get("use_flow_sigmas"))
        own = {"shift": settings["flow_shift"]} if self.dpm else settings
        self.scheduler = FlowMatchEulerDiscreteScheduler.from_config(own)
        self.times = self.scheduler.timesteps.tolist()  # from noise to clean

    @property
    def steps(self) -> int:
        """How many time steps there are."""
        return self.scheduler.config.num_train_timesteps

    def draw_time(self, draw: np.random.Generator, density: str | None = None) -> float:
        """A time step of a training example, by one of `DENSITIES`; None: logit-normal."""
        place = DENSITIES[density or "logit_normal"](draw)
        return self.times[min(int(place * self.steps), self.steps - 1)]

    def _sigma(self, t: torch.Tensor) -> torch.Tensor:
        return (t.float() / self.steps).reshape(-1, 1, 1, 1)

    def mix(self, clean: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Noisy latents, shape (n, c, h, w), at time steps ``t`` (n,)."""
        sigma = self._sigma(t)
        return (1 - sigma) * clean + sigma * noise

    def solver(self, steps: int, device: str | torch.device) -> Any:
        """Euler's method, or DPM-Solver++ where the settings are its, with its time steps set.

        The latter keeps a history: one for each batch.
        """
        from diffusers import FlowMatchEulerDiscreteScheduler
        from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

        if self.dpm:
            solver = DPMSolverMultistepScheduler.from_config(self.settings)
            solver.set_timesteps(steps, device=device)
            return solver
        solver = FlowMatchEulerDiscreteScheduler.from_config(self.settings)
        mu = empirical_mu(self.tokens, steps) if self.choice == "empirical" else self.mu
        shift = {"mu": mu} if solver.config.use_dynamic_shifting else {}
        solver.set_timesteps(**STEPS[self.choice](steps), device=device, **shift)
        return solver

    @property
    def mu(self) -> float:
        """Logarithm of a dynamic shift: linear in the number of tokens, as pipelines have it."""
        c = self.scheduler.config
        slope = (c.max_shift - c.base_shift) / (c.max_image_seq_len - c.base_image_seq_len)
        return c.base_shift + slope * (self.tokens - c.base_image_seq_len)

    def target(self, clean: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What the denoiser should predict: the velocity from clean to noise."""
        return noise - clean

    def noise(self, predicted: torch.Tensor, noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The noise that a predicted velocity stands for; shapes as :meth:`mix` has them."""
        return noisy + (1 - self._sigma(t)) * predicted

    def estimate(
        self, predicted: torch.Tensor, noisy: torch.Tensor, t: torch.Tensor
    ) -> torch.Tensor:
        """The clean latents that a predicted velocity stands for."""
        return noisy - self._sigma(t) * predicted

    def weights(self, t: torch.Tensor, min_snr_gamma: float | None) -> torch.Tensor:
        """Per-example loss weights, shape (n,): ones. Min-SNR is defined for diffusion alone."""
        if min_snr_gamma is not None:
            raise ValueError(f"min_snr_gamma: {min_snr_gamma}; allowed with flow matching: None")
        return torch.ones(len(t))

    def losses(
        self,
        predicted: torch.Tensor,
        clean: torch.Tensor,
        noise: torch.Tensor,
        noisy: torch.Tensor,
        t: torch.Tensor,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """Loss of each example, shape (n,): weighted squared error, averaged over the latent."""
        return (predicted - self.target(clean, noise, t)).square().mean((1, 2, 3)) * weight


def _logit_normal(draw: np.random.Generator) -> float:
    return 1 / (1 + math.exp(-draw.standard_normal()))


def _mode(draw: np.random.Generator) -> float:
    u = draw.random()
    return 1 - u - MODE_SCALE * (math.cos(math.pi * u / 2) ** 2 - 1 + u)


def empirical_mu(tokens: int, steps: int) -> float:
    """Logarithm of FLUX.2's dynamic shift, by the number of tokens and of steps: lines fitted by
    its authors for 10 and for 200 steps, and the line between them."""
    many = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return many
    few = 8.73809524e-05 * tokens + 1.89833333
    return many + (many - few) / 190 * (steps - 200)


def _even(steps: int) -> dict[str, Any]:
    return {"sigmas": np.linspace(1.0, 1 / steps, steps).tolist()}


# How pipelines choose a solver's steps -> its arguments. ``even``: σ from 1 down to 1/steps;
# ``empirical``: the same, shifted by :func:`empirical_mu`.
STEPS = {
    "solver": lambda steps: {"num_inference_steps": steps},
    "even": _even,
    "empirical": _even,
}
MODE_SCALE = 1.29  # of diffusers' scripts; the best of 2403.03206, table 1
# Density of time steps in training (2403.03206, section 3.1) -> a place in [0, 1] of it. All are
# symmetric: middle steps are as likely from either end.
DENSITIES = {
    "uniform": lambda draw: float(draw.random()),
    "logit_normal": _logit_normal,
    "mode": _mode,
}
Process = Diffusion | FlowMatching


def _log_likelihood(x: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    """Log of a normal distribution's mass in the cell of width 2/255 around ``x``."""

    def below(edge: torch.Tensor) -> torch.Tensor:
        return torch.special.ndtr((edge - mean) * torch.exp(-log_std))

    left = torch.where(x < -0.999, torch.zeros_like(x), below(x - 1 / 255))
    right = torch.where(x > 0.999, torch.ones_like(x), below(x + 1 / 255))
    return (right - left).clamp(min=1e-12).log()
