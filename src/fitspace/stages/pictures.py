"""The images of a stage: a safetensors file, and a sheet for people that shows all of them.

A sheet is a PNG, so the images can be had again from it, bit for bit: a bundle holds them once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitspace.core.errors import UserError
from fitspace.core.files import canonical, replacing
from fitspace.training.sampling import of_sheet, sheet

if TYPE_CHECKING:
    import numpy as np

SHEET = "sheet.png"
# Stage -> the file of its images.
IMAGES = {"prior": "images.safetensors", "sample": "samples.safetensors"}


def write(stage: str, folder: Path, images: np.ndarray, key: str, material: dict) -> list[Path]:
    """Write uint8 images (n, h, w, 3) and their sheet; returns both files."""
    path, overview = folder / IMAGES[stage], folder / SHEET
    _write(stage, path, images, key, material)
    sheet(images, overview)
    return [path, overview]


def from_sheet(stage: str, folder: Path, sidecar: dict[str, Any], to: Path) -> None:
    """Write the file of a stage's images again from the sheet in ``folder``; its sidecar says how
    many images there are.

    Raises
    ------
    UserError : the sheet does not show that many images.
    """
    count = sidecar["facts"].get("images")
    if not isinstance(count, int):
        raise UserError(f"{folder}: the sidecar does not say how many images there are")
    images = of_sheet(folder / SHEET, count)
    _write(stage, to, images, sidecar["key"], sidecar["material"])


def _write(stage: str, path: Path, images: np.ndarray, key: str, material: dict) -> None:
    from safetensors.numpy import save_file

    metadata = None
    if stage == "sample":
        # One metadata key: safetensors writes several in an order that varies.
        metadata = {"fitspace": canonical({"key": key, "settings": material["sample"]})}
    with replacing(path) as temporary:
        save_file({"images": images}, temporary, metadata)
