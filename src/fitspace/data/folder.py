"""A user's own captioned images: a folder with ``metadata.jsonl`` or ``metadata.csv``.

The convention is that of Hugging Face's ``imagefolder``: the column ``file_name`` holds a path
inside the folder and ``text`` (else ``caption``) what it shows. Two optional columns are ours:
``split`` (train or test) and ``group``. What cannot be read soundly is an error, what can be
converted soundly is converted and noted.
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
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from fitspace.data.examples import Example, split_of
from fitspace.errors import UserError
from fitspace.files import digest, sha256

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

METADATA = ("metadata.jsonl", "metadata.csv")
MAX_CAPTION_BYTES = 10_000
MAX_PIXELS = 89_478_485  # Pillow's own limit, which other code can lift

_COLUMNS = ("file_name", "text", "caption", "split", "group")
_ALLOWED_COLUMNS = "allowed: file_name and text (or caption), optionally split and group"
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow's JPEG reader also yields MPO
_SUFFIXES = re.compile(
    r"\.(a?png|jpe?g|jfif|mpo|webp|gif|bmp|tiff?|avif|hei[cf]|jp2|jxl|svg|ico|psd|tga|p[gp]m)$",
    re.I,
)
_ALLOWED_IMAGE = f"allowed: a complete still image ({', '.join(_FORMATS)})"
_MODES = {  # Pillow's mode -> what to note of it
    "RGB": "", "RGBA": "", "RGBa": "", "RGBX": "", "CMYK": "CMYK", "YCbCr": "YCbCr",
    "1": "black and white", "L": "grey", "LA": "grey", "P": "palette", "PA": "palette",
}  # fmt: skip
# Soft hyphen, byte order mark and the like; the joiners that emoji and Persian need stay.
_INVISIBLE = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u200b\u2060\ufeff]")
_ORIENTATION = 0x0112

_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 200


@dataclass(frozen=True)
class _Row:
    line: int
    name: str
    caption: str
    split: str | None
    group: str


class _Unusable(Exception):
    """An image that no conversion makes sound; says the value and what is allowed."""


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
        try:
            image, converted = load_image(metadata.parent / row.name, size)
        except _Unusable as error:
            problems.append(f"{metadata}:{row.line}: file_name {_brief.repr(row.name)}: {error}")
            continue
        notes += [f"{row.name}: {what}" for what in done + converted]
        found.append(Example(row.name, caption, row.group, splits[row.group], image))
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


def clean_caption(text: str) -> tuple[str, list[str]]:
    """A caption as one line of NFC text without invisible characters, and what was changed."""
    done = []
    for what, changed in (
        ("control or zero-width characters removed", lambda t: _INVISIBLE.sub("", t)),
        ("white space collapsed", lambda t: " ".join(t.split())),
        ("put in Unicode normal form C", lambda t: unicodedata.normalize("NFC", t)),
    ):
        before, text = text, changed(text)
        if text != before:
            done.append(f"caption: {what}")
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
    return metadata, sorted(readable, key=lambda row: row.name), notes, problems


def _first(names: list[str], count: int) -> str:
    return ", ".join(map(_brief.repr, names[:count])) + ", ..." * (len(names) > count)


def _metadata_file(folder: Path, root: Path) -> Path:
    base = root / folder
    if not _is(stat.S_ISDIR, base):
        raise UserError(f"{folder}: no such folder; allowed: a folder of images with captions")
    chosen_outside = folder.is_absolute() or ".." in folder.parts
    if not chosen_outside and not _inside(base, root):
        raise UserError(
            f"{folder}: a link leads outside the project, to {os.path.realpath(base)}; "
            "allowed: a folder inside it, or an absolute path"
        )
    there = [base / name for name in METADATA if os.path.lexists(base / name)]
    if len(there) != 1:
        what = "both metadata.jsonl and metadata.csv" if there else "no metadata file"
        raise UserError(f"{folder}: {what}; allowed: exactly one of {', '.join(METADATA)}")
    if not _inside(there[0], base) or not _is(stat.S_ISREG, there[0]):
        raise UserError(f"{there[0]}: leads outside the folder or is not a file; allowed: a file")
    return there[0]


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
    }
    values, problems = {}, []
    for key, check in checks.items():
        value = record.get(key)
        if key in ("split", "group") and value is None:
            value = ""
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
    return _Row(line, name, values.get(text, ""), split, group or name), problems


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
    return None if (base / name).stat().st_size else f"0 bytes; {_ALLOWED_IMAGE}"


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


# Pixels


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
            with Image.open(path, formats=_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise _Unusable(f"{image.width}x{image.height}: {too_large}")
                return _square(image, size)
    except _Unusable:
        raise
    except Image.DecompressionBombError:
        raise _Unusable(too_large) from None
    except Image.UnidentifiedImageError:
        raise _Unusable(f"not an image of a format that is read; {_ALLOWED_IMAGE}") from None
    except Exception as error:  # decoders raise anything on damaged bytes
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise _Unusable(f"cannot be decoded ({reason}); {_ALLOWED_IMAGE}") from None


def _square(image: Picture, size: int) -> tuple[np.ndarray, list[str]]:
    from PIL import Image, ImageOps

    done = []
    if getattr(image, "is_animated", False):
        if image.format != "MPO":
            raise _Unusable(f"animated, or of several pages; {_ALLOWED_IMAGE}")
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
        raise _Unusable(
            f"pixels of mode {raw_mode or image.mode}, which have no defined white; "
            "allowed: 8 or 16 bits, grey, palette, RGB or CMYK"
        )
    if deep and "transparency" in image.info:
        raise _Unusable("a transparent colour in 16 bits; allowed: an alpha channel")
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
