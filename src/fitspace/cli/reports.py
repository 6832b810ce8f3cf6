"""Commands that report finished runs."""

from __future__ import annotations

import argparse
import os
import sys

from fitspace.cli.commands import Commands
from fitspace.core.errors import UserError


def add(commands: Commands) -> None:
    report = commands.add(_report, "report", "Make a study's analysis and report from its table.")
    report.add_argument(
        "--cached",
        action="store_true",
        help="first collect the table from finished runs; a missing run is an error",
    )
    report.add_argument(
        "--partial", action="store_true", help="with --cached: a missing run is a row, not an error"
    )

    rate = commands.add(_rate, "rate", "Write a page on which people compare samples, blinded.")
    rate.add_argument("--pairs", type=int, default=60, metavar="N", help="about how many; 60")
    rate.add_argument("--seed", type=int, default=0, help="seed of the draw")
    commands.add(_index, "index", "Write a page of all studies that have a report.", study=False)

    export = commands.add(
        _export, "export-tables", "Write a report's tables, figures and methods for a paper."
    )
    forms = export.add_mutually_exclusive_group()
    for form, what in (
        ("latex", "with booktabs and siunitx (default)"), ("typst", ""), ("csv", "all digits"),
    ):  # fmt: skip
        forms.add_argument(f"--{form}", action="store_const", const=form, dest="form", help=what)
    export.add_argument("--out", metavar="FOLDER", help="default: exported/<study>")
    export.set_defaults(form="latex")

    commands.add(_track, "track", "Import a study's finished runs into MLflow, each run once.")


def _report(arguments: argparse.Namespace) -> None:
    # The analysis' matrices are small: on a busy machine threads wait for each other, ten times as
    # long as one takes. Libraries read this as they are loaded, below.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from fitspace.core.files import renewing
    from fitspace.core.paths import REPORTS
    from fitspace.plan import planned
    from fitspace.report import build
    from fitspace.study.reading import form

    if arguments.partial and not arguments.cached:
        raise UserError("--partial: goes with --cached: it says what to do about missing runs")
    # The table is all that a report needs: no base, and no width that a budget is counted for.
    plan = planned(arguments.study) if arguments.cached else None
    study = plan.study if plan else form(arguments.study)
    folder = REPORTS / study.name
    with renewing(folder) as new:
        if plan:
            from fitspace.results.table import collect_into, unfinished

            collect_into(plan, new, arguments.partial)
            for line in unfinished(plan):
                print(f"missing: {line}", file=sys.stderr)
        made = build(study, new)
    print(folder / made.name)


def _rate(arguments: argparse.Namespace) -> None:
    from fitspace.core.paths import REPORTS
    from fitspace.plan import planned
    from fitspace.rating import write

    plan = planned(arguments.study)
    page = write(plan, REPORTS / plan.study.name, arguments.pairs, arguments.seed)
    print(f"{page}: open it; put what raters save into {page.parent}, then: fitspace report")


def _index(_: argparse.Namespace) -> None:
    from fitspace.core.paths import REPORTS
    from fitspace.report import index

    print(index.write(REPORTS))


def _export(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from fitspace.core.paths import REPORTS
    from fitspace.report.publishing import export
    from fitspace.study.reading import form

    study = form(arguments.study)
    out = Path(arguments.out or f"exported/{study.name}")
    written = export(study, REPORTS / study.name, out, arguments.form)
    print(f"{out}: {len(written)} files")


def _track(arguments: argparse.Namespace) -> None:
    from fitspace.plan import planned
    from fitspace.tracking import track

    print(track(planned(arguments.study)))
