"""Prompt sensitivity: how far a model's prediction moves with what was taught (2303.18181).

An image is noised; the model predicts the noise under two conditions a and b, and
``E‖ε_a − ε_b‖² / E‖ε_b‖²`` says how much it perceives of their difference. The same ratio of the
hidden states at each block's output says where. The paper shows pictures of the difference; it
gives no number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from fitspace.bases import Conditions, family_of
from fitspace.bases.process import Process
from fitspace.training.sampling import NotFinite


@dataclass
class Moved:
    """Squared norms of the difference ``a − b`` and of ``b``, as sums.

    Attributes
    ----------
    difference, reference : of the predicted noise, shape (time steps, images).
    blocks : path of a block -> the same of its output, summed over the images: (2, time steps); in
        the order in which the model computes them.
    maps : float32, shape (shown, time steps, h, w): |ε_a − ε_b|, mean over the latent's channels,
        of the first images.
    """

    difference: np.ndarray
    reference: np.ndarray
    maps: np.ndarray
    blocks: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def by_time(self) -> list[float | None]:
        """The ratio at each time step, over all images."""
        return ratios(self.difference.sum(1), self.reference.sum(1))

    @property
    def by_image(self) -> list[float | None]:
        """The ratio for each image, over all time steps."""
        return ratios(self.difference.sum(0), self.reference.sum(0))

    @property
    def by_block(self) -> dict[str, list[float | None]]:
        """The ratio of each block's hidden states, at each time step."""
        return {path: ratios(*sums) for path, sums in self.blocks.items()}

    @property
    def mean(self) -> float | None:
        """Mean of the time steps' ratios: every time step counts alike."""
        values = self.by_time
        return None if None in values else float(np.mean(values))


def ratios(difference: np.ndarray, reference: np.ndarray) -> list[float | None]:
    """Elementwise ratio; None where there is nothing to compare with."""
    return [float(d / r) if r > 0 else None for d, r in zip(difference, reference, strict=True)]


@torch.no_grad()
def measure(
    model: nn.Module,
    process: Process,
    latents: torch.Tensor,
    noise: torch.Tensor,
    steps: Sequence[int],
    told: Callable[[int], Conditions],
    shown: int = 0,
    after: Callable[[int, int], None] = lambda *_: None,
) -> Moved:
    """Ask a denoiser about each image at each time step, under both conditions in one batch.

    A prediction of the velocity is converted to the noise that it stands for; learned variances
    are ignored.

    Parameters
    ----------
    latents, noise : shape (n, c, h, w); an image has the same noise at all time steps.
    steps : time steps.
    told : image -> its two conditions as a batch: with what was taught, without.
    shown : of how many of the first images to keep maps.
    after : called with the time step's and the image's number after each forward pass.

    Raises
    ------
    NotFinite : a prediction has NaN or infinite values.
    """
    family, device = family_of(model), next(model.parameters()).device
    forms = {path: family.block_of(block) for path, block in blocks_of(model).items()}
    count, channels, *side = latents.shape
    shape = (len(steps), count)
    maps = np.zeros((min(shown, count), len(steps), *side), np.float32)
    moved = Moved(np.zeros(shape), np.zeros(shape), maps)
    with watched(model) as hidden:
        for k, step in enumerate(steps):
            t = torch.tensor([step, step])
            for i in range(count):
                pair = [i, i]
                noisy = process.mix(latents[pair], noise[pair], t).to(device)
                own = {name: value.to(device) for name, value in told(i).items()}
                hidden.clear()
                predicted = family.predict(model, noisy, t.to(device), own)[:, :channels]
                predicted = process.noise(predicted, noisy, t.to(device))
                if not bool(predicted.isfinite().all()):
                    raise NotFinite(f"explain: the prediction at time step {step} is not finite")
                moved.difference[k, i], moved.reference[k, i] = _norms(predicted)
                if i < len(maps):
                    maps[i, k] = (predicted[0] - predicted[1]).abs().mean(0).cpu().numpy()
                for path, output in hidden.items():
                    sums = moved.blocks.setdefault(path, np.zeros((2, len(steps))))
                    if forms[path].beside:
                        tokens = family.image_tokens(model.config, side[0])
                        output = family.of_image(forms[path], output, own, tokens)
                    sums[:, k] += _norms(output)
                after(k, i)
    return moved


def _norms(pair: torch.Tensor) -> tuple[float, float]:
    """‖a − b‖² and ‖b‖² of a batch of a and b."""
    a, b = pair.double()
    return float((a - b).square().sum()), float(b.square().sum())


@contextmanager
def watched(model: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Keep the output of every block of a forward pass: path -> output, in the order of computing.

    Blocks are transformer and ResNet blocks. A method's own hooks run first, because it was
    attached before: what is kept has what an adapter adds.
    """
    hidden: dict[str, torch.Tensor] = {}

    def keep(path: str, at: int | None) -> Callable:
        def hook(module, args, output) -> None:
            hidden[path] = output if at is None else output[at]

        return hook

    family = family_of(model)
    with ExitStack() as handles:
        for path, block in blocks_of(model).items():
            at = family.block_of(block).stream.at
            handles.callback(block.register_forward_hook(keep(path, at)).remove)
        yield hidden


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> block, for every transformer and ResNet block of a denoiser."""
    family = family_of(model)
    return {path: m for path, m in model.named_modules() if family.block_of(m) is not None}
