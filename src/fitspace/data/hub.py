"""Image data sets of the Hugging Face hub, read as image folders.

Images and captions are fetched, never code. A copy on this machine is laid out once as a folder
that :mod:`fitspace.data.folder` reads: image and metadata files stand there as links. Data sets
kept as Parquet files, which need ``pyarrow``, are written out.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from fitspace.core import hub
from fitspace.core.errors import UserError
from fitspace.core.files import digest, read_json
from fitspace.data.folder import IMAGES, METADATA
from fitspace.data.layout import of_words

if TYPE_CHECKING:
    from fitspace.study import Task

LAID_OUT = Path("results/.cache/hub")
READING = 2  # raised when a copy is read to other examples
MOST_PROBLEMS = 20
_NOTES = ".notes.json"  # in a folder laid out: what was left out of it
_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic",
    ".heif",
)  # fmt: skip
_KINDS = (*_SUFFIXES, *(s.upper() for s in _SUFFIXES), ".parquet")


def identity(task: Task) -> dict[str, Any]:
    """Data set, commit and folder, and how they are read: what determines the examples.

    Raises
    ------
    NotHere : no copy on this machine.
    """
    name = task.dataset.partition("@")[0]
    found = {"hub": name, "commit": _copy(task).name, "folder": task.folder or ""}
    if task.dreambooth is None:  # whose images are taken as they come
        found["reading"] = READING
    return found | _columns_named(task)


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
    if not _has_images(copy / (task.folder or "")):
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
    told = task.dreambooth is None
    reading = digest([READING, told, _columns_named(task)])[:8]
    inside = f"{(task.folder or 'all').replace('/', '--')}~{reading}"
    out = LAID_OUT / name / copy.name / inside
    if not out.exists():
        _lay_out(copy / (task.folder or ""), task, out)
    return out


def notes(out: Path) -> list[str]:
    """What was left out of a folder that was laid out."""
    return read_json(out / _NOTES, list)


def title(task: Task) -> str:
    """What a task's data set, or its folder of it, is called."""
    name = PurePosixPath(task.folder or task.dataset.partition("@")[0]).name
    return name.replace("_", " ")


def _columns_named(task: Task) -> dict[str, str]:
    keys = ("image_column", "caption_column")
    return {key: value for key in keys if (value := getattr(task, key)) is not None}


def _named(task: Task) -> str:
    return f"data set {task.dataset!r}" + (f", folder {task.folder!r}" if task.folder else "")


def _copy(task: Task) -> Path:
    copy = hub.cached(task.dataset, _wanted(task), kind="dataset")
    if copy is None or not _has_images(copy / (task.folder or "")):
        raise hub.NotHere(f"{_named(task)} is not on this machine; {hub.CURE}")
    return copy


def _wanted(task: Task) -> list[str]:
    inside = f"{task.folder}/" if task.folder else ""
    return [f"{inside}*{name}" for name in (*_KINDS, *METADATA)]


def _files(source: Path) -> Iterator[PurePosixPath]:
    """Every file of a copy, a link to its content each, by its path from there on."""
    for parent, folders, files in os.walk(source):
        folders.sort()
        inside = PurePosixPath(Path(parent).relative_to(source).as_posix())
        yield from (inside / file for file in sorted(files))


def _has_images(source: Path) -> bool:
    return any(path.suffix.lower() in (*_SUFFIXES, ".parquet") for path in _files(source))


def _lay_out(source: Path, task: Task, out: Path) -> None:
    """Make the image folder ``out``, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    found = list(_files(source))
    images = [path for path in found if IMAGES.search(path.name)]
    shards = [path for path in found if path.suffix == ".parquet"]
    try:
        if shards:
            done = _unpacked(source, shards, task, temporary)
            done += _left_out("beside the Parquet files", images)
        else:
            done = []
            for path in (*images, *(path for path in found if path.name in METADATA)):
                _link(source / path, temporary / path)
        (temporary / _NOTES).write_text(json.dumps(done), encoding="utf-8")
        with contextlib.suppress(OSError):  # another process was first
            temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _left_out(where: str, paths: Iterable[PurePosixPath]) -> list[str]:
    names = [repr(str(path)) for path in paths]
    shown = ", ".join(names[:5]) + ", ..." * (len(names) > 5)
    return [f"{where}, left out: {shown} ({len(names)} in all)"] if names else []


def _link(path: Path, target: Path) -> None:
    """A hard link to what a file of the cache, itself a link, is; a copy where none can be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    real = os.path.realpath(path)
    try:
        os.link(real, target)
    except OSError:
        shutil.copyfile(real, target)


# Parquet, as the ``datasets`` library writes it


@dataclass
class _Columns:
    """Which columns of a shard are read: of labels the class names say what is told."""

    image: str
    caption: str | None
    classes: list[str] | None
    unused: list[str] = field(default_factory=list)


def _unpacked(source: Path, shards: list[PurePosixPath], task: Task, out: Path) -> list[str]:
    """Write out all shards, images and captions; returns what there is to note.

    Where Parquet files are named after splits, others (corrupted copies, say) do not count.

    Raises
    ------
    UserError : files that are not read, and every row without an image or a caption.
    """
    splits = {path: of_words(path.parts) for path in shards}
    done = []
    if any(splits.values()):
        done += _left_out("not named after a split", [p for p, s in splits.items() if not s])
        splits = {path: split for path, split in splits.items() if split}
    homes = sorted({_home(path) for path in splits})
    if len(homes) > 1:
        raise UserError(
            f"{_named(task)}: Parquet files of several configurations: {', '.join(homes)}; "
            "allowed: the key folder with one of them"
        )
    if "test" not in splits.values() and any(splits.values()):
        done.append("no Parquet file of held-out images: some are held out by a hash of names")
        splits = dict.fromkeys(splits, "")
    rows, problems, unused = [], [], set()
    for path, split in splits.items():
        columns = _Columns("", None, None)
        for row, problem in _rows(source / path, path.with_suffix(""), task, out, columns):
            if problem:
                problems.append(f"{path}: {problem}")
            else:
                rows.append(row | {"split": split})
        unused |= set(columns.unused)
    if problems:
        more = len(problems) - MOST_PROBLEMS
        said = problems[:MOST_PROBLEMS] + ([f"and {more} more rows"] if more > 0 else [])
        raise UserError(f"{_named(task)}: {problem}" for problem in said)
    if unused:
        done.append(f"columns not used: {', '.join(map(repr, sorted(unused)))}")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (out / METADATA[0]).write_text(text, encoding="utf-8")
    return done


def _home(path: PurePosixPath) -> str:
    """The folder of a shard, but for one named after its split."""
    parent = path.parent
    return str(parent.parent if of_words(parent.parts[-1:]) else parent)


def _rows(
    shard: Path, inside: PurePosixPath, task: Task, out: Path, columns: _Columns
) -> Iterator[tuple[dict[str, str], str | None]]:
    """Write out a shard's images; of each row its record, or what is wrong with it."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"{shard}: images in Parquet files are read with pyarrow; run: pip install pyarrow"
        ) from None
    try:
        file = parquet.ParquetFile(shard)
        vars(columns).update(vars(_columns(shard, file.schema_arrow, task)))
        (out / inside).mkdir(parents=True, exist_ok=True)
        wanted = [name for name in (columns.image, columns.caption) if name]
        number = 0
        for batch in file.iter_batches(256, columns=wanted):
            for record in batch.to_pylist():
                told = _told(record.get(columns.caption), columns)
                content, path = _content(record[columns.image])
                if content is None:
                    yield {}, f"row {number}: column {columns.image!r}: no image"
                elif told is None:
                    said = f"row {number}: column {columns.caption!r}"
                    value = repr(record[columns.caption])[:80]
                    yield {}, f"{said}: {value}; allowed: {_allowed(columns)}"
                else:
                    suffix = PurePosixPath(path).suffix
                    suffix = suffix if IMAGES.fullmatch(suffix) else ".jpg"
                    name = inside / f"{number:06d}{suffix}"
                    (out / name).write_bytes(content)
                    yield {"file_name": str(name), "text": told}, None
                number += 1
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{shard}: cannot be read as Parquet: {reason}") from None


def _content(image: Any) -> tuple[bytes | None, str]:
    if not isinstance(image, dict) or not isinstance(image.get("bytes"), bytes):
        return None, ""
    return image["bytes"] or None, str(image.get("path") or "")


def _told(value: Any, columns: _Columns) -> str | None:
    """What is told of an image whose caption is ``value``; None where that is no caption."""
    if columns.caption is None:
        return ""
    if columns.classes is None:
        return value if isinstance(value, str) else None
    known = type(value) is int and 0 <= value < len(columns.classes)
    return columns.classes[value].replace("_", " ") if known else None


def _allowed(columns: _Columns) -> str:
    if columns.classes is None:
        return "one text an image"
    return f"a class from 0 to {len(columns.classes) - 1}"


def _columns(shard: Path, schema: Any, task: Task) -> _Columns:
    """The columns to read: as the study names them, else the only ones of their kind.

    Raises
    ------
    UserError : none, or several and the study names none.
    """
    allowed = (
        f"{shard}: allowed: Parquet files of the datasets library with an image and a text, "
        "caption or class column"
    )
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        kinds = {n: f["_type"] if isinstance(f, dict) else "List" for n, f in features.items()}
        names = {
            n: [str(c) for c in features[n]["names"]] for n in kinds if kinds[n] == "ClassLabel"
        }
    except (KeyError, ValueError, TypeError):
        raise UserError(allowed) from None
    kinds = {name: kind for name, kind in kinds.items() if name in schema.names}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    told = [n for n in ("text", "caption") if n in kinds] or [n for n in names if n in kinds]
    if not images or not (told or task.caption_column or task.dreambooth):
        raise UserError(allowed + f"; its columns: {', '.join(kinds) or 'none'}")
    image = _chosen(shard, "image_column", task.image_column, images, images)
    caption = None
    if task.dreambooth is None:
        caption = _chosen(shard, "caption_column", task.caption_column, told, [*kinds])
    unused = [name for name in schema.names if name not in (image, caption)]
    return _Columns(image, caption, names.get(caption), unused)


def _chosen(shard: Path, key: str, named: str | None, found: list[str], all_: list[str]) -> str:
    if named is not None:
        if named not in all_:
            raise UserError(f"{key}: {named!r}: {shard} has none; allowed: {', '.join(all_)}")
        return named
    if len(found) > 1:
        raise UserError(
            f"{key}: missing; {shard} has several: {', '.join(found)}; allowed: one of them"
        )
    return found[0]
