"""Parts of a denoiser, as settings name them: where a method is put, or where it is at work.

A part is the beginning of its modules' names (``mid_block``, ``down_blocks.0``), or a range of them
(``transformer_blocks.0-2``); ``+`` joins several. Where a method is put may also be a share of the
transformer blocks, counted from one end (``first 50%``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from fitspace.bases.families import family_of
from fitspace.core.errors import UserError
from fitspace.core.texts import PARTS

if TYPE_CHECKING:
    from torch import nn

ALL = "all"
ENDS = ("first", "last")
PATTERN = rf"^((first|last) [0-9]+%|{PARTS})$"
_RANGE = re.compile(r"(.*)\.(\d+)-(\d+)$")
_SHARE = re.compile(r"(first|last) (\d+)%$")
# The order in which a U-Net computes its parts; it registers the middle last.
UNET_ORDER = ("down_blocks", "mid_block", "up_blocks")


def prefixes(blocks: str) -> list[str]:
    """The beginnings of modules' names that ``blocks`` means, ranges written out.

    >>> prefixes("mid_block+transformer_blocks.0-2")
    ['mid_block', 'transformer_blocks.0', 'transformer_blocks.1', 'transformer_blocks.2']
    """
    found = []
    for part in blocks.split("+"):
        if told := _RANGE.match(part):
            head, first, last = told[1], int(told[2]), int(told[3])
            found += [f"{head}.{i}" for i in range(first, last + 1)]
        else:
            found.append(part)
    return found


def unknown_blocks(blocks: str, modules: Iterable[str], key: str = "sample.blocks") -> list[str]:
    """What is wrong with ``blocks`` on a denoiser whose modules have these names."""
    known = set(modules)
    tops = ", ".join(sorted({name.partition(".")[0] for name in known if name}))
    if not prefixes(blocks):
        return [f"{key}: {blocks!r}: a range of no number; allowed: the smaller first"]
    return [
        f"{key}: {blocks!r}: the denoiser has no part {name!r}; allowed: parts of {tops}"
        for name in prefixes(blocks)
        if name not in known
    ]


def within(names: Iterable[str]) -> Callable[[str], bool]:
    """Whether a module or parameter belongs to one of the parts of these names."""
    parts = tuple(names)
    return lambda name: name in parts or name.startswith(tuple(f"{part}." for part in parts))


def inside(model: nn.Module, blocks: str) -> Callable[[str], bool]:
    """Whether a module or parameter of the model is in the parts that ``blocks`` means.

    Raises UserError for parts that the model has not.
    """
    if blocks == ALL:
        return lambda name: True
    if told := _SHARE.match(blocks):
        return within(at_end(list(blocks_in_order(model)), told[1], int(told[2]) / 100, "blocks"))
    if found := unknown_blocks(blocks, (name for name, _ in model.named_modules()), "blocks"):
        raise UserError(found)
    return within(prefixes(blocks))


def at_end(blocks: list[str], end: str, share: float, key: str) -> list[str]:
    """The blocks at one end: this share of all, rounded to whole blocks."""
    count = int(share * len(blocks) + 0.5)
    if count == 0:
        raise UserError(
            f"{key}: {share} of the model's {len(blocks)} transformer blocks is less than half a "
            f"block; allowed: {0.5 / len(blocks):.4g} to 1"
        )
    return blocks[:count] if end == "first" else blocks[-count:]


def blocks_in_order(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> transformer block, in the order in which the model computes them."""
    form = family_of(model).block_of
    found = {n: m for n, m in model.named_modules() if (b := form(m)) and b.transformer}
    rank = {part: i for i, part in enumerate(UNET_ORDER)}
    return dict(sorted(found.items(), key=lambda item: rank.get(item[0].partition(".")[0], 0)))
