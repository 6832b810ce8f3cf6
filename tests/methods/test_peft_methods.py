"""peft's methods: their formulas, where they act, what they start from, how they train."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from scipy import stats

from fitspace import methods, training
from fitspace.core.errors import UserError
from fitspace.core.imports import import_peft

peft = import_peft()
from diffusers import UNet2DConditionModel  # noqa: E402

ROOT = Path(__file__).parents[2]
FORMS = {
    "LoRA": ("lora", {"rank": 2, "alpha": 6}),
    "rsLoRA": ("lora", {"rank": 4, "alpha": 6, "rslora": True, "target": "attention"}),
    "DoRA": ("lora", {"rank": 2, "dora": True, "target": "attention+ff"}),
    "fused LoRA": ("lora", {"rank": 2, "fused": True}),
    "LoHa": ("loha", {"rank": 2, "alpha": 3}),
    "LoKr": ("lokr", {"rank": 1, "alpha": 2, "factor": 2}),
    "LoKr of whole factors": ("lokr", {"rank": 8, "alpha": 2, "target": "attention+ff"}),
    "IA3": ("ia3", {}),
    "OFT": ("oft", {"block_size": 4}),
}
every_form = pytest.mark.parametrize(
    ("method", "settings"), FORMS.values(), ids=[form.replace(" ", "-") for form in FORMS]
)
# Those that are trained always; the others, which are trained alike, where there is time.
OFTEN = ("LoRA", "DoRA", "LoKr", "OFT")


def form(name):
    marks = () if name in OFTEN else pytest.mark.slow
    return pytest.param(*FORMS[name], id=name.replace(" ", "-"), marks=marks)


every_training = pytest.mark.parametrize(("method", "settings"), [*map(form, FORMS)])
FAMILIES = {"unet": tiny.unet, "dit": tiny.tiny_dit}
UNTRAINED = {"unet": {}, "dit": {"class_embedding": False}}
every_family = pytest.mark.parametrize("family", FAMILIES)


def attached(model, method, settings, seed=0):
    return methods.attach(model, method, settings, seed)


def drawn(attachment, scale=0.3):
    """The attachment with random parameters."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in attachment.trainable.values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return attachment


def by_layer(attachment):
    """Path of a layer -> name of a parameter -> its value; shared ones stand in every layer."""
    layers = {}
    for name, value in attachment.model.named_parameters(remove_duplicate=False):
        layer, adapter, _ = name.partition(".default")
        if adapter:
            path, _, parameter = layer.rpartition(".")
            layers.setdefault(path, {})[parameter] = value.detach().double()
    return layers


# --- formulas, written from the papers ----------------------------------------------------


def low_rank(p, s, weight):
    scale = s.alpha / (s.rank**0.5 if s.rslora else s.rank)
    changed = weight + scale * p["lora_B"] @ p["lora_A"]
    if not s.dora:
        return changed
    return p["lora_magnitude_vector"][:, None] * changed / changed.norm(dim=1, keepdim=True)


def hadamard(p, s, weight):
    product = (p["hada_w1_a"] @ p["hada_w1_b"]) * (p["hada_w2_a"] @ p["hada_w2_b"])
    return weight + s.alpha / s.rank * product


def kronecker(p, s, weight):
    large = p["lokr_w2"] if "lokr_w2" in p else p["lokr_w2_a"] @ p["lokr_w2_b"]
    return weight + s.alpha / s.rank * torch.kron(p["lokr_w1"], large)


def scaled(p, s, weight):
    return p["ia3_l"] * weight


def rotated(p, s, weight):
    rows, columns = torch.triu_indices(s.block_size, s.block_size, 1)
    blocks, one = [], torch.eye(s.block_size, dtype=torch.float64)
    for values in p["oft_R"]:
        q = torch.zeros_like(one)
        q[rows, columns], q[columns, rows] = values, -values
        blocks.append((one + q) @ torch.linalg.inv(one - q))
        torch.testing.assert_close(blocks[-1] @ blocks[-1].T, one)
    return weight @ torch.block_diag(*blocks)


FORMULAS = {
    "lora": low_rank, "loha": hadamard, "lokr": kronecker, "ia3": scaled, "oft": rotated,
}  # fmt: skip


@every_family
@every_form
def test_merged_weights_are_the_papers_formula(family, method, settings):
    base = FAMILIES[family]()
    attachment = drawn(attached(copy.deepcopy(base), method, settings))
    layers = by_layer(attachment)
    attachment.merge()
    for path, layer in base.named_modules():
        if not isinstance(layer, torch.nn.Linear):
            continue
        found, expected = attachment.model.get_submodule(path), layer.weight.double()
        if path in layers:
            expected = FORMULAS[method](layers[path], attachment.settings, expected)
            assert (found.weight - layer.weight).abs().max() > 1e-3
        torch.testing.assert_close(found.weight.double(), expected, rtol=0, atol=1e-5)
        if layer.bias is not None:  # (IA)³ scales what the layer puts out, its bias too
            of_outputs = method == "ia3" and path in layers and not path.endswith("net.2")
            factor = layers[path]["ia3_l"].flatten() if of_outputs else 1.0
            torch.testing.assert_close(found.bias.double(), layer.bias.double() * factor)


# --- where ------------------------------------------------------------------------------


QKV = ("to_q", "to_k", "to_v")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")


# The tiny U-Net has 4 transformer blocks (self- and cross-attention), the DiT 2 (self-attention).
@pytest.mark.parametrize(
    ("family", "method", "settings", "layers", "ends"),
    [
        pytest.param("unet", "lora", {}, 4 * 6, QKV, id="unet-lora"),
        pytest.param(
            "unet", "lora", {"target": "attention"}, 4 * 8, (*QKV, "to_out.0"), id="unet-attention"
        ),
        pytest.param(
            "unet", "loha", {"target": "attention+ff"}, 4 * 10,
            (*QKV, "to_out.0", *FEED_FORWARD), id="unet-attention-and-ff",
        ),
        pytest.param("unet", "oft", {"block_size": 2}, 4 * 6, QKV, id="unet-oft"),
        pytest.param("unet", "ia3", {}, 4 * 5, ("to_k", "to_v", "ff.net.2"), id="unet-ia3"),
        pytest.param("dit", "lora", {}, 2 * 3, QKV, id="dit-lora"),
        pytest.param(
            "dit", "loha", {"target": "attention"}, 2 * 4, (*QKV, "to_out.0"), id="dit-attention"
        ),
        pytest.param(
            "dit", "lokr", {"target": "attention+ff"}, 2 * 6,
            (*QKV, "to_out.0", *FEED_FORWARD), id="dit-attention-and-ff",
        ),
        pytest.param("dit", "ia3", {}, 2 * 3, ("to_k", "to_v", "ff.net.2"), id="dit-ia3"),
    ],
)  # fmt: skip
def test_layers_are_those_of_the_target(family, method, settings, layers, ends):
    changed = by_layer(attached(FAMILIES[family](), method, settings))
    assert len(changed) == layers
    assert {end for end in ends for path in changed if path.endswith(f".{end}")} == set(ends)
    assert all(path.endswith(ends) for path in changed)


@every_family
def test_fused_projections_share_one_a(family):
    fused = attached(FAMILIES[family](), "lora", {"fused": True})
    layers = by_layer(fused)
    for path, own in layers.items():
        parent, _, part = path.rpartition(".")
        first = f"{parent}.to_{'k' if 'attn2' in path else 'q'}"
        shared = part != "to_q" or first == path
        assert torch.equal(own["lora_A"], layers[first]["lora_A"]) == shared
    alone = attached(FAMILIES[family](), "lora", {})
    assert len(alone.trainable) - len(fused.trainable) == {"unet": 4 * 3, "dit": 2 * 2}[family]


@pytest.mark.parametrize(
    ("method", "given", "problem"),
    [
        ("lora", {"rank": 0}, "rank: 0"),
        ("lora", {"target": "all"}, "target: 'all'"),
        (
            "lora",
            {"target": "text_encoder"},
            r"target: 'text_encoder': no text encoder .* once, .* allowed: qkv, attention, attent",
        ),
        (
            "peft",
            {"peft_type": "LORA", "target": "attention+text"},
            "target: 'attention.text': no text .*, attention.ff, resnets",
        ),
        ("lora", {"dropout": 1.0}, "dropout: 1.0"),
        ("lora", {"alpha": 0.5}, "alpha: 0.5"),
        ("lokr", {"factor": 1}, "factor: 1"),
        ("ia3", {"target": "qkv"}, "target: unknown key"),
        ("oft", {"block_size": 1}, "block_size: 1"),
    ],
    ids=str,
)
def test_bad_settings_are_named(method, given, problem):
    with pytest.raises(UserError, match=problem):
        methods.validated(method, given)


def test_block_size_must_divide_every_layers_inputs():
    unet = tiny.unet()  # 8, 12 and 16 inputs
    with pytest.raises(UserError, match="block_size: 8: .* allowed on this base: 2, 4$"):
        attached(unet, "oft", {"block_size": 8})
    attached(unet, "none", {})


# --- the start ----------------------------------------------------------------------------


@every_family
@every_form
def test_start_values_are_pefts_distribution(family, method, settings):
    """What peft draws is drawn from the same distribution; what it does not draw is the same."""
    ours = attached(FAMILIES[family](), method, settings | UNTRAINED[family], seed=1)
    config = methods.get(method).peft_config(ours.settings, by_layer(ours))
    theirs = [pefts_own(FAMILIES[family](), config, seed) for seed in (0, 1)]
    found, expected = [], []
    for name, parameter in ours.trainable.items():
        values = parameter.detach(), *(model[name] for model in theirs)
        if torch.equal(values[1], values[2]):
            assert torch.equal(values[0], values[1])
        else:
            fan_in = parameter.shape[1]
            found += (values[0] * fan_in**0.5).flatten().tolist()
            expected += (values[1] * fan_in**0.5).flatten().tolist()
    assert bool(found) == (method not in ("ia3", "oft"))
    if found:
        assert max(map(abs, found)) <= 1
        assert stats.ks_2samp(found, expected).pvalue > 0.01
        assert len(set(found)) > 0.99 * len(found)


def pefts_own(model, config, seed):
    """Name -> start value, as peft's public function injects them."""
    torch.manual_seed(seed)
    peft.inject_adapter_in_model(copy.deepcopy(config), model)
    return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}


@every_form
def test_start_values_depend_on_seed_and_name_alone(method, settings):
    unet = tiny.unet()
    larger = UNet2DConditionModel(**{**unet.config, "layers_per_block": 2})
    again = tiny.unet()
    before = torch.get_rng_state()
    here = attached(unet, method, settings, seed=5).trainable
    there = attached(larger, method, settings, seed=5).trainable
    other = attached(again, method, settings, seed=6).trainable
    assert torch.equal(torch.get_rng_state(), before)
    # DoRA's lengths are those of the base's weights.
    common = {n for n in here.keys() & there.keys() if "magnitude" not in n}
    assert len(common) > 10
    assert all(torch.equal(here[n], there[n]) for n in common)
    changed = {n for n in here if not torch.equal(here[n], other[n])}
    assert bool(changed) == (method not in ("ia3", "oft"))


# --- training -----------------------------------------------------------------------------


def fit(checkpoint, method, settings, on_step=None, **changes):
    attachment = attached(tiny.unet(), method, settings)
    options = {"on_step": on_step, "dropouts": attachment.dropouts}
    if on_step is not None:
        options["checkpoint_seconds"] = 0.0
    model, own = attachment.model, attachment.trainable
    task, process = tiny.task(), tiny.process()
    resolved = tiny.SETTINGS | changes
    result = training.fit(model, own, task, process, 0.5, resolved, 0, checkpoint, **options)
    return attachment, result


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a form's training gives: a function that trains each form once."""
    found, folder = {}, tmp_path_factory.mktemp("whole")

    def fitted(method, settings):
        key = f"{method} {settings}"
        if key not in found:
            found[key] = fit(folder / "unused.safetensors", method, settings)[1]
        return found[key]

    return fitted


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        *map(form, FORMS),
        pytest.param("lora", {"rank": 2, "dropout": 0.5}, id="dropout", marks=pytest.mark.slow),
        pytest.param("lora", {"rank": 2, "dropout": 0.5, "dora": True}, id="DoRA-dropout"),
    ],
)
def test_resume_is_exact(tmp_path, whole, method, settings):
    class Stop(Exception):
        pass

    def interrupt(step):
        if step == 4:
            raise Stop

    checkpoint, expected = tmp_path / "c.safetensors", whole(method, settings)
    with pytest.raises(Stop):
        fit(checkpoint, method, settings, interrupt)
    assert checkpoint.exists()
    _, resumed = fit(checkpoint, method, settings)
    assert resumed.losses == expected.losses
    assert all(torch.equal(v, resumed.parameters[n]) for n, v in expected.parameters.items())


@every_training
def test_bf16_follows_single_precision(tmp_path, whole, method, settings):
    exact = whole(method, settings)
    _, rough = fit(tmp_path / "b.safetensors", method, settings, precision="bf16")
    assert {v.dtype for v in rough.parameters.values()} == {torch.float32}
    assert rough.losses != exact.losses
    assert rough.losses == pytest.approx(exact.losses, rel=0.05)


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
def test_dropout_is_at_work_in_training_only(tmp_path, dora):
    settings = {"rank": 2, "dora": dora}
    attachment, dropped = fit(tmp_path / "a.safetensors", "lora", settings | {"dropout": 0.5})
    _, plain = fit(tmp_path / "b.safetensors", "lora", settings)
    assert dropped.losses[0] == plain.losses[0]  # B is zero
    assert dropped.losses[3:] != plain.losses[3:]
    assert not any(module.training for module in attachment.model.modules())
    inputs = torch.randn(2, 4, 4, 4), 3, torch.randn(2, 5, 12)
    with torch.no_grad():
        assert torch.equal(attachment.model(*inputs)[0], attachment.model(*inputs)[0])


# --- jobs ---------------------------------------------------------------------------------


JOB = """
import sys, torch
from fitspace.core import imports
imports.import_only_models()
sys.path.insert(0, {tests!r})
import tiny
from fitspace import methods
attachment = methods.attach(tiny.unet(), "oft", {{"block_size": 4}}, 0)
inputs = torch.zeros(1, 4, 4, 4), 3, torch.zeros(1, 5, 12)
attachment.model(*inputs).sample.sum().backward()
print(all(p.grad is not None for p in attachment.trainable.values()))
"""


def test_jobs_that_import_only_models_import_peft_when_it_is_needed():
    code = JOB.format(tests=str(Path(__file__).parents[1]))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"


@pytest.mark.slow
def test_stages_of_a_study_run_as_jobs(tmp_path):
    """train and sample through the command line, each a process of its own, as rules call them."""
    from project import content, images

    (tmp_path / "models").symlink_to(ROOT / "models")
    images(tmp_path / "images")
    study = content() | dict(
        arms=[{"method": "lora", "factors": {"rank": [1, 2]}}],
        seeds=[0],
        analysis={"factors": ["rank"], "responses": ["fd_effnet"]},
    )
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    code = (
        "from pathlib import Path; from fitspace.plan import load_study;"
        "from fitspace.plan import build_plan;"
        "stages = build_plan(load_study(Path('study.yaml'))).stages;"
        "print(*(f'{s}|{f}' for s, f in stages), sep='\\n')"
    )
    folders = dict(line.split("|") for line in _python(tmp_path, "-c", code).split())
    for stage in ("prepare", "train", "sample"):
        _python(tmp_path, "-m", "fitspace.cli", stage, "study.yaml", folders[stage])
    assert (tmp_path / "results/sample" / folders["sample"] / "samples.safetensors").is_file()


def _python(folder, *arguments):
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
