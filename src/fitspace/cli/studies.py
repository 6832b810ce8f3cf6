"""Commands about a study before it runs."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

from fitspace.cli.commands import Commands


def add(commands: Commands) -> None:
    commands.add(_check, "check", "Validate a study file: every problem at once.")
    commands.add(_fetch, "fetch", "Download what a study names by hub id.")
    commands.add(_tune, "tune", "Write the study whose runs choose a study's settings.")
    plan = commands.add(_plan, "plan", "Print a study's design before anything runs.")
    plan.add_argument("--delta", type=float, help="difference between two levels to detect")
    plan.add_argument("--sigma", type=float, help="residual standard deviation; else the pilot's")
    plan.add_argument(
        "--pilot",
        type=Path,
        metavar="RUNS.csv",
        help="a pilot study's table, for sigma and recorded times; default: "
        "reports/<study>/runs.csv",
    )
    plan.add_argument("--subset", type=int, metavar="N", help="plan N cells for each arm")
    plan.add_argument("--json", action="store_true", help="as JSON")


def _check(arguments: argparse.Namespace) -> None:
    from fitspace.plan import checked, looked

    study, models = checked(arguments.study)
    said = looked(study, models)
    print(f"{arguments.study}: study {study.name!r} is valid")
    for line in said:
        print(f"  {line}")
    for missing in models.absent:
        print(f"fitspace: not here yet: {missing}", file=sys.stderr)


def _fetch(arguments: argparse.Namespace) -> None:
    from fitspace.plan import Models, fetch

    study = fetch(arguments.study)
    print(f"{arguments.study}: everything that it names by hub id is on this machine")
    models = Models(study)
    if models.absent:  # what no hub has
        for problem in models.absent:
            print(f"fitspace: not here yet: {problem}", file=sys.stderr)
        models = Models(study.model_copy(update=dict.fromkeys(study.weights)))
    lines = models.pins
    said = "these lines pin the study to it:" if lines else "the study file already pins it"
    print("\n".join([said, *lines]))


def _tune(arguments: argparse.Namespace) -> None:
    from fitspace.core.errors import UserError
    from fitspace.core.files import write_text
    from fitspace.plan import checked
    from fitspace.study import TUNING
    from fitspace.study.tuning import text

    path = arguments.study
    study, _ = checked(path)
    if study.tuning is None:
        raise UserError(f"{path}: no key 'tuning': it chooses no settings")
    to, content = path.with_name(f"{study.name}{TUNING}.yaml"), text(study, path.name)
    if to.exists() and not to.read_text(encoding="utf-8").startswith(content.partition("\n")[0]):
        raise UserError(f"{to}: not written by fitspace tune for {path}; move it away first")
    write_text(to, content)
    print(f"{to}: next: snakemake --cores all --config study={shlex.quote(str(to))}")


def _plan(arguments: argparse.Namespace) -> None:
    from fitspace.plan import checked
    from fitspace.plan.overview import describe, with_subset
    from fitspace.plan.rendering import render

    study, models = checked(arguments.study)
    if arguments.subset is not None:
        study, models = with_subset(study, models, arguments.subset)
    overview = describe(
        study, models, delta=arguments.delta, sigma=arguments.sigma, pilot=arguments.pilot
    )
    print(json.dumps(overview, indent=2) if arguments.json else render(overview))
