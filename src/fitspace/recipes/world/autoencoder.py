"""The autoencoder of all embedded bases: 64×64 pixels to 8×8 latents of 16 channels.

It is trained on all drawings in all styles: like Stable Diffusion's, it is a codec that source
and target share; only the denoisers are confined to the source style.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fitspace.bases import to_model
from fitspace.core import rng
from fitspace.core.files import write_json
from fitspace.data import openmoji
from fitspace.recipes.world import loop, measures
from fitspace.recipes.world.drawings import SOURCE, Drawings
from fitspace.training.sampling import decoded, sheet

CONFIG = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
    block_out_channels=(16, 32, 96, 128),
    layers_per_block=1,
    latent_channels=16,
    norm_num_groups=1,  # groups of two channels would forget how these differ: the colour
    mid_block_add_attention=False,
    sample_size=64,
)
BATCH = 64  # how many images are encoded at once; no result depends on it
# The principal differences of colour of all drawings in all styles: weights of red and of blue,
# both less luma, and standard deviation, pixels in [-1, 1]. Red and green spread a quarter as far
# as orange and blue: unless each counts by its own spread, tomatoes stay brown for thousands of
# steps.
CHROMA = {
    "orange to blue": ((-0.4345, 0.9007), 0.365),
    "green to red": ((0.9007, 0.4345), 0.0905),
}
SOURCE_SHARE = 0.3  # of the images: all bases draw in this style
NARROW = -6.0  # log variance at which the posterior starts
DEAD = 0.5  # a channel whose posterior is wider than this, of a prior of 1, carries nothing


@dataclass(frozen=True)
class Settings(loop.Schedule):
    """How the autoencoder is trained.

    ``kl`` weighs the latent's divergence from a unit normal [nats an image]; ``chroma`` the two
    differences of colour, each in its own standard deviations, in the absolute error; ``square``
    the squared error of red, green and blue.
    """

    steps: int = 20_000
    batch_size: int = 16
    lr: float = 1e-3
    warmup_steps: int = 300
    kl: float = 1e-6
    chroma: float = 0.15
    square: float = 4.0


def new_model(config: dict[str, Any] = CONFIG, seed: int = 0) -> torch.nn.Module:
    """The untrained autoencoder, in the memory format that a CPU's convolutions like best."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    model = AutoencoderKL(**config)
    # The posterior starts narrow: as wide as the prior, its noise hides from the decoder what the
    # encoder says, and a thousand steps go by before both agree on more than dark and light.
    logvar = model.quant_conv.out_channels // 2
    torch.nn.init.zeros_(model.quant_conv.weight[logvar:])
    torch.nn.init.constant_(model.quant_conv.bias[logvar:], NARROW)
    return model.to(memory_format=torch.channels_last)


def train(drawings: Drawings, folder: Path, settings: Settings = Settings(),
          config: dict[str, Any] = CONFIG) -> loop.Trained:  # fmt: skip
    """Train on all drawings in all styles, or go on with it."""
    model, members = new_model(config, settings.seed), drawings.members()
    shape = _latent_shape(config)

    def loss_at(step: int) -> Tensor:
        images = to_model(batch(drawings, members, settings, step))
        noise = rng.generator(settings.seed, "autoencoder", step).standard_normal(
            (len(images), *shape), dtype=np.float32
        )
        posterior = model.encode(images).latent_dist
        decoded = model.decode(posterior.mean + posterior.std * torch.from_numpy(noise)).sample
        error = decoded - images
        return reconstruction_loss(error, settings) + settings.kl * posterior.kl().mean()

    rows = shown(drawings)
    made_of = {"drawings": drawings.key, "config": config}
    return loop.train(
        model, loss_at, settings, made_of, folder,
        lambda averaged, path: draw(averaged, drawings, rows, path), "autoencoder",
    )  # fmt: skip


def batch(
    drawings: Drawings, members: list[np.ndarray], settings: Settings, step: int
) -> np.ndarray:
    """Images of one step, uint8 (n, h, w, 3): figures in turn, each in a random tone and style."""
    size = settings.batch_size
    found = []
    for position, figure in enumerate(rng.order(settings.seed, step, size, len(members))):
        draw = rng.generator(settings.seed, "autoencoder.batch", step, position)
        row = draw.choice(members[figure])
        found.append(drawings.images[row, _style(np.flatnonzero(drawings.drawn[row]), draw)])
    return np.stack(found)


def _style(drawn: np.ndarray, draw: np.random.Generator) -> int:
    """One of the styles in which something is drawn; the source style is among them."""
    others = drawn[drawn != SOURCE]
    return SOURCE if draw.random() < SOURCE_SHARE else int(draw.choice(others))


def reconstruction_loss(error: Tensor, settings: Settings) -> Tensor:
    """Absolute error of luma (Rec. 601) and of the two differences of colour, and squared error.

    ``error``: decoded less true, shape (n, 3, h, w), pixels in [-1, 1].
    """
    red, green, blue = error.unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    differences = [
        (r * (red - luma) + b * (blue - luma)).abs().mean() / spread
        for (r, b), spread in CHROMA.values()
    ]
    chroma = sum(differences) / len(differences)
    return luma.abs().mean() + settings.chroma * chroma + settings.square * error.square().mean()


def _latent_shape(config: dict[str, Any]) -> tuple[int, int, int]:
    side = config["sample_size"] // 2 ** (len(config["block_out_channels"]) - 1)
    return config["latent_channels"], side, side


@torch.no_grad()
def encode(model: torch.nn.Module, images: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the posterior of uint8 images: each (n, c, h, w)."""
    parts = [
        model.encode(to_model(images[i : i + BATCH])).latent_dist
        for i in range(0, len(images), BATCH)
    ]
    return torch.cat([p.mean for p in parts]), torch.cat([p.std for p in parts])


def copies(model: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """Reconstructions of uint8 images (n, h, w, 3): encoded and decoded."""
    return decoded(model, encode(model, images)[0])


def measure(model: torch.nn.Module, drawings: Drawings) -> dict[str, Any]:
    """How well the autoencoder reconstructs drawings.

    ``decibels`` and ``colour_error`` by style, over all drawings; ``variance``: of each latent
    channel's mean over the source style, unscaled; ``posterior_std``: its mean; ``dead``: how
    many channels' posterior is wider than ``DEAD``; ``scaling_factor``: 1 over the standard
    deviation of the source style's latent means.
    """
    report: dict[str, Any] = {"decibels": {}, "colour_error": {}}
    for style, name in enumerate(openmoji.STYLES):
        images = drawings.in_style(style)
        mean, std = encode(model, images)
        found = decoded(model, mean)
        report["decibels"][name] = measures.decibels(images, found)
        report["colour_error"][name] = measures.colour_error(images, found)
        if style == SOURCE:
            report["variance"] = mean.var((0, 2, 3)).tolist()
            report["posterior_std"] = std.mean((0, 2, 3)).tolist()
            report["dead"] = int((std.mean((0, 2, 3)) > DEAD).sum())
            report["scaling_factor"] = round(1 / mean.std().item(), 4)
    return report


def shown(drawings: Drawings) -> list[int]:
    """Rows of the sheet: a tomato and a face for the colours, the rest in a shuffled order."""
    first = [i for i, c in enumerate(drawings.captions) if c in ("tomato", "grinning face")]
    others = rng.generator(0, "sheet").permutation(len(drawings)).tolist()
    return list(dict.fromkeys([*first, *others]))[:24]


def draw(model: torch.nn.Module, drawings: Drawings, rows: list[int], path: Path) -> None:
    """A sheet of drawings in the source style and, in turn, the others, each beside its copy."""
    styles = [SOURCE if i < len(rows) // 2 else i % len(openmoji.STYLES) for i in range(len(rows))]
    images = drawings.images[rows, styles]
    sheet(np.stack([images, copies(model, images)], 1).reshape(-1, *images.shape[1:]), path)


def save(trained: loop.Trained, report: dict[str, Any], settings: Settings, out: Path) -> None:
    """Write the autoencoder in diffusers' format, in half precision, with its training record."""
    model = trained.model.to(memory_format=torch.contiguous_format)
    model.register_to_config(scaling_factor=report["scaling_factor"])
    model.half().save_pretrained(out)
    write_json(out / "training.json", trained.record(settings) | {"measured": report})


def load(folder: Path) -> torch.nn.Module:
    """Load what :func:`save` wrote, as float32, frozen."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    return model.eval().requires_grad_(False)
