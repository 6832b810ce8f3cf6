"""The exception whose message is written for users."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(Exception):
    """Bad input, with every problem found.

    Each problem names the key or file, the value and what is allowed. The command line prints
    one problem per line and exits with code 2, without a traceback.
    """

    def __init__(self, problems: str | Iterable[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


def printable(text: str) -> str:
    """Text for a terminal, with escapes for characters that move the cursor or reverse text."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
