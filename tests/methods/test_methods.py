"""Methods: adapters reach exactly their positions, and exactly the trainables are trained."""

from __future__ import annotations

import copy
import hashlib
import subprocess
import sys
from typing import Any, NamedTuple

import pipelines
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny import tiny_dit

from fitspace import bases, methods
from fitspace.core.errors import UserError
from fitspace.core.imports import import_torchvision
from fitspace.methods import adapter

import_torchvision()
from diffusers import (  # noqa: E402
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention import BasicTransformerBlock  # noqa: E402
from diffusers.models.resnet import ResnetBlock2D  # noqa: E402


class Case(NamedTuple):
    """A method in one form on one family of denoisers, and what it promises."""

    family: str
    method: str
    settings: dict[str, Any] = {}
    identity: bool = True  # before any training the model computes what the base does
    merges: bool = True  # what it learnt can be folded into the base's weights


# Every method in its forms, by family: a method gets its rows here, and its tests with them.
CASES = [
    Case("unet", "adapter", {"input": "CA_out", "output": "FFN_in", "width": 3}, merges=False),
    Case(
        "unet", "adapter",
        {"input": "Res_in", "output": "Res_out", "width": 2, "init": "default", "scale": 0.5},
        identity=False, merges=False,
    ),
    Case("unet", "bitfit"),
    Case("unet", "difffit"),
    Case("unet", "difffit", {"gamma": "branch", "blocks": "last", "share": 0.2}),
    Case("unet", "difffit", {"gamma": "none", "norms": True, "biases": False}),
    Case("unet", "difffit", {"gamma": "mlp", "width": 3}, merges=False),
    Case("unet", "adapter", {"input": "SA_in", "output": "CA_in", "width": None}, merges=False),
    Case("unet", "adaptformer", {"width": 3}, merges=False),
    Case("unet", "adaptformer", {"form": "sequential", "width": 3}, merges=False),
    Case("unet", "lora"),
    Case("unet", "lora", {"rank": 2, "alpha": 3, "rslora": True, "target": "attention+ff"}),
    Case("unet", "lora", {"rank": 2, "dora": True, "fused": True}),
    Case("unet", "loha", {"rank": 2}),
    Case("unet", "lokr"),
    Case("unet", "lokr", {"rank": 1, "factor": 2, "target": "attention"}),
    Case("unet", "ia3"),
    Case("unet", "oft", {"block_size": 4}),
    Case("unet", "lora", {"rank": 2, "init": "pissa", "alpha": 3}),
    Case("unet", "lora", {"rank": 2, "init": "olora", "rslora": True}),
    Case("unet", "lora", {"rank": 2, "init": "orthogonal", "lr_ratio": 4.0}),
    Case("unet", "lora", {"rank": 2, "init": "gaussian"}),
    Case("unet", "lora", {"rank": 4, "min_rank": 2, "init": "olora"}, merges=False),
    Case("unet", "peft", {"peft_type": "VERA", "r": 4}),
    Case("unet", "custom_diffusion"),
    Case("unet", "svdiff"),
    Case("unet", "full"),
    Case("unet", "none"),
    Case("dit", "bitfit"),
    Case("dit", "bitfit", {"class_embedding": False}),
    Case("dit", "difffit"),
    Case("dit", "difffit", {"gamma": "branch", "share": 1.0, "norms": False}),
    Case("dit", "difffit", {"gamma": "all", "blocks": "last", "norms": False, "biases": False}),
    Case("dit", "difffit", {"gamma": "none", "biases": False, "class_embedding": False}),
    Case("dit", "difffit", {"gamma": "mlp", "norms": False, "blocks": "last"}, merges=False),
    Case("dit", "adapter", {"input": "SA_out", "output": "FFN_in", "width": 3}, merges=False),
    Case(
        "dit", "adapter",
        {"input": "FFN_out", "output": "Trans_out", "width": 2, "init": "default", "scale": 0.5},
        identity=False, merges=False,
    ),
    Case("dit", "adaptformer", {"width": 3}, merges=False),
    Case("dit", "adaptformer", {"form": "sequential", "width": 3}, merges=False),
    Case("dit", "lora"),
    Case("dit", "lora", {"rank": 2, "dora": True, "target": "attention"}),
    Case("dit", "lora", {"fused": True, "class_embedding": False}),
    Case("dit", "loha", {"rank": 2}),
    Case("dit", "lokr", {"rank": 1}),
    Case("dit", "ia3"),
    Case("dit", "oft", {"block_size": 4}),
    Case("dit", "lora", {"rank": 2, "init": "pissa"}),
    Case("dit", "lora", {"rank": 3, "min_rank": 1, "target": "attention+ff"}, merges=False),
    Case("dit", "peft", {"peft_type": "SHIRA", "r": 2, "target": "attention+ff"}),
    Case("dit", "svdiff", {"layers": "linear"}),
    Case("dit", "full"),
    Case("dit", "none"),
    Case("pixart", "adapter", {"input": "SA_out", "output": "CA_in", "width": 3}, merges=False),
    Case("pixart", "adaptformer", {"form": "sequential", "width": 3}, merges=False),
    Case("pixart", "bitfit"),
    Case("pixart", "custom_diffusion"),
    Case("pixart", "difffit"),
    Case("pixart", "lora", {"rank": 2, "target": "attention+ff", "fused": True}),
    Case("pixart", "loha", {"rank": 2}),
    Case("pixart", "lokr", {"rank": 1}),
    Case("pixart", "ia3"),
    Case("pixart", "oft", {"block_size": 4}),
    Case("pixart", "peft", {"peft_type": "VERA", "r": 4}),
    Case("pixart", "svdiff"),
    Case("pixart", "full"),
    Case("pixart", "none"),
    Case("sd3", "adapter", {"input": "SA_out", "output": "FFN_in", "width": 3}, merges=False),
    Case("sd3", "adapter", {"input": "CA_c", "output": "CA_c", "width": 3}, merges=False),
    Case("sd3", "adaptformer", {"width": 3}, merges=False),
    Case("sd3", "bitfit"),
    Case("sd3", "custom_diffusion"),
    Case("sd3", "difffit", {"share": 1.0}),
    Case("sd3", "difffit", {"gamma": "mlp", "width": 2}, merges=False),
    Case("sd3", "lora", {"rank": 2, "target": "attention+ff"}),
    Case("sd3", "lora", {"rank": 2, "fused": True}),
    Case("sd3", "lora", {"rank": 4, "min_rank": 2, "init": "olora"}, merges=False),
    Case("sd3", "loha", {"rank": 2}),
    Case("sd3", "lokr", {"rank": 1}),
    Case("sd3", "ia3"),
    Case("sd3", "oft", {"block_size": 4}),
    Case("sd3", "peft", {"peft_type": "VERA", "r": 4}),
    Case("sd3", "svdiff"),
    Case("sd3", "full"),
    Case("sd3", "none"),
    Case("flux", "adapter", {"input": "SA_in", "output": "Trans_out", "width": 3}, merges=False),
    Case("flux", "adaptformer", {"width": 3}, merges=False),
    Case("flux", "bitfit"),
    Case("flux", "custom_diffusion"),
    Case("flux", "difffit", {"share": 1.0}),
    Case("flux", "lora", {"rank": 2, "target": "attention+ff"}),
    Case("flux", "lora", {"rank": 2, "fused": True}),
    Case("flux", "loha", {"rank": 2}),
    Case("flux", "lokr", {"rank": 1}),
    Case("flux", "ia3"),
    Case("flux", "oft", {"block_size": 4}),
    Case("flux", "peft", {"peft_type": "VERA", "r": 4}),
    Case("flux", "svdiff"),
    Case("flux", "full"),
    Case("flux", "none"),
    Case("sana", "adapter", {"input": "FFN_out", "output": "Trans_out", "width": 3}, merges=False),
    Case("sana", "adaptformer", {"form": "sequential", "width": 3}, merges=False),
    Case("sana", "bitfit"),
    Case("sana", "custom_diffusion"),
    Case("sana", "difffit", {"share": 1.0}),
    Case("sana", "lora", {"rank": 2, "target": "attention+ff"}),
    Case("sana", "lora", {"rank": 2, "fused": True}),
    Case("sana", "loha", {"rank": 2, "target": "attention+ff"}),
    Case("sana", "lokr", {"rank": 1}),
    Case("sana", "ia3"),
    Case("sana", "oft", {"block_size": 4}),
    Case("sana", "peft", {"peft_type": "VERA", "r": 4}),
    Case("sana", "svdiff"),
    Case("sana", "full"),
    Case("sana", "none"),
    Case("flux2", "adapter", {"input": "FFN_in", "output": "FFN_in", "width": 3}, merges=False),
    Case("flux2", "adaptformer", {"width": 3}, merges=False),
    Case("flux2", "custom_diffusion"),
    Case("flux2", "difffit", {"share": 1.0}),
    Case("flux2", "lora", {"rank": 2, "target": "attention+ff"}),
    Case("flux2", "lora", {"rank": 2, "fused": True}),
    Case("flux2", "loha", {"rank": 2}),
    Case("flux2", "lokr", {"rank": 1}),
    Case("flux2", "ia3"),
    Case("flux2", "oft", {"block_size": 4}),
    Case("flux2", "peft", {"peft_type": "VERA", "r": 4}),
    Case("flux2", "svdiff"),
    Case("flux2", "full"),
    Case("flux2", "none"),
    Case("lumina2", "adapter", {"input": "FFN_in", "output": "FFN_in", "width": 3}, merges=False),
    Case("lumina2", "adaptformer", {"width": 3}, merges=False),
    Case("lumina2", "bitfit"),
    Case("lumina2", "difffit", {"share": 1.0}),
    Case("lumina2", "lora", {"rank": 2, "target": "attention+ff"}),
    Case("lumina2", "lora", {"rank": 2, "fused": True}),
    Case("lumina2", "loha", {"rank": 2}),
    Case("lumina2", "lokr", {"rank": 1}),
    Case("lumina2", "ia3"),
    Case("lumina2", "oft", {"block_size": 4}),
    Case("lumina2", "peft", {"peft_type": "VERA", "r": 4}),
    Case("lumina2", "svdiff"),
    Case("lumina2", "full"),
    Case("lumina2", "none"),
    Case("zimage", "adapter", {"input": "SA_out", "output": "FFN_in", "width": 3}, merges=False),
    Case("zimage", "adaptformer", {"width": 3}, merges=False),
    Case("zimage", "bitfit"),
    Case("zimage", "difffit", {"share": 1.0}),
    Case("zimage", "lora", {"rank": 2, "target": "attention+ff"}),
    Case("zimage", "lora", {"rank": 2, "fused": True}),
    Case("zimage", "loha", {"rank": 2}),
    Case("zimage", "lokr", {"rank": 1}),
    Case("zimage", "ia3"),
    Case("zimage", "oft", {"block_size": 4}),
    Case("zimage", "peft", {"peft_type": "VERA", "r": 4}),
    Case("zimage", "svdiff"),
    Case("zimage", "full"),
    Case("zimage", "none"),
    Case("qwenimage", "adapter", {"input": "SA_out", "output": "FFN_in", "width": 3}, merges=False),
    Case("qwenimage", "adaptformer", {"width": 3}, merges=False),
    Case("qwenimage", "bitfit"),
    Case("qwenimage", "custom_diffusion"),
    Case("qwenimage", "difffit", {"share": 1.0}),
    Case("qwenimage", "lora", {"rank": 2, "target": "attention+ff"}),
    Case("qwenimage", "lora", {"rank": 2, "fused": True}),
    Case("qwenimage", "loha", {"rank": 2}),
    Case("qwenimage", "lokr", {"rank": 1}),
    Case("qwenimage", "ia3"),
    Case("qwenimage", "oft", {"block_size": 4}),
    Case("qwenimage", "peft", {"peft_type": "VERA", "r": 4}),
    Case("qwenimage", "svdiff"),
    Case("qwenimage", "full"),
    Case("qwenimage", "none"),
    Case("dit", "vpt", {"prompts": 3}, identity=False, merges=False),
    Case(
        "dit", "vpt", {"final_layer": False, "class_embedding": False},
        identity=False, merges=False,
    ),
]  # fmt: skip
# Method and family that do not go together.
REFUSED = [
    ("vpt", "unet"), ("vpt", "sdxl"), ("vpt", "pixart"), ("vpt", "sd3"),
    ("vpt", "flux"), ("vpt", "sana"), ("vpt", "flux2"), ("vpt", "lumina2"), ("vpt", "qwenimage"),
    ("vpt", "zimage"), ("custom_diffusion", "zimage"),
    ("bitfit", "flux2"),
    ("custom_diffusion", "dit"), ("custom_diffusion", "lumina2"),
]  # fmt: skip
# Of families whose layers others have too, the methods that look at them as blocks.
ALWAYS = dict.fromkeys(
    ("flux", "sana", "flux2", "lumina2", "qwenimage", "zimage"), ("adapter", "difffit", "ia3")
)


def every(cases):
    """The cases as parameters. Slow tests are a method's further forms on a family, and on families
    whose layers others have too the methods that do not look at them as blocks."""
    met, found = set(), []
    for case in cases:
        slow = (case.family, case.method) in met
        slow |= case.family in ALWAYS and case.method not in ALWAYS[case.family]
        met.add((case.family, case.method))
        name = "-".join([case.family, case.method, *map(str, case.settings.values())])
        found.append(pytest.param(case, id=name, marks=[pytest.mark.slow] if slow else []))
    return pytest.mark.parametrize("case", found)


every_case = every(CASES)

# The cells of the paper's released configurations (2303.18181).
RELEASED = {
    "SA_in": ["SA_in", "CA_in", "FFN_in", "Trans_out"],
    "SA_out": ["CA_in", "FFN_in", "Trans_out"],
    "CA_in": ["CA_in", "FFN_in", "Trans_out"],
    "CA_out": ["FFN_in", "Trans_out"],
    "FFN_in": ["FFN_in", "Trans_out"],
    "FFN_out": ["Trans_out"],
    "Trans_out": ["Trans_out"],
    "CA_c": ["CA_c"],
    "Res_in": ["Res_in", "Res_out"],
    "Res_out": ["Res_out"],
}
CELLS = [(source, target) for source, targets in RELEASED.items() for target in targets]
every_cell = pytest.mark.parametrize("cell", CELLS, ids="-".join)
# One of each kind of layer and of each end of a block; the others are slow tests.
QUICK = [("SA_in", "SA_in"), ("CA_out", "FFN_in"), ("CA_c", "CA_c"), ("Res_in", "Res_out")]
quick_cells = pytest.mark.parametrize(
    "cell",
    [pytest.param(c, id="-".join(c), marks=[] if c in QUICK else pytest.mark.slow) for c in CELLS],
)
FUNCTIONS = {
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "identity": lambda x: x,
}


@pytest.fixture(scope="module")
def _unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()


@pytest.fixture(scope="module")
def _dit():
    return tiny_dit()


@pytest.fixture(scope="module")
def _sd3():
    return trained_somewhat(pipelines.sd3_denoiser())


@pytest.fixture(scope="module")
def _flux():
    return trained_somewhat(pipelines.flux_denoiser())


@pytest.fixture(scope="module")
def _sana():
    return trained_somewhat(pipelines.sana_denoiser())


@pytest.fixture(scope="module")
def _flux2():
    return trained_somewhat(pipelines.flux2_denoiser())


@pytest.fixture(scope="module")
def _lumina2():
    return trained_somewhat(pipelines.lumina2_denoiser())


@pytest.fixture(scope="module")
def _qwenimage():
    return trained_somewhat(pipelines.qwenimage_denoiser())


@pytest.fixture(scope="module")
def _zimage():
    return trained_somewhat(pipelines.zimage_denoiser())


@pytest.fixture(scope="module")
def _pixart():
    return trained_somewhat(pipelines.pixart_denoiser())


def trained_somewhat(model):
    """The model after a walk that takes gates away from zero; frozen, as bases are loaded."""
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            parameter.add_(0.05 * drawn)
    return model.requires_grad_(False)


@pytest.fixture
def unet(_unet):
    return copy.deepcopy(_unet)


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    return x, torch.tensor([3, 700]), torch.randn(2, 5, 12, generator=generator)


def predicted(model, batch):
    """Latents, time steps and conditions: the names of the latter, or the only one."""
    latents, times, told = batch
    family = bases.family_of(model)
    told = told if isinstance(told, dict) else {next(iter(family.told)): told}
    return family.predict(model, latents, times, told)


def run(model, batch):
    with torch.no_grad():
        return predicted(model, batch)


def settings(cell, **other):
    return {"input": cell[0], "output": cell[1], "width": 3, **other}


def state_digest(tensors):
    hashed = hashlib.sha256()
    for name in sorted(tensors):
        hashed.update(name.encode())
        hashed.update(tensors[name].detach().contiguous().numpy().tobytes())
    return hashed.hexdigest()


# --- the blocks once more, written from the paper's table of positions -------------------


class Positions:
    """Visits every position in order; adds at one what an adapter makes of another."""

    def __init__(self, delta, source, target):
        self.delta, self.source, self.target, self.seen = delta, source, target, {}

    def __call__(self, name, tensor):
        self.seen[name] = tensor
        return tensor + self.delta(self.seen[self.source]) if name == self.target else tensor


def transformer_forward(block, at, h, c):
    h = at("SA_in", h)
    h = at("CA_in", at("SA_out", block.attn1(block.norm1(h))) + h)
    c = at("CA_c", c)
    h = at("FFN_in", at("CA_out", block.attn2(block.norm2(h), encoder_hidden_states=c)) + h)
    return at("Trans_out", at("FFN_out", block.ff(block.norm3(h))) + h)


def resnet_forward(block, at, x, temb):
    x = at("Res_in", x)
    h = block.conv1(F.silu(block.norm1(x)))
    h = h + block.time_emb_proj(F.silu(temb))[:, :, None, None]
    h = block.conv2(F.silu(block.norm2(h)))
    skip = x if block.conv_shortcut is None else block.conv_shortcut(x)
    return at("Res_out", skip + h)


def delta_of(parameters, path, activation, scale, groups):
    p = {n.removeprefix(f"{path}.adapter."): v for n, v in parameters.items() if path in n}

    if "down.weight" not in p:  # one layer
        if "norm.weight" not in p:
            return lambda x: scale * (x @ p["up.weight"].T + p["up.bias"])
        own = {"weight": p["norm.weight"], "bias": p["norm.bias"], "eps": 1e-5}
        return lambda x: (
            scale
            * F.conv2d(
                F.silu(F.group_norm(x, groups, **own)), p["up.weight"], p["up.bias"], padding=1
            )
        )

    def linear(x):
        hidden = FUNCTIONS[activation](x @ p["down.weight"].T + p["down.bias"])
        return scale * (hidden @ p["up.weight"].T + p["up.bias"])

    def convolution(x):
        x = F.silu(F.group_norm(x, groups, p["norm.weight"], p["norm.bias"], 1e-5))
        hidden = FUNCTIONS[activation](F.conv2d(x, p["down.weight"], p["down.bias"], padding=1))
        return scale * F.conv2d(hidden, p["up.weight"], p["up.bias"], padding=1)

    return convolution if "norm.weight" in p else linear


def rewritten(base, parameters, cell, activation, scale):
    """A copy of the base whose blocks are the functions above."""
    model = copy.deepcopy(base).double()
    forwards = {BasicTransformerBlock: transformer_forward, ResnetBlock2D: resnet_forward}
    for path, block in model.named_modules():
        if type(block) not in forwards:
            continue
        resnet = isinstance(block, ResnetBlock2D)
        delta = delta_of(parameters, path, activation, scale, groups=4)
        if resnet != cell[0].startswith("Res"):
            continue

        def forward(x, *args, _block=block, _delta=delta, _resnet=resnet, **kwargs):
            given = args[0] if _resnet else kwargs["encoder_hidden_states"]
            function = forwards[ResnetBlock2D if _resnet else BasicTransformerBlock]
            return function(_block, Positions(_delta, *cell), x, given)

        block.forward = forward
    return model


# --- adapters ----------------------------------------------------------------------------


def test_legal_cells_are_the_papers():
    assert sorted(adapter.legal_cells()) == sorted(CELLS)
    assert len(adapter.legal_cells()) == 20


@pytest.mark.parametrize("target", adapter.Output.__args__)
@pytest.mark.parametrize("source", adapter.Input.__args__)
def test_every_pair_is_judged(source, target):
    problems = adapter.problems(adapter.Settings(input=source, output=target), "unet")
    if target in RELEASED[source]:
        assert problems == []
    else:
        assert len(problems) == 1
        assert source in problems[0]
        assert target in problems[0]
        assert problems[0].endswith(f"allowed outputs of {source}: " + ", ".join(RELEASED[source]))


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        (("FFN_out", "SA_in"), "precedes"),
        (("CA_c", "Trans_out"), "text token"),
        (("SA_in", "CA_c"), "text token"),
        (("SA_in", "Res_out"), "ResNet block"),
        (("Res_out", "Res_in"), "precedes"),
    ],
    ids=str,
)
def test_illegal_pairs_say_why(unet, cell, why):
    with pytest.raises(UserError, match=why):
        methods.attach(unet, "adapter", settings(cell), seed=0)


@every_cell
def test_positions_match_the_rewritten_blocks(_unet, unet, batch, cell):
    # In double precision: agreement far below 1e-6 leaves no room for a wrong position.
    index = CELLS.index(cell)
    activation, scale = list(FUNCTIONS)[index % 4], (1.0, -0.7)[index % 2]
    chosen = settings(cell, init="default", activation=activation, scale=scale)
    attachment = methods.attach(unet, "adapter", chosen, seed=index)
    x, t, c = batch
    batch = (x.double(), t, c.double())
    out = run(unet.double(), batch)
    expected = rewritten(_unet, dict(attachment.trainable), cell, activation, scale)
    torch.testing.assert_close(out, run(expected, batch), rtol=0, atol=1e-10)
    assert (out - run(copy.deepcopy(_unet).double(), batch)).abs().max() > 1e-3


@pytest.mark.parametrize("cell", [("CA_out", "FFN_in"), ("Res_in", "Res_out")], ids="-".join)
def test_without_a_width_one_layer_goes_from_position_to_position(_unet, unet, batch, cell):
    chosen = settings(cell, init="default", width=None, scale=0.7)
    attachment = methods.attach(unet, "adapter", chosen, seed=0)
    assert {n.rpartition("adapter.")[2].partition(".")[0] for n in attachment.trainable} <= {
        "up", "norm",
    }  # fmt: skip
    x, t, c = batch
    batch = (x.double(), t, c.double())
    out = run(unet.double(), batch)
    expected = rewritten(_unet, dict(attachment.trainable), cell, None, 0.7)
    torch.testing.assert_close(out, run(expected, batch), rtol=0, atol=1e-10)
    assert (out - run(copy.deepcopy(_unet).double(), batch)).abs().max() > 1e-3


def test_single_precision_matches_to_1e6(_unet, unet, batch):
    attachment = methods.attach(unet, "adapter", settings(("CA_out", "FFN_in"), init="default"), 0)
    x, t, c = batch
    parameters = {n: p.double() for n, p in attachment.trainable.items()}
    expected = rewritten(_unet, parameters, ("CA_out", "FFN_in"), "relu", 1.0)
    exact = run(expected, (x.double(), t, c.double()))
    torch.testing.assert_close(run(unet, batch).double(), exact, rtol=0, atol=1e-6)


@quick_cells
def test_training_step(_unet, unet, batch, cell):
    base = run(_unet, batch)
    attachment = methods.attach(unet, "adapter", settings(cell), seed=0)
    assert attachment.identity_at_start
    torch.testing.assert_close(run(unet, batch), base, rtol=0, atol=1e-6)

    optimizer = torch.optim.AdamW(attachment.trainable.values(), lr=0.05)
    for _ in range(2):  # the first step moves the last layer only: before, it is zero
        optimizer.zero_grad()
        unet(*batch).sample.square().mean().backward()
        with_gradient = {n for n, p in unet.named_parameters() if p.grad is not None}
        assert with_gradient == set(attachment.trainable)
        optimizer.step()
    frozen = {n: p for n, p in unet.named_parameters() if n not in attachment.trainable}
    assert state_digest(frozen) == state_digest(dict(_unet.named_parameters()))
    assert (run(unet, batch) - base).abs().max() > 1e-3

    attachment.remove()
    assert torch.equal(run(unet, batch), base)
    assert list(unet.state_dict()) == list(_unet.state_dict())
    assert not any(p.requires_grad for p in unet.parameters())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in unet.modules())


@quick_cells
def test_gradient_checkpointing_gives_the_same_gradients(unet, batch, cell):
    attachment = methods.attach(unet, "adapter", settings(cell, init="default"), seed=0)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            unet.enable_gradient_checkpointing()
        loss = unet(*batch).sample.square().mean()
        gradients.append(torch.autograd.grad(loss, list(attachment.trainable.values())))
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_no_graph_before_the_first_adapter(unet, batch):
    methods.attach(unet, "adapter", settings(("FFN_out", "Trans_out")), seed=0)
    tracked = {}
    for name, module in unet.named_modules():
        if isinstance(module, ResnetBlock2D):
            module.register_forward_hook(
                lambda _, args, output, name=name: tracked.update({name: output.requires_grad})
            )
    unet(*batch)
    assert not tracked.pop("down_blocks.0.resnets.0")
    assert all(tracked.values())


@pytest.mark.parametrize("cell", [("CA_out", "FFN_in"), ("CA_c", "CA_c"), ("Res_in", "Res_out")])
def test_half_precision_base_keeps_single_precision_adapters(unet, batch, cell):
    unet.bfloat16()
    attachment = methods.attach(unet, "adapter", settings(cell, init="default"), seed=0)
    x, t, c = batch
    out = unet(x.bfloat16(), t, c.bfloat16()).sample
    assert out.dtype == torch.bfloat16
    out.float().square().mean().backward()
    assert {p.grad.dtype for p in attachment.trainable.values()} == {torch.float32}


def test_autocast(unet, batch):
    methods.attach(unet, "adapter", settings(("CA_out", "FFN_in"), init="default"), seed=0)
    exact = run(unet, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = run(unet, batch)
    torch.testing.assert_close(rough.float(), exact, rtol=0.1, atol=0.1)


def test_initial_values_depend_on_seed_and_name_alone(_unet, unet):
    other = UNet2DConditionModel(**{**_unet.config, "layers_per_block": 2})
    before = torch.get_rng_state()
    chosen = settings(("SA_in", "SA_in"), init="default")
    here = methods.attach(unet, "adapter", chosen, seed=5).trainable
    there = methods.attach(other, "adapter", chosen, seed=5).trainable
    assert torch.equal(torch.get_rng_state(), before)
    shared = {n for n in here.keys() & there.keys() if here[n].shape == there[n].shape}
    assert len(shared) > 10
    assert all(torch.equal(here[n], there[n]) for n in shared)
    assert len({p.flatten()[0].item() for p in here.values()}) == len(here)
    again = methods.attach(copy.deepcopy(_unet), "adapter", chosen, seed=6).trainable
    assert not any(torch.equal(here[n], again[n]) for n in here)


@pytest.mark.parametrize(
    ("cell", "layer"),
    [(("SA_in", "SA_in"), torch.nn.Linear), (("Res_in", "Res_in"), torch.nn.Conv2d)],
    ids=["linear", "convolution"],
)
def test_default_init_has_pytorchs_distribution(unet, cell, layer):
    chosen = settings(cell, init="default", width=400)
    trainable = methods.attach(unet, "adapter", chosen, seed=0).trainable
    name = next(n for n in trainable if n.endswith("down.weight"))
    weight = trainable[name]
    torch.manual_seed(0)
    extra = (3,) if layer is torch.nn.Conv2d else ()
    like = layer(weight.shape[1], 400, *extra).weight
    assert weight.std().item() == pytest.approx(like.std().item(), rel=0.05)
    assert weight.abs().max().item() == pytest.approx(like.abs().max().item(), rel=0.05)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"width": 0}, "width: 0"),
        ({"width": 2.0}, "width: 2.0"),
        ({"width": True}, "width: True"),
        ({"scale": "1"}, "scale: '1'"),
        ({"scale": float("nan")}, "scale: nan"),
        ({"activation": "gelu"}, "activation: 'gelu'"),
        ({"init": "one"}, "init: 'one'"),
        ({"input": "CA"}, "input: 'CA'"),
        ({"output": "SA_out"}, "output: 'SA_out'"),
        ({"rank": 4}, "rank: unknown key"),
    ],
    ids=str,
)
def test_bad_settings_are_named(given, problem):
    with pytest.raises(UserError) as raised:
        methods.validated("adapter", settings(("CA_out", "FFN_in")) | given)
    assert len(raised.value.problems) == 1
    assert problem in raised.value.problems[0]


def test_all_bad_settings_at_once():
    with pytest.raises(UserError) as raised:
        methods.validated("adapter", {"width": 0, "scale": "1"})
    assert len(raised.value.problems) == 4  # and input and output are missing


def test_resampling_resnet_blocks_are_refused_between_sizes():
    model = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16),
        down_block_types=("ResnetDownsampleBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), layers_per_block=1,
        cross_attention_dim=12, attention_head_dim=2, norm_num_groups=4,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"down_blocks\.0\.downsamplers\.0"):
        methods.attach(model, "adapter", settings(("Res_in", "Res_out")), seed=0)
    methods.attach(model, "adapter", settings(("Res_out", "Res_out")), seed=0)


# --- every method ------------------------------------------------------------------------


@pytest.mark.parametrize("name", methods.METHODS)
def test_protocol(name):
    method = methods.get(name)
    assert all(f.description for f in method.Settings.model_fields.values())
    config = method.Settings.model_config
    assert config["strict"]
    assert config["frozen"]
    assert config["extra"] == "forbid"
    assert isinstance(method.trains, bool)


def test_unknown_method_names_the_allowed():
    with pytest.raises(UserError, match="allowed: adapter, adaptformer, "):
        methods.get("lorra")


def test_checking_needs_no_torch():
    code = (
        "import sys; from fitspace import bases, methods; from fitspace.plan import counting;"
        "s = methods.validated('adapter', {'input': 'CA_out', 'output': 'FFN_in'});"
        "assert methods.get('adapter').problems(s, 'unet') == [];"
        "print(sorted({'torch', 'diffusers', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def base(case, request):
    return request.getfixturevalue(f"_{case.family}")


@pytest.fixture
def inputs(case, batch):
    return inputs_of(case.family, batch)


def inputs_of(family, batch):
    """Latents, time steps and the condition: text (2, 5, 12), the second and the empty class, or
    text and what is pooled of it."""
    latents, times, text = batch
    if family == "flux2":
        return F.pixel_unshuffle(latents, 2), times.float(), {"embeddings": text}
    if family in ("pixart", "sana", "lumina2", "qwenimage", "zimage"):
        return (
            latents,
            times,
            {"embeddings": text, "mask": torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])},
        )
    if family == "dit":
        return latents, times, torch.tensor([1, 3])
    if family in ("sd3", "flux"):
        pooled = {"sd3": 24, "flux": 12}[family]
        text = torch.cat([text, text, text], -1)
        told = {"embeddings": text[..., :28], "pooled": text[:, 0, :pooled]}
        return latents, times.float(), told
    return batch


def attached(case, base):
    return methods.attach(copy.deepcopy(base), case.method, case.settings, seed=0)


@pytest.fixture
def attachment(case, base):
    return attached(case, base)


@pytest.fixture(scope="module")
def made():
    """What is made once of every case: by its number, and by what it is."""
    return {}


@pytest.fixture
def untouched(case, base, made):
    """The attachment, for those who only look at it."""
    key = CASES.index(case), "untouched"
    if key not in made:
        made[key] = attached(case, base)
    return made[key]


@pytest.fixture
def learnt(case, attachment, inputs, made):
    """An attachment of its own, with what three steps learn."""
    key = CASES.index(case), "learnt"
    if key not in made:
        train(attachment, inputs)
        made[key] = {n: p.detach().clone() for n, p in attachment.trainable.items()}
    with torch.no_grad():
        for name, parameter in attachment.trainable.items():
            parameter.copy_(made[key][name])
    return attachment


def train(attachment, inputs, steps=3):
    """AdamW on the output's mean square; which parameters had a gradient other than zero."""
    reached = set()
    if not attachment.trainable:
        return reached
    optimizer = torch.optim.AdamW(attachment.trainable.values(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        predicted(attachment.model, inputs).square().mean().backward()
        gradients = {n: p.grad for n, p in attachment.model.named_parameters() if p.requires_grad}
        reached |= {
            n for n, gradient in gradients.items() if gradient is not None and gradient.any()
        }
        optimizer.step()
    return reached


def test_every_method_has_a_case_on_every_family():
    cases = {(case.method, case.family) for case in CASES}
    assert cases.isdisjoint(REFUSED)
    # Stable Diffusion XL has the U-Net's blocks, and so far everything that methods look at.
    assert bases.FAMILIES["sdxl"].blocks == bases.FAMILIES["unet"].blocks
    cases |= {(method, "sdxl") for method, family in cases if family == "unet"}
    assert cases | set(REFUSED) == {(m, f) for m in methods.METHODS for f in bases.FAMILIES}


@pytest.mark.parametrize(("method", "family"), REFUSED)
def test_methods_and_families_that_do_not_go_together(method, family):
    assert methods.problems(method, methods.get(method).Settings(), family)


@every_case
def test_identity_at_start(case, base, inputs, untouched):
    assert untouched.identity_at_start == case.identity
    change = (run(untouched.model, inputs) - run(base, inputs)).abs().max()
    assert change <= 1e-6 if case.identity else change > 1e-3


def dead_text(names):
    """Of a second and last block of two streams, what nobody reads: what it makes of text last."""
    parts = (
        "attn.add_q_proj",
        "attn.norm_added_q",
        "attn.to_add_out",
        "txt_norm2",
        "txt_mlp",
        "attn.gamma_text",
    )
    own = [name.partition("transformer_blocks.1.")[2] for name in names]
    return [name for name in own if name.startswith(parts)]


@every_case
def test_training_reaches_exactly_the_trainables(case, base, inputs, attachment):
    parameters = dict(attachment.model.named_parameters())
    assert {n for n, p in parameters.items() if p.requires_grad} == set(attachment.trainable)
    assert all(attachment.trainable[n] is parameters[n] for n in attachment.trainable)
    frozen = attachment.model.state_dict(keep_vars=True)
    frozen = {n: t for n, t in frozen.items() if not t.requires_grad}
    before = state_digest(frozen)
    # Two steps: behind a layer that starts at zero nothing has a gradient in the first. What is
    # added to every key alike leaves the softmax as it is: its gradient is rounding.
    reached = train(attachment, inputs, steps=2)
    # In the last block of two streams nobody reads what the text's queries find.
    dead = [".to_k.bias"]
    if case.family == "qwenimage":
        dead += [f"1.{part}" for part in dead_text(attachment.trainable)]
    if case.family == "sd3":
        dead += ["2.attn.add_q_proj.weight", "2.attn.add_q_proj.bias", "2.attn.norm_added_q.weight"]
        dead += ["2.attn.add_q_proj.shift"]
    assert {n for n in attachment.trainable if n not in reached} <= {
        n for n in attachment.trainable if n.endswith(tuple(dead))
    }
    train(attachment, inputs, steps=1)
    assert state_digest(frozen) == before
    change = (run(attachment.model, inputs) - run(base, inputs)).abs().max()
    assert change > 1e-3 if methods.get(case.method).trains else change == 0


@every_case
def test_remove_gives_the_base_back(base, inputs, learnt):
    learnt.remove()
    assert_base(learnt.model, base)
    assert state_digest(learnt.model.state_dict()) == state_digest(base.state_dict())
    assert torch.equal(run(learnt.model, inputs), run(base, inputs))
    methods.attach(learnt.model, "none", {}, seed=0)


def assert_base(model, base):
    """The base's modules and parameters, frozen, without hooks."""
    modules = [(name, type(module)) for name, module in model.named_modules()]
    assert modules == [(name, type(module)) for name, module in base.named_modules()]
    assert list(model.state_dict()) == list(base.state_dict())
    assert not any(p.requires_grad for p in model.parameters())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


@every_case
def test_merge(case, base, inputs, learnt):
    expected = run(learnt.model, inputs)
    if case.merges:
        learnt.merge()
        assert_base(learnt.model, base)
    else:
        with pytest.raises(UserError, match=f"{case.method}: cannot be merged"):
            learnt.merge()
    torch.testing.assert_close(run(learnt.model, inputs), expected, rtol=0, atol=1e-5)


@every_case
def test_load_restores_the_function(case, base, inputs, learnt, tmp_path):
    path = tmp_path / "adapter.safetensors"
    methods.save(learnt, path, {"base": "0123"})
    fresh = copy.deepcopy(base)
    loaded = methods.load(fresh, path)
    assert torch.equal(run(fresh, inputs), run(learnt.model, inputs))
    assert (loaded.method, loaded.metadata) == (case.method, {"base": "0123"})
    assert loaded.settings.resolved(case.family) == learnt.settings.resolved(case.family)
    loaded.remove()
    assert state_digest(fresh.state_dict()) == state_digest(base.state_dict())


@every_case
def test_shapes_are_known_without_weights(case, base, untouched):
    with torch.device("meta"):
        empty = type(base).from_config(base.config)
    shapes = {n: p.shape for n, p in untouched.trainable.items()}
    found = methods.attach(empty, case.method, case.settings, seed=0).trainable
    assert {n: p.shape for n, p in found.items()} == shapes
    assert all(p.is_meta for p in found.values())


@every_case
def test_half_precision_base(case, base, inputs):
    model = copy.deepcopy(base).bfloat16()
    methods.attach(model, case.method, case.settings, seed=0)
    latents, times, condition = inputs
    told = condition if isinstance(condition, dict) else {"": condition}
    told = {n: c.bfloat16() if c.is_floating_point() else c for n, c in told.items()}
    condition = told if isinstance(condition, dict) else told[""]
    assert run(model, (latents.bfloat16(), times, condition)).dtype == torch.bfloat16


def test_full_trains_everything_once():
    dit = tiny_dit()
    trainable = methods.attach(dit, "full", {}, seed=0).trainable
    assert set(trainable) == {n for n, _ in dit.named_parameters()}
    assert len({id(p) for p in trainable.values()}) == len(trainable)


def test_one_method_at_a_time(unet):
    first = methods.attach(unet, "adapter", settings(("CA_out", "FFN_in")), seed=0)
    with pytest.raises(UserError, match="carries the method 'adapter' already"):
        methods.attach(unet, "full", {}, seed=0)
    first.remove()
    methods.attach(unet, "full", {}, seed=0)


def test_models_of_other_families_are_refused():
    with pytest.raises(UserError, match=r"Linear.*allowed: UNet2DConditionModel"):
        methods.attach(torch.nn.Linear(1, 1), "full", {}, seed=0)


# --- files -------------------------------------------------------------------------------


@pytest.fixture
def trained(unet, tmp_path):
    """An adapter with random values, saved: attachment, path."""
    attachment = methods.attach(unet, "adapter", settings(("CA_out", "FFN_in"), scale=0.5), seed=0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in attachment.trainable.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    path = tmp_path / "adapter.safetensors"
    methods.save(attachment, path, {"base": "0123", "run": "r", "seed": "0"})
    return attachment, path


def test_saved_is_exactly_the_manifest(trained):
    attachment, path = trained
    saved = load_file(path)
    assert set(saved) == set(attachment.trainable)
    assert all(torch.equal(saved[n], p) for n, p in attachment.trainable.items())


def test_equal_content_gives_equal_bytes(trained, tmp_path):
    attachment, path = trained
    for i in range(8):  # safetensors orders several metadata keys at random
        again = tmp_path / f"{i}.safetensors"
        methods.save(attachment, again, {"seed": "0", "run": "r", "base": "0123"})
        assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "family",
    ["unet", "dit", "pixart", "sd3", *(pytest.param(f, marks=pytest.mark.slow) for f in ALWAYS)],
)
def test_a_stream_of_adapters_changes_no_earlier_output_by_a_bit(family, request, batch, tmp_path):
    """One base, many small files: each draws the same whenever it comes, and the base too."""
    model = copy.deepcopy(request.getfixturevalue(f"_{family}"))
    inputs = inputs_of(family, batch)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    untouched = run(model, inputs)
    outputs = {}
    for number, case in enumerate(case for case in CASES if case.family == family):
        attached = methods.attach(model, case.method, case.settings, seed=number)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in attached.trainable.values():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        path = tmp_path / f"{number}.safetensors"
        methods.save(attached, path, {})
        outputs[path] = run(model, inputs)
        attached.remove()
    for order in (outputs, reversed(outputs)):
        for path in order:
            attached = methods.load(model, path)
            assert torch.equal(run(model, inputs), outputs[path]), path
            attached.remove()
            assert torch.equal(run(model, inputs), untouched), path
    attached = None
    for path in [*outputs, *reversed(outputs)]:
        attached = methods.load(model, path, instead_of=attached)
        assert torch.equal(run(model, inputs), outputs[path]), path
    attached.remove()
    assert torch.equal(run(model, inputs), untouched)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def two_files(case, model, inputs, folder):
    """Two files of one form with other values, and what each draws by itself: path -> output."""
    outputs = {}
    for number in range(2):
        attached = methods.attach(model, case.method, case.settings, seed=number)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in attached.trainable.values():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        path = folder / f"{number}.safetensors"
        methods.save(attached, path, {"number": str(number)})
        attached.remove()
        attached = methods.load(model, path)
        outputs[path] = run(model, inputs)
        attached.remove()
    return outputs


@every(case for case in CASES if case.method != "none")
def test_a_file_takes_the_place_of_another_of_its_form(case, request, batch, tmp_path):
    model = copy.deepcopy(request.getfixturevalue(f"_{case.family}"))
    inputs = inputs_of(case.family, batch)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outputs = two_files(case, model, inputs, tmp_path)
    first, second = outputs
    assert not torch.equal(outputs[first], outputs[second])
    attached = methods.load(model, first)
    held = dict(attached.trainable)
    for path in (second, first, second):
        assert methods.load(model, path, instead_of=attached) is attached  # nothing is built anew
        assert attached.metadata["number"] == path.stem
        assert torch.equal(run(model, inputs), outputs[path])
    assert all(attached.trainable[name] is parameter for name, parameter in held.items())
    methods.save(attached, again := tmp_path / "again.safetensors", attached.metadata)
    assert again.read_bytes() == second.read_bytes()
    attached.remove()
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_only_what_is_there_can_be_replaced(_unet, batch, tmp_path):
    model = copy.deepcopy(_unet)
    case = Case("unet", "adapter", settings(("CA_out", "FFN_in")))
    (first, output), (second, _) = two_files(case, model, batch, tmp_path).items()
    attached = methods.load(model, first)
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(second.read_bytes())
    _rewrite(wrong, _reshape)
    for path, problem in ((wrong, "the model needs"), (tmp_path / "none", "no such file")):
        with pytest.raises(UserError, match=problem):
            methods.load(model, path, instead_of=attached)
        assert torch.equal(run(model, batch), output)  # the first is still at work
    with pytest.raises(UserError, match="not on this model"):
        methods.load(copy.deepcopy(_unet), second, instead_of=attached)
    # At another strength it is not a matter of copying.
    weaker = methods.load(model, first, strength=0.0, instead_of=attached)
    assert weaker is not attached and torch.equal(run(model, batch), run(_unet, batch))
    assert torch.equal(run(methods.load(model, first, instead_of=weaker).model, batch), output)
    with pytest.raises(UserError, match=r"'adapter' is not on this model \(any more\)"):
        methods.load(model, second, instead_of=attached)


def test_load_adapter_on_a_pipeline(_unet, trained, batch):
    model = copy.deepcopy(_unet)
    pipeline = StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=model, scheduler=DDPMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    loaded = methods.load_adapter(pipeline, trained[1])
    assert torch.equal(run(pipeline.unet, batch), run(trained[0].model, batch))
    loaded.remove()
    assert torch.equal(run(pipeline.unet, batch), run(_unet, batch))
    with pytest.raises(UserError, match="neither"):
        methods.load_adapter(object(), trained[1])


def _rewrite(path, change):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors, metadata)
    save_file(tensors, path, metadata=metadata)


def _drop(tensors, _):
    tensors.pop(sorted(tensors)[0])


def _add(tensors, _):
    tensors["stranger"] = torch.zeros(1)


def _reshape(tensors, _):
    name = sorted(tensors)[0]
    tensors[name] = tensors[name][None].contiguous()


def _other_method(_, metadata):
    metadata["fitspace"] = metadata["fitspace"].replace('"method":"adapter"', '"method":"lorra"')


def _bad_setting(_, metadata):
    metadata["fitspace"] = metadata["fitspace"].replace('"width":3', '"width":0')


def _no_metadata(_, metadata):
    metadata.clear()


def _garbled(_, metadata):
    metadata["fitspace"] = "[1]"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_drop, "down.bias: missing"),
        (_add, "stranger: the model has no such parameter"),
        (_reshape, r"shape \(1, 3\); the model needs \(3,\)"),
        (_other_method, "lorra"),
        (_bad_setting, "width: 0"),
        (_no_metadata, "not an adapter written by fitspace"),
        (_garbled, "not an adapter written by fitspace"),
    ],
)
def test_files_that_do_not_fit_are_refused(_unet, trained, batch, change, problem):
    _rewrite(trained[1], change)
    model = copy.deepcopy(_unet)
    with pytest.raises(UserError, match=problem):
        methods.load(model, trained[1])
    assert torch.equal(run(model, batch), run(_unet, batch))
    methods.attach(model, "none", {}, seed=0)


def test_another_models_adapter_is_refused(_unet, trained):
    wider = UNet2DConditionModel(**{**_unet.config, "block_out_channels": (16, 32)})
    with pytest.raises(UserError) as raised:
        methods.load(wider, trained[1])
    assert 1 < len(raised.value.problems) <= 11
    assert all(str(trained[1]) in p for p in raised.value.problems)


@pytest.mark.parametrize("content", [None, b"", b"no safetensors"], ids=["absent", "empty", "text"])
def test_no_adapter_file(unet, tmp_path, content):
    path = tmp_path / "adapter.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=str(path)):
        methods.load(unet, path)
