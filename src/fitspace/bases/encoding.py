"""Captions as a pipeline's own ``encode_prompt`` tells them to its denoiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitspace.core.errors import UserError
from fitspace.core.files import read_json

if TYPE_CHECKING:
    import torch

    from fitspace.bases.family import Conditions


def prompted(
    pipeline: Any,
    captions: Sequence[str],
    device: Any,
    returned: dict[str, tuple[int, int | None]],
    **others: Any,
) -> Conditions:
    """What ``encode_prompt`` says of captions.

    Parameters
    ----------
    returned : condition -> where it is among the values returned, and where what the pipeline
        guides away from is. The empty caption is told the latter, in training too; with None it is
        told as any other.
    others : further arguments.
    """
    import torch

    if any(nothing is not None for _, nothing in returned.values()):
        others["do_classifier_free_guidance"] = True
    with torch.no_grad():
        found = pipeline.encode_prompt(list(captions), device=device, **others)
    empty = torch.tensor([caption == "" for caption in captions], device=device)
    told = {}
    for name, (caption, nothing) in returned.items():
        given, without = found[caption], found[caption if nothing is None else nothing]
        rows = empty.reshape(-1, *[1] * (given.ndim - 1))
        told[name] = torch.where(rows, without, given).cpu()
    return told


def padded(texts: Sequence[torch.Tensor], tokens: int) -> Conditions:
    """Embeddings of texts of different lengths, (k, dim) each, side by side: zeros and a mask say
    where a text has ended."""
    import torch

    told = torch.zeros(len(texts), tokens, texts[0].shape[-1])
    mask = torch.zeros(len(texts), tokens, dtype=torch.long)
    for i, text in enumerate(texts):
        told[i, : len(text)], mask[i, : len(text)] = text, 1
    return {"embeddings": told, "mask": mask}


def blank_padded(width: str) -> Callable[..., Conditions]:
    """What :func:`padded` gives a denoiser, without values, for counts; ``width`` is the key of its
    configuration that says how long an embedding is."""

    def blank(config: Any, images: int, tokens: int, dtype: torch.dtype) -> Conditions:
        import torch

        return {
            "embeddings": torch.empty(images, tokens, getattr(config, width), dtype=dtype),
            "mask": torch.empty(images, tokens, dtype=torch.long),
        }

    return blank


def tokens_kept(folder: Path, tokenizer: str) -> int:
    """How many tokens a tokenizer keeps, as its configuration says. Raises UserError if it says
    none."""
    path = folder / tokenizer / "tokenizer_config.json"
    limit = read_json(path, finite=False).get("model_max_length")
    if not isinstance(limit, int) or limit < 1:
        raise UserError(f"{path}: model_max_length: {limit!r}; allowed: a number of tokens")
    return limit
