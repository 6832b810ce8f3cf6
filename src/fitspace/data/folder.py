"""A folder of captioned images: a user's own, or one that a hub data set was laid out as.

The conventions are those of Hugging Face's ``imagefolder``: a ``metadata.jsonl`` or ``.csv``, in
the folder or in sub-folders, whose column ``file_name`` holds a path from there on and ``text``
(else ``caption``) what it shows; without one the folder that an image lies in says it; folders
called ``train`` and ``test`` are splits (:mod:`fitspace.data.layout`). Three columns are ours:
``split`` (train or test), ``group`` and ``label``, what a class-conditional base is told instead.
What cannot be read soundly is an error, what can be converted soundly is converted and noted.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import reprlib
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from fitspace.core.errors import UserError
from fitspace.core.files import digest
from fitspace.core.hashes import hashes
from fitspace.data import layout
from fitspace.data.examples import HELD_OUT_PERCENT, Example, Outline, split_of
from fitspace.data.pixels import ALLOWED_IMAGE, CROPPED, How, Unusable, load_image

METADATA = ("metadata.jsonl", "metadata.csv")
_INNER_METADATA = tuple(f"/{name}" for name in METADATA)
MAX_CAPTION_BYTES = 10_000

_OPTIONAL = ("split", "group", "label")
_COLUMNS = ("file_name", "text", "caption", *_OPTIONAL)
_ALLOWED_COLUMNS = "allowed: file_name and text (or caption), optionally split, group and label"
IMAGES = re.compile(
    r"\.(a?png|jpe?g|jfif|mpo|webp|gif|bmp|tiff?|avif|hei[cf]|jp2|jxl|svg|ico|psd|tga|p[gp]m)$",
    re.I,
)
# Pictures of kinds that are never read: named, so that nobody takes them for part of the task.
_OTHERS = re.compile(
    r"\.(mov|mp4|m4v|avi|mkv|webm|3gp|dng|cr[23]|nef|arw|raf|orf|rw2|pdf|zip)$", re.I
)
# Names of which nothing has to be looked at twice.
_PLAIN = re.compile(r"[\w -][\w .-]*(/[\w -][\w .-]*)*")
_HALVES = re.compile("[\ud800-\udfff]")  # of surrogate pairs
# Soft hyphen, byte order mark and the like; the joiners that emoji and Persian need stay.
_INVISIBLE = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u200b\u2060\ufeff]")

_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 200


@dataclass(slots=True)
class _Row:
    """An image by its path from the folder on, and what is said of it in a line of ``where``."""

    where: Path
    line: int
    name: str
    caption: str
    split: str | None = None
    group: str = ""
    label: str = ""

    def place(self, base: Path) -> str:
        """Where to look for what is wrong with it."""
        if not self.line:
            return str(base / self.name)
        return f"{self.where}:{self.line}: file_name {_brief.repr(self.name)}"


@dataclass
class _Reading:
    """A folder's images, sorted by name, and what was noted of it and is wrong with it.

    ``metadata`` are its metadata files; ``by_folder``: folders say which images are held out.
    """

    base: Path
    metadata: list[Path]
    rows: list[_Row] = field(default_factory=list)
    by_folder: bool = False
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def examples(
    folder: Path, size: int, root: Path = Path(), published: str = "", how: How = CROPPED
) -> tuple[list[Example], list[str]]:
    """Read a folder's images as sRGB squares of ``size`` pixels, sorted by file name.

    A relative ``folder`` lies in ``root``, the project. Images without a given split follow
    their group's, else its hash; at least one is held out. The second value notes every
    conversion as ``name: what was done``.

    ``published``: the name of a published set, which its user cannot mend. An image that nothing
    is said of is left out of it with a note, where else it is an error; and where nothing is said
    of any, all are told this name.

    Raises
    ------
    UserError : every unusable line, caption and image at once.
    """
    found, notes = stream(folder, size, root, published, how)
    return sorted(found, key=lambda example: example.name), notes


def stream(
    folder: Path, size: int, root: Path = Path(), published: str = "", how: How = CROPPED
) -> tuple[Iterator[Example], list[str]]:
    """As :func:`examples`, one after another, those for training first; then by name.

    The notes are whole when the last example was taken, and errors of images are raised then: from
    the first unusable image on no example is given.
    """
    read = _read(folder, root, published)
    notes: list[str] = []
    return _decoded(read, size, how, f"reading {folder}", notes), notes


@dataclass(frozen=True)
class Looked:
    """An image by name: decoded, by what was ``done``, or refused, ``where`` and why."""

    name: str
    example: Example | None
    done: list[str]
    where: str = ""
    problem: str = ""


def look(
    folder: Path,
    size: int,
    root: Path = Path(),
    published: str = "",
    captions: bool = True,
    how: How = CROPPED,
) -> tuple[Iterator[Looked], list[str]]:
    """Every image of a folder as :func:`stream`, or without captions :func:`pictures`, has it.

    Unusable ones too. The second value are the notes on the folder itself.

    Raises
    ------
    UserError : every problem but those of images.
    """
    if captions:
        read = _sound(folder, root, published)
        return _each(read, size, how, f"looking at {folder}"), read.notes
    base, names = _pictures(Path(folder), Path(root))
    rows = [_Row(base, 0, name, "", "train", name) for name in names]
    return _each(_Reading(base, [], rows), size, how, f"looking at {folder}"), []


def _each(read: _Reading, size: int, how: How, description: str) -> Iterator[Looked]:
    from tqdm import tqdm

    rows = sorted(read.rows, key=lambda row: (row.split != "train", row.name))
    for row in tqdm(rows, desc=description, disable=None):
        caption, cleaned = clean_caption(row.caption)
        label, label_cleaned = clean_caption(row.label, "label")
        try:
            image, converted = load_image(read.base / row.name, size, how)
        except Unusable as error:
            yield Looked(row.name, None, [], row.place(read.base), str(error))
            continue
        example = Example(row.name, caption, row.group, row.split, image, label)
        yield Looked(row.name, example, cleaned + label_cleaned + converted)


def _decoded(
    read: _Reading, size: int, how: How, description: str, notes: list[str]
) -> Iterator[Example]:
    problems, done = list(read.problems), []
    for looked in _each(read, size, how, description):
        if looked.example is None:
            problems.append(f"{looked.where}: {looked.problem}")
        done += [(looked.name, what) for what in looked.done]
        if not problems:
            yield looked.example
    if problems:
        raise UserError(problems)
    done.sort(key=lambda note: note[0])
    notes += read.notes + [f"{name}: {what}" for name, what in done]


def outline(folder: Path, root: Path = Path(), published: str = "") -> Outline:
    """What can be said of a folder before an image of it is decoded.

    Raises
    ------
    UserError : every problem of the metadata and every missing file at once.
    """
    read = _sound(folder, root, published)
    told = {clean_caption(row.label or row.caption)[0] for row in read.rows}
    held_out = {row.group for row in read.rows if row.split == "test"}
    return Outline(len(read.rows), len(held_out), frozenset(told), tuple(read.notes))


def content_digest(folder: Path, root: Path = Path(), published: str = "") -> str:
    """SHA-256 (hex) over the metadata and every image it names; decodes no image.

    Raises
    ------
    UserError : every problem of the metadata and every missing file at once.
    """
    read = _sound(folder, root, published)
    images = _hashed(read.base, [row.name for row in read.rows])
    said = _hashed(read.base, [p.relative_to(read.base).as_posix() for p in read.metadata])
    if list(said) in ([name] for name in METADATA):
        ((name, metadata),) = said.items()
        content = {"name": name, "metadata": metadata, "images": images}
        return digest(content | ({"splits": "folders"} if read.by_folder else {}))
    return digest({"metadata": said, "images": images})


def _sound(folder: Path, root: Path, published: str) -> _Reading:
    read = _read(folder, root, published)
    if read.problems:
        raise UserError(read.problems)
    return read


def _hashed(base: Path, names: Iterable[str]) -> dict[str, str]:
    paths = {name: base / name for name in names}
    try:
        found = hashes(paths.values())
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from None
    return {name: found[path] for name, path in paths.items()}


def pictures(
    folder: Path, size: int, root: Path = Path(), how: How = CROPPED
) -> tuple[list[Example], list[str]]:
    """Every image in a folder, as :func:`examples` but without captions: metadata is not read.

    All are for training, each in a group of its own.

    Raises
    ------
    UserError : no image, and every unusable one at once.
    """
    base, names = _pictures(Path(folder), Path(root))
    rows = [_Row(base, 0, name, "", "train", name) for name in names]
    notes: list[str] = []
    return list(_decoded(_Reading(base, [], rows), size, how, f"reading {folder}", notes)), notes


def pictures_digest(folder: Path, root: Path = Path()) -> str:
    """SHA-256 (hex) over every image in a folder and its name; decodes none.

    Raises
    ------
    UserError : no such folder, no image in it, or one that cannot be read.
    """
    base, names = _pictures(Path(folder), Path(root))
    return digest(_hashed(base, names))


def picture_names(folder: Path, root: Path = Path()) -> list[str]:
    """The images in a folder, by name. Raises UserError as :func:`pictures_digest`."""
    return _pictures(Path(folder), Path(root))[1]


def names(folder: Path, root: Path = Path(), published: str = "") -> list[str]:
    """The captioned images of a folder, by name. Raises UserError as :func:`outline`."""
    return [row.name for row in _sound(folder, root, published).rows]


def _pictures(folder: Path, root: Path) -> tuple[Path, list[str]]:
    base = _checked(folder, root, "a folder of images")
    names = sorted(name for name in _walk(base) if IMAGES.search(name))
    if not names:
        raise UserError(f"{folder}: no images; allowed: a folder with at least one")
    files = _Files(base)
    wrong = {name: files.problem(name) for name in names}
    if problems := [f"{base / name}: {why}" for name, why in wrong.items() if why]:
        raise UserError(problems)
    return base, names


def clean_caption(text: str, key: str = "caption") -> tuple[str, list[str]]:
    """A caption (or label) as one line of NFC text without invisible characters, and what was
    changed, as ``key: what``."""
    done = []
    for what, changed in (
        ("control or zero-width characters removed", lambda t: _INVISIBLE.sub("", t)),
        ("white space collapsed", lambda t: " ".join(t.split())),
        ("put in Unicode normal form C", lambda t: unicodedata.normalize("NFC", t)),
    ):
        before, text = text, changed(text)
        if text != before:
            done.append(f"{key}: {what}")
    return text, done


# The folder


def _read(folder: Path, root: Path, published: str) -> _Reading:
    """What a folder holds, as metadata says it, else as the names of its folders do."""
    folder, root = Path(folder), Path(root)
    base = _checked(folder, root, "a folder of images with captions")
    files = list(_walk(base))
    names = sorted(name for name in files if IMAGES.search(name))
    metadata = _metadata_files(folder, base, files)
    said = layout.read(names)
    read = _Reading(base, metadata)
    if others := sorted(name for name in files if _OTHERS.search(name)):
        read.notes.append(f"not read, beside the images: {_counted(others)}")
    if metadata:
        every, sound = _read_metadata(read, folder, names, published)
    else:
        every, sound = _read_names(read, folder, said, names, published), True
    _split(read, folder, said, every, sound)
    read.rows.sort(key=lambda row: row.name)
    return read


def _read_metadata(
    read: _Reading, folder: Path, names: list[str], published: str
) -> tuple[list[_Row], bool]:
    """The rows of all metadata files, and whether none of them is wrong but for a missing image."""
    files, taken, unused = _Files(read.base), {}, set()
    present: dict[str, list[str]] = {}
    for name in names:
        present.setdefault(_key(name), []).append(name)
    every, sound = [], True
    for metadata in read.metadata:
        parse = _json_records if metadata.suffix == ".jsonl" else _csv_records
        records, problems = parse(_text(metadata))
        inside, sound = metadata.parent.relative_to(read.base), sound and not problems
        for line, record in records:
            row, found = _row(metadata, line, record)
            if row.name and inside != Path():
                alone = row.group == row.name
                row.name = f"{inside.as_posix()}/{row.name}"
                row.group = row.name if alone else row.group
            key = _key(row.name)
            if row.name and key in taken:
                first = taken[key]
                of = "" if first.where == metadata else f" of {first.where}"
                found.append(
                    f"file_name {_brief.repr(row.name)}: already named on line {first.line}{of}; "
                    "allowed: each file once, regardless of case and Unicode form"
                )
            elif row.name:
                taken[key] = row
                missing = files.problem(row.name, *present.get(key, [])[:1])
                if missing:
                    problems.append(f"{line}: file_name {_brief.repr(row.name)}: {missing}")
                else:
                    read.rows.append(row)
            every.append(row)
            problems += [f"{line}: {problem}" for problem in found]
            sound = sound and not found
        read.problems += [f"{metadata}:{problem}" for problem in problems]
        unused |= {key for _, record in records for key in record}
    named = {row.name for row in every}
    # A file alone with its name but for case or Unicode form is the one that was meant.
    extra = {n for k, ns in present.items() for n in ns if k not in taken or len(ns) > 1} - named
    which = " or ".join(dict.fromkeys(path.name for path in read.metadata))
    if extra and not published:
        read.problems.append(
            f"{folder}: images without a caption: {_counted(sorted(extra))}; "
            f"allowed: only images that {which} names"
        )
    elif extra:
        read.notes.append(f"not in {which}, left out: {_counted(sorted(extra))}")
    if unused := sorted(unused - set(_COLUMNS)):
        read.notes.append(f"{which}: columns not used: {_first(unused, 10)}")
    bare = sorted(row.name for row in read.rows if not row.label)
    if 0 < len(bare) < len(read.rows):
        read.notes.append(f"{which}: no label, so that the caption is the class: {_counted(bare)}")
    return every, sound


def _first(names: list[str], count: int) -> str:
    return ", ".join(map(_brief.repr, names[:count])) + ", ..." * (len(names) > count)


def _counted(names: list[str]) -> str:
    return f"{_first(names, 5)} ({len(names)} in all)"


def _read_names(
    read: _Reading, folder: Path, said: layout.Layout, names: list[str], published: str
) -> list[_Row]:
    """The rows of images that no metadata file tells of: their folders do."""
    inside = [name for name in names if name in said.splits] if said.splits else names
    told = {name: said.classes[name].replace("_", " ") for name in inside if name in said.classes}
    if not told and (not published or not inside):
        raise UserError(
            f"{folder}: no metadata file; allowed: exactly one of {', '.join(METADATA)}, or images "
            "in folders that are called what they show"
        )
    if told:
        counts = Counter(told.values())
        listed = ", ".join(f"{name!r} {count}" for name, count in counts.most_common(10))
        more = ", ..." * (len(counts) > 10)
        read.notes.append(f"no metadata file, captions are names of folders: {listed}{more}")
    else:
        told = dict.fromkeys(inside, published)
        read.notes.append(f"no captions: all {len(told)} images are told {published!r}")
    if strays := [name for name in names if name not in told]:
        where = "the folders of splits and classes" if said.splits else "the folders of classes"
        if published:
            read.notes.append(f"outside {where}, left out: {_counted(strays)}")
        else:
            read.problems.append(
                f"{folder}: images without a caption: {_counted(strays)}; allowed: only images in "
                f"{where}"
            )
    read.rows = [_Row(folder, 0, name, caption, group=name) for name, caption in told.items()]
    return list(read.rows)


def _metadata_files(folder: Path, base: Path, files: list[str]) -> list[Path]:
    """Those of the folder itself and of its sub-folders; one in each at most."""
    there = [base / name for name in METADATA if os.path.lexists(base / name)]
    there += [base / n for n in sorted(files) if "/" in n and n.endswith(_INNER_METADATA)]
    for first, second in zip(there, there[1:], strict=False):
        if first.parent == second.parent:
            where = str(folder / first.parent.relative_to(base))
            raise UserError(
                f"{where}: both {' and '.join(METADATA)}; allowed: exactly one of "
                f"{', '.join(METADATA)}"
            )
    for path in there:
        if not _inside(path, base) or not _is(stat.S_ISREG, path):
            raise UserError(f"{path}: leads outside the folder or is not a file; allowed: a file")
    return there


def _checked(folder: Path, root: Path, allowed: str) -> Path:
    """The folder, which is there and is no link that leads out of the project."""
    base = root / folder
    if not _is(stat.S_ISDIR, base):
        raise UserError(f"{folder}: no such folder; allowed: {allowed}")
    chosen_outside = folder.is_absolute() or ".." in folder.parts
    if not chosen_outside and not _inside(base, root):
        raise UserError(
            f"{folder}: a link leads outside the project, to {os.path.realpath(base)}; "
            "allowed: a folder inside it, or an absolute path"
        )
    return base


def _is(kind: Callable[[int], bool], path: Path) -> bool:
    try:
        return kind(path.stat().st_mode)
    except OSError:
        return False  # also of a name that is too long, where Path.is_file raises


def _inside(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        return content.decode("utf-8").removeprefix("\ufeff")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        bad = content[error.start : error.start + 1]
        raise UserError(f"{path}:{line}: {bad!r} is not UTF-8; allowed: UTF-8 text") from None


def _json_records(text: str) -> tuple[list[tuple[int, dict]], list[str]]:
    records, problems = [], []
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            record = json.loads(content, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            shown = f"{_brief.repr(content)}: {getattr(error, 'msg', error)}"
            problems.append(f"{line}: not valid JSON: {shown}; allowed: one JSON object a line")
            continue
        if isinstance(record, dict):
            records.append((line, record))
        else:
            problems.append(f"{line}: {_brief.repr(record)}; allowed: one JSON object a line")
    return records, problems


def _unique(pairs: list[tuple[str, object]]) -> dict:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a key stands twice")
    return record


def _csv_records(text: str) -> tuple[list[tuple[int, dict]], list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    records, problems, header, line = [], [], None, 1
    try:
        for cells in reader:
            if cells and header is None:
                header = cells
                needed = "file_name" in header and ("text" in header or "caption" in header)
                if not needed or len(set(header)) < len(header):
                    shown = f"header {_brief.repr(header)}"
                    return [], [f"{line}: {shown}; {_ALLOWED_COLUMNS}, each once, with commas"]
            elif cells and len(cells) != len(header):
                shown = f"{_brief.repr(cells)} has {len(cells)} cells"
                problems.append(f"{line}: {shown}; allowed: {len(header)}, as in the header")
            elif cells:
                records.append((line, dict(zip(header, cells, strict=True))))
            line = reader.line_num + 1
    except csv.Error as error:
        problems.append(f'{line}: not valid CSV: {error}; allowed: comma-separated, quoted by "')
    return records, problems


def _row(where: Path, line: int, record: dict) -> tuple[_Row, list[str]]:
    """A record's row, unusable values empty, and what is wrong with it."""
    text = "caption" if record.get("text") is None and "caption" in record else "text"
    checks = {
        "file_name": _name_problem,
        text: _caption_problem,
        "split": lambda s: None if s in ("", "train", "test") else "allowed: train or test",
        "group": lambda _: None,
        "label": lambda s: _caption_problem(s) if s else None,
    }
    values, problems = {}, []
    for key, check in checks.items():
        value = record.get(key)
        if key in _OPTIONAL and value is None:
            value = ""
        if key == "label" and type(value) is int:  # as data sets for classifiers have it
            value = str(value)
        if value is None and key not in record:
            problems.append(f"key {key!r} missing in {_brief.repr(record)}; {_ALLOWED_COLUMNS}")
        elif not isinstance(value, str) or _HALVES.search(value):
            problems.append(f"{key} {_brief.repr(value)}: allowed: Unicode text")
        elif problem := check(value):
            problems.append(f"{key} {_brief.repr(value)}: {problem}")
        else:
            values[key] = value
    name = values.get("file_name", "")
    name = name if not name or _PLAIN.fullmatch(name) else str(PurePosixPath(name))
    group = unicodedata.normalize("NFC", values.get("group", ""))
    split = values.get("split") or None
    label = values.get("label", "")
    return _Row(where, line, name, values.get(text, ""), split, group or name, label), problems


def _caption_problem(caption: str) -> str | None:
    invisible = {"Cc", "Cf", "Zs", "Zl", "Zp"}
    if all(unicodedata.category(c) in invisible for c in caption):
        return "empty; allowed: some visible text"
    if (length := len(caption.encode())) > MAX_CAPTION_BYTES:
        return f"{length} bytes; allowed: at most {MAX_CAPTION_BYTES} bytes of UTF-8"
    return None


# Files


def _key(name: str) -> str:
    """Equal for names that some file systems hold to be one."""
    return unicodedata.normalize("NFC", name.casefold())


def _name_problem(name: str) -> str | None:
    if _PLAIN.fullmatch(name):
        return None
    path, allowed = PurePosixPath(name), "allowed: a relative path inside the folder"
    if not path.parts:
        return f"empty; {allowed}"
    if any(unicodedata.category(c) == "Cc" for c in name):
        return f"holds control characters; {allowed}, without them"
    if path.is_absolute() or re.match("[A-Za-z]:", name):
        return f"an absolute path; {allowed}"
    if ".." in path.parts:
        return f"holds '..'; {allowed}"
    return f"holds a backslash; {allowed}, with '/'" if "\\" in name else None


class _Files:
    """The files of a folder, looked at once each: a link alone is followed."""

    def __init__(self, base: Path):
        self.base, self._inside = base, {}

    def problem(self, name: str, alike: str = "") -> str | None:
        """Why a file is no image to be opened; ``alike``: what stands there instead."""
        path = os.path.join(self.base, name)
        parent = os.path.dirname(path)
        if parent not in self._inside:
            self._inside[parent] = _inside(Path(parent), self.base)
        try:
            status = os.lstat(path)
            inside = self._inside[parent]
            if stat.S_ISLNK(status.st_mode):
                inside = inside and _inside(Path(path), self.base)
                status = os.stat(path) if inside else status
        except OSError:  # also of a name that is too long
            status, inside = None, self._inside[parent]
        if not inside:
            return "a link that leads outside the folder; allowed: a file inside it"
        if status is None or not stat.S_ISREG(status.st_mode):
            hint = f" (there is {alike!r}, of other case or Unicode form)" if alike else ""
            return f"no such file{hint}; allowed: an image in the folder"
        return None if status.st_size else f"0 bytes; {ALLOWED_IMAGE}"


def _walk(base: Path) -> Iterator[str]:
    """Every file in the folder, by its path from there; hidden files and folders do not count."""
    for parent, folders, files in os.walk(base):
        folders[:] = [f for f in folders if not f.startswith((".", "__"))]
        inside = os.path.relpath(parent, base) if parent != str(base) else ""
        for file in files:
            if not file.startswith("."):
                yield f"{inside}/{file}" if inside else file


# Splits


def _split(
    read: _Reading, folder: Path, said: layout.Layout, every: list[_Row], sound: bool
) -> None:
    """Give every row its split: that of its line, of its folder or of its group, else by hash."""
    where = str(read.metadata[0]) if len(read.metadata) == 1 else str(folder)
    by_folder = {row.name: split for row in every if (split := said.splits.get(row.name))}
    if by_folder and "test" not in by_folder.values() and not any(row.split for row in every):
        read.notes.append(
            f"no folder of held-out images: {HELD_OUT_PERCENT}% of the images are held "
            "out, by a hash of their names"
        )
        by_folder = {}
    read.by_folder = bool(by_folder)
    if by_folder:
        folders = ", ".join(f"{name!r} is {split}" for name, split in sorted(said.folders.items()))
        read.notes.append(f"splits are those of the folders: {folders}")
    read.problems += [
        f"{row.where}:{row.line}: split {row.split!r}: its folder says {by_folder[row.name]!r}; "
        "allowed: one of the two"
        for row in every
        if row.split and row.split != by_folder.get(row.name, row.split)
    ]
    for row in every:
        row.split = row.split or by_folder.get(row.name)
    if sound:
        read.problems += _split_problems(every, where)
    splits, notes = _splits(every)
    read.notes += notes
    for row in every:
        row.split = splits[row.group]


def _splits(rows: list[_Row]) -> tuple[dict[str, str], list[str]]:
    """Group -> split: the one given for any of its images, else by hash, never none held out."""
    given = {row.group: row.split for row in rows if row.split}
    splits = {row.group: given.get(row.group) or split_of(row.group) for row in rows}
    free = splits.keys() - given.keys()
    if "test" in splits.values() or not free:
        return splits, []
    chosen = min(free, key=lambda group: hashlib.sha256(group.encode()).digest())
    note = f"{chosen}: held out, for its hash is the smallest and no other group's fell to test"
    return splits | {chosen: "test"}, [note]


def _split_problems(rows: list[_Row], where: str) -> list[str]:
    problems, given = [], {}
    for row in rows:
        if row.split and given.setdefault(row.group, row).split != row.split:
            problems.append(
                f"{row.where}:{row.line}: split {row.split!r}: group {_brief.repr(row.group)} is "
                f"in {given[row.group].split!r} on line {given[row.group].line}; "
                "allowed: one split for a group"
            )
    splits, _ = _splits(rows)
    counts = {s: sum(splits[row.group] == s for row in rows) for s in ("train", "test")}
    if not problems and (counts["train"] < 2 or counts["test"] < 1):
        problems.append(
            f"{where}: {counts['train']} train and {counts['test']} test images; allowed: at least "
            "2 train and 1 test (the columns split and group decide)"
        )
    return problems
