"""Features of images, kept beside them, so that a new metric runs no extractor again."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitspace.core import files
from fitspace.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

_SHORT = 12


class Kept:
    """Features in a folder, a safetensors file for each set of images and each extractor.

    A file's name and its metadata hold a digest of the images, the extractor and the kind of
    machine, and its metadata the SHA-256 of the features. A file that does not match is of no use
    and is written anew. What cannot be written only costs time.

    Parameters
    ----------
    folder : that of one stage's images.
    machine : what determines the bits of features besides extractor and images.
    """

    def __init__(self, folder: Path, machine: Mapping[str, Any]):
        self._folder, self._machine = folder, machine

    def of(
        self,
        name: str,
        identity: list[Any],
        images: Tensor,
        compute: Callable[[str, Tensor], Tensor],
    ) -> Tensor:
        """Features of uint8 images (n, h, w, 3): those kept, else ``compute(name, images)``.

        ``identity`` says which extractor ``name`` is. Features are float32, shape (n, d).
        """
        pixels = hashlib.sha256(images.contiguous().numpy()).hexdigest()
        key = files.digest([identity, self._machine, list(images.shape), pixels])
        path = self._folder / f"{name}-{key[:_SHORT]}.safetensors"
        found = _read(path, key, len(images))
        if found is None:
            found = compute(name, images).contiguous()
            _write(path, key, found)
        return found


def _read(path: Path, key: str, rows: int) -> Tensor | None:
    try:
        features = files.read_tensors(path, {"features": "F32 n d"}, n=rows)["features"]
        with files.opened(path) as file:
            said = file.metadata() or {}
    except UserError:
        return None
    return features if said == {"key": key, "sha256": _sha256(features)} else None


def _write(path: Path, key: str, features: Tensor) -> None:
    from safetensors.torch import save_file

    with contextlib.suppress(OSError), files.replacing(path) as temporary:
        save_file({"features": features}, temporary, {"key": key, "sha256": _sha256(features)})


def _sha256(features: Tensor) -> str:
    return hashlib.sha256(features.contiguous().numpy()).hexdigest()
