"""Frozen linear layers in 8 and 4 bits: what is rounded, which layers, on every family."""

from __future__ import annotations

import copy
import subprocess
import sys

import pipelines
import pytest
import tiny
import torch
from torch import nn

from fitspace import bases, methods
from fitspace.bases import quantized
from fitspace.core.imports import import_bitsandbytes

pytest.importorskip("bitsandbytes")
from fitspace.bases.quantized_layers import Quantized, quantize, store

FORMS = ("int8", "nf4")
# 2305.14314, appendix E: the values of NormalFloat4.
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
]  # fmt: skip


def layer(rows=24, inputs=40, bias=True):
    torch.manual_seed(0)
    return nn.Linear(inputs, rows, bias=bias).requires_grad_(False)


def rounded(weight: torch.Tensor, form: str) -> torch.Tensor:
    """Written from the papers: of a row 255 steps, of 64 weights the nearest of 16 values."""
    if form == "int8":
        largest = weight.half().float().abs().amax(1, keepdim=True)
        return (weight.half().float() / largest * 127).round() * largest / 127
    flat = weight.flatten()
    blocks = nn.functional.pad(flat, (0, -len(flat) % 64)).reshape(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    values = torch.tensor(NF4)
    nearest = ((blocks / largest).unsqueeze(-1) - values).abs().argmin(-1)
    return (values[nearest] * largest).flatten()[: len(flat)].view_as(weight)


@pytest.mark.parametrize("form", FORMS)
def test_a_weight_is_rounded_as_the_papers_have_it_and_nothing_else_is(form):
    plain, x = layer(), torch.randn(3, 5, 40)
    own = copy.deepcopy(plain)
    store(own, form, "cpu")
    wanted = rounded(plain.weight, form)
    found = own.whole(torch.float32)
    # A value in the middle of two may go to either.
    assert (found - wanted).abs().gt(1e-5).float().mean() < 0.005
    assert (found - plain.weight).abs().max() < {"int8": 1e-3, "nf4": 0.03}[form]
    torch.testing.assert_close(own(x), nn.functional.linear(x, found, plain.bias))
    assert own.bias is not None and torch.equal(own.bias, plain.bias)


@pytest.mark.parametrize("form", FORMS)
def test_it_stores_what_bitsandbytes_own_layers_store(form):
    """Those that diffusers and transformers put in: BitsAndBytesConfig."""
    nn_ = import_bitsandbytes().nn
    plain = layer()
    own = copy.deepcopy(plain)
    store(own, form, "cpu")
    if form == "int8":
        theirs = nn_.Linear8bitLt(40, 24, has_fp16_weights=False)
    else:
        theirs = nn_.Linear4bit(40, 24, compute_dtype=torch.float32, quant_type="nf4",
                                compress_statistics=False)  # fmt: skip
    theirs.load_state_dict(plain.state_dict())
    theirs = theirs.to("cpu")
    assert torch.equal(own.packed, theirs.weight.data)
    scales = theirs.weight.SCB if form == "int8" else theirs.weight.quant_state.absmax
    assert torch.equal(own.scales, scales)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_the_rounded_weight_also_in_half_precision(form):
    own = layer()
    store(own, form, "cpu")
    own.bias.requires_grad_(True)
    x = torch.randn(3, 5, 40, requires_grad=True)
    other = x.detach().clone().requires_grad_(True)
    bias = own.bias.detach().clone().requires_grad_(True)
    own(x).square().sum().backward()
    nn.functional.linear(other, own.whole(torch.float32), bias).square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    torch.testing.assert_close(own.bias.grad, bias.grad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = own(x)
    assert half.dtype == torch.bfloat16 and own.bias.dtype == torch.float32
    torch.testing.assert_close(half.float(), own(x), rtol=0.02, atol=0.02)


def test_its_bytes_are_those_that_are_counted():
    shapes = [(24, 64), (64, 128), (7, 192)]
    for form in FORMS:
        layers = [layer(*shape) for shape in shapes]
        wanted = quantized.counted(layers).bytes(form)
        for own in layers:
            store(own, form, "cpu")
        kept = [t for own in layers for t in (own.packed, own.scales)]
        assert sum(t.numel() * t.element_size() for t in kept) == wanted


def test_the_layers_are_those_of_diffusers_but_for_what_trains():
    from diffusers import BitsAndBytesConfig
    from diffusers.quantizers.bitsandbytes.utils import replace_with_bnb_linear

    import_bitsandbytes()
    theirs = tiny.unet().to("meta")
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    replace_with_bnb_linear(theirs, modules_to_not_convert=[], quantization_config=settings)
    wanted = {n for n, m in theirs.named_modules() if type(m).__name__ == "Linear4bit"}
    model = tiny.unet().requires_grad_(False)
    trained = "time_embedding.linear_1"
    model.get_submodule(trained).weight.requires_grad_(True)
    (said,) = quantize(model, "nf4", "cpu")
    found = {n for n, m in model.named_modules() if isinstance(m, Quantized)}
    assert found == wanted - {trained} and said.startswith("frozen linear layers in nf4 by bits")


@pytest.mark.parametrize("name", pipelines.BUILT)
def test_every_family_is_trained_and_answers_in_few_bits(name, tmp_path):
    folder = pipelines.BUILT[name](tmp_path / name)
    told = bases.load_teller(folder)(["red apple", "a house"])
    model = bases.load_denoiser(folder)
    family = bases.family_of(model)
    noisy = torch.randn(2, *bases.latent_shape(folder), generator=torch.Generator().manual_seed(0))
    t = torch.tensor([300, 300]) if not family.flows else torch.tensor([300.0, 300.0])

    def ask(model):
        return family.predict(model, noisy, t, told)

    whole = ask(model).detach()
    attachment = methods.attach(model, "lora", {"target": "attention+ff"}, 0)
    quantize(model, "nf4", "cpu", attachment.frozen.values())
    found = ask(model)
    apart = (found - whole).norm() / whole.norm()
    assert 1e-4 < apart < 0.25
    restored = bases.load_denoiser(folder)
    for path, layer in model.named_modules():
        if isinstance(layer, Quantized):
            plain = restored.get_submodule(path.removesuffix(".base_layer"))
            plain.weight.copy_(layer.whole(torch.float32))
    torch.testing.assert_close(found, ask(restored), rtol=1e-4, atol=1e-5)
    found.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in attachment.trainable.values())


def test_nothing_is_looked_for_on_the_network():
    """bitsandbytes asks a package for a kernel as it is imported, which would fetch one."""
    asked = (
        "import sys, types, logging; logging.basicConfig(level=0)\n"
        "kernels = types.ModuleType('kernels')\n"
        "def get_kernel(*_, **__): raise SystemExit('asked the network')\n"
        "kernels.get_kernel = get_kernel; sys.modules['kernels'] = kernels\n"
        "from fitspace.core.imports import import_bitsandbytes\n"
        "import_bitsandbytes()\n"
        "assert sys.modules['kernels'] is kernels\n"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "kernels" not in done.stderr
