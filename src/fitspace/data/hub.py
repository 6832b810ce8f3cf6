"""Image data sets of the Hugging Face hub, read as image folders.

Images and captions are fetched, never code. A copy on this machine is laid out once as a folder
that :mod:`fitspace.data.folder` reads: image files stand there as links, and where there is no
metadata file the caption is the name of the sub-folder, as in Hugging Face's ``imagefolder``.
Data sets kept as Parquet files, which need ``pyarrow``, are written out.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from fitspace.core import hub
from fitspace.core.errors import UserError
from fitspace.data.folder import METADATA

if TYPE_CHECKING:
    from fitspace.study import Task

LAID_OUT = Path("results/.cache/hub")
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_KINDS = (*_IMAGES, *(s.upper() for s in _IMAGES), ".parquet")
_SPLITS = {"train": "train"} | dict.fromkeys(("test", "validation", "valid", "val", "dev"), "test")
_Row = tuple[str, str, str]  # file name, caption, split


def identity(task: Task) -> dict[str, str]:
    """Data set, commit and folder: what determines the examples.

    Raises
    ------
    NotHere : no copy on this machine.
    """
    name = task.dataset.partition("@")[0]
    return {"hub": name, "commit": _copy(task).name, "folder": task.folder or ""}


def fetch(task: Task) -> None:
    """Download a task's images, unless they are here.

    Raises
    ------
    UserError : no network, no such data set, or none of its files is read.
    """
    with contextlib.suppress(hub.NotHere):
        _copy(task)
        return
    copy = hub.fetch(task.dataset, _wanted(task), kind="dataset")
    if not _files(copy / (task.folder or "")):
        allowed = "allowed: a data set of image files or Parquet files"
        raise UserError(f"{_named(task)} has no images that are read; {allowed}")


def laid_out(task: Task) -> Path:
    """The image folder with a task's images, made from the copy on this machine.

    Raises
    ------
    UserError : no copy, or Parquet files that are not read.
    """
    copy = _copy(task)
    name = task.dataset.partition("@")[0].replace("/", "--")
    out = LAID_OUT / name / copy.name / (task.folder or "all").replace("/", "--")
    if not out.exists():
        _lay_out(copy / (task.folder or ""), task, out)
    return out


def _named(task: Task) -> str:
    return f"data set {task.dataset!r}" + (f", folder {task.folder!r}" if task.folder else "")


def _copy(task: Task) -> Path:
    copy = hub.cached(task.dataset, _wanted(task), kind="dataset")
    if copy is None or not _files(copy / (task.folder or "")):
        raise hub.NotHere(f"{_named(task)} is not on this machine; {hub.CURE}")
    return copy


def _wanted(task: Task) -> list[str]:
    inside = f"{task.folder}/" if task.folder else ""
    return [inside + name for name in (*(f"*{kind}" for kind in _KINDS), *METADATA)]


def _files(source: Path) -> list[Path]:
    """Files with images, in a fixed order.

    Where Parquet files are named after splits, others (corrupted copies, say) do not count.
    """
    found = sorted(source.rglob("*"))
    shards = [p for p in found if p.suffix == ".parquet"]
    named = [p for p in shards if _split(p.relative_to(source).parts)]
    return [p for p in found if p.suffix.lower() in _IMAGES] + (named or shards)


def _lay_out(source: Path, task: Task, out: Path) -> None:
    """Make the image folder ``out``, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        rows = []
        for path in _files(source):
            relative = PurePosixPath(path.relative_to(source).as_posix())
            if path.suffix == ".parquet":
                rows += _unpack(path, relative, temporary)
            else:
                _link(path, temporary / relative)
                rows.append((str(relative), _class_of(relative, task), _split(relative.parts[:1])))
        given = [source / name for name in METADATA if (source / name).exists()]
        for path in given:
            _link(path, temporary / path.name)
        if not given:
            _write_captions(rows, temporary / "metadata.csv")
        with contextlib.suppress(OSError):  # another process was first
            temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _link(path: Path, target: Path) -> None:
    """A hard link to what a file of the cache, itself a link, is; a copy where none can be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    real = os.path.realpath(path)
    try:
        os.link(real, target)
    except OSError:
        shutil.copyfile(real, target)


def _class_of(relative: PurePosixPath, task: Task) -> str:
    parents = relative.parts[:-1]
    if parents[:1] and _split(parents[:1]):
        parents = parents[1:]
    name = parents[-1] if parents else PurePosixPath(task.folder or task.dataset).name
    return name.partition("@")[0].replace("_", " ")


def _split(parts: tuple[str, ...]) -> str:
    """train or test, as names such as ``train``, ``validation-00000-of-00003.parquet`` say."""
    words = (part.partition(".")[0].partition("-")[0] for part in parts)
    return next((_SPLITS[word] for word in words if word in _SPLITS), "")


def _write_captions(rows: list[_Row], path: Path) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file_name", "text", "split"))
        writer.writerows(rows)


# Parquet, as the ``datasets`` library writes it


def _unpack(shard: Path, relative: PurePosixPath, out: Path) -> Iterator[_Row]:
    """Write out a shard's images; yields their names, captions (or class names) and split."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"{shard}: images in Parquet files are read with pyarrow; run: pip install pyarrow"
        ) from None
    file = parquet.ParquetFile(shard)
    image, caption, classes = _columns(shard, file.schema_arrow.metadata or {})
    split, inside = _split(relative.parts), relative.with_suffix("")
    (out / inside).mkdir(parents=True, exist_ok=True)
    number = 0
    for batch in file.iter_batches(256, columns=[image, caption]):
        pictures, captions = (batch.column(name).to_pylist() for name in (image, caption))
        for picture, told in zip(pictures, captions, strict=True):
            suffix = PurePosixPath(picture["path"] or "").suffix or ".jpg"
            name = inside / f"{number:06d}{suffix}"
            (out / name).write_bytes(picture["bytes"])
            yield str(name), classes[told].replace("_", " ") if classes else told, split
            number += 1


def _columns(shard: Path, metadata: dict[bytes, bytes]) -> tuple[str, str, list[str]]:
    """Names of the image's and the caption's column; class names where that holds labels."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        image = next(name for name, f in features.items() if f["_type"] == "Image")
        text = [name for name in ("text", "caption") if name in features]
        labels = [name for name, f in features.items() if f["_type"] == "ClassLabel"]
        told = (text + labels)[0]
        return image, told, [] if text else features[told]["names"]
    except (KeyError, ValueError, TypeError, StopIteration, IndexError):
        raise UserError(
            f"{shard}: allowed: Parquet files of the datasets library with an image and a text, "
            "caption or class column"
        ) from None
