"""``emoji-mmdit``: a Stable Diffusion 3 pipeline at 64×64 pixels, trained by flow matching.

MiniLM, which conditions `unet` too, stands in the place of T5. It cannot stand in those of the two
CLIPs, of which the pipeline takes one pooled state for each text and the states before the last
layer: they hold CLIP text models of one layer, made here without training, that average a
caption's word vectors. The vectors are principal components of MiniLM's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fitspace import bases
from fitspace.core.files import read_json, write_json
from fitspace.recipes.world import denoiser, loop, unet
from fitspace.recipes.world.drawings import Drawings

WIDTH = 64  # of each CLIP
CONFIG = dict(
    sample_size=8,
    patch_size=2,
    in_channels=16,
    out_channels=16,
    num_layers=6,
    num_attention_heads=9,
    attention_head_dim=16,
    caption_projection_dim=144,  # as wide as all heads
    joint_attention_dim=384,
    pooled_projection_dim=2 * WIDTH,
    pos_embed_max_size=8,  # patches a side: twice those of 64 pixels
    qk_norm="rms_norm",
)
MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# A caption is a caption, whichever base is told it.
source, measure = unet.source, unet.measure


@dataclass(frozen=True)
class Settings(denoiser.Settings):
    """How the MMDiT is trained."""

    steps: int = 12_000
    batch_size: int = 48
    lr: float = 1e-3
    warmup_steps: int = 500
    ema: float = 0.9995


def new_model(config: dict[str, Any] = CONFIG, seed: int = 0) -> nn.Module:
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(seed)
    model = SD3Transformer2DModel(**config).eval()
    embedders = [m for m in model.time_text_embed.modules() if isinstance(m, nn.Linear)]
    norms = [norm for b in model.transformer_blocks for norm in (b.norm1, b.norm1_context)]
    modulations = [norm.linear for norm in (*norms, model.norm_out)]
    denoiser.initialise(model, embedders, [*modulations, model.proj_out])
    return model


# --- the two CLIPs --------------------------------------------------------------------------


def vocabulary(drawings: Drawings) -> dict[str, int]:
    """MiniLM's word pieces of all captions, and letters and digits for other words, with numbers of
    their own."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(unet.minilm())
    used = {piece for caption in drawings.captions for piece in tokenizer.tokenize(str(caption))}
    signs = {chr(i) for i in range(33, 127)}
    singles = {piece for piece in tokenizer.get_vocab() if piece.removeprefix("##") in signs}
    return {piece: i for i, piece in enumerate([*MARKS, *sorted(used | singles)])}


def word_vectors(words: dict[str, int], width: int) -> Tensor:
    """The leading principal components of MiniLM's own vectors of these words: (words, width).

    Their root mean square is 1; a component's largest entry is positive.
    """
    from safetensors import safe_open
    from transformers import AutoTokenizer

    rows = AutoTokenizer.from_pretrained(unet.minilm()).convert_tokens_to_ids(list(words))
    with safe_open(unet.minilm() / "model.safetensors", "pt") as file:
        own = file.get_tensor("embeddings.word_embeddings.weight")[rows].double()
    centred = own - own.mean(0)
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :width]
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    vectors = centred @ (axes * largest.sign())
    return (vectors / vectors.square().mean().sqrt()).float()


@torch.no_grad()
def averaging(vectors: Tensor, words: dict[str, int]) -> nn.Module:
    """A CLIP text model whose pooled state says which words a text has.

    With the vectors v of the text's words, from the beginning to the end, and layer normalisation N
    it is N(v_end + mean of N(v)). Attention looks at all words before the end alike, and what
    follows them, such as padding, makes no difference.
    """
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    width = vectors.shape[1]
    model = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=width,
            intermediate_size=1,
            projection_dim=width,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=unet.TOKENS,
            bos_token_id=words["[CLS]"],
            eos_token_id=words["[SEP]"],
            pad_token_id=words["[PAD]"],
        )
    )
    for module in model.modules():
        if not isinstance(module, nn.LayerNorm):
            for parameter in module.parameters(recurse=False):
                parameter.zero_()
    attention = model.text_model.encoder.layers[0].self_attn
    for layer in (attention.v_proj, attention.out_proj, model.text_projection):
        nn.init.eye_(layer.weight)
    model.get_input_embeddings().weight.copy_(vectors)
    return model.eval()


# --- the pipeline ---------------------------------------------------------------------------


def assemble(pipeline: Path, vae: Path, model: nn.Module, drawings: Drawings) -> None:
    """The whole pipeline folder, with this denoiser."""
    from transformers import BertTokenizer

    words = vocabulary(drawings)
    read = BertTokenizer(vocab=words, model_max_length=unet.TOKENS)
    parts = word_vectors(words, 2 * WIDTH).split(WIDTH, dim=1)
    for place, vectors in zip(("", "_2"), parts, strict=True):
        averaging(vectors, words).save_pretrained(pipeline / f"text_encoder{place}")
        read.save_pretrained(pipeline / f"tokenizer{place}")
    unet.write_text_encoder(pipeline, "_3")
    model.save_pretrained(pipeline / "transformer")
    clip = ["transformers", "CLIPTextModelWithProjection"]
    tokenizer = ["transformers", "BertTokenizer"]
    index = {
        "_class_name": "StableDiffusion3Pipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "text_encoder": clip,
        "text_encoder_2": clip,
        "text_encoder_3": ["transformers", "BertModel"],
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "tokenizer_3": tokenizer,
        "transformer": ["diffusers", "SD3Transformer2DModel"],
    }
    denoiser.assemble(pipeline, vae, index, denoiser.FLOW)
    # This pipeline adds the shift to every latent, and needs a number.
    config = pipeline / "vae" / "config.json"
    write_json(config, read_json(config) | {"shift_factor": 0.0})
    bases.complete(pipeline)


def train(
    drawings: Drawings,
    vae: Path,
    folder: Path,
    settings: Settings = Settings(),
    config: dict[str, Any] = CONFIG,
) -> loop.Trained:
    """Train on all drawings in the source style, or go on; ``folder/pipeline`` is the base."""
    model, pipeline = new_model(config, settings.seed), folder / "pipeline"
    assemble(pipeline, vae, model, drawings)
    trained = denoiser.train(
        model,
        source(pipeline, drawings),
        pipeline,
        folder,
        settings,
        {"drawings": drawings.key, "config": config, "text": unet.TEXT_PACKAGE, "clip": WIDTH},
        denoiser.shown_rows(len(drawings)),
        "mmdit",
    )
    denoiser.save(trained, settings, pipeline / "transformer")
    return trained
