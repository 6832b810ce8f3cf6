"""A study's plan: its runs, and the stages of each run with their keys.

A *point* is a method with all its settings; a *run* is (point, task, seed). The key of a stage is
a short SHA-256 of the canonical JSON of exactly what determines its content. The key is part of
the path, so a changed setting gives a new path, an unchanged setting finds its results, and two
studies that share a run share its files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fitspace import metrics
from fitspace.core.errors import UserError
from fitspace.core.files import canonical, digest
from fitspace.core.paths import RESULTS
from fitspace.plan import tuning
from fitspace.plan.models import Models
from fitspace.plan.points import Point
from fitspace.plan.table import ENDS, STAGES, Making, Row
from fitspace.study import CHECKPOINT, Study, Task
from fitspace.study.tuning import derived

KEY_LENGTH = 12


@dataclass(frozen=True)
class Stage:
    """One stage of one run or task: its folder, its key and the key's material."""

    name: str
    folder: Path
    key: str
    material: dict[str, Any]

    @property
    def sidecar(self) -> Path:
        return self.folder / f"{self.name}.json"


@dataclass(frozen=True)
class Run:
    """The experimental unit, with its stages by name.

    Each stage is an attribute too. ``run.train`` is None if nothing is trained. ``run.prior``
    makes the class images of a DreamBooth task; it is None without prior preservation.
    ``untouched`` is another run's: the samples of the untouched base of this seed, from the same
    noise; None where no metric compares with them.
    """

    point: Point
    task: Task
    seed: int
    own: dict[str, Stage]
    untouched: Stage | None = None

    def __getattr__(self, name: str) -> Stage | None:
        if name in STAGES:
            return self.own.get(name)
        raise AttributeError(name)

    @property
    def name(self) -> str:
        return self.evaluate.folder.name

    @property
    def stages(self) -> list[Stage]:
        return list(self.own.values())

    @property
    def ends(self) -> list[Stage]:
        """What the run is done with: its stages that no other one reads."""
        return [self.own[name] for name in ENDS if name in self.own]

    @property
    def finished(self) -> bool:
        """Whether all of its stages are done."""
        return all(stage.sidecar.exists() for stage in self.ends)

    def upstream(self, stage: str) -> list[Stage]:
        """The stages whose results one of this run's stages reads, each once."""
        material, every = self.own[stage].material, [*self.own.values(), self.untouched]
        known = {found.key: found for found in every if found is not None}
        keys = dict.fromkeys(material.get(entry) for entry in STAGES[stage].reads)
        return [known[key] for key in keys if key in known]


@dataclass(frozen=True)
class Plan:
    """Everything that a study will do; known before anything runs."""

    study: Study
    models: Models
    points: list[Point]
    runs: list[Run]
    dropped: list[str] = field(default_factory=list)

    @cached_property
    def factors(self) -> list[str]:
        """The factors of all arms, each once."""
        return list(dict.fromkeys(name for point in self.points for name in point.factors))

    @cached_property
    def stages(self) -> dict[tuple[str, str], Stage]:
        """(stage name, folder name) -> stage, each once."""
        return {(s.name, s.folder.name): s for run in self.runs for s in run.stages}

    @cached_property
    def _first_run(self) -> dict[tuple[str, str], Run]:
        found: dict[tuple[str, str], Run] = {}
        for run in self.runs:
            for stage in run.stages:
                found.setdefault((stage.name, stage.folder.name), run)
        return found

    def run_of(self, stage: str, folder: str) -> Run:
        """The first run with this stage. Raises UserError if the study has none."""
        try:
            return self._first_run[stage, folder]
        except KeyError:
            known = sorted(f for s, f in self._first_run if s == stage)
            raise UserError(
                f"{stage}: {folder!r} is not in study {self.study.name!r} as it stands now; "
                f"allowed: {', '.join(known[:5])}{' ...' if len(known) > 5 else ''}"
            ) from None


def build_plan(study: Study, models: Models | None = None) -> Plan:
    """Expand a study into points, runs, keys and paths.

    ``models`` are the study's, if they were looked at already.

    Raises
    ------
    UserError : the base, the judge or a task's images are missing, or differ from those that the
        study pins.
    """
    models = models or Models(study)
    if models.absent:
        raise UserError(models.absent)
    points, dropped = models.points
    models.held  # noqa: B018 - raises
    _same_tuning(study, models)
    shared = {task.name: _made(Making(study, models, task, {})) for task in study.tasks}
    untouched = _untouched(study, models, points, shared)

    def run(point: Point, task: Task, seed: int) -> Run:
        other = untouched.get((task.name, seed, _drawing(point)))
        keys = {} if other is None else {"untouched": other.key}
        own = _made(Making(study, models, task, keys, point, seed), shared[task.name])
        return Run(point, task, seed, own, other)

    # Seeds vary slowest: every point gets its first run before any point gets its second.
    runs = [
        run(point, task, seed) for seed in study.seeds for task in study.tasks for point in points
    ]
    return Plan(study, models, points, runs, dropped)


def _same_tuning(study: Study, models: Models) -> None:
    """That the runs that chose settings are those of the study's tuning as it stands now.

    Raises UserError if they are not, or nothing can be chosen by them. Where the images that they
    were tuned on are not on this machine nobody can tell.
    """
    if not models.tuned:
        return
    own = derived(study)
    of_tuning = models.of(own)
    if of_tuning.absent:
        return
    planned = {run.evaluate.key for run in build_plan(own, of_tuning).runs}
    found = {row["evaluate_key"] for row in tuning.rows(study)}
    if planned - found:
        raise UserError(
            f"tuning: {tuning.table_path(study)}: {len(planned - found)} of its "
            f"{len(found)} runs were made with other settings, models or images than the study's "
            "now; fitspace tune writes the study whose runs are needed"
        )


def _untouched(
    study: Study, models: Models, points: list[Point], shared: dict[str, dict[str, Stage]]
) -> dict[tuple[str, int, str], Stage]:
    """The untouched base's samples by task, seed and drawing, for tasks with a metric that compares
    with them."""
    return {
        (task.name, seed, _drawing(point)): _stage(
            STAGES["sample"],
            Making(study, models, task, {"prepare": shared[task.name]["prepare"].key}, point, seed),
        )
        for task in study.tasks
        if metrics.beside_untouched(study.further_of(task.dreambooth is not None))
        for point in points
        if point.train is None
        for seed in study.seeds
    }


def _drawing(point: Point) -> str:
    """How a point's images are drawn, without what concerns its adapter."""
    adapter = ("strength", "blocks", CHECKPOINT, "given_guidance")
    starts = [] if point.learnt or not point.control else [point.control]
    return canonical([{k: v for k, v in point.sample.items() if k not in adapter}, *starts])


def unchanged(study: Study, run: Run) -> bool:
    """Whether base, judge and rewarding model still are the ones that the run's keys contain."""
    models = Models(study)
    try:
        keys = {"prepare": run.prepare.key}
        same_judge = _stage(STAGES["reference"], Making(study, models, run.task, keys))
        reward = (run.train.material["train"] if run.train else {}).get("reward")
        return (
            same_judge == run.reference
            and models.digest == run.sample.material["base"]
            and (reward is None or models.rewarder == reward["model"])
        )
    except UserError:
        return False


def _made(making: Making, shared: dict[str, Stage] | None = None) -> dict[str, Stage]:
    """The stages of a run; without ``shared``, the stages that all runs of a task share."""
    found = dict(shared or {})
    making.keys.update((name, stage.key) for name, stage in found.items())
    for row in STAGES.values():
        if row.by_task == (shared is None) and (stage := _stage(row, making)) is not None:
            found[row.name], making.keys[row.name] = stage, stage.key
    return found


def _stage(row: Row, making: Making) -> Stage | None:
    own = row.material(making)
    if own is None:
        return None
    material = {"stage": row.name, "version": row.version, **own}
    key = digest(material)[:KEY_LENGTH]
    return Stage(row.name, RESULTS / row.room / f"{row.slug(making)}~{key}", key, material)
