"""Atomic writes, digests, canonical JSON, and JSON that somebody may have edited."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import hashlib
import json
import math
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fitspace.core.errors import UserError

Pathish = str | os.PathLike
_DTYPES = {"float16": "F16", "int64": "I64", "uint8": "U8"}  # of NumPy, as safetensors has them
IMAGES = {"images": "U8 n h h 3"}  # what `read_tensors` is to find where a stage wrote images
POINTER = b"version https://git-lfs"  # how a file begins that Git LFS has not put there yet
POINTER_CURE = "a pointer of Git LFS, not the file itself; run: git lfs pull"
DEPTH = 40  # what fitspace writes is nested less than ten deep


@contextlib.contextmanager
def replacing(path: Pathish) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success sync the file and rename it to ``path``.

    On an error the temporary file is removed and the old file at ``path`` stays. The suffix
    is kept, for libraries that choose a format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        with _named(path):
            yield temporary
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let write errors name the file: Python's often do not, and libraries in Rust raise
    `No space left on device (os error 28)` as exceptions of their own."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(path)) from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Pathish, content: bytes) -> None:
    """Write a file atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Pathish, content: str) -> None:
    """Write a text file atomically, as UTF-8 with the newlines it has."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Pathish, content: Any) -> None:
    """Write indented JSON atomically, with the keys in their given order."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(
    path: Pathish,
    kind: type = dict,
    *,
    what: str = "readable JSON",
    missing: str = "missing",
    finite: bool = True,
) -> Any:
    """Read a JSON file: a ``kind`` (dict or list) that can be hashed, printed and written.

    All numbers are finite (unless ``finite=False``: diffusers writes -Infinity into its
    configurations) and all text is valid Unicode. The message about any other file says that it
    is not ``what``, the message about a missing file says ``missing``.

    Raises
    ------
    UserError : a file that is missing or not as described.
    """
    path = Path(path)
    try:
        # Reading a pipe could wait for ever.
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: not {what} (not even a file)")
        return parse_json(path.read_bytes(), path, kind, what=what, finite=finite)
    except FileNotFoundError:
        raise UserError(f"{path}: {missing}") from None
    except OSError as error:
        raise UserError(f"{path}: not {what} ({error})") from None


def parse_json(
    content: str | bytes,
    where: Pathish,
    kind: type = dict,
    *,
    what: str = "readable JSON",
    finite: bool = True,
) -> Any:
    """Parse text or bytes as `read_json` does; errors name ``where`` the content comes from."""
    try:
        parsed = json.loads(content if isinstance(content, str) else content.decode("utf-8"))
        _sound(parsed, finite)
        if not isinstance(parsed, kind):
            raise ValueError(f"holds a {type(parsed).__name__}; needed: a {kind.__name__}")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not {what} ({error})") from None
    return parsed


def _sound(content: Any, finite: bool) -> None:
    """Raises ValueError for values that Python's JSON accepts and our files must not hold."""
    layer, depth = [content], 0
    while layer:
        depth += 1
        if depth > DEPTH:
            raise ValueError(f"nested more than {DEPTH} deep")
        inner: list[Any] = []
        for item in layer:
            if isinstance(item, str):
                if not item.isascii():
                    item.encode("utf-8")  # half a surrogate pair is no text
            elif isinstance(item, dict):
                inner += [*item, *item.values()]
            elif isinstance(item, list):
                inner += item
            elif finite and isinstance(item, float) and not math.isfinite(item):
                raise ValueError(f"{item} is no finite number")
            elif isinstance(item, int) and abs(item) > 2**63:
                raise ValueError("a whole number beyond 64 bits")
        layer = inner


@contextlib.contextmanager
def renewing(folder: Pathish) -> Iterator[Path]:
    """Yield a copy of a folder to change; on success it takes the folder's place, all at once.

    On an error the copy goes and the folder stays as it was; the error names the folder, not the
    copy. What a killed process left of its own copies, the next one removes.
    """
    folder = Path(os.path.realpath(folder) if os.path.islink(folder) else folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    start = f".{folder.name}.new-{socket.gethostname()}-"
    for left in folder.parent.glob(f"{glob.escape(start)}*"):
        if not _alive(left.name.removeprefix(start)):
            shutil.rmtree(left, ignore_errors=True)
    copy = folder.with_name(f"{start}{os.getpid()}")
    shutil.rmtree(copy, ignore_errors=True)
    try:
        if folder.exists():
            _copy(folder, copy)
        else:
            copy.mkdir()
        yield copy
        if folder.exists():
            _exchange(copy, folder)
        else:
            copy.rename(folder)
        _sync_folder(folder.parent)
    except UserError as error:
        raise UserError(p.replace(str(copy), str(folder)) for p in error.problems) from None
    except OSError as error:
        error.filename = str(error.filename or folder).replace(str(copy), str(folder))
        raise
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def _copy(folder: Path, to: Path) -> None:
    """Copy a folder. shutil.copytree would go on after an error and forget its number."""
    for place, folders, names in os.walk(folder):
        here = to / os.path.relpath(place, folder)
        here.mkdir(exist_ok=True)
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        for name in [*names, *links]:
            shutil.copy2(os.path.join(place, name), here / name, follow_symlinks=False)


def _alive(process: str) -> bool:
    if not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    return True


def _exchange(one: Path, other: Path) -> None:
    """Let two folders take each other's place in one step (renameat2(2)); else in three."""
    with contextlib.suppress(AttributeError, OSError):
        library, here = ctypes.CDLL(None, use_errno=True), -100  # AT_FDCWD
        if library.renameat2(here, os.fsencode(one), here, os.fsencode(other), 2) == 0:
            return
    between = one.with_name(f"{one.name}.old")
    other.rename(between)
    one.rename(other)
    between.rename(one)


class Growing:
    """Tensors of a safetensors file that grow along their first axis; see :func:`growing`."""

    def __init__(self, folder: Path):
        self._folder, self._parts = folder, {}

    def append(self, name: str, values: Any) -> None:
        """More rows of a tensor: a NumPy array, of the same dtype and row shape each time."""
        kind, shape = values.dtype, list(values.shape)
        if name not in self._parts:
            handle = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
            self._parts[name] = (handle, kind, [0, *shape[1:]])
        handle, first, grown = self._parts[name]
        if (kind, shape[1:]) != (first, grown[1:]):
            raise ValueError(f"{name}: {kind} {shape} after {first} {grown}")
        handle.write(values.reshape(-1).view("u1"))
        grown[0] += len(values)

    def write(self, path: Path) -> None:
        header, end = {}, 0
        order = sorted(self._parts, key=lambda n: (-self._parts[n][1].itemsize, n))
        for name in order:
            handle, dtype, shape = self._parts[name]
            handle.flush()
            start, end = end, end + handle.seek(0, os.SEEK_END)
            kind = _DTYPES[dtype.name]
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in order:
                handle = self._parts[name][0]
                handle.seek(0)
                shutil.copyfileobj(handle, file, 2**24)

    def close(self) -> None:
        for handle, *_ in self._parts.values():
            handle.close()


@contextlib.contextmanager
def growing(path: Pathish) -> Iterator[Growing]:
    """Write a safetensors file piece by piece, atomically: for what memory does not hold at once.

    The same bytes as ``safetensors``' ``save_file`` writes. While it grows its tensors are files
    without a name beside it.
    """
    with replacing(path) as temporary:
        pieces = Growing(temporary.parent)
        try:
            yield pieces
            pieces.write(temporary)
        finally:
            pieces.close()


@contextlib.contextmanager
def opened(path: Pathish, framework: str = "pt") -> Iterator[Any]:
    """A safetensors file, opened to read tensors of ``framework`` ("pt" or "np") from it.

    Raises
    ------
    UserError : a file that is missing or damaged, or lacks a tensor that is asked for.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework) as file:
            yield file
    except (SafetensorError, ArithmeticError, LookupError, OSError, TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error})") from None


def every_tensor(file: Any) -> dict[str, Any]:
    """All tensors of an `opened` file, by name."""
    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def read_tensors(
    path: Pathish, wanted: Mapping[str, str], framework: str = "pt", **sizes: int
) -> dict[str, Any]:
    """Read a safetensors file that holds the tensors ``wanted``: name -> "dtype size size ...".

    A size is a number or a name. A name stands for the same number everywhere: "U8 n h h 3" are
    square images; ``sizes`` gives the value of some names. No size is 0. The header is checked
    before any tensor is read.

    Raises
    ------
    UserError : as `opened`, or tensors with other names, of another dtype or of other sizes.
    """
    with opened(path, framework) as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        found = {name: [part.get_dtype(), *part.get_shape()] for name, part in parts.items()}
        needed = {n: [sizes.get(word, word) for word in f.split()] for n, f in wanted.items()}
        if not _fits(found, needed):
            raise UserError(f"{path}: holds {_listed(found)}; needed: {_listed(needed)}")
        return {name: file.get_tensor(name) for name in wanted}


def _fits(found: dict[str, list], needed: dict[str, list]) -> bool:
    """Whether tensors have the needed dtypes and sizes; a named size can be any number but 0."""
    named: dict[str, int] = {}
    if found.keys() != needed.keys():
        return False
    for name, (dtype, *shape) in needed.items():
        if found[name][0] != dtype or len(found[name]) != len(shape) + 1:
            return False
        for size, word in zip(found[name][1:], shape, strict=True):
            expected = int(word) if str(word).isdecimal() else named.setdefault(word, size)
            if size == 0 or size != expected:
                return False
    return True


def _listed(forms: dict[str, list]) -> str:
    said = [f"{name[:80]} ({' '.join(map(str, form[:9]))})" for name, form in forms.items()]
    return ", ".join([*said[:10], *["..."] * (len(said) > 10)]) or "nothing"


def remember(path: Pathish, facts: dict[str, Any]) -> None:
    """Write a cache that `remembered` reads. If it cannot be written, this only costs time."""
    with contextlib.suppress(OSError):
        write_json(path, facts | {"sha256": digest(facts)})


def remembered(path: Pathish) -> dict[str, Any]:
    """Read what `remember` wrote; empty if the file is missing or was changed."""
    try:
        facts = read_json(path)
    except UserError:
        return {}
    return facts if facts.pop("sha256", None) == digest(facts) else {}


def canonical(content: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, no NaN. Equal content gives equal text."""
    return json.dumps(
        content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest(content: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of ``content``."""
    return hashlib.sha256(canonical(content).encode("utf-8")).hexdigest()


def is_pointer(path: Pathish) -> bool:
    """Whether a file is what Git LFS keeps in git in place of the file itself."""
    try:
        with open(path, "rb") as file:
            return file.read(len(POINTER)) == POINTER
    except OSError:
        return False


def sha256(path: Pathish) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
