"""The default study's bundle in git: small, whole, and of the report that is committed with it."""

import csv
import hashlib
import zipfile
from pathlib import PurePosixPath

import pytest
from project import ROOT

from fitspace.audit.lock import Lock
from fitspace.cli import main

BUNDLE = ROOT / "reports/emoji.zip"
REPORT = ROOT / "reports/emoji"
AGAIN = "run: fitspace restore reports/emoji.zip, then fitspace bundle params/emoji.yaml --light"


@pytest.fixture(scope="module")
def members():
    with zipfile.ZipFile(BUNDLE) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_it_is_small_enough_for_git():
    assert BUNDLE.stat().st_size <= 20_000_000


def test_its_report_and_study_are_the_committed_ones(members):
    here = {p.relative_to(ROOT).as_posix(): p for p in REPORT.rglob("*") if p.is_file()}
    inside = {name for name in members if name.startswith("reports/emoji/")}
    assert inside == here.keys(), AGAIN
    here["params/emoji.yaml"] = ROOT / "params/emoji.yaml"
    assert [n for n, path in here.items() if members[n] != path.read_bytes()] == [], AGAIN


def test_its_results_are_those_that_git_records(members, monkeypatch):
    """Of other studies the record may have learnt since."""
    monkeypatch.chdir(ROOT)
    lock = Lock()
    held = [name for name in members if name.startswith("results/") and "/." not in name]
    recorded = {name: lock.md5(name) for name in held}
    found = {name: hashlib.md5(members[name]).hexdigest() for name in held}
    assert len(held) > 200 and found == recorded, AGAIN


def test_it_has_the_adapter_and_shows_the_samples_of_every_run(members):
    with (REPORT / "runs.csv").open(encoding="utf-8", newline="") as file:
        runs = list(csv.DictReader(file))
    held = [PurePosixPath(name) for name in members]
    shown = {p.parent.name.rpartition("~")[0] for p in held if p.name == "sheet.png"}
    trained = {p.parent.name.rpartition("~")[0] for p in held if p.name == "adapter.safetensors"}
    names = {row["run"].rpartition("~")[0]: row["method"] for row in runs}
    assert shown == set(names)
    assert trained == {name for name, method in names.items() if method != "none"}


def _audited(capsys, monkeypatch, *more):
    monkeypatch.chdir(ROOT)
    assert main(["audit", str(BUNDLE), *more]) == 0
    return capsys.readouterr().out


def test_every_file_of_it_is_as_recorded(capsys, monkeypatch):
    said = _audited(capsys, monkeypatch, "--tier", "hash")
    assert "Verified: everything is as it was recorded, but for 2 files that the bundle" in said


@pytest.mark.slow
def test_its_report_is_made_again_from_it(capsys, monkeypatch):
    said = _audited(capsys, monkeypatch, "--value", "anova.csv#source=input,response=psnr/F")
    assert "tier regenerate" in said
