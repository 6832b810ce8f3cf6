"""The embedded autoencoder: 32×32 pixels to 8×8 latents of 8 channels.

It is trained on the training emoji of every style. Like Stable Diffusion's, it is a codec that
source and target domains share; only the diffusion model is confined to the source style.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import trange

from fitspace.bases import to_model
from fitspace.core import rng

CONFIG = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=["DownEncoderBlock2D"] * 3,
    up_block_types=["UpDecoderBlock2D"] * 3,
    block_out_channels=(32, 64, 64),
    layers_per_block=1,
    latent_channels=8,
    norm_num_groups=8,
    mid_block_add_attention=False,
    sample_size=32,
)


def train(
    images: np.ndarray, steps: int, batch_size: int, lr: float, kl_weight: float, seed: int
) -> tuple[torch.nn.Module, list[float]]:
    """Train from scratch on uint8 images (n, 32, 32, 3); returns the model and its losses.

    The loss is the mean absolute error of the reconstruction plus ``kl_weight`` times the
    latent's divergence from a unit normal [nats per image]. The forward pass runs in bfloat16.
    """
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    model = AutoencoderKL(**CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.05)
    losses = []
    progress = trange(steps, desc="autoencoder", disable=None)
    for step in progress:
        batch = to_model(images[rng.order(seed, step, batch_size, len(images))])
        noise = rng.generator(seed, "autoencoder", step).standard_normal(
            (len(batch), CONFIG["latent_channels"], 8, 8), dtype=np.float32
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            posterior = model.encode(batch).latent_dist
            latents = posterior.mean + posterior.std * torch.from_numpy(noise)
            decoded = model.decode(latents).sample
        loss = F.l1_loss(decoded.float(), batch) + kl_weight * posterior.kl().float().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        progress.set_postfix(loss=f"{np.mean(losses[-100:]):.4f}", refresh=False)
    return model.eval(), losses
