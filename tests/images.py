"""Image files of kinds that are hard to come by, written byte by byte."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image


def encoded(image, kind="PNG", **options) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# PNG by the specification (RFC 2083), for depths that Pillow cannot write.


def chunk(tag: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))


def png(bits: int, colour: int, pixels, width: int, extra: bytes = b"") -> bytes:
    """A square image, each of whose rows holds the pixels."""
    values = np.asarray(pixels, ">u2" if bits == 16 else "u1")
    data = zlib.compress((b"\0" + values.tobytes()) * width)
    header = struct.pack(">IIBBBBB", width, width, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


# ICC profiles by the specification (ICC.1:2001), small enough to reason about.


def s15(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(v * 65536)) for v in values)


def icc(space: bytes, kind: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    text = b"test profile\0"
    description = (
        b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(4 + 4 + 2 + 1 + 67)
    )
    tags = {
        b"desc": description,
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": b"XYZ " + bytes(4) + s15(0.9642, 1.0, 0.8249),
    } | tags
    table, body = struct.pack(">I", len(tags)), b""
    for tag, data in tags.items():
        table += tag + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = bytes(4) + b"lcms" + bytes.fromhex("02100000") + kind + space + connection
    header += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    header += s15(0.9642, 1.0, 0.8249) + bytes(48)
    header = struct.pack(">I", 128 + len(table) + len(body)) + header[4:]
    assert len(header) == 128
    return header + table + body


LINEAR = b"curv" + bytes(4) + struct.pack(">I", 0)
LINEAR_GREY = icc(b"GRAY", b"mntr", b"XYZ ", {b"kTRC": LINEAR})
PRIMARIES = {  # sRGB's, adapted to D50 (IEC 61966-2-1)
    b"rXYZ": (0.43607, 0.22249, 0.01392),
    b"gXYZ": (0.38515, 0.71687, 0.09708),
    b"bXYZ": (0.14307, 0.06061, 0.71410),
}


def rgb_profile(order: bytes = b"rgb") -> bytes:
    """Linear light with sRGB's primaries, its channels in another order."""
    tags = {bytes([c]) + b"TRC": LINEAR for c in b"rgb"}
    for channel, primary in zip(b"rgb", order, strict=True):
        xyz = PRIMARIES[bytes([primary]) + b"XYZ"]
        tags[bytes([channel]) + b"XYZ"] = b"XYZ " + bytes(4) + s15(*xyz)
    return icc(b"RGB ", b"mntr", b"XYZ ", tags)


def cmyk_profile() -> bytes:
    """A printer whose inks are grey: L* is 128 / 2.55 for cyan, 200 / 2.55 for magenta."""
    nodes = []
    for index in range(16):  # C varies slowest, K fastest
        lightness = 0 if index & 1 else 128 if index & 8 else 200 if index & 4 else 255
        nodes += [lightness, 128, 128]
    ramp = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + s15(1, 0, 0, 0, 1, 0, 0, 0, 1)
    lut += ramp * 4 + bytes(nodes) + ramp * 3
    return icc(b"CMYK", b"prtr", b"Lab ", {b"A2B0": lut})


def srgb_encoded(linear: float) -> int:
    """IEC 61966-2-1."""
    value = 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055
    return round(255 * value)
