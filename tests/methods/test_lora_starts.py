"""Where LoRA starts, and at which rate its B learns."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from safetensors.torch import load_file

from fitspace import methods, training
from fitspace.core.errors import UserError
from fitspace.core.imports import import_peft
from fitspace.methods.export import KOHYA as KOHYA_FILE
from fitspace.methods.export import export

peft = import_peft()

FROZEN = {"class_embedding": False}
INPUTS = (
    torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1)),
    torch.tensor([3, 700]),
    torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(2)),
)
FROM_WEIGHTS = {
    "PiSSA": {"init": "pissa", "rank": 3, "alpha": 5},
    "rsLoRA from PiSSA": {"init": "pissa", "rank": 4, "alpha": 3, "rslora": True},
    "OLoRA": {"init": "olora", "rank": 3, "target": "attention+ff"},
}
from_weights = pytest.mark.parametrize("own", FROM_WEIGHTS.values(), ids=FROM_WEIGHTS)


@torch.no_grad()
def answer(model):
    return model(*INPUTS).sample


def by_layer(attachment, part):
    """Path of a layer -> its A or B."""
    end = f".lora_{part}.default.weight"
    return {n.removesuffix(end): p for n, p in attachment.trainable.items() if n.endswith(end)}


@from_weights
def test_start_is_the_papers_decomposition(own):
    base = tiny.unet()
    found = methods.attach(copy.deepcopy(base), "lora", own, seed=0)
    rank, b_of = own["rank"], by_layer(found, "B")
    scale = own.get("alpha", 8) / (rank**0.5 if own.get("rslora") else rank)
    for path, a in by_layer(found, "A").items():
        weight = base.get_submodule(path).weight.detach().double()
        if own["init"] == "pissa":  # the best approximation of this rank
            u, s, v = torch.linalg.svd(weight, full_matrices=False)
            expected = u[:, :rank] @ torch.diag(s[:rank]) @ v[:rank]
            torch.testing.assert_close(
                scale * (b_of[path] @ a).double(), expected, atol=5e-5, rtol=0
            )
        else:  # orthonormal columns, and the product with R is W where the rank is full
            b = b_of[path].double()
            torch.testing.assert_close(b.T @ b, torch.eye(rank).double(), atol=1e-5, rtol=0)
            torch.testing.assert_close(b @ (b.T @ weight), b @ a.double(), atol=1e-5, rtol=0)


@from_weights
def test_learns_what_pefts_own_learns(own):
    """peft takes the start out of the base's weights, here the layer takes it out of its output."""
    base = tiny.unet()
    ours = methods.attach(copy.deepcopy(base), "lora", own, seed=0)
    config = methods.get("lora").peft_config(ours.settings, by_layer(ours, "A"))
    theirs = copy.deepcopy(base).requires_grad_(False)
    peft.inject_adapter_in_model(config, theirs)
    parameters = {n: p for n, p in theirs.named_parameters() if p.requires_grad}
    assert parameters.keys() == ours.trainable.keys()
    for model, own_parameters in ((ours.model, ours.trainable), (theirs, parameters)):
        optimizer = torch.optim.SGD(own_parameters.values(), lr=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            model(*INPUTS).sample.square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(answer(ours.model), answer(theirs), rtol=0, atol=1e-5)
    assert (answer(ours.model) - answer(base)).abs().max() > 1e-3


@from_weights
def test_the_base_keeps_its_bits_and_the_start_is_exact_in_half_precision(own):
    base = tiny.unet().bfloat16()
    model = copy.deepcopy(base)
    attachment = methods.attach(model, "lora", own, seed=0)
    inputs = INPUTS[0].bfloat16(), INPUTS[1], INPUTS[2].bfloat16()
    with torch.no_grad():
        assert torch.equal(model(*inputs).sample, base(*inputs).sample)
    attachment.remove()
    own = dict(model.named_parameters())
    assert all(torch.equal(own[n], p) for n, p in base.named_parameters())


@from_weights
def test_strength_and_export(own, tmp_path):
    base = tiny.unet()
    attachment = methods.attach(copy.deepcopy(base), "lora", own, seed=0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in attachment.trainable.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    path, merged = tmp_path / "a.safetensors", {}
    methods.save(attachment, path, {})
    for share in (0.0, 0.3, 1.0):
        model = copy.deepcopy(base)
        methods.load(model, path, share).merge()
        merged[share] = dict(model.named_parameters())
    for name, before in base.named_parameters():
        expected = before + 0.3 * (merged[1.0][name] - before)
        assert torch.allclose(merged[0.3][name], expected, atol=1e-5), name
        assert torch.allclose(merged[0.0][name], before, atol=1e-5), name
    export(path, tmp_path / "out")
    read = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "out")
    torch.testing.assert_close(answer(read), answer(attachment.model), rtol=0, atol=1e-5)
    model = copy.deepcopy(base)
    name = "pytorch_lora_weights.safetensors"
    model.load_lora_adapter(str(tmp_path / "out"), weight_name=name, prefix="unet")
    torch.testing.assert_close(answer(model), answer(attachment.model), rtol=0, atol=1e-5)


KOHYA = {
    "attention and ff": {"target": "attention+ff", "rank": 3, "alpha": 5},
    "rsLoRA": {"rank": 4, "alpha": 3, "rslora": True},
    "one A": {"rank": 2, "fused": True},
    "from the weights": {"init": "pissa", "rank": 3, "alpha": 5},
}


@pytest.mark.parametrize("own", KOHYA.values(), ids=KOHYA)
def test_kohyas_names_are_read_by_diffusers(own, tmp_path):
    from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader

    base = tiny.unet()
    attachment = methods.attach(copy.deepcopy(base), "lora", own, seed=0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in attachment.trainable.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    methods.save(attachment, tmp_path / "a.safetensors", {})
    written = export(tmp_path / "a.safetensors", tmp_path / "out")
    assert [path.name for path in written][2:] == ["pytorch_lora_weights.safetensors", KOHYA_FILE]
    for scaled in (1, 2):
        model, state = copy.deepcopy(base), load_file(tmp_path / "out" / KOHYA_FILE)
        names = {name.partition(".")[2] for name in state}
        assert names == {"lora_down.weight", "lora_up.weight", "alpha"}
        state |= {n: v * scaled for n, v in state.items() if n.endswith("alpha")}
        read, alphas = Loader.lora_state_dict(state, unet_config=model.config)
        Loader.load_lora_into_unet(read, alphas, model)
        apart = (answer(model) - answer(attachment.model)).abs().max()
        assert apart < 1e-5 if scaled == 1 else apart > 1e-3  # a reader takes alpha at its word


def test_what_kohyas_names_have_no_place_for_is_not_written(tmp_path):
    for i, (model, own) in enumerate(((tiny.unet(), {"dora": True}), (tiny.tiny_dit(), FROZEN))):
        attachment = methods.attach(model, "lora", own, seed=0)
        methods.save(attachment, tmp_path / f"{i}.safetensors", {})
        export(tmp_path / f"{i}.safetensors", tmp_path / f"{i}")
        assert not (tmp_path / f"{i}" / KOHYA_FILE).exists()


def test_gaussian_and_orthogonal_starts():
    gaussian = methods.attach(tiny.unet(), "lora", {"init": "gaussian", "rank": 64}, seed=0)
    values = torch.cat([a.flatten() for a in by_layer(gaussian, "A").values()])
    assert values.std().item() == pytest.approx(1 / 64, rel=0.05)  # peft's: σ = 1/r
    assert not any(b.any() for b in by_layer(gaussian, "B").values())
    orthogonal = methods.attach(tiny.unet(), "lora", {"init": "orthogonal", "rank": 4}, seed=0)
    b_of = by_layer(orthogonal, "B")
    for path, a in by_layer(orthogonal, "A").items():
        assert a.abs().max() > 1e-3
        assert b_of[path].abs().max() > 1e-3
        assert (b_of[path] @ a).abs().max() < 1e-6


REFUSED = {
    "images": ({"init": "eva"}, "sees? of a task's images|see of a task's images"),
    "quantized": ({"init": "loftq"}, "quantized"),
    "an odd rank": ({"init": "orthogonal", "rank": 3}, "even rank"),
    "lengths": ({"init": "pissa", "dora": True}, "dora: True"),
    "one A": ({"init": "olora", "fused": True}, "A of its own"),
    "a rank above": ({"min_rank": 9}, "is above rank, 8"),
    "lengths by time": ({"min_rank": 2, "dora": True}, "dora: True"),
    "a ratio": ({"lr_ratio": 0.0}, "lr_ratio: 0.0"),
}


@pytest.mark.parametrize(("own", "said"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_go_together(own, said):
    with pytest.raises(UserError, match=said):
        methods.attach(tiny.unet(), "lora", own, seed=0)


def test_defaults_are_no_part_of_a_key():
    settings = methods.validated("lora", {"rank": 4})
    assert {"init", "lr_ratio", "min_rank"}.isdisjoint(settings.resolved("unet"))
    given = methods.validated("lora", {"init": "pissa", "lr_ratio": 16.0}).resolved("unet")
    assert (given["init"], given["lr_ratio"]) == ("pissa", 16.0)


def test_b_learns_faster_by_the_ratio(tmp_path):
    """The first step of AdamW is the learning rate in every coordinate that has a gradient."""

    def moved(ratio):
        attachment = methods.attach(
            tiny.unet(), "lora", {"init": "orthogonal", "rank": 2, "lr_ratio": ratio}, seed=0
        )
        before = {n: p.detach().clone() for n, p in attachment.trainable.items()}
        changes = {"steps": 1, "warmup_steps": 0, "weight_decay": 0.0, "ema": None}
        settings = tiny.SETTINGS | changes | {"lr": 1e-3, "lr_schedule": "constant"}
        path = tmp_path / f"{ratio}.safetensors"
        result = training.fit(
            attachment.model, attachment.trainable, tiny.task(), tiny.process(), 0.5, settings, 0,
            path, rates=attachment.rates,
        )  # fmt: skip
        found = {n: (v - before[n]).abs().max().item() for n, v in result.parameters.items()}
        return {
            part: max(v for n, v in found.items() if f"lora_{part}" in n) for part in ("A", "B")
        }

    for ratio in (1.0, 16.0):
        found = moved(ratio)
        assert found["A"] == pytest.approx(1e-3, rel=0.01)
        assert found["B"] == pytest.approx(ratio * 1e-3, rel=0.01)


@pytest.mark.parametrize("init", ["gaussian", "pissa"])
def test_rank_by_time_is_the_papers_formula(init):
    """At a time step the model is the one whose components above r(t) are cut off."""
    rank, least, base = 6, 2, tiny.unet()
    given = {"rank": rank, "min_rank": least, "init": init}
    found = methods.attach(copy.deepcopy(base), "lora", given, seed=0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in found.trainable.values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    x, _, text = INPUTS
    times = torch.tensor([0, 240, 260, 999])
    expected = [6, 5, 4, 2]  # int((1000 - t) / 1000 * (6 - 2)) + 2
    scale = 8 / rank
    outputs = found.model(x[:1].expand(4, -1, -1, -1), times, text[:1].expand(4, -1, -1)).sample
    for time, count, output in zip(times, expected, outputs, strict=True):
        cut = copy.deepcopy(base)
        with torch.no_grad():
            for path, a in by_layer(found, "A").items():
                b = by_layer(found, "B")[path]
                change = b[:, :count] @ a[:count]
                if init == "pissa":
                    start = found.frozen[f"{path}.lora_start.default.start_B"]
                    change -= (
                        start[:, :count]
                        @ (found.frozen[f"{path}.lora_start.default.start_A"][:count])
                    )
                cut.get_submodule(path).weight.add_(scale * change)
            alone = cut(x[:1], time, text[:1]).sample[0]
        torch.testing.assert_close(output, alone, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="cannot be merged"):
        found.merge()


def test_a_rank_by_time_is_not_exported(tmp_path):
    found = methods.attach(tiny.unet(), "lora", {"min_rank": 2}, seed=0)
    methods.save(found, tmp_path / "a.safetensors", {})
    with pytest.raises(UserError, match="depends on time"):
        export(tmp_path / "a.safetensors", tmp_path / "out")
