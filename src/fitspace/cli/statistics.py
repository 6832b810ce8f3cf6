"""The command that analyses any table."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from fitspace.cli.commands import Commands
from fitspace.core.errors import UserError


def add(commands: Commands) -> None:
    anova = commands.add(_anova, "anova", "Analysis of variance of any table.", study=False)
    anova.add_argument("table", type=Path, metavar="TABLE.csv")
    anova.add_argument("--formula", help="e.g. 'y ~ block + A*B' or 'y ~ A + Error(task/A)'")
    anova.add_argument("--response", help="column of the response")
    anova.add_argument("--factors", nargs="+", default=None, metavar="FACTOR")
    anova.add_argument("--interactions", action="store_true", help="all two-factor interactions")
    anova.add_argument("--block", nargs="+", metavar="BLOCK", help="columns of the blocks")
    anova.add_argument("--random", metavar="TASK", help="column of a random factor: error strata")
    anova.add_argument(
        "--mixed",
        nargs="+",
        metavar="TERM",
        help="random terms of a mixed model, e.g. task task:arm: Kenward and Roger's tests",
    )
    anova.add_argument("--means", nargs="+", metavar="FACTOR", help="marginal means instead")
    anova.add_argument("--pairs", nargs="+", metavar="FACTOR", help="their differences instead")
    anova.add_argument("--control", metavar="LEVEL", help="of --pairs: hold all others against it")
    anova.add_argument("--type", type=int, choices=(1, 2, 3), default=2)
    anova.add_argument(
        "--robust",
        choices=(
            "hc0",
            "hc1",
            "hc2",
            "hc3",
            "hc4",
            "welch",
            "welch-james",
            "cr0",
            "cr1",
            "cr2",
            "cr3",
        ),
    )
    anova.add_argument("--cluster", metavar="COLUMN", help="its rows go together; for cr0 to cr3")
    anova.add_argument("--permutations", type=int, metavar="N", help="also p by permutation")
    anova.add_argument("--seed", type=int, default=0, help="of the permutations")
    anova.add_argument("--transform", choices=("log", "logit", "box-cox"), help="of the response")
    anova.add_argument("--exact-decimals", action="store_true", help="read the text exactly")
    anova.add_argument("--json", action="store_true", help="as JSON")


def _anova(arguments: argparse.Namespace) -> None:
    from fitspace import stats

    if (arguments.formula is None) == (arguments.response is None):
        raise UserError("anova: give either --formula, or --response with --factors")
    if arguments.response is not None and not arguments.factors:
        raise UserError("--factors: missing; --response needs at least one factor")
    if arguments.control is not None and not arguments.pairs:
        raise UserError("--control: needs --pairs")
    if arguments.means and arguments.pairs:
        raise UserError("anova: give --means or --pairs, not both")
    if arguments.mixed and arguments.formula is None:
        raise UserError("--mixed: needs --formula")
    table = _tests(arguments)
    notes = table.attrs.get("notes", [])
    if arguments.means:
        table = stats.means(table, arguments.means)
    elif arguments.pairs:
        table = stats.pairs(table, arguments.pairs, control=_level(arguments))
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(stats.rows_for_json(table), indent=2))
    else:
        print(table.to_string(index=False, na_rep="", float_format=lambda x: f"{x:.6g}"))


def _level(arguments: argparse.Namespace) -> str | tuple | None:
    """The control; of several factors a level of each, separated by commas."""
    if arguments.control is None or len(arguments.pairs) == 1:
        return arguments.control
    return tuple(arguments.control.split(","))


def _tests(arguments: argparse.Namespace):
    from fitspace import stats

    if arguments.mixed:
        return stats.mixed_of_file(arguments.table, arguments.formula, arguments.mixed)
    return stats.anova_of_file(
        arguments.table,
        formula=arguments.formula,
        response=arguments.response,
        factors=arguments.factors,
        interactions=arguments.interactions,
        block=arguments.block,
        random=arguments.random,
        type=arguments.type,
        robust=arguments.robust,
        cluster=arguments.cluster,
        permutations=arguments.permutations,
        seed=arguments.seed,
        transform=arguments.transform,
        exact_decimals=arguments.exact_decimals,
    )
