"""One image of any common kind as eight-bit sRGB, soundly or not at all."""

from __future__ import annotations

import contextlib
import io
import warnings
import zlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fitspace.core.files import POINTER_CURE, is_pointer

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MAX_PIXELS = 89_478_485  # Pillow's own limit, which other code can lift
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow's JPEG reader also yields MPO
ALLOWED_IMAGE = (
    f"allowed: a complete still image ({', '.join(FORMATS)}, AVIF where Pillow has it, HEIC with "
    "pillow-heif)"
)
_MODES = {  # Pillow's mode -> what to note of it
    "RGB": "", "RGBA": "", "RGBa": "", "RGBX": "", "CMYK": "CMYK", "YCbCr": "YCbCr",
    "1": "black and white", "L": "grey", "LA": "grey", "P": "palette", "PA": "palette",
}  # fmt: skip
_ORIENTATION = 0x0112
# Its values -> what Pillow calls the turn that puts the image upright.
_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
_PNG = b"\x89PNG\r\n\x1a\n"
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_LARGEST_PROFILE = 2**25  # bytes; Pillow takes no more than 2**20 from a PNG


class How(NamedTuple):
    """How an image becomes a square: ``fit`` takes its central square (crop) or presses its sides
    together (squash); ``resample`` is the filter, always antialiased."""

    fit: str = "crop"
    resample: str = "lanczos"


CROPPED = How()


class Unusable(Exception):
    """An image that no conversion makes sound; says the value and what is allowed."""


def load_image(path: Path, size: int, how: How = CROPPED) -> tuple[np.ndarray, list[str]]:
    """One image as uint8 sRGB, shape (size, size, 3), and what was done to make it so.

    Raises an error for what has no sound reading: several frames, 32-bit pixels, damaged or too
    large files.
    """
    from PIL import Image

    too_large = f"more pixels than allowed: at most {MAX_PIXELS}"
    try:
        try:
            return _opened(path, size, how)
        except ValueError as error:
            lighter = _without_texts(path) if "MAX_TEXT" in str(error) else None
            if lighter is None:
                raise
            content, profile, note = lighter
            image, done = _opened(io.BytesIO(content), size, how, profile)
            return image, [note, *done]
    except Unusable:
        raise
    except Image.DecompressionBombError:
        raise Unusable(too_large) from None
    except Image.UnidentifiedImageError:
        raise Unusable(f"{_unidentified(path)}; {ALLOWED_IMAGE}") from None
    except Exception as error:  # decoders raise anything on damaged bytes
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise Unusable(f"cannot be decoded ({reason}); {ALLOWED_IMAGE}") from None


def _opened(
    file: Path | io.BytesIO, size: int, how: How, profile: bytes | None = None
) -> tuple[np.ndarray, list[str]]:
    """``profile``: its colours, where the file itself does not say them."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(file, formats=formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Unusable(
                    f"{image.width}x{image.height}: more pixels than allowed: at most {MAX_PIXELS}"
                )
            return _square(image, size, how, profile)


@cache
def formats() -> tuple[str, ...]:
    """The formats that are read here: not every Pillow has AVIF, and HEIC needs a package."""
    from PIL import features

    found = [*FORMATS, *(["AVIF"] if features.check("avif") else [])]
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
        found.append("HEIF")
    return tuple(found)


def _unidentified(path: Path) -> str:
    """What a file is that no decoder takes for an image."""
    if is_pointer(path):
        return POINTER_CURE
    with open(path, "rb") as file:
        head = file.read(12)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC and "HEIF" not in formats():
        return "HEIC, which is read with pillow-heif; run: pip install pillow-heif"
    return "not an image of a format that is read"


def _without_texts(path: Path) -> tuple[bytes, bytes | None, str] | None:
    """A PNG without the texts and the colour profile that Pillow finds too large to read it.

    Returns the file's bytes, its profile and a note; None for a file that is no PNG.
    """
    content = Path(path).read_bytes()
    if not content.startswith(_PNG):
        return None
    parts, profile, at = [_PNG], None, len(_PNG)
    note = "text of more than 1 MB in the file ignored"
    while at + 8 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        kind, end = content[at + 4 : at + 8], at + 12 + length
        if kind == b"iCCP":
            _, _, packed = content[at + 8 : end - 4].partition(b"\0")
            unpack = zlib.decompressobj()
            try:
                profile = unpack.decompress(packed[1:], _LARGEST_PROFILE)
            except zlib.error:
                profile = None
            if not unpack.eof:
                profile, note = None, "ICC profile ignored, sRGB assumed: too large"
            elif len(profile) > 2**20:
                note = "an ICC profile of more than 1 MB read"
        elif kind not in (b"tEXt", b"zTXt", b"iTXt"):
            parts.append(content[at:end])
        at = end
    return b"".join(parts), profile, note


def _square(
    image: Picture, size: int, how: How, profile: bytes | None = None
) -> tuple[np.ndarray, list[str]]:
    from PIL import Image

    done = []
    if getattr(image, "is_animated", False):
        if image.format not in ("MPO", "HEIF"):
            raise Unusable(f"animated, or of several pages; {ALLOWED_IMAGE}")
        kind = "a multi-picture JPEG" if image.format == "MPO" else "several"
        done.append(f"the main picture of {kind} used")
    raw_mode = _raw_mode(image)
    # Pillow turns a TIFF when it loads it, and forgets that it did.
    before = _orientation(image) if image.format == "TIFF" else None
    image.load()
    turn, ignored = _orientation(image)
    shown, ignored = before or (turn, ignored)
    done += [ignored] if ignored else []
    if shown != 1:
        done.append(f"EXIF orientation {shown} applied")
    profile = profile or image.info.get("icc_profile")
    if turn != 1:
        image = image.transpose(Image.Transpose(_TURNS[turn]))
    image = _eight_bits(image, raw_mode, done)
    (width, height), side = image.size, min(image.size)
    if width != height and how.fit == "crop":
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        done.append(f"central {side}x{side} of {width}x{height} used")
    image = _opaque_srgb(image, profile, done)
    if image.size != (size, size):
        pressed = image.width != image.height
        verb = "squashed" if pressed else "enlarged" if side < size else "reduced"
        done.append(f"{verb} from {image.width}x{image.height} to {size}x{size}")
        image = image.resize((size, size), Image.Resampling[how.resample.upper()])
    return np.array(image), done


def _orientation(image: Picture) -> tuple[int, str]:
    """Exif 2.32, tag 0x0112, from 1 (upright) to 8; and a note where it cannot be told."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception as error:  # of a few damaged bytes, anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:100]
        return 1, f"EXIF ignored: cannot be read ({reason})"
    if not isinstance(value, int):
        return 1, f"EXIF orientation ignored: {repr(value)[:40]} is none"
    return (value if 2 <= value <= 8 else 1), ""


def _raw_mode(image: Picture) -> str:
    """How the file stores its pixels; Pillow's mode does not tell 16-bit RGB from 8-bit."""
    arguments = image.tile[0].args if image.tile else ""
    mode = arguments if isinstance(arguments, str) else str(arguments[0])
    # A TIFF can count from white to black, which Pillow heeds at 8 bits only and calls ";I".
    inverted = mode.startswith("I") and getattr(image, "tag_v2", {}).get(262) == 0
    return f"{mode};I" if inverted else mode


def _eight_bits(image: Picture, raw_mode: str, done: list[str]) -> Picture:
    """Scale 16-bit grey to 8 bits (Pillow would clip it; 16-bit colour it scales itself)."""
    from PIL import Image

    deep = ";16" in raw_mode
    grey = image.mode.startswith("I;16")
    if not (grey or image.mode in _MODES) or (grey and (not deep or raw_mode.endswith(";I"))):
        raise Unusable(
            f"pixels of mode {raw_mode or image.mode}, which have no defined white; "
            "allowed: 8 or 16 bits, grey, palette, RGB or CMYK"
        )
    if deep and "transparency" in image.info:
        raise Unusable("a transparent colour in 16 bits; allowed: an alpha channel")
    if deep:
        done.append("16 bits a channel scaled to 8")
    if grey:
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    return image


def _opaque_srgb(image: Picture, profile: bytes | None, done: list[str]) -> Picture:
    from PIL import Image

    mode, alpha = image.mode, None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("L" if mode in ("1", "L", "LA") else "RGB")
    elif image.mode not in ("L", "CMYK"):
        image = image.convert("L" if mode == "1" else "RGB")
    converted = _from_profile(image, profile, done) if profile else None
    image = converted or image.convert("RGB")
    if _MODES[mode]:
        done.append(f"{_MODES[mode]} to RGB")
    if alpha and alpha.getextrema()[0] < 255:
        image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
        done.append("transparency put on white")
    return image


def _from_profile(image: Picture, profile: bytes, done: list[str]) -> Picture | None:
    """The image in sRGB by its embedded profile; None, and a note, if that does not work."""
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if space == "RGB" and image.mode == "L":
            image = image.convert("RGB")
        if {"GRAY": "L"}.get(space, space) != image.mode:
            raise ImageCms.PyCMSError(f"for {space}, the pixels are {image.mode}")
        target = ImageCms.createProfile("sRGB")
        result = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
        done.append(f"ICC profile {ImageCms.getProfileDescription(source).strip()!r} to sRGB")
        return result
    except (ImageCms.PyCMSError, OSError) as error:
        done.append(f"ICC profile ignored, sRGB assumed: {' '.join(str(error).split())}")
        return None
