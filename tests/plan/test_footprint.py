"""FLOPs and bytes of a step: the papers' networks at full size, and a step run for real."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny
import torch
from peft_cases import CASES
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fitspace import bases, methods
from fitspace.core.errors import UserError
from fitspace.methods import METHODS
from fitspace.plan import footprint
from fitspace.plan.footprint import Footprint, measure

AFTER_CA = {"input": "CA_out", "output": "FFN_in", "width": 60}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def unet_in_full(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("cache"))
        return measure("sd15", "full", {})


def test_stable_diffusion_at_512_px(unet_in_full):
    """803 GFLOP forward, 1,603 for the whole backward pass; all 859.5 M parameters."""
    assert unet_in_full.forward == pytest.approx(803e9, rel=1e-3)
    assert unet_in_full.step - unet_in_full.forward == pytest.approx(1603e9, rel=1e-3)
    assert (unet_in_full.frozen, unet_in_full.trainable) == (0, 859_520_964)


# Share of full fine-tuning's FLOPs. 2303.18181 measured 0.69 of its time.
SHARES = {"adapter": (AFTER_CA, 0.69), "bitfit": ({}, 0.717)}


@pytest.mark.parametrize("method", SHARES)
def test_what_backward_does_not_need_is_not_counted(unet_in_full, method):
    settings, share = SHARES[method]
    found = measure("sd15", method, settings)
    assert found.step / unet_in_full.step == pytest.approx(share, abs=6e-3)
    assert found.activations < unet_in_full.activations


@pytest.mark.slow
def test_dit_xl():
    """237 GFLOP forward; biases alone 0.68 of full fine-tuning."""
    full = measure("dit-xl", "full", {})
    assert full.forward == pytest.approx(237e9, rel=2e-3)
    biases = measure("dit-xl", "bitfit", {"class_embedding": False})
    assert biases.step / full.step == pytest.approx(0.68, abs=5e-3)


@pytest.fixture
def small(monkeypatch):
    """The name of a configuration that is a tiny network's."""
    networks = {"unet": tiny.unet, "dit": tiny.tiny_dit}
    kinds = {"unet": {"_class_name": "UNet2DConditionModel"}}
    kinds["dit"] = {"_class_name": "DiTTransformer2DModel"}

    def from_config(name):
        return networks[name]().to("meta").requires_grad_(False)

    monkeypatch.setattr(bases, "from_config", from_config)
    monkeypatch.setattr(bases, "architecture", lambda name: kinds[name])
    monkeypatch.setattr(bases, "CONFIGS", tuple(networks))
    return networks


POINTS = {
    "full": ("unet", "full", {}),
    "adapter": ("unet", "adapter", AFTER_CA | {"width": 3}),
    "DiffFit": ("dit", "difffit", {}),
    "dropout": ("dit", "adaptformer", {"width": 3}),
    "peft": ("dit", "lora", {"rank": 2}),
    "nothing": ("unet", "none", {}),
}


@pytest.mark.parametrize(("name", "method", "settings"), POINTS.values(), ids=POINTS)
def test_a_step_on_the_meta_device_is_the_step_on_a_cpu(small, name, method, settings):
    found = measure(name, method, settings, batch=3)
    model = small[name]()
    attachment = methods.attach(model, method, settings, 0)
    side = model.config.sample_size
    given = torch.randn(3, 77, 12) if name == "unet" else torch.tensor([0, 1, 2])
    with FlopCounterMode(display=False) as flops, sdpa_kernel(SDPBackend.MATH):
        out = model(torch.randn(3, 4, side, side), torch.tensor([1, 2, 3]), given).sample
        assert found.forward == flops.get_total_flops() // 3
        if attachment.trainable:
            out.sum().backward()
    trained = {id(p) for p in attachment.trainable.values()}
    assert found.trainable == sum(p.numel() for p in attachment.trainable.values())
    assert found.frozen == sum(p.numel() for p in model.parameters() if id(p) not in trained)
    assert (found.step > found.forward) == (found.activations > 0) == bool(trained)
    # Fused attention has the gradients of queries, keys and values together, needed or not.
    if trained:
        assert 1 <= found.step / (flops.get_total_flops() / 3) < 1.15


# Method -> the tiny network that it is for and what its settings need.
EVERY = {name: ("unet", name, {}) for name in METHODS if name not in ("none", "peft")} | {
    "adapter": ("unet", "adapter", AFTER_CA | {"width": 3}),
    "adaptformer": ("dit", "adaptformer", {"width": 3}),
    "oft": ("unet", "oft", {"block_size": 4}),
    "vpt": ("dit", "vpt", {"prompts": 2}),
}
TUNERS = {c.peft_type: ("unet", "peft", {"peft_type": c.peft_type} | c.settings) for c in CASES}
QUICK = ("SHIRA", "WAVEFT")  # a sparse matrix, a mask: neither has a form without values


@pytest.mark.parametrize(
    ("name", "method", "settings"),
    [pytest.param(*point, id=name) for name, point in EVERY.items()]
    + [
        pytest.param(*point, id=name, marks=[] if name in QUICK else pytest.mark.slow)
        for name, point in TUNERS.items()
    ],
)
def test_every_method_is_costed(small, name, method, settings):
    found = measure(name, method, settings, 2, "bf16")
    assert 0 < found.forward < found.step and found.activations > 0
    assert found.trainable > 0


def test_a_batch_keeps_more_and_half_precision_half_of_it(small):
    one, two = (measure("unet", "full", {}, batch) for batch in (1, 2))
    assert (one.forward, one.step) == (two.forward, two.step)
    assert two.activations == pytest.approx(2 * one.activations, rel=0.01)
    half = measure("unet", "full", {}, 2, "bf16")
    assert half.activations == pytest.approx(two.activations / 2, rel=0.03)
    assert half.step == two.step


def test_what_attention_yields_is_kept_and_its_softmax_is_not(small):
    """Four times the tokens: what is kept grows as they do, not as their square."""
    once, finer = (measure("dit", "full", {}, 1, "fp32", scale) for scale in (1, 4))
    assert finer.activations < 16.5 * once.activations
    assert finer.forward > 16.5 * once.forward


def test_memory_of_a_step():
    taken = Footprint(forward=1, step=3, activations=7000, frozen=900, trainable=100)
    # fp32: a weight of 4 bytes; a trainable has a value, a gradient and two moments.
    assert taken.training({"precision": "fp32", "ema": None}) == 4 * 900 + 16 * 100 + 7000
    assert taken.training({"precision": "fp32", "ema": 0.9}) == 4 * 900 + 20 * 100 + 7000
    assert taken.training({"precision": "bf16", "ema": 0.9}) == 2 * 900 + 22 * 100 + 7000
    assert taken.sampling(None) == 4 * 1000


FEW_BITS = {  # of 600 weights in 10 rows: a byte and ten scales; half a byte and nine scales
    "whole": ({}, 0),
    "8 bits": ({"base_weights": "int8"}, 600 + 4 * 10),
    "4 bits": ({"base_weights": "nf4"}, 300 + 4 * 9),
}


@pytest.mark.parametrize("settings, stored", FEW_BITS.values(), ids=FEW_BITS)
def test_memory_of_a_base_in_few_bits(settings, stored):
    taken = Footprint(1, 3, activations=7000, frozen=900, trainable=100, linear=600, rows=10)
    train = {"precision": "bf16", "ema": None} | settings
    others = 300 if stored else 900
    assert taken.training(train) == 2 * others + stored + 18 * 100 + 7000
    assert taken.sampling(train) == 4 * (others + 100) + stored


def test_the_linear_layers_that_can_be_in_few_bits_are_those_that_do_not_train():
    """Of Stable Diffusion 1.5, whose linear layers have 31% of its weights."""
    model = bases.from_config("sd15")
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    weights = sum(m.weight.numel() for m in linear)
    found = measure("sd15", "lora", {"target": "attention+ff"})
    assert found.linear == weights and found.rows == sum(m.out_features for m in linear)
    assert found.linear / 859_520_964 == pytest.approx(0.314, abs=1e-3)
    partly = measure("sd15", "custom_diffusion", {})
    assert partly.linear + partly.trainable == weights and partly.frozen > partly.linear
    assert measure("sd15", "full", {}).linear == 0


def test_a_step_is_measured_once(small, monkeypatch):
    before = measure("unet", "bitfit", {})
    monkeypatch.setattr(footprint, "_measure", lambda *_: pytest.fail("measured again"))
    assert measure("unet", "bitfit", {}) == before
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        measure("unet", "bitfit", {}, batch=2)


def test_an_unknown_base_is_named():
    with pytest.raises(UserError, match="known without weights"):
        measure("models/none", "full", {})


@pytest.mark.parametrize(("at_once", "measured"), [(None, 8), (2, 2), (20, 8)])
def test_a_step_that_is_taken_apart_keeps_the_activations_of_one_part(
    monkeypatch, at_once, measured
):
    seen = []
    monkeypatch.setattr(footprint, "measure", lambda *given: seen.append(given[3]))
    train = {"batch_size": 8, "precision": "fp32", "examples_at_once": at_once}
    point = SimpleNamespace(train=train, method="lora", settings={}, learnt=None)
    task = SimpleNamespace(scale=1, dreambooth=None)
    footprint.of(SimpleNamespace(base="sd15"), point, task)
    assert seen == [measured] and footprint.latents(point, task) == 8
