"""CONTRIBUTING.md's metric, taken out of the page: one file is all that a metric needs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from fitspace import metrics
from fitspace.metrics import further
from fitspace.plan import build_plan
from fitspace.plan.checks import metric_problems, task_problems
from fitspace.plan.overview import _metrics
from fitspace.report import words
from fitspace.study import Study

ROOT = Path(__file__).parents[2]
JUDGE = str(ROOT / "models/emoji-clip")


@pytest.fixture
def name(tmp_path, monkeypatch):
    """The page's code in the file that the page names, in a folder of the package."""
    section = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Add a metric")[1]
    (name,) = re.findall(r"`src/fitspace/metrics/further/(\w+)\.py`", section)
    (code,) = re.findall(r"```python\n(.*?)```", section.split("\n## ")[0], flags=re.DOTALL)
    (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    known = further.discovered()
    monkeypatch.setattr(further, "__path__", [*further.__path__, str(tmp_path)])
    found = further.discovered()
    assert found.keys() - known.keys() == {name}
    monkeypatch.setitem(metrics.METRICS, name, found[name])
    monkeypatch.setattr(metrics, "NAMES", tuple(metrics.METRICS))
    yield name
    del sys.modules[f"{further.__name__}.{name}"]
    delattr(further, name)


def test_the_pages_metric_is_checked_planned_and_named(name, tmp_path, monkeypatch):
    content = yaml.safe_load((ROOT / "tests/data/positions.yaml").read_text())
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    study = Study.model_validate(content | {"metrics": [name]})
    assert metric_problems(study) + task_problems(study) == []
    (row,) = (row for row in _metrics(study) if row["further"])
    assert row["metric"] == name and row["tasks"] == ["sepia"] and row["better"] == "lower"
    (run, *_), (plain, *_) = (build_plan(s).runs for s in (study, Study.model_validate(content)))
    assert run.reference.material["evaluator"]["further"] == {name: 1}
    assert run.sample == plain.sample and run.evaluate.key != plain.evaluate.key
    assert words.metric(name).label == "Saturation error"


def test_the_pages_metric_is_measured_and_read(name, tmp_path):
    draw = np.random.default_rng(0)
    shown, drawn = (draw.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8) for _ in range(2))
    captions = ["a", "b", "c", "d", "e", "a"]
    reference = metrics.reference_features(shown, captions, captions, JUDGE, {}, (name,))
    save_file(reference, tmp_path / "features.safetensors")
    again = metrics.read_features(tmp_path / "features.safetensors", False, (), (name,))
    found = metrics.evaluate(torch.from_numpy(drawn), again, JUDGE, {}, (name,))
    assert set(found) >= {*metrics.OF_HELD_OUT, name}

    def saturation(image):
        return np.mean([int(max(pixel)) - int(min(pixel)) for row in image for pixel in row])

    expected = []
    for i, caption in enumerate(captions):
        own = [j for j, other in enumerate(captions) if other == caption]
        expected.append(np.mean([abs(saturation(drawn[i]) - saturation(shown[j])) for j in own]))
    assert found[name] == pytest.approx(np.mean(expected))
