"""Parameter counts against the papers' and published models' numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fitspace import bases
from fitspace.counting import count
from fitspace.errors import UserError
from fitspace.methods import adapter

SD15 = 859_520_964
TRANSFORMER = [c for c in adapter.legal_cells() if c[0] != "CA_c" and not c[0].startswith("Res")]


def trainable(cell, width, base="sd15"):
    return count(base, "adapter", {"input": cell[0], "output": cell[1], "width": width})


@pytest.mark.parametrize(
    ("base", "total"), [("sd15", SD15), ("dit-xl", 673_799_072)], ids=["sd15", "dit-xl"]
)
def test_totals(base, total):
    """Stable Diffusion 1.x's U-Net; DiffFit's 673.8 M (2304.06648), one shared embedder."""
    assert count(base, "full", {}) == {"trainable": total, "total": total, "percent": 100.0}
    assert count(base, "none", {}) == {"trainable": 0, "total": total, "percent": 0.0}


@pytest.mark.parametrize("cell", TRANSFORMER, ids="-".join)
def test_transformer_positions(cell):
    found = trainable(cell, 60)
    assert found["trainable"] == 1_511_040
    assert found["total"] == SD15
    assert round(found["percent"], 3) == 0.176


@pytest.mark.parametrize("width", [1, 16, 60, 256, 1000])
def test_transformer_positions_by_width(width):
    # 16 blocks whose dimensions sum to 12,480: weights, bottleneck biases, output biases.
    assert trainable(("CA_out", "FFN_in"), width)["trainable"] == 24_976 * width + 12_480


def test_paper_share_needs_width_256():
    found = trainable(("CA_out", "FFN_in"), 256)
    assert found["trainable"] == 6_406_336
    assert round(found["percent"], 3) == 0.745


def test_condition():
    # 16 blocks, each 768 -> 60 -> 768.
    assert trainable(("CA_c", "CA_c"), 60)["trainable"] == 1_487_808


# Channels of the U-Net's 22 ResNet blocks, from the architecture: 2 a level down, 2 in the
# middle, 3 a level up, where each reads the skip connection of the way down as well.
IN = [320, 320, 320, 640, 640, 1280, 1280, 1280, 1280, 1280,
      2560, 2560, 2560, 2560, 2560, 1920, 1920, 1280, 960, 960, 640, 640]  # fmt: skip
OUT = [320, 320, 640, 640, 1280, 1280, 1280, 1280, 1280, 1280,
       1280, 1280, 1280, 1280, 1280, 1280, 640, 640, 640, 320, 320, 320]  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "width", "expected", "sides"),
    [
        (("Res_in", "Res_in"), 6, 3_303_492, (IN, IN)),
        (("Res_in", "Res_out"), 7, 3_224_794, (IN, OUT)),
        (("Res_out", "Res_out"), 9, 3_326_598, (OUT, OUT)),
    ],
    ids=["in-in", "in-out", "out-out"],
)
def test_resnet_positions(cell, width, expected, sides):
    """The released widths, 3.22 to 3.33 M: norm affine, two 3×3 convolutions, their biases."""
    by_hand = sum(
        2 * a + (9 * a * width + width) + (9 * width * b + b) for a, b in zip(*sides, strict=True)
    )
    assert trainable(cell, width)["trainable"] == expected == by_hand
    assert 3.22e6 < expected < 3.33e6


def test_embedded_base_is_the_one_that_was_trained():
    path = Path(__file__).parents[1] / "models/emoji-unet/unet/config.json"
    if not path.exists():
        pytest.skip("models/emoji-unet is not built")
    trained = json.loads(path.read_text(encoding="utf-8"))
    config = dict(bases.from_config("emoji-unet").config)
    # Compared as JSON: tuples become lists.
    assert json.loads(json.dumps({k: v for k, v in config.items() if k[0] != "_"})) == {
        k: v for k, v in trained.items() if k[0] != "_"
    }


def test_meta_models_hold_no_memory():
    model = bases.from_config("sd15")
    assert all(p.is_meta and not p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (("sd-15", "none", {}), "known without weights: sd15, emoji-unet, dit-xl"),
        (("sd15", "lorra", {}), "lorra"),
        (("sd15", "adapter", {"input": "FFN_out", "output": "SA_in"}), "precedes"),
        (("sd15", "full", {"width": 3}), "width: unknown key"),
        (("dit-xl", "adapter", {"input": "SA_in", "output": "SA_in"}), "U-Net"),
    ],
    ids=["base", "method", "cell", "setting", "family"],
)
def test_errors(given, problem):
    with pytest.raises(UserError, match=problem):
        count(*given)


def test_module_imports_no_torch():
    code = "import sys, fitspace.counting; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
