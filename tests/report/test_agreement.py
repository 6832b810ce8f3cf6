"""Agreement between metrics: rank correlations over points, and what is said of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import report_study as made_up
from scipy.stats import spearmanr

from fitspace.report import agreement, build


def table(points=8, tasks=("a", "b"), seeds=(0, 1)):
    """clip_t and kid_effnet rank alike, diversity the other way round, precision by chance."""
    draw = np.random.default_rng(0)
    rows = []
    for at, task in enumerate(tasks):
        for point in range(points):
            for seed in seeds:
                good = point + draw.normal(0, 0.2)
                rows.append({
                    "point": f"p{point}", "task": task, "seed": seed, "status": "ok",
                    "clip_t": good + 100 * at, "kid_effnet": -2 * good - 50 * at,
                    "diversity": -good, "precision": draw.normal(),
                })  # fmt: skip
    return pd.DataFrame(rows)


def estimates(runs, primary="clip_t"):
    found = agreement.table(runs, primary)
    return {(r["metric"], r["other"]): r for r in found.to_dict("records")}


def test_the_estimate_is_scipys_over_points_without_tasks():
    runs = table()
    found = estimates(runs)
    signed = runs.assign(kid_effnet=-runs["kid_effnet"])
    means = signed.groupby(["point", "task"])[["clip_t", "kid_effnet", "precision"]].mean()
    means -= means.groupby("task").transform("mean")
    means = means.groupby("point").mean()
    for other in ("kid_effnet", "precision"):
        expected = spearmanr(means["clip_t"], means[other]).statistic
        row = found["clip_t", other]
        assert row["estimate"] == pytest.approx(expected, abs=1e-12) and row["points"] == 8
        assert row["low"] <= row["estimate"] <= row["high"]


def test_lower_is_better_is_turned_and_disagreement_named():
    found = agreement.table(table(), "clip_t")
    ours = found[found["metric"] == "clip_t"].set_index("other")["estimate"]
    assert ours["kid_effnet"] > 0.9 and ours["diversity"] < -0.9
    assert list(agreement.disagreeing(found, "clip_t")["other"])[0] == "diversity"
    assert "kid_effnet" not in list(agreement.disagreeing(found, "clip_t")["other"])


FEW = {
    "three points": lambda t: t[t["point"].isin(["p0", "p1", "p2"])],
    "one metric": lambda t: t.drop(columns=["kid_effnet", "diversity", "precision"]),
    "metrics that do not vary": lambda t: t.assign(kid_effnet=1, diversity=0, precision=2),
    "nothing finished": lambda t: t.assign(status="failed"),
}


@pytest.mark.parametrize("change", FEW.values(), ids=FEW)
def test_too_little_to_compare_gives_no_rows(change):
    assert agreement.table(change(table()), "clip_t").empty


def test_a_seed_more_of_one_point_weighs_no_more():
    runs = table()
    twice = pd.concat([runs, runs[runs["point"] == "p0"].assign(seed=9)])
    one, two = estimates(runs), estimates(twice)
    assert one["clip_t", "precision"]["estimate"] == two["clip_t", "precision"]["estimate"]


def test_the_report_has_the_map_and_the_table(tmp_path):
    study = made_up.study()
    made_up.write(tmp_path, made_up.rows(study))
    build(study, tmp_path)
    found = pd.read_csv(tmp_path / agreement.NAME)
    assert set(found["metric"]) | set(found["other"]) >= {"fd_effnet", "clip_i_paired", "clip_t"}
    html = (tmp_path / "report.html").read_text()
    assert "Agreement with the primary metric" in html and "Rank correlation (Spearman)" in html
    assert (tmp_path / "figures/agreement.svg").exists()
