"""The tuning of a study as a study of its own: the same points, at every level that is tried."""

from __future__ import annotations

from typing import Any

import yaml

from fitspace.metrics.table import METRICS, beside_untouched
from fitspace.study.models import OF_CONTROL, TUNING, Arm, Study


def content(study: Study) -> dict[str, Any]:
    """What the file of this other study says. The study has ``tuning``.

    Its arms are those that are trained, with the tuned settings as factors. What varies within a
    training keeps the study's own level. The untouched base is no arm, so metrics that compare with
    its images are left out.
    """
    own = study.tuning
    found = study.model_dump(mode="json", exclude_unset=True, exclude={"tuning", "explain"})
    found["train"].pop("checkpoints", None)
    found["sample"].pop("validation", None)  # which chooses among these
    controls = {c for arm in study.arms if arm.method != "none" for c in arm.controls}
    for name, control in OF_CONTROL.items():
        if control not in controls:
            found["sample"].pop(name, None)
    found |= {
        "name": study.name + TUNING,
        "title": f"Tuning: {study.title}"[:200],
        "question": f"Which {' and '.join(own.factors)} suits each point?",
        "tasks": [task.model_dump(mode="json", exclude_unset=True) for task in own.tasks],
        "arms": [_arm(arm, own.factors) for arm in study.arms if arm.method != "none"],
        "seeds": own.seeds,
    }
    asked = [own.response, *study.analysis.responses]
    without = {*beside_untouched(study.further), *filter(_explains, asked)}
    responses = [name for name in dict.fromkeys(asked) if name not in without]
    further = [name for name in found.pop("metrics", None) or [] if name not in without]
    found |= {"metrics": further} if further else {}
    kept = {
        key: {name: value for name, value in getattr(study.analysis, key).items() if name in among}
        for key, among in (("transform", responses), ("scales", study.analysis.factors))
    }
    found["analysis"] = {
        "factors": [*study.analysis.factors, *own.factors],
        "choose": list(own.factors),
        "responses": responses,
        **{key: value for key, value in kept.items() if value},
    }
    return found


def derived(study: Study) -> Study:
    """The same as a study."""
    return Study.model_validate(content(study))


class _Plain(yaml.SafeDumper):
    """What stands twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def text(study: Study, file: str) -> str:
    """Its file, in YAML; ``file`` is the name of the study's own."""
    head = (
        f"# The tuning of {file}, written by fitspace tune. Change that file, and write this anew."
    )
    body = yaml.dump(content(study), Dumper=_Plain, sort_keys=False, allow_unicode=True)
    return f"{head}\n{body}"


def _arm(arm: Arm, factors: dict[str, list[Any]]) -> dict[str, Any]:
    left_out = {"subset": True, "train": {"checkpoints"}}
    own = arm.model_dump(mode="json", exclude_unset=True, exclude=left_out)
    return own | {"factors": arm.between | factors}


def _explains(response: str) -> bool:
    return response in METRICS and METRICS[response].explains
