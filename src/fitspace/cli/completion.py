"""Completion of commands, options and file names in a shell."""

from __future__ import annotations

import argparse

from fitspace.cli.commands import Commands


def add(commands: Commands) -> None:
    text = 'Print the completion script of a shell: eval "$(fitspace completion bash)".'
    completion = commands.add(_completion, "completion", text, study=False)
    completion.set_defaults(parser=commands.parser)
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))


def _completion(arguments: argparse.Namespace) -> None:
    import shtab

    print(shtab.complete(arguments.parser, arguments.shell))
