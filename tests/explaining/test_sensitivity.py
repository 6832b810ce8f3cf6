"""Prompt sensitivity and attention on models whose numbers can be computed by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

from fitspace import methods
from fitspace.core.rng import initial_noise
from fitspace.data.prepared import PreparedTask
from fitspace.explaining.anatomy import anatomy, effective_rank, remembered
from fitspace.explaining.attention import Attention
from fitspace.explaining.probes import probe_of
from fitspace.explaining.sensitivity import measure, ratios
from fitspace.training.sampling import NotFinite


class UNet2DConditionModel(torch.nn.Module):
    """Predicts ``gain·(mean of the words)`` everywhere: a toy of the name that families look at."""

    config = {}

    def __init__(self, gain: float = 1.0):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(gain))

    def forward(self, x, timestep, encoder_hidden_states):
        level = self.gain * encoder_hidden_states.mean((1, 2)).reshape(-1, 1, 1, 1)
        return SimpleNamespace(sample=level.expand_as(x))


def asked(model, kind="epsilon", steps=(100, 700), words=((3.0, 2.0), (5.0, 4.0))):
    latents = torch.randn(len(words), 4, 2, 2, generator=torch.Generator().manual_seed(0))
    noise = initial_noise(0, len(words), (4, 2, 2), "toy")

    def told(i):
        return {"embeddings": torch.tensor(words[i]).reshape(2, 1, 1)}

    moved = measure(model, tiny.process(kind), latents, noise, steps, told, shown=9)
    return moved, latents, noise


def test_the_ratio_is_that_of_squared_norms():
    """a = 3 and 5, b = 2 and 4 in all of 16 places: (1 + 1) / (4 + 16), at any time step."""
    moved, *_ = asked(UNet2DConditionModel())
    assert moved.by_time == pytest.approx([2 / 20] * 2)
    assert moved.by_image == pytest.approx([1 / 4, 1 / 16])
    assert moved.mean == pytest.approx(0.1)
    assert moved.maps.shape == (2, 2, 2, 2) and moved.maps == pytest.approx(1.0)


def test_a_velocity_is_converted_to_the_noise_it_stands_for():
    """With ε = √ᾱ·v + √(1 − ᾱ)·x: the difference shrinks by ᾱ, and the noisy image is in b."""
    moved, latents, noise = asked(UNet2DConditionModel(), "v_prediction")
    alphas = tiny.process("v_prediction").scheduler.alphas_cumprod.double().numpy()
    for k, step in enumerate((100, 700)):
        a, up, down = alphas[step], 0.0, 0.0
        for i, b in enumerate((2.0, 4.0)):
            x = math.sqrt(a) * latents[i].double() + math.sqrt(1 - a) * noise[i].double()
            up += 16 * a
            down += float((math.sqrt(a) * b + math.sqrt(1 - a) * x).square().sum())
        assert moved.by_time[k] == pytest.approx(up / down, rel=1e-5)


def test_the_true_velocity_gives_the_true_noise():
    process, g = tiny.process("v_prediction"), torch.Generator().manual_seed(1)
    clean, noise = torch.randn(2, 3, 4, 4, 4, generator=g)
    t = torch.tensor([3, 500, 990])
    noisy, velocity = process.mix(clean, noise, t), process.target(clean, noise, t)
    assert process.noise(velocity, noisy, t) == pytest.approx(noise, abs=1e-5)


def test_nothing_to_compare_with_is_no_number():
    assert ratios(np.array([1.0, 0.0]), np.array([0.0, 2.0])) == [None, 0.0]
    moved, *_ = asked(UNet2DConditionModel(gain=0.0))
    assert moved.by_time == [None, None] and moved.mean is None


def test_a_prediction_that_is_not_finite_is_told():
    with pytest.raises(NotFinite, match="time step 100 is not finite"):
        asked(UNet2DConditionModel(gain=math.inf))


# --- blocks, attached methods --------------------------------------------------------------

SETTINGS = {
    "none": {},
    "full": {},
    "bitfit": {},
    "difffit": {},
    "lora": {"rank": 2},
    "loha": {"rank": 2},
    "lokr": {"rank": 2},
    "ia3": {},
    "oft": {"block_size": 2},
    "adaptformer": {"width": 3},
    "custom_diffusion": {},
    "svdiff": {},
    "peft": {"peft_type": "HIRA", "r": 2},
    "vpt": {"prompts": 2},
    "adapter": {"input": "SA_in", "output": "FFN_in", "width": 3},
}
CASES = [
    (family, name) for family in ("unet", "dit") for name in SETTINGS
    if (family, name) not in (("unet", "vpt"), ("dit", "custom_diffusion"))
]  # fmt: skip


def test_every_method_is_a_case():
    assert set(SETTINGS) == set(methods.METHODS)


def model_of(family):
    return tiny.unet() if family == "unet" else tiny.tiny_dit()


def probed(model):
    side = model.config.sample_size
    latents = torch.randn(2, 4, side, side, generator=torch.Generator().manual_seed(0))
    told = tiny.task().told if model.__class__.__name__.startswith("UNet") else None
    conditions = [told([i, 11]) if told else {"labels": torch.tensor([i, 3])} for i in range(2)]
    noise = initial_noise(0, 2, (4, side, side), "toy")
    return measure(model, tiny.process(), latents, noise, [200, 600], conditions.__getitem__)


@pytest.fixture(scope="module")
def untouched():
    return {family: probed(model_of(family)) for family in ("unet", "dit")}


@pytest.mark.parametrize("family, method", CASES)
def test_before_training_a_method_is_the_untouched_model(family, method, untouched):
    """Exactly, where it starts from the base; and its anatomy has no change."""
    model = model_of(family)
    before = remembered(model)
    attachment = methods.attach(model, method, SETTINGS[method], seed=1)
    moved, base = probed(model), untouched[family]
    starts = attachment.identity_at_start
    assert (moved.by_time == base.by_time) == starts == (method != "vpt")
    assert list(moved.by_block) == list(base.by_block)
    assert (moved.by_block == base.by_block) == starts
    added = not attachment.fold
    found = anatomy(attachment, before)
    kinds = {row["kind"] for row in found["changes"]}
    assert kinds == ({method} if added else set())
    assert all(row["mean"] == 0 for row in found["gamma"]) and found["rank"] == []


@pytest.mark.parametrize("family, method", [c for c in CASES if c[1] != "none"])
def test_what_training_changed_is_measured_against_the_base(family, method):
    """Norms by block and kind add up to that of all weights, folded or added."""
    model = model_of(family)
    before = remembered(model)
    attachment = methods.attach(model, method, SETTINGS[method], seed=1)
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in attachment.trainable.values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=g)
    gammas = {n: p.detach().clone() for n, p in attachment.trainable.items() if n[-5:] == "gamma"}
    new = 0.0
    if attachment.fold is None:
        values = [p for n, p in attachment.trainable.items() if n not in before]
        new = sum(float(p.detach().double().square().sum()) for p in values)
    found = anatomy(attachment, before)
    after = {n: p for n, p in model.named_parameters() if n in before}
    changed = {n: p.detach().double() - before[n].double() for n, p in after.items()}
    total = sum(float(d.square().sum()) for d in changed.values()) + new
    assert sum(row["change"] ** 2 for row in found["changes"]) == pytest.approx(total, rel=1e-9)
    assert total > 0
    for row in found["changes"]:
        assert (row["base"] is None) == (row["kind"] == method)
    assert [row["mean"] for row in found["gamma"]] == pytest.approx(
        [float((v - 1).abs().mean()) for v in gammas.values()]
    )
    assert bool(gammas) == (method == "difffit")
    assert bool(found["rank"]) == (method in ("lora", "loha", "lokr"))
    if method == "lora":
        ranks = [row["effective_rank"] for row in found["rank"]]
        assert all(1 <= rank <= 2 + 1e-9 for rank in ranks)


MATRICES = {
    "one direction": (torch.outer(torch.arange(1.0, 5), torch.arange(1.0, 4)), 1.0),
    "three alike": (torch.eye(3), 3.0),
    "two to one": (
        torch.diag(torch.tensor([2.0, 1.0])),
        math.exp(math.log(3) - 2 / 3 * math.log(2)),
    ),
    "nothing": (torch.zeros(3, 3), 0.0),
    "rounding": (torch.diag(torch.tensor([1.0, 1e-9])), 1.0),
}


@pytest.mark.parametrize("matrix, rank", MATRICES.values(), ids=MATRICES)
def test_effective_rank(matrix, rank):
    assert effective_rank(matrix.double(), 1.0) == pytest.approx(rank, abs=1e-6)


# --- attention -----------------------------------------------------------------------------


def test_attention_maps_are_the_softmax_of_the_layers():
    """All tokens take all attention; a token's share is that of diffusers' own scores."""
    model, task = tiny.unet(), tiny.task()
    tokens = [[0, 1, 2, 3, 4], [2]]
    attention = Attention(model, tokens, shown=2)
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    seen: dict[str, torch.Tensor] = {}
    path, layer = next(iter(attention.layers.items()))
    hooks = [
        layer.to_q.register_forward_hook(lambda m, a, out: seen.__setitem__("q", out)),
        layer.to_k.register_forward_hook(lambda m, a, out: seen.__setitem__("k", out)),
    ]
    with attention.watching(), torch.no_grad():
        for i in range(2):
            x, t = latents[i : i + 1].expand(2, -1, -1, -1), torch.tensor([300, 300])
            model(x, t, encoder_hidden_states=task.told([i, 11])["embeddings"])
            attention.take(i)
            q, k = (seen[name][0].double() for name in "qk")
    for hook in hooks:
        hook.remove()
    heads, width = layer.heads, q.shape[-1] // layer.heads
    q, k = (value.reshape(len(value), heads, width).transpose(0, 1) for value in (q, k))
    weights = (q @ k.transpose(1, 2) / math.sqrt(width)).softmax(-1)
    share = float(weights[:, :, 2].mean())
    assert attention.shares[path] == pytest.approx((1 + share) / 2, abs=1e-6)
    assert attention.maps[0] == pytest.approx(np.ones((4, 4)), abs=1e-6)
    assert attention.maps[1].shape == (4, 4) and 0 < attention.maps[1].min() < 1


# --- probes --------------------------------------------------------------------------------


def prepared(**changes) -> PreparedTask:
    own = {
        "mean": torch.arange(6.0).reshape(6, 1, 1, 1).half(),
        "std": torch.ones(6, 1, 1, 1).half(),
        "captions": torch.zeros(6, dtype=torch.int64),
        "groups": [],
        "conditions": {},
        "prompts": [4, 2, 3],
        "held_out": torch.tensor([10.0, 20, 30]).reshape(3, 1, 1, 1).half(),
        "shown": [2, 0, 1],
    }
    return PreparedTask(**own | changes)


SUBJECT = {"prompts": [], "shown": [], "roles": {"subject": [1], "elsewhere": [3], "class": [2]}}
PROBES = {
    "captions": ({}, False, 2, "held-out images", [30, 10], [(4, 0), (2, 0)]),
    "fewer images than asked for": ({}, True, 9, "held-out images", [30, 10, 20],
                                    [(4, 0), (2, 0), (3, 0)]),
    "a subject with class images": (SUBJECT | {"prior": [4, 5]}, False, 9, "images of the class",
                                    [4, 5], [(1, 2)] * 2),
    "a subject alone": (SUBJECT, False, 2, "images of the subject", [0, 1], [(1, 2)] * 2),
}  # fmt: skip


@pytest.mark.parametrize(
    "changes, by_class, count, images, means, rows", PROBES.values(), ids=PROBES
)
def test_what_a_model_is_asked(changes, by_class, count, images, means, rows):
    found = probe_of(prepared(**changes), by_class, count)
    assert (found.images, found.latents.flatten().tolist(), found.rows) == (images, means, rows)
