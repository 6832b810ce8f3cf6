"""Stable Diffusion's U-Net, told words by a text encoder."""

from __future__ import annotations

from fitspace.bases.family import Family

UNET = Family(
    name="unet",
    title="U-Net",
    component="unet",
    kind="UNet2DConditionModel",
    needs=("text_encoder", "tokenizer"),
    told="words",
    scales=False,
)
