"""Find, fetch and identify the models that images are judged by."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from fitspace.core import files, hashes, hub
from fitspace.core.errors import UserError

VERSION = 1  # of all features; part of every reference's key
EXTRACTOR = "effnet-lite0-v1"
EXTRACTOR_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
NAMED = {"reading": 2}  # raised when weights without a configuration are read otherwise
HUB = "hf-hub:"  # as open_clip marks hub ids
# What transformers reads a tokenizer from, each enough for one of its kinds.
_TOKENIZERS = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_HUB_FILES = ("*.json", "*.txt", "*.model", "open_clip*.safetensors")


@contextlib.contextmanager
def named_network(name: str, path: Path, instead: str) -> Iterator[None]:
    """Within it a network takes the tensors of a file. Raises UserError for tensors that are not
    those of this network: what the file holds ``instead``, and the library's first reason."""
    try:
        yield
    except (KeyError, RuntimeError, ValueError) as error:
        lines = [line.strip() for line in str(error).strip().splitlines()]
        reason = lines[min(1, len(lines) - 1)][:300]
        raise UserError(f"{name}: {str(path)!r} holds {instead}: {reason}") from None


def judge_folder(judge: str | Path) -> Path | None:
    """The folder of a judge: its own, or that of a hub id's copy; None for ``NAME@WEIGHTS``.

    Raises :class:`fitspace.core.hub.NotHere` for a hub id without a copy on this machine.
    """
    if not str(judge).startswith(HUB):
        return Path(judge) if Path(judge).is_dir() else None
    folder = hub.cached(_hub_id(judge), _HUB_FILES)
    if folder is None or not _judge_files(folder):
        raise hub.NotHere(f"judge: {str(judge)!r} is not on this machine; {hub.CURE}")
    return folder


def judge_files(judge: str | Path) -> list[Path]:
    """The files that determine a judge's output: weights, configuration and tokenizer.

    Raises UserError if ``judge`` is no open_clip folder, hub id of one, nor ``NAME@WEIGHTS``;
    :class:`fitspace.core.hub.NotHere` for a hub id without a copy on this machine.
    """
    folder, weights = judge_folder(judge), Path(str(judge).partition("@")[2] or ".")
    found = [weights] if folder is None and weights.is_file() else []
    found = _judge_files(folder) if folder is not None else found
    if pointers := [path for path in found if files.is_pointer(path)]:
        raise UserError(f"judge: {path}: {files.POINTER_CURE}" for path in pointers)
    if found:
        if untold := _without_tokenizer(folder) if folder else None:
            raise UserError(f"judge: {str(judge)!r}: {untold}")
        return found
    raise UserError(
        f"judge: {str(judge)!r} is not a folder with open_clip_config.json and safetensors "
        f"weights, nor {HUB}org/name of such a folder on the hub, nor NAME@WEIGHTS with an "
        "open_clip model name and a weights file"
    )


def weights_of(judge: str | Path) -> set[str]:
    """SHA-256 of a judge's weights alone, whatever its configuration; errors as `judge_files`."""
    found = [path for path in judge_files(judge) if path.suffix != ".json"]
    return set(hashes.hashes(found).values())


def fetch_judge(judge: str) -> None:
    """Download a hub id's open_clip model unless it is on this machine; ignore other judges.

    Raises UserError: no network, or a repository that holds no such model.
    """
    with contextlib.suppress(hub.NotHere):
        judge_files(judge)
        return
    if not _judge_files(hub.fetch(_hub_id(judge), _HUB_FILES)):
        raise UserError(
            f"judge: {judge!r} holds no open_clip_config.json and open_clip*.safetensors"
        )


def _hub_id(judge: str | Path) -> str:
    ref = str(judge).removeprefix(HUB)
    if not hub.is_id(ref):
        raise UserError(f"judge: {str(judge)!r}; allowed: {HUB}org/name")
    return ref


def _without_tokenizer(folder: Path) -> str | None:
    """What is missing of a tokenizer that a judge's configuration says it has in its folder."""
    try:
        text = files.read_json(folder / "open_clip_config.json")["model_cfg"]["text_cfg"]
    except (UserError, KeyError, TypeError):
        return None  # open_clip says why it cannot load it
    own = isinstance(text, dict) and text.get("hf_tokenizer_name")
    if not own or any((folder / name).exists() for name in _TOKENIZERS):
        return None
    return f"its text_cfg names a tokenizer, and none of {', '.join(_TOKENIZERS)} is there"


def _judge_files(folder: Path) -> list[Path]:
    """The files of an open_clip folder that matter; empty if it lacks weights or configuration."""
    weights = sorted(folder.glob("*.safetensors"))
    # If there are several, open_clip reads the one with its own name.
    weights = [p for p in weights if p.name.startswith("open_clip")] or weights
    whole = weights and (folder / "open_clip_config.json").exists()
    return sorted([*folder.glob("*.json"), *weights]) if whole else []


def weights_file(extractor: str, path: str | Path) -> Path:
    """The file with the weights of an extractor, as a study names it.

    Raises UserError for a file that is no safetensors; :class:`fitspace.core.hub.NotHere` for none.
    """
    file = Path(path)
    if file.suffix != ".safetensors":
        raise UserError(f"{extractor}: {str(path)!r}; allowed: a .safetensors file")
    if files.is_pointer(file):
        raise UserError(f"{extractor}: {str(path)!r}: {files.POINTER_CURE}")
    if not os.path.isfile(file):  # Path's own raises for a name longer than file systems allow
        raise hub.NotHere(
            f"{extractor}: {str(path)!r} is not on this machine; params/README.md says how to "
            "make it"
        )
    return file


def identity(judge: str | Path, weights: Mapping[str, str | Path] = MappingProxyType({})) -> dict:
    """What determines the metrics besides the images: versions, pins, the judge's digest, and the
    SHA-256 of the ``weights`` that a study names (extractor -> file)."""
    found = hashes.hashes(judge_files(judge))
    contents = {path.name: value for path, value in found.items()}
    name = str(judge).partition("@")[0] if judge_folder(judge) is None else ""
    evaluator = {
        "metrics": VERSION,
        "extractor": EXTRACTOR,
        "extractor_sha256": EXTRACTOR_SHA256,
        "judge": files.digest({"name": name, "files": contents} | (NAMED if name else {})),
    }
    for extractor, path in weights.items():
        (evaluator[extractor],) = hashes.hashes([weights_file(extractor, path)]).values()
    return evaluator
