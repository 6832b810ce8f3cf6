"""`fitspace record` keeps only what is whole; `fitspace gc` removes only what nothing names."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import yaml
from project import STUDY, Project, content
from recorded import light_copy, name_study

from fitspace.audit import garbage, recording
from fitspace.cli import main


@pytest.fixture(scope="module")
def kept(recorded, tmp_path_factory):
    """A project that was recorded; not to be written to."""
    return light_copy(recorded, tmp_path_factory.mktemp("kept") / "project")


@pytest.fixture
def project(kept, tmp_path, monkeypatch):
    """A copy of it, in which this process stands."""
    project = light_copy(kept, tmp_path / "project")
    project.enter(monkeypatch)
    return project


def one(project: Project, pattern: str):
    return sorted(project.folder.glob(f"results/{pattern}"))[0]


def flip(path):
    """Another last bit; size and times as before."""
    times, data = path.stat(), path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- record -----------------------------------------------------------------------------


def test_a_record_names_every_result_and_is_clean(kept):
    assert kept.git("status", "--porcelain") == ""
    lock = yaml.safe_load((kept / "dvc.lock").read_text())["stages"]
    files = {out["path"]: out.get("nfiles") for s in lock.values() for out in s["outs"]}
    for room in ("prior", "tasks", "reference", "train", "sample", "evaluate"):
        here = [p for p in (kept / f"results/{room}").rglob("*") if p.is_file()]
        assert files[f"results/{room}"] == len(here), room
    assert {f"reports/two/{name}" for name in ("runs.csv", "provenance.json")} < files.keys()
    assert lock["train"]["params"][STUDY] == {k: content()[k] for k in ("arms", "seeds", "train")}


def test_recorded_again_nothing_changes(kept, monkeypatch, capsys):
    before = kept.files("reports") | {"": (kept / "dvc.lock").read_bytes()}
    kept.enter(monkeypatch)
    assert main(["record", STUDY]) == 0
    done = capsys.readouterr()
    assert kept.files("reports") | {"": (kept / "dvc.lock").read_bytes()} == before
    assert kept.git("status", "--porcelain") == ""
    assert "18 stages" in done.out and "git add" not in done.out
    assert done.out.endswith("next:\n  dvc push\n") and "note" not in done.err


def results(project) -> dict[str, bytes]:
    """All but caches."""
    return {n: b for n, b in project.files("results").items() if "/.cache/" not in n}


@pytest.mark.slow
def test_a_killed_record_is_completed_by_the_next(origin, kept, tmp_path):
    project = light_copy(origin, tmp_path / "project")
    name_study(project)
    project.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    project.commit("What DVC keeps")
    before = results(project)
    killed = 0
    for seconds in (1, 2, 3, 4.5, 6, 8, 11):
        record = subprocess.Popen(
            [sys.executable, "-m", "fitspace.cli", "record", STUDY],
            cwd=project.folder, env=project.environment, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            record.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(record.pid, signal.SIGKILL)
            record.wait()
            killed += 1
        assert results(project) == before
    assert killed >= 3
    project.fitspace("record", STUDY)
    recorded_as = [yaml.safe_load((p / "dvc.lock").read_text()) for p in (project, kept)]
    assert recorded_as[0] == recorded_as[1]
    assert project.fitspace("audit", STUDY).returncode == 0


def unfinished(project):
    folder = project / "results/train/lora~mine~s0~0123456789ab"
    folder.mkdir()
    (folder / "adapter.safetensors").write_bytes(b"half")
    return [f"{folder.name}/train.json: missing"]


def flipped(project):
    path = one(project, "train/*/adapter.safetensors")
    flip(path)
    return [f"{path.parent.name}/adapter.safetensors: changed since"]


def two_flipped(project):
    paths = one(project, "sample/*/sheet.png"), one(project, "reference/*/features.safetensors")
    for path in paths:
        flip(path)
    return [f"{path.parent.name}/{path.name}: changed since" for path in paths]


def stray(project):
    path = one(project, "evaluate/*") / ".metrics.abc.json"
    path.touch()
    return [f"{path.parent.name}/{path.name}: evaluate.json does not name it"]


def not_keyed(project):
    (project / "results/sample/mine").mkdir()
    return ["results/sample/mine: no stage made it"]


def link(project):
    folder = one(project, "train/*")
    folder.rename(project / "elsewhere")
    folder.symlink_to(project / "elsewhere")
    project.commit("elsewhere")
    return [f"{folder.name}: no stage made it"]


def other_key(project):
    folder = one(project, "train/*")
    shutil.copytree(folder, folder.with_name("adapter~mine~s0~0123456789ab"))
    return ["0123456789ab/train.json: is of train", "needed: train '0123456789ab'"]


def other_material(project):
    path = one(project, "evaluate/*/evaluate.json")
    edit(path, material=json.loads(path.read_text())["material"] | {"samples": "0123456789ab"})
    return [f"{path.parent.name}/evaluate.json: is of evaluate", "does not match its material"]


def made_from_another(project):
    path = one(project, "tasks/*/prepare.json")
    edit(path, started="2020-01-01T00:00:00.000+00:00")
    reader = one(project, "train/*/train.json")
    return [f"{reader.parent.name}/train.json: was made from a results/tasks/", path.parent.name]


def gone(project):
    folder = one(project, "evaluate/*")
    shutil.rmtree(folder)
    return [f"{folder.name}/evaluate.json: missing; run Snakemake", "dvc pull"]


def upstream_gone(project):
    folder = one(project, "train/*")
    shutil.rmtree(folder)
    return [f"{folder.name}/train.json: missing; run Snakemake"]


def uncommitted(project):
    (project / "src/fitspace/rng.py").open("a").write("#")
    (project / "params/näw.yaml").touch()
    return ["src/fitspace/rng.py: not committed", "params/näw.yaml: not committed", "--dirty"]


def not_in_dvc_yaml(project):
    project.study(name="three")
    project.commit("another name")
    return ["dvc.yaml: does not name reports/three"]


def no_longer_a_study(project):
    project.study(seeds=[])
    project.commit("no seeds")
    return ["params/two.yaml: seeds: []"]


def unknown(project):
    """A clone without a remote and with results of its own."""
    shutil.rmtree(project / ".dvc/cache")
    project.git("rm", "--quiet", ".dvc/config", ".dvc/listings/train.json")
    project.commit("no remote, no list")
    return ["results/train: dvc.lock records it, but its content is unknown", "delete dvc.lock"]


REFUSED = (
    unfinished, flipped, two_flipped, stray, not_keyed, link, other_key, other_material,
    made_from_another, gone, upstream_gone, uncommitted, not_in_dvc_yaml, no_longer_a_study,
    unknown,
)  # fmt: skip


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda f: f.__name__)
def test_what_is_not_whole_is_refused_by_name_and_nothing_is_recorded(spoil, project, capfd):
    said = spoil(project)
    before = project.files("reports") | {"": (project / "dvc.lock").read_bytes()}
    assert main(["record", STUDY]) == 2
    text = capfd.readouterr().err
    assert [part for part in said if part not in text] == [], text
    assert project.files("reports") | {"": (project / "dvc.lock").read_bytes()} == before


def second_study(project, **changes):
    """Another study, that dvc.yaml names too."""
    study = content() | {"name": "more"} | changes
    (project / "params/more.yaml").write_text(yaml.safe_dump(study))
    kept_by = yaml.safe_load((project / "dvc.yaml").read_text())
    kept_by["vars"] = [{"studies": ["two", "more"]}]
    (project / "dvc.yaml").write_text(yaml.safe_dump(kept_by, sort_keys=False))
    project.commit("another study")


def listings(project) -> dict[str, dict[str, str]]:
    """Room -> file -> MD5, of what git has."""
    rows = {p.stem: json.loads(p.read_text()) for p in (project / ".dvc/listings").glob("*.json")}
    return {room: {row["relpath"]: row["md5"] for row in of} for room, of in rows.items()}


def test_what_is_recorded_and_not_here_stays_recorded(project):
    """A clone that pulled nothing, where another study is made that shares some runs."""
    second_study(project, seeds=[0])
    before, lists = yaml.safe_load((project / "dvc.lock").read_text())["stages"], listings(project)
    shutil.rmtree(project / ".dvc/cache")
    gone = sorted(project.folder.glob("results/*/*~s1~*"))
    for folder in gone:
        shutil.rmtree(folder)
    assert main(["record", "params/more.yaml"]) == 0
    assert listings(project) == lists
    assert {p.parent.name for p in gone} >= {"train", "sample", "evaluate"}
    now = yaml.safe_load((project / "dvc.lock").read_text())["stages"]
    for stage in ("train", "sample", "evaluate", "report@two"):
        of = [{e["path"]: e["md5"] for e in lock[stage]["outs"]} for lock in (before, now)]
        assert of[0] == of[1]
    assert now["report@two"]["deps"] == now["report@more"]["deps"]
    for room in lists:
        outs = (out for stage in now.values() for out in stage["outs"])
        md5 = next(out["md5"] for out in outs if out["path"] == f"results/{room}")
        content_of = (project / f".dvc/listings/{room}.json").read_bytes()
        assert f"{hashlib.md5(content_of).hexdigest()}.dir" == md5
    assert main(["record", "params/more.yaml"]) == 0
    assert yaml.safe_load((project / "dvc.lock").read_text())["stages"] == now


@pytest.mark.slow
def test_results_that_no_study_names_any_more_may_go(project):
    """What is dropped stays reachable from the commit that recorded it."""
    folders = sorted(project.folder.glob("results/*/*~s1~*"))
    project.study(seeds=[0])
    project.fitspace("report", "--cached", STUDY)
    project.commit("one seed")
    for folder in folders:
        shutil.rmtree(folder)
    assert "10 stages" in project.fitspace("record", STUDY).stdout


@pytest.mark.parametrize("recorded_before", [True, False])
def test_an_interrupted_commit_leaves_dvc_lock_as_it_was(project, monkeypatch, recorded_before):
    lock = project / "dvc.lock"
    if not recorded_before:
        lock.unlink()
    before = lock.read_bytes() if recorded_before else None

    def interrupted(*_, **__):
        lock.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr("dvc.repo.Repo.commit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recording.record(STUDY)
    assert (lock.read_bytes() if lock.exists() else None) == before


@pytest.mark.slow
def test_dirty_is_recorded_beside_the_report_until_it_is_committed(project):
    (project / "note.txt").write_text("new")
    commit = project.git("rev-parse", "HEAD")
    done = project.fitspace("record", STUDY, "--dirty")
    assert "git add dvc.lock reports/two" in done.stdout or "git add reports/two" in done.stdout
    noted = json.loads((project / "reports/two/uncommitted.json").read_text())
    sha256 = "11507a0e2f5e69d5dfa40a62a1bd7b6ee57e6bcd85c67c9b8431b36fff21c437"
    assert noted == {"commit": commit, "files": {"note.txt": sha256}}
    project.commit("noted")
    project.fitspace("record", STUDY)
    assert project.git("status", "--porcelain") == "D reports/two/uncommitted.json"


@pytest.mark.slow
def test_another_study_that_is_not_finished_is_noted(project):
    second_study(project, seeds=[0, 7])
    done = project.fitspace("record", STUDY)
    assert "params/more.yaml: 8 of its 18 stages are missing" in done.stderr
    assert project.git("status", "--porcelain") == ""


# --- gc ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def anew(kept, tmp_path_factory):
    """Its results in a repository in which nothing was ever recorded; not to be written to."""
    project = light_copy(kept, tmp_path_factory.mktemp("anew") / "project")
    shutil.rmtree(project / ".git")
    shutil.rmtree(project / "reports")
    project.git("init", "--quiet", "--initial-branch", "main")
    project.commit("Anew")
    return project


@pytest.fixture
def unrecorded(anew, tmp_path, monkeypatch):
    """A copy of that, in which this process stands."""
    project = light_copy(anew, tmp_path / "project")
    project.enter(monkeypatch)
    return project


def everything(project):
    return {p.relative_to(project.folder).as_posix() for p in (project / "results").rglob("*")}


def keyed(project, pattern):
    return {p.relative_to(project.folder) for p in project.folder.glob(f"results/{pattern}")}


def test_gc_lists_then_removes_only_keyed_folders_that_nothing_names(project, capsys):
    assert main(["gc", "--yes"]) == 0
    assert capsys.readouterr().out.startswith("nothing to remove")
    results, outside = project / "results", project / "outside"
    (outside / "e~0123456789ab").mkdir(parents=True)
    (outside / "precious").write_text("x" * 2**20)
    shutil.rmtree(results / "reference")
    (results / "reference").symlink_to(outside)
    before = everything(project)
    own = "a~mine~s0~0123456789ab"
    for name in (f"train/{own}", f".resume/{own}", f".features/{own}"):
        (results / name).mkdir(parents=True)
        (results / name / "train.json").write_text("x" * 2**20)
        (results / name / "link").symlink_to(outside / "precious")
    (results / "train/b~mine~s0~0123456789ab").symlink_to(outside)
    (results / "train/c~mine~s0~0123456789ab").touch()
    (results / "train/mine").mkdir()
    (results / "logs/d~0123456789ab").mkdir()
    kept = everything(project) - before
    assert main(["gc"]) == 0
    out = capsys.readouterr().out
    assert everything(project) == before | kept
    named = tuple(f"results/{room}/{own}" for room in ("train", ".resume", ".features"))
    assert [line.split()[-1] for line in out.splitlines()[:-1]] == list(named)
    assert "3 folders, 3.0 MiB" in out and "fitspace gc --yes" in out
    assert main(["gc", "--yes"]) == 0
    gone = {name for name in kept if name.startswith(named)}
    assert everything(project) == before | kept - gone
    assert (outside / "precious").exists() and (outside / "e~0123456789ab").exists()


def test_gc_finds_exactly_what_a_study_stopped_naming(unrecorded):
    unrecorded.study(seeds=[0])
    assert {g.folder for g in garbage.find()} == keyed(unrecorded, "*/*~s1~*")
    assert len(keyed(unrecorded, "*/*~s1~*")) == 11  # 8 stages, the features of 3 runs


def on_a_branch(project):
    project.git("checkout", "--quiet", "-b", "recorded")
    project.commit("Recorded")
    project.git("checkout", "--quiet", "main")


def in_a_tag(project):
    on_a_branch(project)
    project.git("tag", "paper", "recorded")
    project.git("branch", "--quiet", "-D", "recorded")


def in_a_stash(project):
    project.git("stash", "--include-untracked", "--quiet")


def merged_and_undone(project):
    """The merge keeps nothing of it: no history of the files as they are now leads there."""
    on_a_branch(project)
    project.git("merge", "--quiet", "--no-ff", "--strategy", "ours", "recorded")
    project.git("branch", "--quiet", "-D", "recorded")


def in_the_work_tree(project):
    pass


@pytest.mark.parametrize(
    "put",
    [on_a_branch, in_a_tag, in_a_stash, merged_and_undone, in_the_work_tree],
    ids=lambda f: f.__name__,
)
def test_gc_keeps_what_was_recorded_anywhere(unrecorded, kept, put):
    shutil.copytree(kept / "reports", unrecorded / "reports")
    put(unrecorded)
    assert (put is in_the_work_tree) == (unrecorded / "reports").exists()
    unrecorded.study(seeds=[0])
    assert garbage.find() == []


def test_gc_keeps_what_a_study_may_name_whose_base_is_not_here(unrecorded):
    away = content() | {"base": "stable-diffusion-v1-5/stable-diffusion-v1-5", "name": "away"}
    (unrecorded / "params/away.yaml").write_text(yaml.safe_dump(away))
    unrecorded.study(seeds=[0])
    (unrecorded / "results/train/a~other~s0~0123456789ab").mkdir()
    (unrecorded / "results/prior/a-dog~0123456789ab").mkdir()
    assert [g.folder.name for g in garbage.find()] == ["a~other~s0~0123456789ab"]


def shallow(project):
    project.commit("two")
    project.git("clone", "--quiet", "--depth", "1", f"file://{project.folder}", "../shallow")
    shutil.rmtree(project / ".git")
    (project / "../shallow/.git").rename(project / ".git")
    return "git fetch --unshallow"


def no_git(project):
    shutil.rmtree(project / ".git")
    return "git rev-parse: fatal: not a git repository"


def invalid_study(project):
    project.study(seeds=["x"])
    return "params/two.yaml: seeds[0]"


@pytest.mark.parametrize("spoil", [shallow, no_git, invalid_study], ids=lambda f: f.__name__)
def test_gc_removes_nothing_where_it_cannot_know(unrecorded, capsys, spoil, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(unrecorded.folder.parent))
    (unrecorded / "results/train/a~mine~s0~0123456789ab").mkdir()
    said, before = spoil(unrecorded), everything(unrecorded)
    assert main(["gc", "--yes"]) == 2
    assert said in capsys.readouterr().err
    assert everything(unrecorded) == before


def test_gc_keeps_its_hands_off_results_that_are_a_link(tmp_path, monkeypatch, capsys):
    """Two clones that share one folder of results: what the other names is not known here."""
    from fitspace.core import git

    monkeypatch.chdir(tmp_path)
    git.run("init", "--quiet")  # else gc ends before it looks at results
    (tmp_path / "shared/train/a~b~s0~0123456789ab").mkdir(parents=True)
    (tmp_path / "results").symlink_to("shared")
    assert main(["gc", "--yes"]) == 2
    assert "results: a link to" in capsys.readouterr().err
    assert (tmp_path / "shared/train/a~b~s0~0123456789ab").is_dir()


def test_gc_knows_what_commits_name_where_the_project_is_a_sub_folder(tmp_path, monkeypatch):
    from fitspace.core import git

    for variable in ("AUTHOR_NAME", "AUTHOR_EMAIL", "COMMITTER_NAME", "COMMITTER_EMAIL"):
        monkeypatch.setenv(f"GIT_{variable}", "tester@example.org")
    project = tmp_path / "repo/project"
    (project / "reports/two").mkdir(parents=True)
    provenance = project / "reports/two/provenance.json"
    provenance.write_text('{"key": "0123456789ab"}')
    git.run("init", "--quiet", folder=tmp_path / "repo")
    git.run("add", "--all", folder=tmp_path / "repo")
    git.run("commit", "--quiet", "--message", "x", folder=tmp_path / "repo")
    provenance.unlink()
    monkeypatch.chdir(project)
    from fitspace.audit.named import named_in_history

    assert named_in_history() == {"0123456789ab"}
    # What is not committed is named from the top, and its digest is that of the file.
    (project / "new.txt").write_text("x")
    names = recording.uncommitted_files()
    assert names == ["project/new.txt"]
    recording.note_uncommitted(project / "reports", names)
    noted = json.loads((project / "reports/uncommitted.json").read_text())["files"]
    assert noted == {"project/new.txt": recording.sha256(project / "new.txt")}
