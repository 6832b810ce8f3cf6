"""Results that DVC keeps: really fresh clones, less than everything pulled, earlier commits."""

import json
import shutil
from pathlib import Path
from statistics import fmean

import pytest
import report_study as made_up
import yaml
from project import ROOT, STUDY, content
from recorded import light_copy


@pytest.fixture(scope="module")
def kept(recorded, tmp_path_factory):
    """A project that was recorded, committed and pushed; not to be written to."""
    return light_copy(recorded, tmp_path_factory.mktemp("kept") / "project")


@pytest.fixture
def clone(kept, tmp_path):
    return kept.clone(tmp_path / "clone")


def would_run(project) -> set[str]:
    """Rules of the jobs of a dry run."""
    done = project.run("snakemake", "--dry-run", "--config", f"study={STUDY}", "--", "all")
    text = done.stdout + done.stderr
    words = [line.split() for line in text.splitlines()]
    rules = {w[0] for w in words if len(w) == 2 and w[0].isidentifier() and w[1].isdigit()}
    assert ("total" in rules) != ("Nothing to be done" in text), text
    return rules - {"all", "total"}


# --- the files of this checkout ---------------------------------------------------------


def test_dvc_yaml_names_each_study_wherever_it_names_one():
    kept = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    (studies,) = (v["studies"] for v in kept["vars"])
    files = {f"params/{name}.yaml" for name in studies}
    assert all((ROOT / name).exists() for name in files)
    targets = {"prepare": "prepared", "train": "trained", "sample": "sampled"}
    for name, target in (targets | {"evaluate": "evaluated explained"}).items():
        stage = kept["stages"][name]
        run = [c for c in stage["cmd"] if c.startswith("snakemake")]
        want = [f"snakemake --cores all --config study={f} -- {target}" for f in sorted(files)]
        assert sorted(run) == want
        assert {f for entry in stage["params"] for f in entry} == files
        assert all(
            settings == {"persist": True} for out in stage["outs"] for settings in out.values()
        )
    report = kept["stages"]["report"]["do"]
    in_git = [*kept["stages"]["base"]["outs"], *report["outs"], *report["metrics"]]
    assert all(s == {"cache": False, "persist": True} for out in in_git for s in out.values())
    assert {Path(name).parts[1] for name in kept["plots"]} == set(studies)
    assert [name for name in kept["plots"] if not (ROOT / name).exists()] == []


def test_every_embedded_weight_that_is_in_git_is_an_output_of_base():
    kept = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    outs = {name for out in kept["stages"]["base"]["outs"] for name in out}
    weights = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("models/**/*.safetensors")}
    assert outs == {name for name in weights if "text_encoder" not in name}


@pytest.fixture(scope="module")
def headline(tmp_path_factory):
    """A made-up table's rows, their analysis, and the numbers that `dvc metrics` compares."""
    from fitspace.report import headline, inputs, results

    folder, study = tmp_path_factory.mktemp("headline"), made_up.study()
    table = made_up.rows(study)
    made_up.write(folder, table)
    found = results.analyse(study, inputs.read(study, folder))
    return table, found, json.loads(headline.text(found))


@pytest.mark.parametrize("response, best", {"fd_effnet": min, "clip_t": max}.items())
def test_the_numbers_compared_are_those_of_the_runs(response, best, headline):
    table, found, numbers = headline
    assert numbers["runs"] == {"planned": len(table), "ok": len(table)}
    cells: dict[str, list[float]] = {}
    for row in table:
        name = f"{row['input']} → {row['output']}" if row["input"] else row["method"]
        cells.setdefault(name, []).append(row[response])
    means = {name: fmean(values) for name, values in cells.items()}
    ours = numbers[response]
    assert ours["full fine-tuning"]["mean"] == pytest.approx(means.pop("full"), rel=1e-9)
    assert ours["untouched base"]["mean"] == pytest.approx(means.pop("none"), rel=1e-9)
    cell = best(means, key=means.get)
    assert ours["best cell"] == {"cell": cell, "mean": pytest.approx(means[cell], rel=1e-9)}
    for factor in ("input", "output"):
        (row,) = found.rows("anova.csv", response=response, source=factor, test=found.test).to_dict(
            "records"
        )
        where = {"response": response, "source": factor, "test": "deciding"}
        (decided,) = found.rows("robustness.csv", **where).to_dict("records")
        of_f = {name: row[name] for name in ("F", "omega2_p")}
        assert ours[factor] == of_f | {"p_deciding": decided["p"]}


# --- clones -----------------------------------------------------------------------------


OTHER_LINKS = [pytest.param(link, marks=pytest.mark.slow) for link in ("hardlink", "symlink")]


@pytest.mark.parametrize("link", ["copy", *OTHER_LINKS])
def test_after_a_full_pull_nothing_runs_but_the_report(kept, clone, link):
    clone.dvc("config", "--local", "cache.type", link)
    clone.dvc("pull")
    adapter = next((clone / "results/train").glob("*/adapter.safetensors"))
    assert adapter.is_symlink() == (link == "symlink")
    assert (adapter.stat().st_nlink > 1) == (link == "hardlink")
    assert clone.files("results/train") == kept.files("results/train")
    # Checked out before the metrics were pulled, a report looks older than they.
    assert would_run(clone) <= {"report"}
    assert "up to date" in clone.dvc("status").stdout
    if link == "symlink":
        clone.snakemake("all")
        assert would_run(clone) == set()
    assert clone.git("status", "--porcelain") == ""


def test_metrics_alone_make_the_report_and_a_missing_one_is_named(clone, warm):
    clone.dvc("pull", "evaluate")
    assert sorted(p.name for p in (clone / "results").iterdir()) == ["evaluate", "explain"]
    (clone / "reports/two/anova.csv").unlink()
    assert warm.fitspace(clone, "report", "--cached", STUDY).returncode == 0
    assert clone.git("status", "--porcelain") == ""
    run = sorted((clone / "results/evaluate").iterdir())[0]
    shutil.rmtree(run)
    done = warm.fitspace(clone, "report", "--cached", STUDY)
    assert done.returncode == 2 and run.name in done.stderr
    assert "Traceback" not in done.stderr
    assert not (clone / "results/train").exists()
    assert clone.git("status", "--porcelain") == ""


def test_record_in_a_clone_of_less_is_refused_and_drops_nothing(clone, warm):
    clone.dvc("pull", "evaluate")
    done = warm.fitspace(clone, "record", STUDY)
    assert done.returncode == 2 and "dvc pull" in done.stderr
    assert clone.git("status", "--porcelain") == ""


def test_repro_with_nothing_changed_runs_nothing(kept):
    for _ in range(2):
        done = kept.dvc("repro")
        assert "Data and pipelines are up to date" in done.stdout + done.stderr
        assert "snakemake" not in done.stdout
    assert kept.git("status", "--porcelain") == ""


def test_plots_are_pictures_on_a_page_that_requests_nothing(kept, tmp_path):
    kept.dvc("plots", "show", "--out", str(tmp_path / "plots"))
    page = (tmp_path / "plots/index.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "")
    figures = list((tmp_path / "plots/static").iterdir())
    assert [f.read_bytes() for f in figures] == [
        (kept / "reports/two/figures/omega2.svg").read_bytes()
    ]
    assert figures[0].name in page


@pytest.mark.slow
def test_a_change_by_repro_is_named_and_earlier_runs_stay_reachable(kept, tmp_path):
    """Results of a commit survive `dvc gc --all-commits`, and need no run when they are back."""
    project = light_copy(kept, tmp_path / "project")
    first = project.git("rev-parse", "HEAD")
    before = project.files("results/train", "results/evaluate")
    project.study(seeds=[0], arms=[*content()["arms"], {"method": "bitfit"}])
    assert "arms" in project.dvc("params", "diff").stdout
    project.commit("one seed, one method more")
    for folder in (project / "results").glob("*/*~s1~*"):
        shutil.rmtree(folder)
    done = project.dvc("repro")
    assert "snakemake --cores all --config study=params/two.yaml -- trained" in done.stdout
    assert len(list((project / "results/train").iterdir())) == 2 + 1
    metrics = project.dvc("metrics", "diff", "HEAD").stdout
    assert "clip_t.best cell.mean" in metrics and "runs.planned" in metrics
    project.commit("Record it")
    project.dvc("gc", "--all-commits", "--force")
    project.git("checkout", "--quiet", first)
    project.dvc("checkout")
    assert project.files("results/train", "results/evaluate") == before
    assert would_run(project) <= {"report"}
    assert project.git("status", "--porcelain") == ""
