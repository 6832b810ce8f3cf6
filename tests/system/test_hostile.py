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
import numpy as np
import project
import pytest
import report_study as made_up
import yaml
from hostile import refused, watched

from fitspace.audit import garbage
from fitspace.cli import main
from fitspace.core import files, hashes
from fitspace.core.errors import UserError, printable
from fitspace.data import prepared
from fitspace.plan import load_study
from fitspace.results import lineage
from fitspace.stages import evaluate, prepare, reference

# How many of each kind always, and how many more where there is time.
EXAMPLES = {
    "studies": (15, 85),
    "reports": (1, 0),
    "report-files": (50, 0),
    "images": (150, 0),
    "trees": (100, 0),
    "tables": (300, 0),
    "adapters": (200, 0),
    "records": (0, 80),
    "tensors": (20, 60),
}
NUMBERS = [
    pytest.param(name, numbers, id=f"{name}-from-{numbers.start}", marks=marks)
    for name, (always, more) in EXAMPLES.items()
    for numbers, marks in (
        (range(always), ()),
        (range(always, always + more), pytest.mark.slow),
    )
    if numbers
]


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Durability is not tested here, and a busy disk takes seconds a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fitspace.core.files.os.fsync", lambda handle: None)
        yield


@pytest.mark.parametrize("name, numbers", NUMBERS)
def test_any_input_is_used_or_refused(name, numbers, tmp_path, request):
    """Inputs by number, so that `python benchmarks/fuzz.py --again KIND/SEED/NUMBER` makes one."""
    finished = request.getfixturevalue("origin").folder if name in kinds.OF_A_STUDY else None
    kind = kinds.made(name, tmp_path, finished)
    outcomes = [kind(0, number) for number in numbers]
    assert len(numbers) < 40 or len(set(outcomes)) == 2, "all came out the same: no input got far"


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


MATERIAL = {
    "no evaluator": ("reference", lambda m: m.pop("evaluator"), "material.evaluator: missing"),
    "an evaluator without a judge": (
        "reference", lambda m: m["evaluator"].pop("judge"), "material.evaluator.judge: missing"
    ),
    "a source that is text": (
        "prepare", lambda m: m.update(source="x"), "material.source: 'x': input should be"
    ),
    "a key that is none": ("sample", lambda m: m.update(task=[1]), "material.task: .1.: input"),
}  # fmt: skip


@pytest.mark.parametrize("stage, change, said", MATERIAL.values(), ids=MATERIAL)
def test_records_whose_material_nobody_could_follow_are_refused(damaged, stage, change, said):
    content = json.loads(PROVENANCE.read_text())
    change(next(s for s in content["stages"] if s["stage"] == stage)["material"])
    damaged(PROVENANCE, json.dumps(content).encode())
    with pytest.raises(UserError, match=said):
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
    from fitspace.plan import build_plan

    before = build_plan(load_study(project.STUDY)).stages.keys()
    hashes.DIGESTS.exists() or files.remember(hashes.DIGESTS, {})
    facts = files.remembered(hashes.DIGESTS)
    model = [p for p in Path("models/emoji-unet").rglob("*.safetensors")][0]
    status = model.stat()
    lie = facts | {str(model.resolve()): [status.st_size, status.st_mtime_ns, "0" * 64]}
    damaged(hashes.DIGESTS, json.dumps(lie | {"sha256": files.digest(facts)}).encode())
    assert build_plan(load_study(project.STUDY)).stages.keys() == before
    assert not garbage.find()


def _put(name: str, value):
    return lambda content: content | {name: value}


def _without(name: str):
    return lambda content: {key: value for key, value in content.items() if key != name}


def _another_caption(content: dict) -> dict:
    content["examples"][0]["caption"] = 10**6
    return content


def _more_examples(content: dict) -> dict:
    return content | {"examples": content["examples"] * 2}


def _each(change):
    return lambda content: {name: change(tensor) for name, tensor in content.items()}


def _not_finite(content: dict) -> dict:
    content["effnet"][1, 2] = np.nan
    return content


MANIFEST, METRICS = ("prepare", "manifest.json"), ("evaluate", "metrics.json")
LATENTS, TEXT = ("prepare", "latents.safetensors"), ("prepare", "text.safetensors")
IMAGES, SAMPLES = ("prepare", "images.safetensors"), ("sample", "samples.safetensors")
FEATURES = ("reference", "features.safetensors")
FORGED = {
    "a caption that is not there": (MANIFEST, _another_caption, "caption 1000000 is named"),
    "no list of captions": (MANIFEST, _put("captions", 7), "prepared task's manifest .captions"),
    "other prompts": (MANIFEST, _put("prompts", [1] * 6), "prompts are not the captions"),
    "prompts without their images": (MANIFEST, _put("prompt_images", [0]), "are not the captions"),
    "roles of a subject": (MANIFEST, _put("roles", {"subject": [1]}), "manifest .roles"),
    "a million classes": (MANIFEST, _put("own_classes", 10**6), "own_classes: 1000000"),
    "more examples than latents": (MANIFEST, _more_examples, "latents.safetensors.*needed"),
    "fewer latents": (LATENTS, _each(lambda x: x[:-1]), "needed: mean .F16 [0-9]+ [0-9]+ 8 8"),
    "latents of another base": (
        LATENTS, _each(lambda x: x[:, :4]), "F16 [0-9]+ 4 .*needed: mean .F16 [0-9]+ (8|16) "
    ),
    "latents of whole numbers": (LATENTS, _each(lambda x: x.astype("i8")), "mean .I64"),
    "fewer captions": (TEXT, _each(lambda x: x[:-1]), "text.safetensors: holds embeddings"),
    "text of another encoder": (
        TEXT, _each(lambda x: x[..., :8]), "F16 .* 8.; needed: embeddings .*tokens 384"
    ),
    "classes for a base of words": (
        TEXT, lambda _: {"labels": np.zeros(19, "i8")}, "holds labels.*needed: embeddings"
    ),
    "fewer held-out images": (IMAGES, _each(lambda x: x[:-1]), "needed: images .U8 6 h h 3"),
    "no square": (IMAGES, _each(lambda x: x[:, :-1]), "images.safetensors: holds images"),
    "fewer samples": (SAMPLES, _each(lambda x: x[:4]), r"U8 4 (\d+) \1 3.*needed: images .U8 6"),
    "samples of no pixels": (SAMPLES, _each(lambda x: x[:, :0, :0]), "holds images .U8 6 0 0 3"),
    "samples without colours": (SAMPLES, _each(lambda x: x[..., :1]), "samples.safetensors: holds"),
    "samples that are no pixels": (SAMPLES, _each(lambda x: x.astype("f4")), "holds images .F32"),
    "samples of another name": (SAMPLES, lambda c: {"image": c["images"]}, "holds image .U8"),
    "features of another name": (FEATURES, _without("effnet"), "features.safetensors: holds"),
    "unequal features": (FEATURES, lambda c: c | {"judge_texts": c["judge_texts"][:, :9]}, "holds"),
    "features of two images": (FEATURES, _each(lambda x: x[:2]), "of 2 images; needed: at least 4"),
    "features that are not finite": (FEATURES, _not_finite, "1 of 6 rows of 'effnet' are not"),
    "a metric that is text": (METRICS, _put("clip_t", "0.3"), "a run's metrics .clip_t: '0.3'"),
    "a metric that is nothing": (METRICS, _put("clip_t", None), "a run's metrics .clip_t: None"),
    "a metric that is missing": (METRICS, _without("fd_effnet"), "fd_effnet: missing"),
    "another column of the table": (METRICS, _put("status", "ok"), "status: unknown key"),
    "rows that are none": (METRICS, _put("against_n", [{"n": 6}]), "against_n.0..fd_effnet: miss"),
    "diverged, and yet measured": (METRICS, _put("diverged", "so"), "clip_t: unknown key"),
    "diverged without a word": (METRICS, lambda _: {"diverged": 1}, "diverged: 1: input should be"),
}  # fmt: skip


@pytest.fixture
def forged(finished, monkeypatch):
    """Change a file of the first run, and its sidecar with it; all is put back."""
    from safetensors.numpy import load_file, save_file

    from fitspace.plan import build_plan

    monkeypatch.chdir(finished)
    plan = build_plan(load_study(project.STUDY))
    kept: dict[Path, bytes] = {}

    def forge(stage: str, name: str, change) -> Path:
        path = getattr(plan.runs[0], stage).folder / name
        kept.update({p: p.read_bytes() for p in path.parent.iterdir()})
        if path.suffix == ".json":
            path.write_text(json.dumps(change(json.loads(kept[path]))))
        else:
            changed = change(load_file(path))
            save_file({name: np.ascontiguousarray(x) for name, x in changed.items()}, path)
        kinds.resealed(path)
        return path

    forge.plan = plan
    yield forge
    for path, content in kept.items():
        path.write_bytes(content)


@pytest.mark.parametrize("which, change, said", FORGED.values(), ids=FORGED)
def test_a_file_forged_with_its_sidecar_is_refused(forged, which, change, said):
    """By what reads it: the hashes agree, so only what the file holds can tell."""
    from fitspace import bases, metrics
    from fitspace.results import table
    from fitspace.stages.sidecars import verified

    plan, (run, *_) = forged.plan, forged.plan.runs
    reads = {
        METRICS: lambda: table.collect(plan),
        SAMPLES: lambda: evaluate.measure(plan.study, run, {}),
        FEATURES: lambda: metrics.read_features(run.reference.folder / which[1], False),
        IMAGES: lambda: reference.reference_features(plan.study, run),
    }
    path = forged(*which, change)
    verified(getattr(run, which[0]))
    with pytest.raises(UserError, match=said) as caught:
        reads.get(which, lambda: prepared.load(run.prepare, bases.resolve(plan.study.base)))()
    assert all(p.startswith(str(path.parent)) for p in caught.value.problems)


FORGED_FACTS = {
    "why it diverged is no text": ("sample", {"diverged": 7}, "facts.diverged: 7"),
    "no cost of training": ("sample", {"train": {}}, "facts.train.trainable: missing"),
    "a loss that is text": ("train", {"final_loss": "x"}, "facts.final_loss: 'x'"),
    "a number of parameters that is none": ("evaluate", {"sample": 1}, "facts.sample: 1"),
}


@pytest.mark.parametrize("stage, facts, said", FORGED_FACTS.values(), ids=FORGED_FACTS)
def test_forged_facts_of_a_sidecar_are_refused(forged, damaged, stage, facts, said):
    """Facts go on from stage to stage, and end as cells of the table."""
    from fitspace.stages.sidecars import verified

    (made,) = (s for s in forged.plan.runs[0].stages if s.name == stage)
    content = json.loads(made.sidecar.read_text())
    content["facts"] |= facts
    damaged(made.sidecar, json.dumps(content).encode())
    with pytest.raises(UserError, match=f"{stage}.json: not a sidecar .{said}"):
        verified(made)


def test_forged_metrics_are_one_message_of_the_command(forged, capsys):
    path = forged(*METRICS, _put("clip_t", [1]))
    before = {p: p.read_bytes() for p in Path("reports/two").glob("*.*")}
    assert main(["report", "--cached", project.STUDY]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fitspace: {path}: not a run's metrics (clip_t: [1]: ")
    assert said.count("\n") == 1 and "Traceback" not in said
    assert {p: p.read_bytes() for p in Path("reports/two").glob("*.*")} == before


def test_features_of_another_judge_or_extractor_are_refused(forged, monkeypatch):
    """Their file is sound, but nothing can be held against it."""
    import torch

    from fitspace import metrics
    from fitspace.metrics import clip, effnet

    study, (run, *_) = forged.plan.study, forged.plan.runs
    monkeypatch.setattr(clip, "load", lambda judge: None)
    monkeypatch.setattr(clip, "image_embeddings", lambda judge, images: torch.ones(6, 7))
    monkeypatch.setattr(effnet, "features", lambda images: torch.ones(6, 9).double())
    features = metrics.read_features(run.reference.folder / FEATURES[1], of_subject=False)
    with pytest.raises(UserError) as caught:
        evaluate.measure(study, run, features)
    named = [problem.split("'")[1] for problem in caught.value.problems]
    assert named == ["judge_images", "effnet"]


SUBJECT = {"subject": [1], "elsewhere": [1], "class": [2]}
PREPARED = {
    "labels": ({}, [0, 5, 6], "needed: from 0 to 5"),
    "labels below": ({}, [-1, 0, 1], "needed: from 0 to 5"),
    "labels of its own": ({"own_classes": 2}, [0, 1, 3], "needed: from 0 to 2"),
    "no roles": ({"roles": None}, None, "roles: None"),
    "a role that is missing": ({"roles": {"subject": [1], "elsewhere": [1]}}, None, "roles.class"),
    "a role without prompts": ({"roles": SUBJECT | {"class": []}}, None, "roles.class: "),
    "roles without captions": ({"roles": SUBJECT | {"class": [9]}}, None, "caption 9 is named"),
    "classes for a subject": ({"own_classes": 2}, None, "own_classes: 2"),
}


@pytest.mark.parametrize("change, labels, said", PREPARED.values(), ids=PREPARED)
def test_prepared_tasks_of_other_kinds_are_checked_too(tmp_path, change, labels, said):
    """Of a base with five classes, and, without labels, of one subject."""
    import torch

    from fitspace.plan import Stage

    of_subject, base = labels is None, tmp_path / "base"
    kind = "unet" if of_subject else "transformer"
    config = {"in_channels": 4, "sample_size": 2, "cross_attention_dim": 3}
    config |= {} if of_subject else {"num_embeds_ada_norm": 5}
    config["_class_name"] = "UNet2DConditionModel" if of_subject else "DiTTransformer2DModel"
    others = ("vae", "scheduler", *(("text_encoder", "tokenizer") if of_subject else ()))
    index = {kind: ["diffusers", config["_class_name"]], **{c: ["diffusers", c] for c in others}}
    files.write_json(base / "model_index.json", index)
    for component in index:
        files.write_json(base / component / "config.json", config if component == kind else {})
        (base / component / "model.safetensors").touch()
    example = {"caption": 1, "group": "a", "split": "train"}
    manifest = {"attribution": "", "captions": ["", "a", "b"], "examples": [example], "prompts": []}
    manifest |= {"roles": SUBJECT, "prior_weight": 1} if of_subject else {"prompt_images": []}
    text = {"embeddings": torch.zeros(3, 7, 3).half()}
    tensors = {
        "latents": {name: torch.zeros(1, 4, 2, 2).half() for name in ("mean", "std")},
        "text": text if of_subject else {"labels": torch.tensor([0, 1, 2])},
        "images": {"images": torch.zeros(1, 4, 4, 3, dtype=torch.uint8)},
    }
    stage = Stage("prepare", tmp_path / "made", "0", {"dreambooth": {}} if of_subject else {})
    own = {"inputs": [], "started": "", "facts": {}}
    prepare.write(stage, tensors, dict(manifest), **own)
    (told,) = prepared.load(stage, base).conditions.values()
    assert len(told) == 3
    if not of_subject:
        tensors["text"] = {"labels": torch.tensor(labels)}
    prepare.write(stage, tensors, manifest | change, **own)
    with pytest.raises(UserError, match=said):
        prepared.load(stage, base)


@pytest.mark.parametrize("shape", [(2, 4, 4, 3), (3, 5, 5, 3), (3, 4, 5, 3), (3, 4, 4, 1)])
def test_class_images_that_are_not_as_drawn_are_refused(tmp_path, shape):
    import torch
    from safetensors.torch import save_file

    from fitspace.plan import Stage
    from fitspace.stages.prepare import class_examples
    from fitspace.stages.sidecars import write_sidecar

    stage = Stage("prior", tmp_path, "0", {"images": 3})
    path = tmp_path / "images.safetensors"
    for each, sound in (((3, 4, 4, 3), True), (shape, False)):
        save_file({"images": torch.zeros(each, dtype=torch.uint8)}, path)
        write_sidecar(stage, inputs=[], outputs=[path], started="", facts={})
        if sound:
            assert len(class_examples(stage, "a dog", 4)) == 3
    with pytest.raises(UserError, match="needed: images .U8 3 4 4 3"):
        class_examples(stage, "a dog", 4)


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
