"""The command line: one file per group of commands, each parser beside its handler.

Bad input exits with code 2 and one line a problem; what nobody foresaw with code 70 (EX_SOFTWARE
of sysexits.h), one line and a file with the traceback. Heavy libraries are imported by the command
that needs them.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence

from fitspace import __version__
from fitspace.cli import (
    completion,
    methods,
    records,
    reports,
    stages,
    starting,
    statistics,
    studies,
)
from fitspace.cli.commands import Commands
from fitspace.core.errors import UserError, printable

# Errors of a full, read-only or foreign file system; the files that were there before stay.
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)
CRASH, CRASHES = 70, "results/logs/crashes"
GROUPS = (starting, studies, methods, stages, statistics, reports, records, completion)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for bad input, 70 for an error of fitspace's
    own, or what the command says."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal of another encoding than UTF-8
            stream.reconfigure(errors="backslashreplace")
    argv = sys.argv[1:] if argv is None else list(argv)
    top, commands = parser()
    if argv and not argv[0].startswith("-") and argv[0] not in commands.names:
        return _refuse([_unknown(argv[0], commands.names)])
    arguments = top.parse_args(argv)
    try:
        code = arguments.run(arguments) or 0
        print(end="", flush=True)  # here, and not as Python ends, where nobody catches it
        return code
    except UserError as error:
        return _refuse(error.problems)
    except BrokenPipeError:
        # The reader (head, less) has closed the pipe: not an error, and nobody reads on.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("fitspace: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, OSError) and error.errno in CANNOT_WRITE:
            return _refuse([f"{error.filename or 'a file'}: {_cannot(error)}: {error.strerror}"])
        return _crashed(error, argv)
    return 0


def _cannot(error: OSError) -> str:
    """What could not be done with a file: of those that are there, some cannot be read."""
    denied = error.errno in (errno.EACCES, errno.EPERM) and error.filename is not None
    there = denied and os.path.exists(error.filename)
    return (
        "cannot be read"
        if there and not os.access(error.filename, os.R_OK)
        else "cannot be written"
    )


def _crashed(error: Exception, argv: Sequence[str]) -> int:
    """Say in one line what nobody foresaw, and keep the traceback in a file."""
    words = " ".join(f"{type(error).__name__}: {error}".split())
    story = f"fitspace {__version__}: {' '.join(argv)}\n{traceback.format_exc()}"
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    for folder in (CRASHES, tempfile.gettempdir() if _has_temporary() else "."):
        path = os.path.join(folder, f"fitspace-{name}" if folder != CRASHES else name)
        try:
            os.makedirs(folder, exist_ok=True)
            with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(story)
            break
        except OSError:
            path = ""
    where = f"; traceback: {path}" if path else ""
    print(f"fitspace: internal error: {printable(words[:500])}{where}", file=sys.stderr)
    if not path:
        print(story, file=sys.stderr)
    return CRASH


def _has_temporary() -> bool:
    try:
        return bool(tempfile.gettempdir())
    except OSError:
        return False


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
