"""What `fitspace check` calls valid can be run: no job fails for a reason that was known before.

Small random studies on tiny bases whose configurations were edited at random, on folders and hub
layouts of any form. Where check says valid, every stage is done with two steps, to the report; a
refusal after check is a failure of the test.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from broken import edit
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from fitspace import stages
from fitspace.cli import main
from fitspace.data import hub
from fitspace.plan import STAGES, planned
from fitspace.report import build
from fitspace.results.table import collect_into

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Two tiny Stable Diffusions and a tiny DiT."""
    import diffusers
    import pipelines
    import torch

    folder = tmp_path_factory.mktemp("bases")
    found = {
        "bert": pipelines.stable_diffusion(folder / "bert", pipelines.bert),
        "clip": pipelines.stable_diffusion(folder / "clip", pipelines.clip),
        "dit": folder / "dit",
    }
    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, num_layers=2, sample_size=8, in_channels=4,
        out_channels=8, num_embeds_ada_norm=2, norm_num_groups=4,
    )  # fmt: skip
    for block in model.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    names = {0: "cat", 1: "dog"}
    diffusers.DiTPipeline(model, pipelines.vae(), diffusers.DDIMScheduler(), names).save_pretrained(
        found["dit"]
    )
    return found


# --- what is drawn -----------------------------------------------------------------------

DENOISER = {
    "cross_attention_dim": [12, 16, [12, 12]], "in_channels": [4, 9], "out_channels": [4, 8, 5],
    "class_embed_type": [None, "timestep"], "addition_embed_type": [None, "text"],
    "sample_size": [8, 4, [8, 8], 7, None], "time_cond_proj_dim": [None, 4],
    "act_fn": ["silu", "nonsense"], "norm_num_groups": [4, 3], "layers_per_block": [1, 2],
    "num_embeds_ada_norm": [2, None, 0], "patch_size": [2, 4], "attention_head_dim": [2, 4, 3],
    "center_input_sample": [True], "upcast_attention": [True],
    "resnet_time_scale_shift": ["scale_shift"],
}  # fmt: skip
EDITS = {
    "denoiser": DENOISER,
    "vae": {
        "scaling_factor": [0.2, 0, None], "shift_factor": [None, 0.1], "latent_channels": [4, 8],
        "block_out_channels": [[4, 8], [4], 8], "in_channels": [3, 1], "use_quant_conv": [False],
        "norm_num_groups": [4, 5],
    },
    "scheduler": {
        "prediction_type": ["epsilon", "v_prediction", "sample"],
        "beta_schedule": ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "nonsense"],
        "num_train_timesteps": [1000, 10, 2, 1], "use_flow_sigmas": [True, False],
        "rescale_betas_zero_snr": [True, False], "final_sigmas_type": ["zero", "sigma_min"],
        "solver_order": [1, 2, 3], "timestep_spacing": ["linspace", "leading", "trailing"],
        "algorithm_type": ["dpmsolver++", "sde-dpmsolver++", "dpmsolver", "nonsense"],
        "thresholding": [True], "solver_type": ["midpoint", "heun", "bh2"], "beta_end": [0.02, 1.0],
        "use_karras_sigmas": [True], "lower_order_final": [False],
    },
    "tokenizer": {"model_max_length": [6, 1e30, 512, 1]},
}  # fmt: skip
FILES = {
    "vae": "vae/config.json", "scheduler": "scheduler/scheduler_config.json",
    "tokenizer": "tokenizer/tokenizer_config.json",
}  # fmt: skip
ARMS = [
    {"method": "full"},
    {"method": "none"},
    {"method": "bitfit"},
    {"method": "lora", "factors": {"rank": [1, 2]}},
    {"method": "lora", "name": "other", "settings": {"alpha": 4}, "factors": {"rank": [1, 3]}},
    {"method": "adapter", "settings": {"width": 2, "input": "CA_out"}, "illegal_cells": "drop",
     "factors": {"output": ["FFN_in", "Trans_out", "CA_out"]}},
    {"method": "ia3", "factors": {"train.lr": [0.001, 0.01]}},
    {"method": "full", "name": "slow", "train": {"lr": 0.0001, "warmup_steps": 1}},
    {"method": "bitfit", "name": "late", "train": {"warmup_steps": 3}},
]  # fmt: skip
FACTORS = ["arm", "method", "rank", "output", "train.lr"]
PLACES = ["{i}.png", "train/{i}.png", "test/{i}.png", "cat/{i}.png", "dog/{i}.png",
          "train/cat/{i}.png", "val/dog/{i}.png", "data/Train/cat/{i}.png"]  # fmt: skip


@st.composite
def drawn(draw):
    """Edits of a base, files of a folder, and a study, as plain data."""
    one = st.sampled_from
    edits = []
    for _ in range(draw(one([0, 0, 1, 1, 2]))):
        part = draw(one(sorted(EDITS)))
        key = draw(one(sorted(EDITS[part])))
        edits.append((part, key, draw(one(EDITS[part][key]))))
    places = draw(st.lists(one(PLACES), min_size=1, max_size=3))
    count = draw(one([3, 10, 30, 60]))
    names = [places[i % len(places)].format(i=i) for i in range(count)]
    return SimpleNamespace(
        base=draw(one(["bert", "clip", "dit"])),
        edits=edits,
        names=names,
        odd=draw(st.lists(one(["gif", "grey", "small", "empty", "same"]), max_size=2)),
        metadata=draw(one(["none", "text", "text", "label", "split"])),
        source=draw(one(["folder", "hub"])),
        arms=draw(st.lists(one(ARMS), min_size=1, max_size=3, unique_by=lambda a: str(a))),
        factors=draw(st.lists(one(FACTORS), min_size=1, max_size=2, unique=True)),
        prompts=draw(one([4, 4, 5, 40])),
        sampling=draw(one([1, 2, 20])),
        scale=draw(one([1, 1, 1, 2])),
        precision=draw(one(["fp32", "bf16"])),
        gamma=draw(one([None, 5.0])),
    )


def image(number: int, odd: str = "") -> bytes:
    if odd == "empty":
        return b""
    pixels = np.random.default_rng(0 if odd == "same" else number).integers(0, 256, (20, 18, 3))
    picture = Image.fromarray(pixels.astype(np.uint8))
    if odd == "grey":
        picture = picture.convert("L")
    if odd == "small":
        picture = picture.resize((3, 3))
    file = io.BytesIO()
    if odd == "gif":
        picture.save(file, "GIF", save_all=True, append_images=[picture.rotate(90)])
    else:
        picture.save(file, "PNG")
    return file.getvalue()


def put(case, here: Path, bases: dict[str, Path]) -> Path:
    """Write what was drawn into a folder; returns the study's file."""
    base = shutil.copytree(bases[case.base], here / "base")
    component = "transformer" if case.base == "dit" else "unet"
    for part, key, value in case.edits:
        path = base / FILES.get(part, f"{component}/config.json")
        if path.exists():
            edit(path, **{key: value})
    rows = []
    for i, name in enumerate(case.names):
        path = here / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(i, case.odd[i] if i < len(case.odd) else ""))
        row = {"file_name": name, "text": f"a red apple {i} " * (1 + i % 2)}
        extra = {"label": {"label": ["cat", "dog", "bird"][i % 3]},
                 "split": {"split": "test" if i % 3 == 0 else "train"}}  # fmt: skip
        rows.append(row | extra.get(case.metadata, {}))
    if case.metadata != "none":
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (here / "images/metadata.jsonl").write_text(lines)
    where = {"source": "folder", "path": "images"}
    if case.source == "hub":
        where = {"source": "hub", "dataset": "org/images"}
    study = {
        "name": "drawn", "title": "Drawn", "base": "base", "judge": str(ROOT / "models/emoji-clip"),
        "tasks": [{"name": "own", "scale": case.scale, **where}],
        "arms": case.arms,
        "seeds": [0, 1],
        "train": {"steps": 2, "batch_size": 2, "lr": 0.001, "precision": case.precision,
                  "min_snr_gamma": case.gamma},
        "sample": {"prompts": case.prompts, "steps": case.sampling, "guidance": 2.0},
        "analysis": {"factors": case.factors, "responses": ["fd_effnet", "clip_t"]},
    }  # fmt: skip
    (here / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return here / "study.yaml"


def run(path: str) -> int:
    """Every stage of a study, once, and its report; returns how many stages."""
    plan = planned(path, in_job=True)
    done = set()
    for name in STAGES:
        for each in plan.runs:
            stage = getattr(each, name)
            if stage is not None and (name, stage.folder) not in done:
                done.add((name, stage.folder))
                stages.function(name)(plan.study, each)
    folder = Path("reports/drawn")
    collect_into(plan, folder)
    build(plan.study, folder)
    return len(done)


VALID = {"yes": 0, "no": 0}


def try_one(case, bases, folder: Path) -> None:
    before, copy_of = Path.cwd(), hub.hub.cached
    os.chdir(folder)
    try:
        path = put(case, folder, bases)
        # A folder of the hub's cache is called after its commit.
        hub.hub.cached = lambda *_, **__: folder / "images"
        code = main(["check", path.name])
        assert code in (0, 2)
        VALID["yes" if code == 0 else "no"] += 1
        if code == 0:
            assert run(path.name) >= 5
    finally:
        hub.hub.cached = copy_of
        os.chdir(before)


LIMITS = dict(
    deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


SOUND = dict(
    base="bert", edits=[], names=[f"{i}.png" for i in range(12)], odd=["grey", "small"],
    metadata="split", source="folder", arms=[ARMS[3], ARMS[1]], factors=["rank"], prompts=4,
    sampling=2, scale=1, precision="fp32", gamma=None,
)  # fmt: skip
# Among few that are drawn may be none that only a look at its base refuses.
UNUSABLE = SimpleNamespace(**SOUND | {"edits": [("denoiser", "class_embed_type", "timestep")]})


@pytest.mark.slow
@settings(max_examples=60, **LIMITS)
@example(case=UNUSABLE)
@given(case=drawn())
def test_what_check_calls_valid_runs_to_its_report(case, bases, tmp_path_factory):
    try_one(case, bases, tmp_path_factory.mktemp("drawn"))


CASES = {
    "sound": {},
    "a hub set of classes": {
        "source": "hub", "metadata": "none", "base": "dit", "arms": [ARMS[0], ARMS[2]],
        "names": [f"{'train' if i % 3 else 'val'}/{'cat' if i % 2 else 'dog'}/{i}.png"
                  for i in range(18)], "factors": ["method"],
    },
    "a scheduler edited": {"edits": [("scheduler", "algorithm_type", "sde-dpmsolver++")]},
    "arms apart in training alone": {"arms": [ARMS[0], ARMS[7]], "factors": ["arm"]},
}  # fmt: skip


EVERY = [
    pytest.param(changes, id=name, marks=[pytest.mark.slow] * (name != "sound"))
    for name, changes in CASES.items()
]


@pytest.mark.parametrize("changes", EVERY)
def test_named_studies_that_check_calls_valid_run_to_their_report(bases, tmp_path, changes):
    before = VALID["yes"]
    try_one(SimpleNamespace(**SOUND | changes), bases, tmp_path)
    assert VALID["yes"] == before + 1
    if "apart" in str(changes) or changes.get("factors") == ["arm"]:
        points = (tmp_path / "reports/drawn/points.csv").read_text().splitlines()
        assert len(points) == 3 and {line.split(",")[0] for line in points[1:]} == {
            "full.lr0.001.warmup_steps0", "full.lr0.0001.warmup_steps1",
        }  # fmt: skip
