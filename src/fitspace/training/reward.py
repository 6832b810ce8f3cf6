"""A reward beside the objective: the likeness, by an open_clip model, of what is being denoised.

With a time step below a bound the one-step estimate of the clean latents is decoded and embedded,
and the loss is lowered by the weight times its cosine with the embedding of the caption, or of the
decoded training image. Gradients go through the frozen autoencoder and the frozen encoder. ReFL
(2304.05977) rewards an estimate at a late time step too.

DRaFT-K (2309.17400, section 4) rewards whole samples in place of the estimate: they are drawn from
noise, and gradients go through the solver's last K steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fitspace import bases, study
from fitspace.bases.family import Conditions, picked
from fitspace.metrics import clip
from fitspace.training.sampling import guided

if TYPE_CHECKING:
    from fitspace.bases.process import Process
    from fitspace.training.batch import Batch


@dataclass(frozen=True)
class Reward:
    """A rewarding model and what it sees.

    Attributes
    ----------
    judge : the open_clip model, frozen.
    vae : the base's autoencoder, frozen; a denoiser's latents are ``scaling`` times those of the
        autoencoder less their ``shift``.
    weight : factor on the cosine.
    below : share of the time steps, counted from the clean end, that is rewarded.
    texts : unit vectors of the captions, by their row among the conditions; None: each example's
        own image is the target.
    through : so many of a sample's last solver steps have a gradient; 0: the one-step estimate is
        rewarded, no sample.
    steps, guidance : of the samples.
    none : conditions of the empty caption or of no class, first axis 1, for their guidance.
    """

    judge: clip.Judge
    vae: torch.nn.Module
    scaling: float | torch.Tensor
    shift: float | torch.Tensor
    weight: float
    below: float
    texts: torch.Tensor | None
    through: int = 0
    steps: int = 0
    guidance: float = 1.0
    none: Conditions = field(default_factory=dict)

    def losses(
        self,
        process: Process,
        predicted: torch.Tensor,
        part: Batch,
        model: torch.nn.Module | None = None,
        half: bool = False,
    ) -> torch.Tensor:
        """The negative reward of each example, shape (n,); 0 for those that are not rewarded.

        Those are class images, examples whose caption was dropped, and, but with samples, time
        steps not below the bound. ``predicted`` is float32, shaped as the batch's latents or with
        variances beside. ``model``, in half precision or not, draws the samples, from the batch's
        own noise: each step and example has another, whatever else is computed with it.
        """
        rewarded = (part.counts > 0) & (part.rows != 0)
        if not self.through:
            rewarded &= part.t < self.below * process.steps
        chosen = rewarded.nonzero()[:, 0]
        found = predicted.new_zeros(len(part))
        if not len(chosen):
            return found
        if self.through:
            told = picked(part.conditions, chosen)
            estimate = self.drawn(process, model, part.noise[chosen], told, half)
        else:
            mean = predicted[chosen, : part.noisy.shape[1]]
            estimate = process.estimate(mean, part.noisy[chosen], part.t[chosen])
        if self.texts is not None:
            goal = self.texts[part.rows[chosen]]
        else:
            with torch.no_grad():
                goal = self.seen(part.clean[chosen])
        cosine = (self.seen(estimate) * goal).sum(1)
        return found.index_copy(0, chosen, -self.weight * part.counts[chosen] * cosine)

    def drawn(
        self,
        process: Process,
        model: torch.nn.Module,
        noise: torch.Tensor,
        told: Conditions,
        half: bool = False,
    ) -> torch.Tensor:
        """A denoiser's clean latents, sampled from noise (n, c, h, w) by the process's solver.

        Their gradient takes what comes before the last ``through`` steps as constant: the latents,
        and what a multistep solver keeps of earlier predictions (2309.17400, algorithm 1).
        """
        predict = guided(model, told, self.none, self.guidance)
        solver = process.solver(self.steps, noise.device)
        x = noise * getattr(solver, "init_noise_sigma", 1.0)
        first = len(solver.timesteps) - self.through
        for i, t in enumerate(solver.timesteps):
            with torch.set_grad_enabled(i >= first):
                with torch.autocast(noise.device.type, dtype=torch.bfloat16, enabled=half):
                    predicted = predict(x, t)
                x = solver.step(predicted.float(), t, x).prev_sample
        return x

    def seen(self, latents: torch.Tensor) -> torch.Tensor:
        """Unit vectors (n, d) of a denoiser's clean latents (n, c, h, w), decoded."""
        images = bases.decoded(self.vae, latents / self.scaling + self.shift)
        return clip.embedded(self.judge, (images.clamp(-1, 1) + 1) / 2)


def load_reward(
    settings: dict[str, Any],
    base: Path,
    captions: Sequence[str],
    device: str | torch.device,
    none: Conditions | None = None,
) -> Reward:
    """The reward of a study on its resolved base; ``captions`` by their row.

    ``settings`` are a :class:`fitspace.study.Reward` as a dict; ``none`` as `Reward` has it. Raises
    UserError as :func:`fitspace.metrics.clip.load`.
    """
    settings = study.Reward(**settings)
    judge = clip.load(settings.model)
    texts = None
    if settings.against == "caption":  # a copy: what inference made takes part in no gradient
        texts = clip.text_embeddings(judge, list(captions)).clone().to(device)
    judge.model.to(device)
    vae = bases.load_vae(base).to(device)
    scaling, shift = bases.scaling_of(vae)
    return Reward(
        judge, vae, scaling, shift, settings.weight, settings.below, texts,
        settings.through, settings.steps, settings.guidance,
        {name: value.to(device) for name, value in (none or {}).items()},
    )  # fmt: skip
