"""`fitspace new` and `fitspace doctor`: the first hour."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fitspace.cli import main
from fitspace.plan import analysable, build_plan, checked
from fitspace.plan.drafting import VARIED
from fitspace.stages import doctor

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty project with the embedded models, and a folder of twelve images."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(ROOT / "models")
    images = tmp_path / "my images"
    images.mkdir()
    lines = []
    for i in range(12):
        Image.fromarray(np.full((40, 40, 3), 20 * i, np.uint8)).save(images / f"{i}.png")
        split = "test" if i < 6 else "train"
        lines.append({"file_name": f"{i}.png", "text": f"a thing {i}", "split": split})
    (images / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


@pytest.mark.parametrize("vary", VARIED)
@pytest.mark.parametrize("source", [[], ["--images", "my images"], ["--style", "night"]], ids=str)
def test_what_new_writes_can_be_planned_and_analysed(folder, vary, source):
    assert main(["new", "mine", "--vary", vary, *source]) == 0
    study, models = checked("params/mine.yaml")
    plan = build_plan(study, models)
    analysable(plan)
    assert {"full", "none"} <= {point.arm for point in plan.points}
    assert study.sample.prompts == (6 if "my images" in source else 80)


def test_the_positions_are_those_of_the_bases_blocks(folder):
    assert main(["new", "unet", "--vary", "positions"]) == 0
    assert main(["new", "dit", "--vary", "positions", "--base", "models/emoji-dit"]) == 0
    unet, dit = (build_plan(*checked(f"params/{name}.yaml")) for name in ("unet", "dit"))
    assert len(unet.points) == 16 + 2 and len(dit.points) == 9 + 2
    assert "CA_out" not in {point.factors.get("input") for point in dit.points}


REFUSED = {
    "an unknown question": (["--vary", "colours"], "--vary: 'colours'; allowed: positions"),
    "an unknown style": (["--style", "cubist"], "--style: 'cubist'; allowed: full"),
    "no seed": (["--seeds", "0"], "--seeds: 0; allowed: 1 to 1000"),
    "no folder": (["--images", "nowhere"], "nowhere"),
    "no base": (["--base", "models/none"], "models/none"),
}


@pytest.mark.parametrize("options, said", REFUSED.values(), ids=REFUSED)
def test_a_wrong_answer_is_refused_and_nothing_is_written(folder, capsys, options, said):
    assert main(["new", "mine", *options]) == 2
    assert said in capsys.readouterr().err
    assert not list(Path().glob("params/*"))


def test_a_name_that_is_no_name_is_refused(folder, capsys):
    assert main(["new", "My Study"]) == 2
    error = capsys.readouterr().err
    assert "name" in error and ".yaml: " not in error.split("name", 1)[0]
    assert not list(Path().glob("params/*"))


def test_too_few_held_out_images_are_named_with_what_helps(folder, capsys):
    images = folder / "my images"
    rows = [json.loads(line) for line in (images / "metadata.jsonl").read_text().splitlines()]
    lines = [json.dumps(row | {"split": "train" if i else "test"}) for i, row in enumerate(rows)]
    (images / "metadata.jsonl").write_text("\n".join(lines))
    assert main(["new", "mine", "--images", "my images"]) == 2
    assert "1 held-out images; needed: 4. Give images the split 'test'" in capsys.readouterr().err


def test_a_file_that_is_there_stays(folder, capsys):
    (folder / "params").mkdir()
    (folder / "params/mine.yaml").write_text("theirs")
    assert main(["new", "mine"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (folder / "params/mine.yaml").read_text() == "theirs"


def test_who_can_answer_is_asked_for_what_is_missing(folder, monkeypatch):
    answers = iter(["my images", "rank", "3"])
    asked = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or next(answers))
    assert main(["new", "mine", "--base", "models/emoji-unet"]) == 0
    assert ["images" in asked[0], "vary" in asked[1], "seeds" in asked[2]] == [True] * 3
    study, _ = checked("params/mine.yaml")
    assert (study.seeds, study.tasks[0].path) == ([0, 1, 2], "my images")


# --- doctor -------------------------------------------------------------------------------


def states(findings) -> dict[str, str]:
    return {finding.what: finding.state for finding in findings}


def test_this_project_is_ready(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "Python" in said and "torch" in said and "free disk" in said
    assert main(["doctor", "--json"]) == 0
    assert {row["what"] for row in json.loads(capsys.readouterr().out)} >= {"git", "weights"}


def test_a_folder_that_is_no_project_is_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor"]) == 2
    assert "no Snakefile" in capsys.readouterr().out


def test_what_is_not_as_it_has_to_be_is_found_with_what_helps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Snakefile").touch()
    (tmp_path / "constraints.txt").write_text("numpy==0.0.1\nno-such-package==1\n")
    (tmp_path / "models").mkdir()
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (tmp_path / "models/base.safetensors").write_text(pointer)
    (tmp_path / ".snakemake/locks").mkdir(parents=True)
    (tmp_path / ".snakemake/locks/0.input.lock").touch()
    monkeypatch.setattr(doctor, "LEAST_DISK", 2**80)
    found = {finding.what: finding for finding in doctor.examine()}
    assert {what for what, finding in found.items() if finding.state == "wrong"} == {
        "free disk", "weights",
    }  # fmt: skip
    assert "numpy" in found["packages"].found and "0.0.1" in found["packages"].found
    assert "snakemake --unlock" in found["lock"].help and "git lfs" in found["weights"].help
    assert found["git"].state == "note"
