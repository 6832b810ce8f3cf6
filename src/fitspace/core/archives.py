"""Zip archives: written with the same bytes every time, read as if a stranger had made them."""

from __future__ import annotations

import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from fitspace.core.errors import UserError
from fitspace.core.files import Pathish, replacing

STAMP = (1980, 1, 1, 0, 0, 0)  # the first time that the format knows
MEMBERS = 100_000
# Unpacked to packed. Weights and images hardly shrink, text by ten; a bomb's share is a thousand.
RATIO = 100
_BLOCK = 1 << 20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_BROKEN = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError,
    ValueError,
)  # fmt: skip


def write(path: Pathish, files: Mapping[str, Path | bytes]) -> None:
    """Write a zip atomically: name in the archive -> file or content.

    Members are sorted and have neither times nor owners, so equal content gives equal bytes with
    one zlib.
    """
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, content in sorted(files.items()):
            member = zipfile.ZipInfo(name, STAMP)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.create_system, member.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            if isinstance(content, bytes):
                archive.writestr(member, content)
                continue
            member.file_size = content.stat().st_size  # whether it needs zip64
            with content.open("rb") as source, archive.open(member, "w") as target:
                shutil.copyfileobj(source, target, _BLOCK)


def unpack(path: Path, folder: Path) -> None:
    """Unpack a zip into an empty folder, after a look at all that it says of itself.

    Raises
    ------
    UserError : no zip or a damaged one; a member whose path leads out of the folder, that is no
        file, or that stands twice; one that is encrypted or packed in a way that `write` does not
        use; more than it can hold by its size, or than the disk can.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a zip")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if problems := list(_refused(members, path.stat().st_size, folder)):
                raise UserError(f"{path}: {problem}" for problem in problems[:10])
            for member in members:
                if not member.is_dir():
                    _extract(archive, member, path, folder / member.filename)
    except _BROKEN as error:
        raise UserError(f"{path}: not a zip that can be read ({error})") from None


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    with to.open("xb") as target:
        try:
            # No more than the declared size is read, and its checksum is compared.
            with archive.open(member) as source:
                shutil.copyfileobj(source, target, _BLOCK)
            if target.tell() != member.file_size:
                raise EOFError(f"{target.tell()} bytes of {member.file_size}")
        except _BROKEN as error:
            raise UserError(f"{path}: {member.filename!r} is damaged ({error})") from None


def _refused(members: list[zipfile.ZipInfo], packed: int, folder: Path) -> Iterator[str]:
    if len(members) > MEMBERS:
        yield f"has {len(members)} members; allowed: at most {MEMBERS}"
        return
    files = [member for member in members if not member.is_dir()]
    names, above = set(), {str(p) for m in files for p in PurePosixPath(m.filename).parents}
    for member in members:
        name, kind = member.filename, stat.S_IFMT(member.external_attr >> 16)
        if not _inside(name.removesuffix("/") if member.is_dir() else name):
            yield f"{name!r} leads out of the folder, or is no plain path"
        elif kind not in (0, stat.S_IFDIR if member.is_dir() else stat.S_IFREG):
            yield f"{name!r} is a link or another special file"
        elif name in names or (not member.is_dir() and name in above):
            yield f"{name!r} stands twice"
        elif member.flag_bits & 1 or member.compress_type not in _METHODS:
            yield f"{name!r} is encrypted, or packed otherwise than by deflate"
        names.add(name)
    size, free = sum(member.file_size for member in members), shutil.disk_usage(folder).free
    if size > RATIO * packed:
        yield f"says that it unpacks to {size} bytes; allowed: at most {RATIO} times its own size"
    elif size > free:
        yield f"unpacks to {size} bytes; {folder} has room for {free}"


def _inside(name: str) -> bool:
    """Whether a member's name is a relative path in its plainest form."""
    path = PurePosixPath(name)
    return (
        path.as_posix() == name
        and name != "."
        and not path.is_absolute()
        and ".." not in path.parts
        and not {"\\", ":", "\0"} & set(name)
        and all(len(part.encode(errors="surrogatepass")) <= 255 for part in path.parts)
    )
