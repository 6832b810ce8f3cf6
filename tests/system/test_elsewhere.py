"""What fitspace trains, in other people's pipelines and in other libraries' files."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import embedded_base
import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

import fitspace
from fitspace import bases, cli, methods
from fitspace.bases.process import Diffusion
from fitspace.core import rng
from fitspace.core.errors import UserError
from fitspace.core.imports import import_peft
from fitspace.methods.export import export
from fitspace.training import sampling

peft = import_peft()
import diffusers  # noqa: E402

EMOJI = embedded_base.BASE
LATENTS, SIDE = embedded_base.LATENTS, embedded_base.SIDE
CAPTIONS, STEPS, GUIDANCE = ["red heart", "cat face"], 3, 3.0
TARGETED = {"target": "attention+ff"}


def trained(model, method, settings, path):
    """An adapter file with random values, and its attachment."""
    attachment = methods.attach(model, method, settings, seed=0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in attachment.trainable.values():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.1 * noise * parameter.std() if method == "full" else 0.05 * noise)
    methods.save(attachment, path, {"base": "0123"})
    return attachment


# --- pipelines of diffusers ---------------------------------------------------------------


@pytest.fixture(scope="module")
def emoji():
    """The embedded base as anybody loads it."""
    return diffusers.StableDiffusionPipeline.from_pretrained(EMOJI, local_files_only=True)


@pytest.fixture
def stable_diffusion(emoji):
    return diffusers.StableDiffusionPipeline(
        **emoji.components | {"unet": copy.deepcopy(emoji.unet)}, requires_safety_checker=False
    )


def noise():
    return rng.initial_noise(0, len(CAPTIONS), LATENTS)


def drawn_by(pipeline):
    """Images of a plain call, uint8."""
    images = pipeline(
        CAPTIONS, num_inference_steps=STEPS, guidance_scale=GUIDANCE, latents=noise(),
        height=SIDE, width=SIDE, output_type="np",
    ).images  # fmt: skip
    return (images * 255).round().astype(np.uint8)


def drawn_by_us(model):
    tokenizer, encoder = bases.load_text(EMOJI)
    text = bases.encode_captions(tokenizer, encoder, ["", *CAPTIONS])
    vae, process = bases.load_vae(EMOJI), bases.load_process(EMOJI)
    told, none = {"embeddings": text[1:]}, {"embeddings": text[:1]}
    return sampling.generate(model, vae, process, told, none, noise(), STEPS, GUIDANCE)


def assert_same_images(found, expected):
    """But for the last bit of a colour, where two sums of floats round apart."""
    assert found.shape == expected.shape
    apart = np.abs(found.astype(int) - expected)
    assert apart.max() <= 1 and (apart > 0).mean() < 0.01


UNET_METHODS = {
    "adapter": {"input": "CA_out", "output": "FFN_in", "width": 4},
    "adaptformer": {"width": 4, "scale": 3.0},
    "bitfit": {},
    "difffit": {},
    "full": {},
    "lora": TARGETED | {"alpha": 3},
    "ia3": {},
}
# Hooks, the base's own parameters, layers of peft: one of each always.
OFTEN = ("adapter", "difffit", "lora")


@pytest.mark.parametrize(
    "method", [m if m in OFTEN else pytest.param(m, marks=pytest.mark.slow) for m in UNET_METHODS]
)
def test_adapters_work_in_a_stable_diffusion_pipeline(stable_diffusion, tmp_path, method):
    path = tmp_path / "adapter.safetensors"
    ours = trained(bases.load_denoiser(EMOJI), method, UNET_METHODS[method], path)
    before = drawn_by(stable_diffusion)
    adapter = fitspace.load_adapter(stable_diffusion, path)
    with_adapter = drawn_by(stable_diffusion)
    assert_same_images(with_adapter, drawn_by_us(ours.model))
    assert np.abs(with_adapter.astype(int) - before).mean() > 1
    adapter.remove()
    assert np.array_equal(drawn_by(stable_diffusion), before)


@pytest.fixture
def dit_pipeline():
    """A DiT as diffusers has it: time and class embedders once in every block."""
    dit = tiny.tiny_dit(classes=1000)
    for block in dit.transformer_blocks[1:]:
        block.norm1.emb = copy.deepcopy(block.norm1.emb)
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4, 8), down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2, latent_channels=4, norm_num_groups=4,
        sample_size=16,
    )  # fmt: skip
    return diffusers.DiTPipeline(dit, vae, diffusers.DPMSolverMultistepScheduler())


DIT_METHODS = {
    "adapter": {"input": "SA_out", "output": "FFN_in", "width": 4},
    "adaptformer": {"width": 4, "scale": 3.0},
    "bitfit": {},
    "difffit": {},
    "lora": TARGETED,
    "oft": {"block_size": 4},
    "vpt": {"prompts": 3},
}


@pytest.mark.parametrize("method", DIT_METHODS)
def test_adapters_work_in_a_dit_pipeline(dit_pipeline, tmp_path, method):
    def drawn_by_pipeline():
        torch.manual_seed(3)
        images = dit_pipeline(
            classes, guidance_scale=GUIDANCE, num_inference_steps=STEPS, output_type="np"
        ).images
        return (images * 255).round().astype(np.uint8)

    classes, path = [7, 999], tmp_path / "adapter.safetensors"
    ours = trained(tiny.tiny_dit(classes=1000), method, DIT_METHODS[method], path)
    before = drawn_by_pipeline()
    adapter = fitspace.load_adapter(dit_pipeline, path)
    torch.manual_seed(3)
    expected = sampling.generate(
        ours.model, dit_pipeline.vae, Diffusion(dict(dit_pipeline.scheduler.config)),
        {"labels": torch.tensor(classes)}, {"labels": torch.tensor([1000])},
        torch.randn(2, 4, 8, 8), STEPS, GUIDANCE,
    )  # fmt: skip
    with_adapter = drawn_by_pipeline()
    assert_same_images(with_adapter, expected)
    assert np.abs(with_adapter.astype(int) - before).mean() > 1
    adapter.remove()
    assert np.array_equal(drawn_by_pipeline(), before)


def test_importing_the_function_imports_no_torch():
    code = "import sys, fitspace; fitspace.load_adapter; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- files of peft and diffusers ----------------------------------------------------------

LORAS = {
    "LoRA": {"rank": 2, "alpha": 6},
    "rsLoRA": TARGETED | {"rank": 4, "rslora": True},
    "DoRA": {"rank": 2, "dora": True, "target": "attention"},
    "fused": {"rank": 2, "fused": True},
    "fused DoRA": {"rank": 2, "fused": True, "dora": True},
    "dropout": {"rank": 2, "dropout": 0.5},
}
EXPORTS = [
    *(pytest.param("lora", settings, id=name) for name, settings in LORAS.items()),
    pytest.param("loha", {"rank": 2}, id="LoHa"),
    pytest.param("lokr", {"rank": 1, "factor": 2}, id="LoKr"),
    pytest.param("ia3", {}, id="IA3"),
    pytest.param("oft", {"block_size": 4}, id="OFT"),
]
BASES = {"unet": tiny.unet, "dit": tiny.tiny_dit}
OWN = {"unet": {}, "dit": {"class_embedding": False}}


def output(model, family):
    generator = torch.Generator().manual_seed(1)
    side = 4 if family == "unet" else 8
    latents, times = torch.randn(2, 4, side, side, generator=generator), torch.tensor([3, 700])
    text = torch.randn(2, 5, 12, generator=generator)
    with torch.no_grad():
        return model(latents, times, text if family == "unet" else torch.tensor([0, 3]))[0]


@pytest.mark.parametrize("family", BASES)
@pytest.mark.parametrize(("method", "settings"), EXPORTS)
def test_peft_reads_what_was_exported(tmp_path, family, method, settings):
    path = tmp_path / "adapter.safetensors"
    ours = trained(BASES[family](), method, settings | OWN[family], path)
    written = export(path, tmp_path / "out")
    assert all(file.is_file() for file in written)
    base = BASES[family]()
    before = output(base, family)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "out")
    found = output(theirs, family)
    torch.testing.assert_close(found, output(ours.model, family), rtol=0, atol=1e-6)
    assert (found - before).abs().max() > 1e-3


# With all that the others have: a scale, a magnitude, a fused layer that diffusers does not have.
LOADED = [
    pytest.param(
        settings, id=name, marks=() if name in ("rsLoRA", "fused DoRA") else pytest.mark.slow
    )
    for name, settings in LORAS.items()
]


@pytest.mark.parametrize("settings", LOADED)
def test_a_pipeline_loads_exported_lora(stable_diffusion, tmp_path, settings):
    """Into a pipeline of the embedded base, by diffusers alone: the same images to 1e-5."""

    def latents(pipeline):
        return pipeline(
            CAPTIONS, num_inference_steps=STEPS, guidance_scale=GUIDANCE, latents=noise(),
            height=SIDE, width=SIDE, output_type="latent",
        ).images  # fmt: skip

    run = tmp_path / "run"
    trained(bases.load_denoiser(EMOJI), "lora", settings, run / "adapter.safetensors")
    base = latents(stable_diffusion)
    attachment = fitspace.load_adapter(stable_diffusion, run / "adapter.safetensors")
    expected = latents(stable_diffusion)
    attachment.remove()
    export(run, tmp_path / "out")
    stable_diffusion.load_lora_weights(tmp_path / "out")
    # The scale is in the tensors, so that sums round in another order than ours.
    torch.testing.assert_close(latents(stable_diffusion), expected, rtol=0, atol=3e-5)
    stable_diffusion.unload_lora_weights()
    assert torch.equal(latents(stable_diffusion), base)
    assert (expected - base).abs().max() > 1e-2


def test_command_line(tmp_path, capsys):
    path, out = tmp_path / "adapter.safetensors", tmp_path / "out"
    trained(tiny.unet(), "lora", {"rank": 2}, path)
    assert cli.main(["export", str(tmp_path), "--out", str(out)]) == 0
    names = ["adapter_config.json", "adapter_model.safetensors", "pytorch_lora_weights.safetensors",
             "kohya_lora.safetensors"]  # fmt: skip
    assert capsys.readouterr().out.split() == [str(out / name) for name in names]
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["inference_mode"]) == ("LORA", 2, True)
    before = {file: file.read_bytes() for file in out.iterdir()}
    for taken in (path, out):
        assert cli.main(["export", str(path), "--out", str(taken)]) == 2
        assert f"--out: {taken} holds something already" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in out.iterdir()} == before


@pytest.mark.parametrize(
    ("family", "method", "settings", "problem"),
    [
        pytest.param("unet", "bitfit", {}, "the method 'bitfit'", id="another-method"),
        pytest.param("unet", "full", {}, "the method 'full'", id="full"),
        pytest.param(
            "dit", "lora", {}, r"embedding_table.*class_embedding: false", id="class-table"
        ),
    ],
)
def test_what_no_file_format_holds_is_refused(tmp_path, family, method, settings, problem):
    path = tmp_path / "adapter.safetensors"
    trained(BASES[family](), method, settings, path)
    with pytest.raises(UserError, match=rf"{problem}.*fitspace\.load_adapter"):
        export(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["", "absent", "text"])
def test_what_is_no_adapter_is_refused(tmp_path, place):
    (tmp_path / "text").write_text("no adapter")
    with pytest.raises(UserError, match="adapter"):
        export(tmp_path / place, tmp_path / "out")


@pytest.mark.parametrize("alpha", [2, 8])
def test_the_scale_is_in_the_exported_tensors(tmp_path, alpha):
    """Some programs read no configuration beside the tensors: alpha is the rank to them."""
    run = tmp_path / "run"
    trained(tiny.unet(), "lora", {"rank": 4, "alpha": alpha}, run / "adapter.safetensors")
    export(run, tmp_path / "out")
    said = json.loads((tmp_path / "out/adapter_config.json").read_text())
    ours = load_file(run / "adapter.safetensors")
    theirs = load_file(tmp_path / "out/adapter_model.safetensors")
    seconds = [name for name in ours if name.endswith(".lora_B.default.weight")]
    assert seconds and said["lora_alpha"] == 4
    for name in seconds:
        exported = f"base_model.model.{name.replace('.default.', '.')}"
        torch.testing.assert_close(theirs[exported], ours[name] * alpha / 4)
