"""Images of held-out captions, with noise that all points share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from fitspace import bases
from fitspace.bases.family import Conditions, picked
from fitspace.bases.process import Process
from fitspace.core import devices
from fitspace.core.errors import UserError
from fitspace.core.memory import fewer_at_once


class NotFinite(UserError):
    """A model's images have NaN or infinite values."""


# Only how many images are computed at once; the images do not depend on it.
BATCH = 32


def guided(
    model: torch.nn.Module,
    told: Conditions,
    unconditional: Conditions,
    guidance: float,
    given_guidance: float = 1.0,
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A denoiser with classifier-free guidance: noisy latents (n, c, h, w) and their one time step
    -> what it predicts of them, without learned variances.

    With the scales s and g of guidance and of the given image's guidance, a prediction is
    ``e(0, 0) + g (e(0, given) - e(0, 0)) + s (e(text, given) - e(0, given))`` (2211.09800, eq. 3).
    A denoiser that is told the scale s is asked once; with s = 0 only ``unconditional`` is told.
    Some families rescale the guided prediction. ``told`` and ``unconditional`` are as
    :func:`generate` has them, on the denoiser's device.
    """
    family = bases.family_of(model)
    distilled = family.distilled(model.config)
    if distilled:
        first = next(iter(told.values()))
        told = told | {"guidance": torch.full((len(first),), float(guidance), device=first.device)}
    every = [told]
    if given_guidance > 1 or (guidance != 1 and not distilled):
        none = {
            n: unconditional[n].expand_as(v) if n in unconditional else v for n, v in told.items()
        }
        every = [none, told] if guidance else [none]
        if given_guidance > 1:
            every.insert(0, none | {"given": torch.zeros_like(none["given"])})
    # From what is told least to what is told most.
    scales = [given_guidance, guidance] if given_guidance > 1 else [guidance]
    parts, told = len(every), {n: torch.cat([part[n] for part in every]) for n in told}

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        channels = x.shape[1]
        x = torch.cat([x] * parts)
        found = family.predict(model, x, t.expand(len(x)), told)[:, :channels].chunk(parts)
        predicted = found[0]
        for scale, without, given in zip(scales, found, found[1:], strict=False):
            predicted = predicted + scale * (given - without)
        return predicted if parts == 1 else family.rescaled(predicted, found[-1])

    return predict


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
    given_guidance: float = 1.0,
    start: torch.Tensor | None = None,
    noised: float = 1.0,
) -> np.ndarray:
    """Sample by the process's solver with classifier-free guidance, see :func:`guided`; uint8
    (n, h, w, 3).

    Parameters
    ----------
    model : the denoiser; the solver ignores learned variances.
    conditions : name -> tensor, first axis n.
    unconditional : the same for the empty caption or for no class, first axis 1; what it lacks,
        such as a given image, is the same without a caption.
    noise : starting noise, shape (n, c, h, w).
    start, noised : latents of the autoencoder, shaped as ``noise``: sampling starts from these
        instead of from noise alone, noised as they are when this share of the steps is left
        (2108.01073).

    Raises
    ------
    NotFinite : some values of the images are not finite.
    UserError : device memory too small for one image.
    """
    scaling, shift = bases.scaling_of(vae)

    def draw(rows: slice) -> torch.Tensor:
        solver = process.solver(steps, device)
        # A flow starts from the noise itself, and its solver names no scale.
        x = noise[rows].to(device) * getattr(solver, "init_noise_sigma", 1.0)
        times = solver.timesteps
        if start is not None:
            first = skipped(steps, noised)
            solver.set_begin_index(first)
            times = times[first:]
            begun = (start[rows].to(device) - shift) * scaling
            x = solver.add_noise(begun, noise[rows].to(device), times[:1])
        told = {name: v.to(device) for name, v in picked(conditions, rows).items()}
        predict = guided(model, told, none, guidance, given_guidance)
        for t in times:
            x = solver.step(predict(x, t), t, x).prev_sample
            progress.update(len(x))
        # Large images a few at a time: decoding takes more memory than denoising.
        side = bases.pixels(vae.config) * noise.shape[-1]
        parts = (x / scaling + shift).split(devices.images_at_once(BATCH, side))
        return torch.cat([bases.decoded(vae, part) for part in parts])

    device = next(model.parameters()).device
    none = {name: v.to(device) for name, v in unconditional.items()}
    images: list[torch.Tensor] = []
    done, at_once = 0, BATCH
    taken = steps if start is None else steps - skipped(steps, noised)
    progress = tqdm(total=len(noise) * taken, desc=description, disable=None)
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


def skipped(steps: int, noised: float) -> int:
    """How many of the solver's first steps sampling leaves out that starts from an image."""
    return max(steps - int(steps * noised), 0)


@torch.no_grad()
def decoded(vae: torch.nn.Module, latents: torch.Tensor) -> np.ndarray:
    """Images of latents (n, c, h, w) that are not multiplied by the autoencoder's scaling factor:
    uint8 (n, h, w, 3)."""
    device = next(vae.parameters()).device
    side = bases.pixels(vae.config) * latents.shape[-1]
    parts = latents.split(devices.images_at_once(BATCH, side))
    return torch.cat([_pixels(bases.decoded(vae, p.to(device))) for p in parts]).numpy()


def _pixels(images: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1], shape (n, 3, h, w): uint8, shape (n, h, w, 3)."""
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.cpu().permute(0, 2, 3, 1)


_COLUMNS, _SCALE, _GAP = 12, 2, 2  # of a sheet; the gap before the images are enlarged [px]


def sheet(images: np.ndarray, path: Path) -> None:
    """Draw uint8 images (n, h, w, 3) as a contact sheet, PNG: each image whole, twice as large."""
    from PIL import Image

    from fitspace.core.files import replacing

    n, h, w, _ = images.shape
    rows = -(-n // _COLUMNS)
    page = np.full((rows * (h + _GAP) + _GAP, _COLUMNS * (w + _GAP) + _GAP, 3), 255, np.uint8)
    for i, image in enumerate(images):
        page[_place(i, h, w)] = image
    picture = Image.fromarray(page)
    picture = picture.resize((picture.width * _SCALE, picture.height * _SCALE), Image.NEAREST)
    with replacing(path) as temporary:
        picture.save(temporary, "PNG")


def of_sheet(path: Path, n: int) -> np.ndarray:
    """The ``n`` images of a sheet, as `sheet` got them: uint8 (n, h, w, 3).

    Raises
    ------
    UserError : no PNG, a very large one, or none that shows ``n`` images.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            width, height = (size // _SCALE - _GAP for size in picture.size)
            rows = max(1, -(-n // _COLUMNS))
            h, w = height // rows - _GAP, width // _COLUMNS - _GAP
            if min(n, h, w) < 1 or picture.mode != "RGB":
                raise ValueError(f"{picture.size} pixels, {picture.mode}, for {n} images")
            page = np.asarray(picture)[::_SCALE, ::_SCALE]
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a sheet of images ({error})") from None
    images = np.zeros((n, h, w, 3), np.uint8)
    for i in range(n):
        images[i] = page[_place(i, h, w)]
    return images


def _place(i: int, h: int, w: int) -> tuple[slice, slice]:
    """Where a sheet shows an image, before it is enlarged."""
    y, x = (i // _COLUMNS) * (h + _GAP) + _GAP, (i % _COLUMNS) * (w + _GAP) + _GAP
    return slice(y, y + h), slice(x, x + w)
