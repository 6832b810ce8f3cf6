"""Find, fetch and identify what a study names outside itself: base, judge and data sets."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitspace import bases, data, metrics
from fitspace.core import hub
from fitspace.core.errors import UserError
from fitspace.plan.points import Point, expand
from fitspace.plan.tuning import chosen
from fitspace.study import Study, Task
from fitspace.study.reading import form

if TYPE_CHECKING:
    from fitspace.data.examples import Outline


def _of_base(reference: str) -> dict[str, Path]:
    folder = bases.resolve(reference)
    return {path.relative_to(folder).as_posix(): path for path in bases.files(folder)}


def _of_judge(reference: str) -> dict[str, Path]:
    return {path.name: path for path in metrics.judge_files(reference)}


def _of_reward(reference: str) -> dict[str, Path]:
    try:
        return _of_judge(reference)
    except UserError as error:
        raise type(error)(
            f"{REWARD_KEY}: {problem.removeprefix('judge: ')}" for problem in error.problems
        ) from None


def _of_extractor(name: str, reference: str) -> dict[str, Path]:
    return {Path(reference).name: metrics.weights_file(name, reference)}


REWARD, REWARD_KEY = "reward", "train.reward.model"  # its name here, and in a study file
# The models that a study can name -> the files that determine the model, by name.
MODELS: dict[str, Callable[[str], dict[str, Path]]] = {
    "base": _of_base,
    "judge": _of_judge,
    **{name: partial(_of_extractor, name) for name in metrics.NAMED},
    REWARD: _of_reward,
}


# What of `Models` is the same for all studies of a base, a judge and named tasks.
_SAME = (
    "_sources", "_outlines", "base", "digest", "evaluator", "rewarder", "by_class", "held",
    "line_endings",
)  # fmt: skip


def named(study: Study) -> dict[str, str]:
    """The models that a study names: name -> reference."""
    reward = study.train.reward
    found = {name: getattr(study, name) for name in MODELS if name != REWARD}
    found[REWARD] = None if reward is None else reward.model
    return {name: reference for name, reference in found.items() if reference is not None}


def _refusal(look: Callable[[], Any]) -> UserError | None:
    try:
        look()
    except UserError as error:
        return error
    return None


class Models:
    """What a study names outside itself; each part is looked at once, on first use.

    Every attribute raises UserError if its part is missing or wrong, and
    :class:`fitspace.core.hub.NotHere` if the part can be fetched or made.
    """

    def __init__(self, study: Study):
        self.study = study
        self._sources: dict[str, dict[str, Any]] = {}
        self._outlines: dict[str, Outline | None] = {}

    @cached_property
    def base(self) -> Path:
        """The base's folder."""
        return bases.resolve(self.study.base)

    @cached_property
    def digest(self) -> str:
        """Digest of the base."""
        return bases.digest(self.base)

    @cached_property
    def evaluator(self) -> dict[str, Any]:
        """What determines the metrics besides the images: versions and the judges' digests."""
        return metrics.identity(self.study.judge, self.study.weights)

    @cached_property
    def rewarder(self) -> str | None:
        """Digest of the model that rewards training, if one does."""
        reward = self.study.train.reward
        return None if reward is None else metrics.identity(reward.model)[metrics.JUDGE]

    @cached_property
    def by_class(self) -> bool:
        """Whether the base is conditioned on classes, not on words."""
        return bases.family(self.study.base).by_class

    def source(self, task: Task) -> dict[str, Any]:
        """What determines a task's examples."""
        if task.name not in self._sources:
            self._sources[task.name] = data.identity(task)
        return self._sources[task.name]

    @cached_property
    def tuned(self) -> dict[tuple[str, str], dict[str, Any]]:
        """What the study's tuning chose; see :func:`fitspace.plan.tuning.chosen`."""
        return chosen(self.study, bases.family(self.study.base).name)

    @cached_property
    def points(self) -> tuple[list[Point], list[str]]:
        """The study's points, and the cells left out; see :func:`fitspace.plan.points.expand`.

        As long as tuning has chosen nothing they have the study's own settings.
        """
        return expand(self.study, {} if _refusal(lambda: self.tuned) else self.tuned)

    def of(self, study: Study) -> Models:
        """The same for a study with other arms or tasks: what is the same is not looked at again.

        Tasks of both studies that have one name are the same.
        """
        other = Models(study)
        vars(other).update({k: v for k, v in vars(self).items() if k in _SAME})
        return other

    def outline(self, task: Task) -> Outline | None:
        """What is known of a task before its images are decoded."""
        if task.name not in self._outlines:
            self._outlines[task.name] = data.outline(task)
        return self._outlines[task.name]

    @cached_property
    def absent(self) -> list[str]:
        """Messages about models and data that can be fetched or made and are not on this machine.

        Such a study is valid and can be planned. It runs once everything is on this machine.
        """
        return [problem for _, error in self._refusals if isinstance(error, hub.NotHere)
                for problem in error.problems]  # fmt: skip

    def here(self, what: str) -> bool:
        """Whether ``base``, ``judge``, ``tuning`` or a task, by its name, is on this machine and no
        error."""
        places = {"base": "base", "judge": "", "tuning": "tuning: "}
        places |= {task.name: f"tasks[{i}]: " for i, task in enumerate(self.study.tasks)}
        return places[what] not in {key for key, _ in self._refusals}

    @cached_property
    def problems(self) -> list[str]:
        """Problems that no download solves, without the base's, which the check of arms reports."""
        return [key + problem for key, error in self._refusals
                if key != "base" and not isinstance(error, hub.NotHere)
                for problem in error.problems]  # fmt: skip

    @cached_property
    def _refusals(self) -> list[tuple[str, UserError]]:
        looks: list[tuple[str, Callable[[], Any]]] = [("base", lambda: self.base)]
        looks += [
            ("", partial(MODELS[name], reference))
            for name, reference in named(self.study).items()
            if name != "base"
        ]
        for i, task in enumerate(self.study.tasks):
            looks.append((f"tasks[{i}]: ", partial(self.source, task)))
        found = [(key, error) for key, look in looks if (error := _refusal(look))]
        # What was chosen is known for a well-known base, too, that is not on this machine.
        known = _refusal(lambda: bases.family(self.study.base)) is None
        if known and (error := _refusal(lambda: self.tuned)):
            found.append(("tuning: ", error))
        return found

    @cached_property
    def held(self) -> dict[str, str]:
        """The digests by which a study can pin its models: ``base_sha256`` and so on.

        Raises UserError also for a model that differs from its pin.
        """
        found = {"base": self.digest, "judge": self.evaluator["judge"]}
        found |= {name: self.evaluator[name] for name in self.study.weights}
        if self.rewarder is not None:
            found[REWARD] = self.rewarder
        references = named(self.study)
        if others := [
            f"{key}_sha256: {wanted}; {references[key]!r} here is {value}; allowed: the "
            f"{key} that the study was made for, or its new SHA-256{self.line_endings}"
            for key, value in found.items()
            if (wanted := getattr(self.study, f"{key}_sha256")) not in (None, value)
        ]:
            raise UserError(others)
        return {f"{key}_sha256": value for key, value in found.items()}

    @cached_property
    def line_endings(self) -> str:
        """Which files of base and judge have another digest for their line endings alone."""
        files = [*bases.files(self.base), *metrics.judge_files(self.study.judge)]
        texts = [path for path in files if path.suffix in (".json", ".txt")]
        names = [str(path) for path in texts if b"\r\n" in path.read_bytes()]
        if not names:
            return ""
        return (
            f"; {', '.join(names[:3])}{', ...' * (len(names) > 3)} end lines as Windows does, "
            "which changes the digest: git's core.autocrlf did it, where these files came by git"
        )

    @property
    def pins(self) -> list[str]:
        """Lines for the study file that pin the models and data; only those that it lacks."""
        lines = [f"{k}: {v}" for k, v in self.held.items() if getattr(self.study, k) is None]
        loose = [t for t in self.study.tasks if t.source == "hub" and "@" not in t.dataset]
        lines += [f"dataset: {task.dataset}@{self.source(task)['commit']}" for task in loose]
        return list(dict.fromkeys(lines))


def fetch(path: str | Path) -> Study:
    """Download everything that a study file names by hub id and is not on this machine.

    Returns the study. Only the file's form is checked, because an architecture may become known
    only by the download.

    Raises
    ------
    UserError : a malformed study file, or everything that could not be downloaded.
    """
    study = form(path)
    problems = []
    for get, what in (
        (bases.fetch, study.base),
        (metrics.fetch_judge, study.judge),
        *((metrics.fetch_judge, own.model) for own in [study.train.reward] if own is not None),
        *((data.fetch, task) for task in study.tasks),
    ):
        try:
            get(what)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    return study
