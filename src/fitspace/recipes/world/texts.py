"""The second half of the judge's training: its texts learn what its finished image tower sees.

First each caption's vector and each style's offset are fitted to the embeddings of all drawings,
as they are and changed as in training. Then the text tower goes on alone until it outputs these
vectors. Both are cheap, because the image tower looks at every drawing only twice.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from fitspace.core import rng
from fitspace.core.files import digest, read_json, read_tensors, replacing, sha256
from fitspace.data import openmoji
from fitspace.recipes.world import judge, loop
from fitspace.recipes.world.drawings import Drawings

LOOKS = 2  # at each drawing: as it is, and changed
PLAIN = 2 / 3  # the share of looks at drawings as they are
SCALE = 60.0  # of the logits: larger than training finds, so that near captions are told apart
WEIGHTS = "open_clip_model.safetensors"


@dataclass(frozen=True)
class Vectors(loop.Schedule):
    """How the captions' vectors are fitted; ``batch_size``: looks at drawings."""

    steps: int = 1500
    batch_size: int = 768
    lr: float = 3e-3
    warmup_steps: int = 50
    ema: float = 0.99


@dataclass(frozen=True)
class Settings(loop.Schedule):
    """How the text tower goes on; ``batch_size``: texts."""

    steps: int = 5000
    batch_size: int = 256
    lr: float = 1e-3
    warmup_steps: int = 200
    weight_decay: float = 0.02


def train(
    first: Path,
    drawings: Drawings,
    folder: Path,
    vectors: Vectors = Vectors(),
    settings: Settings = Settings(),
) -> tuple[loop.Trained, dict[str, Any]]:
    """Train both, or go on. The model is a `judge.Learner`.

    ``first``: the judge's folder after its first half, :func:`judge.save`. The second value is the
    record of both halves for the card.
    """
    from fitspace.metrics import clip

    learner = judge.Learner(clip.load(first).model.float(), len(drawings))
    made_of = {"drawings": drawings.key, "first": sha256(first / WEIGHTS)}
    read = judge.tokens(drawings)
    seen = all_seen(learner.clip.visual, drawings, folder / f"seen~{digest(made_of)[:12]}")
    made_of |= {"plain": PLAIN, "scale": SCALE}
    with torch.no_grad():
        drawn = torch.from_numpy(drawings.drawn)[:, :, None]
        learner.captions.copy_(F.normalize((seen[0] * drawn).sum(1), dim=1))
        learner.styles.zero_()
        learner.clip.logit_scale.fill_(math.log(SCALE))

    def tell(texts: Tensor) -> None:
        shares = [f"{100 * share:.1f}" for share in right(seen[0], texts, drawings)]
        print(f"judge: right figures, by style: {' '.join(shares)}", flush=True)

    def looks_at(step: int) -> Tensor:
        draw = rng.generator(vectors.seed, "judge.looks", step)
        rows = draw.integers(len(drawings), size=vectors.batch_size)
        styles = np.array([draw.choice(np.flatnonzero(drawings.drawn[row])) for row in rows])
        look = torch.from_numpy((draw.random(len(rows)) >= PLAIN).astype(np.int64))
        rows, styles = torch.from_numpy(rows), torch.from_numpy(styles)
        return judge.seen_loss(learner, seen[look, rows, styles], rows, styles)

    _train_only(learner, [learner.captions, learner.styles])
    fitted = loop.train(
        learner, looks_at, vectors, made_of, folder / "vectors",
        lambda averaged, _: tell(F.normalize(averaged.captions, dim=1)), "vectors",
    )  # fmt: skip
    learner = fitted.model.train()

    def texts_at(step: int) -> Tensor:
        texts = judge.text_rows(len(drawings), settings.batch_size, settings.seed, step)
        return judge.text_loss(learner, read, *texts)

    own = [p for n, p in learner.clip.named_parameters() if not n.startswith(("visual.", "logit"))]
    _train_only(learner, own)
    trained = loop.train(
        learner, texts_at, settings, made_of | {"vectors": asdict(vectors)}, folder / "texts",
        lambda averaged, _: tell(plain(averaged.clip, read)), "texts",
    )  # fmt: skip
    record = read_json(first / "training.json")
    return trained, record | {
        "vectors": fitted.record(vectors),
        "texts": trained.record(settings),
    }


def _train_only(learner: nn.Module, parameters: list[nn.Parameter]) -> None:
    learner.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)


def all_seen(visual: nn.Module, drawings: Drawings, path: Path) -> Tensor:
    """Embeddings of all looks at all drawings, kept at ``path``: (looks, n, styles, d).

    The first look is at the drawing as it is.
    """
    path, styles = path.with_suffix(".safetensors"), len(openmoji.STYLES)
    if not path.exists():
        with tqdm(total=LOOKS * styles, desc="looking at drawings", disable=None) as shown:
            looks = []
            for look in range(LOOKS):
                of_styles = []
                for style in range(styles):
                    of_styles.append(_looked(visual, drawings.images[:, style], look, style))
                    shown.update()
                looks.append(torch.stack(of_styles, 1))
        with replacing(path) as temporary:
            save_file({"seen": torch.stack(looks)}, temporary)
    return read_tensors(path, {"seen": f"F32 {LOOKS} n {styles} d"}, n=len(drawings))["seen"]


@torch.inference_mode()
def _looked(visual: nn.Module, images: np.ndarray, look: int, style: int) -> Tensor:
    if look == 0:
        return judge.embed(visual, images)
    parts = []
    for start in range(0, len(images), judge.BATCH):
        draw = rng.generator(look, f"judge.looks.{style}", start)
        changed = judge.augment(images[start : start + judge.BATCH], draw, judge.SEEN)
        parts.append(F.normalize(visual(changed), dim=1))
    return torch.cat(parts)


@torch.no_grad()
def plain(clip: nn.Module, read: Tensor) -> Tensor:
    """What the text tower outputs for the captions alone: unit vectors (n, d)."""
    parts = read[:, 0].split(judge.BATCH)
    return torch.cat([clip.encode_text(part, normalize=True) for part in parts])


def right(seen: Tensor, texts: Tensor, drawings: Drawings) -> list[float]:
    """The share of drawings whose nearest text has their figure, by style."""
    shares = []
    for style in range(len(openmoji.STYLES)):
        rows = np.flatnonzero(drawings.drawn[:, style])
        best = (seen[rows, style] @ texts.T).argmax(1).numpy()
        shares.append(float(judge.right(best, rows, style, drawings).mean()))
    return shares
