"""Methods on a base whose frozen linear layers are stored in few bits: which work, which cannot."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from peft_cases import CASES

from fitspace import bases, methods
from fitspace.core.errors import UserError
from fitspace.methods import tuners

pytest.importorskip("bitsandbytes")
from fitspace.bases.quantized_layers import Quantized, quantize

BASES = {"unet": tiny.unet, "dit": tiny.tiny_dit}
NOISY = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
TIMES = torch.tensor([3, 700])
TOLD = {
    "unet": {"embeddings": torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(2))},
    "dit": {"labels": torch.tensor([0, 2])},
}
OWN = {
    "adapter": ("unet", "adapter", {"input": "CA_out", "output": "FFN_in", "width": 3}),
    "AdaptFormer": ("unet", "adaptformer", {"dropout": 0.0}),
    "BitFit": ("unet", "bitfit", {}),
    "Custom Diffusion": ("unet", "custom_diffusion", {}),
    "DiffFit": ("unet", "difffit", {}),
    "DiffFit with MLPs": ("unet", "difffit", {"gamma": "mlp"}),
    "DiffFit on a DiT": ("dit", "difffit", {}),
    "full fine-tuning of a part": ("unet", "full", {"blocks": "mid_block"}),
    "LoRA": ("unet", "lora", {}),
    "LoRA of fused layers": ("unet", "lora", {"fused": True}),
    "PiSSA": ("unet", "lora", {"rank": 2, "init": "pissa"}),
    "OLoRA": ("unet", "lora", {"rank": 2, "init": "olora"}),
    "T-LoRA": ("unet", "lora", {"min_rank": 2}),
    "LoHa": ("unet", "loha", {}),
    "LoKr": ("unet", "lokr", {}),
    "IA3": ("unet", "ia3", {}),
    "OFT": ("unet", "oft", {"block_size": 4}),
    "VPT": ("dit", "vpt", {}),
}
WORK = {
    **OWN,
    **{
        f"peft {case.peft_type}": ("unet", "peft", {"peft_type": case.peft_type, **case.settings})
        for case in CASES
        if not tuners.TUNERS[case.peft_type].reads
    },
}
# Whoever reads a weight finds none.
READ = {
    "DoRA": ("lora", {"dora": True}),
    "DoRA of peft": ("peft", {"peft_type": "LORA", "use_dora": True}),
    "MISS by blocks": ("peft", {"peft_type": "MISS", "r": 4, "init_weights": "bat"}),
    **{
        f"peft {case.peft_type}": ("peft", {"peft_type": case.peft_type, **case.settings})
        for case in CASES
        if tuners.TUNERS[case.peft_type].reads
    },
}
CANNOT = {
    "full fine-tuning": ("full", {}, None, "trains every weight"),
    "SVDiff": ("svdiff", {}, None, "singular vectors"),
    "full fine-tuning told by an image": ("full", {}, "concat", "trains every weight"),
}


@pytest.fixture(scope="module")
def whole():
    return {name: make() for name, make in BASES.items()}


def answer(model, base):
    return bases.family_of(model).predict(model, NOISY, TIMES, TOLD[base])


@pytest.mark.parametrize("base, method, settings", WORK.values(), ids=WORK)
def test_it_starts_from_the_rounded_base_and_trains_in_single_precision(
    base, method, settings, whole
):
    assert methods.needs_whole(method, settings) is None
    model = copy.deepcopy(whole[base])
    attachment = methods.attach(model, method, settings, seed=0)
    before = {name: p.detach().clone() for name, p in attachment.trainable.items()}
    quantize(model, "int8", "cpu", attachment.frozen.values())
    stored = [name for name, layer in model.named_modules() if isinstance(layer, Quantized)]
    # The same layers rounded, with and without the method.
    same, plain = (copy.deepcopy(whole[base]).requires_grad_(False) for _ in range(2))
    other = methods.attach(same, method, settings, seed=0)
    for name in stored:
        value = model.get_submodule(name).whole(torch.float32)
        same.get_submodule(name).weight.copy_(value)
        plain.get_submodule(name.replace(".base_layer", "")).weight.copy_(value)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer(model, base)
    torch.manual_seed(0)
    found = answer(model, base)
    torch.manual_seed(0)
    wanted = answer(same, base)
    assert stored
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    if attachment.identity_at_start:
        torch.testing.assert_close(found, answer(plain, base), rtol=0, atol=1e-4)
    found.square().mean().backward()
    wanted.square().mean().backward()
    for name, parameter in attachment.trainable.items():
        assert parameter.dtype == torch.float32 and torch.equal(parameter, before[name])
        theirs = other.trainable[name].grad
        torch.testing.assert_close(parameter.grad, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method, settings", READ.values(), ids=READ)
def test_it_is_refused_because_it_reads_what_is_not_there(method, settings, whole):
    assert tuners.READS in methods.needs_whole(method, settings)
    model = copy.deepcopy(whole["unet"])
    attachment = methods.attach(model, method, settings, seed=0)
    quantize(model, "nf4", "cpu", attachment.frozen.values())
    with pytest.raises((AttributeError, TypeError)):
        answer(model, "unet").square().mean().item()


@pytest.mark.parametrize("method, settings, control, why", CANNOT.values(), ids=CANNOT)
def test_it_is_refused_with_a_reason(method, settings, control, why):
    assert why in methods.needs_whole(method, settings, control)


def test_all_of_a_copy_of_the_encoder_can_be_trained():
    assert methods.needs_whole("full", {}, "controlnet") is None


def test_a_change_is_not_merged_into_rounded_weights(whole):
    model = copy.deepcopy(whole["unet"])
    attachment = methods.attach(model, "lora", {}, seed=0)
    quantize(model, "nf4", "cpu")
    with pytest.raises(UserError, match="cannot be merged into weights of few bits"):
        attachment.merge()
    attachment.remove()
    assert not any("lora" in name for name, _ in model.named_modules())
