"""The embedded U-Net's sizes, as its configuration has them."""

from __future__ import annotations

from pathlib import Path

from fitspace import bases

BASE = Path(__file__).parents[1] / "models/emoji-unet"
_CONFIG = bases.config(BASE, "unet")
LATENTS = (_CONFIG["in_channels"], _CONFIG["sample_size"], _CONFIG["sample_size"])
SIDE = bases.image_size(BASE)  # px
