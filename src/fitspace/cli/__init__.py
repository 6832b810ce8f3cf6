"""The command line: one file per group of commands, each parser beside its handler.

Bad input exits with code 2 and one line a problem. Heavy libraries are imported by the
command that needs them.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import sys
from collections.abc import Sequence

from fitspace import __version__
from fitspace.cli import (
    completion,
    methods,
    models,
    records,
    reports,
    stages,
    statistics,
    studies,
)
from fitspace.cli.commands import Commands
from fitspace.core.errors import UserError, printable

# Errors of a full, read-only or foreign file system; the files that were there before stay.
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)
GROUPS = (studies, methods, models, stages, statistics, reports, records, completion)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for bad input, or what the command says."""
    argv = sys.argv[1:] if argv is None else list(argv)
    top, commands = parser()
    if argv and not argv[0].startswith("-") and argv[0] not in commands.names:
        return _refuse([_unknown(argv[0], commands.names)])
    arguments = top.parse_args(argv)
    try:
        return arguments.run(arguments) or 0
    except UserError as error:
        return _refuse(error.problems)
    except BrokenPipeError:
        # The reader (head, less) has closed the pipe: not an error, and nobody reads on.
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


def _unknown(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, 1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"{name}: no command{hint}; allowed: {', '.join(names)}"


def parser() -> tuple[argparse.ArgumentParser, Commands]:
    """The parser of the command line, and its commands."""
    top = argparse.ArgumentParser(
        prog="fitspace",
        description="Designed experiments on parameter-efficient fine-tuning of diffusion models.",
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = Commands(top)
    for group in GROUPS:
        group.add(commands)
    return top, commands


def entry() -> None:
    """The console script."""
    sys.exit(main())
