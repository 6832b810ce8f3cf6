"""The command line: thin, one command per stage and per question.

Bad input exits with code 2 and one line a problem. Heavy libraries are imported by the
command that needs them.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fitspace import __version__
from fitspace.core.errors import UserError, printable

# What a full, read-only or foreign file system says; whatever was there before is still there.
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for bad input, or what the command says."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments) or 0
    except UserError as error:
        return _refuse(error.problems)
    except BrokenPipeError:
        # The reader (head, less) went away: not an error, and nothing more to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        return _refuse([f"{error.filename or 'a file'}: cannot be written: {error.strerror}"])
    except KeyboardInterrupt:
        print("fitspace: interrupted", file=sys.stderr)
        return 130
    return 0


def _refuse(problems: list[str]) -> int:
    for problem in problems:
        print(f"fitspace: {printable(problem)}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fitspace",
        description="Designed experiments on parameter-efficient fine-tuning of diffusion models.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run, name: str, text: str, study: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        if study:
            sub.add_argument("study", type=Path, metavar="STUDY.yaml")
        return sub

    command(_check, "check", "Validate a study file: every problem at once.")
    command(_fetch, "fetch", "Download what a study names by hub id.")
    plan = command(_plan, "plan", "Print a study's design before anything runs.")
    plan.add_argument("--delta", type=float, help="difference of two levels that is to be found")
    plan.add_argument("--sigma", type=float, help="residual standard deviation; else the pilot's")
    plan.add_argument(
        "--pilot",
        type=Path,
        metavar="RUNS.csv",
        help="a pilot study's table, for sigma and recorded times; else reports/<study>/runs.csv",
    )
    plan.add_argument("--subset", type=int, metavar="N", help="as if each arm ran N of its cells")
    plan.add_argument("--json", action="store_true", help="as JSON")

    count = command(_count, "count", "Count trainable parameters from the configuration.", False)
    count.add_argument("--base", required=True, help="a named configuration, e.g. sd15")
    count.add_argument("--method", required=True, help="e.g. adapter")
    count.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    count.add_argument("--json", action="store_true", help="as JSON")

    export = command(_export, "export", "Write an adapter as peft and diffusers read it.", False)
    export.add_argument("source", type=Path, metavar="RUN_FOLDER_OR_ADAPTER")
    export.add_argument("--out", type=Path, required=True, metavar="FOLDER")

    base = command(_base, "base", "Build an embedded model from nothing.", False)
    base.add_argument("part", choices=("autoencoder", "denoiser", "card", "judge"))
    base.add_argument("out", type=Path, metavar="FOLDER")

    from fitspace.plan.table import STAGES

    for row in STAGES.values():
        sub = command(_stage, row.name, row.does)
        sub.set_defaults(stage=row.name, together=1)
        sub.add_argument("folder", help="the stage's result folder, by name, as the plan has it")
        if row.grouped:
            sub.add_argument(
                "--together",
                type=int,
                default=1,
                metavar="K",
                help="then also other unfinished runs of the task, up to K in all",
            )
        if row.name == "train":
            for option, text in {
                "gradient-checkpointing": "less memory, more time, the same gradients",
                "compile": "compile the model and replay its kernels, on a GPU",
            }.items():
                sub.add_argument(f"--{option}", type=int, choices=(0, 1), default=0, help=text)

    anova = command(_anova, "anova", "Analysis of variance of any table.", False)
    anova.add_argument("table", type=Path, metavar="TABLE.csv")
    anova.add_argument("--formula", help="e.g. 'y ~ block + A*B' or 'y ~ A + Error(task/A)'")
    anova.add_argument("--response", help="column of the response")
    anova.add_argument("--factors", nargs="+", default=None, metavar="FACTOR")
    anova.add_argument("--interactions", action="store_true", help="all two-factor ones")
    anova.add_argument("--block", nargs="+", metavar="BLOCK", help="columns of the blocks")
    anova.add_argument("--random", metavar="TASK", help="column of a random factor: error strata")
    anova.add_argument("--type", type=int, choices=(1, 2, 3), default=2)
    anova.add_argument("--robust", choices=("hc0", "hc1", "hc2", "hc3", "hc4", "welch"))
    anova.add_argument("--permutations", type=int, metavar="N", help="also p by permutation")
    anova.add_argument("--seed", type=int, default=0, help="of the permutations")
    anova.add_argument("--transform", choices=("log", "logit", "box-cox"), help="of the response")
    anova.add_argument("--exact-decimals", action="store_true", help="read the text exactly")
    anova.add_argument("--json", action="store_true", help="as JSON")

    report = command(_report, "report", "Make a study's analysis and report from its table.")
    report.add_argument(
        "--cached",
        action="store_true",
        help="first collect the table from finished runs; a missing one is an error",
    )
    report.add_argument(
        "--partial", action="store_true", help="with --cached: a missing run is a row that says so"
    )

    record = command(_record, "record", "Verify results, record them in DVC, audit.")
    record.add_argument(
        "--dirty", action="store_true", help="also what git does not have, noted beside the report"
    )
    gc = command(_gc, "gc", "List results that no study or recorded commit names.", False)
    gc.add_argument("--yes", action="store_true", help="and remove them")

    command(_track, "track", "Import a study's finished runs into MLflow; repeated, nothing new.")

    audit = command(_audit, "audit", "Where a number comes from, and whether it still is.", False)
    audit.add_argument(
        "target", type=Path, nargs="?", help="a study file, or a report, or one of its tables"
    )
    audit.add_argument(
        "--value", metavar="TABLE.csv#ROW/COLUMN", help="one number; ROW: 3, or source=input"
    )
    audit.add_argument(
        "--tier",
        choices=("hash", "regenerate", "reevaluate", "retrain"),
        default="regenerate",
        help="how far to go: rehash what is here; make the report again (the default); compute "
        "metrics again; train runs again",
    )
    audit.add_argument("--runs", nargs="+", default=[], metavar="RUN", help="runs to redo")
    audit.add_argument("--draw", type=int, default=0, metavar="N", help="redo N runs at random")
    audit.add_argument("--seed", type=int, default=0, help="of the draw")
    form = audit.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="the whole chain as JSON")
    form.add_argument("--prov", action="store_true", help="the whole chain as W3C PROV-JSON")
    form.add_argument("--crate", type=Path, metavar="FOLDER", help="write an RO-Crate")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    from fitspace.plan import checked

    study, models = checked(arguments.study)
    print(f"{arguments.study}: study {study.name!r} is valid")
    for missing in models.absent:
        print(f"fitspace: not here yet: {missing}", file=sys.stderr)


def _fetch(arguments: argparse.Namespace) -> None:
    from fitspace.plan import Models, fetch

    study = fetch(arguments.study)
    print(f"{arguments.study}: all that it names by hub id is on this machine")
    models = Models(study)
    if models.absent:  # what no hub has
        for problem in models.absent:
            print(f"fitspace: not here yet: {problem}", file=sys.stderr)
        models = Models(study.model_copy(update={"inception": None}))
    lines = models.pins
    said = "these lines hold it to just that:" if lines else "and it is what the study is held to"
    print("\n".join([said, *lines]))


def _plan(arguments: argparse.Namespace) -> None:
    from fitspace.plan import checked
    from fitspace.plan.overview import describe, with_subset
    from fitspace.plan.rendering import render

    study, models = checked(arguments.study)
    if arguments.subset is not None:
        study = with_subset(study, arguments.subset)
    overview = describe(
        study, models, delta=arguments.delta, sigma=arguments.sigma, pilot=arguments.pilot
    )
    print(json.dumps(overview, indent=2) if arguments.json else render(overview))


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


def _base(arguments: argparse.Namespace) -> None:
    from fitspace.core.imports import import_torchvision

    import_torchvision()
    if arguments.part == "judge":
        from fitspace.recipes import judge

        judge.train_judge(arguments.out, judge.Settings(), Path("results/base/judge.pt"))
        return
    from fitspace.recipes import card, embedded

    _set_up_torch()
    build = {
        "autoencoder": embedded.build_autoencoder,
        "denoiser": embedded.build_denoiser,
        "card": card.write_card,
    }
    build[arguments.part](arguments.out)


def _load(path: Path):
    from fitspace.plan import planned

    return planned(path)


def _stage(arguments: argparse.Namespace) -> None:
    _limit_threads()
    stage, together = arguments.stage, arguments.together
    if together < 1:
        raise UserError(f"--together: {together}; allowed: a whole number from 1")
    from fitspace.stages import sidecars

    sidecars.snapshot()
    from fitspace import stages
    from fitspace.stages import running

    plan = _load(arguments.study)
    run = plan.run_of(stage, arguments.folder)
    options, fold = {}, None
    if stage == "train":
        from fitspace.stages.train import folds
        from fitspace.tracking.sending import live

        lighter = bool(arguments.gradient_checkpointing)
        compiled = bool(arguments.compile)
        options = {"gradient_checkpointing": lighter, "compiled": compiled, "live": live}
        fold = None if lighter or compiled else folds

    def make(*runs) -> None:
        from fitspace.core.imports import import_only_models

        if stage in ("train", "sample"):
            import_only_models()
        _set_up_torch()
        stages.function(stage)(plan.study, *runs, **options)

    running.work(plan, stage, run, make, together, fold)


def _limit_threads() -> None:
    for library in ("OMP", "OPENBLAS", "MKL"):  # read when NumPy is imported
        os.environ.setdefault(f"{library}_NUM_THREADS", _threads())


def _threads() -> str:
    value = os.environ.get("FITSPACE_THREADS", "1")
    if not value.isdecimal() or int(value) < 1:
        raise UserError(f"FITSPACE_THREADS: {value!r}; allowed: a whole number from 1")
    return value


def _set_up_torch() -> None:
    """One thread a job: jobs, not operators, share the cores, and sums keep their order.

    Denormal numbers are flushed to zero: late in training they make a CPU step several times
    slower.
    """
    import torch

    from fitspace.core import devices

    torch.set_flush_denormal(True)
    torch.set_num_threads(int(_threads()))
    devices.set_up()


def _anova(arguments: argparse.Namespace) -> None:
    from fitspace import stats

    if (arguments.formula is None) == (arguments.response is None):
        raise UserError("anova: give either --formula, or --response with --factors")
    if arguments.response is not None and not arguments.factors:
        raise UserError("--factors: missing; --response needs at least one factor")
    table = stats.anova_of_file(
        arguments.table,
        formula=arguments.formula,
        response=arguments.response,
        factors=arguments.factors,
        interactions=arguments.interactions,
        block=arguments.block,
        random=arguments.random,
        type=arguments.type,
        robust=arguments.robust,
        permutations=arguments.permutations,
        seed=arguments.seed,
        transform=arguments.transform,
        exact_decimals=arguments.exact_decimals,
    )
    for note in table.attrs.get("notes", []):
        print(f"note: {note}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(stats.rows_for_json(table), indent=2))
    else:
        print(table.to_string(index=False, na_rep="", float_format=lambda x: f"{x:.6g}"))


def _track(arguments: argparse.Namespace) -> None:
    from fitspace.tracking import track

    print(track(_load(arguments.study)))


def _report(arguments: argparse.Namespace) -> None:
    from fitspace.core.paths import REPORTS
    from fitspace.plan import build_plan, checked
    from fitspace.report import build

    study, models = checked(arguments.study)
    folder = REPORTS / study.name
    if arguments.partial and not arguments.cached:
        raise UserError("--partial: goes with --cached: it says what to do about missing runs")
    if arguments.cached:
        from fitspace.results.table import collect_into, unfinished

        plan = build_plan(study, models)
        collect_into(plan, folder, arguments.partial)
        for line in unfinished(plan):
            print(f"missing: {line}", file=sys.stderr)
    print(build(study, folder))


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
    if arguments.tier == "reevaluate":  # as in a job, so that the bits can be the same
        _limit_threads()
        _set_up_torch()
    from fitspace import audit

    found = audit.audit(
        arguments.target,
        value=arguments.value,
        tier=arguments.tier,
        runs=arguments.runs,
        draw=arguments.draw,
        seed=arguments.seed,
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


def entry() -> None:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
