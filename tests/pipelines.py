"""Tiny pipelines on disk, as diffusers writes them: Stable Diffusions and a DiT."""

from __future__ import annotations

import json

import torch

from fitspace.core.imports import import_torchvision

import_torchvision()
import diffusers  # noqa: E402
import transformers  # noqa: E402

TOKENS = 6
SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.001,
    "beta_end": 0.02,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
WORDS = ["a", "an", "red", "green", "apple", "house", "tree"]


def bert(folder):
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    tokenizer = transformers.BertTokenizer(str(vocabulary), model_max_length=TOKENS)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=12, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=16, use_attention_mask=True,
    )  # fmt: skip
    return tokenizer, transformers.BertModel(config)


def clip(folder):
    letters = sorted(set("".join(WORDS)))
    tokens = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    merges.write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(vocabulary), str(merges), model_max_length=TOKENS)
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=12, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=TOKENS, projection_dim=12,
        bos_token_id=len(tokens) - 2, eos_token_id=len(tokens) - 1,
    )  # fmt: skip
    return tokenizer, transformers.CLIPTextModel(config)


def vae():
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 8), down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2, latent_channels=4, norm_num_groups=4,
        sample_size=16,
    )  # fmt: skip


def stable_diffusion(folder, text):
    torch.manual_seed(0)
    folder.mkdir()
    parts = folder / "parts"
    parts.mkdir()
    tokenizer, encoder = text(parts)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1, cross_attention_dim=12, attention_head_dim=2, norm_num_groups=4,
    )  # fmt: skip
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae(), text_encoder=encoder, tokenizer=tokenizer, unet=unet,
        scheduler=diffusers.DPMSolverMultistepScheduler(**SCHEDULER), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "base")
    return folder / "base"


def dit(folder):
    """A DiT as published: its blocks hold copies of one embedder."""
    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, num_layers=3, sample_size=8,
        num_embeds_ada_norm=3, norm_num_groups=4,
    )  # fmt: skip
    for block in model.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    pipeline = diffusers.DiTPipeline(model, vae(), diffusers.DDIMScheduler(), {0: "cat"})
    pipeline.save_pretrained(folder)
    return folder
