"""Tasks: where captioned images come from, and what identifies them."""

from fitspace.data.sources import (
    fetch,
    identity,
    load_examples,
    most_prompts,
    outline,
    stream,
)

__all__ = [
    "fetch",
    "identity",
    "load_examples",
    "most_prompts",
    "outline",
    "stream",
]
