"""Strength and blocks: a trained method at a part of its change, and in a part of the denoiser."""

from __future__ import annotations

import pytest
import tiny
import torch

from fitspace import bases, methods
from fitspace.core.errors import UserError
from fitspace.methods import blocks as parts

UNET = {
    "adapter": {"input": "CA_out", "output": "FFN_in", "width": 3},
    "adapter, drawn": {"input": "SA_in", "output": "SA_in", "width": 2, "init": "default"},
    "adaptformer": {"width": 3},
    "bitfit": {},
    "custom_diffusion": {},
    "difffit": {},
    "difffit, mlp": {"gamma": "mlp", "width": 3},
    "full": {},
    "ia3": {},
    "loha": {"rank": 2},
    "lokr": {},
    "lora": {"rank": 2},
    "lora, fused": {"rank": 2, "fused": True},
    "oft": {"block_size": 4},
    "svdiff": {},
}
DIT = {
    "adapter": {"input": "FFN_in", "output": "Trans_out", "width": 3},
    "bitfit": {},
    "difffit": {},
    "full": {},
    "lora": {"rank": 2},
}
CASES = [("unet", name, own) for name, own in UNET.items()]
CASES += [("dit", name, own) for name, own in DIT.items()]
IDS = [f"{family}: {name}" for family, name, _ in CASES]
# Of these the change of each weight is linear in the strength: a sum, or a factor.
ADDED = ("bitfit", "full", "ia3", "loha", "lokr", "lora", "lora, fused")


def model_of(family):
    return tiny.unet() if family == "unet" else tiny.tiny_dit()


def asked(family):
    g = torch.Generator().manual_seed(0)
    if family == "unet":
        told = {"encoder_hidden_states": torch.randn(2, 5, 12, generator=g)}
        return torch.randn(2, 4, 4, 4, generator=g), told
    return torch.randn(2, 4, 8, 8, generator=g), {"class_labels": torch.tensor([0, 1])}


@torch.no_grad()
def answer(model, family):
    x, told = asked(family)
    return model(x, timestep=torch.tensor([3, 700]), **told).sample


@torch.no_grad()
def trained(family, name, own, path):
    """A method with all its parameters moved, saved; its answer."""
    model = model_of(family)
    attachment = methods.attach(model, name.partition(",")[0], own, seed=0)
    g = torch.Generator().manual_seed(1)
    for parameter in attachment.trainable.values():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=g))
    methods.save(attachment, path, {})
    return answer(model, family)


@pytest.mark.parametrize(("family", "name", "own"), CASES, ids=IDS)
def test_no_strength_is_the_base_and_all_of_it_the_method(family, name, own, tmp_path):
    path = tmp_path / "adapter.safetensors"
    whole = trained(family, name, own, path)
    base = answer(model_of(family), family)
    assert not torch.allclose(whole, base, atol=1e-3)
    found = {}
    for share in (0.0, 0.5, 1.0):
        model = model_of(family)
        methods.load(model, path, share)
        found[share] = answer(model, family)
    assert torch.allclose(found[0.0], base, atol=1e-6)
    assert torch.equal(found[1.0], whole)
    half = (found[0.5] - base).norm() / (whole - base).norm()
    assert 0.2 < half < 0.8


@pytest.mark.parametrize("name", ADDED)
def test_weights_change_in_proportion_to_the_strength(name, tmp_path):
    path = tmp_path / "adapter.safetensors"
    trained("unet", name, UNET[name], path)
    merged = {}
    for share in (0.0, 0.3, 1.0):
        model = model_of("unet")
        methods.load(model, path, share).merge()
        merged[share] = dict(model.named_parameters())
    for key, whole in merged[1.0].items():
        base = merged[0.0][key]
        assert torch.allclose(merged[0.3][key], base + 0.3 * (whole - base), atol=1e-6), key


@pytest.mark.parametrize(("family", "name", "own"), CASES, ids=IDS)
def test_blocks_leave_the_rest_of_the_model_as_the_base(family, name, own, tmp_path):
    path = tmp_path / "adapter.safetensors"
    trained(family, name, own, path)
    part = "up_blocks.1" if family == "unet" else "transformer_blocks.1-1"
    inside = part.removesuffix("-1") + "."
    _, saved = methods.read(path)
    model = model_of(family)
    before = dict(model.named_parameters())
    before = {key: value.detach().clone() for key, value in before.items()}
    attachment = methods.load(model, path, blocks=part)
    for key, value in attachment.trainable.items():
        if key.startswith(inside):
            assert torch.equal(value, saved[key]), key
        elif key in before:
            assert torch.equal(value, before[key]), key
    attachment.remove()
    assert torch.equal(answer(model, family), answer(model_of(family), family))


def test_all_blocks_together_are_the_whole_adapter(tmp_path):
    path = tmp_path / "adapter.safetensors"
    whole = trained("unet", "adapter", UNET["adapter"], path)
    model = tiny.unet()
    methods.load(model, path, blocks="down_blocks+mid_block+up_blocks")
    assert torch.equal(answer(model, "unet"), whole)


def test_a_table_of_classes_that_is_new_stays_as_trained(tmp_path):
    path = tmp_path / "adapter.safetensors"
    model = tiny.tiny_dit()
    bases.new_classes(model, 5, seed=3)
    attachment = methods.attach(model, "bitfit", {}, seed=0)
    methods.save(attachment, path, {})
    name, table = bases.class_table(model)
    other = tiny.tiny_dit()
    methods.load(other, path, 0.0)
    assert torch.equal(bases.class_table(other)[1], table), name


REFUSED = {
    "nothing is trained": ("none", {}, "adds nothing"),
    "prompts": ("vpt", {}, "whatever its parameters"),
    "lengths": ("lora", {"dora": True}, "not linear"),
}


@pytest.mark.parametrize(("method", "own", "said"), REFUSED.values(), ids=REFUSED)
def test_methods_without_a_strength_are_refused(method, own, said, tmp_path):
    (problem,) = methods.problems_of_strength(method, own)
    assert said in problem
    model = tiny.tiny_dit()
    methods.save(methods.attach(model, method, own, 0), tmp_path / "a.safetensors", {})
    with pytest.raises(UserError, match=said):
        methods.load(tiny.tiny_dit(), tmp_path / "a.safetensors", 0.5)


BLOCKS = {
    "a part": ("mid_block", []),
    "several": ("mid_block+down_blocks.0", []),
    "a range": ("down_blocks.0-1", []),
    "unknown": ("midblock", ["no part 'midblock'"]),
    "one of two": ("mid_block+up", ["no part 'up'"]),
    "beyond the end": ("down_blocks.0-2", ["no part 'down_blocks.2'"]),
    "backwards": ("down_blocks.1-0", ["the smaller first"]),
}


@pytest.mark.parametrize(("blocks", "said"), BLOCKS.values(), ids=BLOCKS)
def test_blocks_are_parts_of_the_model(blocks, said):
    found = methods.unknown_blocks(blocks, [name for name, _ in tiny.unet().named_modules()])
    assert len(found) == len(said)
    assert all(part in problem for part, problem in zip(said, found, strict=True))


def test_every_method_says_where_it_rests_or_is_refused():
    for name in methods.METHODS:
        assert hasattr(methods.get(name), "AT_REST") or methods.problems_of_strength(name, {}), name
    assert parts.prefixes("a.1-3+b") == ["a.1", "a.2", "a.3", "b"]
