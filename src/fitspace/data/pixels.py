"""One image of any common kind as eight-bit sRGB, soundly or not at all."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MAX_PIXELS = 89_478_485  # Pillow's own limit, which other code can lift
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow's JPEG reader also yields MPO
ALLOWED_IMAGE = f"allowed: a complete still image ({', '.join(FORMATS)})"
_MODES = {  # Pillow's mode -> what to note of it
    "RGB": "", "RGBA": "", "RGBa": "", "RGBX": "", "CMYK": "CMYK", "YCbCr": "YCbCr",
    "1": "black and white", "L": "grey", "LA": "grey", "P": "palette", "PA": "palette",
}  # fmt: skip
_ORIENTATION = 0x0112


class Unusable(Exception):
    """An image that no conversion makes sound; says the value and what is allowed."""


def load_image(path: Path, size: int) -> tuple[np.ndarray, list[str]]:
    """One image as uint8 sRGB, shape (size, size, 3), and what was done to make it so.

    Its central square is taken and resized with antialiasing (Lanczos). Raises an error for
    what has no sound reading: several frames, 32-bit pixels, damaged or too large files.
    """
    from PIL import Image

    too_large = f"more pixels than allowed: at most {MAX_PIXELS}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Unusable(f"{image.width}x{image.height}: {too_large}")
                return _square(image, size)
    except Unusable:
        raise
    except Image.DecompressionBombError:
        raise Unusable(too_large) from None
    except Image.UnidentifiedImageError:
        raise Unusable(f"not an image of a format that is read; {ALLOWED_IMAGE}") from None
    except Exception as error:  # decoders raise anything on damaged bytes
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise Unusable(f"cannot be decoded ({reason}); {ALLOWED_IMAGE}") from None


def _square(image: Picture, size: int) -> tuple[np.ndarray, list[str]]:
    from PIL import Image, ImageOps

    done = []
    if getattr(image, "is_animated", False):
        if image.format != "MPO":
            raise Unusable(f"animated, or of several pages; {ALLOWED_IMAGE}")
        done.append("the main picture of a multi-picture JPEG used")
    raw_mode = _raw_mode(image)
    if 2 <= (orientation := image.getexif().get(_ORIENTATION, 1)) <= 8:
        done.append(f"EXIF orientation {orientation} applied")
    image.load()
    profile = image.info.get("icc_profile")
    image = _eight_bits(ImageOps.exif_transpose(image), raw_mode, done)
    (width, height), side = image.size, min(image.size)
    if width != height:
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        done.append(f"central {side}x{side} of {width}x{height} used")
    image = _opaque_srgb(image, profile, done)
    if side != size:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
        verb = "enlarged" if side < size else "reduced"
        done.append(f"{verb} from {side}x{side} to {size}x{size}")
    return np.array(image), done


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
