"""Tiny pipelines on disk, as diffusers writes them: one or more of each family."""

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


def clip(folder, kind=transformers.CLIPTextModel):
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
    return tokenizer, kind(config)


def pooling(folder):
    """A CLIP text encoder with a projection, as pooled conditions come from."""
    return clip(folder, transformers.CLIPTextModelWithProjection)


def t5(width):
    letters = sorted(set("".join(WORDS)))
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *letters, *(f"\u2581{word}" for word in WORDS)]
    vocabulary = [(piece, -1.0 if len(piece) > 1 else -2.0) for piece in pieces]
    tokenizer = transformers.T5Tokenizer(vocabulary, extra_ids=0)
    config = transformers.T5Config(
        vocab_size=len(pieces), d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2,
    )  # fmt: skip
    return tokenizer, transformers.T5EncoderModel(config)


def vae(**others):
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 8), down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2, latent_channels=4, norm_num_groups=4,
        sample_size=16, **others,
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


def sd3_denoiser(**changes):
    """Three blocks of two streams: the first has a second attention, the last ends the text's."""
    torch.manual_seed(0)
    settings = dict(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=3,
        attention_head_dim=4, num_attention_heads=2, joint_attention_dim=28,
        caption_projection_dim=8, pooled_projection_dim=24, pos_embed_max_size=8,
        dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    return diffusers.SD3Transformer2DModel(**settings | changes).eval()


def sd3(folder):
    """Stable Diffusion 3.5 with two CLIPs and T5."""
    torch.manual_seed(0)
    folder.mkdir()
    parts = {}
    for suffix in ("", "_2"):
        own = folder / f"parts{suffix}"
        own.mkdir()
        parts[f"tokenizer{suffix}"], parts[f"text_encoder{suffix}"] = pooling(own)
    parts["tokenizer_3"], parts["text_encoder_3"] = t5(28)
    pipeline = diffusers.StableDiffusion3Pipeline(
        transformer=sd3_denoiser(), vae=vae(shift_factor=0.1, scaling_factor=1.5),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), **parts,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "base")
    return folder / "base"


def sdxl_denoiser(**changes):
    torch.manual_seed(0)
    settings = dict(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), layers_per_block=1,
        transformer_layers_per_block=(1, 2), cross_attention_dim=24, attention_head_dim=(2, 4),
        norm_num_groups=4, use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=4, projection_class_embeddings_input_dim=12 + 6 * 4,
    )  # fmt: skip
    return diffusers.UNet2DConditionModel(**settings | changes).eval()


def sdxl(folder):
    """Stable Diffusion XL, which guides away from zeros where there is no prompt."""
    torch.manual_seed(0)
    folder.mkdir()
    parts = {}
    for suffix, text in {"": clip, "_2": pooling}.items():
        own = folder / f"parts{suffix}"
        own.mkdir()
        parts[f"tokenizer{suffix}"], parts[f"text_encoder{suffix}"] = text(own)
    pipeline = diffusers.StableDiffusionXLPipeline(
        unet=sdxl_denoiser(), vae=vae(scaling_factor=0.5),
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
            timestep_spacing="leading", steps_offset=1,
        ),
        **parts,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "base")
    return folder / "base"


def pixart_denoiser(**changes):
    torch.manual_seed(0)
    settings = dict(
        sample_size=8, patch_size=2, in_channels=4, out_channels=8, num_layers=2,
        num_attention_heads=2, attention_head_dim=4, cross_attention_dim=8, caption_channels=12,
        use_additional_conditions=False,
    )  # fmt: skip
    return diffusers.PixArtTransformer2DModel(**settings | changes).eval()


def pixart(folder):
    """PixArt-Σ, with learned variances."""
    torch.manual_seed(0)
    tokenizer, encoder = t5(12)
    pipeline = diffusers.PixArtSigmaPipeline(
        tokenizer=tokenizer, text_encoder=encoder, vae=vae(scaling_factor=0.5),
        transformer=pixart_denoiser(), scheduler=diffusers.DPMSolverMultistepScheduler(),
    )  # fmt: skip
    folder.mkdir()
    pipeline.save_pretrained(folder / "base")
    return folder / "base"


def flux_denoiser(**changes):
    """Two blocks of two streams, then two of one, told the scale of the guidance as FLUX.1-dev."""
    torch.manual_seed(0)
    settings = dict(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=28, pooled_projection_dim=12,
        guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    return diffusers.FluxTransformer2DModel(**settings | changes).eval()


def flux(folder, **changes):
    """FLUX.1-dev, whose steps are shifted by the number of tokens; changes are the denoiser's."""
    torch.manual_seed(0)
    folder.mkdir()
    own = folder / "parts"
    own.mkdir()
    parts = dict(zip(("tokenizer", "text_encoder"), clip(own), strict=True))
    parts |= dict(zip(("tokenizer_2", "text_encoder_2"), t5(28), strict=True))
    pipeline = diffusers.FluxPipeline(
        transformer=flux_denoiser(**changes), vae=vae(shift_factor=0.1, scaling_factor=1.5),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), **parts,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "base")
    return folder / "base"


def gemma(width):
    letters = sorted(set("".join(WORDS)))
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *letters]
    tokenizer = transformers.GemmaTokenizer({piece: i for i, piece in enumerate(pieces)})
    config = transformers.Gemma2Config(
        vocab_size=len(pieces), hidden_size=width, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=4,
    )  # fmt: skip
    return tokenizer, transformers.Gemma2Model(config)


def sana_denoiser(**changes):
    torch.manual_seed(0)
    settings = dict(
        sample_size=16, patch_size=1, in_channels=4, out_channels=4, num_layers=2,
        num_attention_heads=2, attention_head_dim=4, num_cross_attention_heads=2,
        cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=12,
    )  # fmt: skip
    return diffusers.SanaTransformer2DModel(**settings | changes).eval()


def sana(folder):
    """Sana as published: solved by DPM-Solver++; latents without a distribution."""
    torch.manual_seed(0)
    tokenizer, encoder = gemma(12)
    kinds, channels = ("ResBlock", "EfficientViTBlock"), (8, 8)
    vae = diffusers.AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=kinds,
        decoder_block_types=kinds, encoder_block_out_channels=channels,
        decoder_block_out_channels=channels, encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)), encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1), downsample_block_type="conv",
        upsample_block_type="interpolate", scaling_factor=0.5,
    )  # fmt: skip
    pipeline = diffusers.SanaPipeline(
        tokenizer=tokenizer, text_encoder=encoder, vae=vae, transformer=sana_denoiser(),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            flow_shift=3.0, use_flow_sigmas=True, prediction_type="flow_prediction"
        ),
    )  # fmt: skip
    folder.mkdir()
    pipeline.save_pretrained(folder / "base")
    return folder / "base"


CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


def qwen(width):
    letters = ["\u0120", *sorted(set("".join(WORDS)))]
    vocabulary = {token: i for i, token in enumerate(["<|endoftext|>", *letters])}
    tokenizer = transformers.Qwen2Tokenizer(
        vocabulary, [], additional_special_tokens=["<|im_start|>", "<|im_end|>"]
    )
    tokenizer.chat_template = CHAT
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=8, num_hidden_layers=28,
        num_attention_heads=1, num_key_value_heads=1, head_dim=4, tie_word_embeddings=True,
    )  # fmt: skip
    return tokenizer, transformers.Qwen3ForCausalLM(config)


def flux2_denoiser(**changes):
    torch.manual_seed(0)
    settings = dict(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=12, timestep_guidance_channels=8,
        axes_dims_rope=(2, 2, 2, 2), guidance_embeds=False,
    )  # fmt: skip
    return diffusers.Flux2Transformer2DModel(**settings | changes).eval()


def flux2(folder):
    """FLUX.2-klein before its distillation, with batch statistics far from 0 and 1."""
    torch.manual_seed(0)
    tokenizer, encoder = qwen(4)
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(4, 8), down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2, latent_channels=4, norm_num_groups=4,
        layers_per_block=1, sample_size=16,
    )  # fmt: skip
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.2, 2)
    pipeline = diffusers.Flux2KleinPipeline(
        tokenizer=tokenizer, text_encoder=encoder, vae=vae, transformer=flux2_denoiser(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )  # fmt: skip
    folder.mkdir()
    pipeline.save_pretrained(folder / "base")
    return folder / "base"


def lumina2_denoiser(**changes):
    """A block for the image alone, one for the text alone, then two for both."""
    torch.manual_seed(0)
    settings = dict(
        sample_size=8, patch_size=2, in_channels=4, hidden_size=12, num_layers=2,
        num_refiner_layers=1, num_attention_heads=2, num_kv_heads=1, multiple_of=4,
        axes_dim_rope=(2, 2, 2), cap_feat_dim=12,
    )  # fmt: skip
    return diffusers.Lumina2Transformer2DModel(**settings | changes).eval()


def lumina2(folder):
    """Lumina-Image 2.0, whose steps are shifted as published."""
    torch.manual_seed(0)
    tokenizer, encoder = gemma(12)
    pipeline = diffusers.Lumina2Pipeline(
        tokenizer=tokenizer, text_encoder=encoder, transformer=lumina2_denoiser(),
        vae=vae(shift_factor=0.1, scaling_factor=1.5),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0),
    )  # fmt: skip
    folder.mkdir()
    pipeline.save_pretrained(folder / "base")
    return folder / "base"


def qwen_vl(width):
    tokenizer, _ = qwen(4)
    text = {
        "vocab_size": len(tokenizer), "hidden_size": width, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
        "rope_scaling": {"mrope_section": [1, 1, width // 2 - 2], "rope_type": "default"},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2,
        "out_hidden_size": width,
    }  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return tokenizer, transformers.Qwen2_5_VLForConditionalGeneration(config)


def qwenimage_denoiser(**changes):
    torch.manual_seed(0)
    settings = dict(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=12, axes_dims_rope=(4, 2, 2),
    )  # fmt: skip
    return diffusers.QwenImageTransformer2DModel(**settings | changes).eval()


def qwenimage(folder):
    """Qwen-Image, whose steps are shifted by the number of tokens and stretched, as published."""
    torch.manual_seed(0)
    tokenizer, encoder = qwen_vl(12)
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[-0.7, 0.3, 0.1, 1.2], latents_std=[2.8, 0.4, 1.1, 0.7],
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
    )
    pipeline = diffusers.QwenImagePipeline(
        tokenizer=tokenizer, text_encoder=encoder, vae=vae, transformer=qwenimage_denoiser(),
        scheduler=scheduler,
    )  # fmt: skip
    folder.mkdir()
    pipeline.save_pretrained(folder / "base")
    path = folder / "base/vae/config.json"  # its class does not know the key
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": 16}))
    return folder / "base"


def zimage_denoiser(**changes):
    """A block for the image alone, one for the text alone, then two for both."""
    torch.manual_seed(0)
    settings = dict(
        in_channels=4, dim=16, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
        cap_feat_dim=12, axes_dims=[4, 2, 2], axes_lens=[600, 64, 64],
    )  # fmt: skip
    model = diffusers.ZImageTransformer2DModel(**settings | changes).eval()
    with torch.no_grad():  # zeros as they are made
        model.x_pad_token.normal_()
        model.cap_pad_token.normal_()
    return model


def zimage(folder):
    """Z-Image-Turbo, whose steps are shifted as published."""
    torch.manual_seed(0)
    tokenizer, encoder = qwen(12)
    pipeline = diffusers.ZImagePipeline(
        tokenizer=tokenizer, text_encoder=encoder, transformer=zimage_denoiser(),
        vae=vae(shift_factor=0.1, scaling_factor=1.5),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip
    folder.mkdir()
    pipeline.save_pretrained(folder / "base")
    return folder / "base"


BUILT = {
    "sd3": sd3, "sdxl": sdxl, "pixart": pixart, "flux": flux, "sana": sana, "flux2": flux2,
    "lumina2": lumina2, "qwenimage": qwenimage, "zimage": zimage,
}  # fmt: skip
