"""The inputs of a report: the files of ``reports/<study>``, checked."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field, ValidationError

from fitspace import rating
from fitspace.core.errors import UserError
from fitspace.core.files import read_json, sha256
from fitspace.core.reading import Recorded, explain
from fitspace.explaining.reading import TUNED, UNTOUCHED
from fitspace.metrics import INTERVAL, METRICS
from fitspace.plan.looks import own_rows
from fitspace.rating import Answers
from fitspace.report import tuned, words
from fitspace.results import lineage
from fitspace.results.table import ANATOMY, DATA_NOTES, SENSITIVITY, VALIDATED, picture
from fitspace.study import CHECKPOINT, Study

IDENTITY = ("run", "point", "arm", "method", "task", "seed", "status")
STATUSES = ("ok", "failed", "missing")
COUNTS = {"n": "samples", "m": "reference images"}
CURVE = ("n", "fd_effnet", "kid_effnet")
# Tables of explained runs -> their columns: text, numbers. A cell may be empty, but for those of
# NEVER_EMPTY, which have some of these values where any are named.
EXPLAINED = {
    SENSITIVITY: (("run", "model", "block"), ("step", "ratio")),
    ANATOMY: (("run", "part", "block", "kind"), ("value", "base")),
}
NEVER_EMPTY = {
    "run": (),
    "model": (TUNED, UNTOUCHED),
    "part": ("change", "gamma", "rank"),
}
COSTS = ("trainable", "train_seconds", "sample_seconds", "peak_memory_mb")


@dataclass(frozen=True)
class Strip:
    """One gallery entry: ``count`` square images side by side in a PNG file."""

    task: str
    role: str
    run: str | None
    point: str | None
    path: Path
    file: str  # as gallery.json has it, from the report's folder
    size: int
    captions: list[str]
    attribution: str


@dataclass(frozen=True)
class Picture:
    """The picture of a run's explanation, a PNG file; ``file`` is from the report's folder."""

    task: str
    role: str
    point: str
    file: str
    size: tuple[int, int]
    content: bytes


@dataclass(frozen=True)
class Inputs:
    """``text`` is runs.csv as text; ``drawn`` has ordered levels and numbers as floats, ``runs`` of
    them those that are analysed: one of each training (see `own_rows`). Their index is the row
    in the file, from 0. ``against_n`` has the distances of each run by number of samples, if
    measured; ``sensitivity`` and ``anatomy`` what explains the runs, if asked for; ``tuning`` what
    tuning tried, if the study has it; ``answers`` what people said of its samples; ``made`` maps
    the code and machines behind the runs to their numbers of stages."""

    study: Study
    text: pd.DataFrame
    drawn: pd.DataFrame
    runs: pd.DataFrame
    against_n: pd.DataFrame | None
    sensitivity: pd.DataFrame | None
    anatomy: pd.DataFrame | None
    tuning: pd.DataFrame | None
    answers: Answers | None
    strips: list[Strip]
    pictures: list[Picture]
    dropped: list[str]
    digests: dict[str, str]
    notes: list[str]
    made: dict[str, int]


def read(study: Study, folder: Path) -> Inputs:
    """Read and check the inputs of a report.

    Raises
    ------
    UserError : every problem of runs.csv, against_n.csv, gallery.json, design.json and
        provenance.json; finished runs measured on different numbers of images.
    """
    from fitspace.stats.reading import read_text

    path = folder / "runs.csv"
    text = read_text(path)
    needed = [*IDENTITY, *study.analysis.factors, *study.analysis.responses]
    needed += ["steps"] if CHECKPOINT in text else []
    problems = [
        f"{path}: no column {name!r}; columns: {', '.join(text.columns)}"
        for name in dict.fromkeys(needed)
        if name not in text.columns
    ]
    notes: list[str] = []
    runs = text.copy()
    if not problems:
        odd = sorted(set(text["status"].dropna()) - set(STATUSES))
        problems += [f"{path}: status {s!r}; allowed: {', '.join(STATUSES)}" for s in odd]
        numeric = [*study.analysis.responses, *COSTS, *words.METRICS, *COUNTS, *INTERVAL]
        numeric += [f"{name}{VALIDATED}" for name in study.analysis.responses]
        for name in dict.fromkeys(numeric):
            if name in text.columns:
                runs[name], bad, more = _numbers(text, name)
                problems += [f"{path}: column {name!r}: {cell!r} is no number" for cell in bad]
                notes += more
        for name in study.analysis.factors:
            given = text[name].str.strip()
            runs[name] = pd.Categorical(given, levels(study, given, name))
        problems += _twice(path, text)
        problems += _unequal(path, runs, study.analysis.responses)
        notes += _lost(runs, study.analysis.factors)
    curves, odd_curves = _against_n(folder / "against_n.csv", text)
    explained = {name: _explained(folder / name, text) for name in EXPLAINED}
    odd_curves += [problem for _, found in explained.values() for problem in found]
    answers, odd = _answers(study, folder)
    odd_curves += odd
    tuning, odd = tuned.read(study, folder / tuned.NAME)
    odd_curves += odd
    found, more = strips(folder)
    pictures, unseen = _pictures(folder, found)
    more += unseen
    design, worse = _design(folder / "design.json")
    of_data, wrong = _data_notes(folder / DATA_NOTES)
    if problems or odd_curves or more or worse or wrong:
        raise UserError(problems + odd_curves + more + worse + wrong)
    files = ("runs.csv", "against_n.csv", *EXPLAINED, tuned.NAME)
    files += ("gallery.json", "design.json", DATA_NOTES, lineage.NAME)
    files += tuple(path.relative_to(folder).as_posix() for path in answers.files) if answers else ()
    digests = {name: sha256(folder / name) for name in files if (folder / name).exists()}
    planned = len(text) if design is None else design.runs
    if planned != len(text):
        notes.append(f"design.json plans {planned} runs, runs.csv has {len(text)} rows")
    notes += of_data
    dropped = [] if design is None else design.dropped
    made = _made(folder)
    own = runs[own_rows(study, runs)]
    tables = [explained[name][0] for name in (SENSITIVITY, ANATOMY)]
    return Inputs(
        study,
        text,
        runs,
        own,
        curves,
        *tables,
        tuning,
        answers,
        found,
        pictures,
        dropped,
        digests,
        notes,
        made,
    )


def _answers(study: Study, folder: Path) -> tuple[Answers | None, list[str]]:
    try:
        return rating.read(folder, study.name), []
    except UserError as error:
        return None, error.problems


def _made(folder: Path) -> dict[str, int]:
    if not (folder / lineage.NAME).exists():
        return {}
    known = lineage.read(folder)
    stages = Counter(record.environment for record in known.records.values())
    programs: Counter[str] = Counter()
    for name, made in known.environments.items():
        programs[lineage.program(made)] += stages[name]
    return dict(programs)


def levels(study: Study, given: pd.Series, factor: str) -> list[str]:
    """A factor's levels: those of the study in its order, then others from the table."""
    own = {"arm": lambda arm: [arm.title], "method": lambda arm: [arm.method]}
    of_arm = own.get(factor, lambda arm: arm.factors.get(factor, []))
    declared = [str(level) for arm in study.arms for level in of_arm(arm)]
    present = given.dropna()
    return list(dict.fromkeys([*declared, *present[present != ""]]))


def _numbers(text: pd.DataFrame, name: str) -> tuple[pd.Series, list[str], list[str]]:
    values = pd.to_numeric(text[name], errors="coerce").astype(float)
    infinite = values.abs() == float("inf")
    written = text[name].str.strip().str.lower()
    undefined = infinite | written.isin(["nan", "-nan"])
    bad = text[name][values.isna() & text[name].notna() & ~undefined]
    notes = []
    if undefined.any():
        notes = [f"{name}: {int(undefined.sum())} value(s) that are not finite were left out"]
    return values.mask(undefined), list(bad.unique()[:5]), notes


def _lost(runs: pd.DataFrame, factors: list[str], shown: int = 10) -> list[str]:
    """Notes on the runs that did not finish: which, why, and how many of each level."""
    lost = runs[runs["status"].isin(["failed", "missing"])]
    if lost.empty:
        return []
    why = lost["diverged"] if "diverged" in lost else pd.Series(None, lost.index)
    notes = ["unfinished runs are left out; all results are conditional on runs that finish"]
    for run, status, reason in zip(lost["run"][:shown], lost["status"], why, strict=False):
        notes.append(f"{run}: {status}" + (f" ({reason})" if isinstance(reason, str) else ""))
    if len(lost) > shown:
        notes.append(f"and {len(lost) - shown} more lost runs (runs.csv, column status)")
    for factor in factors:
        shares = lost[factor].astype(str).value_counts(), runs[factor].astype(str).value_counts()
        parts = [
            f"{level} {shares[0][level]} of {shares[1][level]}"
            for level in runs[factor].cat.categories
            if shares[0].get(level)
        ]
        if parts:
            notes.append(f"lost by {factor}: {', '.join(parts)}")
    return notes


def _unequal(path: Path, runs: pd.DataFrame, responses: list[str]) -> list[str]:
    """Why finished runs cannot be compared: they were measured on different numbers of images.

    A table without these numbers is accepted if no response depends on them: CLIP-T, CLIP-I,
    diversity and KID have the same expected value at every n.
    """
    finished = runs[runs["status"] == "ok"]
    biased = [name for name in responses if name in METRICS and METRICS[name].depends_on_n]
    if "n" not in finished or finished["n"].isna().all():
        return [
            f"{path}: no number of samples in column 'n'; {name!r} depends on it and is compared "
            "at equal n only"
            for name in biased
        ]
    groups = [("n", "", finished)]
    if "m" in finished:
        groups += [("m", f" of task {t!r}", rows) for t, rows in finished.groupby("task")]
    return [
        f"{path}: column {name!r}: {_runs_by(rows, name)}; needed: the same number of "
        f"{COUNTS[name]} in all finished runs{where}: the Fréchet distance falls with {name}"
        for name, where, rows in groups
        if rows[name].nunique(dropna=False) > 1
    ]


def _twice(path: Path, text: pd.DataFrame) -> list[str]:
    """Runs, and points of a task and seed, in more than one row: all but one are wrong."""
    unit = ["point", "task", "seed"]
    same = text[text.duplicated("run", keep=False)]
    problems = [
        f"{path}: run {name!r} stands {len(rows)} times" for name, rows in same.groupby("run")
    ]
    alike = text[text.duplicated(unit, keep=False) & ~text["run"].isin(same["run"])]
    problems += [
        f"{path}: {' and '.join(map(repr, rows['run'][:3]))} have the same point, task and seed"
        for _, rows in alike.groupby(unit)
    ]
    return problems[:20]


def _runs_by(rows: pd.DataFrame, name: str, shown: int = 3) -> str:
    """The runs of each value of a column, the rarest value first, because it is the odd one."""
    groups = sorted(rows.groupby(name, dropna=False)["run"], key=lambda group: len(group[1]))
    parts = []
    for value, runs in groups:
        more = f" and {len(runs) - shown} more" if len(runs) > shown else ""
        number = "no number" if pd.isna(value) else f"{value:g}"
        parts.append(f"{number} in {', '.join(runs[:shown])}{more}")
    return "; ".join(parts)


def _against_n(path: Path, runs: pd.DataFrame) -> tuple[pd.DataFrame | None, list[str]]:
    from fitspace.stats.reading import read_text

    if not path.exists():
        return None, []
    text = read_text(path)
    problems = [
        f"{path}: no column {name!r}; columns: {', '.join(text.columns)}"
        for name in ("run", *CURVE)
        if name not in text.columns
    ]
    if problems:
        return None, problems
    curves = text[["run", *CURVE]].copy()
    for name in CURVE:
        values = pd.to_numeric(text[name], errors="coerce").astype(float)
        kind, sound = "finite number", values.abs() < float("inf")
        if name == "n":
            kind, sound = "number of samples", sound & (values % 1 == 0) & (values > 0)
        bad = text[name][~sound].fillna("an empty cell").unique()
        problems += [f"{path}: column {name!r}: {cell!r} is no {kind}" for cell in bad[:5]]
        curves[name] = values
    if "run" in runs.columns:
        unknown = text["run"][~text["run"].isin(runs["run"])].unique()
        problems += [f"{path}: run {run!r} is not in runs.csv" for run in unknown[:5]]
    twice = curves[curves.duplicated(["run", "n"])]
    problems += [f"{path}: run {r.run!r} has n = {r.n:g} twice" for r in twice[:5].itertuples()]
    return (None if problems else curves.astype({"n": int})), problems


def _explained(path: Path, runs: pd.DataFrame) -> tuple[pd.DataFrame | None, list[str]]:
    """A table of explained runs, and what is wrong with it."""
    from fitspace.stats.reading import read_text

    if not path.exists():
        return None, []
    texts, numbers = EXPLAINED[path.name]
    text = read_text(path)
    problems = [
        f"{path}: no column {name!r}; columns: {', '.join(text.columns)}"
        for name in (*texts, *numbers)
        if name not in text.columns
    ]
    if problems:
        return None, problems
    table = text[[*texts, *numbers]].copy()
    for name in numbers:
        values = pd.to_numeric(text[name], errors="coerce").astype(float)
        bad = text[name][text[name].notna() & ~(values.abs() < float("inf"))].unique()
        problems += [f"{path}: column {name!r}: {cell!r} is no finite number" for cell in bad[:5]]
        table[name] = values
    for name, allowed in NEVER_EMPTY.items():
        if name not in texts:
            continue
        if text[name].isna().any():
            problems.append(f"{path}: column {name!r}: an empty cell")
        odd = sorted(set(text[name].dropna()) - set(allowed)) if allowed else []
        problems += [f"{path}: {name} {cell!r}; allowed: {', '.join(allowed)}" for cell in odd[:5]]
    if "run" in runs.columns:
        unknown = text["run"][~text["run"].isin(runs["run"])].dropna().unique()
        problems += [f"{path}: run {run!r} is not in runs.csv" for run in unknown[:5]]
    return (None if problems else table), problems


class _Design(Recorded):
    runs: int = Field(ge=0)
    dropped: list[str] = []


def _design(path: Path) -> tuple[_Design | None, list[str]]:
    if not path.exists():
        return None, []
    try:
        return _Design.model_validate(read_json(path)), []
    except UserError as error:
        return None, error.problems
    except ValidationError as error:
        return None, [f"{path}: {problem}" for problem in explain(error, _Design)]


def _data_notes(path: Path) -> tuple[list[str], list[str]]:
    """What is to be known of the tasks' images and captions, and what is wrong with the file."""
    if not path.exists():
        return [], []
    try:
        content = read_json(path)
    except UserError as error:
        return [], error.problems
    if not all(
        isinstance(n, list) and all(isinstance(x, str) for x in n) for n in content.values()
    ):
        return [], [f"{path}: needed: task -> a list of notes"]
    return [f"task {task}: {note}" for task, notes in content.items() for note in notes], []


class _Entry(Recorded):
    task: str
    role: str
    run: str | None
    point: str | None
    file: str = Field(max_length=400, pattern=r"^[^\x00]+$")
    size: int = Field(ge=1, le=8192)
    captions: list[str] = Field(max_length=1000)
    attribution: str


def strips(folder: Path) -> tuple[list[Strip], list[str]]:
    """The entries of gallery.json, and what is wrong with them; none without the file."""
    listing = folder / "gallery.json"
    if not listing.exists():
        return [], []
    try:
        entries = read_json(listing, list)
    except UserError as error:
        return [], error.problems
    found, problems = [], []
    for index, content in enumerate(entries):
        where = f"{listing}[{index}]"
        try:
            entry = _Entry.model_validate(content)
        except ValidationError as error:
            problems += [f"{where}.{p}; needed: a gallery entry" for p in explain(error, _Entry)]
            continue
        path = folder / entry.file
        if not path.resolve().is_relative_to(folder.resolve()):
            problems.append(f"{where}.file: {entry.file!r} leads out of the report's folder")
        elif not path.is_file():
            problems.append(f"{where}.file: {entry.file!r}: no such file")
        elif wrong := _no_strip(path, entry):
            problems.append(f"{where}.file: {entry.file!r}: {wrong}")
        found.append(
            Strip(path=path, **{name: getattr(entry, name) for name in _Entry.model_fields})
        )
    return found, problems


def _pictures(folder: Path, strips: list[Strip]) -> tuple[list[Picture], list[str]]:
    """The pictures that explain runs of the gallery, and what is wrong with them."""
    found, problems = [], []
    for strip in strips:
        file = picture(strip.task, strip.role)
        path = folder / file
        # A gallery that names a task elsewhere has no picture.
        inside = path.resolve().is_relative_to(folder.resolve())
        if strip.point is None or not inside or not path.is_file():
            continue
        try:
            content = path.read_bytes()
            found.append(
                Picture(strip.task, strip.role, strip.point, file, _png(BytesIO(content)), content)
            )
        except Exception as error:  # a decoder raises anything on damaged bytes
            problems.append(f"{path}: no PNG ({type(error).__name__})")
    return found, problems


def _png(source: Any) -> tuple[int, int]:
    """Width and height of a PNG [px]; reads only the header."""
    from PIL import Image

    with Image.open(source, formats=["PNG"]) as image:
        return image.size


def _no_strip(path: Path, entry: _Entry) -> str | None:
    """Why a file is not the PNG that its entry describes; reads only the header."""
    wanted = (entry.size * len(entry.captions), entry.size)
    try:
        found = _png(path)
    except Exception as error:  # a decoder raises anything on damaged bytes
        return f"no PNG ({type(error).__name__})"
    return None if found == wanted else f"{found[0]}x{found[1]}; needed: {wanted[0]}x{wanted[1]}"
