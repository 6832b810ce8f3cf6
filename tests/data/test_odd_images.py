"""Images that are sound, with something odd about them: read, with a note; or refused in words."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from images import LINEAR_GREY, chunk, encoded, png, rgb_profile, srgb_encoded
from PIL import Image, features

from fitspace.data import pixels
from fitspace.data.pixels import load_image

TURNED = np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20
MEGABYTES = b"x" * 3_000_000


def exif(kind: int, value: bytes) -> bytes:
    """An EXIF block whose one tag is the orientation, of a TIFF type and with a value."""
    entry = struct.pack(">HHI", 0x0112, kind, 1 if kind != 2 else len(value)) + value.ljust(
        4, b"\0"
    )
    return b"Exif\0\0MM\0*" + struct.pack(">I", 8) + struct.pack(">H", 1) + entry + bytes(4)


def with_chunks(image: np.ndarray, *chunks: bytes) -> bytes:
    """A PNG with chunks behind its header."""
    content = encoded(image)
    return content[:33] + b"".join(chunks) + content[33:]


def padded_profile(profile: bytes, size: int) -> bytes:
    """The same profile with zeros behind it."""
    return struct.pack(">I", size) + profile[4:].ljust(size - 4, b"\0")


BIG_PROFILE = padded_profile(rgb_profile(), 2_000_000)
TEXT_NOTE = "text of more than 1 MB in the file ignored"
ODD = {
    "orientation as text": (encoded(TURNED, exif=exif(2, b"6\0")), TURNED, "orientation ignored"),
    "orientation as text, JPEG": (
        encoded(np.full((8, 8, 3), 90, np.uint8), "JPEG", exif=exif(2, b"6\0")),
        np.full((8, 8, 3), 90, np.uint8),
        "orientation ignored",
    ),
    "orientation as text, WebP": (
        encoded(TURNED, "WEBP", lossless=True, exif=exif(2, b"6\0")), TURNED, "orientation ignored",
    ),
    "garbage for EXIF": (
        with_chunks(TURNED, chunk(b"eXIf", b"no TIFF at all")), TURNED, "EXIF ignored: cannot be",
    ),
    "a compressed text of 3 MB": (
        with_chunks(TURNED, chunk(b"zTXt", b"Comment\0\0" + zlib.compress(MEGABYTES))),
        TURNED, TEXT_NOTE,
    ),
    "an international text of 3 MB": (
        with_chunks(
            TURNED, chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(MEGABYTES))
        ),
        TURNED, TEXT_NOTE,
    ),
    "texts of 70 MB in all": (
        with_chunks(TURNED, *[chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 900_000))] * 80),
        TURNED, TEXT_NOTE,
    ),
    "a profile of 2 MB": (
        with_chunks(
            np.array([[(0, 128, 255)]], np.uint8),
            chunk(b"iCCP", b"wide\0\0" + zlib.compress(BIG_PROFILE)),
        ),
        np.array([[[srgb_encoded(v / 255) for v in (0, 128, 255)]]], np.uint8),
        "an ICC profile of more than 1 MB read",
    ),
    "a profile without end": (
        with_chunks(TURNED, chunk(b"iCCP", b"wide\0\0" + zlib.compress(bytes(50_000_000)))),
        TURNED, "ICC profile ignored, sRGB assumed: too large",
    ),
}  # fmt: skip


@pytest.mark.parametrize("content, expected, note", ODD.values(), ids=ODD)
def test_an_odd_image_is_read_with_a_note(tmp_path, content, expected, note):
    (tmp_path / "image").write_bytes(content)
    image, done = load_image(tmp_path / "image", len(expected))
    assert np.abs(image.astype(int) - expected.astype(int)).max() <= 1
    assert note in "; ".join(done)


def test_a_tiff_whose_orientation_is_a_text_is_read(tmp_path):
    file = io.BytesIO()
    Image.fromarray(TURNED).save(file, "TIFF", tiffinfo={0x010E: "6"})
    content = file.getvalue()
    old, new = (struct.pack("<HH", tag, 2) for tag in (0x010E, 0x0112))
    assert content.count(old) == 1
    (tmp_path / "image").write_bytes(content.replace(old, new))
    image, done = load_image(tmp_path / "image", 2)
    assert (image == TURNED).all() and "orientation ignored" in "; ".join(done)


def test_what_was_sound_is_read_as_before(tmp_path):
    """The repairs are for what fails alone: a profile or a text of common size changes nothing."""
    grey = chunk(b"iCCP", b"x\0\0" + zlib.compress(LINEAR_GREY))
    (tmp_path / "image").write_bytes(png(8, 0, [0, 128], 2, extra=grey + chunk(b"tEXt", b"a\0b")))
    image, done = load_image(tmp_path / "image", 2)
    assert abs(int(image[0, 1, 0]) - srgb_encoded(128 / 255)) <= 1
    assert done == ["ICC profile 'test profile' to sRGB", "grey to RGB"]


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
REFUSED = {
    "a pointer of Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n", "run: git lfs pull",
    ),
    "HEIC without its package": (HEIC, "HEIC, which is read with pillow-heif; run: pip install"),
    "a film": (b"\0\0\0\x14ftypqt  ", "not an image of a format that is read"),
}  # fmt: skip


@pytest.mark.parametrize("content, reason", REFUSED.values(), ids=REFUSED)
def test_a_file_that_is_no_image_says_what_it_is(tmp_path, monkeypatch, content, reason):
    monkeypatch.setattr(pixels, "formats", lambda: pixels.FORMATS)
    (tmp_path / "image").write_bytes(content)
    with pytest.raises(pixels.Unusable, match=reason):
        load_image(tmp_path / "image", 4)


def test_avif_is_read(tmp_path):
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    (tmp_path / "image").write_bytes(encoded(flat, "AVIF", quality=100))
    image, done = load_image(tmp_path / "image", 16)
    assert np.abs(image.astype(int) - flat).max() <= 4 and done == []
    frames = [Image.fromarray(flat), Image.fromarray(255 - flat)]
    frames[0].save(tmp_path / "frames.avif", save_all=True, append_images=frames[1:])
    with pytest.raises(pixels.Unusable, match="animated"):
        load_image(tmp_path / "frames.avif", 16)


def test_heic_is_read_where_its_package_is(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    pixels.formats()
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, :32] = 250
    heif.from_pillow(Image.fromarray(wide)).save(tmp_path / "image.heic", quality=100)
    image, done = load_image(tmp_path / "image.heic", 32)
    assert np.abs(image.astype(int) - wide[:, 16:48]).max() <= 12
    assert done == ["central 32x32 of 64x32 used"]
