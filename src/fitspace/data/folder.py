"""A user's own captioned images: a folder with ``metadata.jsonl`` or ``metadata.csv``.

The convention is that of Hugging Face's ``imagefolder``: the column ``file_name`` holds a path
inside the folder and ``text`` (else ``caption``) what it shows. Three optional columns are ours:
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fitspace.core.errors import UserError
from fitspace.core.files import digest, sha256
from fitspace.data.examples import Example, split_of
from fitspace.data.pixels import ALLOWED_IMAGE, Unusable, load_image

METADATA = ("metadata.jsonl", "metadata.csv")
MAX_CAPTION_BYTES = 10_000

_OPTIONAL = ("split", "group", "label")
_COLUMNS = ("file_name", "text", "caption", *_OPTIONAL)
_ALLOWED_COLUMNS = "allowed: file_name and text (or caption), optionally split, group and label"
_SUFFIXES = re.compile(
    r"\.(a?png|jpe?g|jfif|mpo|webp|gif|bmp|tiff?|avif|hei[cf]|jp2|jxl|svg|ico|psd|tga|p[gp]m)$",
    re.I,
)
# Soft hyphen, byte order mark and the like; the joiners that emoji and Persian need stay.
_INVISIBLE = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u200b\u2060\ufeff]")

_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 200


@dataclass(frozen=True)
class _Row:
    line: int
    name: str
    caption: str
    split: str | None
    group: str
    label: str


def examples(folder: Path, size: int, root: Path = Path()) -> tuple[list[Example], list[str]]:
    """Read a folder's images as sRGB squares of ``size`` pixels, sorted by file name.

    A relative ``folder`` lies in ``root``, the project. Images without a given split follow
    their group's, else its hash; at least one is held out. The second value notes every
    conversion as ``name: what was done``.

    Raises
    ------
    UserError : every unusable line, caption and image at once.
    """
    from tqdm import tqdm

    metadata, rows, notes, problems = _read(folder, root)
    splits, split_notes = _splits(rows)
    found, notes = [], notes + split_notes
    for row in tqdm(rows, desc=f"reading {folder}", disable=None):
        caption, done = clean_caption(row.caption)
        label, label_done = clean_caption(row.label, "label")
        try:
            image, converted = load_image(metadata.parent / row.name, size)
        except Unusable as error:
            problems.append(f"{metadata}:{row.line}: file_name {_brief.repr(row.name)}: {error}")
            continue
        notes += [f"{row.name}: {what}" for what in done + label_done + converted]
        found.append(Example(row.name, caption, row.group, splits[row.group], image, label))
    if problems:
        raise UserError(problems)
    return found, notes


def content_digest(folder: Path, root: Path = Path()) -> str:
    """SHA-256 (hex) over the metadata file and every image it names; decodes no image.

    Raises
    ------
    UserError : every problem of the metadata and every missing file at once.
    """
    metadata, rows, _, problems = _read(folder, root)
    if problems:
        raise UserError(problems)
    paths = {row.name: metadata.parent / row.name for row in rows}
    try:
        images = {name: sha256(path) for name, path in paths.items()}
        return digest({"name": metadata.name, "metadata": sha256(metadata), "images": images})
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from None


def pictures(folder: Path, size: int, root: Path = Path()) -> tuple[list[Example], list[str]]:
    """Every image in a folder, as :func:`examples` but without captions: metadata is not read.

    All are for training, each in a group of its own.

    Raises
    ------
    UserError : no image, and every unusable one at once.
    """
    base, names = _pictures(Path(folder), Path(root))
    found, notes, problems = [], [], []
    for name in names:
        try:
            image, converted = load_image(base / name, size)
        except Unusable as error:
            problems.append(f"{base / name}: {error}")
            continue
        notes += [f"{name}: {what}" for what in converted]
        found.append(Example(name, "", name, "train", image))
    if problems:
        raise UserError(problems)
    return found, notes


def pictures_digest(folder: Path, root: Path = Path()) -> str:
    """SHA-256 (hex) over every image in a folder and its name; decodes none.

    Raises
    ------
    UserError : no such folder, no image in it, or one that cannot be read.
    """
    base, names = _pictures(Path(folder), Path(root))
    try:
        return digest({name: sha256(base / name) for name in names})
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from None


def _pictures(folder: Path, root: Path) -> tuple[Path, list[str]]:
    base = _checked(folder, root, "a folder of images")
    names = sorted(_images(base))
    if not names:
        raise UserError(f"{folder}: no images; allowed: a folder with at least one")
    wrong = {name: _file_problem(base, name) for name in names}
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


# Metadata


def _read(folder: Path, root: Path) -> tuple[Path, list[_Row], list[str], list[str]]:
    """The metadata file, its usable rows by name, notes and the problems found."""
    metadata = _metadata_file(Path(folder), Path(root))
    parse = _json_records if metadata.suffix == ".jsonl" else _csv_records
    records, problems = parse(_text(metadata))
    present = {}
    for name in sorted(_images(metadata.parent)):
        present.setdefault(_key(name), []).append(name)
    rows, readable, taken, sound = [], [], {}, not problems
    for line, record in records:
        row, found = _row(line, record)
        key = _key(row.name)
        if row.name and key in taken:
            found.append(
                f"file_name {_brief.repr(row.name)}: already named on line {taken[key]}; "
                "allowed: each file once, regardless of case and Unicode form"
            )
        elif row.name:
            taken[key] = line
            missing = _file_problem(metadata.parent, row.name, *present.get(key, [])[:1])
            problems += [f"{line}: file_name {_brief.repr(row.name)}: {missing}"] if missing else []
            readable += [] if missing else [row]
        rows.append(row)
        problems += [f"{line}: {problem}" for problem in found]
        sound = sound and not found
    problems += _split_problems(rows) if sound else []
    problems = [f"{metadata}:{problem}" for problem in problems]
    named = {row.name for row in rows}
    # A file alone with its name but for case or Unicode form is the one that was meant.
    extra = [n for k, ns in present.items() for n in ns if k not in taken or len(ns) > 1]
    if extra := sorted(set(extra) - named):
        problems.append(
            f"{folder}: images without a caption: {_first(extra, 5)} ({len(extra)} in all); "
            f"allowed: only images that {metadata.name} names"
        )
    unused = sorted({key for _, record in records for key in record} - set(_COLUMNS))
    notes = [f"{metadata.name}: columns not used: {_first(unused, 10)}"] if unused else []
    bare = sorted(row.name for row in readable if not row.label)
    if 0 < len(bare) < len(readable):
        notes.append(
            f"{metadata.name}: no label, so that the caption is the class: {_first(bare, 5)} "
            f"({len(bare)} in all)"
        )
    return metadata, sorted(readable, key=lambda row: row.name), notes, problems


def _first(names: list[str], count: int) -> str:
    return ", ".join(map(_brief.repr, names[:count])) + ", ..." * (len(names) > count)


def _metadata_file(folder: Path, root: Path) -> Path:
    base = _checked(folder, root, "a folder of images with captions")
    there = [base / name for name in METADATA if os.path.lexists(base / name)]
    if len(there) != 1:
        what = "both metadata.jsonl and metadata.csv" if there else "no metadata file"
        raise UserError(f"{folder}: {what}; allowed: exactly one of {', '.join(METADATA)}")
    if not _inside(there[0], base) or not _is(stat.S_ISREG, there[0]):
        raise UserError(f"{there[0]}: leads outside the folder or is not a file; allowed: a file")
    return there[0]


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


def _row(line: int, record: dict) -> tuple[_Row, list[str]]:
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
        elif not isinstance(value, str) or re.search("[\ud800-\udfff]", value):
            problems.append(f"{key} {_brief.repr(value)}: allowed: Unicode text")
        elif problem := check(value):
            problems.append(f"{key} {_brief.repr(value)}: {problem}")
        else:
            values[key] = value
    name = str(PurePosixPath(values["file_name"])) if "file_name" in values else ""
    group = unicodedata.normalize("NFC", values.get("group", ""))
    split = values.get("split") or None
    label = values.get("label", "")
    return _Row(line, name, values.get(text, ""), split, group or name, label), problems


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


def _file_problem(base: Path, name: str, alike: str = "") -> str | None:
    if not _inside(base / name, base):
        return "a link that leads outside the folder; allowed: a file inside it"
    if not _is(stat.S_ISREG, base / name):
        hint = f" (there is {alike!r}, of other case or Unicode form)" if alike else ""
        return f"no such file{hint}; allowed: an image in the folder"
    return None if (base / name).stat().st_size else f"0 bytes; {ALLOWED_IMAGE}"


def _images(base: Path) -> Iterator[str]:
    """What looks like an image in the folder; hidden files and folders do not count."""
    for parent, folders, files in os.walk(base):
        folders[:] = [f for f in folders if not f.startswith((".", "__"))]
        for file in files:
            if _SUFFIXES.search(file) and not file.startswith("."):
                yield str((Path(parent) / file).relative_to(base))


# Splits


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


def _split_problems(rows: list[_Row]) -> list[str]:
    problems, given = [], {}
    for row in rows:
        if row.split and given.setdefault(row.group, row).split != row.split:
            problems.append(
                f"{row.line}: split {row.split!r}: group {_brief.repr(row.group)} is in "
                f"{given[row.group].split!r} on line {given[row.group].line}; "
                "allowed: one split for a group"
            )
    splits, _ = _splits(rows)
    counts = {s: sum(splits[row.group] == s for row in rows) for s in ("train", "test")}
    if not problems and (counts["train"] < 2 or counts["test"] < 1):
        problems.append(
            f" {counts['train']} train and {counts['test']} test images; allowed: at least 2 "
            "train and 1 test (the columns split and group decide)"
        )
    return problems
