"""What a report is made of: the files of ``reports/<study>``, checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fitspace.config import Study
from fitspace.errors import UserError
from fitspace.files import sha256

IDENTITY = ("run", "point", "arm", "method", "task", "seed", "status")
STATUSES = ("ok", "failed", "missing")
COSTS = ("trainable", "train_seconds")


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
class Inputs:
    """``text`` is runs.csv as it stands; ``runs`` has levels in order and numbers as floats."""

    study: Study
    text: pd.DataFrame
    runs: pd.DataFrame
    strips: list[Strip]
    dropped: list[str]
    digests: dict[str, str]
    notes: list[str]


def read(study: Study, folder: Path) -> Inputs:
    """Read and check the inputs of a report.

    Raises
    ------
    UserError : every problem of runs.csv, gallery.json and design.json.
    """
    from fitspace.stats.reading import read_text

    path = folder / "runs.csv"
    text = read_text(path)
    needed = [*IDENTITY, *study.analysis.factors, *study.analysis.responses]
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
        for name in dict.fromkeys([*study.analysis.responses, *COSTS]):
            if name in text.columns:
                runs[name], bad, more = _numbers(text, name)
                problems += [f"{path}: column {name!r}: {cell!r} is no number" for cell in bad]
                notes += more
        for name in study.analysis.factors:
            given = text[name].str.strip()
            runs[name] = pd.Categorical(given, levels(study, given, name))
    strips, more = _strips(folder)
    design, worse = _json(folder / "design.json", dict)
    if problems or more or worse:
        raise UserError(problems + more + worse)
    files = [p for p in (path, folder / "gallery.json", folder / "design.json") if p.exists()]
    digests = {p.name: sha256(p) for p in files}
    planned = (design or {}).get("runs", len(text))
    if planned != len(text):
        notes.append(f"design.json plans {planned} runs, runs.csv has {len(text)} rows")
    dropped = [str(message) for message in (design or {}).get("dropped", [])]
    return Inputs(study, text, runs, strips, dropped, digests, notes)


def levels(study: Study, given: pd.Series, factor: str) -> list[str]:
    """A factor's levels: in the study's order, then what else the table has."""
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


def _json(path: Path, kind: type) -> tuple[Any, list[str]]:
    if not path.exists():
        return None, []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return None, [f"{path}: not readable JSON: {error}"]
    if not isinstance(content, kind):
        found = type(content).__name__
        return None, [f"{path}: holds a {found}; needed: a {kind.__name__}"]
    return content, []


def _strips(folder: Path) -> tuple[list[Strip], list[str]]:
    entries, problems = _json(folder / "gallery.json", list)
    strips = []
    for index, entry in enumerate(entries or []):
        where = f"{folder / 'gallery.json'}[{index}]"
        try:
            path = folder / entry["file"]
            strip = Strip(
                task=entry["task"],
                role=entry["role"],
                run=entry["run"],
                point=entry["point"],
                path=path,
                file=entry["file"],
                size=int(entry["size"]),
                captions=[str(caption) for caption in entry["captions"]],
                attribution=str(entry["attribution"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            problems.append(f"{where}: {type(error).__name__}: {error}; needed: a gallery entry")
            continue
        if not path.resolve().is_relative_to(folder.resolve()):
            problems.append(f"{where}.file: {entry['file']!r} leads out of the report's folder")
        elif not path.is_file():
            problems.append(f"{where}.file: {entry['file']!r}: no such file")
        strips.append(strip)
    return strips, problems
