"""What raters answered, by the key of what they were shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fitspace.core.errors import UserError
from fitspace.core.files import read_json
from fitspace.core.reading import checked
from fitspace.rating.pairs import FOLDER, KEY

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


class _Shown(BaseModel):
    model_config = _STRICT
    name: str
    left: str
    right: str
    task: str
    seed: int
    prompt: int


class _Key(BaseModel):
    model_config = _STRICT
    study: str
    design: str
    pairs: dict[str, _Shown]


class _Answer(BaseModel):
    model_config = _STRICT
    pair: str
    choice: Literal["left", "right", "tie"]
    seconds: float = Field(ge=0)


class _Rater(BaseModel):
    model_config = _STRICT
    study: str
    design: str
    rater: str = Field(min_length=1, max_length=80)
    answers: list[_Answer]


@dataclass(frozen=True)
class Answers:
    """Every judgement: ``rows`` with pair, rater, left and right (points), outcome, winner (a
    point, or ``tie``), task, seed, seconds; ``files`` that were read."""

    rows: list[dict[str, Any]]
    files: list[Path]


def read(folder: Path, study: str) -> Answers | None:
    """The judgements in the folder ``ratings`` of a report; None without any.

    Raises
    ------
    UserError : files that are no ratings, or of another page than the key's; a rater or a pair
        twice.
    """
    place = folder / FOLDER
    files = sorted(path for path in place.glob("*.json") if path.name != KEY)
    if not files:
        return None
    what = "what fitspace rate wrote"
    key = checked(read_json(place / KEY, what=what), _Key, place / KEY, what)
    rows, problems, raters = [], [], {}
    for path in files:
        what = "ratings that a page of fitspace rate exported"
        try:
            given = checked(read_json(path, what=what), _Rater, path, what)
        except UserError as error:
            problems += error.problems
            continue
        if (given.study, given.design) != (study, key.design):
            problems.append(
                f"{path}: of the page {given.study} {given.design}; needed: {study} {key.design}, "
                "as key.json has it"
            )
            continue
        if given.rater in raters:
            problems.append(f"{path}: rater {given.rater!r} is {raters[given.rater]}'s too")
        raters[given.rater] = path.name
        names = [answer.pair for answer in given.answers]
        problems += [f"{path}: pair {n!r} is not in {KEY}" for n in names if n not in key.pairs]
        problems += [f"{path}: pair {n!r} twice" for n in set(names) if names.count(n) > 1]
        rows += [
            _row(given.rater, answer, key.pairs[answer.pair])
            for answer in given.answers
            if answer.pair in key.pairs
        ]
    if problems:
        raise UserError(problems)
    return Answers(rows, files) if rows else None


def _row(rater: str, answer: _Answer, shown: _Shown) -> dict[str, Any]:
    winner = "tie" if answer.choice == "tie" else getattr(shown, answer.choice)
    return {
        "pair": shown.name,
        "rater": rater,
        "left": shown.left,
        "right": shown.right,
        "outcome": answer.choice,
        "winner": winner,
        "task": shown.task,
        "seed": shown.seed,
        "seconds": answer.seconds,
    }
