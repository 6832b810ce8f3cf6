"""Hostile input of every kind: a word to the user or a result, never a traceback, a hang, a write
outside the project or script in a report. benchmarks/fuzz.py tries the same for longer."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import hostile
import hostile_kinds as kinds
import project
import pytest
import report_study as made_up
import yaml
from hostile import refused, watched

from fitspace import files, garbage, lineage
from fitspace.cli import main
from fitspace.config import load_study
from fitspace.errors import UserError, printable

EXAMPLES = {
    "studies": 100,
    "reports": 1,
    "report-files": 50,
    "images": 150,
    "trees": 100,
    "tables": 300,
    "adapters": 200,
    "records": 80,
    "tensors": 50,
}


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Durability is not tested here, and a busy disk takes seconds a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fitspace.files.os.fsync", lambda handle: None)
        yield


@pytest.mark.parametrize("name", EXAMPLES)
def test_any_input_is_used_or_refused(name, tmp_path, request):
    """Inputs by number, so that `python benchmarks/fuzz.py --again KIND/SEED/NUMBER` makes one."""
    finished = request.getfixturevalue("origin").folder if name in kinds.OF_A_STUDY else None
    kind = kinds.made(name, tmp_path, finished)
    outcomes = [kind(0, number) for number in range(EXAMPLES[name])]
    assert EXAMPLES[name] < 50 or len(set(outcomes)) == 2, "all came out the same: no input got far"


# --- the watch itself -------------------------------------------------------------------


def test_the_watch_sees_writes_programs_and_hangs(tmp_path, monkeypatch):
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link").symlink_to(tmp_path / "outside")
    acts = {
        "a write": lambda: (tmp_path / "outside").write_text("x"),
        "through a link": lambda: (inside / "link").write_text("x"),
        "a folder": lambda: (tmp_path / "folder").mkdir(),
        "a removal": lambda: (tmp_path / "folder").rmdir(),
        "a program": lambda: subprocess.run(["true"], check=True),
    }
    for what, act in acts.items():
        with pytest.raises(AssertionError), watched(inside):
            act()
        assert what
    with monkeypatch.context() as patch:
        patch.setattr(hostile, "SECONDS", 0.1)
        with pytest.raises(hostile.Slow), watched(inside):
            signal.pause()
    with pytest.raises(MemoryError), watched(inside):
        bytearray(2 * hostile.MEMORY)
    with watched(inside):
        (inside / "file").write_text("x")


# --- study files ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return kinds.study_folder(tmp_path_factory.mktemp("study") / "inner")


@pytest.mark.parametrize("name", hostile.RAW_YAML)
def test_study_files_that_are_no_study(workplace, name, monkeypatch):
    monkeypatch.chdir(workplace)
    with watched(workplace):
        assert kinds.check_study(hostile.RAW_YAML[name], deep=False)


WRONG = [None, "", "x" * 10_000, "\x1b[2J", "../../x", -1, 2**70, 0.1e-9, [], [[]], {}, True]


def test_wrong_values_at_every_key_of_the_schema(workplace, monkeypatch):
    """Every key of the models is there to be wrong, and its name stands in what is said."""
    monkeypatch.chdir(workplace)
    content = kinds.study_content()
    path = Path("params/wrong.yaml")
    tried = 0
    for place in list(hostile.places(content))[1:]:
        for value in Random(str(place)).sample(WRONG, 3):
            path.write_text(json.dumps(hostile.with_value(content, place, value)))
            try:
                load_study(path)
            except UserError as error:
                key = next(str(key) for key in reversed(place) if isinstance(key, str))
                parent = str(place[0])
                assert any(key in p or parent in p for p in error.problems), (place, value)
            tried += 1
    assert tried > 250


CROSSED = {
    "too many cells": (["arms", 0, "factors", "width"], list(range(1, 9001)), "cells; allowed"),
    "too many levels": (["arms", 0, "factors", "output"], ["x"] * 10_001, "at most 10000"),
    "too many seeds": (["seeds"], list(range(10_001)), "at most 10000"),
    "too many runs": (["seeds"], list(range(10_000)), "runs in all; allowed"),
}


@pytest.mark.parametrize("place, value, said", CROSSED.values(), ids=CROSSED)
def test_studies_that_cross_to_more_than_memory_holds(workplace, monkeypatch, place, value, said):
    monkeypatch.chdir(workplace)
    content = kinds.small_study()
    content["arms"][0]["factors"] = {"output": ["FFN_in"], "train.steps": list(range(1, 103))}
    del content["arms"][0]["settings"]["width"]
    path = Path("params/crossed.yaml")
    path.write_text(json.dumps(hostile.with_value(content, tuple(place), value)))
    with watched(workplace), pytest.raises(UserError, match=said):
        load_study(path)


PATHS = {
    "absolute": ("/etc", 2),
    "dots": ("../../../../etc", 2),
    "a link out": ("out/etc", 2),
    "home": ("~", 2),
    "a device": ("/dev/zero", 2),
    "a process": ("/proc/self/fd/0", 2),
    "spaces": ("images ", 2),
    "an option": ("--help", 2),
    "itself": ("./images", 0),
}


@pytest.mark.parametrize("path, code", PATHS.values(), ids=PATHS)
def test_paths_of_tasks_through_the_command(workplace, monkeypatch, capsys, path, code):
    monkeypatch.chdir(workplace)
    content = kinds.small_study()
    content["tasks"][0]["path"] = path
    Path("params/paths.yaml").write_text(yaml.safe_dump(content))
    with watched(workplace):
        assert main(["check", "params/paths.yaml"]) == code
    error = capsys.readouterr().err
    assert "Traceback" not in error and ("tasks[0]" in error) == (code == 2)


def test_a_study_file_that_is_a_pipe_is_not_waited_for(tmp_path, capsys):
    os.mkfifo(tmp_path / "study.yaml")
    with watched(tmp_path):
        assert main(["check", str(tmp_path / "study.yaml")]) == 2
    assert "not a file" in capsys.readouterr().err


def test_what_a_terminal_would_obey_is_escaped(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    content = kinds.small_study() | {"\x1b[2J": 1, "\u202etxt": 2}
    Path("params/escape.yaml").write_text(json.dumps(content))
    assert main(["check", "params/escape.yaml"]) == 2
    error = capsys.readouterr().err
    assert "\x1b" not in error and "\u202e" not in error
    assert "\\x1b[2J: unknown key" in error and "\\u202etxt: unknown key" in error
    assert printable("Größe 日本 a\tb\nc") == "Größe 日本 a\tb\nc"


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    """``fitspace anova ... | head``: a broken pipe is an OSError too, and must not be raised."""
    (tmp_path / "t.csv").write_text("y,a\n1,u\n2,v\n3,u\n4,v\n")
    command = [sys.executable, "-m", "fitspace.cli", "anova", "t.csv", "--formula", "y ~ a"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == 0, done.stderr


# --- tables and formulas ----------------------------------------------------------------


@pytest.mark.parametrize("name", hostile.RAW_FORMULAS)
def test_formulas_are_read_never_run(tmp_path, monkeypatch, name):
    from fitspace.stats import anova_of_file

    monkeypatch.chdir(tmp_path)
    cells = [f"x{i}" for i in range(60)]
    lines = [",".join(["y", "a", "b", "c", *cells])]
    lines += [
        ",".join([str(i), "uv"[i % 2], "xyz"[i % 3], "k", *["pq"[i % 2]] * 60]) for i in range(12)
    ]
    Path("t.csv").write_text("\n".join(lines))
    with watched(tmp_path):
        refused(lambda: anova_of_file(Path("t.csv"), formula=hostile.RAW_FORMULAS[name]))
    assert os.listdir(tmp_path) == ["t.csv"]


def test_a_table_of_a_hundred_thousand_columns(tmp_path, capsys):
    names = [f"c{i}" for i in range(100_000)]
    path = tmp_path / "wide.csv"
    path.write_text(",".join(["y", *names]) + "\n" + ",".join(["1"] * 100_001) + "\n")
    with watched(tmp_path):
        assert main(["anova", str(path), "--formula", "y ~ nothing"]) == 2
    assert "100001 columns; allowed" in capsys.readouterr().err


# --- what stages wrote ------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(origin, tmp_path_factory):
    return kinds.copied(origin.folder, tmp_path_factory.mktemp("finished") / "inner")


@pytest.fixture
def damaged(finished, monkeypatch):
    """The finished study; what a test changes is put back."""
    monkeypatch.chdir(finished)
    kept: dict[Path, bytes] = {}

    def change(path: str | Path, content: bytes) -> Path:
        path = Path(path)
        kept.setdefault(path, path.read_bytes())
        path.write_bytes(content)
        return path

    yield change
    for path, content in kept.items():
        path.write_bytes(content)


PROVENANCE = Path("reports/two/provenance.json")


def test_a_commit_that_is_an_option_of_git_is_refused(damaged, finished):
    """`git archive --output=FILE` would write wherever provenance.json says."""
    from fitspace import audit

    content = json.loads(PROVENANCE.read_text())
    content["environments"][0]["git"]["commit"] = f"--output={finished.parent / 'stolen'}"
    damaged(PROVENANCE, json.dumps(content).encode())
    with watched(finished), pytest.raises(UserError, match="commit"):
        audit.audit(Path(project.STUDY), tier="hash")
    assert not (finished.parent / "stolen").exists()


@pytest.mark.parametrize("folder", ["../../../etc", "/etc", "results/train/..", "results/../x"])
def test_records_that_lead_elsewhere_are_refused(damaged, folder):
    content = json.loads(PROVENANCE.read_text())
    content["stages"][0]["folder"] = folder
    damaged(PROVENANCE, json.dumps(content).encode())
    with pytest.raises(UserError, match="folder"):
        lineage.read(PROVENANCE.parent)


def _forget_a_record(content: dict) -> None:
    content["stages"][0]["key"] = "0" * 12


def _cut(content: dict) -> None:
    del content["stages"]


@pytest.mark.parametrize("change", [_forget_a_record, _cut])
def test_a_damaged_provenance_never_frees_results(damaged, change):
    content = json.loads(PROVENANCE.read_text())
    change(content)
    damaged(PROVENANCE, json.dumps(content).encode())
    with pytest.raises(UserError, match=str(PROVENANCE)):
        garbage.find()


def test_a_damaged_cache_of_digests_is_forgotten(damaged):
    """Believed, it would give every run another key: all trained again, and gc would take them."""
    from fitspace import bases
    from fitspace.design import build_plan

    before = build_plan(load_study(project.STUDY)).stages.keys()
    bases.DIGESTS.exists() or files.remember(bases.DIGESTS, {})
    facts = files.remembered(bases.DIGESTS)
    model = [p for p in Path("models/emoji-unet").rglob("*.safetensors")][0]
    status = model.stat()
    lie = facts | {str(model.resolve()): [status.st_size, status.st_mtime_ns, "0" * 64]}
    damaged(bases.DIGESTS, json.dumps(lie | {"sha256": files.digest(facts)}).encode())
    assert build_plan(load_study(project.STUDY)).stages.keys() == before
    assert not garbage.find()


def _another_caption(content: dict) -> None:
    content["examples"][0]["caption"] = 10**6


def _no_captions(content: dict) -> None:
    content["captions"] = 7


def _more_examples(content: dict) -> None:
    content["examples"] = content["examples"] * 2


FORGED = {
    "a row that is not there": (_another_caption, "caption 1000000 is named"),
    "no list": (_no_captions, "manifest.json: not a prepared task's manifest .captions"),
    "more examples than latents": (_more_examples, "latents.safetensors.*needed"),
}


@pytest.mark.parametrize("change, said", FORGED.values(), ids=FORGED)
def test_a_manifest_forged_with_its_sidecar_is_refused(finished, monkeypatch, change, said):
    from fitspace.data import prepare
    from fitspace.design import build_plan

    monkeypatch.chdir(finished)
    stage = build_plan(load_study(project.STUDY)).runs[0].prepare
    path = stage.folder / "manifest.json"
    kept = {p: p.read_bytes() for p in (path, stage.sidecar)}
    content = json.loads(kept[path])
    change(content)
    try:
        path.write_text(json.dumps(content))
        kinds.resealed(path)
        with pytest.raises(UserError, match=said):
            prepare.load(stage)
    finally:
        for changed, before in kept.items():
            changed.write_bytes(before)


def test_an_image_that_is_a_pipe_is_not_waited_for(tmp_path):
    from fitspace.data.folder import content_digest

    os.mkfifo(tmp_path / "a.png")
    row = {"file_name": "a.png", "text": "a"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    with watched(tmp_path), pytest.raises(UserError, match="a.png.*no such file"):
        content_digest(tmp_path)


JSON = {
    "not finite": b'{"a": NaN}',
    "too large a number": b'{"a": 1e999}',
    "too long a number": b'{"a": ' + b"9" * 30 + b"}",
    "half a pair": b'{"a": "\\ud800"}',
    "deep": b'{"a":' * 60 + b"1" + b"}" * 60,
    "endlessly deep": b"[" * 200_000,
    "not UTF-8": b'{"a": "\xff"}',
    "a list": b"[]",
    "nothing": b"",
}


@pytest.mark.parametrize("content", JSON.values(), ids=JSON)
def test_json_that_python_would_read_and_no_file_can_hold(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=str(path)):
        files.read_json(path)


def test_json_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with watched(tmp_path), pytest.raises(UserError, match="not even a file"):
        files.read_json(tmp_path / "a.json")


# --- safetensors ------------------------------------------------------------------------


def test_an_adapter_of_a_few_bytes_takes_no_memory_by_what_it_says(tmp_path):
    """A width is believed only where a tensor has it: else a kilobyte could ask for gigabytes."""
    import tiny

    from fitspace import methods

    model = tiny.unet()
    own = {"input": "CA_out", "output": "FFN_in", "width": 3}
    path = tmp_path / "a.safetensors"
    attachment = methods.attach(model, "adapter", own, seed=0)
    methods.save(attachment, path, {})
    attachment.remove()
    header, data = hostile.split_safetensors(path.read_bytes())
    facts = json.loads(header["__metadata__"]["fitspace"])
    facts["settings"]["width"] = 65_536
    header["__metadata__"]["fitspace"] = json.dumps(facts)
    path.write_bytes(hostile.joined_safetensors(json.dumps(header).encode(), data))
    with watched(tmp_path), pytest.raises(UserError, match="width is 65536"):
        methods.load(model, path)


# --- reports ----------------------------------------------------------------------------


def _no_picture(folder: Path) -> None:
    (folder / "gallery/blueprint/best.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))


def _other_size(folder: Path) -> None:
    shutil.copy(folder / "gallery/blueprint/best.png", folder / "gallery/blueprint/x.png")
    gallery = json.loads((folder / "gallery.json").read_text())
    gallery[1] |= {"file": "gallery/blueprint/x.png", "size": 8000}
    (folder / "gallery.json").write_text(json.dumps(gallery))


@pytest.mark.parametrize("change", [_no_picture, _other_size])
def test_strips_that_are_not_what_the_gallery_says(tmp_path, change):
    from fitspace.report import inputs

    study = made_up.study({"input": ["a", "b"], "output": ["x", "y"]})
    table = made_up.rows(study)
    made_up.write(tmp_path, table)
    made_up.write_gallery(tmp_path, table, ["one", "two"])
    change(tmp_path)
    with pytest.raises(UserError, match="gallery.json.*best.png|gallery.json.*x.png"):
        inputs.read(study, tmp_path)


def test_a_page_with_script_in_it_would_be_found():
    """What the checks of a page look for, put into one."""
    ours = (kinds.ROOT / "src/fitspace/report/templates/report.js").read_text(encoding="utf-8")
    import base64
    import hashlib

    allowed = base64.b64encode(hashlib.sha256(ours.encode()).digest()).decode()
    policy = f"default-src 'none'; script-src 'sha256-{allowed}'"
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    foot = f'<script type="application/json">{{}}</script><script>{ours}</script>'
    kinds.check_page(f"{head}<p>text &lt;b&gt;</p>{foot}", ["text <b>"])
    for bad in (
        "<script>alert(1)</script>",
        "<p onclick='x'>",
        "<a href='javascript:x'>",
        "<img src='http://evil.example/x.png'>",
        "<iframe></iframe>",
        "<p style='background: url(http://evil.example)'>",
        "<!-- x -->",
        "<base href='/'>",
        "<meta http-equiv='refresh' content='0'>",
    ):
        with pytest.raises(AssertionError):
            kinds.check_page(f"{head}{bad}{foot}", [])
    with pytest.raises(AssertionError):
        kinds.check_page(f"{head}<p></p>{foot}", ["lost"])


# --- the driver -------------------------------------------------------------------------


def test_the_fuzzer_counts_and_names_what_it_tried(tmp_path):
    command = [sys.executable, "benchmarks/fuzz.py", "--minutes", "0.02", "--kinds", "tables"]
    done = subprocess.run(command, cwd=kinds.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    row = next(line.split() for line in done.stdout.splitlines() if line.startswith("tables"))
    assert int(row[1].replace(",", "")) > 0 and row[4] == "0"
