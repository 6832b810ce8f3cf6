"""The list of commands that each group adds its own to."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Commands:
    """The commands of a parser, each with its handler."""

    def __init__(self, parser: argparse.ArgumentParser):
        self.parser = parser
        self._parsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        self, run: Callable[[argparse.Namespace], Any], name: str, text: str, study: bool = True
    ) -> argparse.ArgumentParser:
        """Add a command; returns its parser. With ``study`` its first argument is a study file."""
        parser = self._parsers.add_parser(name, help=text, description=text)
        parser.set_defaults(run=run)
        if study:
            parser.add_argument("study", type=Path, metavar="STUDY.yaml")
        return parser

    @property
    def names(self) -> list[str]:
        return list(self._parsers.choices)
