"""A command for every stage; Snakemake's rules call them."""

from __future__ import annotations

import argparse

from fitspace.cli import process
from fitspace.cli.commands import Commands
from fitspace.core.errors import UserError


def add(commands: Commands) -> None:
    from fitspace.plan.table import STAGES

    for row in STAGES.values():
        sub = commands.add(_stage, row.name, row.does)
        sub.set_defaults(stage=row.name, together=1)
        sub.add_argument("folder", help="name of the stage's result folder in the plan")
        if row.grouped:
            sub.add_argument(
                "--together",
                type=int,
                default=1,
                metavar="K",
                help="make up to K runs: after this one, other unfinished runs of the task",
            )
        if row.name == "train":
            for option, text in {
                "gradient-checkpointing": "less memory, more time, the same gradients",
                "compile": "compile the model and replay its kernels, on a GPU",
            }.items():
                sub.add_argument(f"--{option}", type=int, choices=(0, 1), default=0, help=text)


def _stage(arguments: argparse.Namespace) -> None:
    process.limit_threads()
    stage, together = arguments.stage, arguments.together
    if together < 1:
        raise UserError(f"--together: {together}; allowed: a whole number from 1")
    from fitspace.stages import sidecars, slurm

    slurm.need_gpu(stage)
    sidecars.snapshot()
    from fitspace import stages
    from fitspace.plan import planned
    from fitspace.stages import running

    plan = planned(arguments.study, in_job=True)
    run = plan.run_of(stage, arguments.folder)
    options, fold = {}, None
    if stage == "train":
        from fitspace import bases
        from fitspace.stages.train import folds
        from fitspace.tracking.sending import live

        lighter = bool(arguments.gradient_checkpointing)
        compiled = bool(arguments.compile)
        options = {"gradient_checkpointing": lighter, "compiled": compiled, "live": live}
        alone = lighter or compiled or not bases.family(plan.study.base).folds
        fold = None if alone else folds

    def make(*runs) -> None:
        from fitspace.core.imports import import_only_models

        if stage in ("train", "sample"):
            import_only_models()
        process.set_up_torch()
        stages.function(stage)(plan.study, *runs, **options)

    running.work(plan, stage, run, make, together, fold)
