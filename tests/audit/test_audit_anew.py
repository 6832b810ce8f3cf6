"""The audit of a study that somebody made anew: no false alarm, and no way around the record."""

import json
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from project import STUDY
from recorded import light_copy

from fitspace.audit import EXIT, audit
from fitspace.audit.again import seed_spread
from fitspace.audit.anew import read_rows
from fitspace.audit.show import text
from fitspace.cli import main
from fitspace.core.files import sha256, write_json
from fitspace.plan import STAGES
from fitspace.results.lineage import in_results

REPORT = Path("reports/two")
ELSEWHERE = {"model name": "Another Processor", "cpu family": "7", "model": "1", "stepping": "0"}


@pytest.fixture
def project(origin, tmp_path, monkeypatch):
    """A copy of the finished project as the current folder."""
    copy = light_copy(origin, tmp_path / "project")
    monkeypatch.chdir(copy.folder)
    return copy


def _sidecars(stage: str) -> list[Path]:
    return sorted(Path("results", STAGES[stage].room).glob(f"*/{stage}.json"))


def make_anew(stages=tuple(STAGES), *, elsewhere=True, later=True, change=None) -> None:
    """Sidecars and files as another making leaves them.

    ``elsewhere``: on another kind of machine; ``later``: at other times; ``change`` is applied to
    a stage's name and folder and changes its files.
    """
    made: dict[str, str] = {}
    for stage in STAGES:
        for path in _sidecars(stage):
            sidecar = json.loads(path.read_text())
            if stage in stages:
                for name in ("started", "finished") if later else ():
                    time = datetime.fromisoformat(sidecar[name]) + timedelta(hours=30)
                    sidecar[name] = time.isoformat(timespec="milliseconds")
                if elsewhere:
                    sidecar["environment"]["cpu"] = ELSEWHERE
                if change is not None:
                    change(stage, path.parent)
                for item in sidecar["inputs"]:
                    item["sha256"] = made.get(in_results(item["path"]), item["sha256"])
                for item in sidecar["outputs"]:
                    file = path.parent / Path(item["path"]).name
                    item |= {"sha256": sha256(file), "size": file.stat().st_size}
                write_json(path, sidecar)
            made[path.as_posix()] = sha256(path)
            for item in sidecar["outputs"]:
                made[f"{path.parent.as_posix()}/{Path(item['path']).name}"] = item["sha256"]


def rounded_otherwise(stage: str, folder: Path) -> None:
    """Another last bit in an adapter, and metrics that moved with it."""
    if stage == "train":
        path = folder / "adapter.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    if stage == "evaluate":
        away(1e-7)(stage, folder)


def away(share: float, only: str = ""):
    """Metrics that are a share of their value away."""

    def change(stage: str, folder: Path) -> None:
        path = folder / "metrics.json"
        if stage != "evaluate" or only not in folder.name:
            return
        metrics = json.loads(path.read_text())
        moved = {n: v * (1 + share) for n, v in metrics.items() if isinstance(v, float)}
        write_json(path, metrics | moved)

    return change


def by_kind(found) -> dict[str, list]:
    kinds: dict[str, list] = {}
    for finding in found.findings:
        kinds.setdefault(finding.kind, []).append(finding)
    return kinds


def test_results_of_another_machine_beside_a_report_of_git(project, capsys):
    make_anew(change=rounded_otherwise)
    found = audit(Path(STUDY))
    kinds = by_kind(found)
    assert found.verdict == "anew" and kinds.keys() == {"anew"}
    assert len(kinds["anew"]) == found.stages == 18 and found.rehashed == 49
    here = json.loads((project / "results").glob("train/*/train.json").__next__().read_text())
    assert here["environment"]["cpu"] == ELSEWHERE
    rows = read_rows(REPORT / "runs.csv")
    assert {d.run for d in found.distances} == rows.keys()
    for distance in found.distances:
        assert distance.made_on == "Another Processor (7.1.0)" != distance.recorded_on
        # 1e-7 of a value, in seeds' standard deviations.
        was = float(rows[distance.run][distance.metric])
        assert distance.apart == pytest.approx(1e-7 * abs(was), rel=1e-3)
        assert 0 < distance.apart < distance.limit
        if distance.seeds is not None:
            sd = seed_spread(list(rows.values()), distance.metric)
            assert distance.seeds == pytest.approx(distance.apart / sd, rel=1e-2)
    shown = text(found)
    assert "made anew on Another Processor (7.1.0), recorded on " in shown
    assert all(f"  {run}: " in shown for run in rows)
    assert len(shown.splitlines()) < 120
    assert main(["audit", STUDY, "--json"]) == EXIT["anew"] == 4
    assert len(json.loads(capsys.readouterr().out)["made_anew"]) == 6


def test_a_second_making_on_the_same_machine_has_the_same_files(project):
    make_anew(elsewhere=False)
    found = audit(Path(STUDY), tier="hash")
    assert found.verdict == "anew" and by_kind(found).keys() == {"anew"}
    assert [d.metric for d in found.distances] == [None] * 6
    assert "the same files" in text(found)


def test_some_stages_alone_may_be_made_anew(project):
    make_anew(("train",), elsewhere=False)  # the same adapters; samples are those of before
    found = audit(Path(STUDY), tier="hash")
    assert found.verdict == "anew" and len(by_kind(found)["anew"]) == 4


NOT_HONEST = {
    "the same machine gave other files": (
        {"elsewhere": False, "change": rounded_otherwise}, "SHA-256 is"),
    "other files of a machine that worked at the very same time": (
        {"later": False, "change": rounded_otherwise}, "environment.cpu"),
    "samples of other adapters than stand here": (
        {"stages": ("train",), "change": rounded_otherwise}, "was made from another"),
    "a number that no rounding gives": (
        {"change": away(0.5)}, "standard deviations over seeds"),
}  # fmt: skip


@pytest.mark.parametrize("how, message", NOT_HONEST.values(), ids=NOT_HONEST)
def test_what_another_making_does_not_explain_is_changed(project, how, message):
    make_anew(**how)
    found = audit(Path(STUDY), tier="hash")
    assert found.verdict == "changed"
    assert any(message in f.message for f in by_kind(found)["changed"])


def test_one_run_beyond_the_seeds_is_named_among_honest_ones(project):
    name = _sidecars("evaluate")[0].parent.name
    make_anew(change=lambda *a: (rounded_otherwise(*a), away(0.5, only=name)(*a)))
    found = audit(Path(STUDY), tier="hash")
    assert {f.subject for f in by_kind(found)["changed"]} == {name}
    assert text(found).index(f"  {name}: ") < min(
        text(found).index(f"  {d.run}: ") for d in found.distances if d.run != name
    )


@pytest.fixture
def remade(recorded, tmp_path, monkeypatch):
    """A recorded project whose study was made anew, report and all; DVC knows nothing of it."""
    project = light_copy(recorded, tmp_path / "remade")
    project.enter(monkeypatch)
    shutil.rmtree(project / ".dvc/cache")  # a clone has none
    make_anew(change=rounded_otherwise)
    assert main(["report", STUDY, "--cached"]) == 0
    return project


def test_a_study_made_anew_is_not_changed_though_dvc_records_another(remade):
    found = audit(REPORT / "report.html")
    assert found.verdict == "anew" and by_kind(found).keys() == {"anew"}
    assert {d.run for d in found.distances} == read_rows(REPORT / "runs.csv").keys()
    shown = text(found)
    assert "reports/two: dvc.lock records another making of it" in shown
    command = shown.rpartition("`")[0].rpartition("`")[2]
    assert command == f"fitspace record {STUDY}"
    assert main(["record", STUDY]) == 0
    assert audit(REPORT / "report.html").verdict == "verified"


def _forge(name: str, before: str, after: str) -> None:
    content = (REPORT / name).read_text()
    assert before in content
    (REPORT / name).write_text(content.replace(before, after, 1))


def test_a_making_of_ones_own_hides_no_edit(remade):
    row = next(iter(read_rows(REPORT / "runs.csv").values()))
    _forge("runs.csv", row["clip_t"], "0.5")
    found = audit(REPORT / "report.html", tier="hash")
    assert found.verdict == "changed"
    assert any("clip_t of" in f.message for f in by_kind(found)["changed"])


def test_a_record_forged_beside_an_honest_one_is_no_making(remade):
    """The lineage claims other files of a stage that began when the recorded one did."""
    make_anew(("evaluate",), elsewhere=False, change=away(1e-3))
    lines = (REPORT / "provenance.json").read_text()
    assert main(["report", STUDY, "--cached"]) == 0
    assert (REPORT / "provenance.json").read_text() != lines
    remade.git("checkout", "--quiet", "HEAD", "--", "reports/two/gallery")
    for path in _sidecars("evaluate"):
        sidecar = json.loads(path.read_text())
        for name in ("started", "finished"):
            time = datetime.fromisoformat(sidecar[name]) - timedelta(hours=60)
            sidecar[name] = time.isoformat(timespec="milliseconds")
        write_json(path, sidecar)
    assert main(["report", STUDY, "--cached"]) == 0
    found = audit(Path(STUDY), tier="hash")
    assert found.verdict == "changed"
    assert any("dvc.lock recorded" in f.message for f in by_kind(found)["changed"])
