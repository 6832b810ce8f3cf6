"""The keys of all study files, held in place: a change of the code moves no result.

A model or a data set that is not on this machine stands in by its name, a setting that no tuning
has chosen yet by the study's own: the rest of what its keys are made of is held all the same.
``python tests/plan/test_keys.py`` records the keys anew.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fitspace import data, metrics
from fitspace.core.files import digest
from fitspace.plan import build_plan, checked

ROOT = Path(__file__).parents[2]
KEYS = Path(__file__).parents[1] / "data" / "keys.json"
STUDIES = sorted(path.name for path in (ROOT / "params").glob("*.yaml"))


def stages(study: str, patch: pytest.MonkeyPatch) -> dict[str, dict]:
    """Stage -> its keys in the plan's order, and the digest of its folders' names."""
    patch.chdir(ROOT)
    loaded, models = checked(f"params/{study}")
    if models.absent:
        evaluator = {"metrics": metrics.VERSION, "extractor": metrics.EXTRACTOR, "judge": "judge"}
        evaluator |= {name: name for name in loaded.weights}
        vars(models).update(absent=[], digest="base", evaluator=evaluator, held={}, tuned={})
        patch.setattr(
            data,
            "identity",
            lambda task, *by_class: {"hub": task.dataset, "folder": task.folder},
        )
    found: dict[str, list] = {}
    for stage in build_plan(loaded, models).stages.values():
        found.setdefault(stage.name, []).append(stage)
    return {
        name: {"keys": [s.key for s in own], "folders": digest([s.folder.as_posix() for s in own])}
        for name, own in found.items()
    }


@pytest.mark.parametrize("study", STUDIES)
def test_no_key_moves(study, monkeypatch):
    assert stages(study, monkeypatch) == json.loads(KEYS.read_text())[study]


if __name__ == "__main__":
    found = {}
    for name in STUDIES:
        with pytest.MonkeyPatch.context() as patch:
            found[name] = stages(name, patch)
    KEYS.write_text(json.dumps(found, separators=(",", ":")).replace('"keys"', '\n"keys"') + "\n")
