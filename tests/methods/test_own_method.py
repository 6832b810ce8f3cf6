"""CONTRIBUTING.md's method, taken out of the page: one file is all that a method needs."""

from __future__ import annotations

import copy
import re
import sys
from pathlib import Path

import pytest
import tiny
import torch

from fitspace import methods
from fitspace.methods import registry
from fitspace.plan.counting import count

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"


@pytest.fixture
def name(tmp_path, monkeypatch):
    """The page's code in the file that the page names, in a folder of the package."""
    section = PAGE.read_text(encoding="utf-8").split("## Add a method")[1]
    (name,) = re.findall(r"`src/fitspace/methods/(\w+)\.py`", section)
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    found = methods.discovered()
    assert found.keys() - methods.METHODS.keys() == {name}
    monkeypatch.setattr(registry, "METHODS", found)
    yield name
    del sys.modules[f"{methods.__name__}.{name}"]
    delattr(methods, name)


@pytest.mark.parametrize("family", ["unet", "dit"])
def test_page_method_trains_saves_and_loads(name, family, tmp_path):
    base = tiny.unet() if family == "unet" else tiny.tiny_dit()
    generator = torch.Generator().manual_seed(1)
    side = base.config.sample_size
    latents = torch.randn(2, 4, side, side, generator=generator)
    text = torch.randn(2, 5, 12, generator=generator)
    inputs = latents, torch.tensor([3, 700]), text if family == "unet" else torch.tensor([1, 3])

    model = copy.deepcopy(base)
    attachment = methods.attach(model, name, {}, seed=0)
    # The tiny U-Net has 4 transformer blocks with 2 attentions, the DiT 2 with 1 and its table.
    assert len(attachment.trainable) == {"unet": 4 * 2 * 2, "dit": 2 * 2 + 1}[family]
    before = base(*inputs).sample
    assert torch.equal(model(*inputs).sample, before)

    optimizer = torch.optim.AdamW(attachment.trainable.values(), lr=0.02)
    model(*inputs).sample.square().mean().backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == set(
        attachment.trainable
    )
    optimizer.step()
    learnt = model(*inputs).sample
    assert (learnt - before).abs().max() > 1e-3

    path = tmp_path / "adapter.safetensors"
    methods.save(attachment, path, {})
    fresh = copy.deepcopy(base)
    loaded = methods.load(fresh, path)
    assert torch.equal(fresh(*inputs).sample, learnt)
    loaded.remove()
    assert torch.equal(fresh(*inputs).sample, before)
    attachment.merge()
    assert torch.equal(model(*inputs).sample, learnt)


def test_page_method_is_counted(name):
    # 28 blocks, one attention each, 1152 wide, and the class table.
    assert count("dit-xl", name, {})["trainable"] == 28 * (1152 * 1152 + 1152) + 102 * 1152
