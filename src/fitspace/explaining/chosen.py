"""The blocks that DiffFit's scale factors moved most, for another study's ``blocks``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from fitspace import methods
from fitspace.core.errors import UserError

_FACTOR = re.compile(r"(.*transformer_blocks\.\d+)\..*\bgamma(_text)?$")


def ranked(sources: Iterable[str | Path]) -> dict[str, float]:
    """Block -> mean ``|γ − 1|`` of its scale factors, over the adapters; the largest first.

    Factors of norms are none. ``sources`` are adapter files, or folders of runs' train stages.

    Raises
    ------
    UserError : no adapter of DiffFit with scale factors there, or adapters whose blocks differ.
    """
    found = {str(source): _moved(Path(source)) for source in sources}
    first, *others = found
    for other in others:
        if differ := sorted(found[first].keys() ^ found[other].keys()):
            raise UserError(f"{other}: has scale factors in other blocks than {first}: {differ[0]}")
    mean = {block: sum(own[block] for own in found.values()) / len(found) for block in found[first]}
    return dict(sorted(mean.items(), key=lambda item: -item[1]))


def _moved(source: Path) -> dict[str, float]:
    path = source / "adapter.safetensors" if source.is_dir() else source
    facts, tensors = methods.read(path)
    moved: dict[str, list[float]] = {}
    for name, gamma in sorted(tensors.items(), key=lambda item: _natural(item[0])):
        of_norm = f"{name.removesuffix('gamma')}beta" in tensors
        if (place := _FACTOR.match(name)) and not of_norm:
            moved.setdefault(place[1], []).append(float((gamma - 1).abs().double().mean()))
    if facts["method"] != "difffit" or not moved:
        raise UserError(
            f"{path}: has no scale factors; allowed: adapters of difffit with gamma all or branch"
        )
    return {block: sum(means) / len(means) for block, means in moved.items()}


def named(blocks: Iterable[str]) -> str:
    """Blocks as settings name them, ranges joined.

    >>> named(["transformer_blocks.4", "transformer_blocks.0", "transformer_blocks.1"])
    'transformer_blocks.0-1+transformer_blocks.4'
    """
    parts = []
    in_order = enumerate(sorted(blocks, key=_natural))
    for (head, _), group in groupby(in_order, key=lambda item: _run(*item)):
        numbers = [int(block.rpartition(".")[2]) for _, block in group]
        first, last = numbers[0], numbers[-1]
        parts.append(f"{head}.{first}-{last}" if first < last else f"{head}.{first}")
    return "+".join(parts)


def _run(place: int, block: str) -> tuple[str, int]:
    """What blocks of consecutive numbers, at consecutive places, have in common."""
    head, _, number = block.rpartition(".")
    return head, int(number) - place


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Sorts numbers in names by their size."""
    parts = name.split(".")
    return [(p.isdecimal(), int(p) if p.isdecimal() else 0, p) for p in parts]
