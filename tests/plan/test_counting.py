"""Parameter counts against the papers' and published models' numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from printed import printed

from fitspace import bases
from fitspace.core.errors import UserError
from fitspace.methods import adapter
from fitspace.plan.counting import count

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
    assert found["percent"] == printed("0.176")


@pytest.mark.parametrize("width", [1, 16, 60, 256, 1000])
def test_transformer_positions_by_width(width):
    # 16 blocks whose dimensions sum to 12,480: weights, bottleneck biases, output biases.
    assert trainable(("CA_out", "FFN_in"), width)["trainable"] == 24_976 * width + 12_480


def test_paper_share_needs_width_256():
    found = trainable(("CA_out", "FFN_in"), 256)
    assert found["trainable"] == 6_406_336
    assert found["percent"] == printed("0.745")


def test_condition():
    # 16 blocks, each 768 -> 60 -> 768.
    assert trainable(("CA_c", "CA_c"), 60)["trainable"] == 1_487_808


# DiT-XL/2: 28 blocks, 1152 wide, 101 classes and the empty one.
CLASS_TABLE = 102 * 1152
BOTTLENECKS = 28 * (2 * 1152 * 64 + 64 + 1152)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("adaptformer", {}),
        ("adaptformer", {"form": "sequential"}),
        *(
            ("adapter", {"input": source, "output": target, "width": 64})
            for source, target in adapter.legal_cells("dit")
        ),
    ],
    ids=lambda given: given if isinstance(given, str) else "-".join(map(str, given.values())),
)
def test_bottlenecks_on_a_dit(method, settings):
    """AdaptFormer of the table of 2304.06648: 4.28 M; adapters of its width hold as many."""
    found = count("dit-xl", method, settings)
    assert found["trainable"] == 4_280_320 == BOTTLENECKS + CLASS_TABLE
    alone = count("dit-xl", method, {**settings, "class_embedding": False})
    assert alone["trainable"] == 4_162_816 == BOTTLENECKS


def test_adaptformer_on_a_unet():
    # 16 blocks whose dimensions sum to 12,480: as the adapters of this width.
    assert count("sd15", "adaptformer", {})["trainable"] == 24_976 * 64 + 12_480


@pytest.mark.parametrize("prompts", [1, 10, 50])
def test_prompts(prompts):
    """2304.06648's 2.81 M is the final layer and the class table; every prompt comes on top."""
    final_layer = (1152 * 2304 + 2304) + (1152 * 32 + 32)
    assert final_layer + CLASS_TABLE == 2_810_912
    found = count("dit-xl", "vpt", {"prompts": prompts})["trainable"]
    assert found == 2_810_912 + 28 * 1152 * prompts
    assert count("dit-xl", "vpt", {})["trainable"] == 2_843_168
    alone = count("dit-xl", "vpt", {"prompts": prompts, "final_layer": False})["trainable"]
    assert alone == CLASS_TABLE + 28 * 1152 * prompts


# A block's biases: modulation 6 D; q, k, v, projection; MLP 4 D and D. Then time, final, patches.
BIASES = 28 * 15 * 1152 + 2 * 1152 + (2 * 1152 + 32) + 1152
FACTORS = 14 * 6 * 1152


@pytest.mark.parametrize(
    ("method", "settings", "expected", "by_hand"),
    [
        ("bitfit", {}, 607_136, BIASES + CLASS_TABLE),
        ("bitfit", {"class_embedding": False}, 489_632, BIASES),
        ("difffit", {}, 832_928, BIASES + CLASS_TABLE + FACTORS + 28 * 4 * 1152),
        ("difffit", {"norms": False}, 703_904, BIASES + CLASS_TABLE + FACTORS),
        ("difffit", {"norms": False, "biases": False}, 214_272, CLASS_TABLE + FACTORS),
        ("difffit", {"share": 1.0}, 929_696, 832_928 + FACTORS),
        ("difffit", {"blocks": "last"}, 832_928, 832_928),
        ("difffit", {"gamma": "branch"}, 768_416, 832_928 - 14 * 4 * 1152),
        ("difffit", {"gamma": "none"}, 736_160, 832_928 - FACTORS),
        ("difffit", {"gamma": "none", "biases": False}, 246_528, CLASS_TABLE + 28 * 4 * 1152),
    ],
    ids=lambda given: "-".join(map(str, given.values())) if isinstance(given, dict) else str(given),
)
def test_bitfit_and_difffit_on_a_dit(method, settings, expected, by_hand):
    """2304.06648's table: BitFit .61 M; DiffFit .83 M, which is .12 % of full fine-tuning."""
    found = count("dit-xl", method, settings)
    assert found["trainable"] == expected == by_hand
    assert found["total"] == 673_799_072


# Layers of DiT-XL: inputs and outputs. Of the 12,480 units of Stable Diffusion 1.x's 16 blocks:
# self-attention reads them, cross-attention its keys and values from 768 units of text.
D = 1152
QKV_INPUTS, QKV_OUTPUTS = 4 * 12_480 + 2 * 16 * 768, 6 * 12_480


@pytest.mark.parametrize(("rank", "paper"), [(8, 1_149_696), (16, 2_181_888)])
def test_lora_on_a_dit(rank, paper):
    """2304.06648's table, 1.15 and 2.18 M: one fused layer of 3 D outputs, of which A is one."""
    assert 28 * rank * (D + 3 * D) + CLASS_TABLE == paper
    assert count("dit-xl", "lora", {"rank": rank, "fused": True})["trainable"] == paper
    split = count("dit-xl", "lora", {"rank": rank})["trainable"]
    assert split == 28 * 3 * rank * (D + D) + CLASS_TABLE == paper + 28 * 2 * rank * D


@pytest.mark.parametrize(
    ("method", "settings", "layers"),
    [
        ("lora", {"dora": True}, 3 * (8 * 2 * D + D)),
        ("lora", {"rslora": True, "alpha": 16}, 3 * 8 * 2 * D),
        ("lora", {"target": "attention"}, 4 * 8 * 2 * D),
        ("lora", {"target": "attention+ff"}, 4 * 8 * 2 * D + 2 * 8 * 5 * D),
        ("loha", {}, 3 * 2 * 8 * 2 * D),
        ("lokr", {}, 3 * (32 * 32 + 8 * (36 + 36))),
        ("lokr", {"factor": 8}, 3 * (8 * 8 + 8 * (144 + 144))),
        ("ia3", {}, 2 * D + 4 * D),
        ("oft", {}, 3 * D * 31 // 2),
        ("oft", {"block_size": 4}, 3 * D * 3 // 2),
    ],
    ids=lambda given: "-".join(map(str, given.values())) if isinstance(given, dict) else str(given),
)
def test_methods_of_peft_on_a_dit(method, settings, layers):
    found = count("dit-xl", method, settings | {"class_embedding": False})
    assert found["trainable"] == 28 * layers
    assert count("dit-xl", method, settings)["trainable"] == 28 * layers + CLASS_TABLE


@pytest.mark.parametrize(
    ("method", "settings", "expected"),
    [
        # The form of diffusers' training script. The first published adapter of it is a file of
        # 3.29 MB: four bytes a parameter, and their names.
        ("lora", {"rank": 4, "target": "attention"}, 797_184),
        ("lora", {}, 8 * (6 * 12_480 + 4 * 12_480 + 2 * 16 * 768)),
        ("lora", {"fused": True}, 8 * (QKV_OUTPUTS + 2 * 12_480 + 16 * 768)),
        ("lora", {"dora": True}, 1_195_008 + QKV_OUTPUTS),
        ("loha", {}, 2 * 1_195_008),
        ("ia3", {}, 4 * 12_480 + 4 * 12_480),
        ("oft", {}, QKV_INPUTS * 31 // 2),
    ],
    ids=lambda given: "-".join(map(str, given.values())) if isinstance(given, dict) else str(given),
)
def test_methods_of_peft_on_a_unet(method, settings, expected):
    assert count("sd15", method, settings)["trainable"] == expected


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


def test_bitfit_and_difffit_on_a_unet():
    resnets = sum(a + 4 * b + (b if a != b else 0) for a, b in zip(IN, OUT, strict=True))
    # A transformer's norm and projections, its block's three norms, two projections, GEGLU.
    transformers = (3 + 3 + 2 + 8 + 1) * 12_480
    resampling = (320 + 640 + 1280) + (1280 + 1280 + 640)
    biases = resnets + transformers + resampling + 2 * 1280 + 320 + (320 + 4)
    assert count("sd15", "bitfit", {})["trainable"] == 343_684 == biases
    # The first 8 blocks: 6 on the way down, the middle one, one of the way up.
    widths = 2 * (320 + 640 + 1280) + 1280 + 1280
    branches = count("sd15", "difffit", {"gamma": "branch", "norms": False})["trainable"]
    assert branches == biases + 3 * widths
    both = count("sd15", "difffit", {"norms": False})["trainable"]
    assert both == 421_124 == biases + 11 * widths
    # The biases of the norms are among the biases; their weights are as many.
    norms = count("sd15", "difffit", {"gamma": "none", "biases": False})["trainable"]
    weights = sum(a + b for a, b in zip(IN, OUT, strict=True)) + 4 * 12_480 + 320
    assert norms == 2 * weights
    assert count("sd15", "difffit", {})["trainable"] == 521_284 == both + weights


def test_embedded_base_is_the_one_that_was_trained():
    path = Path(__file__).parents[2] / "models/emoji-unet/unet/config.json"
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
        (("dit-xl", "adapter", {"input": "SA_in", "output": "CA_in"}), "no cross-attention"),
        (("sd15", "vpt", {}), "one sequence"),
    ],
    ids=["base", "method", "cell", "setting", "position", "family"],
)
def test_errors(given, problem):
    with pytest.raises(UserError, match=problem):
        count(*given)


def test_module_imports_no_torch():
    code = "import sys, fitspace.plan.counting; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
