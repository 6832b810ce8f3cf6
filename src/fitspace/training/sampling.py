"""Images of held-out captions, with noise that all points share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from fitspace.core import devices
from fitspace.core.errors import UserError
from fitspace.core.memory import fewer_at_once


class NotFinite(UserError):
    """What a model draws is no picture: some of its numbers are NaN or infinite."""


# Only how many images are computed at once; the images do not depend on it.
BATCH = 32


@torch.no_grad()
def generate(
    model: torch.nn.Module,
    vae: torch.nn.Module,
    scheduler_config: dict,
    conditions: torch.Tensor,
    unconditional: torch.Tensor,
    noise: torch.Tensor,
    steps: int,
    guidance: float,
    description: str = "sampling",
) -> np.ndarray:
    """Sample by DPM-Solver++ (2M) with classifier-free guidance; uint8 (n, h, w, 3).

    Parameters
    ----------
    model : the denoiser, called as ``model(x, t, condition).sample``; learned variances, which
        the solver does not use, are left aside.
    conditions : caption embeddings (n, tokens, dim), or class labels (n,).
    unconditional : the condition of the empty caption or of no class, the first axis 1.
    noise : starting noise, shape (n, c, h, w).

    Raises
    ------
    NotFinite : the model draws no finite numbers.
    UserError : the device's memory does not hold one image.
    """
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    def denoise(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return model(x, t.expand(len(x)), condition).sample[:, : noise.shape[1]]

    def draw(rows: slice) -> torch.Tensor:
        # A solver keeps a history: one per batch.
        scheduler = DPMSolverMultistepScheduler.from_config(scheduler_config)
        scheduler.set_timesteps(steps, device=device)
        x = noise[rows].to(device) * scheduler.init_noise_sigma
        condition = conditions[rows].to(device)
        if guidance > 1:
            condition = torch.cat([unconditional.to(device).expand_as(condition), condition])
        for t in scheduler.timesteps:
            if guidance > 1:
                without, given = denoise(torch.cat([x, x]), t, condition).chunk(2)
                predicted = without + guidance * (given - without)
            else:
                predicted = denoise(x, t, condition)
            x = scheduler.step(predicted, t, x).prev_sample
            progress.update(len(x))
        # Large images a few at a time: decoding takes more memory than denoising.
        side = 2 ** (len(vae.config.block_out_channels) - 1) * noise.shape[-1]
        parts = (x / vae.config.scaling_factor).split(devices.images_at_once(BATCH, side))
        return torch.cat([vae.decode(part).sample for part in parts])

    device = next(model.parameters()).device
    images: list[torch.Tensor] = []
    done, at_once = 0, BATCH
    progress = tqdm(total=len(noise) * steps, desc=description, disable=None)
    while done < len(noise):
        try:
            decoded = draw(slice(done, done + at_once))
        except torch.OutOfMemoryError:
            decoded = None
        if decoded is None:  # outside of the handler: a traceback keeps tensors alive
            at_once = fewer_at_once(at_once, f"{description}: images")
            continue
        if not bool(decoded.isfinite().all()):
            raise NotFinite(f"{description}: the samples are not finite")
        images.append(((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu())
        done += len(decoded)
    progress.close()
    return torch.cat(images).permute(0, 2, 3, 1).contiguous().numpy()


def sheet(images: np.ndarray, path: Path, columns: int = 12, scale: int = 2) -> None:
    """Draw uint8 images (n, h, w, 3) as a contact sheet, PNG."""
    from PIL import Image

    from fitspace.core.files import replacing

    n, h, w, _ = images.shape
    rows = -(-n // columns)
    page = np.full((rows * (h + 2) + 2, columns * (w + 2) + 2, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = (i // columns) * (h + 2) + 2, (i % columns) * (w + 2) + 2
        page[y : y + h, x : x + w] = image
    picture = Image.fromarray(page)
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.NEAREST)
    with replacing(path) as temporary:
        picture.save(temporary, "PNG")
