"""Adapters in a DiT's blocks: each position against the block written out."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from dit_block import rewritten
from tiny import tiny_dit

from fitspace import methods
from fitspace.core.errors import UserError
from fitspace.methods import adapter

# The order of positions in a block decides: an output does not precede its input.
LEGAL = {
    "SA_in": ["SA_in", "FFN_in", "Trans_out"],
    "SA_out": ["FFN_in", "Trans_out"],
    "FFN_in": ["FFN_in", "Trans_out"],
    "FFN_out": ["Trans_out"],
    "Trans_out": ["Trans_out"],
}
CELLS = [(source, target) for source, targets in LEGAL.items() for target in targets]
every_cell = pytest.mark.parametrize("cell", CELLS, ids="-".join)
FUNCTIONS = {"relu": F.relu, "sigmoid": torch.sigmoid, "silu": F.silu, "identity": lambda x: x}


@pytest.fixture(scope="module")
def base():
    return tiny_dit()


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    return latents, torch.tensor([3, 700]), torch.tensor([1, 3])


def settings(cell, **other):
    return {"input": cell[0], "output": cell[1], "width": 3, **other}


def run(model, batch):
    with torch.no_grad():
        return model(*batch).sample


def bottleneck(parameters, path, activation, scale):
    """``s·(W2·act(W1·x + b1) + b2)`` with the parameters of the block at ``path``."""
    p = {n.removeprefix(f"{path}.adapter."): v for n, v in parameters.items() if path in n}

    def delta(x):
        hidden = FUNCTIONS[activation](x @ p["down.weight"].T + p["down.bias"])
        return scale * (hidden @ p["up.weight"].T + p["up.bias"])

    return delta


def test_legal_cells():
    assert adapter.legal_cells("dit") == CELLS


@pytest.mark.parametrize("target", adapter.Output.__args__)
@pytest.mark.parametrize("source", adapter.Input.__args__)
def test_every_pair_is_judged(source, target):
    problems = adapter.problems(adapter.Settings(input=source, output=target), "dit")
    absent = [p for p in (source, target) if p.startswith(("CA_", "Res_"))]
    if absent:
        assert len(problems) == len(absent)
        for position, problem in zip(absent, problems, strict=True):
            part = "ResNet block" if position.startswith("Res") else "cross-attention"
            assert f"{position!r}: a DiT has no {part}; allowed: SA_in, " in problem
    elif target in LEGAL[source]:
        assert problems == []
    else:
        allowed = ", ".join(LEGAL[source])
        assert problems == [
            f"output {target} precedes input {source} in the block; "
            f"allowed outputs of {source}: {allowed}"
        ]


def test_absent_positions_are_refused(base):
    with pytest.raises(UserError, match="input: 'CA_out': a DiT has no cross-attention"):
        methods.attach(copy.deepcopy(base), "adapter", settings(("CA_out", "FFN_in")), seed=0)


@every_cell
def test_positions_match_the_written_out_block(base, batch, cell):
    # In double precision: agreement far below 1e-6 leaves no room for a wrong position.
    index = CELLS.index(cell)
    activation, scale = list(FUNCTIONS)[index % 4], (1.0, -0.7)[index % 2]
    chosen = settings(cell, init="default", activation=activation, scale=scale)
    model = copy.deepcopy(base)
    trainable = methods.attach(model, "adapter", chosen, seed=index).trainable
    model.double()
    expected = rewritten(
        copy.deepcopy(base).double(),
        lambda path: bottleneck(trainable, path, activation, scale),
        *cell,
    )
    batch = (batch[0].double(), *batch[1:])
    out = model(*batch).sample
    wanted = expected(*batch).sample
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-10)
    assert (out - run(copy.deepcopy(base).double(), batch)).abs().max() > 1e-3

    # The class table's gradient goes through the gates, too.
    table = "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"
    own = [p for n, p in trainable.items() if n != table]
    there = [*own, expected.get_parameter(table).requires_grad_(True)]
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    here = torch.autograd.grad((out * weight).sum(), [*own, trainable[table]])
    for got, want in zip(here, torch.autograd.grad((wanted * weight).sum(), there), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@every_cell
def test_a_zero_adapter_leaves_the_bits(base, batch, cell, dtype):
    latents, times, classes = batch
    batch = (latents.to(dtype), times, classes)
    untouched, model = copy.deepcopy(base).to(dtype), copy.deepcopy(base).to(dtype)
    methods.attach(model, "adapter", settings(cell), seed=0)
    assert torch.equal(run(model, batch), run(untouched, batch))


@every_cell
def test_gradient_checkpointing_gives_the_same_gradients(base, batch, cell):
    model = copy.deepcopy(base)
    trainable = methods.attach(model, "adapter", settings(cell, init="default"), seed=0).trainable
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
        loss = model(*batch).sample.square().mean()
        gradients.append(torch.autograd.grad(loss, list(trainable.values())))
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)
