"""An audit in words: the chain as a tree, the findings, the verdict."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fitspace.audit import Audit
from fitspace.audit.chain import Node
from fitspace.audit.findings import Distance, Finding
from fitspace.audit.hashes import UNREADABLE
from fitspace.audit.sources import is_shallow
from fitspace.results.lineage import SHORT, machine

_RUNS_SHOWN = 1
_ABSENT_SHOWN = 8
_DISTANCES_SHOWN = 40
_MARKS = {
    "verified": "ok",
    "changed": "CHANGED",
    "absent": "absent",
    "anew": "made anew",
    "left out": "ok, files left out",
    "": "",
}


def text(audit: Audit) -> str:
    """The output of `fitspace audit`."""
    found = [*_findings(audit.findings), *_distances(audit.distances)]
    return "\n".join([*tree(audit.chain), "", *found, verdict(audit)])


def tree(node: Node, before: str = "", after: str = "") -> Iterator[str]:
    """A node and everything below it; one run represents the verified ones."""
    mark = f"  [{_MARKS[node.state]}]" if node.state else ""
    yield f"{before}{node.title}{mark}"
    lines = [f"{k}: {v}" for k, v in _shown(node)]
    children = list(_some(node.children))
    stem = after + ("│  " if children else "   ")
    for line in lines:
        yield from textwrap.wrap(
            line, _width(), initial_indent=stem, subsequent_indent=f"{stem}  ",
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
    for i, child in enumerate(children):
        branch, stem = ("└─ ", "   ") if i == len(children) - 1 else ("├─ ", "│  ")
        yield from tree(child, after + branch, after + stem)


def _width() -> int:
    return max(60, shutil.get_terminal_size((110, 24)).columns)


def _some(children: list[Node]) -> Iterator[Node]:
    """All children except verified runs, of which only the first is included."""
    skipped, shown = 0, 0
    for child in children:
        is_run = bool(child.children) and "~s" in child.title and not child.facts
        if is_run and child.state != "changed":
            shown += 1
            if shown > _RUNS_SHOWN:
                skipped += 1
                continue
        yield child
    if skipped:
        yield Node(f"... and {skipped} more; --json has all")


def _shown(node: Node) -> Iterator[tuple[str, str]]:
    facts = node.facts
    if "files" in facts and "stage" not in facts:
        yield "files", str(len(facts["files"]))
    elif "stage" in facts:
        settings = {k: v for k, v in facts["material"].items() if k not in ("version", "base")}
        if settings:
            yield "from", _compact(settings)
        for name, value in facts["files"].items():
            yield name, f"SHA-256 {_short(value)}"
    elif "source_sha256" in facts:
        yield "source", f"SHA-256 {_short(facts['source_sha256'])}"
        yield "machine", machine(facts)
        yield "packages", f"Python {facts['python']}, {_compact(facts['packages'])}"
    elif node.title.startswith("row "):
        yield "cells", _compact(facts)
    else:
        for name, value in facts.items():
            yield name, _short(value)


def _compact(content: dict) -> str:
    parts = []
    for name, value in content.items():
        inner = f"{{{_compact(value)}}}" if isinstance(value, dict) else _short(value)
        parts.append(f"{name} {inner}")
    return ", ".join(parts)


def _short(value: object) -> str:
    """Abbreviate digests to their first characters."""
    text = str(value)
    return f"{text[:SHORT]}.." if re.fullmatch(r"[0-9a-f]{32,}", text) else text


def _findings(findings: list[Finding]) -> Iterator[str]:
    for finding in findings:
        if finding.kind == "changed":
            yield f"CHANGED  {finding.subject}: {finding.message}"
    absent = [f for f in findings if f.kind == "absent"]
    files = [f for f in absent if f.message == "not here"]
    rooms = Counter("/".join(Path(f.subject).parts[:2]) for f in files)
    for room, count in rooms.items():
        yield f"absent   {room}: {count} file{'s' * (count != 1)}"
    for finding in [f for f in absent if f not in files][:_ABSENT_SHOWN]:
        yield f"absent   {finding.subject}: {finding.message}"

    for finding in findings:
        if finding.kind == "left out":
            yield f"left out {finding.subject}: {finding.message}"
    anew = Counter(f.message for f in findings if f.kind == "anew" and "dvc.lock" not in f.message)
    for message, count in anew.items():
        yield f"anew     {count} stage{'s' * (count != 1)} {message}"
    files = [f.subject for f in findings if f.kind == "anew" and "dvc.lock" in f.message]
    if files:
        folder = Path(files[0]).parent
        yield f"anew     {folder}: dvc.lock records another making of it ({len(files)} files)"


def _distances(distances: list[Distance]) -> Iterator[str]:
    """Every run that was made anew, the one nearest to its limit first."""
    if not distances:
        return
    yield "Runs made anew, each with the metric nearest to its limit:"
    order = sorted(distances, key=lambda d: -d.apart / d.limit if d.limit else 0.0)
    for distance in order[:_DISTANCES_SHOWN]:
        yield f"  {distance.run}: {_apart(distance)}"
    if len(order) > _DISTANCES_SHOWN:
        yield f"  and {len(order) - _DISTANCES_SHOWN} further from their limits; --json has all"


def _apart(distance: Distance) -> str:
    if distance.metric is None:
        return "the same files"
    far = f"{distance.metric} is {distance.apart:.2g} away, {distance.limit:.2g} allowed"
    if distance.seeds is None:
        return far
    return f"{far}; that is {distance.seeds:.2g} standard deviations of the seeds"


def verdict(audit: Audit) -> str:
    """The last line."""
    counts = f"{audit.runs} runs, {audit.stages} stages, {audit.rehashed} files rehashed"
    if audit.tier != "hash":
        counts += f", tier {audit.tier}"
    if audit.verdict == "changed":
        changed = sum(f.kind == "changed" for f in audit.findings)
        return f"CHANGED: {changed} contradiction{'s' * (changed != 1)} ({counts})"
    if audit.verdict == "absent":
        return f"Absent: no contradiction, but some files are missing ({counts}){_cures(audit)}"
    if audit.verdict == "anew":
        study = audit.target.path
        return (
            f"Made anew: no contradiction, but the study was made again ({counts}). "
            f"To record these results: `fitspace record {study}`"
        )
    left_out = sum(f.kind == "left out" for f in audit.findings)
    but = f", but for {left_out} files that the bundle leaves out" if left_out else ""
    return f"Verified: everything is as it was recorded{but} ({counts})"


def _cures(audit: Audit) -> str:
    """What gets here what is not: of each kind the command that does."""
    absent = [f for f in audit.findings if f.kind == "absent"]
    results = any(f.message == "not here" or "DVC's cache" in f.message for f in absent)
    bundle = audit.target.folder.with_name(f"{audit.target.folder.name}.zip")
    said = {
        f"`fitspace restore {bundle}` gets results": results and bundle.is_file(),
        "`dvc pull` gets results that were recorded": results and Path(".dvc").is_dir(),
        "`git fetch --unshallow` gets the commits that this shallow clone lacks": any(
            f.subject.startswith("commit ") for f in absent
        )
        and is_shallow(),
        f"`{UNREADABLE}` lets files be read": any(UNREADABLE in f.message for f in absent),
    }
    return "".join(f"; {cure}" for cure, needed in said.items() if needed)
