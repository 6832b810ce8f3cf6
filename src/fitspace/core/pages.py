"""What all pages and cards share: their templates, and what lets a page request nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import BytecodeCache, Environment


def templates(
    package: str, autoescape: bool | Callable[[str | None], bool], **others: Any
) -> Environment:
    """The templates of a package; a name that they use and nobody gave is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader(package),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        bytecode_cache=_compiled(package, autoescape),
        **others,
    )


@cache
def _compiled(package: str, autoescape: bool | Callable[[str | None], bool]) -> BytecodeCache:
    """The templates of a package that this process has compiled."""
    from jinja2 import BytecodeCache

    kept = {}

    class Kept(BytecodeCache):
        def load_bytecode(self, bucket):
            bucket.code = kept.get((bucket.key, bucket.checksum))

        def dump_bytecode(self, bucket):
            kept[bucket.key, bucket.checksum] = bucket.code

    return Kept()


def script_digest(script: str) -> str:
    """SHA-256 of a script, as a page's content security policy names it (base64)."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def png_uri(content: bytes) -> str:
    """A PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(content).decode()
