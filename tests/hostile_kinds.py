"""The kinds of hostile input, each with what of fitspace it is sent through."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock
from xml.etree import ElementTree

import hostile
import numpy as np
import project
import report_study
import tiny
import yaml
from hostile import Kind, refused
from PIL import Image

from fitspace.data import prepared
from fitspace.plan import load_study
from fitspace.stages import evaluate
from fitspace.tracking import entries

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


# --- study files ------------------------------------------------------------------------


def study_folder(folder: Path) -> Path:
    """A project with models, images and no results."""
    (folder / "params").mkdir(parents=True)
    (folder / "models").symlink_to(ROOT / "models")
    project.images(folder / "images")
    (folder / "out").symlink_to("/")
    return folder


def study_content() -> dict[str, Any]:
    """A study with a value at every key of the schema."""
    content = project.content()
    content["question"] = "Which?"
    content["train"] |= {
        "lr_schedule": "cosine", "warmup_steps": 1, "weight_decay": 0.1, "grad_clip": 1.0,
        "ema": 0.9, "caption_dropout": 0.1, "min_snr_gamma": 5.0, "precision": "fp32",
    }  # fmt: skip
    content["tasks"] += [
        {"name": "style", "source": "openmoji", "style": "line", "scale": 1},
        {"name": "far", "source": "hub", "dataset": "org/name@main", "folder": "x"},
        {
            "name": "one",
            "source": "openmoji",
            "style": "full",
            "subject": "ear",
            "dreambooth": {
                "noun": "dog", "prompts": ["{} in snow"], "token": "sks", "class_images": 9,
                "template": "photo of a {}", "prior_weight": 1.0, "class_guidance": 3.0,
            },
        },
    ]  # fmt: skip
    content["arms"] += [
        {"name": "l", "method": "lora", "factors": {"rank": [2, 4], "train.lr": [1.0e-3, 1.0e-4]}},
        {"method": "full", "train": {"lr": 1.0e-4}},
    ]
    content["arms"][0] |= {"illegal_cells": "drop", "match_trainable": None, "subset": None}
    content["analysis"] |= {"responses": ["clip_t", "clip_i"], "margins": {"clip_t": 0.1}}
    content["analysis"]["transform"] = {"clip_i": "log"}
    return content


def small_study() -> dict[str, Any]:
    return project.content()


def check_study(content: bytes, deep: bool) -> bool:
    """What `fitspace check` and, with ``deep``, `fitspace plan` make of a study file."""
    from fitspace.plan import Models
    from fitspace.plan.overview import describe
    from fitspace.plan.rendering import render

    path = Path("params/hostile.yaml")
    path.write_bytes(content)
    found: list[Any] = []
    if refused(lambda: found.append(load_study(path))):
        return True
    assert Models(found[0]).absent is not None
    return deep and refused(lambda: render(describe(found[0])))


def studies(folder: Path) -> Kind:
    with inside(study_folder(folder)):
        assert not check_study(yaml.safe_dump(small_study()).encode(), deep=True)
    whole, small = study_content(), small_study()

    def attempt(r: Random) -> bool:
        content = whole if r.random() < 0.5 else small
        with inside(folder):
            return check_study(hostile.study_bytes(r, content), deep=r.random() < 0.2)

    return Kind("studies", folder, attempt)


# --- reports ----------------------------------------------------------------------------

_URLS = ("href", "src", "srcset", "action", "formaction", "data", "poster", "xlink:href", "cite")
_FOREIGN = {
    "iframe",
    "object",
    "embed",
    "form",
    "base",
    "applet",
    "frame",
    "foreignobject",
    "input",
}


class Page(HTMLParser):
    """All that a page has which could act: elements, attributes, the content of raw elements."""

    def __init__(self, html: str):
        super().__init__()
        self.text, self.scripts, self.styles = "", [], 0
        self.attributes: list[str] = []
        self._raw: list[str] | None = None
        self.policy = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        assert tag not in _FOREIGN, f"<{tag}>"
        given = dict(attributes)
        assert len(given) == len(attributes), f"<{tag}> has an attribute twice"
        for name, value in attributes:
            value = value or ""
            assert not name.startswith("on"), f"<{tag} {name}={value[:80]!r}>"
            assert re.fullmatch("[a-zA-Z][a-zA-Z0-9:_-]*", name), f"<{tag}> has {name[:80]!r}"
            if name in _URLS:
                local = value.startswith(("#", "data:text/csv", "data:image/png;base64,"))
                assert local or (tag == "link" and value == "data:,"), (
                    f"<{tag} {name}={value[:80]}>"
                )
            if name == "style":
                urls = re.findall(r"url\(([^)]*)\)", value)
                assert all(re.fullmatch(r"data:image/png;base64,[\w+/=]*|#[\w-]+", u) for u in urls)
            self.attributes.append(value)
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]
        elif "http-equiv" in given:
            raise AssertionError(f"<meta http-equiv={given['http-equiv']}>")
        if tag == "script":
            self._raw = [given.get("type") or ""]
        self.styles += tag == "style"

    def handle_endtag(self, tag):
        if tag == "script":
            self.scripts.append(self._raw)
            self._raw = None

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data[:80]!r}")

    def handle_data(self, text):
        if self._raw is not None:
            self._raw.append(text)
        self.text += text


def check_page(html: str, texts: list[str]) -> None:
    """No script but ours, nothing that acts or requests, and the texts are there as text."""
    page = Page(html)
    kinds = [kind for kind, *_ in page.scripts]
    assert kinds == ["application/json", ""], kinds
    json.loads(page.scripts[0][1])
    ours = (ROOT / "src/fitspace/report/templates/report.js").read_text(encoding="utf-8")
    assert page.scripts[1][1] == ours
    allowed = base64.b64encode(hashlib.sha256(ours.encode()).digest()).decode()
    assert f"script-src 'sha256-{allowed}'" in page.policy and "default-src 'none'" in page.policy
    shown = as_shown("\n".join([page.text, *page.attributes]))
    missing = [text for text in texts if as_shown(text) not in shown]
    assert not missing, f"not shown as text: {missing[:3]!r}"


def as_shown(text: str) -> str:
    """Text as a page can hold it: white space is one, what HTML cannot hold is replaced."""
    text = "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cn") else c for c in text)
    return " ".join(text.replace("\ufffd", " ").split())


def check_svg(path: Path) -> None:
    for element in ElementTree.parse(path).iter():
        tag = element.tag.rpartition("}")[2].lower()
        assert tag not in _FOREIGN | {"script", "a"}, f"{path.name}: <{tag}>"
        for name, value in element.attrib.items():
            name = name.rpartition("}")[2].lower()
            assert not name.startswith("on"), f"{path.name}: {name}"
            local = value.startswith(("#", "data:image/png;base64,"))
            assert name != "href" or local, f"{path.name}: {name}={value[:80]}"


def _written(folder: Path, study, table, r: Random, texts: Callable[[], str]) -> list[str]:
    """A report's inputs with hostile text wherever a text stands; returns what must be shown."""
    captions = [texts() for _ in range(10)]
    said = texts()
    report_study.write(folder, table, dropped=[texts() for _ in range(3)])
    report_study.write_gallery(folder, table, captions, size=4)
    gallery = json.loads((folder / "gallery.json").read_text())
    for entry in gallery:
        entry["attribution"] = said
        if r.random() < 0.3:
            entry["role"] = texts()
        if r.random() < 0.3:
            entry["point"] = texts()
    (folder / "gallery.json").write_text(json.dumps(gallery))
    design = json.loads((folder / "design.json").read_text())
    return [*captions, said, *design["dropped"]]


def report_text(r: Random) -> str:
    """Text as the gallery can have it: a caption was cleaned, or somebody edited it since."""
    from fitspace.data.folder import clean_caption

    while True:
        found = hostile.text(r)
        if not re.search("[\ud800-\udfff]", found):
            return found if r.random() < 0.5 else clean_caption(found)[0]


def reports(folder: Path) -> Kind:
    """Reports whose every text is hostile, built and read as a browser reads them."""
    import matplotlib.font_manager  # makes its caches, outside of any project

    from fitspace.report import build

    matplotlib.get_configdir(), matplotlib.get_cachedir()
    folder.mkdir(parents=True)

    def attempt(r: Random) -> bool:
        shutil.rmtree(folder / "made", ignore_errors=True)
        texts = partial(report_text, r)
        levels = list(dict.fromkeys(t for t in (texts()[:200].strip() for _ in range(4)) if t))
        factors = {
            "input": [*levels, "b"],
            r.choice(["output", "train.lr", "__class__"]): ["x", "y"],
        }
        study = report_study.study(
            factors, tasks=("blueprint",), responses=("fd_effnet", "clip_t"),
            title=texts()[:200].strip() or "x", question=texts()[:2000],
        )  # fmt: skip
        table = report_study.rows(study)
        for row in table:
            if r.random() < 0.05:
                row[r.choice(["arm", "point", "run"])] = texts() + str(r.random())
        found: list[str] = []

        def make() -> None:
            found.extend(_written(folder / "made", study, table, r, texts))
            path = build(study, folder / "made")
            check_page(path.read_text(encoding="utf-8"), [*found, study.title, study.question])
            for drawn in (folder / "made/figures").glob("*.svg"):
                check_svg(drawn)
            markdown = (folder / "made/report.md").read_text(encoding="utf-8")
            assert not re.search(r"(?<!\\)<\w|(?<!\\)\]\((?!figures/|gallery/)", markdown)

        return refused(make)

    return Kind("reports", folder, attempt)


def report_files(folder: Path) -> Kind:
    """The files that a report is made of, edited by somebody: made, or refused with a word."""
    import matplotlib.font_manager

    from fitspace.report import build, inputs

    matplotlib.get_configdir(), matplotlib.get_cachedir()
    study = report_study.study({"input": ["a", "b"], "output": ["x", "y"]})
    table = report_study.rows(study)
    report_study.write(folder, table, dropped=["a: b"])
    report_study.write_gallery(folder, table, ["one", "two <b>"], size=4)
    shutil.copy(ROOT / "reports/emoji/provenance.json", folder / "provenance.json")
    curve = [{"run": row["run"], "n": 8, "fd_effnet": 1.0, "kid_effnet": 0.1} for row in table]
    report_study.write(folder / "curve", curve)
    shutil.move(folder / "curve/runs.csv", folder / "against_n.csv")
    (folder / "curve").rmdir()
    names = ["runs.csv", "against_n.csv", "gallery.json", "design.json", "provenance.json"]
    sound = {name: (folder / name).read_bytes() for name in names}

    def attempt(r: Random) -> bool:
        name = r.choice([*names, "gallery.json", "runs.csv"])
        if name.endswith(".csv"):
            lines = sound[name].decode().splitlines()
            for _ in range(r.choice([1, 1, 3])):
                row = r.randrange(len(lines))
                cells = lines[row].split(",")
                cells[r.randrange(len(cells))] = hostile.cell(r)
                lines[row] = ",".join(cells)
            content = "\n".join(lines).encode("utf-8", "surrogatepass")
            content = hostile.damaged(r, content) if r.random() < 0.3 else content
        else:
            content = hostile.json_bytes(r, json.loads(sound[name]))
        try:
            (folder / name).write_bytes(content)
            if r.random() < 0.97:
                return refused(lambda: inputs.read(study, folder))
            shutil.rmtree(folder.parent / "copy", ignore_errors=True)
            shutil.copytree(folder, folder.parent / "copy")
            return refused(
                lambda: check_page(build(study, folder.parent / "copy").read_text("utf-8"), [])
            )
        finally:
            (folder / name).write_bytes(sound[name])

    return Kind("report-files", folder.parent, attempt)


# --- images -----------------------------------------------------------------------------

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")


def encoded(r: Random) -> bytes:
    """A sound image of some kind."""
    mode = r.choice(["RGB", "L", "P", "RGBA", "1"])
    side = r.choice([1, 3, 16])
    pixels = np.frombuffer(r.randbytes(side * side * 3), np.uint8).reshape(side, side, 3)
    image, kind, file = Image.fromarray(pixels).convert(mode), r.choice(FORMATS), io.BytesIO()
    options = {"compression": r.choice(["raw", "tiff_lzw", "jpeg", "tiff_deflate", "group4"])}
    options = options if kind == "TIFF" and mode in ("RGB", "L") else {}
    if options.get("compression") == "group4":
        options = {}
    if kind == "JPEG" and mode in ("P", "RGBA"):
        image = image.convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = r.randint(0, 9)
    if kind in ("PNG", "JPEG", "WEBP") and r.random() < 0.4:
        options["exif"] = exif
    image.save(file, kind, **options)
    return file.getvalue()


def bomb(r: Random) -> bytes:
    """A PNG of a few bytes that says it is huge, or one that unpacks to far more than it says."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    width = r.choice([0, 1, 100, 9459, 9460, 20_000, 65_535, 2**31 - 1, 2**32 - 1])
    height = r.choice([0, 1, width, 9459, 2**31 - 1])
    depth, colour = r.choice([(8, 2), (16, 6), (1, 0), (8, 3), (32, 2), (0, 0), (255, 255)])
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, r.choice([0, 1, 9]))
    data = zlib.compress(bytes(r.choice([0, 10, 10_000_000])), 9)
    text = (
        chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(30_000_000), 9)) if r.random() < 0.3 else b""
    )
    profile = chunk(b"iCCP", b"x\0\0" + data) if r.random() < 0.3 else b""
    parts = chunk(b"IHDR", header) + profile + text + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def images(folder: Path) -> Kind:
    """Damaged images and bombs, each the third of a folder that is sound otherwise."""
    from fitspace.data import folder as folders
    from fitspace.data import pixels

    folder.mkdir(parents=True)
    sound = np.zeros((8, 8, 3), np.uint8)
    for name in "ab":
        Image.fromarray(sound).save(folder / f"{name}.png")
    splits = zip("abc", SPLITS, strict=True)
    lines = [{"file_name": f"{n}.png", "text": n, "split": split} for n, split in splits]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def attempt(r: Random) -> bool:
        act = r.random()
        content = bomb(r) if act < 0.1 else hostile.damaged(r, encoded(r))
        (folder / "c.png").write_bytes(content)
        before = pixels.MAX_PIXELS
        pixels.MAX_PIXELS = before if act < 0.1 else 1_000_000  # seconds' worth of honest work
        try:
            read = folders.pictures if r.random() < 0.3 else folders.examples
            return refused(lambda: read(folder, 8))
        finally:
            pixels.MAX_PIXELS = before

    return Kind("images", folder, attempt)


SPLITS = ("train", "train", "test")


def trees(folder: Path) -> Kind:
    """Image folders as file systems allow them: odd names, links, pipes, sockets, loops, twins."""
    from fitspace.data import folder as folders

    secret = folder / "secret.png"
    folder.mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(secret)
    image = secret.read_bytes()

    def plant(base: Path, r: Random) -> str | None:
        """Something with a name in the folder; None where the file system has no such name."""
        stem = r.choice(["", "sub/", "sub/deep/"]) + r.choice(
            ["a", "A", "\u00e9", "e\u0301", "\ufb01", "fi", "\u212b", "\u00c5", "with space", " ",
             "x\ny", "..x", "...", "-rf", "$(x)", "x" * 251, "\u00e9" * 120, "\U0001f600",
             "\u202e", "\x01",
             "a.png", "COM1", "a;b", "a'b\"", "%2e%2e", "~", "#", "*", "?"]
        )  # fmt: skip
        name = stem + r.choice([".png", ".png", ".PNG", ".jpg", ""])
        path = base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        act = r.random()
        try:
            if act < 0.6:
                with path.open("xb") as file:  # never through a link that was planted before
                    file.write(image if r.random() < 0.9 else b"")
            elif act < 0.65:
                os.mkfifo(path)
            elif act < 0.7:
                path.mkdir()
            elif act < 0.75:
                os.link(secret, path)
            else:
                path.symlink_to(
                    r.choice(
                        [secret, base.parent, base, ".", path.name, "nowhere", "/dev/zero",
                         "/dev/stdin", "/proc/self/mem", "/proc/self/root", "/dev/full",
                         base / "a.png"]
                    )
                )  # fmt: skip
        except (OSError, ValueError):
            return None
        return name

    def attempt(r: Random) -> bool:
        base = folder / "base"
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir()
        names = ["one.png", "two.png", "three.png"]
        for name in names:
            (base / name).write_bytes(image)
        names += [name for _ in range(r.choice([0, 1, 1, 2, 6])) if (name := plant(base, r))]
        names += [r.choice(["../secret.png", str(secret), "a.png", "./a.png", "A.PNG", "sub", "."])
                  for _ in range(r.choice([0, 0, 1]))]  # fmt: skip
        lines = []
        for i, name in enumerate(names):
            row = {"file_name": name, "text": f"text {i}", "split": SPLITS[i % 3]}
            row = row if r.random() < 0.95 else hostile.mutated(r, row)
            lines.append(json.dumps(row))
        name = r.choice(["metadata.jsonl"] * 6 + ["metadata.csv"])
        content = "\n".join(lines).encode()
        (base / name).write_bytes(content if r.random() < 0.9 else hostile.damaged(r, content))
        if r.random() < 0.05:
            (base / name).unlink()
            plant_metadata(base / name, r, secret)
        call = r.choice([folders.examples, folders.pictures])
        return refused(lambda: call(Path("base"), 8, folder)) | refused(
            lambda: folders.content_digest(Path("base"), folder)
        )

    return Kind("trees", folder, attempt)


def plant_metadata(path: Path, r: Random, secret: Path) -> None:
    act = r.choice(["fifo", "folder", "outside", "zero", "loop"])
    if act == "fifo":
        os.mkfifo(path)
    elif act == "folder":
        path.mkdir()
    else:
        path.symlink_to({"outside": secret, "zero": "/dev/zero", "loop": path.name}[act])


# --- tables -----------------------------------------------------------------------------

COLUMNS = ["y", "a", "b", "block"]


def tables(folder: Path) -> Kind:
    from fitspace.stats import anova_of_file, rows_for_json

    folder.mkdir(parents=True)
    path = folder / "table.csv"

    def attempt(r: Random) -> bool:
        path.write_bytes(hostile.table_bytes(r, COLUMNS))
        names = [r.choice(COLUMNS[1:]) if r.random() < 0.95 else hostile.text(r) for _ in range(2)]
        options: dict[str, Any] = {"type": r.choice([1, 2, 2, 3])}
        if r.random() < 0.4:
            left = "y" if r.random() < 0.95 else hostile.text(r)[:50]
            options["formula"] = f"{left} ~ {hostile.formula(r, COLUMNS)}"
        else:
            options |= {"response": "y", "factors": names}
            options["interactions"] = r.random() < 0.3
        if r.random() < 0.2:
            options["robust"] = r.choice(["hc0", "hc3", "hc4", "welch"])
        if r.random() < 0.2:
            options["transform"] = r.choice(["log", "logit", "box-cox"])
        if r.random() < 0.1:
            options["exact_decimals"] = True
        if r.random() < 0.1:
            options["permutations"] = 20
        if r.random() < 0.1:
            options["block"] = r.choice([["block"], ["a"], ["nothing"]])
        if r.random() < 0.1:
            options["random"] = r.choice(COLUMNS)

        def analyse() -> None:
            found = anova_of_file(path, **options)
            json.dumps(rows_for_json(found), allow_nan=False)
            found.to_string(index=False)

        return refused(analyse)

    return Kind("tables", folder, attempt)


# --- safetensors ------------------------------------------------------------------------


def adapters(folder: Path) -> Kind:
    """Adapter files, read, exported and put on a model, which has to be left as it was."""
    from fitspace import methods
    from fitspace.methods import export

    folder.mkdir(parents=True)
    model = tiny.unet()
    files = []
    for method, own in (
        ("lora", {"rank": 2}),
        ("adapter", {"input": "CA_out", "output": "FFN_in", "width": 3}),
    ):
        attachment = methods.attach(model, method, own, seed=0)
        methods.save(attachment, folder / "sound.safetensors", {"key": "x"})
        attachment.remove()
        files.append((folder / "sound.safetensors").read_bytes())
    names = list(model.state_dict())

    def attempt(r: Random) -> bool:
        path = folder / "hostile.safetensors"
        path.write_bytes(hostile.safetensors_bytes(r, r.choice(files)))
        shutil.rmtree(folder / "out", ignore_errors=True)

        def load() -> None:
            methods.load(model, path).remove()

        act = r.random()
        try:
            if act < 0.3:
                return refused(lambda: methods.read(path))
            if act < 0.45:
                return refused(lambda: export.export(path, folder / "out"))
            return refused(load)
        finally:
            assert list(model.state_dict()) == names
            assert not getattr(model, "_fitspace_method", None)

    return Kind("adapters", folder, attempt)


# --- what stages wrote ------------------------------------------------------------------


def copied(finished: Path, folder: Path) -> Path:
    """A project to be damaged, its study's report collected and made by this code."""
    from fitspace.plan import build_plan
    from fitspace.report import build
    from fitspace.results.table import collect_into

    if not folder.exists():
        project.Project(finished).copy(folder)
        for path in (folder / "params").glob("emoji*.yaml"):  # some of their bases are left out
            path.unlink()
        with inside(folder):
            plan = build_plan(load_study(project.STUDY))
            collect_into(plan, Path("reports/two"))
            build(plan.study, Path("reports/two"))
            (folder / "dvc.lock").write_text(yaml.safe_dump(_lock()))
    return folder


def _lock() -> dict[str, Any]:
    out = {"path": "reports/two/runs.csv", "hash": "md5", "md5": "0" * 32, "size": 1}
    return {"schema": "2.0", "stages": {"report": {"cmd": "x", "outs": [out]}}}


def resealed(path: Path) -> None:
    """Write a changed file's SHA-256 and size into the sidecar beside it, as a forger would."""
    from fitspace.core.files import sha256

    others = (p for p in path.parent.glob("*.json") if p != path)
    (sidecar,) = (p for p in others if '"outputs"' in p.read_text())
    content = json.loads(sidecar.read_text())
    for item in content["outputs"]:
        if Path(item["path"]).name == path.name:
            item |= {"sha256": sha256(path), "size": path.stat().st_size}
    sidecar.write_text(json.dumps(content))


def _damage(r: Random, path: Path) -> None:
    """Damage a file by its kind; the sidecar of a result may vouch for it all the same."""
    content = path.read_bytes()
    if path.suffix == ".json":
        content = hostile.json_bytes(r, json.loads(content))
    elif path.suffix == ".lock":
        content = hostile.study_bytes(r, yaml.safe_load(content))
    else:
        content = hostile.damaged(r, content)
    path.write_bytes(content)
    if path.name in ("manifest.json", "metrics.json") and r.random() < 0.7:
        resealed(path)


def records(finished: Path, folder: Path) -> Kind:
    """One file of a finished study, damaged; then everything that reads it.

    No damage may make `fitspace gc` remove what the study names.
    """
    from fitspace import audit
    from fitspace.audit import crate, garbage, prov, show
    from fitspace.plan import build_plan
    from fitspace.results import lineage, table
    from fitspace.stages.sidecars import verified

    copied(finished, folder)
    with inside(folder):
        study = load_study(project.STUDY)
        plan = build_plan(study)
    stages = list(plan.stages.values())
    reports = ("provenance.json", "gallery.json", "design.json", "origins.json", "runs.csv")
    paths = [stage.sidecar for stage in stages]
    paths += [stage.folder / "manifest.json" for stage in stages if stage.name == "prepare"] * 4
    paths += [stage.folder / "metrics.json" for stage in stages if stage.name == "evaluate"] * 2
    paths += [Path("reports/two") / name for name in reports] * 2
    paths += [Path("reports/two/provenance.json")] * 8
    paths += [Path("dvc.lock"), Path("results/.cache/digests.json")] * 3

    def again() -> None:
        found = build_plan(load_study(project.STUDY))
        assert found.stages.keys() == plan.stages.keys(), "other keys than before"

    def collect() -> None:
        table.collect(plan)
        known = lineage.read(Path("reports/two"))
        lineage.text(lineage.collect(plan, known))

    def look() -> None:
        found = audit.audit(Path(project.STUDY), tier="hash")
        json.dumps(found.as_json(), ensure_ascii=False).encode()
        show.text(found)

    def export() -> None:
        found = lineage.read(Path("reports/two"))
        prov.text(prov.document(found, found.records.values()))
        crate.write(Path(project.STUDY), found, Path("reports/two"), folder / "crate")

    def clear() -> None:
        found = {item.folder for item in garbage.find()}
        assert not found & {stage.folder for stage in stages}, "gc would remove what is named"

    uses = {
        "again": again,
        "sidecars": lambda: [verified(stage) for stage in stages],
        "collect": collect,
        "collect into": lambda: table.collect_into(plan, Path("reports/two")),
        "audit": look,
        "audit one": lambda: audit.audit(None, value="reports/two/anova.csv#1/p", tier="hash"),
        "prov": export,
        "gc": clear,
        "task": lambda: prepared.load(plan.runs[0].prepare),
        "track": lambda: entries.entries_of(plan),
    }
    often = {
        "manifest.json": ["task", "audit", "collect into"],
        "metrics.json": ["collect", "collect into", "track", "audit"],
        "digests.json": ["again", "gc"],
        "dvc.lock": ["audit"],
        "origins.json": ["audit one"],
    }

    def attempt(r: Random) -> bool:
        shutil.rmtree(folder / "crate", ignore_errors=True)
        path = r.choice(paths)
        kept = {p: p.read_bytes() for p in path.parent.iterdir() if p.is_file()}
        try:
            _damage(r, path)
            return refused(uses[r.choice(often.get(path.name, []) * 3 + list(uses))])
        finally:
            for p in set(path.parent.iterdir()) - kept.keys():
                if p.is_file():
                    p.unlink()
            for p, content in kept.items():
                p.write_bytes(content)

    def inside_it(r: Random) -> bool:
        with inside(folder):
            return attempt(r)

    return Kind("records", folder, inside_it)


def tensors(finished: Path, folder: Path) -> Kind:
    """A stage's safetensors, forged together with its sidecar, and read by the stages after it."""
    from fitspace import bases, metrics
    from fitspace.plan import build_plan

    copied(finished, folder)
    with inside(folder):
        study = load_study(project.STUDY)
        run = build_plan(study).runs[0]
        manifest = prepared.read_manifest(run.prepare)
        samples = evaluate.drawn(study, run)
        features = run.reference.folder / "features.safetensors"
        found = metrics.read_features(features, of_subject=False)

    def task() -> None:
        prepared.load(run.prepare, bases.resolve(study.base))

    def judged() -> None:
        """The features of the samples are given: to compute them takes seconds."""
        reference = metrics.read_features(features, of_subject=False)
        with (
            mock.patch.multiple(
                "fitspace.metrics.clip", load=mock.DEFAULT, image_embeddings=lambda *_: embedded
            ),
            mock.patch("fitspace.metrics.effnet.features", lambda *_: effnet),
        ):
            measured = metrics.evaluate(samples, reference, study.judge)
        json.dumps(measured, allow_nan=False)

    embedded, effnet = found["judge_images"], found["effnet"].double()
    uses = {
        run.prepare.folder / "latents.safetensors": task,
        run.prepare.folder / "text.safetensors": task,
        run.prepare.folder / "images.safetensors": lambda: prepared.read_images(
            run.prepare, manifest
        ),
        run.sample.folder / "samples.safetensors": lambda: evaluate.drawn(study, run),
        features: judged,
    }
    with inside(folder):
        judged()  # its libraries make folders of their own when they are imported

    def attempt(r: Random) -> bool:
        path = r.choice(list(uses))
        kept = {p: p.read_bytes() for p in path.parent.iterdir()}
        try:
            path.write_bytes(hostile.safetensors_bytes(r, path.read_bytes()))
            resealed(path)
            return refused(uses[path])
        finally:
            for p, content in kept.items():
                p.write_bytes(content)

    def inside_it(r: Random) -> bool:
        with inside(folder):
            return attempt(r)

    return Kind("tensors", folder, inside_it)


# --- all --------------------------------------------------------------------------------

KINDS: dict[str, Callable[..., Kind]] = {
    "studies": studies,
    "reports": reports,
    "report-files": report_files,
    "images": images,
    "trees": trees,
    "tables": tables,
    "adapters": adapters,
}
OF_A_STUDY: dict[str, Callable[..., Kind]] = {"records": records, "tensors": tensors}


def made(name: str, folder: Path, finished: Path | None = None) -> Kind:
    """A kind of input with a folder of its own; ``finished`` is a project with a finished study."""
    own = folder / name / "inner"
    return OF_A_STUDY[name](finished, own) if name in OF_A_STUDY else KINDS[name](own)
