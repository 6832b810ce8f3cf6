"""The embedded judge: a small CLIP trained on the training emoji of all eight styles.

It measures the samples of the embedded studies (CLIP-T, CLIP-I). It shares neither weights nor
vocabulary nor training data with the sentence encoder that conditions the embedded generators. It
is an ordinary open_clip folder: ``local-dir:models/emoji-clip-32``.
"""

from __future__ import annotations

import argparse
import string
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import trange

from fitspace.core import files, rng
from fitspace.core.errors import UserError
from fitspace.core.imports import import_torchvision
from fitspace.data import openmoji

SIZE = 32
VOCABULARY = 1792
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
PAD, UNKNOWN, START, END = range(4)
MODEL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": SIZE, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
    "text_cfg": {
        "context_length": 16,
        "vocab_size": VOCABULARY,
        "hf_tokenizer_name": "emoji-clip",
        "tokenizer_kwargs": {"clean": "lower"},
        "width": 64,
        "heads": 4,
        "layers": 3,
        "pool_type": "eos",
        "pad_id": PAD,
        "eos_id": END,
    },
}
PREPROCESS = {"size": SIZE, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
MAX_SCALE = 100.0  # of the logits, as in CLIP (2103.00020, section 2.5)
TOKEN_DROPOUT = 0.15
CHECKPOINT_EVERY = 250  # steps


@dataclass(frozen=True)
class Settings:
    """Training settings of the judge."""

    steps: int = 2500
    batch_size: int = 256
    lr: float = 2e-3
    weight_decay: float = 0.2
    seed: int = 0


@dataclass(frozen=True)
class Pairs:
    """Captioned drawings in every style: parallel arrays, one row per drawing and style."""

    images: np.ndarray  # uint8 (n, h, w, 3)
    captions: np.ndarray  # str (n,), without the style
    styles: np.ndarray  # str (n,)
    groups: np.ndarray  # str (n,)

    def __len__(self) -> int:
        return len(self.images)


def load_pairs(size: int = SIZE) -> dict[str, Pairs]:
    """Draw the emoji in all styles, by split (``train`` and ``test``)."""
    drawn = [(e, style) for style in openmoji.STYLES for e in openmoji.examples(style, size)]
    pairs = {}
    for split in ("train", "test"):
        rows = [(e.image, e.caption, s, e.group) for e, s in drawn if e.split == split]
        pairs[split] = Pairs(*(np.array(column) for column in zip(*rows, strict=True)))
    return pairs


def styled(caption: str, style: str) -> str:
    """The caption that names the style too."""
    return f"{caption}, {style} style"


def build_tokenizer(captions: list[str]):
    """A ``tokenizers.Tokenizer`` of the captions' commonest words and all single characters.

    WordPiece, lower case, at most ``VOCABULARY`` entries; other words are split into the longest
    known beginning and characters. The library's own trainer breaks ties by an unseeded hash and
    gives another vocabulary in every process, so the words are counted here.
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


def save_settings(tokenizer, out: Path) -> None:
    """Write the model's configuration and tokenizer in open_clip's format."""
    config = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}
    names = ("pad_token", "unk_token", "cls_token", "sep_token")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MODEL["text_cfg"]["context_length"],
        **dict(zip(names, SPECIAL, strict=True)),
    }
    files.write_json(out / "open_clip_config.json", config)
    files.write_text(out / "tokenizer.json", tokenizer.to_str(pretty=False) + "\n")
    files.write_json(out / "tokenizer_config.json", settings)


def batch_of(pairs: Pairs, members: list[np.ndarray], seed: int, step: int, batch_size: int):
    """Rows of one batch (two of each of ``batch_size / 2`` groups) and which captions name
    the style: two arrays of shape (batch_size,)."""
    draw = rng.generator(seed, "judge.batch", step)
    groups = rng.order(seed, step, batch_size // 2, len(members)).repeat(2)
    rows = np.array([draw.choice(members[g]) for g in groups])
    return rows, draw.random(len(rows)) < 0.5


def augment(images: np.ndarray, draw: np.random.Generator) -> torch.Tensor:
    """Shift, scale and turn uint8 images (n, h, w, 3) a little: float in [-1, 1], (n, 3, h, w).

    The interpolation also softens edges, as an autoencoder does. Drawings are never mirrored,
    because arrows, flags and letters would change their meaning.
    """
    n = len(images)
    angle = torch.from_numpy(np.deg2rad(draw.uniform(-10, 10, n))).float()
    scale = torch.from_numpy(draw.uniform(0.9, 1.2, n)).float()
    shift = torch.from_numpy(draw.uniform(-0.15, 0.15, (n, 2))).float()
    cos, sin = scale * angle.cos(), scale * angle.sin()
    theta = torch.stack(
        [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1
    )
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    grid = F.affine_grid(theta, list(batch.shape), align_corners=False)
    return F.grid_sample(batch, grid, padding_mode="border", align_corners=False)


def matches(captions: np.ndarray, styles: np.ndarray, names_style: np.ndarray) -> torch.Tensor:
    """Which texts describe which images: bool (images, texts).

    A caption without a style describes the emoji in every style, a caption with a style only in
    that style. Every match counts as a positive, so that an emoji never repels itself.
    """
    same = captions[:, None] == captions[None]
    return torch.from_numpy(same & (~names_style[None] | (styles[:, None] == styles[None])))


def contrastive_loss(logits: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """Symmetric cross-entropy with all matches as equal targets (UniCL, 2204.03610, eq. 1-3)."""
    target = positive.float()
    by_image = -(target / target.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1)
    by_text = -(target / target.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0)
    return (by_image.mean() + by_text.mean()) / 2


def train_model(pairs: Pairs, tokenizer, settings: Settings, checkpoint: Path):
    """Train from scratch; returns the model, its loss at every step, and the CPU seconds.

    Resumes exactly from ``checkpoint`` if the file exists (on the same machine and number of
    threads). Raises UserError if that file was made with other settings.
    """
    import_torchvision()
    import open_clip

    torch.manual_seed(settings.seed)
    model = open_clip.CLIP(**MODEL)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": others, "weight_decay": 0.0}],
        lr=settings.lr,
        betas=(0.9, 0.98),
        weight_decay=settings.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.lr, settings.steps, pct_start=0.1
    )
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    losses, seconds = _resume(parts, settings, checkpoint)
    members = [np.flatnonzero(pairs.groups == g) for g in np.unique(pairs.groups)]
    progress = trange(len(losses), settings.steps, desc="judge", disable=None)
    started = time.process_time() - seconds
    for step in progress:
        loss = step_loss(model, tokenizer, pairs, members, settings, step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        progress.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}", refresh=False)
        seconds = time.process_time() - started
        if (step + 1) % CHECKPOINT_EVERY == 0:
            state = {name: part.state_dict() for name, part in parts.items()}
            state |= {"settings": asdict(settings), "losses": losses, "seconds": seconds}
            with files.replacing(checkpoint) as temporary:
                torch.save(state, temporary)
    return model.eval(), losses, seconds


def _resume(parts: dict, settings: Settings, checkpoint: Path) -> tuple[list[float], float]:
    if not checkpoint.exists():
        return [], 0.0
    state = torch.load(checkpoint, weights_only=True)
    if state["settings"] != asdict(settings):
        raise UserError(
            f"{checkpoint}: made with {state['settings']}, not with {asdict(settings)}; "
            "remove it or use those settings"
        )
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["losses"], state["seconds"]


def step_loss(model, tokenizer, pairs: Pairs, members, settings: Settings, step: int):
    rows, names_style = batch_of(pairs, members, settings.seed, step, settings.batch_size)
    draw = rng.generator(settings.seed, "judge.augment", step)
    captions, styles = pairs.captions[rows], pairs.styles[rows]
    drawings = augment(pairs.images[rows], draw)
    texts = zip(captions, styles, names_style, strict=True)
    tokens = tokenizer([styled(c, s) if named else str(c) for c, s, named in texts])
    dropped = torch.from_numpy(draw.random(tokens.shape) < TOKEN_DROPOUT) & (tokens > END)
    similarity = (
        model.encode_image(drawings, normalize=True)
        @ model.encode_text(tokens.masked_fill(dropped, UNKNOWN), normalize=True).T
    )
    scale = model.logit_scale.exp().clamp(max=MAX_SCALE)
    return contrastive_loss(scale * similarity, matches(captions, styles, names_style))


def save_weights(model, out: Path) -> None:
    """Write the weights in float16, in the order of their names."""
    from safetensors.torch import save

    weights = {
        k: v.half().contiguous() if v.is_floating_point() else v
        for k, v in sorted(model.state_dict().items())
    }
    files.write_bytes(out / "open_clip_model.safetensors", save(weights))


def recall_at(similarity: torch.Tensor, k: int) -> float:
    """Share of rows whose own column (the diagonal) is among the k most similar.

    Equal similarities are in random order, so a tie counts by its probability. Ties occur because
    drawings of one emoji in several skin tones are the same in styles without colour.
    """
    own = similarity.diagonal()[:, None]
    better = (similarity > own + 1e-6).sum(1)
    equal = ((similarity - own).abs() <= 1e-6).sum(1)
    return ((k - better) / equal).clamp(0, 1).double().mean().item()


def retrieval(folder: Path, held_out: Pairs, styles=openmoji.STYLES) -> dict[str, dict]:
    """Retrieval among the held-out emoji of each style, by the saved judge.

    Returns by style: recall at 1 and 5 from image to caption and from caption to image, the number
    of candidates ``n``, and ``style``: how often, among the captions that name a style, the one
    with the right style is the most similar to the image.
    """
    from fitspace.metrics import clip

    judge = clip.load(folder)
    scores = {}
    for style in styles:
        rows = held_out.styles == style
        captions = held_out.captions[rows]
        images = clip.image_embeddings(judge, torch.from_numpy(held_out.images[rows]))
        texts = clip.text_embeddings(judge, list(captions))
        similarity = images @ texts.T
        naming = [styled(c, s) for c in captions for s in openmoji.STYLES]
        by_style = clip.text_embeddings(judge, naming).view(len(captions), len(openmoji.STYLES), -1)
        best = (by_style @ images[:, :, None]).squeeze(-1).argmax(1)
        scores[style] = {
            "image_to_text_top1": recall_at(similarity, 1),
            "image_to_text_top5": recall_at(similarity, 5),
            "text_to_image_top1": recall_at(similarity.T, 1),
            "text_to_image_top5": recall_at(similarity.T, 5),
            "style": (best == openmoji.STYLES.index(style)).double().mean().item(),
            "n": int(rows.sum()),
        }
    return scores


def unseen(held_out: Pairs, train: Pairs) -> float:
    """Share of held-out captions with a word that no training caption has."""
    words = {word for caption in set(train.captions) for word in caption.lower().split()}
    captions = sorted(set(held_out.captions))
    return float(np.mean([not words.issuperset(c.lower().split()) for c in captions]))


def loss_curve(losses: list[float], path: Path) -> None:
    """Draw the training loss, each step and the mean of 50."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(losses, color="0.8", linewidth=0.6, label="step")
    if len(losses) >= 50:
        mean = np.convolve(losses, np.full(50, 1 / 50), "valid")
        axes.plot(np.arange(49, len(losses)), mean, color="C0", label="mean of 50 steps")
    axes.set(xlabel="step", ylabel="contrastive loss [nats]")
    axes.legend(frameon=False)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": None})


def card(settings: Settings, scores: dict, rare: float, seconds: float, losses: list) -> str:
    """The model card, in Markdown."""
    columns = [k for k in next(iter(scores.values())) if k != "n"]
    mean = {k: float(np.mean([row[k] for row in scores.values()])) for k in columns}
    mean["n"] = round(np.mean([row["n"] for row in scores.values()]))
    n = scores[openmoji.SOURCE_STYLE]["n"]
    table = "\n".join(
        f"| {name} | {row['n']} | " + " | ".join(f"{100 * row[k]:.1f}" for k in columns) + " |"
        for name, row in {**scores, "mean of the styles": mean}.items()
    )
    return f"""---
license: cc-by-sa-4.0
library_name: open_clip
pipeline_tag: zero-shot-image-classification
---
# emoji-clip-32: the judge of emoji-dit

A small CLIP for 32x32 emoji: it measures CLIP-T and CLIP-I in the embedded studies.
It shares no weights, vocabulary or training data with the sentence encoder that conditions
the embedded generators.

```python
import open_clip
model = open_clip.create_model("local-dir:models/emoji-clip-32")
tokenizer = open_clip.get_tokenizer("local-dir:models/emoji-clip-32")
```

## Data

{openmoji.ATTRIBUTION} (https://openmoji.org). These weights are under the same licence.
Packages: {openmoji.source_version()}. The training split only, in the styles
{", ".join(openmoji.STYLES)}; one emoji in ten is held out with all its skin tones.

## Training

ModifiedResNet (one block a stage, width 16) and a 3-layer text transformer of width 64 on a
WordPiece vocabulary of the training captions' words; embeddings of 128.
A batch holds two drawings (style and skin tone at random) of each of {settings.batch_size // 2}
emoji; half the captions name the style ("{styled("waving hand", "blueprint")}"). Every caption
that describes an image counts as a positive. Drawings are shifted, scaled and turned a little.

| steps | batch | learning rate | weight decay | seed | CPU hours (one thread) | last loss |
|---|---|---|---|---|---|---|
| {settings.steps} | {settings.batch_size} | {settings.lr} | {settings.weight_decay} \
| {settings.seed} | {seconds / 3600:.2f} | {np.mean(losses[-50:]):.3f} |

![loss](loss.png)

Made by `python -m fitspace.recipes.judge models/emoji-clip-32` with `OMP_NUM_THREADS=1`.

## Retrieval on held-out emoji (percent)

None of these emoji were seen in training, and {100 * rare:.0f} percent of their captions have
a word that was not: nobody can name an unseen flag, which bounds what CLIP-T can tell. Chance is
{100 / n:.2f} (top 1) and {500 / n:.2f} (top 5) among {n} candidates, and
{100 / len(openmoji.STYLES):.1f} for the style.

| style | candidates | {" | ".join(c.replace("_", " ") for c in columns)} |
|---|---|{"---|" * len(columns)}
{table}
"""


def train_judge(out: Path, settings: Settings, checkpoint: Path) -> dict:
    """Train, save and measure the judge; returns its retrieval scores by style."""
    import_torchvision()
    import open_clip

    pairs = load_pairs()
    train = pairs["train"]
    save_settings(build_tokenizer(list(map(styled, train.captions, train.styles))), out)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out}")
    model, losses, seconds = train_model(train, tokenizer, settings, checkpoint)
    save_weights(model, out)
    scores = retrieval(out, pairs["test"])
    loss_curve(losses, out / "loss.png")
    rare = unseen(pairs["test"], train)
    files.write_text(out / "README.md", card(settings, scores, rare, seconds, losses))
    return scores


def main() -> None:
    """``python -m fitspace.recipes.judge OUT``: rebuild the embedded judge."""
    parser = argparse.ArgumentParser(
        prog="python -m fitspace.recipes.judge", description=main.__doc__
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--batch-size", type=int, default=Settings.batch_size)
    parser.add_argument("--lr", type=float, default=Settings.lr)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--checkpoint", type=Path, default=Path("results/base/judge.pt"))
    given = vars(parser.parse_args())
    out, checkpoint = given.pop("out"), given.pop("checkpoint")
    train_judge(out, Settings(**given), checkpoint)


if __name__ == "__main__":
    main()
