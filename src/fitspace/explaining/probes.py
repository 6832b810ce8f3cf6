"""What a model is asked: images to noise, and two conditions that differ in what was taught."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fitspace import bases
from fitspace.data.prepared import PreparedTask


@dataclass(frozen=True)
class Probe:
    """The images and conditions of a task, the same for all of its runs.

    Attributes
    ----------
    images, taught, without : in words: the images, the condition with what was taught, the other.
    latents : float32, shape (n, c, h, w): the images' mean latents, not yet scaled.
    rows : for each image, the rows of the task's conditions: taught, without.
    """

    images: str
    taught: str
    without: str
    latents: torch.Tensor
    rows: list[tuple[int, int]]


def probe_of(task: PreparedTask, by_class: bool, count: int) -> Probe:
    """The first ``count`` images of a task, or all; and what tells what was taught.

    Held-out images under their caption (or class) and under none. For a DreamBooth task, whose
    images are all trained on, the class images, or without any the subject's, under the prompt with
    the rare word and under the one without (2303.18181, visualization analyses).
    """
    if task.roles:
        chosen = list(task.prior or range(len(task.mean)))[:count]
        rows = (task.roles["subject"][0], task.roles["class"][0])
        return Probe(
            "images of the class" if task.prior else "images of the subject",
            "the prompt with the rare word",
            "the prompt without it",
            task.latents(chosen)[0],
            [rows] * len(chosen),
        )
    chosen = list(task.shown[:count])
    kind = ("the class", "no class") if by_class else ("the caption", "the empty caption")
    latents = task.held_out[chosen].float()
    return Probe("held-out images", *kind, latents, [(row, 0) for row in task.prompts[:count]])


def taught_tokens(
    base: Path, task: PreparedTask, captions: Sequence[str], probe: Probe
) -> tuple[str, list[list[int]]]:
    """Which tokens of the taught condition an attention map is of: in words, and by image.

    With DreamBooth those of the rare word: where the prompt with it differs from the one without.
    Else nobody knows which words count, and all of the caption's own tokens are meant: start, end
    and padding take the rest of the attention.
    """
    if not task.roles:
        told = bases.caption_tokens(base, [captions[row] for row, _ in probe.rows])
        return "all words of the caption", [[at for at, _ in tokens] for tokens in told]
    taught, without = bases.caption_tokens(base, [captions[row] for row in probe.rows[0]])
    ids = [token for _, token in without]
    start = next(
        (i for i, (_, token) in enumerate(taught) if i == len(ids) or token != ids[i]), len(taught)
    )
    extra = taught[start : start + len(taught) - len(without)]
    return "the rare word", [[at for at, _ in extra]] * len(probe.rows)
