"""Images larger than the base's: the positions a DiT sees, and what a study may ask for."""

from __future__ import annotations

import copy
from pathlib import Path

import diffusers
import numpy as np
import pytest
import tiny
import torch
import yaml
from diffusers.models.embeddings import get_2d_sincos_pos_embed

from fitspace import bases, methods
from fitspace.core.errors import UserError
from fitspace.methods.export import export
from fitspace.plan import build_plan, load_study
from fitspace.plan.checks import task_problems
from fitspace.study import Study, Task

ROOT = Path(__file__).parents[2]
every_factor = pytest.mark.parametrize("factor", [2, 3, 4])


@pytest.fixture
def dit():
    return tiny.tiny_dit()


def positions(model) -> torch.Tensor:
    """By row and column: (side, side, dim)."""
    grid = model.pos_embed
    return grid.pos_embed.unflatten(1, (grid.height, grid.width))[0]


def noise(side: int) -> tuple[torch.Tensor, ...]:
    x = torch.randn(2, 4, side, side, generator=torch.Generator().manual_seed(0))
    return x, torch.tensor([3, 700]), torch.tensor([1, 3])


# --- positions --------------------------------------------------------------------------


@every_factor
def test_coinciding_positions_are_the_bases_own(dit, factor):
    own = positions(dit).clone()
    bases.at_scale(dit, factor)
    finer = positions(dit)
    assert finer.shape == (4 * factor, 4 * factor, 8)
    if factor == 3:  # a third is no binary fraction
        torch.testing.assert_close(finer[::3, ::3], own, atol=1e-6, rtol=0)
    else:
        assert torch.equal(finer[::factor, ::factor], own)


@every_factor
def test_positions_between_are_fractions(dit, factor):
    """The sine-cosine code of (i/factor, j/factor), columns first (2212.09748's code)."""
    bases.at_scale(dit, factor)
    at = np.arange(4 * factor) / factor
    frequencies = 10_000.0 ** (-np.arange(2) / 2)
    angles = at[:, None] * frequencies
    code = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    rows, columns = np.meshgrid(range(4 * factor), range(4 * factor), indexing="ij")
    expected = np.concatenate([code[columns], code[rows]], axis=-1)
    torch.testing.assert_close(
        positions(dit).numpy(), expected.astype(np.float32), atol=1e-6, rtol=0
    )


@every_factor
def test_extrapolated_positions_are_counted_on(dit, factor):
    own = positions(dit).clone()
    undo = bases.at_scale(dit, factor, extrapolated=True)
    assert bases.extrapolates(dit)
    wide = positions(dit)
    assert torch.equal(wide[:4, :4], own)  # the base's own corner
    plain = get_2d_sincos_pos_embed(8, 4 * factor, base_size=4 * factor).float()
    assert torch.equal(wide.reshape(-1, 8), plain)
    undo()
    assert not bases.extrapolates(dit) and torch.equal(positions(dit), own)


def test_dit_xl_at_512_px():
    model = diffusers.DiTTransformer2DModel(num_layers=1, sample_size=32, num_embeds_ada_norm=3)
    assert model.inner_dim == 1152
    bases.at_scale(model, 2)
    expected = get_2d_sincos_pos_embed(1152, 32, base_size=16).float()
    assert torch.equal(model.pos_embed.pos_embed[0], expected)
    # What a DiT configured for 512 px would have: another grid.
    plain = get_2d_sincos_pos_embed(1152, 32, base_size=32).float()
    assert (model.pos_embed.pos_embed[0] - plain).abs().max() > 1


@every_factor
def test_the_model_computes_what_diffusers_does_on_a_larger_latent(dit, factor):
    untouched, batch = copy.deepcopy(dit), noise(8 * factor)
    bases.at_scale(dit, factor)
    with torch.no_grad():
        out = dit(*batch).sample
        assert torch.equal(out, untouched(*batch).sample)
    assert out.shape == (2, 8, 8 * factor, 8 * factor)


def test_positions_are_computed_once(dit, monkeypatch):
    bases.at_scale(dit, 2)

    def again(*_, **__):
        raise AssertionError("computed in the forward pass")

    monkeypatch.setattr("diffusers.models.embeddings.get_2d_sincos_pos_embed", again)
    dit(*noise(16))
    with pytest.raises(AssertionError, match="in the forward pass"):
        dit(*noise(8))


def test_it_is_undone(dit):
    own, config = positions(dit).clone(), dict(dit.config)
    undo = bases.at_scale(dit, 2)
    assert bases.scale(dit) == 2 and dit.config.sample_size == 16
    undo()
    assert bases.scale(dit) == 1 and dict(dit.config) == config
    assert torch.equal(positions(dit), own)


def test_a_unet_has_no_grid():
    model = tiny.unet()
    assert bases.scale(model) == 1
    with pytest.raises(UserError, match="scale: 2: UNet2DConditionModel .*DiTTransformer2DModel"):
        bases.at_scale(model, 2)


# --- adapters ---------------------------------------------------------------------------


@pytest.mark.parametrize("extrapolated", [False, True])
@pytest.mark.parametrize("method", ["bitfit", "vpt"])
def test_an_adapter_brings_its_scale(dit, tmp_path, method, extrapolated):
    base, path = copy.deepcopy(dit), tmp_path / "adapter.safetensors"
    bases.at_scale(dit, 2, extrapolated)
    attachment = methods.attach(dit, method, {}, 0)
    with torch.no_grad():
        for parameter in attachment.trainable.values():
            parameter.add_(0.1)
    methods.save(attachment, path, {})
    batch = noise(16)
    with torch.no_grad():
        expected, plain = dit(*batch).sample, base(*batch).sample
        loaded = methods.load(base, path)
        assert (bases.scale(base), bases.extrapolates(base)) == (2, extrapolated)
        assert torch.equal(base(*batch).sample, expected) and not torch.equal(expected, plain)
        loaded.remove()
        assert bases.scale(base) == 1 and base.config.sample_size == 8
        assert torch.equal(base(*batch).sample, plain)


def test_an_adapter_of_positions_beyond_the_bases_is_not_exported(dit, tmp_path):
    """Other programs interpolate the positions of larger images, whatever it was trained with."""
    path = tmp_path / "adapter.safetensors"
    bases.at_scale(dit, 2, extrapolated=True)
    methods.save(methods.attach(dit, "lora", {"class_embedding": False}, 0), path, {})
    with pytest.raises(UserError, match="trained with positions: extrapolated"):
        export(path, tmp_path / "out")


def test_an_adapter_at_the_bases_size_says_nothing_of_it(dit, tmp_path):
    path = tmp_path / "adapter.safetensors"
    methods.save(methods.attach(dit, "bitfit", {}, 0), path, {})
    assert "scale" not in methods.read(path)[0]


def test_an_adapter_that_does_not_fit_leaves_the_scale(dit, tmp_path):
    path, other = tmp_path / "adapter.safetensors", tiny.tiny_dit(classes=7)
    bases.at_scale(dit, 2)
    methods.save(methods.attach(dit, "bitfit", {}, 0), path, {})
    with pytest.raises(UserError, match="shape"):
        methods.load(other, path)
    assert bases.scale(other) == 1


# --- studies ----------------------------------------------------------------------------


def study(scale: int) -> dict:
    content = yaml.safe_load((ROOT / "tests/data/positions.yaml").read_text())
    content["tasks"] = [{**content["tasks"][0], "scale": scale}]
    return content


def test_a_unet_base_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study(2)))
    with pytest.raises(UserError) as caught:
        load_study(path)
    assert caught.value.problems == [
        f"{path}: tasks[0].scale: 2: base 'models/emoji-unet' is a U-Net; allowed: 1 (a DiT base "
        "takes more)"
    ]


@pytest.mark.parametrize("scale", [1, 2])
def test_a_dit_base_is_not(scale, monkeypatch):
    monkeypatch.chdir(ROOT)
    content = study(scale) | {"base": "facebook/DiT-XL-2-256"}
    assert task_problems(Study.model_validate(content)) == []


@pytest.mark.parametrize("value", [0, 5, 1.5, True])
def test_a_scale_is_one_to_four(value):
    with pytest.raises(ValueError, match="scale"):
        Task.model_validate(dict(name="x", source="folder", path="x", scale=value))


def test_extrapolated_positions_need_a_scale_in_every_task(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    path, content = tmp_path / "study.yaml", study(2) | {"base": "models/emoji-dit"}
    content["analysis"] = {"factors": ["train.positions"], "responses": ["clip_t"]}
    content["tasks"].append({"name": "small", "source": "openmoji", "style": "line"})
    levels = ["interpolated", "extrapolated"]
    content["arms"] = [{"method": "bitfit", "factors": {"train.positions": levels}}]
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError) as caught:
        load_study(path)
    assert (
        f"{path}: arms[0].factors.train.positions: 'extrapolated': task 'small' has images of the "
        "base's own size; allowed: with a scale above 1 in every task"
    ) in caught.value.problems
    del content["tasks"][1]
    path.write_text(yaml.safe_dump(content))
    load_study(path)


def test_only_another_scale_is_part_of_the_key(monkeypatch):
    monkeypatch.chdir(ROOT)
    materials = [
        build_plan(Study.model_validate(study(scale))).runs[0].prepare.material for scale in (1, 2)
    ]
    assert set(materials[0]) == {"stage", "version", "base", "source"}
    assert materials[1] == materials[0] | {"scale": 2}
