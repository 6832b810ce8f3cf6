"""The command that builds the embedded models."""

from __future__ import annotations

import argparse
from pathlib import Path

from fitspace.cli import process
from fitspace.cli.commands import Commands


def add(commands: Commands) -> None:
    base = commands.add(_base, "base", "Build an embedded model from nothing.", study=False)
    base.add_argument("part", choices=("autoencoder", "denoiser", "card", "judge"))
    base.add_argument("out", type=Path, metavar="FOLDER")


def _base(arguments: argparse.Namespace) -> None:
    from fitspace.core.imports import import_torchvision

    import_torchvision()
    if arguments.part == "judge":
        from fitspace.recipes import judge

        judge.train_judge(arguments.out, judge.Settings(), Path("results/base/judge.pt"))
        return
    from fitspace.recipes import card, embedded

    process.set_up_torch()
    build = {
        "autoencoder": embedded.build_autoencoder,
        "denoiser": embedded.build_denoiser,
        "card": card.write_card,
    }
    build[arguments.part](arguments.out)
