"""Expand a study's arms into points: every legal combination of levels, once."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

from fitspace import bases, methods
from fitspace.core.errors import UserError
from fitspace.core.files import canonical, digest
from fitspace.plan import budget
from fitspace.study import Arm, Study, TrainSettings


@dataclass(frozen=True)
class Point:
    """One combination of factor levels.

    ``factors`` holds the levels by column name; ``settings`` the method's complete settings
    and ``train`` the complete training settings (None where nothing is trained); ``apart`` what
    tells it from a point of the study that would be called the same.
    """

    arm: str
    method: str
    factors: dict[str, Any]
    settings: dict[str, Any]
    train: dict[str, Any] | None
    slug: str
    apart: str = ""

    @cached_property
    def identity(self) -> str:
        """What identifies the point, whatever its name: method, settings, training settings."""
        return canonical([self.method, self.settings, self.train])

    @property
    def name(self) -> str:
        """The slug, the levels of training factors, which it has not, and what sets it apart: one
        name for an identity in a study, by which runs are one point everywhere."""
        own = [f"{k[6:]}{v}" for k, v in self.factors.items() if k.startswith("train.")]
        return ".".join([self.slug, *own, *([self.apart] if self.apart else [])])


def in_words(factors: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in factors.items())


def _cells(arm: Arm) -> Iterable[dict[str, Any]]:
    names = list(arm.factors)
    for levels in itertools.product(*arm.factors.values()):
        yield dict(zip(names, levels, strict=True))


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
    if not arm.factors:
        raise UserError(f"subset: {arm.subset}: the arm has no factors; leave it out")
    rows = _d_optimal(tuple(arm.factors), tuple(tuple(c.values()) for c in legal), arm.subset)
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
    """The method's settings in a cell; with a base, the width follows from the arm's budget."""
    own = {k: v for k, v in factors.items() if not k.startswith("train.")} | arm.settings
    if arm.match_trainable is not None and base is not None:
        width = budget.width(base, arm.method, own, arm.match_trainable)
        own[methods.knob(arm.method)] = width
    return methods.get(arm.method).Settings(**own)


def expand(study: Study) -> tuple[list[Point], list[str]]:
    """A study's points, and the cells that are left out, each with its reason."""
    family = bases.family(study.base).name
    points, dropped = [], []
    for arm in study.arms:
        method = methods.get(arm.method)
        legal, others = legal_cells(arm, family)
        dropped += [f"{arm.title} ({in_words(f)}): {why[0]}" for f, why in others]
        for factors in chosen_cells(arm, legal):
            settings = settings_of(arm, factors, study.base)
            train = None
            if method.trains:
                own = {
                    k.removeprefix("train."): v
                    for k, v in factors.items()
                    if k.startswith("train.")
                }
                train = TrainSettings(**(study.train.model_dump() | arm.train | own)).model_dump()
            points.append(
                Point(
                    arm.title,
                    arm.method,
                    factors,
                    settings.resolved(family),
                    train,
                    _slug(settings, arm),
                )
            )
    return _told_apart(points), dropped


def _told_apart(points: list[Point]) -> list[Point]:
    """The points, with names of their own where several would have one.

    By the training settings in which they differ; else, where the slug was cut, by a digest.
    """
    names: dict[str, dict[str, Point]] = {}
    for point in points:
        names.setdefault(point.name, {})[point.identity] = point
    apart = {}
    for group in (list(alike.values()) for alike in names.values() if len(alike) > 1):
        trained = [p.train or {} for p in group]
        keys = [k for k in trained[0] if len({canonical(t.get(k)) for t in trained}) > 1]
        told = [".".join(f"{k}{t.get(k)}" for k in keys) for t in trained]
        if len(set(told)) < len(group):
            told = [".".join(filter(None, [t, digest(p.identity)[:6]]))
                    for t, p in zip(told, group, strict=True)]  # fmt: skip
        apart |= {p.identity: text for p, text in zip(group, told, strict=True)}
    return [replace(p, apart=apart.get(p.identity, "")) for p in points]


def _slug(settings: Any, arm: Arm) -> str:
    """``method.required-settings.changed-settings``: depends on the content, not on the study."""
    required, other = [], []
    for name, item in type(settings).model_fields.items():
        value = getattr(settings, name)
        if item.is_required():
            required.append(f"{value}")
        elif value != item.default:
            other.append(f"{name}{value}" if not isinstance(value, str) else value)
    parts = [arm.method, "-".join(required), *other]
    return re.sub(r"[^A-Za-z0-9_.+-]", "_", ".".join(p for p in parts if p))[:80]
