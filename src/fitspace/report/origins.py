"""The runs from which each number of a report is computed, and how the page names them."""

from __future__ import annotations

import json
from dataclasses import dataclass

from markupsafe import Markup, escape

from fitspace.report.results import Results
from fitspace.report.words import Value


@dataclass(frozen=True)
class Origins:
    """``sets``: name of a set -> keys of its runs; ``rows``: table -> the set of each row."""

    sets: dict[str, list[str]]
    rows: dict[str, list[str]]

    @property
    def content(self) -> dict:
        """The content of origins.json, which the page holds too."""
        return {"sets": self.sets, "rows": self.rows}

    def runs(self, value: Value) -> str:
        """The names of the sets behind a number, separated by spaces."""
        rows = self.rows.get(value.table, [])
        names = [rows[int(row) - 1] for row in str(value.row).split()]
        return " ".join(dict.fromkeys(names))

    def show(self, part: object) -> object:
        """A number as an element that carries its origin; anything else unchanged."""
        if not isinstance(part, Value):
            return part
        runs = self.runs(part)
        return Markup(
            f'<data value="{escape(part.raw)}" data-table="{escape(part.table)}" '
            f'data-row="{escape(part.row)}" data-column="{escape(part.column)}" '
            f'data-runs="{escape(runs)}">{escape(part.text)}</data>'
        )


def of(found: Results) -> Origins:
    """The origins of all tables; rows of the same runs share one set."""
    names: dict[tuple[str, ...], str] = {}
    rows = {
        table: [names.setdefault(tuple(runs), f"s{len(names) + 1}") for runs in each]
        for table, each in found.origins.items()
    }
    return Origins({name: list(runs) for runs, name in names.items()}, rows)


def text(found: Results) -> str:
    """origins.json."""
    return json.dumps(of(found).content, ensure_ascii=False, separators=(",", ":")) + "\n"
