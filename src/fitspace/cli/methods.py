"""Commands about methods and trained adapters."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fitspace.cli.commands import Commands
from fitspace.core.errors import UserError


def add(commands: Commands) -> None:
    count = commands.add(
        _count, "count", "Count trainable parameters from the configuration.", study=False
    )
    count.add_argument("--base", required=True, help="a named configuration, e.g. sd15")
    count.add_argument("--method", required=True, help="e.g. adapter")
    count.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    count.add_argument("--json", action="store_true", help="as JSON")

    export = commands.add(
        _export, "export", "Write an adapter in the formats of peft and diffusers.", study=False
    )
    export.add_argument("source", type=Path, metavar="RUN_FOLDER_OR_ADAPTER")
    export.add_argument("--out", type=Path, required=True, metavar="FOLDER")

    blocks = commands.add(
        _blocks, "blocks", "Rank blocks by how far DiffFit's factors moved.", study=False
    )
    blocks.add_argument("sources", type=Path, nargs="+", metavar="RUN_FOLDER_OR_ADAPTER")
    blocks.add_argument("--keep", type=int, metavar="N", help="blocks to name; default: half")


def _count(arguments: argparse.Namespace) -> None:
    from fitspace.plan import counting

    result = counting.count(arguments.base, arguments.method, _settings(arguments.settings))
    if arguments.json:
        print(json.dumps(result))
    else:
        print(f"{result['trainable']:,} of {result['total']:,} ({result['percent']:.3f}%)")


def _settings(pairs: list[str]) -> dict:
    import yaml

    settings, problems = {}, []
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            problems.append(f"--set: {pair!r}; expected KEY=VALUE")
            continue
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            problems.append(f"--set {key}: {value!r} is not a YAML value")
    if problems:
        raise UserError(problems)
    return settings


def _export(arguments: argparse.Namespace) -> None:
    from fitspace.methods.export import export

    for path in export(arguments.source, arguments.out):
        print(path)


def _blocks(arguments: argparse.Namespace) -> None:
    from fitspace.explaining.chosen import named, ranked

    moved = ranked(arguments.sources)
    keep = max(len(moved) // 2, 1) if arguments.keep is None else arguments.keep
    if not 1 <= keep <= len(moved):
        raise UserError(f"--keep: {keep}; allowed: 1 to {len(moved)}")
    print("mean |γ − 1|  block")
    for block, mean in moved.items():
        print(f"{mean:12.6f}  {block}")
    print(f"blocks: {named(list(moved)[:keep])}")
