"""Pipelines that nobody here can use are refused before anything runs, by the key that says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pipelines
import pytest
from broken import edit, lack, rename
from safetensors.torch import load_file, save_file

from fitspace import bases
from fitspace.bases import usable
from fitspace.core.errors import UserError
from fitspace.plan.footprint import text_tokens


@pytest.fixture(scope="module", params=["bert", "clip"])
def pristine(request, tmp_path_factory):
    text = {"bert": pipelines.bert, "clip": pipelines.clip}[request.param]
    return pipelines.stable_diffusion(tmp_path_factory.mktemp("usable") / request.param, text)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return pipelines.stable_diffusion(tmp_path_factory.mktemp("usable") / "base", pipelines.bert)


@pytest.fixture
def dit(tmp_path):
    return pipelines.dit(tmp_path / "dit")


@pytest.fixture
def base(bert, tmp_path, monkeypatch):
    """A copy to change, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(bert, tmp_path / "base")


SCHEDULER = "scheduler/scheduler_config.json"
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
# File, its new content (None: keys are changed in it), and what is said.
EDITS = {
    "inpainting": ("unet/config.json", {"in_channels": 9}, "in_channels: 9; allowed: 4"),
    "pictures": (
        "unet/config.json", {"addition_embed_type": "text_image"},
        "addition_embed_type: 'text_image'; allowed: null",
    ),
    "classes": (
        "unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type: 'timestep'",
    ),
    "numbered classes": ("unet/config.json", {"num_class_embeds": 10}, "num_class_embeds: 10"),
    "projected text": (
        "unet/config.json", {"encoder_hid_dim_type": "text_proj", "encoder_hid_dim": 12},
        "encoder_hid_dim: 12; allowed: null",
    ),
    "told guidance": ("unet/config.json", {"time_cond_proj_dim": 8}, "time_cond_proj_dim: 8"),
    "gated attention": ("unet/config.json", {"attention_type": "gated"}, "attention_type: 'gated'"),
    "another text encoder's U-Net": (
        "unet/config.json", {"cross_attention_dim": 16},
        "hidden_size: 12; allowed: 16, the denoiser's cross_attention_dim",
    ),
    "a list of widths": (
        "unet/config.json", {"cross_attention_dim": [12, 12]}, r"cross_attention_dim: \[12, 12\]",
    ),
    "images that are not square": (
        "unet/config.json", {"sample_size": [8, 16]}, r"sample_size: \[8, 16\]; allowed: the side",
    ),
    "three times the channels": ("unet/config.json", {"out_channels": 12}, "out_channels: 12"),
    "predicts the sample": (
        SCHEDULER, {"prediction_type": "sample"},
        "prediction_type: 'sample'; allowed: epsilon, v_prediction",
    ),
    "flow sigmas": (SCHEDULER, {"use_flow_sigmas": True}, "use_flow_sigmas: true"),
    "shifted latents": (
        "vae/config.json", {"shift_factor": 0.1}, "shift_factor: 0.1; allowed: null",
    ),
    "latents of a mean": ("vae/config.json", {"latents_mean": [0.1] * 4}, "latents_mean"),
    "no scale": ("vae/config.json", {"scaling_factor": 0}, "scaling_factor: 0; allowed: a number"),
    "transparent images": ("vae/config.json", {"in_channels": 4}, "in_channels: 4; allowed: 3"),
    "two text encoders": (
        "model_index.json", {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]},
        "text_encoder_2: CLIPTextModelWithProjection; allowed: a pipeline without it",
    ),
    "another autoencoder": (
        "model_index.json", {"vae": ["diffusers", "AutoencoderTiny"]}, "AutoencoderTiny; allowed:",
    ),
    "no limit anywhere": (
        "text_encoder/config.json", {"max_position_embeddings": None},
        "max_position_embeddings: None, and the tokenizer's model_max_length is",
    ),
}  # fmt: skip


@pytest.mark.parametrize("file, changes, problem", EDITS.values(), ids=EDITS)
def test_a_configuration_that_cannot_be_used_is_refused_by_its_key(base, file, changes, problem):
    if "max_position_embeddings" in changes:
        edit(base / "tokenizer/tokenizer_config.json", model_max_length=1e30)
    edit(base / file, **changes)
    with pytest.raises(UserError, match=problem) as caught:
        bases.resolve(base)
    where = file if "AutoencoderTiny" not in problem else "vae/config.json"
    where = "text_encoder/config.json" if "hidden_size" in problem else where
    assert any(where in each for each in caught.value.problems)


def test_a_flow_is_refused_also_where_nothing_is_trained(base):
    (base / SCHEDULER).write_text(json.dumps(FLOW))
    with pytest.raises(UserError, match="FlowMatchEulerDiscreteScheduler has no beta_schedule"):
        bases.resolve(base)


def test_a_learned_variance_without_a_bound_is_refused(dit):
    edit(dit / SCHEDULER, rescale_betas_zero_snr=True)
    assert bases.resolve(dit)
    edit(dit / "transformer/config.json", out_channels=8)
    with pytest.raises(UserError, match="rescale_betas_zero_snr: true with prediction_type epsi"):
        bases.resolve(dit)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize(
    "file", ["unet/diffusion_pytorch_model.safetensors", "vae/config.json", "tokenizer/vocab.txt"]
)
def test_a_pointer_of_git_lfs_is_said_with_its_cure(base, file):
    (base / file).write_bytes(POINTER)
    with pytest.raises(UserError, match=f"{file}: a pointer of Git LFS.*run: git lfs pull"):
        bases.resolve(base)


WEIGHTS = {
    "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model",
}  # fmt: skip


@pytest.mark.parametrize("component, name", WEIGHTS.items())
def test_only_a_variant_of_the_weights_is_no_weights(base, component, name):
    path = base / component / f"{name}.safetensors"
    path.rename(path.with_name(f"{name}.fp16.safetensors"))
    problem = f"{component}: {name}.fp16.safetensors; needed: {name}.safetensors"
    with pytest.raises(UserError, match=problem):
        bases.resolve(base)


def test_weights_in_parts_are_all_there(base):
    path = base / "unet/diffusion_pytorch_model.safetensors"
    parts = [
        path.with_name(f"diffusion_pytorch_model-0000{i}-of-00002.safetensors") for i in (1, 2)
    ]
    weights = load_file(path)
    names = list(weights)
    for at, part in enumerate(parts):
        save_file({n: weights[n] for n in names[at::2]}, part, metadata={"format": "pt"})
    index = {"weight_map": {n: parts[i % 2].name for i, n in enumerate(names)}, "metadata": {}}
    path.with_name(f"{path.name}.index.json").write_text(json.dumps(index))
    path.unlink()
    assert bases.problems(bases.resolve(base)) == []
    parts[1].unlink()
    with pytest.raises(UserError, match=f"unet/{parts[1].name}: missing"):
        bases.resolve(base)


@pytest.mark.parametrize("change", [lack, rename])
@pytest.mark.parametrize("component, name", WEIGHTS.items())
def test_weights_that_lack_a_tensor_are_never_filled_at_random(base, component, name, change):
    missing = change(base / component / f"{name}.safetensors")
    load = {"unet": bases.load_denoiser, "vae": bases.load_vae, "text_encoder": bases.load_text}
    with pytest.raises(UserError, match=f"{component}: .*{missing}"):
        load[component](base)
    (problem,) = [p for p in bases.problems(bases.resolve(base)) if missing in p]
    assert component in problem


def test_a_sound_pipeline_has_no_problems_and_is_tried_once(pristine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert bases.problems(bases.resolve(pristine)) == []
    monkeypatch.setattr(bases.trying, "_tried", lambda *_: pytest.fail("tried again"))
    assert bases.problems(bases.resolve(pristine)) == []


@pytest.mark.parametrize("name", ["emoji-unet", "emoji-dit"])
def test_the_embedded_bases_have_no_problems(name, tmp_path, monkeypatch):
    folder = bases.resolve(Path(__file__).parents[2] / "models" / name)
    monkeypatch.chdir(tmp_path)
    assert bases.problems(folder) == []


def test_a_tokenizer_of_more_words_than_its_encoder_is_named(base):
    with (base / "tokenizer/vocab.txt").open("a") as file:
        file.write("\nnew\nwords\nhere")
    for path in (base / "tokenizer").glob("tokenizer.json"):
        content = json.loads(path.read_text())
        content["model"]["vocab"] |= {f"new{i}": 100 + i for i in range(3)}
        path.write_text(json.dumps(content))
    problems = bases.problems(bases.resolve(base))
    assert any("tokens; allowed: 12, as many as the text encoder has" in p for p in problems)


# --- how many tokens are read -------------------------------------------------------------

LIMITS = {
    "both": (6, {"max_position_embeddings": 16}, 6),
    "more than positions": (512, {"max_position_embeddings": 16}, 16),
    "no limit": (None, {"max_position_embeddings": 16}, 16),
    "no limit, as transformers says it": (1e30, {"max_position_embeddings": 16}, 16),
    "no positions": (77, {}, 77),
    "padded positions": (
        None, {"max_position_embeddings": 514, "model_type": "roberta", "pad_token_id": 1}, 512,
    ),
}  # fmt: skip


@pytest.mark.parametrize("limit, config, tokens", LIMITS.values(), ids=LIMITS)
def test_the_smaller_of_limit_and_positions_is_read(limit, config, tokens):
    assert usable.tokens_read(limit, config) == tokens


def test_a_caption_is_never_said_to_be_as_long_as_nobody_knows():
    with pytest.raises(UserError, match="allowed: one of them from 1 to"):
        usable.tokens_read(1e30, {"max_position_embeddings": None})


@pytest.mark.parametrize("limit", [None, 1e30, 512])
def test_a_tokenizer_without_a_sane_limit_is_used(base, limit):
    settings = base / "tokenizer/tokenizer_config.json"
    content = json.loads(settings.read_text())
    content.pop("model_max_length", None)
    settings.write_text(
        json.dumps(content | ({} if limit is None else {"model_max_length": limit}))
    )
    folder = bases.resolve(base)
    assert bases.problems(folder) == []
    assert text_tokens(str(base)) == 16
    tokenizer, encoder = bases.load_text(folder)
    assert bases.encode_captions(tokenizer, encoder, ["red " * 40]).shape == (1, 16, 12)


def test_captions_that_are_cut_and_become_one_are_noted(base):
    long = "red red red red red red"
    captions = ["", "red apple", f"{long} apple", f"{long} house", "a green tree"]
    cut, alike = bases.cut_captions(bases.resolve(base), captions)
    assert cut.startswith("cut to the 6 tokens that the text encoder reads: 2 captions, such as")
    assert alike.startswith("one and the same to the text encoder, as they differ after 6 tokens")
    assert "2 captions" in alike and f"'{long} apple'" in alike
    assert bases.cut_captions(bases.resolve(base), captions[:2]) == []
