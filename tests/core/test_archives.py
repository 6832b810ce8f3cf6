"""Zips: the same bytes every time; a hostile one is refused with one message."""

import os
import stat
import struct
import zipfile
import zlib

import pytest

from fitspace.core import archives
from fitspace.core.errors import UserError


def _zip(path, *members, packing=zipfile.ZIP_DEFLATED):
    """Write members: (name, content), or with a mode (name, content, mode)."""
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content, *mode in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = packing
            info.external_attr = (mode[0] if mode else stat.S_IFREG | 0o644) << 16
            archive.writestr(info, content)


def _declared(path, size):
    """A member whose size is another in the directory at the zip's end, and before its content."""
    _zip(path, ("a", b"content"))
    old, new = struct.pack("<I", 7), struct.pack("<I", size)
    content = path.read_bytes()
    at = content.index(b"PK\x01\x02")
    head, tail = content[:at], content[at:]
    path.write_bytes(head[:22] + new + head[26:] + tail[:24] + new + tail[28:])
    assert tail[24:28] == head[22:26] == old


def _encrypted(path):
    _zip(path, ("a", b"content"))
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


def _flipped(path):
    _zip(path, ("a", os.urandom(1000)))
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)


def _cut(path):
    _zip(path, ("a", os.urandom(1000)))
    path.write_bytes(path.read_bytes()[:600])


LINK = stat.S_IFLNK | 0o777
HOSTILE = {
    "a path above": (lambda p: _zip(p, ("../evil", b"x")), "leads out of the folder"),
    "a path above, from within": (lambda p: _zip(p, ("a/../../evil", b"x")), "leads out"),
    "an absolute path": (lambda p: _zip(p, ("/evil", b"x")), "leads out"),
    "a path of Windows": (lambda p: _zip(p, ("..\\evil", b"x")), "leads out"),
    "a drive": (lambda p: _zip(p, ("C:evil", b"x")), "leads out"),
    "a path in two spellings": (lambda p: _zip(p, ("a//b", b"x")), "no plain path"),
    "a name too long": (lambda p: _zip(p, ("a" * 300, b"x")), "no plain path"),
    "a link": (lambda p: _zip(p, ("a", b"/etc", LINK)), "is a link"),
    "a link and a file behind it": (
        lambda p: _zip(p, ("a", b"..", LINK), ("a/evil", b"x")), "'a' is a link"),
    "a device": (lambda p: _zip(p, ("a", b"", stat.S_IFCHR | 0o644)), "special file"),
    "a name twice": (lambda p: _zip(p, ("a", b"x"), ("a", b"y")), "'a' stands twice"),
    "a file that is a folder too": (lambda p: _zip(p, ("a", b"x"), ("a/b", b"y")), "stands twice"),
    "a huge size that is said": (lambda p: _declared(p, 2**32 - 2), "at most 100 times its own"),
    "a size that is not the content's": (lambda p: _declared(p, 70), "is damaged"),
    "a bomb": (lambda p: _zip(p, ("a", bytes(10_000_000))), "at most 100 times its own"),
    "encrypted": (_encrypted, "is encrypted"),
    "another packing": (lambda p: _zip(p, ("a", b"x"), packing=zipfile.ZIP_LZMA), "by deflate"),
    "a byte changed on the way": (_flipped, "is damaged"),
    "cut short": (_cut, "not a zip that can be read"),
    "no zip": (lambda p: p.write_text("PK, but no zip"), "not a zip that can be read"),
    "a folder": (lambda p: p.mkdir(), "no such file; expected a zip"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_zip_is_refused_with_one_message(tmp_path, case):
    make, message = HOSTILE[case]
    path, folder = tmp_path / "in" / "hostile.zip", tmp_path / "out" / "folder"
    path.parent.mkdir()
    folder.mkdir(parents=True)
    make(path)
    with pytest.raises(UserError) as error:
        archives.unpack(path, folder)
    (problem,) = error.value.problems
    assert problem.startswith(f"{path}: ") and message in problem
    assert [p for p in (tmp_path / "out").rglob("*") if p.name == "evil"] == []
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["folder"]


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    _zip(tmp_path / "a.zip", ("a", b"x" * 100))
    usage = archives.shutil._ntuple_diskusage(10**6, 10**6, 99)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="unpacks to 100 bytes; .* has room for 99"):
        archives.unpack(tmp_path / "a.zip", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_what_is_written_is_unpacked_and_other_tools_read_it(tmp_path):
    (tmp_path / "file").write_bytes(os.urandom(3_000_000))
    files = {"b/c/file": tmp_path / "file", "a text": b"text", "\u00e9.txt": b"", ".hidden/x": b"x"}
    archives.write(tmp_path / "a.zip", files)
    (tmp_path / "out").mkdir()
    archives.unpack(tmp_path / "a.zip", tmp_path / "out")
    for name, content in files.items():
        expected = content if isinstance(content, bytes) else content.read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == expected
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.testzip() is None and archive.namelist() == sorted(files)


def test_equal_content_gives_equal_bytes(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"content")
    second.write_bytes(b"content")
    os.utime(second, (0, 0))
    second.chmod(0o600)
    archives.write(tmp_path / "a.zip", {"x": first, "y": b"y"})
    archives.write(tmp_path / "b.zip", {"y": b"y", "x": second})
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert {m.date_time for m in archive.infolist()} == {archives.STAMP}


def test_a_zip_that_breaks_off_leaves_the_one_before(tmp_path):
    path = tmp_path / "a.zip"
    archives.write(path, {"x": b"first"})
    before = path.read_bytes()
    with pytest.raises(FileNotFoundError):
        archives.write(path, {"x": b"second", "y": tmp_path / "missing"})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_a_bomb_that_lies_about_its_size_writes_no_more_than_it_said(tmp_path):
    """A member is said to have 100 bytes and unpacks to fifty million."""
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    content = packed.compress(bytes(50_000_000)) + packed.flush()
    path, size = tmp_path / "a.zip", struct.pack("<I", len(content))
    _zip(path, ("a", bytes(100)))
    honest = path.read_bytes()
    local, directory = honest[:31], bytearray(honest[honest.index(b"PK\x01\x02") :])
    end = directory.index(b"PK\x05\x06")
    directory[20:24] = size
    directory[end + 16 : end + 20] = struct.pack("<I", len(local) + len(content))
    path.write_bytes(local[:18] + size + local[22:] + content + directory)
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("a").compress_size == len(content) > 40_000
    archives.unpack(path, tmp_path)
    assert (tmp_path / "a").read_bytes() == bytes(100)
