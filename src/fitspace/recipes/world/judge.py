"""The judge of the embedded world: an open_clip model that knows every drawing in every style.

It is an instrument, so it has seen everything. It shares neither weights nor vocabulary with the
sentence encoder that conditions the embedded generators. Its image tower is EfficientNet-lite0,
tuned from ImageNet weights but for its first stages. It learns to tell which caption a drawing
has; each caption has a vector of its own. In parallel the text tower learns to output these
vectors, and goes on with it in `texts`.
"""

from __future__ import annotations

import copy
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fitspace.core import files, rng
from fitspace.core.imports import import_torchvision
from fitspace.data import openmoji
from fitspace.recipes.world import loop
from fitspace.recipes.world.drawings import SIZE, SOURCE, Drawings

VOCABULARY = 2560
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
PAD, UNKNOWN, START, END = range(4)
# The side to which the judge enlarges drawings [px]: the network halves its input five times, and
# hair and hands are a few pixels of a drawing.
SEEN = 96
# The sides at which it is trained [px], with the share of the steps after which each is left: the
# cost of a step grows with their square.
SIDES = ((0.3, 48), (0.8, SIZE), (1.0, SEEN))
FIXED = 2  # stages of the image tower that keep ImageNet's edges and colours, and half of its cost
MODEL = {
    "embed_dim": 256,
    "vision_cfg": {
        "image_size": SEEN,
        "timm_model_name": "tf_efficientnet_lite0",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
    },
    "text_cfg": {
        "context_length": 20,
        "vocab_size": VOCABULARY,
        "hf_tokenizer_name": "emoji-clip",
        "tokenizer_kwargs": {"clean": "lower"},
        "width": 128,
        "heads": 4,
        "layers": 2,
        "pool_type": "eos",
        "pad_id": PAD,
        "eos_id": END,
    },
}
MAX_SCALE = 100.0  # of the logits, as in CLIP (2103.00020, section 2.5)
SETTLING = 24  # batches that settle the batch norms of averaged weights
BATCH = 128  # images embedded at once; no result depends on it
NOISE = 0.1  # standard deviation of the noise that robustness is measured with, pixels in [0, 1]
SHIFT = 3  # and how far drawings are moved for it [px]


@dataclass(frozen=True)
class Design:
    """What a model of this kind is, and how it learns to see.

    Attributes
    ----------
    name : of its folder.
    model : its configuration for open_clip.
    sides : at which it is trained [px], each with the share of the steps after which it is left.
    fixed : stages of the image tower that keep ImageNet's weights; None: it starts from nothing.
    """

    name: str
    model: dict[str, Any]
    sides: tuple[tuple[float, int], ...]
    fixed: int | None

    @property
    def seen(self) -> int:
        """The side to which it resizes images [px]."""
        return self.model["vision_cfg"]["image_size"]

    @property
    def preprocess(self) -> dict[str, Any]:
        """How it prepares images, as open_clip has it."""
        half = [0.5] * 3
        return {"size": self.seen, "mean": half, "std": half, "interpolation": "bicubic"}


JUDGE = Design("emoji-clip", MODEL, SIDES, FIXED)


@dataclass(frozen=True)
class Settings(loop.Schedule):
    """How the judge is trained; ``texts``: captions a step that the text tower learns."""

    steps: int = 3200
    batch_size: int = 96
    lr: float = 1e-3
    warmup_steps: int = 200
    ema: float = 0.995
    weight_decay: float = 0.02
    texts: int = 96


def styled(caption: str, style: str) -> str:
    """The caption that names the style too."""
    return f"{caption}, {style} style"


class Learner(nn.Module):
    """The judge with its training targets: a vector per caption, and an offset per style."""

    def __init__(self, clip: nn.Module, captions: int, design: Design = JUDGE):
        super().__init__()
        width = design.model["embed_dim"]
        self.clip, self.design = clip, design
        self.captions = nn.Parameter(torch.randn(captions, width) / width**0.5)
        self.styles = nn.Parameter(torch.randn(len(openmoji.STYLES), width) / width**0.5)

    def fixed(self) -> list[nn.Module]:
        """The parts of the image tower that are not trained, and keep their batch norms too."""
        if self.design.fixed is None:
            return []
        trunk = self.clip.visual.trunk
        return [trunk.conv_stem, trunk.bn1, *trunk.blocks[: self.design.fixed]]

    def train(self, mode: bool = True) -> Learner:
        super().train(mode)
        for part in self.fixed():
            part.eval()
        return self

    def named(self, rows: Tensor) -> Tensor:
        """Unit vectors of captions that name each style: (n, styles, width)."""
        return F.normalize(F.normalize(self.captions[rows], dim=1)[:, None] + self.styles, dim=2)


def new_learner(captions: int, seed: int, design: Design = JUDGE) -> Learner:
    """The image tower with ImageNet weights, if the design has them; the rest untrained."""
    import_torchvision()
    import open_clip

    from fitspace.metrics.effnet import load_network

    torch.manual_seed(seed)
    clip = open_clip.CLIP(**design.model)
    if design.fixed is not None:
        clip.visual.trunk.load_state_dict(load_network(classes=0).state_dict())
    clip.visual.to(memory_format=torch.channels_last)
    for module in clip.visual.modules():
        if type(module) is nn.Conv2d and module.groups > 1:  # timm's own kind pads by itself
            module.__class__ = _PaddedFirst
    learner = Learner(clip, captions, design)
    for part in learner.fixed():
        part.requires_grad_(False)
    return learner


class _PaddedFirst(nn.Conv2d):
    """A convolution by channel whose zeros are put around the image before it.

    The same numbers. Where the kernel is wider than the image, oneDNN computes the gradient of its
    weights seven times faster so.
    """

    def forward(self, x: Tensor) -> Tensor:
        (down, right), (height, width) = self.padding, self.stride
        x = F.pad(x, (right, right, down, down))
        return F.conv2d(x, self.weight, self.bias, (height, width), groups=self.groups)


def train(
    drawings: Drawings,
    folder: Path,
    settings: Settings = Settings(),
    design: Design = JUDGE,
) -> loop.Trained:
    """Train on all drawings in all styles, or go on with it. The model is a settled `Learner`."""
    learner = new_learner(len(drawings), settings.seed, design).train()
    read = tokens(drawings)

    def loss_at(step: int) -> Tensor:
        rows, styles, images = batch(drawings, settings, step, design)
        seen = learner.clip.encode_image(images, normalize=True)
        texts = text_rows(len(drawings), settings.texts, settings.seed, step)
        return seen_loss(learner, seen, rows, styles) + text_loss(learner, read, *texts)

    def sheet(averaged: nn.Module, path: Path) -> None:
        draw_mistakes(settled(averaged, drawings, settings), drawings, path)

    made_of = {"drawings": drawings.key, "model": design.model, "sides": design.sides}
    made_of |= {"fixed": design.fixed}
    trained = loop.train(
        learner, loss_at, settings, made_of, folder, sheet, design.name,
        cost=lambda step: side_at(step, settings, design) ** 2,
    )  # fmt: skip
    model = settled(trained.model, drawings, settings)
    return loop.Trained(model, trained.losses, trained.hours)


# --- one step -----------------------------------------------------------------------------


def batch(
    drawings: Drawings, settings: Settings, step: int, design: Design = JUDGE
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (n,), styles (n,) and changed images (n, 3, h, w) of one step."""
    size = settings.batch_size
    rows = rng.order(settings.seed, step, size, len(drawings))
    draw = rng.generator(settings.seed, "judge.batch", step)
    styles = np.array([draw.choice(np.flatnonzero(drawings.drawn[row])) for row in rows])
    images = augment(drawings.images[rows, styles], draw, side_at(step, settings, design))
    # The layout in which a CPU computes this network a fifth faster.
    images = images.contiguous(memory_format=torch.channels_last)
    return torch.from_numpy(rows), torch.from_numpy(styles), images


def side_at(step: int, settings: Settings, design: Design = JUDGE) -> int:
    """The side to which a step's images are resized [px]."""
    sides = (side for end, side in design.sides if step < end * settings.steps)
    return next(sides, design.seen)


def text_rows(count: int, texts: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Which captions a step's texts are, and which style each names; -1 for none."""
    draw = rng.generator(seed, "judge.texts", step)
    rows = draw.permutation(count)[:texts]
    styles = np.where(
        draw.random(len(rows)) < 0.5, draw.integers(len(openmoji.STYLES), size=len(rows)), -1
    )
    return torch.from_numpy(rows), torch.from_numpy(styles)


def augment(images: np.ndarray, draw: np.random.Generator, side: int) -> Tensor:
    """Move, turn, scale, tint, blur or sharpen, roughen and partly cover uint8 (n, h, w, 3).

    Returns float in [-1, 1], (n, 3, side, side). No drawing is mirrored: arrows, flags and letters
    would change their meaning.
    """
    n = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.from_numpy(draw.uniform(low, high, (n, *shape))).float()

    angle, scale = uniform(-0.2, 0.2), uniform(0.85, 1.2)
    cos, sin, shift = scale * angle.cos(), scale * angle.sin(), uniform(-0.15, 0.15, 2)
    theta = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], 1).view(n, 2, 3)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    grid = F.affine_grid(theta, [n, 3, side, side], align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    x = x * uniform(0.85, 1.15, 3, 1, 1) + uniform(-0.1, 0.1, 3, 1, 1)
    kernel = torch.tensor([1.0, 2.0, 1.0]) / 4
    kernel = (kernel[:, None] * kernel).expand(3, 1, 3, 3)
    blurred = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    x = x + uniform(-0.5, 1.0, 1, 1, 1) * (blurred - x)
    strength = uniform(-0.2, 0.3, 1, 1, 1).clamp(min=0)
    x = x + strength * torch.from_numpy(draw.standard_normal(x.shape, dtype=np.float32))
    # A grey or coloured square hides up to a sixth of every second drawing.
    corner, edge = uniform(0, side, 2, 1, 1), side * uniform(0.1, 0.4, 1, 1)
    edge = torch.where(uniform(0, 1, 1, 1) < 0.5, edge, 0.0)
    place = torch.arange(side).float()
    inside = [(place >= c) & (place < c + edge[:, 0]) for c in corner[..., 0].unbind(1)]
    covered = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return torch.where(covered, uniform(-1, 1, 3, 1, 1), x).clamp(-1, 1)


def seen_loss(learner: Learner, seen: Tensor, rows: Tensor, styles: Tensor) -> Tensor:
    """Cross-entropy of the right caption among all, and of its right style among the styles.

    ``seen``: unit vectors of images of the drawings ``rows``, (n, width).
    """
    scale = _scale(learner)
    by_caption = scale * seen @ F.normalize(learner.captions, dim=1).T
    by_style = scale * (learner.named(rows) @ seen[:, :, None]).squeeze(2)
    return F.cross_entropy(by_caption, rows) + F.cross_entropy(by_style, styles)


def text_loss(learner: Learner, read: Tensor, rows: Tensor, styles: Tensor) -> Tensor:
    """Cross-entropy of each text's own vector among those of all captions, which are fixed.

    A text that names a style is told from all captions that name the same style. ``read``: the
    `tokens` of all drawings.
    """
    with torch.no_grad():
        plain = F.normalize(learner.captions, dim=1)
        others = [plain, *(F.normalize(plain + style, dim=1) for style in learner.styles)]
    said = learner.clip.encode_text(read[rows, styles + 1], normalize=True)
    scale = _scale(learner).detach()
    losses = []
    for style, all_of_style in enumerate(others, start=-1):
        if (ours := styles == style).any():
            similarity = said[ours] @ all_of_style.T
            own = similarity[torch.arange(len(similarity)), rows[ours]]
            apart = F.cross_entropy(scale * similarity, rows[ours], reduction="none")
            losses.append(apart + 4 * (1 - own))
    return torch.cat(losses).mean()


def _scale(learner: Learner) -> Tensor:
    return learner.clip.logit_scale.exp().clamp(max=MAX_SCALE)


@torch.no_grad()
def settled(learner: nn.Module, drawings: Drawings, settings: Settings) -> nn.Module:
    """The learner with batch-norm statistics that are measured again with its final weights.

    Training uses each batch's own statistics, so these are no part of its state.
    """
    learner = copy.deepcopy(learner)
    learner.train()
    norms = [m for m in learner.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
    for number in range(SETTLING):  # enlarged, as after the last step
        numbered = batch(drawings, settings, settings.steps + number, learner.design)
        learner.clip.encode_image(numbered[2])
    for norm in norms:
        norm.momentum = 0.1
    return learner.eval()


# --- texts --------------------------------------------------------------------------------


def build_tokenizer(captions: Sequence[str]):
    """A ``tokenizers.Tokenizer`` of the captions' commonest words and all single characters.

    WordPiece, lower case, at most ``VOCABULARY`` entries; other words fall back to the longest
    known beginning and characters. The library's own trainer breaks ties by an unseeded hash
    and gives another vocabulary in every process, so the words are counted here.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    counts = Counter(
        word
        for caption in captions
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(caption))
    )
    characters = string.ascii_lowercase + string.digits + string.punctuation
    entries = [*SPECIAL, *characters, *(f"##{c}" for c in characters)]
    words = sorted(counts, key=lambda word: (-counts[word], word))
    entries = list(dict.fromkeys([*entries, *words]))[:VOCABULARY]
    vocabulary = {entry: i for i, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", START), ("[SEP]", END)]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def vocabulary(drawings: Drawings):
    styles = [styled("", style) for style in openmoji.STYLES]
    return build_tokenizer([*map(str, drawings.captions), *styles * 100])


def tokens(drawings: Drawings) -> Tensor:
    """Every caption alone, then naming each style: int64 (captions, 1 + styles, context)."""
    tokenizer, length = vocabulary(drawings), MODEL["text_cfg"]["context_length"]
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=PAD)
    texts = [t for c in drawings.captions for t in (c, *(styled(c, s) for s in openmoji.STYLES))]
    ids = [e.ids for e in tokenizer.encode_batch([str(t) for t in texts])]
    return torch.tensor(ids).view(len(drawings), 1 + len(openmoji.STYLES), length)


# --- written ------------------------------------------------------------------------------


def save(
    clip: nn.Module,
    drawings: Drawings,
    record: dict[str, Any],
    out: Path,
    design: Design = JUDGE,
) -> None:
    """Write a judge in open_clip's format, and its training."""
    config = {"model_cfg": design.model, "preprocess_cfg": design.preprocess}
    write(clip, config, vocabulary(drawings), out)
    files.write_json(out / "training.json", record)


def write(clip: nn.Module, config: dict[str, Any], tokenizer: Any, out: Path) -> None:
    """Write a model in open_clip's format, with weights in half precision.

    ``config``: its model and how it prepares images; ``tokenizer``: of :func:`build_tokenizer`.
    """
    from safetensors.torch import save

    names = ("pad_token", "unk_token", "cls_token", "sep_token")
    facts = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config["model_cfg"]["text_cfg"]["context_length"],
        **dict(zip(names, SPECIAL, strict=True)),
    }
    buffers = {name for name, _ in clip.named_buffers()}
    weights = {
        name: (value if name in buffers else value.half()).contiguous()
        for name, value in sorted(clip.state_dict().items())
    }
    files.write_json(out / "open_clip_config.json", config)
    files.write_text(out / "tokenizer.json", tokenizer.to_str(pretty=False) + "\n")
    files.write_json(out / "tokenizer_config.json", facts)
    files.write_bytes(out / "open_clip_model.safetensors", save(weights))


# --- measured -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Texts:
    """Unit vectors of all captions, (n, d), and of them naming each style, (n, styles, d)."""

    plain: Tensor
    named: Tensor


def all_texts(judge: Any, drawings: Drawings) -> Texts:
    """The texts of all drawings, by a loaded :class:`fitspace.metrics.clip.Judge`."""
    from fitspace.metrics import clip

    captions = [str(c) for c in drawings.captions]
    named = [styled(c, s) for c in captions for s in openmoji.STYLES]
    return Texts(
        clip.text_embeddings(judge, captions),
        clip.text_embeddings(judge, named).view(len(captions), len(openmoji.STYLES), -1),
    )


def retrieval(seen: Tensor, rows: np.ndarray, style: int, texts: Texts, drawings: Drawings):
    """How often images (unit vectors, (m, d)) of the drawings ``rows`` find their captions.

    Shares of images, among all captions: ``caption``: the own caption comes first; ``figure``: a
    caption of the figure in any skin tone comes first; ``caption5``: the own caption is among the
    first five; ``style``: of the captions that name a style, the right one is nearest. Captions
    whose drawings look the same in this style count as one caption and one figure (see
    `Drawings.alike`). Captions of equal similarity share the first place.
    """
    similarity = seen @ texts.plain.T
    best = similarity.argmax(1).numpy()
    alike = torch.from_numpy(drawings.alike(style)[rows])
    own = similarity.masked_fill(~alike, -torch.inf).amax(1, keepdim=True)
    before = ((similarity > own + 1e-6) & ~alike).sum(1)
    equal = 1 + (((similarity - own).abs() <= 1e-6) & ~alike).sum(1)
    found = (texts.named[torch.from_numpy(rows)] @ seen[:, :, None]).squeeze(2).argmax(1)
    return {
        "figure": float(right(best, rows, style, drawings).mean()),
        "caption": ((1 - before) / equal).clamp(0, 1).mean().item(),
        "caption5": ((5 - before) / equal).clamp(0, 1).mean().item(),
        "style": (found == style).double().mean().item(),
        "n": len(rows),
    }


def right(best: np.ndarray, rows: np.ndarray, styles: Any, drawings: Drawings) -> np.ndarray:
    """Whether the drawings ``best`` show the figures of ``rows``, as far as one can see: bool."""
    figures = drawings.figures
    return (figures[best] == figures[rows]) | drawings.look_alike(best, rows, styles)


@torch.inference_mode()
def embed(visual: nn.Module, images: np.ndarray, design: Design = JUDGE) -> Tensor:
    """Unit vectors of uint8 images (n, h, w, 3), prepared as a design has it: float32 (n, d)."""
    from fitspace.metrics import clip

    parts, way = torch.from_numpy(images).split(BATCH), design.preprocess
    return torch.cat([F.normalize(visual(clip.prepared(p, way)), dim=1) for p in parts])


def measure(
    folder: Path,
    drawings: Drawings,
    changes: dict[str, Any] | None = None,
    design: Design = JUDGE,
) -> dict[str, Any]:
    """`retrieval` of all drawings, by style and by what was done to them, by the saved judge.

    ``changes``: name -> function from uint8 images (n, h, w, 3) to such images; "clean", "noised"
    and "shifted" are always included.
    """
    from fitspace.metrics import clip

    judge = clip.load(folder)
    texts = all_texts(judge, drawings)
    report: dict[str, Any] = {}
    for change, make in (CHANGES | (changes or {})).items():
        report[change] = {}
        for style, name in enumerate(openmoji.STYLES):
            rows = np.flatnonzero(drawings.drawn[:, style])
            seen = embed(judge.model.visual, make(drawings.images[rows, style]), design)
            report[change][name] = retrieval(seen, rows, style, texts, drawings)
    return report


def _noised(images: np.ndarray) -> np.ndarray:
    noise = rng.generator(0, "judge.noised").standard_normal(images.shape, dtype=np.float32)
    return np.rint(images + 255 * NOISE * noise).clip(0, 255).astype(np.uint8)


def _shifted(images: np.ndarray) -> np.ndarray:
    padded = np.pad(images, ((0, 0), (SHIFT, 0), (SHIFT, 0), (0, 0)), mode="edge")
    return padded[:, : images.shape[1], : images.shape[2]]


CHANGES = {"clean": lambda images: images, "noised": _noised, "shifted": _shifted}


def draw_mistakes(learner: Learner, drawings: Drawings, path: Path) -> None:
    """Draw a sheet of drawings mistaken for another figure, beside that figure; prints accuracy.

    Tests every fifteenth drawing, in the source style and in one other, in turn.
    """
    from fitspace.training.sampling import sheet

    rows = np.arange(0, len(drawings), 15)
    texts = F.normalize(learner.captions.detach(), dim=1)
    pairs, shares = [], []
    for styles in (np.full(len(rows), SOURCE), np.arange(len(rows)) % len(openmoji.STYLES)):
        images = drawings.images[rows, styles]
        best = (embed(learner.clip.visual, images, learner.design) @ texts.T).argmax(1).numpy()
        wrong = ~right(best, rows, styles, drawings)
        shares.append(1 - wrong.mean())
        pairs += [
            picture
            for i in np.flatnonzero(wrong)[:18]
            for picture in (images[i], drawings.images[best[i], styles[i]])
        ]
    said = f"right figures {shares[0]:.3f} (source style), {shares[1]:.3f} (all)"
    print(f"{learner.design.name}: {said}", flush=True)
    if pairs:
        sheet(np.stack(pairs), path)
