"""DiffFit: its scale factors and affine parts against the paper's formulas, and where they are."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import tiny
import torch
import torch.nn.functional as F

from fitspace import bases, methods
from fitspace.core.errors import UserError
from fitspace.methods import difffit


def randomised(attachment):
    """The trainables with random values around their own."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in attachment.trainable.values():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return attachment


def attend(attention, x, context, by):
    """Multi-head attention whose q, k, v and projection are scaled: (b, n, d) -> the same."""
    q, k, v = (
        by(f".to_{name}.gamma") * attention.get_submodule(f"to_{name}")(tokens)
        for name, tokens in (("q", x), ("k", context), ("v", context))
    )
    q, k, v = (t.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for t in (q, k, v))
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    attended = (scores @ v).transpose(1, 2).flatten(2)
    out = by(".gamma") * by(".to_out.0.gamma") * attention.to_out[0](attended)
    return out + small(out, lambda name: by(f".mlp.{name}", None))


def small(f, of):
    """``W2·GELU(W1·f + b1) + b2``; nothing where a branch has no MLP."""
    if of("down.weight") is None:
        return 0
    hidden = f @ of("down.weight").T + of("down.bias")
    hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
    return hidden @ of("up.weight").T + of("up.bias")


def fed(block, n, by):
    """What the feed-forward branch gives, scaled or with what its MLP adds."""
    f = by("ff.gamma") * block.ff(n)
    return f + small(f, lambda name: by(f"ff.mlp.{name}", None))


def dit_forward(block, by, h, timestep, class_labels, **_):
    """``x + γ1·gate·attn(...)``, then ``x + γ2·gate·mlp(...)`` (2304.06648, section 3)."""
    condition = block.norm1.emb(timestep, class_labels, hidden_dtype=h.dtype)
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (
        block.norm1.linear(F.silu(condition))[:, None].chunk(6, dim=-1)
    )  # fmt: skip
    n = by("norm1.norm.gamma") * F.layer_norm(h, h.shape[-1:], eps=1e-6) + by("norm1.norm.beta", 0)
    n = n * (1 + scale_1) + shift_1
    h = h + gate_1 * attend(block.attn1, n, n, lambda *a: by(f"attn1{a[0]}", *a[1:]))
    n = by("norm3.gamma") * F.layer_norm(h, h.shape[-1:], eps=1e-5) + by("norm3.beta", 0)
    return h + gate_2 * fed(block, n * (1 + scale_2) + shift_2, by)


def unet_forward(block, by, h, encoder_hidden_states, **_):
    """The same for a block with cross-attention, without gates; its norms are its own."""
    n = block.norm1(h)
    h = h + attend(block.attn1, n, n, lambda *a: by(f"attn1{a[0]}", *a[1:]))
    n = block.norm2(h)
    h = h + attend(block.attn2, n, encoder_hidden_states, lambda *a: by(f"attn2{a[0]}", *a[1:]))
    return h + fed(block, block.norm3(h), by)


def rewritten(attachment, base):
    """The base with the trained values in it, its blocks replaced by the functions above."""
    model = copy.deepcopy(base)
    new = dict(attachment.trainable)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in new:
                parameter.copy_(new.pop(name))
    for path, block in model.named_modules():
        if type(block).__name__ != "BasicTransformerBlock":
            continue
        own = {
            n.removeprefix(f"{path}."): new.pop(n).double()
            for n in list(new)
            if n.startswith(path + ".")
        }

        def by(name, default=1, _own=own):
            return _own.get(name, default)

        forward = dit_forward if hasattr(block.norm1, "emb") else unet_forward
        block.forward = partial(forward, block, by)
    assert not new
    return model


@pytest.mark.parametrize("family", ["unet", "dit"])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"gamma": "branch", "share": 1.0},
        {"blocks": "last"},
        {"norms": False},
        {"gamma": "mlp", "width": 3, "share": 1.0},
    ],
    ids=str,
)
def test_blocks_are_the_papers(family, given):
    # In double precision: agreement far below 1e-6 leaves no room for a wrong place.
    base = (tiny.unet() if family == "unet" else tiny.tiny_dit()).double()
    attachment = randomised(methods.attach(copy.deepcopy(base), "difffit", given, seed=0))
    attachment.model.double()  # MLPs compute in the precision of their weights
    generator = torch.Generator().manual_seed(1)
    side = base.config.sample_size
    latents = torch.randn(2, 4, side, side, generator=generator, dtype=torch.float64)
    text = torch.randn(2, 5, 12, generator=generator, dtype=torch.float64)
    inputs = latents, torch.tensor([3, 700]), text if family == "unet" else torch.tensor([1, 3])
    with torch.no_grad():
        out = attachment.model(*inputs).sample
        expected = rewritten(attachment, base)(*inputs).sample
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
        assert (out - base(*inputs).sample).abs().max() > 1e-3


def blocks_with_factors(model, **given):
    trainable = methods.attach(model, "difffit", given, seed=0).trainable
    return {name.removesuffix(".ff.gamma") for name in trainable if name.endswith(".ff.gamma")}


def test_half_of_the_blocks_is_the_papers_fourteen():
    model = bases.from_config("dit-xl")
    assert blocks_with_factors(model) == {f"transformer_blocks.{i}" for i in range(14)}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"share": 0.5}, ["down"] * 6 + ["mid", "up"]),
        ({"share": 0.5, "blocks": "last"}, ["up"] * 8),
        ({"share": 7 / 16}, ["down"] * 6 + ["mid"]),
        ({"share": 1.0}, ["down"] * 6 + ["mid"] + ["up"] * 9),
        ({"share": 1.0, "blocks": "last"}, ["down"] * 6 + ["mid"] + ["up"] * 9),
        ({"share": 0.1}, ["down"] * 2),
        ({"share": 0.03125}, ["down"]),
    ],
    ids=str,
)
def test_a_unets_blocks_count_from_its_input(given, expected):
    """Stable Diffusion's 16: 6 on the way down, 1 in the middle, 9 on the way up."""
    found = blocks_with_factors(bases.from_config("sd15"), **given)
    assert sorted(name.partition("_")[0] for name in found) == expected


def test_less_than_half_a_block_is_refused():
    with pytest.raises(UserError, match=r"share: 0\.2 of the model's 2 .*allowed: 0\.25 to 1"):
        methods.attach(tiny.tiny_dit(), "difffit", {"share": 0.2}, seed=0)


@pytest.mark.parametrize("family", ["unet", "dit"])
def test_nothing_to_train_is_refused(family):
    settings = difffit.Settings(gamma="none", norms=False, biases=False)
    (problem,) = methods.problems("difffit", settings, family)
    assert "nothing to train" in problem


def test_norms_and_biases_are_chosen_by_their_role():
    """Substrings would also find the modulation ``norm1.linear`` and its embedder."""
    given = {"gamma": "none", "biases": False, "class_embedding": False}
    dit = methods.attach(tiny.tiny_dit(), "difffit", given, seed=0).trainable
    assert list(dit) == [
        f"transformer_blocks.{i}.{norm}.{name}"
        for i in range(2)
        for norm in ("norm1.norm", "norm3")
        for name in ("beta", "gamma")
    ]
    model = tiny.unet()
    given = {"gamma": "none", "biases": False}
    unet = methods.attach(model, "difffit", given, seed=0).trainable
    kinds = {type(model.get_submodule(name.rpartition(".")[0])) for name in unet}
    assert kinds == {torch.nn.LayerNorm, torch.nn.GroupNorm}
    assert {"conv_norm_out.weight", "conv_norm_out.bias"} <= set(unet)


def test_factors_stay_in_single_precision_on_a_half_precision_base():
    model = tiny.tiny_dit().bfloat16()
    trainable = methods.attach(model, "difffit", {}, seed=0).trainable
    new = {n: p for n, p in trainable.items() if n.endswith((".gamma", ".beta"))}
    assert {p.dtype for p in new.values()} == {torch.float32}
    latents = torch.randn(1, 4, 8, 8, dtype=torch.bfloat16)
    model(latents, torch.tensor([3]), torch.tensor([1])).sample.float().square().mean().backward()
    assert {p.grad.dtype for p in new.values()} == {torch.float32}


@pytest.mark.parametrize("family", ["unet", "dit"])
def test_the_mlps_are_counted_by_their_form(family):
    """Of each branch 2·d·w + w + d; a width without MLPs is no part of the settings that count."""
    model = tiny.unet() if family == "unet" else tiny.tiny_dit()
    given = {"gamma": "mlp", "width": 5, "share": 1.0, "norms": False, "biases": False}
    given |= {} if family == "unet" else {"class_embedding": False}
    found = methods.attach(model, "difffit", given, seed=0).trainable
    widths = [p.shape[0] for n, p in found.items() if n.endswith("up.bias")]
    blocks = [m for m in model.modules() if type(m).__name__ == "BasicTransformerBlock"]
    assert len(widths) == len(blocks) * (3 if family == "unet" else 2)
    assert sum(p.numel() for p in found.values()) == sum(2 * d * 5 + 5 + d for d in widths)
    scaled = difffit.Settings(gamma="branch", width=5).resolved(family)
    assert scaled == difffit.Settings(gamma="branch").resolved(family)
    assert difffit.Settings(gamma="mlp").resolved(family)["width"] == 8
