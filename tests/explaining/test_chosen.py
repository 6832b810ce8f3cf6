"""The blocks that DiffFit's factors chose, from trained adapters to a study's `blocks`."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_dit, unet

from fitspace import methods
from fitspace.cli import main
from fitspace.core.errors import UserError
from fitspace.explaining.chosen import named, ranked
from fitspace.methods.blocks import blocks_in_order

MODELS = {"unet": unet, "dit": tiny_dit}


def saved(path, kind, moved, given=None):
    """An adapter whose scale factors moved by this much, by block; its norms' by far more."""
    model = MODELS[kind]()
    attachment = methods.attach(model, "difffit", {"share": 1.0} | (given or {}), seed=0)
    with torch.no_grad():
        for name, parameter in attachment.trainable.items():
            if name.endswith("gamma"):
                of_norm = f"{name.removesuffix('gamma')}beta" in attachment.trainable
                block = next(b for b in blocks_in_order(model) if name.startswith(f"{b}."))
                parameter.fill_(9.0 if of_norm else 1 - moved[block])
    methods.save(attachment, path, {})
    return path


@pytest.mark.parametrize("kind", MODELS)
def test_blocks_are_ranked_by_their_factors_and_a_method_takes_the_line(kind, tmp_path, capsys):
    order = list(blocks_in_order(MODELS[kind]()))
    moved = [{b: 0.1 * (i + 1 + s) for i, b in enumerate(order)} for s in (0, 1)]
    paths = [saved(tmp_path / f"{i}.safetensors", kind, own) for i, own in enumerate(moved)]
    found = ranked(paths)
    assert list(found) == order[::-1]
    assert found == pytest.approx({b: 0.1 * (i + 1.5) for i, b in enumerate(order)}, abs=1e-6)
    assert main(["blocks", *map(str, paths), "--keep", "1"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == f"blocks: {order[-1]}"
    trained = methods.attach(MODELS[kind](), "bitfit", {"blocks": line[8:]}, seed=0).trainable
    heads = (f"{order[-1]}.", *(["transformer_blocks.0.norm1.emb"] if kind == "dit" else []))
    assert all(name.startswith(heads) for name in trained)


NAMED = {
    "a range": (["b.transformer_blocks.10", "b.transformer_blocks.9"], "b.transformer_blocks.9-10"),
    "apart": (["t.0", "t.2"], "t.0+t.2"),
    "of two parts": (["up.0.t.0", "up.1.t.0"], "up.0.t.0+up.1.t.0"),
}


@pytest.mark.parametrize(("blocks", "text"), NAMED.values(), ids=NAMED)
def test_blocks_are_named_as_settings_name_them(blocks, text):
    assert named(blocks) == text


def test_what_has_no_factors_is_refused(tmp_path, capsys):
    of = {b: 0.1 for b in blocks_in_order(unet())}
    whole = saved(tmp_path / "a.safetensors", "unet", of)
    half = saved(tmp_path / "b.safetensors", "unet", of, {"share": 0.5})
    none = saved(tmp_path / "c.safetensors", "unet", of, {"gamma": "none"})
    with pytest.raises(UserError, match=r"b\.safetensors: has scale factors in other blocks"):
        ranked([whole, half])
    with pytest.raises(UserError, match=r"c\.safetensors: has no scale factors; allowed"):
        ranked([none])
    assert main(["blocks", str(whole), "--keep", "9"]) == 2
    assert "--keep: 9; allowed: 1 to 4" in capsys.readouterr().err
