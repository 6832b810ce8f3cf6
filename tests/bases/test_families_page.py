"""docs/families.md and the table of methods say what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from fitspace import bases, methods
from fitspace.methods import adapter
from fitspace.plan import footprint

DOCS = Path(__file__).parents[2] / "docs"
# Column of the table of methods -> its families.
COLUMNS = {
    "U-Net, SDXL": ("unet", "sdxl"),
    "DiT": ("dit",),
    "PixArt-Σ": ("pixart",),
    "SD3": ("sd3",),
    "FLUX.1": ("flux",),
    "Sana": ("sana",),
    "FLUX.2": ("flux2",),
    "Lumina2, Z-Image": ("lumina2", "zimage"),
    "Qwen-Image": ("qwenimage",),
}


def table(page: str, header: str) -> list[dict[str, str]]:
    """The rows of the table whose header starts so: column -> cell, without markup."""
    text = (DOCS / page).read_text(encoding="utf-8")
    lines = text[text.index(header) :].splitlines()
    cells = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]
    ]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def yes(value: bool) -> str:
    return "yes" if value else "no"


def test_every_family_is_on_the_page():
    rows = {row.pop("family"): row for row in table("families.md", "| family |")}
    assert list(rows) == list(bases.FAMILIES)
    for name, family in bases.FAMILIES.items():
        rows[name].pop("bases")
        assert rows[name] == {
            "denoiser of diffusers": family.kind,
            "told": ", ".join(family.told),
            "process": "flow matching" if family.flows else "diffusion",
            "adapter's cells": str(len(adapter.legal_cells(name))),
            "DreamBooth": yes(not family.by_class),
            "twice its side": yes(family.scales),
            "attention maps": yes(family.maps),
        }


GIVEN = {"adapter": {"input": "SA_in", "output": "SA_in"}, "peft": {"peft_type": "LORA"}}


@pytest.mark.parametrize("method", methods.METHODS)
def test_the_table_of_methods_says_which_family_takes_it(method):
    (row,) = [row for row in table("methods.md", "| method |") if row["method"] == method]
    assert {family for names in COLUMNS.values() for family in names} == set(bases.FAMILIES)
    for column, names in COLUMNS.items():
        for name in names:
            settings = methods.get(method).Settings(**GIVEN.get(method, {}))
            works = yes(not methods.problems(method, settings, name))
            cells = f"{len(adapter.legal_cells(name))} cells"
            assert row[column] == (cells if method == "adapter" else works)


def test_every_named_configuration_is_on_the_page():
    text = (DOCS / "families.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in bases.CONFIGS if not name.startswith("emoji"))


ELSEWHERE = {"sd15", "dit-xl"}  # costed in tests/plan/test_footprint.py; not of 1024 px


@pytest.mark.slow
def test_the_page_says_what_full_size_costs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = {row.pop("base"): row for row in table("families.md", "| base | parameters")}
    assert rows.keys() == {n for n in bases.CONFIGS if not n.startswith("emoji")} - ELSEWHERE
    for name, row in rows.items():
        found = footprint.measure(name, "lora", {"rank": 8}, batch=1, precision="bf16")
        memory = found.training({"precision": "bf16", "ema": None})
        assert row == {
            "parameters [10⁹]": f"{found.frozen / 1e9:.2f}",
            "trained [10⁶]": f"{found.trainable / 1e6:.2f}",
            "forward [TFLOP]": f"{found.forward / 1e12:.1f}",
            "step [TFLOP]": f"{found.step / 1e12:.1f}",
            "memory [GiB]": f"{memory / 2**30:.1f}",
        }
