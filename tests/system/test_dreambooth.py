"""DreamBooth tasks: what they ask for, draw, train on and measure."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from PIL import Image
from safetensors.numpy import load_file

from fitspace import metrics, training
from fitspace.core.errors import UserError
from fitspace.data import dreambooth, folder, openmoji
from fitspace.data.prepared import load, read_manifest
from fitspace.metrics import clip
from fitspace.plan import STAGES, build_plan, load_study
from fitspace.results.table import collect, collect_into
from fitspace.stages import function
from fitspace.study import Study

ROOT = Path(__file__).parents[2]
GOOD = yaml.safe_load((ROOT / "tests/data/dreambooth.yaml").read_text())
NONE = {"method": "none"}
ORDINARY = {"name": "sepia", "source": "openmoji", "style": "sepia"}


def _study(task=(), subject=(), **changes) -> dict:
    """A study of one figure with changed keys; None leaves a key out."""
    content = copy.deepcopy(GOOD) | changes
    content["tasks"][0] |= dict(task)
    if content["tasks"][0].get("dreambooth"):
        content["tasks"][0]["dreambooth"] |= dict(subject)
    return content


# --- study files -------------------------------------------------------------------------

REFUSED = {
    "no noun": (dict(subject={"noun": None}), "tasks[0].dreambooth.noun: None"),
    "no prompts": (dict(subject={"prompts": []}), "tasks[0].dreambooth.prompts: []"),
    "a prompt without the subject": (
        dict(subject={"prompts": ["a dog"]}),
        "tasks[0].dreambooth.prompts[0]: 'a dog' holds {} 0 times; allowed: once",
    ),
    "a template with two subjects": (
        dict(subject={"template": "{} and {}"}),
        "tasks[0].dreambooth.template: '{} and {}' holds {} 2 times",
    ),
    "blanks for a token": (dict(subject={"token": " "}), "tasks[0].dreambooth.token: ' '"),
    "no class images": (dict(subject={"class_images": 0}), "dreambooth.class_images: 0"),
    "a negative weight": (dict(subject={"prior_weight": -1.0}), "dreambooth.prior_weight: -1.0"),
    "an unknown key": (
        dict(subject={"tokn": "x"}),
        "tasks[0].dreambooth.tokn: unknown key (did you mean 'token'?)",
    ),
    "no figure": (dict(task={"subject": None}), "tasks[0]: subject: missing; a figure of OpenMoji"),
    "a figure without dreambooth": (
        dict(task={"dreambooth": None}),
        "subject: 'supervillain' is only for source: openmoji with dreambooth",
    ),
    "a figure and a folder": (
        dict(task={"source": "folder", "path": "pictures", "style": None}),
        "subject: 'supervillain' is only for source: openmoji with dreambooth",
    ),
    "an unknown figure": (
        dict(task={"subject": "supervilain"}),
        "tasks[0]: subject: 'supervilain' is no figure of OpenMoji (did you mean 'supervillain'?)",
    ),
    "no such folder": (
        dict(task={"source": "folder", "path": "nowhere", "style": None, "subject": None}),
        "tasks[0]: nowhere: no such folder; allowed: a folder of images",
    ),
    "a base that is told classes": (
        dict(base="facebook/DiT-XL-2-256", arms=[{"method": "full"}]),
        "tasks[0].dreambooth: base 'facebook/DiT-XL-2-256' is told classes, not words",
    ),
    "a metric of held-out images": (
        dict(analysis=GOOD["analysis"] | {"responses": ["clip_t", "fd_effnet"]}),
        "analysis.responses: 'fd_effnet' is not measured on task 'supervillain'; allowed: clip_t",
    ),
    "a metric that only one kind of task has": (
        dict(tasks=[*GOOD["tasks"], ORDINARY]),
        "analysis.responses: 'prior_drift' is not measured on task 'sepia'; allowed: fd_effnet",
    ),
    "a weight of a training that no class images serve": (
        dict(
            subject={"prior_weight": 0.0},
            arms=[{"method": "full", "factors": {"train.prior_weight": [0.0, 1.0]}}, NONE],
        ),
        "arms[0].factors.train.prior_weight: 1.0: task 'supervillain' draws no class images",
    ),
    "a weight that a tuning may choose and no class images serve": (
        dict(
            subject={"prior_weight": 0.0},
            arms=[{"method": "full"}, NONE],
            tuning={
                "tasks": [GOOD["tasks"][0] | {"name": "other", "subject": "mage"}],
                "factors": {"train.prior_weight": [0, 1]},
                "seeds": [0],
                "response": "clip_i",
            },
        ),
        "tuning.factors.train.prior_weight: 1: task 'supervillain' draws no class images",
    ),
    "class images that no arm trains on": (
        dict(arms=[{"method": "full", "train": {"prior_weight": 0}}, NONE]),
        "tasks[0].dreambooth.prior_weight: 1: no arm trains on the class images",
    ),
    "a weight of a training on a task that teaches no subject": (
        dict(
            tasks=[*GOOD["tasks"], ORDINARY],
            arms=[{"method": "full", "train": {"prior_weight": 0.5}}, NONE],
        ),
        "arms[0].train.prior_weight: 0.5: task 'sepia' teaches no subject",
    ),
    "several images of a prompt": (
        dict(sample=GOOD["sample"] | {"images_per_prompt": 2}),
        "sample.images_per_prompt: 2: task 'supervillain' is dreambooth",
    ),
    "more prompts than images": (
        dict(sample=GOOD["sample"] | {"prompts": 5}),
        "sample.prompts: 5; task 'supervillain' has 6 prompts elsewhere; allowed: at least 6",
    ),
}


def _problems(tmp_path: Path, content: dict) -> list[str]:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    try:
        load_study(path)
    except UserError as error:
        return [p.removeprefix(f"{path}: ") for p in error.problems]
    return []


@pytest.mark.parametrize("changes, expected", REFUSED.values(), ids=REFUSED)
def test_check_names_key_value_and_what_is_allowed(tmp_path, monkeypatch, changes, expected):
    monkeypatch.chdir(ROOT)
    problems = _problems(tmp_path, _study(**changes))
    assert any(expected in problem for problem in problems), problems


def test_check_accepts_the_metrics_that_all_kinds_of_tasks_have(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    analysis = {"factors": ["arm"], "responses": ["clip_i", "clip_t", "diversity"]}
    mixed = _study(tasks=[*copy.deepcopy(GOOD["tasks"]), ORDINARY], analysis=analysis)
    assert _problems(tmp_path, mixed) == []


def test_prompts_by_role():
    subject = (
        Study.model_validate(GOOD)
        .tasks[0]
        .dreambooth.model_copy(
            update={"token": "sks", "template": "photo of a {}", "prompts": ["{} in {x}", "{} out"]}
        )
    )
    assert subject.asked == {
        "subject": ["photo of a sks person"],
        "elsewhere": ["sks person in {x}", "sks person out"],
        "class": ["photo of a person"],
    }
    assert subject.elsewhere_by_noun == ["person in {x}", "person out"]


# --- keys --------------------------------------------------------------------------------

# Change -> stages whose keys stay. A change to a task retrains it, whatever the change.
KEPT = {
    "sampling": (
        dict(sample=GOOD["sample"] | {"steps": 7}),
        ["prior", "prepare", "train", "explain"],
    ),
    "training": (dict(train=GOOD["train"] | {"steps": 7}), ["prior", "prepare", "reference"]),
    "prior weight": (dict(subject={"prior_weight": 0.5}), ["prior"]),
    "token": (dict(subject={"token": "sks"}), ["prior"]),
    "figure": (dict(task={"subject": "mage"}), ["prior"]),
    "name of the task": (dict(task={"name": "other"}), ["prior"]),
    "noun": (dict(subject={"noun": "man"}), []),
    "number of class images": (dict(subject={"class_images": 9}), []),
    "guidance of class images": (dict(subject={"class_guidance": 1.0}), []),
}


def _keys(content: dict) -> dict[str, set[str]]:
    plan = build_plan(Study.model_validate(content))
    stages = list(plan.stages.values())
    return {name: {s.folder.name for s in stages if s.name == name} for name in STAGES}


@pytest.mark.parametrize("changes, kept", KEPT.values(), ids=KEPT)
def test_a_change_touches_only_what_depends_on_it(monkeypatch, changes, kept):
    monkeypatch.chdir(ROOT)
    arms = GOOD["arms"][:2]  # the untouched base does not depend on training
    before, after = _keys(_study(arms=arms)), _keys(_study(arms=arms, **changes))
    made = [name for name in STAGES if before[name]]
    assert [name for name in made if before[name] == after[name]] == kept
    assert not any(before[name] & after[name] for name in STAGES if name not in kept)


def test_without_prior_preservation_there_is_no_prior_and_its_settings_do_not_count(monkeypatch):
    monkeypatch.chdir(ROOT)
    off = _keys(_study(subject={"prior_weight": 0.0}))
    assert off["prior"] == set() and off["prepare"]
    for unused in ({"class_images": 9}, {"class_guidance": 9.0}):
        assert off == _keys(_study(subject={"prior_weight": 0.0} | unused))


def test_subjects_of_one_class_share_their_class_images_and_leave_other_tasks_alone(monkeypatch):
    monkeypatch.chdir(ROOT)
    second = copy.deepcopy(GOOD["tasks"][0]) | {"name": "mage", "subject": "mage"}
    both = _keys(_study(tasks=[*copy.deepcopy(GOOD["tasks"]), second, ORDINARY]))
    assert len(both["prior"]) == 1 and len(both["prepare"]) == 3
    alone = _keys(_study(tasks=[ORDINARY]))
    assert all(alone[name] <= both[name] for name in STAGES) and alone["prior"] == set()


# --- images of a subject -----------------------------------------------------------------


def _pictures(path: Path, count: int = 4) -> Path:
    """Pictures of one pattern, of different sizes, and a metadata file that says nothing."""
    path.mkdir()
    for i in range(count):
        pixels = np.zeros((20 + 4 * i, 20, 3), np.uint8)
        pixels[4:12, 6:14] = 200, 40 * i, 90
        Image.fromarray(pixels).save(path / f"{i}.png")
    (path / "metadata.jsonl").write_text("no captions here")
    return path


def test_a_figure_is_its_skin_tones_in_a_style():
    found = list(openmoji.examples("sepia", 16, figure="mage"))
    assert len(found) == 6 and {e.caption.split(",")[0] for e in found} == {"mage"}
    plain = next(e for e in found if e.caption == "mage")
    path = next(row[3] for row in openmoji.catalogue() if row[1] == "mage")
    assert (plain.image == openmoji.render(path, "sepia", 16)).all()


def test_a_plain_folder_is_read_whole_without_captions(tmp_path):
    found, notes = folder.pictures(_pictures(tmp_path / "pictures"), 16)
    assert [e.name for e in found] == ["0.png", "1.png", "2.png", "3.png"]
    assert all(e.split == "train" and e.image.shape == (16, 16, 3) for e in found)
    assert any(note.startswith("1.png: ") for note in notes)  # not square: said


def test_a_folder_is_known_by_its_images(tmp_path):
    pictures = _pictures(tmp_path / "pictures")
    before = folder.pictures_digest(pictures)
    (pictures / "metadata.jsonl").write_text("other")
    assert folder.pictures_digest(pictures) == before
    (pictures / "0.png").rename(pictures / "9.png")
    assert folder.pictures_digest(pictures) != before


BAD_PICTURES = {
    "none": (lambda p: shutil.rmtree(p) or p.mkdir(), "no images; allowed: a folder with at least"),
    "no bytes": (lambda p: (p / "x.png").write_bytes(b""), "x.png: 0 bytes"),
    "leads outside": (lambda p: (p / "x.png").symlink_to(ROOT / "README.md"), "leads outside"),
    "no image": (lambda p: (p / "x.png").write_bytes(b"text"), "x.png: "),
}


@pytest.mark.parametrize("change, expected", BAD_PICTURES.values(), ids=BAD_PICTURES)
def test_unusable_pictures_are_named(tmp_path, change, expected):
    pictures = _pictures(tmp_path / "pictures")
    change(pictures)
    with pytest.raises(UserError) as error:
        folder.pictures(pictures, 16)
    assert len(error.value.problems) == 1 and expected in error.value.problems[0]


# --- batches -----------------------------------------------------------------------------


def _with_prior(weight: float):
    """The tiny task, whose last three images become class images of caption 11."""
    task = tiny.task()
    return replace(
        task,
        captions=torch.tensor([*range(1, 8), 11, 11, 11]),
        groups=[[0, 1, 2], [2, 3, 4], [4, 5, 6], [6, 0, 1]],  # as many as class images
        prior=[7, 8, 9],
        prior_weight=weight,
    )


def _batch(task, step: int = 3, **settings):
    settings = tiny.SETTINGS | {"caption_dropout": 0.0} | settings
    return training.make_batch(task, tiny.process(), 0.5, settings, 0, step)


def test_class_examples_follow_and_leave_the_others_bit_identical():
    task, size = _with_prior(1.0), tiny.SETTINGS["batch_size"]
    both, alone = _batch(task), _batch(replace(task, prior=[]))
    assert len(both.t) == 2 * size and len(alone.t) == size
    for name in ("clean", "noise", "noisy", "t"):
        assert torch.equal(getattr(both, name)[:size], getattr(alone, name))
    told, before = both.conditions["embeddings"], alone.conditions["embeddings"]
    assert torch.equal(told[:size], before)
    assert torch.equal(told[size:], task.conditions["embeddings"][[11] * size])
    assert (both.noise[size:] != both.noise[:size]).all((1, 2, 3)).all()
    assert (both.t[size:] != both.t[:size]).all()
    seen = {
        i
        for step in range(12)
        for x in _batch(replace(task, std=torch.zeros_like(task.std)), step).clean[size:]
        for i in range(10)
        if torch.equal(x, task.mean[i] * 0.5)
    }
    assert seen == {7, 8, 9}


@pytest.mark.parametrize("gamma", [None, 5.0], ids=["plain", "min-SNR"])
@pytest.mark.parametrize("weight", [0.25, 1.0, 3.0])
def test_loss_is_the_subjects_plus_the_weighted_class_images(weight, gamma):
    batch, model = _batch(_with_prior(weight), min_snr_gamma=gamma), tiny.unet()
    process, size = tiny.process(), tiny.SETTINGS["batch_size"]
    with torch.no_grad():
        predicted = model(batch.noisy, batch.t, batch.conditions["embeddings"]).sample
    found = batch.losses(process, predicted).mean()
    alpha = process.scheduler.alphas_cumprod[batch.t].view(-1, 1, 1, 1)
    velocity = alpha.sqrt() * batch.noise - (1 - alpha).sqrt() * batch.clean
    errors = (predicted - velocity).square().mean((1, 2, 3))
    if gamma is not None:
        snr = (alpha / (1 - alpha)).flatten()
        errors = errors * snr.clamp(max=gamma) / (snr + 1)
    expected = errors[:size].mean() + weight * errors[size:].mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_training_may_weigh_prior_preservation_otherwise_than_its_task():
    task = _with_prior(1.0)
    assert task.preserving(None) is task
    for weight in (0.25, 3.0):
        own, other = _batch(task.preserving(weight)), _batch(_with_prior(weight))
        assert torch.equal(own.weight, other.weight) and torch.equal(own.noisy, other.noisy)
    without = _batch(task.preserving(0.0))
    assert len(without) == tiny.SETTINGS["batch_size"]
    assert torch.equal(without.noisy, _batch(replace(task, prior=[])).noisy)


# --- what is asked for and measured ------------------------------------------------------


def test_requests_share_the_noise_of_the_class_only():
    task = replace(tiny.task(), roles={"subject": [1], "elsewhere": [3, 4, 5], "class": [2]})
    one, two = (dreambooth.requests(task, seed, 4) for seed in (0, 1))
    assert {role: rows for role, (rows, _) in one.items()} == {
        "subject": [1, 1, 1, 1],
        "elsewhere": [3, 4, 5, 3],
        "class": [2, 2, 2, 2],
    }
    assert torch.equal(one["class"][1], two["class"][1])
    noises = [one["subject"], two["subject"], one["elsewhere"], two["elsewhere"], one["class"]]
    flat = torch.cat([noise for _, noise in noises]).flatten(1)
    assert len(flat.unique(dim=0)) == len(flat) == 20


def test_drift_is_one_minus_the_mean_cosine():
    g = torch.Generator().manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(7, 5, generator=g)) for _ in range(2))
    cosines = torch.nn.functional.cosine_similarity(a.double(), b.double())
    assert clip.drift(a, b) == pytest.approx(1 - cosines.mean().item(), abs=1e-6)
    assert clip.drift(a, a) == 0


def test_metrics_of_a_subject_against_their_definitions():
    draw = np.random.default_rng(0)
    subject, own, elsewhere, of_class, base = (
        draw.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8) for n in (3, 4, 4, 4, 4)
    )
    judge, texts = ROOT / "models/emoji-clip", ["sun", "cat face", "sun", "red heart"]
    reference = metrics.subject_features(subject, texts, base, judge)
    found = metrics.evaluate_subject(np.concatenate([own, elsewhere, of_class]), reference, judge)
    loaded = clip.load(judge)
    x, s, e, c, b = (
        clip.image_embeddings(loaded, torch.from_numpy(i)).double().numpy()
        for i in (subject, own, elsewhere, of_class, base)
    )
    t = clip.text_embeddings(loaded, texts).double().numpy()
    expected = {
        "clip_i": np.mean([u @ v for u in s for v in x]),
        "clip_i_elsewhere": np.mean([u @ v for u in e for v in x]),
        "clip_t": np.mean([u @ v for u, v in zip(e, t, strict=True)]),
        "diversity": 1 - np.mean([s[i] @ s[j] for i in range(4) for j in range(4) if i != j]),
        "prior_drift": 1 - np.mean([u @ v for u, v in zip(c, b, strict=True)]),
        "n": 4,
        "m": 3,
    }
    assert found == pytest.approx(expected, abs=1e-6)
    assert set(found) - {"n", "m"} == set(metrics.OF_SUBJECT)
    with pytest.raises(UserError, match="samples: 8; allowed: 4 of each of 3 kinds"):
        metrics.evaluate_subject(np.concatenate([own, elsewhere]), reference, judge)


# --- the whole way -----------------------------------------------------------------------


def _pipeline(path: Path) -> Path:
    """A tiny text-conditional pipeline: latents 4 x 4, images 8 x 8."""
    import diffusers
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "sks", "dog", "snow"]
    path.mkdir()
    (path / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=12, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=16,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4, 8), down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2, latent_channels=4, norm_num_groups=4,
        sample_size=8,
    )  # fmt: skip
    diffusers.StableDiffusionPipeline(
        vae=vae, unet=tiny.unet(), scheduler=tiny.process().scheduler, safety_checker=None,
        tokenizer=transformers.BertTokenizer(str(path / "vocab.txt"), model_max_length=8),
        text_encoder=transformers.BertModel(config), feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(path / "base")  # fmt: skip
    return path / "base"


def _run_all(content: dict):
    """Every stage of every run once, in order; returns the plan."""
    plan = build_plan(Study.model_validate(content))
    for stage in sorted(plan.stages.values(), key=lambda s: list(STAGES).index(s.name)):
        function(stage.name)(plan.study, plan.run_of(stage.name, stage.folder.name))
    return plan


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a pipeline and pictures, and what to change of the study for it."""
    project = tmp_path_factory.mktemp("project")
    _pipeline(project / "tiny")
    _pictures(project / "pictures")
    subject = {"noun": "dog", "prompts": ["{} of snow", "a {} a"], "class_images": 5}
    task = {"name": "rex", "source": "folder", "path": "pictures", "dreambooth": subject}
    adapter = {"input": "CA_out", "output": "FFN_in", "width": 4}
    return project, GOOD | {
        "base": "tiny/base",
        "judge": str(ROOT / "models/emoji-clip"),
        "tasks": [task],
        "arms": [{"method": "adapter", "settings": adapter}, {"method": "none"}],
        "train": {"steps": 8, "batch_size": 2, "lr": 1.0e-1},
        "sample": {"prompts": 4, "steps": 3, "guidance": 2.0},
    }


@pytest.fixture(scope="module")
def finished(project):
    root, content = project
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield _run_all(content)


def test_a_users_folder_is_prepared_with_class_images_and_roles(finished):
    run = finished.runs[0]
    manifest = read_manifest(run.prepare)
    assert manifest["captions"] == [
        "", "photo of a sks dog", "sks dog of snow", "a sks dog a", "photo of a dog",
    ]  # fmt: skip
    assert manifest["roles"] == {"subject": [1], "elsewhere": [2, 3], "class": [4]}
    assert [e["split"] for e in manifest["examples"]] == ["train"] * 4 + ["class"] * 5
    task = load(run.prepare)
    assert (task.groups, task.prior) == ([[0], [1], [2], [3]], [4, 5, 6, 7, 8])
    assert task.captions.tolist() == [1] * 4 + [4] * 5 and len(task.mean) == 9
    images = load_file(run.prior.folder / "images.safetensors")["images"]
    assert images.shape == (5, 8, 8, 3) and len(np.unique(images, axis=0)) == 5
    sidecar = json.loads(run.prepare.sidecar.read_text())
    assert run.prior.sidecar.as_posix() in [i["path"] for i in sidecar["inputs"]]


def test_only_what_was_trained_drifts(finished):
    rows = collect(finished)
    assert [r["method"] for r in rows] == ["adapter", "none"] * 2
    for row in rows:
        assert set(metrics.OF_SUBJECT) < set(row) and "fd_effnet" not in row
        assert (row["n"], row["m"]) == (4, 4)
        assert (row["prior_drift"] == 0) == (row["method"] == "none")


def test_seeds_of_the_base_differ_but_for_the_class(finished):
    runs = [r for r in finished.runs if r.point.method == "none"]
    one, two = (load_file(r.sample.folder / "samples.safetensors")["images"] for r in runs)
    assert one.shape == (12, 8, 8, 3)
    assert not (one[:8] == two[:8]).all() and (one[8:] == two[8:]).all()


def test_gallery_shows_the_subject_as_target_and_none_for_its_class(finished, tmp_path):
    (tmp_path / "against_n.csv").write_text("of an earlier study file")
    collect_into(finished, tmp_path)
    assert not (tmp_path / "against_n.csv").exists()
    entries = json.loads((tmp_path / "gallery.json").read_text())
    assert {e["role"] for e in entries} == {"target", "best", "worst", "none"}
    target = next(e for e in entries if e["role"] == "target")
    assert target["captions"] == (
        ["photo of a sks dog"] * 4 + ["sks dog of snow", "a sks dog a"] * 2 + ["photo of a dog"] * 4
    )
    strip = np.asarray(Image.open(tmp_path / target["file"]).convert("RGB"))
    subject = load_file(finished.runs[0].prepare.folder / "images.safetensors")["images"]
    assert (strip[:, :32] == np.concatenate(list(subject), axis=1)).all()
    assert (strip[:, 64:] == 255).all() and strip.shape == (8, 96, 3)


def test_without_prior_preservation_only_the_subject_is_trained_on(project, monkeypatch):
    root, content = project
    monkeypatch.chdir(root)
    content = copy.deepcopy(content) | {"seeds": [0]}
    content["tasks"][0]["dreambooth"]["prior_weight"] = 0.0
    plan = _run_all(content)
    task = load(plan.runs[0].prepare)
    assert list(task.prior) == [] and len(task.mean) == 4
    assert [r["prior_drift"] == 0 for r in collect(plan)] == [False, True]


def test_the_weight_is_a_factor_of_one_task(project, monkeypatch):
    """Its class images are drawn once; level 0 is what a task without them trains, bit for bit."""
    root, content = project
    monkeypatch.chdir(root)
    content = copy.deepcopy(content) | {"seeds": [0]}
    content["arms"][0]["factors"] = {"train.prior_weight": [0.0, 0.5]}
    plan = _run_all(content)
    zero, half, none = plan.runs
    assert none.train is None and zero.prior.folder == half.prior.folder
    found = [dict(load_file(r.train.folder / "adapter.safetensors")) for r in (zero, half)]
    assert any((found[0][name] != found[1][name]).any() for name in found[0])
    del content["arms"][0]["factors"]
    content["tasks"][0]["dreambooth"]["prior_weight"] = 0.0
    alone = load_file(_run_all(content).runs[0].train.folder / "adapter.safetensors")
    assert all((found[0][name] == alone[name]).all() for name in alone)
    assert [r["train.prior_weight"] for r in collect(plan)][:2] == [0.0, 0.5]


def test_prior_of_a_run_without_one_is_refused(finished):
    with pytest.raises(UserError, match="prior: task 'rex' is without prior preservation"):
        function("prior")(finished.study, replace(finished.runs[0], own={}))


def test_workflow_draws_class_images_once(tmp_path):
    for name in ("Snakefile", "workflow", "profiles"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    (tmp_path / "models").symlink_to(ROOT / "models")
    second = copy.deepcopy(GOOD["tasks"][0]) | {"name": "mage", "subject": "mage"}
    analysis = {"factors": ["arm"], "responses": ["clip_i", "clip_t"]}
    tasks = [*copy.deepcopy(GOOD["tasks"]), second, ORDINARY]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(_study(tasks=tasks, analysis=analysis)))
    command = ["snakemake", "--cores", "1", "--dry-run", "--config", "study=study.yaml"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PATH": path}
    )
    assert done.returncode == 0, done.stderr
    counts = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, re.M))
    assert [counts[rule] for rule in ("prior", "prepare", "train")] == ["1", "3", "24"]
