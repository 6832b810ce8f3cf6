"""A study as one file: audited alone, the same every time; what is changed in it is named."""

import hashlib
import json
import os
import re
import shutil
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
from project import STUDY
from validator import NOT_KNOWN, validated

from fitspace.audit import EXIT, audit, bundle
from fitspace.cli import main
from fitspace.core import archives, files
from fitspace.core.errors import UserError
from fitspace.stages import pictures
from fitspace.training.sampling import of_sheet, sheet

METADATA = "ro-crate-metadata.json"


@pytest.fixture(scope="module")
def project(origin, tmp_path_factory):
    """A copy of the finished project with both of its bundles. Do not change its files."""
    copy = origin.copy(tmp_path_factory.mktemp("bundle") / "project")
    with pytest.MonkeyPatch.context() as patch:
        copy.enter(patch)
        bundle.write(Path(STUDY))
        bundle.write(Path(STUDY), light=True)
    return copy


@pytest.fixture(scope="module")
def whole(project):
    return project / "exported/two.zip"


@pytest.fixture(scope="module")
def light(project):
    return project / "reports/two.zip"


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """An empty working folder, far from the project and from any git."""
    (tmp_path / "alone").mkdir()
    monkeypatch.chdir(tmp_path / "alone")
    return tmp_path / "alone"


@pytest.fixture
def clone(project, tmp_path, monkeypatch):
    """A clone of the project, without results; the working folder."""
    made = project.clone(tmp_path / "clone")
    made.enter(monkeypatch)
    return made


def _names(path):
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def _one(path, pattern):
    """The first member that a pattern fits."""
    return next(name for name in _names(path) if re.fullmatch(pattern, name))


def _changed(path, to, change):
    """A copy of a bundle: ``change`` gets its members, name -> content, and alters them."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    with zipfile.ZipFile(to, "w") as archive:  # stored: quick, and what a stranger may do
        for name, content in files.items():
            archive.writestr(name, content)
    return to


def _flip(content):
    """The content with one bit of its middle byte flipped."""
    half = len(content) // 2
    return content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]


def _found(path, deep=False):
    with bundle.working_in(path, deep) as (_, findings):
        return [(f.kind, f.subject) for f in findings]


def test_a_bundle_is_audited_alone(whole, alone, capsys):
    assert main(["audit", str(whole)]) == EXIT["verified"] == 0
    said = capsys.readouterr().out
    assert "49 files rehashed, tier regenerate" in said and list(alone.iterdir()) == []


@pytest.mark.slow
def test_a_bundle_is_audited_alone_down_to_the_metrics(whole, alone, capsys):
    run = Path(_one(whole, r"results/evaluate/.*/metrics\.json")).parent.name
    argv = ["audit", str(whole), "--tier", "reevaluate", "--runs", run]
    assert main(argv) == EXIT["verified"] == 0
    said = capsys.readouterr().out
    assert "Verified: everything is as it was recorded (6 runs, 18 stages, 49 files" in said
    assert "tier reevaluate" in said and list(alone.iterdir()) == []


def test_one_number_of_a_bundle_is_traced(whole, alone, capsys):
    argv = ["audit", str(whole), "--tier", "hash", "--value", "anova.csv#1/F"]
    assert main(argv) == 0
    assert "reports/two/anova.csv#1/F" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["whole", "light"])
def test_the_same_study_gives_the_same_bytes(project, size, request, monkeypatch):
    project.enter(monkeypatch)
    path = request.getfixturevalue(size)
    before, files = path.read_bytes(), [*(project / "results").rglob("*.*")]
    for file in files:
        os.utime(file, (1, 1))
    assert bundle.write(Path(STUDY), light=size == "light").path.read_bytes() == before


@pytest.mark.slow
def test_it_is_a_crate_that_the_public_validator_accepts(whole, tmp_path, monkeypatch):
    (tmp_path / "crate").mkdir()
    archives.unpack(whole, tmp_path / "crate")
    found = validated(tmp_path / "crate", tmp_path, monkeypatch)
    assert found["REQUIRED"] == set() and found["RECOMMENDED"] <= NOT_KNOWN
    listed = json.loads((tmp_path / "crate" / METADATA).read_text())["@graph"]
    (root,) = [entity for entity in listed if entity["@id"] == "./"]
    assert {part["@id"] for part in root["hasPart"]} == {*_names(whole)} - {METADATA}


def test_samples_are_in_it_once_as_a_picture_and_come_out_bit_for_bit(project, whole):
    samples = sorted((project / "results/sample").rglob("samples.safetensors"))
    assert len(samples) == 6
    assert [name for name in _names(whole) if name.endswith("samples.safetensors")] == []
    with bundle.working_in(whole, deep=False):
        for path in samples:
            inside = path.relative_to(project.folder)
            assert inside.read_bytes() == path.read_bytes()
            assert inside.with_name("sheet.png").is_file()


def test_a_light_one_leaves_out_what_a_clone_has(whole, light):
    rooms = {name.split("/")[0] for name in {*_names(whole)} - {*_names(light)}}
    tasks = {name for name in {*_names(whole)} - {*_names(light)} if name.startswith("results/")}
    assert rooms == {"models", "images", "commits", "results"}
    assert {Path(name).name for name in tasks} == {
        "latents.safetensors", "text.safetensors",
    }  # fmt: skip
    assert light.stat().st_size < whole.stat().st_size / 10


# One of each kind of file that a bundle holds.
MEMBERS = {
    "adapter": r"results/train/.*/adapter\.safetensors",
    "loss curve": r"results/train/.*/history\.csv",
    "samples": r"results/sample/.*/sheet\.png",
    "metrics": r"results/evaluate/.*/metrics\.json",
    "sidecar": r"results/evaluate/.*/evaluate\.json",
    "reference features": r"results/reference/.*/features\.safetensors",
    "latents of a task": r"results/tasks/.*/latents\.safetensors",
    "held-out images of a task": r"results/tasks/.*/images\.safetensors",
    "base": r"models/emoji-unet/unet/.*\.safetensors",
    "judge": r"models/emoji-clip/.*\.safetensors",
    "the user's images": r"images/00\.png",
    "table": r"reports/two/runs\.csv",
    "page": r"reports/two/report\.html",
    "strip of the gallery": r"reports/two/gallery/.*\.png",
    "lineage": r"reports/two/provenance\.json",
    "study": r"params/two\.yaml",
    "workflow": r"workflow/rules/train\.smk",
    "pins": r"constraints\.txt",
    "source of a commit": r"commits/[0-9a-f]{40}/src/fitspace/core/rng\.py",
    "pins of a commit": r"commits/[0-9a-f]{40}/constraints\.txt",
    "licence": r"LICENSE",
}


@pytest.fixture
def holder(request, kind):
    """The smallest bundle that holds a kind of file, and one of these."""
    for size in ("light", "whole"):
        path = request.getfixturevalue(size)
        for name in filter(re.compile(MEMBERS[kind]).fullmatch, _names(path)):
            return path, name
    raise AssertionError(f"no bundle has {kind}")


@pytest.mark.parametrize("kind", MEMBERS)
def test_a_changed_byte_is_found_and_named(holder, alone, tmp_path, kind):
    path, name = holder
    change = _changed(path, tmp_path / "a.zip", lambda f: f.update({name: _flip(f[name])}))
    assert _found(change) == [("changed", name)]


@pytest.mark.parametrize("kind", ["adapter", "metrics", "base", "page", "source of a commit"])
def test_a_missing_member_is_found_and_named(holder, alone, tmp_path, kind):
    path, name = holder
    assert _found(_changed(path, tmp_path / "a.zip", lambda f: f.pop(name))) == [("absent", name)]


def _stranger(members):
    members["results/train/mine~0/adapter.safetensors"] = b"a stranger's"


def _question(members):
    text = members[METADATA].decode()
    members[METADATA] = text.replace('"name": "Two points"', '"name": "Some points"', 1).encode()


def _first_page(members):
    members["README.md"] = members["README.md"].replace(b"Two points", b"Two pints")


@pytest.mark.parametrize(
    "change, subject",
    [
        (_stranger, "results/train/mine~0/adapter.safetensors"),
        (_question, METADATA),
        (_first_page, "README.md"),
    ],
    ids=["a file that nothing lists", "the metadata", "the first page"],
)
def test_what_a_stranger_adds_or_retells_is_found(whole, alone, tmp_path, change, subject):
    assert _found(_changed(whole, tmp_path / "a.zip", change), deep=True) == [("changed", subject)]


def _forged(members):
    """A sheet changed, and the metadata told so: the lineage still has the old one."""
    name = next(n for n in members if n.endswith("sheet.png"))
    members[name] = members[name][:-1] + b"!"
    found = json.loads(members[METADATA])
    for entity in found["@graph"]:
        if entity["@id"] == name:
            entity["sha256"] = hashlib.sha256(members[name]).hexdigest()
    members[METADATA] = json.dumps(found).encode()


def _without_a_run(members):
    for name in [n for n in members if n.startswith("results/evaluate/none~mine~s0")]:
        del members[name]


VERDICTS = {
    "a forged file and metadata": (_forged, "changed", "SHA-256 is"),
    "a run left out": (_without_a_run, "absent", "results/evaluate"),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_the_audit_ends_as_that_of_a_project(whole, alone, tmp_path, capsys, case):
    change, verdict, words = VERDICTS[case]
    _changed(whole, tmp_path / "a.zip", change)
    assert main(["audit", str(tmp_path / "a.zip"), "--tier", "hash"]) == EXIT[verdict]
    assert words in capsys.readouterr().out


def _link(path):
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("results/link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc")


def _above(path):
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../evil", "x")


def _bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("results/zeros", bytes(20_000_000))


def _of_others(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("README.md", "Hello")


def _no_json(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(METADATA, "[")


def _no_study(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(METADATA, json.dumps({"@graph": [{"@id": "./"}]}))


def _study_elsewhere(path):
    entity = {"@id": "/etc/passwd", "exampleOfWork": {"@id": "#parameter/study"}}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(METADATA, json.dumps({"@graph": [entity]}))


REFUSED = {
    "a link": (_link, "'results/link' is a link"),
    "a path outside": (_above, "'../evil' leads out of the folder"),
    "a bomb": (_bomb, "says that it unpacks to 20000000 bytes"),
    "another zip": (_of_others, "not a bundle, which `fitspace bundle` writes"),
    "metadata that is no JSON": (_no_json, "not the metadata of a bundle"),
    "metadata without a study": (_no_study, "names no study file"),
    "metadata with a study elsewhere": (_study_elsewhere, "names no study file"),
}


@pytest.mark.parametrize("command", ["audit", "restore"])
@pytest.mark.parametrize("case", REFUSED)
def test_a_hostile_bundle_is_refused_with_one_message(
    light, alone, tmp_path, capsys, case, command
):
    spoil, words = REFUSED[case]
    path = Path(shutil.copy(light, tmp_path / "a.zip"))
    spoil(path)
    assert main([command, str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fitspace: {path}") and words in line
    assert [p for p in tmp_path.rglob("*") if p.name in ("evil", "zeros", "link")] == []


# --- writing ------------------------------------------------------------------------------


@pytest.fixture
def own(project, tmp_path, monkeypatch):
    """A copy of the project to be changed; the working folder."""
    copy = project.copy(tmp_path / "own")
    copy.enter(monkeypatch)
    return copy


def _stage(room, which=0):
    return sorted((Path("results") / room).iterdir())[which]


def _spoil(path):
    path.write_bytes(_flip(path.read_bytes()))


def _outside(own):
    text = (own / STUDY).read_text()
    (own / STUDY).write_text(text.replace("path: images", f"path: {own / 'images'}"))


NOT_BUNDLED = {
    "a changed adapter": (
        lambda _: _spoil(_stage("train") / "adapter.safetensors"), "adapter.safetensors: SHA-256"),
    "missing metrics": (
        lambda _: (_stage("evaluate") / "metrics.json").unlink(), "metrics.json is missing"),
    "images outside of the project": (_outside, "lies outside of the project"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_BUNDLED)
def test_a_study_that_is_not_as_recorded_is_not_bundled(own, case):
    spoil, words = NOT_BUNDLED[case]
    before = (own / "exported/two.zip").read_bytes()
    spoil(own)
    with pytest.raises(UserError) as error:
        bundle.write(Path(STUDY))
    assert any(words in problem for problem in error.value.problems)
    assert (own / "exported/two.zip").read_bytes() == before


def test_large_results_can_be_left_out_and_are_then_absent(own, alone, capsys):
    os.chdir(own.folder)
    size = max(p.stat().st_size for p in Path("results/train").rglob("adapter.safetensors"))
    assert main(["bundle", STUDY, "--largest", str((size - 1) / 2**20)]) == 0
    assert "left out: " in capsys.readouterr().out
    os.chdir(alone)
    assert main(["audit", str(own / "exported/two.zip"), "--tier", "hash"]) == EXIT["absent"]
    assert "absent   results/train: " in capsys.readouterr().out


def _record_by_dvc(room):
    """What `dvc commit` leaves of a folder: dvc.lock, and a listing in its cache."""
    rows = [
        {"md5": hashlib.md5(path.read_bytes()).hexdigest(), "relpath": str(path.relative_to(room))}
        for path in sorted(room.rglob("*"))
        if path.is_file()
    ]
    listing = json.dumps(rows).encode()
    md5 = f"{hashlib.md5(listing).hexdigest()}.dir"
    files.write_bytes(Path(".dvc/cache/files/md5") / md5[:2] / md5[2:], listing)
    outs = [{"path": room.as_posix(), "md5": md5}]
    files.write_json("dvc.lock", {"stages": {"train": {"outs": outs}}})


def test_what_dvc_recorded_goes_with_it(own, tmp_path, alone):
    os.chdir(own.folder)
    _record_by_dvc(Path("results/train"))
    own.commit("As DVC records")
    path = own / bundle.write(Path(STUDY)).path
    listing = _one(path, r"\.dvc/cache/.*\.dir")
    os.chdir(alone)
    assert main(["audit", str(path), "--tier", "hash"]) == 0
    lacking = _changed(path, tmp_path / "a.zip", lambda f: f.pop(listing))
    assert _found(lacking) == [("absent", listing)]
    clone = own.clone(tmp_path / "clone")
    os.chdir(clone.folder)
    bundle.restore(path)
    assert Path(listing).read_bytes() == (own / listing).read_bytes()
    assert audit(Path(STUDY), tier="hash").verdict == "verified"


# --- restoring ----------------------------------------------------------------------------


def test_a_clone_gets_its_results_back_and_is_verified(project, light, clone, capsys):
    shutil.copy(light, "reports/two.zip")
    assert main(["audit", STUDY, "--tier", "hash"]) == EXIT["absent"]
    assert "`fitspace restore reports/two.zip` gets results" in capsys.readouterr().out
    assert main(["restore", "reports/two.zip"]) == 0
    assert "18 stages are in results" in capsys.readouterr().out
    found = audit(Path(STUDY), tier="hash")
    assert (found.verdict, found.rehashed) == ("verified", 49)
    for name, content in project.files("results/train", "results/sample", "results/tasks").items():
        assert (clone / name).read_bytes() == content
    assert [p.name for p in Path("results").iterdir() if p.name.startswith(".restoring")] == []
    # Once more changes nothing.
    before = clone.files("results")
    assert main(["restore", str(light)]) == 0 and clone.files("results") == before


def _other_adapter(clone, path):
    folder = clone / Path(_one(path, MEMBERS["adapter"])).parent
    folder.mkdir(parents=True)
    (folder / "adapter.safetensors").write_bytes(b"mine")
    return path


def _other_record(clone, path):
    file = clone / "reports/two/provenance.json"
    text = file.read_text()
    sha = json.loads(text)["stages"][-1]["sidecar"]
    file.write_text(text.replace(sha, "0" * 64))
    return path


def _changed_bundle(clone, path):
    name = _one(path, MEMBERS["adapter"])
    return _changed(path, clone / "a.zip", lambda f: f.update({name: _flip(f[name])}))


NOT_RESTORED = {
    "another adapter is here": (_other_adapter, "move its folder away"),
    "the report records another making": (_other_record, "records another making"),
    "the bundle was changed": (_changed_bundle, "SHA-256 is"),
}


@pytest.mark.parametrize("case", NOT_RESTORED)
def test_what_contradicts_is_not_restored(light, clone, case):
    spoil, words = NOT_RESTORED[case]
    path = spoil(clone, light)
    before = clone.files("results")
    with pytest.raises(UserError) as error:
        bundle.restore(path)
    assert any(words in problem for problem in error.value.problems)
    assert clone.files("results") == before


def test_a_task_that_comes_out_otherwise_is_not_taken(light, clone, monkeypatch):
    """As on another kind of machine, whose rounding differs."""
    from fitspace.stages import prepare

    real = prepare.encoded
    monkeypatch.setattr(
        prepare, "encoded", lambda *a: {name: value + 1 for name, value in real(*a).items()}
    )
    found = bundle.restore(light)
    ((folder, why),) = found.missing.items()
    assert folder.startswith("results/tasks/") and "other bits" in why and found.stages == 17
    assert not list(Path("results/tasks").rglob("*.json"))
    assert audit(Path(STUDY), tier="hash").verdict == "absent"


# --- sheets -------------------------------------------------------------------------------


@pytest.mark.parametrize("n, h, w", [(1, 5, 7), (12, 8, 8), (13, 8, 8), (80, 32, 32)])
def test_a_sheet_shows_every_image_whole(tmp_path, n, h, w):
    images = np.random.default_rng(n).integers(0, 256, (n, h, w, 3), dtype=np.uint8)
    sheet(images, tmp_path / "sheet.png")
    assert (of_sheet(tmp_path / "sheet.png", n) == images).all()


@pytest.mark.parametrize("n", [0, -1, 25, 10**12])
def test_a_sheet_of_another_number_of_images_is_refused(tmp_path, n):
    sheet(np.zeros((1, 1, 1, 3), np.uint8), tmp_path / "sheet.png")
    with pytest.raises(UserError, match="not a sheet of images"):
        of_sheet(tmp_path / "sheet.png", n)


def test_a_sidecar_that_does_not_say_how_many_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not say how many"):
        pictures.from_sheet("sample", tmp_path, {"facts": {}}, tmp_path / "x")
