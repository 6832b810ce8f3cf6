"""A static page of several studies: their questions, their best and their baselines, linked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fitspace.core.errors import UserError
from fitspace.core.files import read_json, write_text
from fitspace.core.pages import png_uri, templates
from fitspace.core.reading import explain
from fitspace.report import headline, words
from fitspace.report.inputs import strips
from fitspace.report.page import quoted_answer
from fitspace.study import TUNING

NAME, PAGE = "index.html", "report.md"
TILES = 8
SHOWN = {"target": "Target", "best": "Best cell", "none": "Untouched base"}  # role -> label
MEANS = ("best cell", "full fine-tuning", "untouched base")  # as summary.json names them
_ALLOWED = ConfigDict(extra="allow", allow_inf_nan=False)


class _Analysis(BaseModel):
    model_config = _ALLOWED
    responses: list[str] = Field(min_length=1)
    factors: list[str]


class _Study(BaseModel):
    model_config = _ALLOWED
    name: str
    title: str
    question: str = ""
    base: str
    tasks: list[dict[str, Any]]
    seeds: list[int]
    analysis: _Analysis
    tuning: dict[str, Any] | None = None


class _Design(BaseModel):
    model_config = _ALLOWED
    study: _Study
    points: list[dict[str, Any]]


class _Mean(BaseModel):
    model_config = _ALLOWED
    mean: float
    cell: str = ""


@dataclass(frozen=True)
class Entry:
    """One study: what its design, its summary and its report's answer say."""

    folder: str
    study: _Study
    answer: list[str]
    points: int
    runs: dict[str, int]
    label: str
    better: str
    means: dict[str, _Mean]
    sizes: list[tuple[str, str]]
    samples: list[tuple[str, str]]
    tuning: Entry | None = None


def write(reports: Path) -> Path:
    """Write a page of every report in a folder; returns its path.

    A report is a folder with design.json, summary.json and report.md. A study's tuning stands with
    the study. Raises UserError if there is no report, and for files that hold anything else.
    """
    folders = sorted(p.parent for p in reports.glob(f"*/{headline.NAME}"))
    found, problems = [], []
    for folder in folders:
        try:
            found.append(_entry(folder))
        except UserError as error:
            problems += error.problems
    if not folders:
        problems.append(f"{reports}: no report in it; fitspace report makes one")
    if problems:
        raise UserError(problems)
    environment = templates("fitspace.report", autoescape=True)
    style = (Path(__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
    text = environment.get_template("index.html.j2").render(
        entries=_with_tunings(found), number=words.number, style=style
    )
    write_text(reports / NAME, text)
    return reports / NAME


def _with_tunings(found: list[Entry]) -> list[Entry]:
    """The studies; those that are another's tuning are in that one's entry."""
    by_name = {entry.study.name: entry for entry in found}
    tunings = {
        entry.study.name: by_name.get(f"{entry.study.name}{TUNING}")
        for entry in found
        if entry.study.tuning is not None
    }
    inner = {tuning.study.name for tuning in tunings.values() if tuning}
    return [
        replace(entry, tuning=tunings.get(entry.study.name))
        for entry in found
        if entry.study.name not in inner
    ]


def _entry(folder: Path) -> Entry:
    design = _read(folder / "design.json", _Design)
    path = folder / headline.NAME
    summary = read_json(path)
    response = design.study.analysis.responses[0]
    numbers = summary.get(response)
    if not isinstance(numbers, dict):
        raise UserError(f"{path}: no numbers of {response!r}, the study's first response")
    metric = words.metric(response)
    return Entry(
        folder=folder.name,
        study=design.study,
        answer=_answer(folder / PAGE),
        points=len(design.points),
        runs={key: int(value) for key, value in summary.get("runs", {}).items()},
        label=metric.label,
        better="lower" if metric.lower else "higher",
        means={key: _checked(path, _Mean, numbers[key]) for key in MEANS if key in numbers},
        sizes=list(_sizes(design.study.analysis.factors, numbers)),
        samples=list(_samples(folder)),
    )


def _samples(folder: Path) -> Iterable[tuple[str, str]]:
    """The first tiles of the first task's strips: label, and the picture as a data URI."""
    from PIL import Image

    found, problems = strips(folder)
    if problems:
        raise UserError(problems)
    for role, label in SHOWN.items():
        strip = next((s for s in found if s.task == found[0].task and s.role == role), None)
        if strip is not None:
            buffer = BytesIO()
            with Image.open(strip.path, formats=["PNG"]) as image:
                width = strip.size * min(TILES, len(strip.captions))
                image.convert("RGB").crop((0, 0, width, strip.size)).save(buffer, "PNG")
            yield label, png_uri(buffer.getvalue())


def _answer(path: Path) -> list[str]:
    try:
        found = quoted_answer(path.read_text("utf-8")) if path.is_file() else []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if not found:
        raise UserError(f"{path}: no answer in it; `fitspace report --cached` writes it")
    return found


def _sizes(factors: list[str], numbers: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """Each factor with its adjusted partial omega squared."""
    for factor in factors:
        if "omega2_p" in (row := numbers.get(factor, {})):
            yield factor, words.number(row["omega2_p"], 3)


def _read(path: Path, model: type[BaseModel]) -> Any:
    return _checked(path, model, read_json(path))


def _checked(path: Path, model: type[BaseModel], content: Any) -> Any:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {problem}" for problem in explain(error, model)) from None
