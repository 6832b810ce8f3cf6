"""The papers' tables in params/published: their own sums, and what the analysis reads in them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import yaml
from scipy import stats as distributions

from fitspace.cli import main
from fitspace.methods import adapter
from fitspace.plan import counting, footprint, load_study
from fitspace.plan.footprint import Footprint
from fitspace.plan.overview import describe
from fitspace.stats import anova, anova_of_file, pairs, ranks, size_oneway
from fitspace.stats.digits import significant

PARAMS = Path(__file__).parents[2] / "params"
PUBLISHED = PARAMS / "published"
HEAT_MAP = PUBLISHED / "adapter-heat-map.csv"


@pytest.fixture
def fid():
    table = pd.read_csv(PUBLISHED / "difffit-fid.csv")
    return table.assign(log_fid=np.log(table["fid"]))


def test_heat_map_has_the_legal_cells_once():
    table = pd.read_csv(HEAT_MAP)
    cells = list(zip(table["input"], table["output"], strict=True))
    assert sorted(cells) == sorted(adapter.legal_cells()) and len(cells) == 20


# Factor -> degrees of freedom, F, p, eta squared. Cells are known to 0.003: more digits would
# say nothing of the paper.
ONE_WAY = {
    "input": ((9, 10), 11.9, 3e-4, 0.915),
    "output": ((6, 13), 0.77, 0.61, None),
}


@pytest.mark.parametrize(("factor", "expected"), ONE_WAY.items(), ids=ONE_WAY)
def test_heat_map_gives_the_papers_claim(factor, expected, capsys):
    df, f, p, eta2 = expected
    table = anova_of_file(HEAT_MAP, response="clip_i", factors=[factor])
    effect, residual = table.to_dict("records")
    assert (effect["df"], residual["df"]) == df
    assert effect["F"] == pytest.approx(f, abs=0.05 if f > 1 else 0.005)
    assert effect["p"] == pytest.approx(p, rel=0.01)
    if eta2:
        assert effect["eta2_p"] == pytest.approx(eta2, abs=5e-4)
    # An independent program's one-way F.
    groups = pd.read_csv(HEAT_MAP).groupby(factor)["clip_i"].apply(list)
    outside = distributions.f_oneway(*groups)
    assert effect["F"] == pytest.approx(outside.statistic, rel=1e-10)
    assert effect["p"] == pytest.approx(outside.pvalue, rel=1e-8)

    arguments = ["--response", "clip_i", "--factors", factor, "--json"]
    assert main(["anova", str(HEAT_MAP), *arguments]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [row["source"] for row in shown] == [factor, "residual"]
    assert [shown[0][name] for name in ("F", "p")] == [significant(effect[n]) for n in ("F", "p")]


def test_means_of_difffits_rows_are_the_printed_ones(fid):
    printed = pd.read_csv(PUBLISHED / "difffit-methods.csv").set_index("method")["average_fid"]
    means = fid.groupby("method")["fid"].mean()
    assert len(printed) == 8 and (fid.groupby("method")["dataset"].nunique() == 8).all()
    # Cells and means are rounded to 0.01 each: 0.005 + 0.005.
    assert (means - printed).abs().max() <= 0.01


def by_hand(table):
    """F of the methods in a complete block design, from the table of cells."""
    cells = table.pivot(index="method", columns="dataset", values="log_fid").to_numpy()
    centred = cells - cells.mean()
    rows, columns = centred.mean(1, keepdims=True), centred.mean(0, keepdims=True)
    methods, datasets = cells.shape
    between = datasets * (rows**2).sum() / (methods - 1)
    within = ((centred - rows - columns) ** 2).sum() / ((methods - 1) * (datasets - 1))
    return between / within


SUBSETS = {"all methods": ("", (7, 49), 61.2), "without LoRA": ("LoRA", (5, 35), 18.8)}


@pytest.mark.parametrize(("left_out", "df", "f"), SUBSETS.values(), ids=SUBSETS)
def test_difffits_methods_differ_with_data_sets_as_blocks(fid, left_out, df, f):
    if left_out:
        fid = fid[~fid["method"].str.startswith(left_out)]
    found = anova(fid, "log_fid", ["method"], block="dataset").set_index("source")
    assert (found["df"]["method"], found["df"]["residual"]) == df
    assert found["F"]["method"] == pytest.approx(by_hand(fid), rel=1e-10)
    assert found["F"]["method"] == pytest.approx(f, abs=0.05)


def test_difffit_is_best_but_not_separable_from_full_fine_tuning(fid):
    fid = fid[~fid["method"].str.startswith("LoRA")]
    assert fid.groupby("method")["log_fid"].mean().idxmin() == "DiffFit"
    found = pairs(fid, "method", response="log_fid", block="dataset")
    p = dict(found[["contrast", "p_adjusted"]].to_numpy())
    others = set(fid["method"]) - {"DiffFit"}
    against = {m: p.get(f"DiffFit - {m}", p.get(f"{m} - DiffFit")) for m in others}
    separable = {m for m, x in against.items() if x < 0.05}
    assert separable == {"VPT-Deep", "Adapt-Parallel"}
    # scipy's studentized range, from the cell means and the residual mean square.
    wide = fid.pivot(index="dataset", columns="method", values="log_fid")
    centred = wide.sub(wide.mean(), axis=1).sub(wide.mean(axis=1) - wide.to_numpy().mean(), axis=0)
    error = (centred**2).to_numpy().sum() / 35
    q = abs(wide["DiffFit"].mean() - wide["Full"].mean()) / np.sqrt(error / 8)
    assert against["Full"] == pytest.approx(distributions.studentized_range.sf(q, 6, 35), rel=1e-6)


# peft's benchmark: what one seed tells apart.


@pytest.fixture
def benchmark():
    return pd.read_csv(PUBLISHED / "peft-image-gen.csv")


def spread(runs):
    """Standard deviation of a run, from the entries that were run twice."""
    error = anova(runs, "similarity", ["experiment"]).set_index("source").loc["residual"]
    twice = runs.groupby("experiment")["similarity"].apply(list)
    apart = np.array([values[0] - values[1] for values in twice if len(values) == 2])
    assert error["df"] == len(apart)
    assert error["ss"] == pytest.approx((apart**2).sum() / 2)
    return (error["ss"] / error["df"]) ** 0.5, error["df"]


def in_ranks(runs, adjust):
    sigma, df = spread(runs)
    once = runs[runs["source"] == "results"].set_index("experiment")["similarity"]
    found = ranks(once, sigma, df, adjust=adjust)
    return found["least"].iloc[0], found["rank"].value_counts(sort=False).tolist(), found


def test_one_seed_tells_two_ranks_of_41_apart(benchmark):
    assert (benchmark["source"] == "results").sum() == benchmark["experiment"].nunique() == 41
    sigma, df = spread(benchmark)
    assert (sigma, df) == (pytest.approx(0.026, abs=5e-4), 6)
    least, counts, found = in_ranks(benchmark, "tukey")
    assert (least, counts) == (pytest.approx(0.22, abs=5e-3), [39, 2])
    assert set(found[found["rank"] == 2]["level"]) == {"fourierft/default", "ln_tuning/default"}
    least, counts, found = in_ranks(benchmark, "none")
    assert (least, counts) == (pytest.approx(0.090, abs=5e-4), [25, 12, 2, 2])
    rank = found.set_index("level")["rank"]
    same = ("lora/default", "lora/rank64", "dora/rank64", "oft/default", "hira/default")
    assert rank[[*same, "peanut/default"]].eq(1).all()
    similarity = found.set_index("level")["mean"]
    rate = similarity["lokr/lr1e-3"] - similarity["lokr/default"]
    assert rate == pytest.approx(0.117, abs=5e-4) and rate > least


def test_the_ranks_if_two_columns_of_a_request_were_exchanged(benchmark):
    asked = benchmark["source"] == "pull request 3341"
    benchmark.loc[asked, "similarity"] = benchmark.loc[asked, "similarity"].to_numpy()[::-1]
    assert asked.sum() == 2 and spread(benchmark)[0] == pytest.approx(0.012, abs=5e-4)
    assert in_ranks(benchmark, "tukey")[1] == [30, 9, 2]
    assert in_ranks(benchmark, "none")[1] == [10, 15, 6, 6, 2, 2]


@pytest.mark.parametrize(("difference", "seeds"), [(0.02, 28), (0.05, 6)])
def test_the_seeds_that_tell_two_methods_apart(benchmark, difference, seeds):
    f = difference / (2 * spread(benchmark)[0])
    assert np.ceil(size_oneway(2, f)) == seeds


# The papers' designs, planned without weights, judge or images.


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """What is said of a shipped study, or of one with another content; no step is measured."""
    from huggingface_hub import constants

    def planned(name, **changes):
        content = yaml.safe_load((PARAMS / f"{name}.yaml").read_text()) | changes
        Path("study.yaml").write_text(yaml.safe_dump(content))
        return describe(load_study("study.yaml"))

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(footprint, "measure", lambda *arguments: Footprint(1, 3, 0, 1, 1))
    monkeypatch.chdir(tmp_path)
    return planned


def test_a_dits_time_embedding_is_diffusers_not_its_authors():
    # Its authors' frequencies are 10000^(-i/128): docs/families.md.
    embedder = tiny.tiny_dit().transformer_blocks[0].norm1.emb.time_proj
    assert embedder.num_channels == 256
    steps = torch.tensor([1, 250, 999])
    angles = steps[:, None].double() * 10_000.0 ** (-torch.arange(128) / 128)
    authors = torch.cat([angles.cos(), angles.sin()], -1)
    found = torch.cosine_similarity(embedder(steps).double(), authors)
    assert found.tolist() == pytest.approx([1, 0.95, 0.49], abs=0.005)


def test_difffits_count_has_more_than_one_reading():
    assert 832_928 - 607_136 == (14 * 6 + 28 * 4) * 1152 == 28 * 7 * 1152


def test_the_adapter_papers_design(plan):
    found = plan("sd15-dreambooth")
    points = [p for p in found["points"] if "input" in p["factors"]]
    cells = {(p["factors"]["input"], p["factors"]["output"]): p["trainable"] for p in points}
    assert sorted(cells) == sorted(adapter.legal_cells()) and len(points) == 6 * len(cells)
    # The released widths: 60; 6, 7 and 9 at the ResNet positions.
    released = {
        ("CA_c", "CA_c"): 1_487_808,
        ("Res_in", "Res_in"): 3_303_492,
        ("Res_in", "Res_out"): 3_224_794,
        ("Res_out", "Res_out"): 3_326_598,
    }
    assert cells == dict.fromkeys(adapter.legal_cells(), 1_511_040) | released
    arms = {p["arm"]: p["trainable"] for p in found["points"] if "input" not in p["factors"]}
    assert arms == {"full": 859_520_964, "none": 0}
    # Adapters after every 500 of 3000 steps, full fine-tuning after 500 and 800.
    assert len(found["runs"]) == len(set(found["runs"])) == (20 * 6 + 2 + 1) * 4 * 3
    assert sorted(len(part) for part in found["components"]) == [1, 3, 16]
    assert len(found["illegal_cells"]) == 8 * 5 - 17
    assert len(found["absent"]) == 1 + 1 + 4


def test_difffits_design(plan):
    found = plan("dit-xl-difffit")
    # The paper's counts, for 101 classes and none; here the table has ImageNet's 1,000 and none.
    tables = 1152 * (1001 - 102)
    millions = {p["arm"]: (p["trainable"] - tables) / 1e6 for p in found["points"]}
    printed = pd.read_csv(PUBLISHED / "difffit-methods.csv").set_index("method")["params_million"]
    named = {
        "full": "Full",
        "adaptformer-parallel": "Adapt-Parallel",
        "adaptformer-sequential": "Adapt-Sequential",
        "bitfit": "BitFit",
        "vpt": "VPT-Deep",
        "lora-r8": "LoRA-R8",
        "lora-r16": "LoRA-R16",
        "difffit": "DiffFit",
    }
    assert millions.keys() == named.keys() and set(named.values()) == set(printed.index)
    for arm, method in named.items():
        # Prompts are not in the paper's 2.81 M: one in each block is 0.03 M.
        tolerance = {"full": 0.05, "vpt": 0.04}.get(arm, 0.005)
        assert millions[arm] == pytest.approx(printed[method], abs=tolerance), arm
    assert len(found["runs"]) == 8 * 7 * 3 and len(found["absent"]) == 3 + 7
    assert [len(part) for part in found["components"]] == [8]


def test_the_benchmarks_design_has_the_benchmarks_parameters(plan, benchmark):
    found = plan("flux2-klein-image-gen")
    trainable = {p["arm"]: p["trainable"] for p in found["points"]}
    printed = benchmark.drop_duplicates("experiment").set_index("experiment")["trainable"]
    # Its list of layers passes over the output of each of the 20 single blocks.
    blocks, taken, given = 20, 3072 + 9216, 3072
    low_rank = blocks * (taken + given)
    more = {
        "lora/default": ("lora-r32", 32 * low_rank),
        "lora/rank64": ("lora-r64", 64 * low_rank),
        "dora/rank64": ("dora-r64", 64 * low_rank + blocks * given),
        "hira/default": ("hira-r32", 32 * low_rank),
        "gralora/default": ("gralora-r32", 32 * low_rank),
        "loha/default": ("loha-r32", 2 * 32 * low_rank),
        "miss/default": ("miss-r32", 32 * blocks * given),
        "peanut/default": ("peanut-r32", 2 * 32 * blocks * given),
        "oft/default": ("oft", blocks * (taken // 32) * (32 * 31 // 2)),
        "road/default": ("road", blocks * given),
        "vera/default": ("vera-r32", blocks * (32 + given)),
        "full-finetuning/default": ("full", 0),
    }
    for experiment, (arm, beyond) in more.items():
        assert trainable[arm] == printed[experiment] + beyond, arm
    assert len(found["runs"]) == 15 * 5 and [len(part) for part in found["components"]] == [14]
    assert len(found["absent"]) == 5  # base, judge, DINOv2, images, and what the tuning chose
    tuning = found["tuning"]
    assert (tuning["points"], tuning["runs"], tuning["chosen"]) == (14 * 4, 14 * 4 * 2, False)


def test_methods_on_stable_diffusion_35(plan):
    found = plan("sd35-methods")
    trainable = {p["arm"]: p["trainable"] for p in found["points"]}
    assert trainable["full"] == 2_243_171_520 and trainable["none"] == 0
    assert len(trainable) == 13 and len(found["runs"]) == 13 * 2 * 3
    assert len(found["absent"]) == 5 and found["tuning"]["runs"] == 12 * 4 * 2


@pytest.mark.slow
def test_lora_of_sdxl(plan):
    found = plan("sdxl-lora")
    cells = {
        tuple(p["factors"][name] for name in ("rank", "target", "dora")): p["trainable"]
        for p in found["points"]
        if p["factors"]
    }
    assert len(cells) == 3 * 3 * 2 and len(found["runs"]) == 19 * 3
    for (rank, target, dora), count in cells.items():
        lengths = cells[4, target, True] - cells[4, target, False]
        assert count == rank // 4 * cells[4, target, False] + dora * lengths
    assert cells[4, "qkv", False] < cells[4, "attention", False] < cells[4, "attention+ff", False]
    assert len(found["absent"]) == 4 and found["tuning"]["runs"] == 18 * 4 * 2


FINER = {
    "twice the base's size": lambda tasks: {"tasks": [task | {"scale": 2} for task in tasks]},
    "a base of 512 px": lambda tasks: {"base": "facebook/DiT-XL-2-512"},
}


@pytest.mark.parametrize("change", FINER.values(), ids=FINER)
def test_difffits_design_at_512_px(plan, change):
    tasks = yaml.safe_load((PARAMS / "dit-xl-difffit.yaml").read_text())["tasks"]
    assert len(plan("dit-xl-difffit", **change(tasks))["runs"]) == 8 * 7 * 3


@pytest.fixture
def counted_by_width(monkeypatch):
    """Each width counted at one cell only."""
    counts, count = {}, counting.count

    def counted(base, method, settings, *told):
        key = method, settings.get("width")
        if key not in counts:
            counts[key] = count(base, method, settings, *told)
        return counts[key]

    monkeypatch.setattr(counting, "count", counted)


def test_the_adapter_papers_factors(counted_by_width, plan):
    _check_factors(plan("sd15-adapters"))


@pytest.mark.slow
def test_the_adapter_papers_factors_counted_at_every_point(plan):
    _check_factors(plan("sd15-adapters"))


def _check_factors(found):
    cells = [p["factors"] for p in found["points"] if p["factors"]]
    widths = {60: 1_511_040, 256: 6_406_336}
    counts = {p["trainable"] for p in found["points"] if p["factors"]}
    assert len(cells) == 48 and counts == set(widths.values())
    for point in found["points"]:
        assert point["trainable"] == widths.get(point["factors"].get("width"), point["trainable"])
    pairs = {(cell["input"], cell["output"]) for cell in cells}
    assert pairs <= set(adapter.legal_cells()) and [len(c) for c in found["components"]] == [48]
    levels = [(e["effect"], e["df"]) for e in found["effects"] if ":" not in e["effect"]]
    factors = [("input", 6), ("output", 3), ("activation", 3), ("scale", 3), ("width", 1)]
    assert levels == factors
    assert len(found["runs"]) == 50 * 2 and len(found["absent"]) == 4
    assert found["subsets"][0]["legal"] == 16 * 4 * 4 * 2
