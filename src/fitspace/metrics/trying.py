"""Whether a judge can be used, and what it does not read; importing this imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from fitspace.core import files, texts
from fitspace.core.errors import UserError
from fitspace.core.imports import import_torchvision
from fitspace.metrics.weights import identity, judge_folder

CACHE = Path("results/.cache/judges.json")  # seconds that a check need not take twice


def problems(judge: str | Path) -> list[str]:
    """What goes wrong with a judge when it is loaded and shown an image and a text: nothing, if it
    is sound. Remembered for as long as it and its libraries stay what they are."""
    libraries = [version(name) for name in ("torch", "open_clip_torch", "transformers")]
    code = [files.sha256(path) for path in sorted(Path(__file__).parent.glob("*.py"))]
    key = files.digest([identity(judge)["judge"], libraries, code])
    known = files.remembered(CACHE)
    if key not in known:
        known[key] = _tried(judge)
        files.remember(CACHE, files.remembered(CACHE) | {key: known[key]})
    return known[key]


def _tried(judge: str | Path) -> list[str]:
    import torch

    from fitspace.metrics import clip

    try:
        loaded = clip.load(judge)
        image = clip.image_embeddings(loaded, torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
        text = clip.text_embeddings(loaded, ["a"])
        if image.shape != text.shape:
            return [f"judge: {str(judge)!r}: images and texts are {image.shape} and {text.shape}"]
    except UserError as error:
        return error.problems
    except Exception as error:  # a tokenizer without its files, another layout of weights
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return [f"judge: {str(judge)!r} cannot be used: {reason}"]
    return []


def cut_captions(judge: str | Path, captions: Sequence[str]) -> list[str]:
    """Notes on captions that a judge does not read to their end."""
    import torch

    import_torchvision()
    import open_clip

    folder = judge_folder(judge)
    name = f"local-dir:{folder}" if folder else str(judge).partition("@")[0]
    tokenizer = open_clip.get_tokenizer(name)
    captions = [str(caption) for caption in captions]
    read = tokenizer(captions)
    limit = read.shape[1]
    longer = tokenizer(["", *captions], context_length=16 * limit)
    # What stands at the end of the empty text is what texts are filled up with.
    ends = (longer[1:] != longer[0, -1]).int() * torch.arange(1, longer.shape[1] + 1)
    lengths = ends.amax(1).tolist()
    return texts.cut("the judge", limit, captions, [tuple(row) for row in read.tolist()], lengths)
