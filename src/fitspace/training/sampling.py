"""Images of held-out captions, with noise that all points share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from fitspace.bases import family_of, scaling_of
from fitspace.bases.family import Conditions, picked
from fitspace.bases.process import Process
from fitspace.core import devices
from fitspace.core.errors import UserError
from fitspace.core.memory import fewer_at_once


class NotFinite(UserError):
    """A model's images have NaN or infinite values."""


# Only how many images are computed at once; the images do not depend on it.
BATCH = 32


@torch.no_grad()
def generate(
    model: torch.nn.Module,
    vae: torch.nn.Module,
    process: Process,
    conditions: Conditions,
    unconditional: Conditions,
    noise: torch.Tensor,
    steps: int,
    guidance: float,
    description: str = "sampling",
) -> np.ndarray:
    """Sample by the process's solver with classifier-free guidance; uint8 (n, h, w, 3).

    Parameters
    ----------
    model : the denoiser; the solver ignores learned variances.
    conditions : name -> tensor, first axis n.
    unconditional : the same for the empty caption or for no class, first axis 1.
    noise : starting noise, shape (n, c, h, w).

    Raises
    ------
    NotFinite : some values of the images are not finite.
    UserError : device memory too small for one image.
    """
    predict = family_of(model).predict
    scaling, shift = scaling_of(vae.config)

    def denoise(x: torch.Tensor, t: torch.Tensor, told: Conditions) -> torch.Tensor:
        return predict(model, x, t.expand(len(x)), told)[:, : noise.shape[1]]

    def draw(rows: slice) -> torch.Tensor:
        solver = process.solver(steps, device)
        # A flow starts from the noise itself, and its solver names no scale.
        x = noise[rows].to(device) * getattr(solver, "init_noise_sigma", 1.0)
        told = {name: v.to(device) for name, v in picked(conditions, rows).items()}
        if guidance > 1:
            none = {n: unconditional[n].to(device).expand_as(v) for n, v in told.items()}
            told = {n: torch.cat([none[n], v]) for n, v in told.items()}
        for t in solver.timesteps:
            if guidance > 1:
                without, given = denoise(torch.cat([x, x]), t, told).chunk(2)
                predicted = without + guidance * (given - without)
            else:
                predicted = denoise(x, t, told)
            x = solver.step(predicted, t, x).prev_sample
            progress.update(len(x))
        # Large images a few at a time: decoding takes more memory than denoising.
        side = 2 ** (len(vae.config.block_out_channels) - 1) * noise.shape[-1]
        parts = (x / scaling + shift).split(devices.images_at_once(BATCH, side))
        return torch.cat([vae.decode(part).sample for part in parts])

    device = next(model.parameters()).device
    images: list[torch.Tensor] = []
    done, at_once = 0, BATCH
    progress = tqdm(total=len(noise) * steps, desc=description, disable=None)
    while done < len(noise):
        try:
            found = draw(slice(done, done + at_once))
        except torch.OutOfMemoryError:
            found = None
        if found is None:  # outside of the handler: a traceback keeps tensors alive
            at_once = fewer_at_once(at_once, f"{description}: images")
            continue
        if not bool(found.isfinite().all()):
            raise NotFinite(f"{description}: the samples are not finite")
        images.append(_pixels(found))
        done += len(found)
    progress.close()
    return torch.cat(images).contiguous().numpy()


@torch.no_grad()
def decoded(vae: torch.nn.Module, latents: torch.Tensor) -> np.ndarray:
    """Images of latents (n, c, h, w) that are not multiplied by the autoencoder's scaling factor:
    uint8 (n, h, w, 3)."""
    device = next(vae.parameters()).device
    side = 2 ** (len(vae.config.block_out_channels) - 1) * latents.shape[-1]
    parts = latents.split(devices.images_at_once(BATCH, side))
    return torch.cat([_pixels(vae.decode(p.to(device)).sample) for p in parts]).numpy()


def _pixels(images: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1], shape (n, 3, h, w): uint8, shape (n, h, w, 3)."""
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.cpu().permute(0, 2, 3, 1)


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
