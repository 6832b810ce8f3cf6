"""Ways to break a model's folder."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file


def edit(path: Path, **changes) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def lack(path: Path) -> str:
    """Take a tensor out of a file of weights; returns its name."""
    weights = load_file(path)
    name = sorted(weights)[-1]
    weights.pop(name)
    save_file(weights, path, metadata={"format": "pt"})
    return name


def rename(path: Path) -> str:
    """Give a tensor of a file of weights another name; returns the one it had."""
    weights = load_file(path)
    name = sorted(weights)[-1]
    weights[f"other.{name}"] = weights.pop(name)
    save_file(weights, path, metadata={"format": "pt"})
    return name
