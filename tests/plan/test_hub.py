"""Hub ids: what is known without a copy, what a copy in the cache gives, what is fetched.

The cache is a made-up one in the layout of huggingface_hub; nothing here has a network.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from fitspace import bases, data, metrics
from fitspace.cli import main
from fitspace.core import hub
from fitspace.core.errors import UserError
from fitspace.core.imports import import_torchvision
from fitspace.plan import build_plan, footprint
from fitspace.plan.counting import count
from fitspace.plan.footprint import Footprint
from fitspace.study import Study, Task

import_torchvision()
import diffusers  # noqa: E402

from fitspace.metrics import clip  # noqa: E402

ROOT = Path(__file__).parents[2]
JUDGE, EMBEDDED = ROOT / "models/emoji-clip", ROOT / "models/emoji-unet"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Cache:
    """A hub cache: blobs, snapshots of links to them, refs and file lists."""

    def __init__(self, root: Path):
        self.root = root

    def put(self, repository, files, *, kind="model", revision="main", commit=COMMIT):
        """Files by name, as bytes; returns the snapshot's folder."""
        home = self.root / f"{kind}s--{repository.replace('/', '--')}"
        snapshot = home / "snapshots" / commit
        for name, content in files.items():
            blob = home / "blobs" / hashlib.sha256(content).hexdigest()
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(content)
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / name).symlink_to(blob)
        (home / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
        (home / "refs" / revision).write_text(commit)
        return snapshot

    def lists(self, repository, names, *, kind="model"):
        """What the hub said a commit holds, as huggingface_hub keeps it."""
        from huggingface_hub._tree_cache import TreeCacheEntry, write_tree_cache

        entry = TreeCacheEntry(size=1, blob_id="0", lfs_sha256=None, lfs_size=None, xet_hash=None)
        home = self.root / f"{kind}s--{repository.replace('/', '--')}"
        write_tree_cache(str(home), COMMIT, dict.fromkeys(names, entry))


def contents(folder):
    paths = (p for p in sorted(Path(folder).rglob("*")) if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache and an empty working directory; a connection fails the test."""
    from huggingface_hub import constants

    def no_network(*_):
        pytest.fail("the network was asked")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.chdir(tmp_path)
    return Cache(tmp_path / "hub")


@pytest.fixture
def remote(cache, monkeypatch):
    """Repositories of a made-up hub: name -> files. Fetching copies them to the cache."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils import filter_repo_objects

    repositories, local = {}, huggingface_hub.snapshot_download

    def download(name, *, repo_type, revision, allow_patterns, ignore_patterns, local_files_only):
        patterns = {"allow_patterns": allow_patterns, "ignore_patterns": ignore_patterns}
        if local_files_only:
            return local(
                name, repo_type=repo_type, revision=revision, local_files_only=True, **patterns
            )
        if name not in repositories:
            raise LocalEntryNotFoundError("no such repository")
        wanted = filter_repo_objects(repositories[name], **patterns)
        files = {file: repositories[name][file] for file in wanted}
        return str(cache.put(name, files, kind=repo_type, revision=revision or "main"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return repositories


# --- bases -------------------------------------------------------------------------------

KNOWN = {
    "CompVis/stable-diffusion-v1-4": ("unet", 64, 859_520_964),
    "runwayml/stable-diffusion-v1-5": ("unet", 64, 859_520_964),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": ("unet", 64, 859_520_964),
    # With one time and class embedder for all blocks, as its authors have it.
    "facebook/DiT-XL-2-256": ("dit", 32, 674_834_720),
    "facebook/DiT-XL-2-256@refs/pr/1": ("dit", 32, 674_834_720),
    "facebook/DiT-XL-2-512": ("dit", 64, 674_834_720),
}


@pytest.mark.parametrize(("ref", "expected"), KNOWN.items(), ids=KNOWN)
def test_well_known_bases_are_planned_without_a_copy(cache, ref, expected):
    family, side, total = expected
    assert bases.family(ref).name == family
    assert bases.denoiser_config(ref)["sample_size"] == side
    assert count(ref, "full", {})["total"] == total
    with pytest.raises(hub.NotHere, match="run: fitspace fetch"):
        bases.resolve(ref)


def test_an_unknown_base_without_a_copy_is_an_error_with_its_cure(cache):
    with pytest.raises(UserError) as caught:
        bases.family("org/other")
    assert "run: fitspace fetch STUDY.yaml" in caught.value.problems[0]
    assert "known without a copy: CompVis/stable-diffusion-v1-4" in caught.value.problems[1]


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    """A tiny DiT as its authors' are on the hub: saved under the name of a class since split."""
    folder = tmp_path_factory.mktemp("dit")
    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, num_layers=2, sample_size=8,
        num_embeds_ada_norm=3, norm_num_groups=4,
    )  # fmt: skip
    model.transformer_blocks[1].norm1.emb.load_state_dict(
        model.transformer_blocks[0].norm1.emb.state_dict()
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4, 8), down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2, latent_channels=4, norm_num_groups=4,
    )  # fmt: skip
    diffusers.DiTPipeline(model, vae, diffusers.DDIMScheduler(), {0: "cat"}).save_pretrained(folder)
    _rewrite(folder / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    _rewrite(
        folder / "transformer/config.json",
        _class_name="Transformer2DModel", cross_attention_dim=None, only_cross_attention=False,
    )  # fmt: skip
    return folder


def _rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_copy_in_the_cache_is_the_base(cache, dit):
    folder = cache.put("org/dit", contents(dit), revision="refs/pr/1")
    assert bases.resolve("org/dit@refs/pr/1") == folder
    assert bases.digest(folder) == bases.digest(dit)
    assert bases.family("org/dit@refs/pr/1").name == "dit"
    with pytest.raises(hub.NotHere):
        bases.resolve("org/dit")


def test_a_dit_saved_under_the_old_class_loads(cache, dit):
    model = bases.load_denoiser(bases.resolve(dit))
    assert type(model) is diffusers.DiTTransformer2DModel
    assert count(str(dit), "full", {})["total"] == sum(p.numel() for p in model.parameters())


def test_another_transformer_of_the_old_class_is_refused(dit, tmp_path):
    folder = shutil.copytree(dit, tmp_path / "pixart")
    _rewrite(folder / "transformer/config.json", norm_type="ada_norm_single")
    with pytest.raises(UserError, match="is a Transformer2DModel; allowed: DiTTransformer2DModel"):
        bases.resolve(folder)


def test_fetching_a_base_takes_safetensors_of_its_parts_alone(remote, dit):
    other = ("transformer/pytorch_model.bin", "transformer/x.fp16.safetensors", "evil.py")
    remote["org/dit"] = contents(dit) | dict.fromkeys(other, b"x")
    folder = bases.fetch("org/dit")
    assert contents(folder).keys() == contents(dit).keys()
    assert bases.fetch("org/dit") == folder == bases.resolve("org/dit")


def test_a_repository_without_safetensors_is_named(remote, dit):
    remote["org/dit"] = {
        name.replace(".safetensors", ".bin"): x for name, x in contents(dit).items()
    }
    with pytest.raises(UserError, match=r"'org/dit': transformer: no \*.safetensors"):
        bases.fetch("org/dit")


# --- judge -------------------------------------------------------------------------------


def test_a_judge_in_the_cache_is_the_one_in_a_folder(cache):
    cache.put("org/judge", contents(JUDGE))
    assert metrics.identity("hf-hub:org/judge") == metrics.identity(JUDGE)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8))
    here, there = (clip.load(judge) for judge in ("hf-hub:org/judge", JUDGE))
    assert torch.equal(clip.image_embeddings(here, images), clip.image_embeddings(there, images))
    texts = ["red heart", "cat"]
    assert torch.equal(clip.text_embeddings(here, texts), clip.text_embeddings(there, texts))


@pytest.mark.parametrize(
    ("judge", "problem"),
    [
        ("hf-hub:org/none", "judge: 'hf-hub:org/none' is not on this machine; run: fitspace fetch"),
        ("hf-hub:none", "judge: 'hf-hub:none'; allowed: hf-hub:org/name"),
    ],
    ids=["absent", "no hub id"],
)
def test_a_judge_that_is_not_here(cache, judge, problem):
    for use in (metrics.identity, clip.load):
        with pytest.raises(UserError, match=problem):
            use(judge)


def test_fetching_a_judge_takes_open_clips_safetensors_alone(remote):
    kept = {n: x for n, x in contents(JUDGE).items() if n.endswith((".json", ".safetensors"))}
    other = ("open_clip_pytorch_model.bin", "model.safetensors", "code.py")
    remote["org/judge"] = kept | dict.fromkeys(other, b"x")
    metrics.fetch_judge("hf-hub:org/judge")
    assert {p.name for p in metrics.judge_files("hf-hub:org/judge")} == kept.keys()
    assert metrics.identity("hf-hub:org/judge") == metrics.identity(JUDGE)
    remote["org/pickled"] = {"open_clip_config.json": b"{}", "open_clip_pytorch_model.bin": b"x"}
    with pytest.raises(UserError, match="'hf-hub:org/pickled' holds no"):
        metrics.fetch_judge("hf-hub:org/pickled")


# --- data sets ---------------------------------------------------------------------------


def picture(number: int) -> bytes:
    import io

    image = np.full((8, 8, 3), number, np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def task(dataset="org/images", **keys):
    return Task(name="t", source="hub", dataset=dataset, **keys)


BY_CLASS = {
    f"{split}/{name}/{i}.png": picture(i) for split in ("train", "validation")
    for name in ("red_fox", "cat") for i in range(2)
}  # fmt: skip
LAYOUTS = {
    "classes in splits": (
        BY_CLASS,
        None,
        {
            (f"{split}/{name}/{i}.png", name.replace("_", " "), half)
            for split, half in (("train", "train"), ("validation", "test"))
            for name in ("red_fox", "cat")
            for i in range(2)
        },
    ),
    "one subject": (
        {f"dataset/{name}/0{i}.jpg": picture(i) for name in ("big_cat", "dog") for i in range(4)},
        "dataset/big_cat",
        {(f"0{i}.jpg", "big cat", None) for i in range(4)},
    ),
    "captions": (
        {f"{i}.png": picture(i) for i in range(3)}
        | {"metadata.csv": b"file_name,text,split\n0.png,a,train\n1.png,b,train\n2.png,c,test\n"},
        None,
        {("0.png", "a", "train"), ("1.png", "b", "train"), ("2.png", "c", "test")},
    ),
}


@pytest.mark.parametrize(("files", "folder", "expected"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_data_set_in_the_cache_is_read_as_an_image_folder(cache, files, folder, expected):
    cache.put("org/images", files, kind="dataset")
    for _ in range(2):  # laid out, and found laid out
        found, _, _ = data.load_examples(task(folder=folder), 8)
        named = {(e.name, e.caption, e.split) for e in found}
        if None in {split for *_, split in expected}:  # left to the loader: a hash decides
            named = {(name, caption, None) for name, caption, _ in named}
        assert named == expected
    number = {e.name: int(Path(e.name).stem) for e in found}
    assert all((e.image == number[e.name]).all() for e in found)
    identity = {"hub": "org/images", "commit": COMMIT, "folder": folder or "", "reading": 2}
    assert data.identity(task(folder=folder)) == identity


def test_a_subject_of_dreambooth_is_read_without_captions(cache):
    files, folder, _ = LAYOUTS["one subject"]
    cache.put("org/images", files, kind="dataset")
    subject = task(folder=folder, dreambooth={"noun": "cat", "prompts": ["{} in snow"]})
    found, _, _ = data.load_examples(subject, 8)
    assert [(e.name, e.caption) for e in found] == [(f"0{i}.jpg", "") for i in range(4)]


def test_another_commit_is_another_task(cache):
    files = {f"{i}.png": picture(i) for i in range(3)}
    cache.put("org/images", files, kind="dataset")
    before = data.identity(task())
    cache.put("org/images", files | {"3.png": picture(3)}, kind="dataset", commit="f" * 40)
    assert data.identity(task()) != before
    assert data.identity(task(f"org/images@{COMMIT}")) == before
    found, _, _ = data.load_examples(task(), 8)
    assert len(found) == 4


ABSENT = {
    "nothing": lambda cache: None,
    "another folder": lambda cache: cache.put(
        "org/images", {"dog/0.png": picture(0)}, kind="dataset"
    ),
    "a part, cut off": lambda cache: (
        cache.put("org/images", {"cat/0.png": picture(0)}, kind="dataset"),
        cache.lists("org/images", ["cat/0.png", "cat/1.png"], kind="dataset"),
    ),
}


@pytest.mark.parametrize("prepare", ABSENT.values(), ids=ABSENT)
def test_a_data_set_that_is_not_here(cache, prepare):
    prepare(cache)
    for use in (data.identity, lambda t: data.load_examples(t, 8)):
        with pytest.raises(hub.NotHere, match="data set 'org/images', folder 'cat' is not on"):
            use(task(folder="cat"))


def test_fetching_a_data_set_takes_images_and_captions_of_its_folder(remote):
    kept = {"cat/a/0.png": picture(0), "cat/a/1.JPG": picture(1), "cat/metadata.csv": b"x"}
    other = ("cat/load.py", "cat/a.zip", "dog/0.png", "metadata.csv", "README.md")
    remote["org/images"] = kept | dict.fromkeys(other, b"x")
    data.fetch(task(folder="cat"))
    copied = hub.cached("org/images", ["*"], kind="dataset")
    assert contents(copied).keys() == kept.keys()
    with pytest.raises(UserError, match="folder 'bird' has no images that are read"):
        data.fetch(task(folder="bird"))


def test_parquet_files_of_the_datasets_library_are_written_out(cache, tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    features = {
        "image": {"_type": "Image"},
        "label": {"names": ["red_fox", "cat"], "_type": "ClassLabel"},
    }
    files = {}
    for split, numbers in {"train": (0, 1, 2), "test": (3, 4), "blurred": (5,)}.items():
        rows = {
            "image": [{"bytes": picture(i), "path": f"{i}.png"} for i in numbers],
            "label": [i % 2 for i in numbers],
        }
        note = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
        table = arrow.table(rows).replace_schema_metadata(note)
        parquet.write_table(table, tmp_path / "shard")
        files[f"data/{split}-00000-of-00001.parquet"] = (tmp_path / "shard").read_bytes()
    cache.put("org/images", files, kind="dataset")
    found, _, _ = data.load_examples(task(), 8)
    told = [(int(e.image[0, 0, 0]), e.caption, e.split) for e in found]
    assert sorted(told) == [
        (i, ("red fox", "cat")[i % 2], "train" if i < 3 else "test") for i in range(5)
    ]
    parquet.write_table(arrow.table({"x": [1]}), tmp_path / "shard")
    cache.put("org/odd", {"x.parquet": (tmp_path / "shard").read_bytes()}, kind="dataset")
    with pytest.raises(UserError, match="x.parquet: allowed: Parquet files of the datasets"):
        data.load_examples(task("org/odd"), 8)


# --- studies -----------------------------------------------------------------------------

EMOJI = yaml.safe_load((ROOT / "tests/data/positions.yaml").read_text())
ELSEWHERE = {
    "base": "CompVis/stable-diffusion-v1-4",
    "judge": "hf-hub:org/judge",
    "tasks": [{"name": "t", "source": "hub", "dataset": "org/images", "folder": "cat"}],
}
NAMED = ("base: 'CompVis/stable-diffusion-v1-4'", "judge: 'hf-hub:org/judge'", "'org/images'")


@pytest.fixture
def study(cache, monkeypatch):
    monkeypatch.setattr(footprint, "measure", lambda *arguments: Footprint(1, 3, 0, 1, 1))
    path = Path("study.yaml")
    path.write_text(yaml.safe_dump(copy.deepcopy(EMOJI) | ELSEWHERE))
    return str(path)


def test_check_says_valid_and_notes_what_is_not_here(study, capsys):
    assert main(["check", study]) == 0
    said = capsys.readouterr()
    assert "is valid" in said.out
    notes = said.err.splitlines()
    assert len(notes) == 3
    for note, name in zip(notes, NAMED, strict=True):
        assert note.startswith("fitspace: not here yet: ") and name in note and "fetch" in note


def test_plan_counts_what_is_not_here(study, capsys):
    assert main(["plan", study, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert len(plan["points"]) == 18 and len(plan["runs"]) == len(set(plan["runs"])) == 36
    assert len(plan["illegal_cells"]) == 12 and [len(c) for c in plan["components"]] == [16]
    # Width 8: 16 blocks whose widths sum to 12,480.
    assert {p["trainable"] for p in plan["points"]} == {24_976 * 8 + 12_480, 859_520_964, 0}
    assert len(plan["absent"]) == 3 and plan["cached"] is None and plan["to_run"] is None
    assert main(["plan", study]) == 0
    text = capsys.readouterr().out
    assert "18 points × 1 tasks × 2 seeds = 36 runs" in text and NAMED[1] in text


def test_running_names_everything_that_is_not_here(study, capsys):
    with pytest.raises(UserError) as caught:
        build_plan(Study.model_validate(yaml.safe_load(Path(study).read_text())))
    assert len(caught.value.problems) == 3
    assert main(["train", study, "some-folder"]) == 2
    assert capsys.readouterr().err.count("run: fitspace fetch STUDY.yaml") == 3


def test_fetch_brings_everything_and_then_the_plan_has_keys(remote, study, dit, capsys):
    arms = [{"method": "full"}, {"method": "bitfit"}]
    content = copy.deepcopy(EMOJI) | ELSEWHERE | {"base": "org/dit", "arms": arms}
    content["sample"]["prompts"] = 4
    content["analysis"] = {"factors": ["arm"], "responses": ["clip_t"]}
    Path(study).write_text(yaml.safe_dump(content))
    assert main(["check", study]) == 2  # an architecture that nobody knows yet
    capsys.readouterr()
    assert main(["fetch", study]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3 and all("downloaded from the hub" in line for line in said)
    remote |= {
        "org/dit": contents(dit),
        "org/judge": contents(JUDGE),
        "org/images": {f"cat/{i}.png": picture(i) for i in range(60)},
    }
    assert main(["fetch", study]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "these lines pin the study to it:"
    pinned = yaml.safe_load("\n".join(said[2:]))
    plan = build_plan(Study.model_validate(content))
    assert pinned == {
        "base_sha256": bases.digest(bases.resolve("org/dit")),
        "judge_sha256": plan.runs[0].reference.material["evaluator"]["judge"],
        "dataset": f"org/images@{COMMIT}",
    }
    assert main(["check", study]) == 0
    assert "not here" not in capsys.readouterr().err
    assert main(["plan", study, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["absent"] == [] and plan["to_run"]["prepare"] == 1
    assert all(run.count("~") == 3 for run in plan["runs"])
    # A pinned study says so, has the same keys, and refuses anything else.
    content["tasks"][0]["dataset"] = pinned.pop("dataset")
    Path(study).write_text(yaml.safe_dump(content | pinned))
    assert main(["fetch", study]) == 0
    assert "the study file already pins it" in capsys.readouterr().out
    assert main(["plan", study, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == plan["runs"]
    Path(study).write_text(yaml.safe_dump(content | pinned | {"judge_sha256": "0" * 64}))
    assert main(["fetch", study]) == 2
    assert f"judge_sha256: {'0' * 64}; 'hf-hub:org/judge' here is" in capsys.readouterr().err


def test_what_no_hub_has_is_named_after_fetching(remote, study, dit, capsys):
    content = copy.deepcopy(EMOJI) | ELSEWHERE | {"base": str(EMBEDDED), "judge": str(JUDGE)}
    content["inception"] = "inception.safetensors"
    Path(study).write_text(yaml.safe_dump(content))
    remote["org/images"] = {f"cat/{i}.png": picture(i) for i in range(5)}
    assert main(["fetch", study]) == 0
    said = capsys.readouterr()
    assert "not here yet: inception: 'inception.safetensors'" in said.err
    assert "base_sha256: " in said.out and "inception_sha256" not in said.out
