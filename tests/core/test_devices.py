"""What a model is prepared with for its device: less memory, and on a CPU the same bits."""

from __future__ import annotations

import os

import embedded_base
import numpy as np
import pytest
import tiny
import torch
from embedded_base import LATENTS, SIDE
from torch import nn

from fitspace import methods, training
from fitspace.core import devices, rng
from fitspace.core.errors import UserError

# Hooks of every kind, peft's layers, and base parameters that are trained themselves.
ON_UNET = {
    "adapter on a branch": ("adapter", {"input": "CA_out", "output": "FFN_in", "width": 3}),
    "adapter across the block": ("adapter", {"input": "SA_in", "output": "Trans_out", "width": 3}),
    "adapter at one place": ("adapter", {"input": "CA_in", "output": "CA_in", "width": 3}),
    "adapter on the text": ("adapter", {"input": "CA_c", "output": "CA_c", "width": 3}),
    "adapter of convolutions": ("adapter", {"input": "Res_in", "output": "Res_out", "width": 4}),
    "difffit": ("difffit", {}),
    "bitfit": ("bitfit", {}),
    "full": ("full", {}),
    "lora with dropout": ("lora", {"rank": 2, "dropout": 0.3}),
    "dora": ("lora", {"rank": 2, "dora": True}),
}
ON_DIT = {
    "adapter past the gate": ("adapter", {"input": "SA_out", "output": "FFN_in", "width": 3}),
    "adaptformer": ("adaptformer", {}),
    "difffit": ("difffit", {}),
    "lora": ("lora", {"rank": 2}),
    "vpt": ("vpt", {}),
}
CASES = {f"unet, {n}": (tiny.unet, *c) for n, c in ON_UNET.items()} | {
    f"dit, {n}": (tiny.tiny_dit, *c) for n, c in ON_DIT.items()
}


def attached(build, method: str, settings: dict) -> methods.Attachment:
    """A method on a tiny model, away from its start, where much of a gradient is zero."""
    attachment = methods.attach(build(), method, settings, 0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in attachment.trainable.values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    for layer in attachment.dropouts:
        layer.train()
    return attachment


def gradients(attachment: methods.Attachment, precision: str) -> list[torch.Tensor]:
    """The output and every gradient, after one step's two passes."""
    model, generator = attachment.model, torch.Generator().manual_seed(3)
    side = model.config.sample_size
    x = torch.randn(3, 4, side, side, generator=generator)
    t = torch.randint(0, 1000, (3,), generator=generator)
    text = torch.randn(3, 5, 12, generator=generator)
    torch.manual_seed(5)  # the dropout masks
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        out = model(x, t, text if side == 4 else torch.tensor([0, 1, 3])).sample
    out.float().square().mean().backward()
    found = [p.grad for p in attachment.trainable.values() if p.grad is not None]
    return [out.detach(), *found]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_prepared_for_memory_a_model_gives_the_same_bits(case):
    """Frozen layers in bf16 and blocks computed twice: on a CPU no bit of a gradient changes."""
    plain = gradients(attached(*case), "bf16")
    attachment = attached(*case)
    done = devices.prepare(attachment.model, "bf16", gradient_checkpointing=True)
    prepared = gradients(attachment, "bf16")
    assert len(plain) == len(prepared) > 1
    assert all(torch.equal(a, b) for a, b in zip(plain, prepared, strict=True))
    whole = case[1] == "full"
    assert done == ["frozen layers in bf16"] * (not whole) + ["gradient checkpointing"]
    assert all(p.dtype == torch.float32 for p in attachment.trainable.values())


@pytest.mark.parametrize("build", [tiny.unet, tiny.tiny_dit], ids=["unet", "dit"])
def test_checkpointing_computes_the_blocks_again(build):
    from diffusers.models.attention import BasicTransformerBlock

    def passes(checkpointing: bool) -> int:
        attachment, seen = attached(build, "bitfit", {}), []
        blocks = [m for m in attachment.model.modules() if isinstance(m, BasicTransformerBlock)]
        for block in blocks:
            block.register_forward_pre_hook(lambda *_: seen.append(1))
        devices.prepare(attachment.model, "fp32", gradient_checkpointing=checkpointing)
        gradients(attachment, "fp32")
        return len(seen) // len(blocks)

    assert [passes(False), passes(True)] == [1, 2]


def test_only_frozen_layers_that_autocast_casts_are_in_bf16():
    model = attached(tiny.unet, "bitfit", {}).model
    devices.prepare(model, "bf16")
    for path, module in model.named_modules():
        halved = isinstance(module, nn.Linear | nn.Conv2d)
        for name, parameter in module.named_parameters(recurse=False):
            wanted = torch.bfloat16 if halved and name == "weight" else torch.float32
            assert parameter.dtype == wanted, f"{path}.{name}"


def test_what_dora_reads_stays_in_fp32():
    model = attached(tiny.unet, "lora", {"rank": 2, "dora": True}).model
    devices.prepare(model, "bf16")
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    read = {n: m.weight.dtype for n, m in layers.items() if n.endswith("base_layer")}
    assert set(read.values()) == {torch.float32} and len(read) > 3
    assert layers["time_embedding.linear_1"].weight.dtype == torch.bfloat16


def test_in_fp32_nothing_is_prepared():
    model = attached(tiny.unet, "bitfit", {}).model
    assert devices.prepare(model, "fp32") == []
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_a_run_with_frozen_layers_in_bf16_trains_and_resumes_to_the_same_bits(tmp_path):
    class Stop(Exception):
        pass

    def interrupt(step):
        if step == 5:
            raise Stop

    def fit(name, prepared=True, **options):
        own = {"input": "CA_out", "output": "FFN_in", "width": 3}
        attachment = methods.attach(tiny.unet(), "adapter", own, 0)
        if prepared:
            devices.prepare(attachment.model, "bf16", gradient_checkpointing=True)
        return training.fit(
            attachment.model, attachment.trainable, tiny.task(), tiny.process(), 0.5,
            tiny.SETTINGS | {"precision": "bf16"}, 0, tmp_path / name, **options,
        )  # fmt: skip

    plain = fit("a", prepared=False)
    with pytest.raises(Stop):
        fit("b", checkpoint_seconds=0.0, on_step=interrupt)
    resumed = fit("b")
    assert resumed.losses == plain.losses
    assert all(torch.equal(v, resumed.parameters[n]) for n, v in plain.parameters.items())


def test_compiling_is_for_gpus():
    with pytest.raises(UserError, match="--compile: 1: no GPU here.*allowed: 0"):
        devices.prepare(tiny.unet(), "fp32", compiled=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [CASES["unet, adapter on a branch"], CASES["dit, difffit"]], ids=["unet", "dit"]
)
def test_hooks_are_seen_by_the_compiler(case):
    """All of a model with its hooks is one graph; what the kernels make of it, only a GPU says."""
    plain = gradients(attached(*case), "fp32")
    attachment = attached(*case)
    attachment.model.compile(backend="eager", fullgraph=True)
    for a, b in zip(plain, gradients(attachment, "fp32"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_a_process_is_set_up_to_give_the_same_numbers_again(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    conv, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = torch.are_deterministic_algorithms_enabled(), conv.allow_tf32, matmul.allow_tf32
    try:
        conv.allow_tf32 = matmul.allow_tf32 = True
        devices.set_up()
        assert torch.are_deterministic_algorithms_enabled()
        # Without it cuBLAS refuses the first product of matrices.
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert not conv.allow_tf32 and not matmul.allow_tf32
    finally:
        torch.use_deterministic_algorithms(before[0])
        conv.allow_tf32, matmul.allow_tf32 = before[1:]


AT_ONCE = {
    "the embedded bases": (64, 32, 64),
    "64 px": (64, 64, 64),
    "256 px": (64, 256, 16),
    "512 px": (64, 512, 4),
    "sampling at 512 px": (32, 512, 4),
    "larger than all": (64, 4096, 1),
}


@pytest.mark.parametrize("most, side, expected", AT_ONCE.values(), ids=AT_ONCE)
def test_large_images_go_through_the_autoencoder_a_few_at_a_time(most, side, expected):
    assert devices.images_at_once(most, side) == expected


def test_images_encoded_and_decoded_in_parts_are_the_same_up_to_rounding(monkeypatch):

    from fitspace import bases
    from fitspace.data.encoding import encode_images
    from fitspace.training import sampling

    base = embedded_base.BASE
    images = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8)
    vae, model = bases.load_vae(base), bases.load_denoiser(base)
    text, noise = {"embeddings": torch.zeros(5, 16, 384)}, rng.initial_noise(0, 5, LATENTS)
    given = (bases.load_process(base), text, bases.picked(text, [0]), noise)

    def both() -> tuple:
        return *encode_images(base, images), sampling.generate(model, vae, *given, 2, 1.0)

    mean, std, drawn = both()
    seen = []
    monkeypatch.setattr(devices, "images_at_once", lambda most, side: seen.append(side) or 2)
    parts = both()
    assert seen == [SIDE, SIDE]
    # Not to the bit, which is why the embedded bases' images stay in one batch: see AT_ONCE.
    torch.testing.assert_close(parts[0], mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts[1], std, rtol=1e-4, atol=1e-5)
    assert np.abs(parts[2].astype(int) - drawn.astype(int)).max() <= 1
