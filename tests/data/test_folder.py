"""A user's image folder: every problem named, every conversion exact and noted."""

import csv
import io
import json
import os
import struct
import subprocess
import sys
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from images import LINEAR_GREY, chunk, cmyk_profile, encoded, png, rgb_profile, srgb_encoded
from PIL import Image

from fitspace.core.errors import UserError
from fitspace.data import pixels
from fitspace.data.examples import split_of
from fitspace.data.folder import METADATA, clean_caption, content_digest, examples
from fitspace.data.pixels import load_image

RED = np.full((4, 4, 3), (255, 0, 0), np.uint8)


# Building folders


GOOD = encoded(RED)


def lines(*records) -> str:
    return "".join(json.dumps(r) + "\n" for r in records)


def rows(*names, **extra) -> list[dict]:
    """Rows with captions; the last name is held out."""
    return [
        {"file_name": n, "text": f"a picture of {n}", "split": "train", **extra}
        | ({"split": "test"} if n == names[-1] else {})
        for n in names
    ]


def build(base: Path, metadata=None, files=None, name="metadata.jsonl") -> Path:
    base.mkdir(exist_ok=True)
    for file, content in (dict.fromkeys(["a.png", "b.png", "c.png"], GOOD) | (files or {})).items():
        if content is not None:
            (base / file).parent.mkdir(parents=True, exist_ok=True)
            (base / file).write_bytes(content)
    if metadata is None:
        metadata = lines(*rows("a.png", "b.png", "c.png"))
    content = metadata if isinstance(metadata, bytes) else metadata.encode("utf-8", "surrogatepass")
    if name:
        (base / name).write_bytes(content)
    return base


def problems_of(base: Path, size: int = 4) -> list[str]:
    with pytest.raises(UserError) as error:
        examples(base, size)
    return error.value.problems


# Reading


def test_reads_sorted_examples_with_their_columns(tmp_path):
    found, notes = examples(
        build(
            tmp_path,
            lines(
                {"file_name": "sub/z.png", "text": "last", "split": "train", "group": "pair"},
                {"file_name": "b.png", "text": "held out", "split": "test"},
                {"file_name": "./a.png", "text": "first", "group": "pair"},
            ),
            {"c.png": None, "sub/z.png": encoded(255 - RED)},
        ),
        4,
    )
    assert [(e.name, e.caption, e.group, e.split) for e in found] == [
        ("a.png", "first", "pair", "train"),
        ("b.png", "held out", "b.png", "test"),
        ("sub/z.png", "last", "pair", "train"),
    ]
    assert notes == []
    assert all(e.image.dtype == np.uint8 and e.image.shape == (4, 4, 3) for e in found)
    assert (found[0].image == RED).all()
    assert (found[2].image == 255 - RED).all()


CSV = 'file_name,text,split\na.png,"a, ""b""\nc",train\n\nb.png,d,train\nc.png,e,test\n'


@pytest.mark.parametrize(
    "name, content",
    [
        ("metadata.csv", CSV.encode()),
        ("metadata.csv", b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode()),
        ("metadata.csv", CSV.replace("text", "caption").encode()),
        (
            "metadata.jsonl",
            b"\xef\xbb\xbf"
            + lines(
                {"file_name": "a.png", "caption": 'a, "b"\nc', "split": "train"},
                {"file_name": "b.png", "text": "d", "caption": "not this", "split": "train"},
                {"file_name": "c.png", "text": "e", "split": "test", "group": None},
            ).encode(),
        ),
    ],
    ids=["csv", "csv-bom-crlf", "csv-caption-column", "jsonl-bom-text-before-caption"],
)
def test_forms_of_metadata_that_are_read(tmp_path, name, content):
    found, notes = examples(build(tmp_path, content, name=name), 4)
    assert [(e.caption, e.split) for e in found] == [
        ('a, "b" c', "train"),
        ("d", "train"),
        ("e", "test"),
    ]
    assert notes == ["a.png: caption: white space collapsed"]


def test_jsonl_captions_may_hold_unicode_line_separators(tmp_path):
    text = json.dumps({"file_name": "a.png", "text": "x\u2028y"}, ensure_ascii=False) + "\n"
    text += lines(*rows("b.png", "c.png", "d.png"))
    found, _ = examples(build(tmp_path, text, {"d.png": GOOD}), 4)
    assert found[0].caption == "x y"


CAT, THREE, DIRTY = rows("a.png", "b.png", "c.png")
LABELLED = {
    "metadata.csv": "file_name,text,split,label\n"
    "a.png,x,train,cat\nb.png,x,train,3\nc.png,x,test, cat\u200b\n",
    "metadata.jsonl": lines(
        CAT | {"label": "cat"}, THREE | {"label": 3}, DIRTY | {"label": " cat\u200b"}
    ),
}


@pytest.mark.parametrize("name", LABELLED)
def test_a_label_is_the_category_beside_the_caption(tmp_path, name):
    found, notes = examples(build(tmp_path, LABELLED[name], name=name), 4)
    assert [e.category for e in found] == ["cat", "3", "cat"] and all(e.caption for e in found)
    assert notes == [
        "c.png: label: control or zero-width characters removed",
        "c.png: label: white space collapsed",
    ]


@pytest.mark.parametrize("empty", ["", None], ids=["empty", "null"])
def test_images_without_a_label_are_noted_where_others_have_one(tmp_path, empty):
    a, b, c = rows("a.png", "b.png", "c.png")
    content = lines(a | {"label": "cat"}, b, c | {"label": empty})
    found, notes = examples(build(tmp_path, content), 4)
    assert [e.category for e in found] == ["cat", "", ""]
    assert notes == [
        "metadata.jsonl: no label, so that the caption is the class: 'b.png', 'c.png' (2 in all)"
    ]


def test_a_label_is_part_of_the_digest(tmp_path):
    a, b, c = rows("a.png", "b.png", "c.png")
    digests = set()
    for label in ("cat", "dog"):
        digests.add(content_digest(build(tmp_path, lines(a | {"label": label}, b, c))))
    assert len(digests) == 2


def test_unused_columns_and_hidden_files(tmp_path):
    base = build(tmp_path, lines(*rows("a.png", "b.png", "c.png", width=3, url="")))
    build(base, None, {"._a.png": b"x", ".cache/x.png": b"x", "__MACOSX/a.png": b"x"}, name=None)
    assert examples(base, 4)[1] == ["metadata.jsonl: columns not used: 'url', 'width'"]


# Problems: the metadata, files beside the three good ones, parts of the one message expected


def header_of(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return GOOD[:8] + chunk(b"IHDR", header) + GOOD[33:]


def frames(kind: str) -> bytes:
    return encoded(RED, kind, save_all=True, append_images=[Image.fromarray(255 - RED)])


A, B, C = rows("a.png", "b.png", "c.png")
ABC = lines(A, B, C)


def named(name: str) -> str:
    return lines(A, B, C, A | {"file_name": name})


def third(**values) -> str:
    return lines(A, B, C | values)


BAD_JSONL = {
    "not-json": (ABC + "{file", {}, ["jsonl:4", "'{file'", "not valid JSON", "one JSON object"]),
    "key-twice": (ABC + '{"text":"x","text":"y"}', {}, ["jsonl:4", "a key stands twice"]),
    "too-deep": (ABC + "[" * 99999, {}, ["jsonl:4", "not valid JSON", "'[[["]),
    "long-number": (ABC + "1" * 9999, {}, ["jsonl:4", "not valid JSON", "'111"]),
    "list": (lines(A, B, C, ["a.png"]), {}, ["jsonl:4", "['a.png']", "one JSON object a line"]),
    "number": (lines(A, B, C, 7), {}, ["jsonl:4: 7", "one JSON object a line"]),
    "not-utf8": (ABC.encode() + b"\xff", {}, ["jsonl:4", "b'\\xff'", "UTF-8"]),
    "utf16": (ABC.encode("utf-16"), {}, ["jsonl:1", "b'\\xff'", "UTF-8"]),
    "no-name": (lines(A, B, C, {"text": "x"}), {}, ["jsonl:4", "'file_name' missing", "'x'"]),
    "no-text": (lines(A, B, {"file_name": "c.png"}), {}, ["jsonl:3", "'text' missing", "caption"]),
    "null-text": (third(text=None), {}, ["jsonl:3", "text None", "Unicode text"]),
    "number-text": (third(text=12), {}, ["jsonl:3", "text 12", "Unicode text"]),
    "surrogate-text": (third(text="\ud800"), {}, ["jsonl:3", "'\\ud800'", "Unicode text"]),
    "surrogate-name": (named("\udc80.png"), {}, ["jsonl:4", "'\\udc80.png'", "Unicode text"]),
    "surrogate-group": (third(group="\udc80"), {}, ["jsonl:3", "group '\\udc80'"]),
    "number-group": (third(group=3), {}, ["jsonl:3", "group 3", "Unicode text"]),
    "blank-label": (third(label=" \n"), {}, ["jsonl:3", "label ' \\n'", "empty", "visible text"]),
    "list-label": (third(label=["cat"]), {}, ["jsonl:3", "label ['cat']", "Unicode text"]),
    "true-label": (third(label=True), {}, ["jsonl:3", "label True", "Unicode text"]),
    "empty-text": (third(text=""), {}, ["jsonl:3", "text ''", "empty", "visible text"]),
    "blank-text": (third(text=" \n\u200b"), {}, ["jsonl:3", "\\u200b'", "empty"]),
    "joiner-text": (third(text="\u200d"), {}, ["jsonl:3", "'\\u200d'", "empty"]),
    "long-text": (third(text="é" * 5001), {}, ["jsonl:3", "éé", "10002 bytes", "at most 10000"]),
    "split": (third(split="val"), {}, ["jsonl:3", "split 'val'", "train or test"]),
    "split-type": (third(split=True), {}, ["jsonl:3", "split True", "Unicode text"]),
    "split-group": (
        lines(A | {"group": "g"}, B, C | {"group": "g"}),
        {},
        ["jsonl:3", "split 'test'", "group 'g' is in 'train' on line 1", "one split for a group"],
    ),
    "one-train": (
        lines(A, B | {"split": "test"}, C),
        {},
        ["1 train and 2 test images", "at least 2 train and 1 test"],
    ),
    "no-test": (third(split="train"), {}, ["3 train and 0 test images", "1 test"]),
    "one-group": (
        lines(*(r | {"group": "g", "split": None} for r in (A, B, C))),
        {},
        ["0 train and 3 test images", "group"],
    ),
    "empty": (b"", dict.fromkeys(["a.png", "b.png", "c.png"]), ["0 train and 0 test images"]),
    "twice": (named("a.png"), {}, ["jsonl:4", "'a.png'", "already named on line 1", "once"]),
    "twice-dot": (named("./a.png"), {}, ["jsonl:4", "'a.png'", "on line 1"]),
    "twice-case": (named("A.PNG"), {"A.PNG": GOOD}, ["jsonl:4", "'A.PNG'", "on line 1", "case"]),
    "twice-unicode": (
        lines(A, B, C, *rows("\u00e9.png", "e\u0301.png")),
        {"\u00e9.png": GOOD, "e\u0301.png": GOOD},
        ["jsonl:5", "'e\u0301.png'", "on line 4", "Unicode form"],
    ),
    "missing": (named("d.png"), {}, ["jsonl:4", "'d.png'", "no such file", "in the folder"]),
    "missing-case": (third(file_name="C.png"), {}, ["jsonl:3", "'C.png'", "there is 'c.png'"]),
    "missing-long": (named("d" * 5000), {}, ["jsonl:4", "ddd", "no such file"]),
    "directory": (named("d"), {"d/x": b""}, ["jsonl:4", "'d'", "no such file"]),
    "empty-name": (named(""), {}, ["jsonl:4", "file_name ''", "empty", "relative path"]),
    "absolute": (named("/etc/passwd"), {}, ["jsonl:4", "'/etc/passwd'", "absolute", "inside"]),
    "drive": (named("C:/d.png"), {}, ["jsonl:4", "'C:/d.png'", "absolute"]),
    "dots": (named("x/../../d.png"), {}, ["jsonl:4", "'x/../../d.png'", "holds '..'", "inside"]),
    "backslash": (named("x\\d.png"), {}, ["jsonl:4", "'x\\\\d.png'", "backslash", "'/'"]),
    "nul": (named("d\0.png"), {}, ["jsonl:4", "'d\\x00.png'", "control characters"]),
    "newline": (named("d\n.png"), {}, ["jsonl:4", "'d\\n.png'", "control characters"]),
    "uncaptioned": (
        ABC,
        {f"x{i}.{'JPG' if i % 2 else 'heic'}": b"?" for i in range(7)},
        ["without a caption: 'x0.heic', 'x1.JPG'", "'x4.heic', ... (7 in all)", "metadata.jsonl"],
    ),
    "uncaptioned-twin": (ABC, {"A.PNG": GOOD}, ["without a caption: 'A.PNG' (1 in all)"]),
    "zero-bytes": (ABC, {"c.png": b""}, ["jsonl:3", "'c.png'", "0 bytes", "PNG, JPEG"]),
    "not-an-image": (ABC, {"c.png": b"hello"}, ["jsonl:3", "'c.png'", "not an image", "PNG"]),
    "format": (ABC, {"c.png": encoded(RED, "ICO")}, ["jsonl:3", "'c.png'", "not an image", "PNG"]),
    "postscript": (ABC, {"c.png": encoded(RED, "EPS")}, ["jsonl:3", "'c.png'", "not an image"]),
    "truncated": (ABC, {"c.png": GOOD[:50]}, ["jsonl:3", "'c.png'", "cannot be decoded", "PNG"]),
    "gif-frames": (ABC, {"c.png": frames("GIF")}, ["jsonl:3", "'c.png'", "animated", "still"]),
    "png-frames": (ABC, {"c.png": frames("PNG")}, ["jsonl:3", "'c.png'", "animated", "still"]),
    "webp-frames": (ABC, {"c.png": frames("WEBP")}, ["jsonl:3", "'c.png'", "animated", "still"]),
    "pages": (ABC, {"c.png": frames("TIFF")}, ["jsonl:3", "'c.png'", "several pages"]),
    "bomb": (ABC, {"c.png": header_of(20000, 20000)}, ["jsonl:3", "'c.png'", "at most 89478485"]),
    "big": (ABC, {"c.png": header_of(9460, 9460)}, ["jsonl:3", "'c.png'", "at most 89478485"]),
    "32-bit": (
        ABC,
        {"c.png": encoded(np.array([[0, 70000]], np.int32), "TIFF")},
        ["jsonl:3", "'c.png'", "I;32", "no defined white", "8 or 16 bits"],
    ),
    "float": (
        ABC,
        {"c.png": encoded(np.array([[0, 0.5]], np.float32), "TIFF")},
        ["jsonl:3", "'c.png'", "F;32F", "no defined white", "8 or 16 bits"],
    ),
    "inverted-16-bit": (
        ABC,
        {"c.png": encoded(np.array([[0, 9]], np.uint16), "TIFF", tiffinfo={262: 0})},
        ["jsonl:3", "'c.png'", "I;16;I", "no defined white", "8 or 16 bits"],
    ),
    "16-bit-transparent-colour": (
        ABC,
        {"c.png": png(16, 0, [0, 9], 2, extra=chunk(b"tRNS", b"\0\x09"))},
        ["jsonl:3", "'c.png'", "a transparent colour in 16 bits", "alpha channel"],
    ),
}
BAD_CSV = {
    "empty": ("", ["0 train and 0 test images"]),
    "header": ("name,text\na.png,x\n", ["csv:1", "['name', 'text']", "file_name and text"]),
    "semicolons": ("file_name;text\na.png;x\n", ["csv:1", "['file_name;text']", "commas"]),
    "column-twice": ("file_name,text,text\n", ["csv:1", "'text', 'text'", "each once"]),
    "short-row": ("file_name,text\na.png,x\nb.png\n", ["csv:3", "['b.png'] has 1", "allowed: 2"]),
    "long-row": ('file_name,text\n"a.png","x\ny"\nb.png,c,d\n', ["csv:4", "'d'] has 3 cells"]),
    "quotes": ('file_name,text\na.png,"x"y\n', ["csv:2", "not valid CSV", "comma-separated"]),
    "open-quote": ('file_name,text\na.png,"x\n', ["csv:2", "not valid CSV"]),
    "huge-cell": ("file_name,text\na.png," + "x" * 140_000, ["csv:2", "not valid CSV", "limit"]),
    "not-utf8": (b"file_name,text\na.png,\xe9t\xe9\n", ["csv:2", "b'\\xe9'", "UTF-8"]),
    "empty-cell": ("file_name,text\na.png,\n", ["csv:2", "text ''", "empty"]),
    "split": ("file_name,text,split\na.png,x,dev\n", ["csv:2", "split 'dev'", "train or test"]),
}


def has(problems: list[str], parts: list[str]) -> bool:
    return any(all(part in problem for part in parts) for problem in problems)


@pytest.mark.parametrize("metadata, files, parts", BAD_JSONL.values(), ids=BAD_JSONL)
def test_bad_folder_is_one_named_problem(tmp_path, metadata, files, parts):
    problems = problems_of(build(tmp_path, metadata, files))
    assert has(problems, parts), problems
    assert all(str(tmp_path) in p and "allowed: " in p for p in problems)
    assert len(problems) == 1, problems


@pytest.mark.parametrize("metadata, parts", BAD_CSV.values(), ids=BAD_CSV)
def test_bad_csv_is_named(tmp_path, metadata, parts):
    files = dict.fromkeys(["b.png", "c.png"])
    problems = problems_of(build(tmp_path, metadata, files, name="metadata.csv"))
    assert has(problems, parts), problems
    assert all("allowed: " in p for p in problems)


def test_folder_itself(tmp_path):
    build(tmp_path / "none", name=None)
    build(build(tmp_path / "both"), "x", name="metadata.csv")
    for name, parts in {
        "absent": ["no such folder"],
        "x" * 300: ["no such folder"],
        "none": ["no metadata file", "exactly one of metadata.jsonl, metadata.csv"],
        "both": ["both metadata.jsonl and metadata.csv", "exactly one"],
    }.items():
        (problem,) = problems_of(tmp_path / name)
        assert has([problem], [name, *parts]), problem
        with pytest.raises(UserError):
            content_digest(tmp_path / name)


def test_all_problems_at_once(tmp_path):
    metadata = lines(
        A | {"text": ""},
        B | {"split": "dev"},
        {"file_name": "../x.png", "text": "x"},
        {"file_name": "gone.png", "text": " "},
    )
    base = build(tmp_path, metadata + "{\n", {"b.png": GOOD[:50]})
    problems = problems_of(base)
    for parts in (
        ["jsonl:1:", "text ''"],
        ["jsonl:2:", "'dev'"],
        ["jsonl:2:", "'b.png'", "cannot be decoded"],
        ["jsonl:3:", "'../x.png'"],
        ["jsonl:4:", "text ' '"],
        ["jsonl:4:", "'gone.png'", "no such file"],
        ["jsonl:5:", "'{'"],
        ["without a caption: 'c.png' (1 in all)"],
    ):
        assert has(problems, parts), (parts, problems)
    assert len(problems) == 8
    with pytest.raises(UserError) as error:
        content_digest(base)
    assert error.value.problems == [p for p in problems if "decoded" not in p]


# Links and the project's root


@pytest.mark.parametrize("kind", ["file", "folder", "loop", "dangling", "metadata"])
def test_links_out_of_the_folder(tmp_path, kind):
    outside = build(tmp_path / "outside")
    base = build(tmp_path / "base", named("link/a.png" if kind == "folder" else "link.png"))
    target = {
        "file": outside / "a.png",
        "folder": outside,
        "loop": base / "link.png",
        "dangling": tmp_path / "nowhere.png",
        "metadata": outside / "metadata.jsonl",
    }[kind]
    link = {"folder": base / "link", "metadata": base / "metadata.jsonl"}.get(
        kind, base / "link.png"
    )
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    (problem,) = problems_of(base)
    parts = {
        "loop": ["'link.png'", "no such file"],
        "metadata": ["metadata.jsonl", "leads outside"],
    }
    assert has([problem], parts.get(kind, ["jsonl:4", "'link", "leads outside the folder"])), (
        problem
    )
    with pytest.raises(UserError):
        content_digest(base)


def test_links_within_the_folder_are_followed(tmp_path):
    base = build(tmp_path, named("link.png"))
    (base / "link.png").symlink_to("a.png")
    assert [e.name for e in examples(base, 4)[0]] == ["a.png", "b.png", "c.png", "link.png"]


def test_folder_outside_the_root_only_when_the_user_names_it(tmp_path):
    build(tmp_path / "elsewhere")
    root = tmp_path / "root"
    build(root).joinpath("link").symlink_to(tmp_path / "elsewhere")
    build(root / "in")
    for allowed in ("in", "../elsewhere", tmp_path / "elsewhere"):
        assert len(examples(Path(allowed), 4, root)[0]) == 3
    for function in (
        lambda: examples(Path("link"), 4, root),
        lambda: content_digest(Path("link"), root),
    ):
        with pytest.raises(UserError, match="link: a link leads outside the project.*allowed"):
            function()


# Captions

FAMILY = "\U0001f469\u200d\U0001f467"
CAPTIONS = {
    "plain": ("a cat", "a cat", []),
    "newlines": ("\ta \r\n\n cat\u2028on\u00a0it ", "a cat on it", ["white space"]),
    "nfc": ("cafe\u0301", "caf\u00e9", ["normal form C"]),
    "controls": ("a\x00 \x1b[1mc\x7fat", "a [1mcat", ["control"]),
    "zero-width": ("\ufeffa\u200b c\u00ada\u2060t", "a cat", ["control"]),
    "all": (" e\u200b\u0301\n", "\u00e9", ["control", "white space", "normal form C"]),
    "emoji": (f"{FAMILY} \u2764\ufe0f \U0001f3f4\U000e0067\U000e007f", None, []),
    "hebrew": ("\u202b\u05e9\u05dc\u05d5\u05dd\u202c \u200fa", None, []),
    "persian": ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", None, []),
    "thai": ("\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", None, []),
}


@pytest.mark.parametrize("text, expected, changes", CAPTIONS.values(), ids=CAPTIONS)
def test_captions(text, expected, changes):
    cleaned, done = clean_caption(text)
    assert cleaned == (text if expected is None else expected)
    assert len(done) == len(changes)
    assert all(change in note for change, note in zip(changes, done, strict=True))


@given(st.text())
def test_cleaning_a_caption_twice_changes_nothing_more(text):
    cleaned, done = clean_caption(text)
    assert clean_caption(cleaned) == (cleaned, [])
    assert unicodedata.is_normalized("NFC", cleaned)
    assert (cleaned != text) <= bool(done)


def test_longest_caption_is_kept(tmp_path):
    found, _ = examples(build(tmp_path, third(text="x" * 10_000)), 4)
    assert len(found[2].caption) == 10_000


# Splits


def test_splits_by_hash_of_group(tmp_path):
    names = [f"{i}.png" for i in range(40)]
    records = [{"file_name": n, "text": n, "group": f"g{i // 2}"} for i, n in enumerate(names)]
    base = build(
        tmp_path,
        lines(*records),
        dict.fromkeys(names, GOOD) | dict.fromkeys(["a.png", "b.png", "c.png"]),
    )
    found, notes = examples(base, 4)
    assert {e.group: e.split for e in found} == {f"g{i}": split_of(f"g{i}") for i in range(20)}
    assert {e.split for e in found} == {"train", "test"}
    assert notes == []


def test_small_folder_holds_out_the_smallest_hash(tmp_path):
    # sha256sum of the names: a.png 7f07.., c.png 5870.., d.png a14a..; by hash all would train
    assert {split_of(n) for n in ("a.png", "c.png", "d.png")} == {"train"}
    records = [{"file_name": n, "text": n} for n in ("a.png", "c.png", "d.png")]
    for order in (records, records[::-1]):
        base = build(tmp_path, lines(*order), {"d.png": GOOD})
        (base / "b.png").unlink()
        found, (note,) = examples(base, 4)
        assert [e.split for e in found] == ["train", "test", "train"]
        assert note.startswith("c.png: held out")


def test_a_group_follows_the_split_given_for_any_of_its_images(tmp_path):
    assert split_of("g") == "train"
    given, free = {"group": "g", "split": "test"}, {"group": "g", "split": None}
    for first, last in ((given, free), (free, given)):
        records = [A | first, C | last, B, A | {"file_name": "d.png"}]
        base = build(tmp_path, lines(*records), {"d.png": GOOD})
        assert [e.split for e in examples(base, 4)[0]] == ["test", "train", "test", "train"]


def test_given_training_images_are_never_held_out(tmp_path):
    found, _ = examples(build(tmp_path, lines(A, B, C | {"split": None})), 4)
    assert [e.split for e in found] == ["train", "train", "test"]


# Pixels: files of equal rows, and the pixels that a row must become

GREY16 = [0, 128, 32768, 33023, 65407, 65535]
AS_8_BIT = [0, 0, 128, 128, 255, 255]  # round(v / 257)


def row(mode: str, *pixels) -> Image.Image:
    """A square image, each of whose rows holds the pixels."""
    image = Image.new(mode, (len(pixels), len(pixels)))
    for y in range(len(pixels)):
        for x, pixel in enumerate(pixels):
            image.putpixel((x, y), pixel)
    return image


def grey(*values) -> list[tuple]:
    return [(v, v, v) for v in values]


def palette(*, transparent: bool) -> bytes:
    image = row("P", 0, 1, 2)
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    return encoded(image, transparency=bytes([255, 128, 0])) if transparent else encoded(image)


PIXELS = {
    "rgb": (encoded(row("RGB", (1, 2, 3), (9, 8, 7))), [(1, 2, 3), (9, 8, 7)], ""),
    "grey": (encoded(row("L", 0, 77, 255)), grey(0, 77, 255), "grey to RGB"),
    "one-bit": (encoded(row("1", 0, 255)), grey(0, 255), "black and white to RGB"),
    "palette": (
        palette(transparent=False),
        [(255, 0, 0), (0, 255, 0), (0, 0, 255)],
        "palette to RGB",
    ),
    "palette-alpha": (
        palette(transparent=True),
        [(255, 0, 0), (127, 255, 127), (255, 255, 255)],
        "palette to RGB; transparency put on white",
    ),
    "gif": (encoded(row("L", 0, 9, 255), "GIF"), grey(0, 9, 255), "to RGB"),
    "alpha": (
        encoded(row("RGBA", (255, 0, 0, 128), (0, 0, 0, 0), (5, 6, 7, 255), (0, 0, 0, 51))),
        [(255, 127, 127), (255, 255, 255), (5, 6, 7), (204, 204, 204)],
        "transparency put on white",
    ),
    "opaque-alpha": (encoded(row("RGBA", (5, 6, 7, 255))), [(5, 6, 7)], ""),
    "grey-alpha": (
        encoded(row("LA", (0, 255), (0, 128), (100, 0))),
        grey(0, 127, 255),
        "grey to RGB; transparency put on white",
    ),
    "transparent-colour": (
        encoded(row("RGB", (1, 2, 3), (4, 5, 6)), transparency=(1, 2, 3)),
        [(255, 255, 255), (4, 5, 6)],
        "transparency put on white",
    ),
    "cmyk": (
        encoded(
            row(
                "CMYK",
                *[(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 255)],
            ),
            "TIFF",
        ),
        [(255, 255, 255), (0, 255, 255), (255, 0, 255), (255, 255, 0), (0, 0, 0)],
        "CMYK to RGB",
    ),
    "16-bit-grey": (png(16, 0, GREY16, 6), grey(*AS_8_BIT), "16 bits a channel scaled to 8; grey"),
    "16-bit-tiff": (
        encoded(np.array([GREY16] * 6, np.uint16), "TIFF"),
        grey(*AS_8_BIT),
        "16 bits a channel scaled to 8; grey",
    ),
    "16-bit-tiff-big-endian": (
        encoded(Image.frombytes("I;16B", (6, 6), np.array(GREY16 * 6, ">u2").tobytes()), "TIFF"),
        grey(*AS_8_BIT),
        "16 bits a channel scaled to 8; grey",
    ),
    "16-bit-rgb": (
        png(16, 2, [0, 32768, 65535, 32768, 65535, 0], 2),
        [(0, 128, 255), (128, 255, 0)],
        "16 bits a channel scaled to 8",
    ),
    "16-bit-rgba": (
        png(16, 6, [65535, 0, 0, 0x8080, 32768, 0, 0, 65535], 2),
        [(255, 127, 127), (128, 0, 0)],
        "16 bits a channel scaled to 8; transparency put on white",
    ),
    "16-bit-grey-alpha": (
        png(16, 4, [32768, 65535, 0, 0], 2),
        grey(128, 255),
        "16 bits a channel scaled to 8",
    ),
    "linear-rgb": (
        encoded(row("RGB", (0, 128, 255), (51, 10, 200)), icc_profile=rgb_profile()),
        [tuple(srgb_encoded(v / 255) for v in p) for p in ((0, 128, 255), (51, 10, 200))],
        "ICC profile 'test profile' to sRGB",
    ),
    "swapped-primaries": (
        encoded(row("RGB", (255, 0, 0), (0, 255, 0)), icc_profile=rgb_profile(b"bgr")),
        [(0, 0, 255), (0, 255, 0)],
        "ICC profile 'test profile' to sRGB",
    ),
    "linear-grey": (
        encoded(row("L", 0, 51, 128, 255), icc_profile=LINEAR_GREY),
        grey(0, *(srgb_encoded(v / 255) for v in (51, 128)), 255),
        "ICC profile 'test profile' to sRGB; grey to RGB",
    ),
    "linear-grey-16-bit": (
        png(
            16,
            0,
            [0, 32768, 65535],
            3,
            extra=chunk(b"iCCP", b"x\0\0" + zlib.compress(LINEAR_GREY)),
        ),
        grey(0, srgb_encoded(128 / 255), 255),
        "ICC profile 'test profile' to sRGB",
    ),
    "linear-grey-alpha": (
        encoded(row("LA", (128, 255), (0, 128)), icc_profile=LINEAR_GREY),
        grey(srgb_encoded(128 / 255), 127),
        "ICC profile 'test profile' to sRGB; grey to RGB; transparency put on white",
    ),
    "one-bit-in-grey-profile": (
        encoded(row("1", 0, 255), icc_profile=LINEAR_GREY),
        grey(0, 255),
        "ICC profile 'test profile' to sRGB; black and white to RGB",
    ),
    "grey-in-rgb-profile": (
        encoded(row("L", 0, 128, 255), icc_profile=rgb_profile()),
        grey(0, srgb_encoded(128 / 255), 255),
        "ICC profile 'test profile' to sRGB; grey to RGB",
    ),
    "profile-and-alpha": (
        encoded(row("RGBA", (128, 0, 255, 255), (0, 0, 0, 128)), icc_profile=rgb_profile()),
        [(188, 0, 255), (127, 127, 127)],
        "ICC profile 'test profile' to sRGB; transparency put on white",
    ),
    "cmyk-profile": (
        encoded(
            row("CMYK", (0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 0, 255)),
            "TIFF",
            icc_profile=cmyk_profile(),
        ),
        # CIE 1976: Y = ((L* + 16) / 116)^3
        grey(255, *(srgb_encoded(((v / 2.55 + 16) / 116) ** 3) for v in (128, 200)), 0),
        "ICC profile 'test profile' to sRGB; CMYK to RGB",
    ),
    "broken-profile": (
        encoded(row("RGB", (1, 2, 3)), icc_profile=b"nonsense"),
        [(1, 2, 3)],
        "ICC profile ignored, sRGB assumed",
    ),
    "wrong-profile": (
        encoded(row("RGB", (1, 2, 3)), icc_profile=LINEAR_GREY),
        [(1, 2, 3)],
        "ICC profile ignored, sRGB assumed: for GRAY, the pixels are RGB",
    ),
}
TOLERANCE = {"linear": 1, "grey-in": 1, "profile-and": 1, "swapped": 1, "cmyk-profile": 1}


@pytest.mark.parametrize("name", PIXELS)
def test_pixels(tmp_path, name):
    content, expected, note = PIXELS[name]
    path = tmp_path / "image"
    path.write_bytes(content)
    image, done = load_image(path, len(expected))
    tolerance = next((t for prefix, t in TOLERANCE.items() if name.startswith(prefix)), 0)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - np.array([expected])).max() <= tolerance, image[0]
    assert note in "; ".join(done) if note else done == []


def test_every_16_bit_grey_is_rounded_not_clipped(tmp_path):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    (tmp_path / "image").write_bytes(encoded(values))
    image, _ = load_image(tmp_path / "image", 256)
    assert (image == np.rint(values / 257).astype(int)[..., None]).all()


def test_every_transparency_is_rounded(tmp_path):
    colour, alpha = np.meshgrid(np.arange(256.0), np.arange(256.0))
    (tmp_path / "image").write_bytes(
        encoded(np.stack([colour, colour, colour, alpha], -1).astype(np.uint8))
    )
    image, _ = load_image(tmp_path / "image", 256)
    assert (image[..., 0] == np.rint((colour * alpha + 255 * (255 - alpha)) / 255)).all()


def test_jpeg_cmyk_is_not_inverted(tmp_path):
    (tmp_path / "image").write_bytes(
        encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=100)
    )
    image, done = load_image(tmp_path / "image", 8)
    assert np.abs(image.astype(int) - [0, 255, 255]).max() <= 2
    assert done == ["CMYK to RGB"]


def test_limit_on_pixels_holds_where_other_code_lifts_that_of_pillow(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "image").write_bytes(header_of(20000, 20000))
    with pytest.raises(pixels.Unusable, match="20000x20000: more pixels than allowed"):
        load_image(tmp_path / "image", 4)


def test_multi_picture_jpeg_yields_its_main_picture(tmp_path):
    (tmp_path / "image").write_bytes(frames("MPO"))
    image, done = load_image(tmp_path / "image", 4)
    assert np.abs(image.astype(int) - RED).max() <= 3
    assert done == ["the main picture of a multi-picture JPEG used"]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_orientation(tmp_path, kind, orientation):
    """Exif 2.32, tag 0x0112: where the stored row 0 and column 0 are to be seen."""
    stored = np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20
    seen = {
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: stored[::-1].swapaxes(0, 1),
        7: stored[::-1, ::-1].swapaxes(0, 1),
        8: stored[:, ::-1].swapaxes(0, 1),
    }.get(orientation, stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    (tmp_path / "image").write_bytes(encoded(stored, kind, exif=exif, **options))
    image, done = load_image(tmp_path / "image", 2)
    assert (image == seen).all()
    turned = 2 <= orientation <= 8
    assert done == ([f"EXIF orientation {orientation} applied"] if turned else [])


@pytest.mark.parametrize("shape, box", [((3, 8), (0, 2)), ((8, 3), (2, 0)), ((4, 7), (0, 1))])
def test_central_square(tmp_path, shape, box):
    pixels = np.arange(np.prod(shape) * 3, dtype=np.uint8).reshape(*shape, 3)
    (tmp_path / "image").write_bytes(encoded(pixels))
    side, (top, left) = min(shape), box
    image, done = load_image(tmp_path / "image", side)
    assert (image == pixels[top : top + side, left : left + side]).all()
    assert done == [f"central {side}x{side} of {shape[1]}x{shape[0]} used"]


def test_resizing_is_antialiased_and_noted(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    (tmp_path / "image").write_bytes(encoded(stripes))
    image, done = load_image(tmp_path / "image", 8)
    assert np.abs(image[:, 1:-1].astype(int) - 127.5).max() <= 2  # nearest would give 0 or 255
    assert done == ["reduced from 64x64 to 8x8"]
    assert load_image(tmp_path / "image", 128)[1] == ["enlarged from 64x64 to 128x128"]


def test_notes_name_the_image(tmp_path):
    pixels = encoded(row("RGBA", (255, 0, 0, 128)), "PNG")
    _, notes = examples(build(tmp_path, third(text="a\tb"), {"c.png": pixels}), 4)
    assert notes == [
        "c.png: caption: white space collapsed",
        "c.png: transparency put on white",
        "c.png: enlarged from 1x1 to 4x4",
    ]


@pytest.mark.parametrize(
    "kind, options",
    [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("GIF", {})]
    + [("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_deflate"})],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "default",
)
def test_a_truncated_file_is_an_error_or_lost_nothing(tmp_path, kind, options):
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    path, whole = tmp_path / "image", encoded(noise, kind, **options)
    path.write_bytes(whole)
    image, _ = load_image(path, 16)
    errors = 0
    for length in range(1, len(whole), 7):
        path.write_bytes(whole[:length])
        try:
            assert (load_image(path, 16)[0] == image).all()
        except pixels.Unusable as error:
            errors += "allowed: " in str(error)
    assert errors > 0.8 * len(whole) / 7


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_images_raise_only_what_is_expected(data, tmp_path_factory):
    sound = [c for c, *_ in PIXELS.values()]
    content = bytearray(data.draw(st.sampled_from(sound)))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixels, "MAX_PIXELS", 100_000)  # a damaged header can claim seconds' worth
        try:
            image, _ = load_image(path, 4)
        except pixels.Unusable as error:
            assert "allowed" in str(error)
        else:
            assert image.shape == (4, 4, 3)


# Digest and determinism


def test_digest_follows_metadata_and_named_images_only(tmp_path):
    base = build(tmp_path / "one")
    first = content_digest(base)
    assert first == content_digest(build(tmp_path / "two"))
    (base / "notes.txt").write_text("not named", encoding="utf-8")
    assert content_digest(base) == first
    (base / "a.png").write_bytes(encoded(255 - RED))
    second = content_digest(base)
    build(base, third(text="another"))
    assert len({first, second, content_digest(base)}) == 3


def test_same_folder_gives_the_same_examples(tmp_path):
    noise = np.random.default_rng(1).integers(0, 256, (50, 30, 4), np.uint8)
    base = build(tmp_path, lines(C, A, B), {"b.png": encoded(noise)})
    (one, notes), (two, again) = examples(base, 8), examples(base, 8)
    assert notes == again
    assert [e.name for e in one] == ["a.png", "b.png", "c.png"]
    assert all((x.image == y.image).all() for x, y in zip(one, two, strict=True))


def test_digest_needs_neither_torch_nor_pillow(tmp_path):
    code = (
        "import sys; from pathlib import Path; from fitspace.data.folder import content_digest\n"
        "content_digest(Path(sys.argv[1])); print({'torch', 'PIL'} & set(sys.modules))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, build(tmp_path)], capture_output=True, text=True, check=True
    )
    assert out.stdout == "set()\n"


# Anything at all as metadata: a UserError or examples, and never a file outside the folder

OPENED = []
WATCH = {"on": False}


def _watch(event, arguments):
    if WATCH["on"] and event == "open" and isinstance(arguments[0], str | bytes):
        OPENED.append(os.fsdecode(arguments[0]))


sys.addaudithook(_watch)
NAMES = st.sampled_from(
    ["a.png", "b.png", "./c.png", "A.png", "../secret.png", "x/../../secret.png", "link.png"]
    + ["dir/secret.png", "/SECRET", "//SECRET", "sub", ".", "..", "~/x", "a.png/", "a.png\0"]
)
VALUES = NAMES | st.text(max_size=8) | st.none() | st.integers() | st.floats() | st.booleans()
RECORDS = st.dictionaries(
    st.sampled_from(["file_name", "text", "caption", "split", "group", "label", "x"]), VALUES
)
JSON_LINES = st.lists(
    (RECORDS | VALUES | st.lists(VALUES)).map(json.dumps) | st.text(max_size=20)
).map("\n".join)
ROWS = st.lists(st.lists(NAMES | st.text(max_size=8), min_size=1, max_size=4))


def written(table) -> str:
    file = io.StringIO()
    csv.writer(file).writerows([["file_name", "text", "split"], *table])
    return file.getvalue()


CSV_TEXT = ROWS.map(written) | st.text().map(lambda t: "file_name,text\n" + t) | st.text()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    outer = tmp_path_factory.mktemp("outer")
    (outer / "secret.png").write_bytes(GOOD)
    base = build(outer / "base", name=None)
    (base / "sub").mkdir()
    (base / "link.png").symlink_to(outer / "secret.png")
    (base / "dir").symlink_to(outer)
    return base


def check(base: Path, name: str, content: bytes) -> None:
    secret = base.parent / "secret.png"
    for other in METADATA:
        (base / other).unlink(missing_ok=True)
    (base / name).write_bytes(content)
    OPENED.clear()
    WATCH["on"] = True
    try:
        for function in (lambda: examples(base, 4), lambda: content_digest(base)):
            try:
                function()
            except UserError as error:
                assert error.problems
                assert all("allowed: " in problem for problem in error.problems)
                str(error).encode()
    finally:
        WATCH["on"] = False
    assert any(path.endswith(name) for path in OPENED)
    assert not [path for path in OPENED if os.path.realpath(path) == str(secret)]


ANY = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@ANY
@given(text=JSON_LINES)
def test_any_json_lines(hostile, text):
    text = text.replace("/SECRET", str(hostile.parent / "secret.png"))
    check(hostile, "metadata.jsonl", text.encode("utf-8", "surrogatepass"))


@ANY
@given(text=CSV_TEXT)
def test_any_csv(hostile, text):
    text = text.replace("/SECRET", str(hostile.parent / "secret.png"))
    check(hostile, "metadata.csv", text.encode("utf-8", "surrogatepass"))


@ANY
@given(content=st.binary(), name=st.sampled_from(METADATA))
def test_any_bytes(hostile, content, name):
    check(hostile, name, content)


def test_the_watch_sees_files_outside(hostile):
    OPENED.clear()
    WATCH["on"] = True
    (hostile / "link.png").read_bytes()
    WATCH["on"] = False
    assert os.path.realpath(OPENED[-1]) == str(hostile.parent / "secret.png")
