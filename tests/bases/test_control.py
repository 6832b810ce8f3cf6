"""A U-Net that is told of an image: as its base at the start, trained, merged, taken off."""

from __future__ import annotations

import pytest
import tiny
import torch

from fitspace import bases, methods
from fitspace.core.errors import UserError

CONTROLS = {
    "controlnet": bases.Control("controlnet", (16, 32, 96)),
    "concat": bases.Control("concat"),
}
METHODS = {
    "full": ("full", {}),
    "lora": ("lora", {"rank": 2}),
    "lora by time": ("lora", {"rank": 4, "min_rank": 1}),
    "difffit": ("difffit", {}),
    "bitfit": ("bitfit", {}),
    "adapter": ("adapter", {"input": "CA_out", "output": "FFN_in", "width": 3}),
    "svdiff": ("svdiff", {}),
}
CASES = [(kind, name) for kind in CONTROLS for name in METHODS]
every = pytest.mark.parametrize(("kind", "name"), CASES, ids=map("-".join, CASES))


def told(kind: str) -> dict:
    g = torch.Generator().manual_seed(1)
    shape = (2, 3, 16, 16) if kind == "controlnet" else (2, 4, 4, 4)
    return {
        "sample": torch.randn(2, 4, 4, 4, generator=g),
        "t": torch.tensor([3, 700]),
        "words": torch.randn(2, 5, 12, generator=g),
        "given": torch.rand(shape, generator=g),
    }


def asked(model, x: dict, **given) -> torch.Tensor:
    return model(x["sample"], x["t"], encoder_hidden_states=x["words"], **given).sample


def trained(model, kind: str, name: str) -> methods.Attachment:
    """The method of this name on the model, every trainable moved."""
    bases.add_control(model, CONTROLS[kind], seed=0)
    attachment = methods.attach(model, *METHODS[name], seed=0)
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in attachment.trainable.values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=g)
    return attachment


@every
@torch.no_grad()
def test_it_starts_from_the_base_learns_of_the_image_and_goes(kind, name):
    model, x = tiny.unet(), told(kind)
    before = asked(model, x)
    undo = bases.add_control(model, CONTROLS[kind], seed=0)
    attachment = methods.attach(model, *METHODS[name], seed=0)
    assert attachment.identity_at_start
    assert torch.equal(asked(model, x, given=x["given"]), before)
    attachment.remove()
    undo()
    assert torch.equal(asked(model, x), before)
    attachment = trained(model, kind, name)
    one = asked(model, x, given=x["given"])
    other = asked(model, x, given=x["given"].flip(0))
    assert not torch.allclose(one, before, atol=1e-3)
    assert not torch.allclose(one, other, atol=1e-4)


@every
@torch.no_grad()
def test_a_merged_one_is_a_plain_model_of_diffusers(kind, name):
    from diffusers import ControlNetModel, UNet2DConditionModel

    model, x = tiny.unet(), told(kind)
    attachment = trained(model, kind, name)
    expected = asked(model, x, given=x["given"])
    if attachment.fold is None:
        with pytest.raises(UserError, match="cannot be merged"):
            attachment.merge()
        return
    attachment.merge()
    if kind == "concat":
        plain = UNet2DConditionModel.from_config(model.config)
        plain.load_state_dict(model.state_dict())
        found = asked(plain.eval(), x | {"sample": torch.cat([x["sample"], x["given"]], 1)})
    else:
        copy = ControlNetModel.from_config(model.controlnet.config)
        copy.load_state_dict(model.controlnet.state_dict())
        down, middle = copy.eval()(x["sample"], x["t"], x["words"], x["given"], return_dict=False)
        more = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        found = asked(tiny.unet(), x, **more)
    assert torch.allclose(found, expected, atol=1e-5)


@every
@torch.no_grad()
def test_a_file_has_all_that_was_trained(kind, name, tmp_path):
    model, x = tiny.unet(), told(kind)
    attachment = trained(model, kind, name)
    expected = asked(model, x, given=x["given"])
    methods.save(attachment, tmp_path / "a.safetensors", {})
    again = tiny.unet()
    loaded = methods.load(again, tmp_path / "a.safetensors")
    assert torch.equal(asked(again, x, given=x["given"]), expected)
    loaded.remove()
    assert not hasattr(again, "controlnet") and not hasattr(again, "conv_given")
    assert torch.equal(asked(again, x), asked(tiny.unet(), x))


def test_only_the_copy_and_what_the_control_needs_are_trained():
    for name in METHODS:
        model = tiny.unet()
        of_model = {id(p) for p in model.parameters()}
        attachment = trained(model, "controlnet", name)
        needed = bases.control_parameters(model)
        assert attachment.trainable.keys() >= needed.keys()
        assert not of_model & {id(p) for p in attachment.trainable.values()}
        zero = [n for n in needed if "controlnet_down_blocks" in n or "controlnet_mid" in n]
        # A zero convolution for conv_in, each ResNet block and each downsampler, and the middle.
        assert len(zero) == 2 * (1 + 2 + 1 + 1)
    whole = trained(tiny.unet(), "controlnet", "full")
    assert {n.partition(".")[0] for n in whole.trainable} == {"controlnet"}
    assert len(whole.trainable) == len(list(whole.model.controlnet.named_parameters()))


def test_new_channels_are_what_twice_the_channels_have_more():
    model = tiny.unet()
    bases.add_control(model, CONTROLS["concat"], seed=0)
    attachment = methods.attach(model, "lora", {"rank": 1}, seed=0)
    own = [n for n in attachment.trainable if "lora" not in n]
    assert own == ["conv_given.weight"]
    assert model.conv_given.weight.shape == model.conv_in.weight.shape
    assert not model.conv_given.weight.any()


def test_what_is_drawn_depends_on_the_seed_alone():
    drawn = []
    for seed, before in ((0, 1), (0, 2), (1, 1)):
        model = tiny.unet()
        torch.manual_seed(before)
        state = torch.random.get_rng_state()
        bases.add_control(model, CONTROLS["controlnet"], seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        drawn.append(model.controlnet.controlnet_cond_embedding.conv_in.weight)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_what_cannot_be_told_is_refused():
    model = tiny.unet()
    bases.add_control(model, CONTROLS["concat"], seed=0)
    with pytest.raises(UserError, match="has the control 'concat' already"):
        bases.add_control(model, CONTROLS["controlnet"], seed=0)
    with pytest.raises(UserError, match="not on a base of the family 'dit'; allowed: img2img"):
        bases.add_control(tiny.tiny_dit(), CONTROLS["controlnet"], seed=0)


@torch.no_grad()
def test_a_strength_scales_new_channels_too_and_a_copy_has_none(tmp_path):
    x, outputs = told("concat"), []
    methods.save(trained(tiny.unet(), "concat", "bitfit"), tmp_path / "a.safetensors", {})
    for strength in (0.0, 1.0):
        model = tiny.unet()
        methods.load(model, tmp_path / "a.safetensors", strength)
        outputs.append(asked(model, x, given=x["given"]))
    assert torch.equal(outputs[0], asked(tiny.unet(), x))
    assert not torch.allclose(outputs[1], outputs[0], atol=1e-3)
    methods.save(trained(tiny.unet(), "controlnet", "lora"), tmp_path / "c.safetensors", {})
    with pytest.raises(UserError, match="zero convolutions"):
        methods.load(tiny.unet(), tmp_path / "c.safetensors", 0.5)


@pytest.mark.parametrize(("factor", "channels"), [(2, 2), (4, 3), (8, 4), (16, 5)])
def test_the_embedding_has_as_many_halvings_as_the_autoencoder(factor, channels, monkeypatch):
    from fitspace.bases import control

    monkeypatch.setattr(control, "_pixels", lambda ref: factor)
    found = bases.control_for("any", "controlnet").channels
    assert len(found) == channels and found[:4] == control.CHANNELS[:channels]
    assert bases.control_for("any", "img2img") is None is bases.control_for("any", None)
