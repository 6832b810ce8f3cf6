"""Expand a study's arms into points: every legal combination of levels, once."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

from fitspace import bases, methods
from fitspace.core.errors import UserError
from fitspace.core.files import canonical, digest
from fitspace.plan import budget
from fitspace.study import (
    BUDGET,
    CHECKPOINT,
    CONTROL,
    DRAWN,
    LEARNT,
    OF_ARM,
    REWARD_FACTORS,
    Arm,
    Reward,
    SampleSettings,
    Study,
    TrainSettings,
)


@dataclass(frozen=True)
class Point:
    """One combination of factor levels.

    ``factors`` holds the levels by column name; ``settings`` the method's complete settings
    and ``train`` the complete training settings (None where nothing is trained); ``sample`` how its
    images are drawn; ``within`` the levels of the factors that vary within a training, which are
    among ``factors`` too; ``apart`` what tells it from a point of the study that would be called
    the same; ``control`` how the denoiser is told of the image that a task gives.
    """

    arm: str
    method: str
    factors: dict[str, Any]
    settings: dict[str, Any]
    train: dict[str, Any] | None
    sample: dict[str, Any]
    slug: str
    within: dict[str, Any] = field(default_factory=dict)
    apart: str = ""
    control: str | None = None

    @property
    def learnt(self) -> str | None:
        """Its control, if that adds parameters to the denoiser."""
        return self.control if self.control in LEARNT else None

    @property
    def _told(self) -> list[str]:
        return [self.learnt] if self.learnt else []

    @cached_property
    def trained(self) -> str:
        """What identifies its training: method, settings, training settings, learnt control."""
        return canonical([self.method, self.settings, self.train, *self._told])

    @cached_property
    def identity(self) -> str:
        """What identifies the point, whatever its name."""
        own = [self.control] if self.control else []
        return canonical([self.method, self.settings, self.train, self.sample, *own])

    @property
    def drawn(self) -> str:
        """What of its name its training does not have: a control that is not learnt, its levels
        within the training; empty for a point that has none."""
        own = [self.control] if self.control and not self.learnt else []
        own += [f"{name.removeprefix('sample.')}{level}" for name, level in self.within.items()]
        return re.sub(r"[^A-Za-z0-9_.+-]", "_", ".".join(own))

    @property
    def name(self) -> str:
        """The slug, the levels of training factors, which it has not, and what sets it apart: one
        name for an identity in a study, by which runs are one point everywhere."""
        own = [f"{k[6:]}{v}" for k, v in self.factors.items() if k.startswith("train.")]
        return ".".join(filter(None, [self.slug, *own, self.apart, self.drawn]))


def in_words(factors: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in factors.items())


def _cells(arm: Arm) -> Iterable[dict[str, Any]]:
    return _crossed(arm.between)


def _crossed(factors: dict[str, list[Any]]) -> Iterable[dict[str, Any]]:
    for levels in itertools.product(*factors.values()):
        yield dict(zip(factors, levels, strict=True))


def legal_cells(
    arm: Arm, family: str
) -> tuple[list[dict[str, Any]], list[tuple[dict[str, Any], list[str]]]]:
    """The cells of an arm that its method can build, and the others with the reasons."""
    legal, others = [], []
    for factors in _cells(arm):
        why = methods.problems(arm.method, settings_of(arm, factors), family)
        if why:
            others.append((factors, why))
        else:
            legal.append(factors)
    return legal, others


def chosen_cells(arm: Arm, legal: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The legal cells that an arm runs: all, or its D-optimal subset, in their order.

    Raises
    ------
    UserError : a subset too small for the main effects, or larger than the number of cells.
    """
    if arm.subset is None:
        return legal
    if not arm.between:
        raise UserError(f"subset: {arm.subset}: the arm has no factors; leave it out")
    rows = _d_optimal(tuple(arm.between), tuple(tuple(c.values()) for c in legal), arm.subset)
    return [legal[row] for row in rows]


@cache
def _d_optimal(factors: tuple[str, ...], cells: tuple[tuple, ...], n: int) -> tuple[int, ...]:
    import pandas as pd

    from fitspace.stats import d_optimal

    try:
        return tuple(d_optimal(pd.DataFrame(cells, columns=factors), factors, n).index)
    except UserError as error:
        raise UserError(f"subset: {problem}" for problem in error.problems) from None


def settings_of(arm: Arm, factors: dict[str, Any], base: str | None = None) -> Any:
    """The method's settings in a cell; with a base, the width follows from the arm's budget.

    Levels of training settings, of the control and of the budget among ``factors`` are no settings
    of the method.
    """
    own = {
        name: level
        for name, level in factors.items()
        if name not in OF_ARM and not name.startswith("train.")
    } | arm.settings
    target = factors.get(BUDGET, arm.match_trainable)
    if target is not None and base is not None:
        control = factors.get(CONTROL, arm.control)
        width = budget.width(base, arm.method, own, target, control)
        own[methods.knob(arm.method)] = width
    return methods.get(arm.method).Settings(**own)


def expand(
    study: Study, tuned: dict[tuple[str, str], dict[str, Any]] | None = None
) -> tuple[list[Point], list[str]]:
    """A study's points, and the cells that are left out, each with its reason.

    ``tuned``: (arm, canonical cell) -> the settings that tuning chose for it, and that are no
    factors.
    """
    family, tuned = bases.family(study.base).name, tuned or {}
    points, dropped = [], []
    for arm in study.arms:
        method = methods.get(arm.method)
        legal, others = legal_cells(arm, family)
        dropped += [f"{arm.title} ({in_words(f)}): {why[0]}" for f, why in others]
        for factors in chosen_cells(arm, legal):
            taken = factors | tuned.get((arm.title, canonical(factors)), {})
            settings = settings_of(arm, taken, study.base)
            train, control = None, factors.get(CONTROL, arm.control)
            if method.trains:
                own = {
                    k.removeprefix("train."): v for k, v in taken.items() if k.startswith("train.")
                }
                if control != "concat":  # where nothing else is told a latent
                    own["given_dropout"] = 0.0
                own = study.train.model_dump() | arm.train | own
                train = TrainSettings(**_rewarded(own)).model_dump()
            points += [
                Point(
                    arm.title,
                    arm.method,
                    factors | within,
                    settings.resolved(family),
                    train,
                    _drawing(study, within, train, control),
                    _slug(settings, arm, control),
                    within,
                    control=control,
                )
                for within in _within(study, arm, train)
            ]
    return _told_apart(points), dropped


def _rewarded(train: dict[str, Any]) -> dict[str, Any]:
    """Training settings whose reward has the levels that there are of it: of weight 0 is none."""
    keys = {key.removeprefix("train."): name for key, name in REWARD_FACTORS.items()}
    levels = {keys[key]: train.pop(key) for key in list(train) if key in keys}
    if train.get("reward") is not None:
        without = levels.get("weight") == 0
        train["reward"] = None if without else Reward(**(train["reward"] | levels)).resolved
    return train


def _within(study: Study, arm: Arm, train: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The levels that share a training: each factor varies while the others stay at the study's
    own level, of the last step. That one comes first."""
    stops = TrainSettings(**train).stops if train else []
    factors = arm.within | ({CHECKPOINT: stops} if stops else {})
    own = {name: getattr(study.sample, DRAWN[name]) for name in arm.within}
    own |= {CHECKPOINT: stops[-1]} if stops else {}
    varied = [own | {name: level} for name, levels in factors.items() for level in levels]
    return [own, *(levels for levels in varied if levels != own)]


def _drawing(
    study: Study,
    within: dict[str, Any],
    train: dict[str, Any] | None,
    control: str | None,
) -> dict[str, Any]:
    """How a point's images are drawn: the settings of ``sample``, and the ``checkpoint`` if it is
    not the training's last."""
    own = {DRAWN[name]: level for name, level in within.items() if name in DRAWN}
    found = SampleSettings(**(study.sample.model_dump() | own)).of(control)
    step = within.get(CHECKPOINT)
    return found | ({CHECKPOINT: step} if step is not None and step < train["steps"] else {})


def own_drawing(study: Study, point: Point) -> bool:
    """Whether a point's images are drawn as the study's ``sample`` has it, of the last step: the
    one of the points of a training that the analysis takes."""
    return point.sample == study.sample.of(point.control)


def _told_apart(points: list[Point]) -> list[Point]:
    """The points, with names of their own where several would have one.

    By the training settings in which they differ; else, where the slug was cut, by a digest.
    """
    names: dict[str, dict[str, Point]] = {}
    for point in points:
        names.setdefault(point.name, {})[point.trained] = point
    apart = {}
    for group in (list(alike.values()) for alike in names.values() if len(alike) > 1):
        # Complete: a later setting is not among those where it has its default.
        trained = [dict(TrainSettings(**p.train)) | p.train if p.train else {} for p in group]
        keys = [k for k in trained[0] if len({canonical(t.get(k)) for t in trained}) > 1]
        told = [".".join(f"{k}{_in_name(t.get(k))}" for k in keys) for t in trained]
        if len(set(told)) < len(group):
            told = [".".join(filter(None, [t, digest(p.trained)[:6]]))
                    for t, p in zip(told, group, strict=True)]  # fmt: skip
        apart |= {p.trained: text for p, text in zip(group, told, strict=True)}
    return [replace(p, apart=apart.get(p.trained, "")) for p in points]


def _in_name(value: Any) -> Any:
    """A training setting as a name has it: of a reward its weight, and how far it goes back."""
    if not isinstance(value, dict):
        return value
    back = f".through{value['through']}" if value.get("through") else ""
    return f"{value['weight']}{back}"


def _slug(settings: Any, arm: Arm, control: str | None) -> str:
    """``method.required-settings.changed-settings``: depends on the content, not on the study."""
    required, other = [], []
    for name, item in type(settings).model_fields.items():
        value = getattr(settings, name)
        if item.is_required():
            required.append(f"{value}")
        elif value != item.default:
            other.append(f"{name}{value}" if not isinstance(value, str) else value)
    told = control if control in LEARNT else ""
    parts = [arm.method, told, "-".join(required), *other]
    return re.sub(r"[^A-Za-z0-9_.+-]", "_", ".".join(p for p in parts if p))[:80]
