"""What an audit finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """Something that is not as recorded.

    ``kind`` is ``changed`` where something contradicts what was recorded, and ``absent`` where
    something is not here to be looked at. ``subject`` is the file, run or value; ``message`` one
    sentence that names what was expected and what was found.
    """

    kind: Literal["changed", "absent"]
    subject: str
    message: str
