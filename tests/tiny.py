"""A tiny U-Net, task and schedule for tests that train for real.

Run as a program it trains until it is done, or until the system ends it some seconds after its
own first checkpoint: see test_training.py.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

SETTINGS = dict(
    steps=12,
    batch_size=4,
    lr=1e-2,
    lr_schedule="cosine",
    warmup_steps=2,
    weight_decay=0.01,
    grad_clip=1.0,
    ema=0.9,
    caption_dropout=0.3,
    min_snr_gamma=5.0,
    precision="fp32",
)


def unet(seed: int = 0):
    import torch

    from fitspace.core.imports import import_torchvision

    import_torchvision()
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()


def tiny_dit(seed: int = 0, classes: int = 3):
    """A DiT that predicts a variance too: one embedder for all blocks, no weight zero."""
    import torch

    from fitspace.core.imports import import_torchvision

    import_torchvision()
    from diffusers import DiTTransformer2DModel

    from fitspace.bases.dit import share_embedders

    torch.manual_seed(seed)
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=classes,
        norm_num_groups=4,
    ).eval()
    for block in model.transformer_blocks:
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    share_embedders(model)
    return model


def task():
    import torch

    from fitspace.data.prepared import PreparedTask

    g = torch.Generator().manual_seed(1)
    return PreparedTask(
        mean=torch.randn(10, 4, 4, 4, generator=g),
        std=torch.rand(10, 4, 4, 4, generator=g),
        captions=torch.arange(1, 11),
        groups=[[0, 1, 2], [3], [4, 5], [6], [7], [8], [9]],
        conditions={"embeddings": torch.randn(12, 5, 12, generator=g)},
        prompts=[11],
    )


def process(prediction_type: str = "v_prediction"):
    from fitspace.bases.process import Diffusion

    return Diffusion({"beta_schedule": "scaled_linear", "prediction_type": prediction_type})


def fit(checkpoint: Path, method: str = "adapter", seed: int = 0, **changes):
    """Train a method on the tiny task; returns the Fit."""
    from fitspace import methods, training

    options = {k: changes.pop(k) for k in ("checkpoint_seconds", "on_step") if k in changes}
    own = {"input": "CA_out", "output": "FFN_in", "width": 3} if method == "adapter" else {}
    attachment = methods.attach(unet(), method, own, seed)
    kind = changes.pop("prediction_type", "v_prediction")
    return training.fit(
        attachment.model,
        attachment.trainable,
        task(),
        process(kind),
        0.5,
        SETTINGS | changes,
        seed,
        checkpoint,
        **options,
    )


def inception(path: Path):
    """Write random weights of FID's network, and return them."""
    from unittest.mock import patch

    import torch
    from safetensors.torch import save_file
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    torch.manual_seed(0)
    kind = theirs.FeatureExtractorInceptionV3
    with patch.object(theirs, "load_state_dict_from_url"), patch.object(kind, "load_state_dict"):
        weights = kind("random", ["2048"]).state_dict()
    for name, value in weights.items():
        if name.endswith("running_var"):  # or activations would vanish layer by layer
            value.fill_(0.2)
    save_file(weights, path)
    return weights


if __name__ == "__main__":
    from safetensors.torch import save_file

    from fitspace.core.imports import import_only_models

    import_only_models()
    out, checkpoint, steps = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    first = True

    def on_step(step: int) -> None:
        """The first step of this process has written a checkpoint: now its end may come."""
        global first
        if first and len(sys.argv) > 4:
            # Nobody handles the signal: like SIGKILL it ends the process at any moment.
            signal.setitimer(signal.ITIMER_REAL, float(sys.argv[4]))
        first = False

    result = fit(checkpoint, checkpoint_seconds=0.0, steps=steps, on_step=on_step)
    save_file(result.parameters, out)
