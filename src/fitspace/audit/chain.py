"""The chain from a number back to its sources, as a tree."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fitspace.audit.findings import Finding
from fitspace.audit.target import Target
from fitspace.core.errors import UserError
from fitspace.core.files import read_json
from fitspace.plan import STAGES
from fitspace.results import lineage as lineages
from fitspace.results.lineage import Lineage, Record


@dataclass
class Node:
    """One link of the chain: its title, its facts, and the links that it was made from.

    ``state`` is ``verified``, ``changed``, ``absent``, ``anew`` or ``left out``; empty if it has no
    file.
    """

    title: str
    facts: dict[str, Any] = field(default_factory=dict)
    state: str = ""
    children: list[Node] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        content = {"title": self.title, "state": self.state or None, "facts": self.facts}
        return content | {"made_from": [child.as_json() for child in self.children]}


def of(
    target: Target, lineage: Lineage, records: Iterable[Record], findings: list[Finding]
) -> Node:
    """The chain of a target: value, table row, code and machines, models, tasks, runs."""
    records = list(records)
    states = _States(findings)
    runs = [record for record in records if record.stage == "evaluate"]
    root = Node(target.folder.as_posix())
    if target.table:
        path = (target.folder / target.table).as_posix()
        root = Node(path, state=states.of([path]))
    if target.value:
        value = target.value
        root.title = f"{root.title}#{value.row}/{value.column} = {value.text}"
        cells = {name: text for name, text in value.cells.items() if text}
        root.children.append(Node(f"row {value.row} of {value.table}", cells))
    root.children.append(Node(f"study {target.path.as_posix()}", {"name": target.study.name}))
    for name, model in lineage.models.items():
        paths = [f"{model['path']}/{file}" for file in model["files"]]
        facts = {"files": model["files"]}
        root.children.append(Node(f"{name} {model['path']}", facts, states.of([name, *paths])))
    root.children += _environments(lineage, records, states)
    root.children += [_task(r, lineage, states) for r in records if r.stage == "prepare"]
    every = Node(f"{len(runs)} run{'' if len(runs) == 1 else 's'}")
    every.children = [_run(record, lineage, states) for record in runs]
    root.children.append(every)
    return root


# A link's states, the worst first: the kinds of findings, and none.
_STATES = ("changed", "absent", "anew", "left out", "verified")


class _States:
    def __init__(self, findings: list[Finding]):
        self.kinds: dict[str, set[str]] = {}
        for finding in findings:
            self.kinds.setdefault(finding.subject, set()).add(finding.kind)

    def of(self, subjects: Iterable[str]) -> str:
        found = {kind for subject in subjects for kind in self.kinds.get(subject, ())}
        return _worst({"verified"} | found)


def _environments(lineage: Lineage, records: list[Record], states: _States) -> list[Node]:
    nodes = []
    for name in dict.fromkeys(r.environment for r in records):
        count = sum(r.environment == name for r in records)
        if name is None:
            title = f"{count} stages whose sidecars were missing when the table was collected"
            nodes.append(Node(title, state="absent"))
            continue
        made = lineage.environments[name]
        git = made.get("git") or {}
        packages = [f"package {package}" for package in made["packages"]]
        subjects = [f"commit {git.get('commit')}", "code", *packages]
        nodes.append(
            Node(f"{count} stages made by {lineages.code(made)}", made, states.of(subjects))
        )
    return nodes


def _task(record: Record, lineage: Lineage, states: _States) -> Node:
    node = _stage(record, states)
    source = record.material.get("source", {})
    node.children.append(Node("source images", source | _images(record)))
    prior = lineage.records.get(("prior", record.material.get("prior")))
    if prior is not None:
        node.children.append(_stage(prior, states))
    return node


def _images(record: Record) -> dict[str, Any]:
    """The images of a task according to its manifest, if the manifest is present."""
    try:
        manifest = read_json(Path(record.folder) / "manifest.json")
        examples = manifest["examples"]
        held_out = sum(e["split"] == "test" for e in examples)
    except (UserError, KeyError, TypeError):
        return {}
    return {
        "training images": len(examples) - held_out,
        "held-out images": held_out,
        "attribution": manifest.get("attribution", ""),
    }


def _run(record: Record, lineage: Lineage, states: _States) -> Node:
    """metrics and explanation <- samples, reference features <- adapter; the task is a link of its
    own."""
    node = Node(Path(record.folder).name)
    chain = [r for r in lineage.behind(record) if r.stage not in ("prepare", "prior")]
    node.children = [_stage(r, states) for r in chain]
    node.state = _worst(child.state for child in node.children)
    return node


def _stage(record: Record, states: _States) -> Node:
    paths = [f"{record.folder}/{name}" for name in record.files]
    material = {k: v for k, v in record.material.items() if k not in ("stage", "source")}
    facts = {
        "stage": record.stage,
        "key": record.key,
        "material": material,
        "files": record.files,
        "environment": record.environment,
        "started": record.started,
        "finished": record.finished,
    }
    return Node(
        f"{STAGES[record.stage].title} {record.folder}", facts, states.of([record.folder, *paths])
    )


def _worst(states: Iterable[str]) -> str:
    states = set(states)
    return next((state for state in _STATES if state in states), "")
