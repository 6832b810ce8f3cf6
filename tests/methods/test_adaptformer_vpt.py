"""AdaptFormer and VPT against their papers' formulas, written out once more."""

from __future__ import annotations

import copy
import math

import pytest
import tiny
import torch
import torch.nn.functional as F
from dit_block import rewritten

from fitspace import methods
from fitspace.core.errors import UserError
from fitspace.core.imports import import_torchvision
from fitspace.methods import vpt

import_torchvision()
from diffusers.models.attention import BasicTransformerBlock  # noqa: E402

FINAL = {"proj_out_1.weight", "proj_out_1.bias", "proj_out_2.weight", "proj_out_2.bias"}
TABLE = "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"


@pytest.fixture(scope="module")
def dit():
    return tiny.tiny_dit().double()


@pytest.fixture(scope="module")
def unet():
    return tiny.unet().double()


@pytest.fixture(scope="module")
def batch():
    """Latents, time steps, and the second and the empty class."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.double)
    return latents, torch.tensor([3, 700]), torch.tensor([1, 3])


def run(model, batch):
    with torch.no_grad():
        return model(*batch).sample


def attached(base, method, settings, seed=0):
    return methods.attach(copy.deepcopy(base), method, settings, seed)


def drawn(attachment):
    """The attachment in double precision, with values of order one and none at zero."""
    generator = torch.Generator().manual_seed(2)
    attachment.model.double()
    with torch.no_grad():
        for name, parameter in attachment.trainable.items():
            if name != TABLE:
                values = torch.randn(parameter.shape, generator=generator, dtype=torch.double)
                parameter.copy_(values)
    return attachment


# --- AdaptFormer -------------------------------------------------------------------------

READS = {"parallel": "FFN_in", "sequential": "FFN_out"}


def adaptmlp(parameters, path, scale):
    """``s·up(ReLU(down(x)))`` with the parameters of the block at ``path``."""
    p = {n.removeprefix(f"{path}.adaptformer."): v for n, v in parameters.items() if path in n}

    def delta(x):
        hidden = F.relu(F.linear(x, p["down.weight"], p["down.bias"]))
        return scale * F.linear(hidden, p["up.weight"], p["up.bias"])

    return delta


@pytest.mark.parametrize("form", READS)
def test_adaptformer_is_the_formula_on_a_dit(dit, batch, form):
    attachment = drawn(attached(dit, "adaptformer", {"form": form, "width": 5, "scale": 0.3}))
    trainable = attachment.trainable
    expected = rewritten(dit, lambda path: adaptmlp(trainable, path, 0.3), READS[form], "Trans_out")
    out = run(attachment.model, batch)
    torch.testing.assert_close(out, run(expected, batch), rtol=0, atol=1e-10)
    assert (out - run(dit, batch)).abs().max() > 1e-3


@pytest.mark.parametrize("form", READS)
def test_adaptformer_is_the_formula_on_a_unet(unet, batch, form):
    attachment = drawn(attached(unet, "adaptformer", {"form": form, "width": 5, "scale": 0.3}))
    expected = copy.deepcopy(unet)
    blocks = {n: m for n, m in expected.named_modules() if isinstance(m, BasicTransformerBlock)}
    assert len(blocks) == 4
    for path, block in blocks.items():

        def forward(h, _block=block, _path=path, encoder_hidden_states=None, **_):
            delta = adaptmlp(attachment.trainable, _path, 0.3)
            h = h + _block.attn1(_block.norm1(h))
            h = h + _block.attn2(_block.norm2(h), encoder_hidden_states=encoder_hidden_states)
            fed = _block.ff(_block.norm3(h))
            return h + fed + delta(h if form == "parallel" else fed)

        block.forward = forward
    text = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(3), dtype=torch.double)
    batch = (batch[0][..., :4, :4], batch[1], text)
    out = run(attachment.model, batch)
    torch.testing.assert_close(out, run(expected, batch), rtol=0, atol=1e-10)
    assert (out - run(unet, batch)).abs().max() > 1e-3


def test_adaptformer_starts_as_its_authors_do(dit):
    trainable = attached(dit, "adaptformer", {"width": 4000}).trainable
    for path in ("transformer_blocks.0", "transformer_blocks.1"):
        zeros = [
            trainable[f"{path}.adaptformer.{n}"] for n in ("down.bias", "up.weight", "up.bias")
        ]
        assert not any(parameter.any() for parameter in zeros)
        weight = trainable[f"{path}.adaptformer.down.weight"]
        torch.manual_seed(0)
        like = torch.nn.init.kaiming_uniform_(torch.empty(4000, 8), a=math.sqrt(5))
        assert weight.std().item() == pytest.approx(like.std().item(), rel=0.02)
        assert weight.abs().max().item() == pytest.approx(like.abs().max().item(), rel=0.01)


def test_adaptformer_drops_units_of_the_bottleneck_in_training_only(dit, batch):
    attachment = drawn(attached(dit, "adaptformer", {"dropout": 0.5, "width": 200}))
    layers = attachment.dropouts
    assert layers == [b.adaptformer.activation[1] for b in attachment.model.transformer_blocks]
    assert not any(layer.training for layer in layers)
    assert torch.equal(run(attachment.model, batch), run(attachment.model, batch))

    seen = []
    layers[0].register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    for layer in layers:
        layer.train()
    run(attachment.model, batch)
    ((units, left),) = seen
    assert units.shape == (2, 16, 200)
    assert (units >= 0).all()  # after the ReLU
    kept = left != 0
    torch.testing.assert_close(left[kept], 2 * units[kept])
    assert kept.sum() / (units != 0).sum() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"form": "both"}, "form: 'both'"),
        ({"width": 0}, "width: 0"),
        ({"dropout": 1.0}, "dropout: 1.0"),
        ({"scale": float("inf")}, "scale: inf"),
    ],
    ids=str,
)
def test_bad_adaptformers_are_named(given, problem):
    with pytest.raises(UserError, match=problem):
        methods.validated("adaptformer", given)


# --- VPT ---------------------------------------------------------------------------------


def test_vpt_is_attention_to_fresh_tokens_in_every_block(dit, batch):
    """Attention has no order: tokens put behind the patches do what prompts before them do."""
    attachment = drawn(attached(dit, "vpt", {"prompts": 3, "final_layer": False}))
    expected = copy.deepcopy(dit)
    for i, block in enumerate(expected.transformer_blocks):
        prompts = attachment.trainable[f"transformer_blocks.{i}.prompts"]
        assert prompts.shape == (3, 8)

        def forward(x, _forward=block.forward, _prompts=prompts, **condition):
            tokens = torch.cat([x, torch.stack([_prompts] * len(x))], dim=1)
            return _forward(tokens, **condition)[:, :16]

        block.forward = forward
    out = run(attachment.model, batch)
    torch.testing.assert_close(out, run(expected, batch), rtol=0, atol=1e-10)
    assert (out - run(dit, batch)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "beside"),
    [
        ({}, {*FINAL, TABLE}),
        ({"class_embedding": False}, FINAL),
        ({"final_layer": False}, {TABLE}),
        ({"final_layer": False, "class_embedding": False}, set()),
    ],
    ids=["all", "no-class-table", "no-final-layer", "prompts"],
)
def test_vpt_trains_prompts_and_what_was_asked_for(dit, settings, beside):
    prompts = {"transformer_blocks.0.prompts", "transformer_blocks.1.prompts"}
    assert set(attached(dit, "vpt", settings).trainable) == prompts | beside


def test_vpt_starts_as_its_authors_do(dit):
    settings = {"prompts": 4000, "final_layer": False, "class_embedding": False}
    first, again, other = (attached(dit, "vpt", settings, seed).trainable for seed in (0, 0, 1))
    bound = math.sqrt(6 / (3 * 2**2 + 8))  # patches of side 2, 8 channels a token
    for name, values in first.items():
        assert values.abs().max().item() == pytest.approx(bound, rel=1e-3)
        assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
        assert torch.equal(values, again[name])
        assert not torch.equal(values, other[name])
    assert not torch.equal(*first.values())


def test_vpt_gradient_checkpointing_gives_the_same_gradients(dit, batch):
    attachment = attached(dit, "vpt", {"prompts": 3})
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            attachment.model.enable_gradient_checkpointing()
        loss = attachment.model(*batch).sample.square().mean()
        gradients.append(torch.autograd.grad(loss, list(attachment.trainable.values())))
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_vpt_needs_a_dit(unet):
    assert vpt.problems(vpt.Settings(), "dit") == []
    with pytest.raises(UserError, match="one sequence.*on a DiT"):
        attached(unet, "vpt", {})


def test_no_prompts_are_refused():
    with pytest.raises(UserError, match="prompts: 0"):
        methods.validated("vpt", {"prompts": 0})
