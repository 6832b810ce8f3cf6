"""Texts that many rooms write: captions that are cut, lists cut short, cells of tables."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

SHOWN = 3
# Parts of a model, as a user names them: beginnings of modules' names, joined by `+`.
_PART = r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*(\.[0-9]+-[0-9]+)?"
PARTS = rf"{_PART}(\+{_PART})*"


def cut(
    reader: str,
    limit: int,
    captions: Sequence[str],
    read: Sequence[Hashable],
    lengths: Sequence[int],
) -> list[str]:
    """Notes on captions longer than the ``limit`` of tokens, and on those that became one.

    ``read`` is what the ``reader`` is given of each caption, ``lengths`` the tokens it has.
    """
    captions, texts = list(captions), {}
    for caption, tokens, length in zip(captions, read, lengths, strict=True):
        texts.setdefault(tokens, []).append((caption, length))
    long = [c for c, length in zip(captions, lengths, strict=True) if length > limit]
    alike = [
        [caption for caption, _ in group]
        for group in texts.values()
        if len({caption for caption, _ in group}) > 1 and any(n > limit for _, n in group)
    ]
    notes = []
    if long:
        notes.append(
            f"cut to the {limit} tokens that {reader} reads: {len(long)} captions, such as "
            f"{shown(long)}"
        )
    notes += [
        f"one and the same to {reader}, as they differ after {limit} tokens: {len(group)} "
        f"captions, such as {shown(group)}"
        for group in sorted(alike, key=len, reverse=True)[:SHOWN]
    ]
    if len(alike) > SHOWN:
        notes.append(f"and {len(alike) - SHOWN} more such groups of captions for {reader}")
    return notes


def share(text: str) -> float | None:
    """The share that a text such as ``10%`` is, between 0 and 1; None for any other text."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", text)
    return float(found[1]) / 100 if found and 0 < float(found[1]) < 100 else None


def one_number(texts: Iterable[str]) -> list[list[str]]:
    """The texts that write one number in several ways, as 1 and 1.0, together."""
    ways: dict[float, list[str]] = {}
    for text in dict.fromkeys(texts):
        try:
            ways.setdefault(float(text), []).append(text)
        except ValueError:
            continue
    return [same for same in ways.values() if len(same) > 1]


def shown(texts: Iterable[str]) -> str:
    """The first few of some texts, each cut where it is long."""
    texts = list(texts)
    parts = [repr(t if len(t) <= 80 else t[:77] + "...") for t in texts[:SHOWN]]
    return ", ".join(parts) + ", ..." * (len(texts) > SHOWN)


def cell(value: Any) -> str:
    """A value as written in a table: floats in their shortest exact form, None as empty text."""
    if value is None:
        return ""
    return repr(value) if isinstance(value, float) else str(value)
