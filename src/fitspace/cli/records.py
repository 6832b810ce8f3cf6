"""Commands that record results and verify them."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from fitspace.cli import process
from fitspace.cli.commands import Commands


def add(commands: Commands) -> None:
    record = commands.add(_record, "record", "Verify results, record them in DVC, audit.")
    record.add_argument(
        "--dirty", action="store_true", help="accept uncommitted files; list them beside the report"
    )
    gc = commands.add(
        _gc, "gc", "List results that no study or recorded commit names.", study=False
    )
    gc.add_argument("--yes", action="store_true", help="remove them")

    audit = commands.add(
        _audit, "audit", "Trace a number, a table or a report and verify it.", study=False
    )
    audit.add_argument(
        "target",
        type=Path,
        nargs="?",
        help="a study file, a report, one of its tables, or a bundle (.zip)",
    )
    audit.add_argument(
        "--value",
        metavar="TABLE.csv#ROW/COLUMN",
        help="audit one number; ROW is a number (3) or a cell (source=input)",
    )
    audit.add_argument(
        "--tier",
        choices=("hash", "regenerate", "reevaluate", "retrain"),
        default="regenerate",
        help="depth of the audit: rehash files; make the report again (the default); compute "
        "metrics and explanations again; train runs again",
    )
    audit.add_argument("--runs", nargs="+", default=[], metavar="RUN", help="runs to redo")
    audit.add_argument("--draw", type=int, default=0, metavar="N", help="redo N runs at random")
    audit.add_argument("--seed", type=int, default=0, help="seed of the draw")
    form = audit.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the whole chain as JSON")
    form.add_argument("--prov", action="store_true", help="print the whole chain as W3C PROV-JSON")
    form.add_argument("--crate", type=Path, metavar="FOLDER", help="write an RO-Crate")

    bundle = commands.add(
        _bundle, "bundle", "Write a study with its results as one file that can be audited alone."
    )
    bundle.add_argument(
        "--light",
        action="store_true",
        help="for git: without what a clone has, or makes again from what it has",
    )
    bundle.add_argument(
        "--largest", type=_mebibytes, metavar="MIB", help="leave out results larger than this"
    )
    restore = commands.add(
        _restore, "restore", "Put a bundle's results into this project.", study=False
    )
    restore.add_argument("bundle", type=Path, metavar="BUNDLE.zip")


def _mebibytes(text: str) -> int:
    try:
        value = int(float(text) * 2**20)
    except (ValueError, OverflowError):
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: a number of MiB above 0")
    return value


def _record(arguments: argparse.Namespace) -> int:
    from fitspace import audit
    from fitspace.audit import recording, show

    found = recording.record(arguments.study, dirty=arguments.dirty)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    changed = found.audit.verdict == "changed"
    print((show.text if changed else show.verdict)(found.audit))
    print(recording.describe(found))
    return audit.EXIT["changed"] if changed else 0


def _gc(arguments: argparse.Namespace) -> None:
    from fitspace.audit import garbage

    found = garbage.find()
    if arguments.yes:
        garbage.remove(found)
    print(garbage.describe(found, removed=arguments.yes))


def _audit(arguments: argparse.Namespace) -> int:
    again = arguments.tier == "reevaluate"
    if again:  # as in a job, so that the bits can be the same
        process.limit_threads()
        process.set_up_torch()
    target = arguments.target
    if target is None or target.suffix != ".zip":
        return _audited(arguments, target, [])
    from fitspace.audit import bundle

    if arguments.crate:
        arguments.crate = arguments.crate.resolve()
    deep = arguments.tier != "hash"
    with bundle.working_in(target, deep, again) as (study, findings):
        return _audited(arguments, study, findings)


def _audited(arguments: argparse.Namespace, target: Path | None, findings: list) -> int:
    from fitspace import audit

    found = audit.audit(
        target,
        value=arguments.value,
        tier=arguments.tier,
        runs=arguments.runs,
        draw=arguments.draw,
        seed=arguments.seed,
        findings=findings,
    )
    if arguments.json:
        print(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
    elif arguments.prov:
        from fitspace.audit import prov

        value = found.target.value
        content = None if value is None else value.content
        print(prov.text(prov.document(found.lineage, found.records, content)), end="")
    else:
        from fitspace.audit import show

        print(show.text(found))
    if arguments.crate and found.verdict == "changed":
        print(f"{arguments.crate}: not written: its content would contradict itself")
    elif arguments.crate:
        from fitspace.audit import crate

        written = crate.write(
            found.target.path, found.lineage, found.target.folder, arguments.crate
        )
        print(f"{arguments.crate}: an RO-Crate of {len(written)} files")
    return audit.EXIT[found.verdict]


def _bundle(arguments: argparse.Namespace) -> None:
    from fitspace.audit import bundle

    made = bundle.write(arguments.study, arguments.light, arguments.largest)
    size = made.path.stat().st_size / 2**20
    print(f"{made.path}: {size:.1f} MiB, {made.files} files")
    if made.left_out:
        left = sum(made.left_out.values()) / 2**20
        print(f"left out: {len(made.left_out)} files of results, {left:.1f} MiB")


def _restore(arguments: argparse.Namespace) -> int:
    process.limit_threads()  # as in a job, so that the bits can be the same
    process.set_up_torch()
    from fitspace import audit
    from fitspace.audit import bundle

    found = bundle.restore(arguments.bundle)
    print(f"{arguments.bundle}: {found.stages} stages are in results")
    for folder, why in found.missing.items():
        print(f"absent   {folder}: {why}")
    print(f"next: fitspace audit {found.study}")
    return audit.EXIT["absent"] if found.missing else 0
