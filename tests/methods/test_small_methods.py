"""Custom Diffusion and SVDiff: what they train, and SVDiff's formula written out again."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from torch import nn

from fitspace import methods
from fitspace.core.errors import UserError
from fitspace.plan.counting import count

INPUTS = (
    torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1)),
    torch.tensor([3, 700]),
    torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(2)),
)


def test_custom_diffusion_trains_how_the_text_is_read():
    unet = tiny.unet()
    found = methods.attach(unet, "custom_diffusion", {}, seed=0).trainable
    # 4 transformer blocks; keys and values of the text, which is 12 wide.
    assert len(found) == 4 * 2
    assert all(".attn2.to_k." in name or ".attn2.to_v." in name for name in found)
    assert all(parameter.shape[1] == 12 for parameter in found.values())


def test_custom_diffusions_share_of_stable_diffusion():
    # 16 blocks of keys and values, 768 to 320, 640 and 1280: 5, 5 and 6 of them.
    expected = 2 * 768 * (5 * 320 + 5 * 640 + 6 * 1280)
    found = count("sd15", "custom_diffusion", {})
    assert found["trainable"] == expected


def test_custom_diffusion_is_refused_without_cross_attention():
    with pytest.raises(UserError, match="a DiT has no cross-attention"):
        methods.attach(tiny.tiny_dit(), "custom_diffusion", {}, seed=0)


def shifted(model, scale=0.5):
    attachment = methods.attach(model, "svdiff", {}, seed=0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in attachment.trainable.values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return attachment


@pytest.mark.parametrize("build", [tiny.unet, tiny.tiny_dit], ids=["unet", "dit"])
def test_svdiffs_weights_are_the_papers_formula(build):
    base = build()
    attachment = shifted(copy.deepcopy(base))
    shifts = {n: p.detach().double() for n, p in attachment.trainable.items()}
    attachment.merge()
    below = 0
    for path, layer in base.named_modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        weight = layer.weight.detach().double()
        u, values, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        moved = values + shifts[f"{path}.shift"]
        below += int((moved < 0).sum())
        expected = (u @ torch.diag(moved.clamp(min=0)) @ v).view_as(weight)
        found = attachment.model.get_submodule(path)
        torch.testing.assert_close(found.weight.double(), expected, rtol=0, atol=1e-4)
        if layer.bias is not None:
            assert torch.equal(found.bias, layer.bias)
    assert below > 10  # the formula's relu is at work


def test_svdiffs_parameters_are_the_smaller_sides():
    base = tiny.unet()
    found = methods.attach(copy.deepcopy(base), "svdiff", {}, seed=0).trainable
    matrices = [m.weight for m in base.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert len(found) == len(matrices)
    assert sum(p.numel() for p in found.values()) == sum(
        min(w.shape[0], w[0].numel()) for w in matrices
    )
    linear = methods.attach(base, "svdiff", {"layers": "linear"}, seed=0).trainable
    assert len(linear) == sum(w.ndim == 2 for w in matrices)


def test_svdiff_starts_exactly_from_a_base_in_half_precision():
    base = tiny.unet().bfloat16()
    inputs = INPUTS[0].bfloat16(), INPUTS[1], INPUTS[2].bfloat16()
    model = copy.deepcopy(base)
    attachment = methods.attach(model, "svdiff", {}, seed=0)
    with torch.no_grad():
        assert torch.equal(model(*inputs).sample, base(*inputs).sample)
    assert {p.dtype for p in attachment.trainable.values()} == {torch.float32}
