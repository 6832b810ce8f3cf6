"""`blocks`: methods put into parts of the denoiser."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch

from fitspace import methods
from fitspace.core.errors import UserError
from fitspace.methods.blocks import blocks_in_order

# Every method that has `blocks`, with settings for tiny models.
METHODS = {
    "adapter": {"input": "SA_out", "output": "FFN_in", "width": 3},
    "adaptformer": {"width": 3},
    "bitfit": {},
    "custom_diffusion": {},
    "difffit": {"biases": False, "norms": False, "share": 1.0},
    "full": {},
    "ia3": {},
    "loha": {"rank": 2},
    "lokr": {},
    "lora": {"rank": 2},
    "oft": {"block_size": 4},
    "peft": {"peft_type": "VERA", "r": 4},
    "svdiff": {},
    "vpt": {},
}
ONLY = {"vpt": ("dit",), "custom_diffusion": ("unet",)}
FAMILIES = {"unet": tiny.unet, "dit": tiny.tiny_dit}
CASES = [(m, f) for m in METHODS for f in ONLY.get(m, FAMILIES)]
PARTS = {
    "unet": {
        "up_blocks": ("up_blocks.",),
        "down_blocks.0+mid_block": ("down_blocks.0.", "mid_block."),
    },
    "dit": {"transformer_blocks.1": ("transformer_blocks.1.",)},
}


def own(method, family):
    frozen = {"class_embedding": False} if family == "dit" and method != "full" else {}
    return METHODS[method] | frozen | ({"final_layer": False} if method == "vpt" else {})


def test_every_method_is_tried():
    having = {m for m in methods.METHODS if "blocks" in methods.get(m).Settings.model_fields}
    assert having == set(METHODS) == set(methods.METHODS) - {"none"}


@pytest.mark.parametrize(("method", "family"), CASES, ids=map("-".join, CASES))
def test_method_is_in_its_blocks_alone(method, family):
    base = FAMILIES[family]()
    every = methods.attach(copy.deepcopy(base), method, own(method, family), seed=3).trainable
    for blocks, heads in PARTS[family].items():
        model = copy.deepcopy(base)
        found = methods.attach(model, method, own(method, family) | {"blocks": blocks}, seed=3)
        wanted = {name for name in every if name.startswith(heads)}
        assert set(found.trainable) == wanted
        assert all(torch.equal(p, every[name]) for name, p in found.trainable.items())
        found.remove()
        assert list(model.state_dict()) == list(base.state_dict())


SHARES = {
    "first 50%": slice(0, 2), "last 25%": slice(3, 4), "first 99%": slice(0, 4),
}  # fmt: skip


@pytest.mark.parametrize("blocks", SHARES)
def test_shares_count_the_transformer_blocks_in_order(blocks):
    model = tiny.unet()
    order = list(blocks_in_order(model))
    # A U-Net computes down, middle, up.
    assert [path.split("_")[0] for path in order] == ["down", "mid", "up", "up"]
    found = methods.attach(model, "lora", {"blocks": blocks}, seed=0).trainable
    changed = {path for path in order if any(n.startswith(f"{path}.") for n in found)}
    assert changed == set(order[SHARES[blocks]])


def test_difffits_factors_and_what_goes_with_them():
    named = methods.attach(tiny.unet(), "difffit", {"blocks": "mid_block"}, seed=0).trainable
    gammas = {name for name in named if name.endswith("gamma")}
    assert gammas
    assert all(name.startswith("mid_block.") for name in gammas)
    assert any(name.startswith("conv_in") for name in named)
    own = {"blocks": "mid_block", "only_scaled": True}
    alone = methods.attach(tiny.unet(), "difffit", own, seed=0).trainable
    block = next(path for path in blocks_in_order(tiny.unet()) if path.startswith("mid_block"))
    assert gammas < alone.keys()
    assert all(name.startswith(f"{block}.") for name in alone)
    assert {n for n in named if n.startswith(f"{block}.")} == alone.keys()


def test_a_new_class_table_is_trained_with_full_blocks():
    from fitspace import bases

    model = tiny.tiny_dit()
    bases.new_classes(model, 5, seed=3)
    found = methods.attach(model, "full", {"blocks": "transformer_blocks.1"}, seed=0).trainable
    assert bases.class_table(model)[0] in found


REFUSED = {
    "no part": ("lora", {"blocks": "midblock"}, "blocks: 'midblock': the denoiser has no part"),
    "beyond": ("bitfit", {"blocks": "up_blocks.0-9"}, "no part 'up_blocks.2'"),
    "nothing there": ("lora", {"blocks": "conv_in"}, "no layer to change is there"),
    "no bias": ("bitfit", {"blocks": "conv_act"}, "no bias is there"),
    "too little": ("lora", {"blocks": "first 10%"}, "less than half a block"),
    "no share": ("lora", {"blocks": "first 0.5"}, "blocks: 'first 0.5'"),
    "no end": ("difffit", {"blocks": "middle"}, "no part 'middle'"),
}


@pytest.mark.parametrize(("method", "own", "said"), REFUSED.values(), ids=REFUSED)
def test_blocks_that_are_none(method, own, said):
    with pytest.raises(UserError, match=said):
        methods.attach(tiny.unet(), method, own, seed=0)


def test_all_blocks_are_no_part_of_a_key():
    for method, given in METHODS.items():
        settings = methods.validated(method, given).resolved("unet")
        if method == "difffit":
            assert (settings["blocks"], settings["share"]) == ("first", 1.0)
            assert "only_scaled" not in settings
        else:
            assert "blocks" not in settings
    named = methods.validated("difffit", {"blocks": "up_blocks"}).resolved("unet")
    assert "share" not in named
