"""What a distance measured on n samples may claim: its interval, its fall with n, equal n."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import report_study as made_up
import torch
import yaml

from fitspace import metrics, plan, study
from fitspace.core.errors import UserError
from fitspace.core.imports import import_torchvision
from fitspace.metrics import measuring
from fitspace.metrics.frechet import Gaussian, between, fit, frechet_distance, jackknife
from fitspace.report import inputs
from fitspace.results import table

import_torchvision()

from torch_fidelity.metric_fid import (  # noqa: E402
    KEY_METRIC_FID,
    fid_features_to_statistics,
    fid_statistics_to_metric,
)

from fitspace.metrics.kernel import kernel_distance  # noqa: E402
from fitspace.metrics.sample_size import against_n  # noqa: E402

ROOT = Path(__file__).parents[2]


def draw(n, d, seed, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) * scale + shift


def exactly(n, mean, variances, seed):
    """Features whose own mean and covariance are those given."""
    d = len(variances)
    noise = draw(n, d, seed)
    rows = torch.linalg.qr(noise - noise.mean(0)).Q * (n - 1) ** 0.5
    return rows * variances.sqrt() + mean


def test_distance_of_known_gaussians_is_the_closed_form():
    ours, theirs = torch.tensor([4.0, 1.0, 0.25]).double(), torch.tensor([1.0, 9.0, 0.25]).double()
    a, b = exactly(50, 1.0, ours, 1), exactly(80, 3.0, theirs, 2)
    expected = 3 * 2.0**2 + (2 - 1) ** 2 + (1 - 3) ** 2 + 0
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def fidelity(a, b):
    stats = fid_features_to_statistics(a), fid_features_to_statistics(b)
    return fid_statistics_to_metric(*stats, verbose=False)[KEY_METRIC_FID]


@pytest.mark.parametrize(("n", "groups"), [(60, 10), (47, 10), (64, 7), (6, 10)])
def test_jackknife_is_that_of_busing_and_others(n, groups):
    """Their formulas with torch-fidelity's distance and scipy's t."""
    from scipy import stats

    a, b = draw(n, 4, 1), draw(90, 4, 2, scale=1.5, shift=0.3)
    g = min(groups, n)
    members = [[i for i in range(n) if i % g == j] for j in range(g)]
    whole = fidelity(a, b)
    without = [fidelity(a[[i for i in range(n) if i not in m]], b) for m in members]
    removed = [len(m) / n for m in members]
    estimate = g * whole - sum((1 - r) * w for r, w in zip(removed, without, strict=True))
    variance = np.mean(
        [
            (whole / r - (1 / r - 1) * w - estimate) ** 2 / (1 / r - 1)
            for r, w in zip(removed, without, strict=True)
        ]
    )
    half = stats.t.ppf(0.975, g - 1) * variance**0.5
    got = jackknife(a, b, groups)
    assert got == pytest.approx((estimate, estimate - half, estimate + half), rel=1e-5)


def test_equal_groups_give_the_mean_and_error_of_pseudo_values():
    a, b = draw(40, 60, 3), draw(50, 60, 4, shift=0.2)
    whole = frechet_distance(a, b)
    pseudo = [
        10 * whole - 9 * frechet_distance(a[torch.arange(40) % 10 != j], b) for j in range(10)
    ]
    estimate, low, high = jackknife(a, b)
    assert estimate == pytest.approx(np.mean(pseudo), rel=1e-9)
    # 2.262: Student's t with 9 degrees of freedom, from a printed table.
    expected = 2 * 2.262 * np.std(pseudo, ddof=1) / 10**0.5
    assert high - low == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("n", [30, 100], ids=["n < d", "n > d"])
def test_interval_does_not_depend_on_the_frame(n):
    a, b = draw(n, 50, 5), draw(70, 50, 6, scale=2.0)
    rotation = torch.linalg.qr(draw(50, 50, 7)).Q
    moved = jackknife(a @ rotation + 5, b @ rotation + 5)
    assert moved == pytest.approx(jackknife(a, b), rel=1e-8)
    assert jackknife(3 * a, 3 * b) == pytest.approx(9 * np.array(jackknife(a, b)), rel=1e-8)


SIMULATED = {"far away": (0.5, 1.5), "the same distribution": (0.0, 1.0)}


@pytest.mark.parametrize(("shift", "scale"), SIMULATED.values(), ids=SIMULATED)
def test_interval_covers_the_distance_from_this_very_reference(shift, scale):
    """N(0, 1) in 16 dimensions against 200 drawn images, of which the moments are known."""
    d, n, repeats = 16, 128, 300
    reference = draw(200, d, 8, scale, shift)
    truth = between(Gaussian(torch.zeros(d).double(), torch.eye(d).double()), fit(reference))
    samples = [draw(n, d, 1000 + i) for i in range(repeats)]
    plain = np.array([frechet_distance(a, reference) for a in samples])
    estimate, low, high = np.array([jackknife(a, reference) for a in samples]).T
    bias, error = plain.mean() - truth, plain.std() / repeats**0.5
    assert bias > 5 * error
    assert abs(estimate.mean() - truth) < 0.15 * bias + 3 * error
    # Of 300 at 95%: 285 with a binomial standard deviation of 3.8.
    assert np.sum((low <= truth) & (truth <= high)) > 285 - 4 * 3.8


def test_with_fewer_samples_than_features_most_of_the_bias_goes():
    """Features with a falling spectrum, as images have; no coverage is claimed here."""
    d, n, repeats = 256, 80, 20
    spectrum = 1 / torch.arange(1, d + 1).double().sqrt()
    reference = draw(185, d, 9, spectrum, 0.1)
    truth = between(Gaussian(torch.zeros(d).double(), spectrum.diag()), fit(reference))
    samples = [draw(n, d, 2000 + i, spectrum) for i in range(repeats)]
    plain = np.mean([frechet_distance(a, reference) for a in samples])
    corrected = np.mean([jackknife(a, reference)[0] for a in samples])
    assert 0 < abs(corrected - truth) < 0.25 * (plain - truth)


def test_kernel_distance_is_the_unbiased_estimate_of_its_paper():
    """1801.01401: k(x, y) = (x y / d + 1)^3, the diagonals of both sets left out."""
    a, b = draw(12, 5, 10).numpy(), draw(12, 5, 11, shift=1.0).numpy()

    def kernel(x, y):
        return (x @ y / 5 + 1) ** 3

    within = [
        sum(kernel(s[i], s[j]) for i in range(12) for j in range(12) if i != j) / (12 * 11)
        for s in (a, b)
    ]
    across = np.mean([kernel(x, y) for x in a for y in b])
    got = kernel_distance(torch.from_numpy(a), torch.from_numpy(b), subsets=2)
    assert got == pytest.approx(sum(within) - 2 * across, rel=1e-10)


def test_frechet_falls_with_n_and_kid_does_not():
    samples, reference = draw(160, 96, 12), draw(300, 96, 13, shift=0.4)
    rows = against_n(samples, reference, [20, 40, 80, 120, 160])
    frechet, kid = (np.array([row[k] for row in rows]) for k in ("fd_effnet", "kid_effnet"))
    assert [row["n"] for row in rows] == [20, 40, 80, 120, 160]
    assert (np.diff(frechet) < 0).all() and frechet[0] > 1.5 * frechet[-1]
    assert abs(kid / kid[-1] - 1).max() < 0.15
    assert frechet[-1] == pytest.approx(frechet_distance(samples, reference), rel=1e-9)
    (whole,) = against_n(samples, reference[:160], [160])  # one subset only, in any order
    assert whole["kid_effnet"] == pytest.approx(kernel_distance(samples, reference[:160], 160, 1))
    assert rows == against_n(samples, reference, [20, 40, 80, 120, 160])


def test_each_size_is_a_mean_over_random_subsets():
    samples, reference = draw(120, 30, 14), draw(200, 30, 15, shift=0.4)
    order = np.random.default_rng(0)
    pick = lambda: torch.from_numpy(order.choice(120, 30, replace=False))  # noqa: E731
    others = [frechet_distance(samples[pick()], reference) for _ in range(200)]
    (row,) = against_n(samples, reference, [30])
    # The mean of 10 subsets, within four standard errors of the mean of all.
    assert row["fd_effnet"] == pytest.approx(np.mean(others), abs=4 * np.std(others) / 10**0.5)


def test_every_run_has_interval_numbers_of_images_and_curve():
    samples, reference = draw(40, 64, 16), draw(50, 64, 17, shift=0.3)
    found = measuring.of_features(samples, reference)
    assert (found["n"], found["m"]) == (40, 50)
    assert found["fd_effnet"] == frechet_distance(samples, reference)
    assert tuple(found[k] for k in metrics.INTERVAL) == jackknife(samples, reference)
    assert [row["n"] for row in found["against_n"]] == [5, 10, 20, 30, 40]
    last = {"n": 40, "fd_effnet": found["fd_effnet"], "kid_effnet": found["kid_effnet"]}
    assert found["against_n"][-1] == last
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("n", [4, 5, 9])
def test_the_fewest_samples_have_an_interval_too(n):
    found = measuring.of_features(draw(n, 20, 18), draw(6, 20, 19))
    values = [v for row in found.pop("against_n") for v in row.values()]
    assert np.isfinite([*found.values(), *values]).all()


def finished_run(folder, name, metric_names, dreambooth=None, **measured):
    folder.mkdir(parents=True)
    measured |= dict.fromkeys(metric_names, 0.1) | {"n": 40, "m": 3}
    (folder / "metrics.json").write_text(json.dumps(measured))
    return SimpleNamespace(
        name=name,
        point=SimpleNamespace(sample={}),
        task=SimpleNamespace(dreambooth=dreambooth),
        reference=SimpleNamespace(material={"evaluator": {}}),
        evaluate=SimpleNamespace(folder=folder),
    )


def test_the_curve_comes_through_its_table_unchanged(tmp_path):
    study = made_up.study({"width": [4, 8]})
    rows = made_up.rows(study)
    thirds = [{"n": n, "fd_effnet": 100 / 3 / n, "kid_effnet": -1e-17 / n} for n in (5, 40)]
    names = [*metrics.OF_HELD_OUT, *metrics.INTERVAL]
    runs = [finished_run(tmp_path / "a", rows[0]["run"], names, against_n=thirds)]
    runs += [finished_run(tmp_path / "b", rows[1]["run"], metrics.OF_SUBJECT, dreambooth="dog")]
    made_up.write(tmp_path, rows)
    table.write_table(table.against_n(SimpleNamespace(runs=runs)), tmp_path / "against_n.csv")
    text = (tmp_path / "against_n.csv").read_text()
    assert text.startswith("run,n,fd_effnet,kid_effnet\n") and "6.666666666666667," in text
    given = inputs.read(study, tmp_path)
    expected = [{"run": rows[0]["run"]} | row for row in thirds]
    assert given.against_n.to_dict("records") == expected
    assert given.against_n.to_csv(index=False, lineterminator="\n") == text
    assert list(given.digests) == ["runs.csv", "against_n.csv"]


def read(folder, change=lambda rows: None, **study):
    made = made_up.study({"width": [4, 8]}, tasks=("blueprint", "night"), **study)
    rows = made_up.rows(made)
    change(rows)
    made_up.write(folder, rows)
    return inputs.read(made, folder)


def test_a_report_without_a_curve_has_none(tmp_path):
    given = read(tmp_path)
    assert given.against_n is None
    assert set(given.runs["n"]) == {96.0} and set(given.runs["m"]) == {185.0}


def each(rows, **changes):
    for row in rows:
        row.update(changes)


def without(name):
    return lambda rows: [row.pop(name) for row in rows]


UNEQUAL = {
    "one run on fewer samples": (
        lambda rows: each(rows[2:3], n=80),
        "column 'n': 80 in full~blueprint.*; 96 in adapter.4~blueprint.* and 12 more; needed: "
        "the same number of samples in all finished runs: the Fréchet distance falls with n",
    ),
    "a task on fewer samples": (
        lambda rows: each([r for r in rows if r["task"] == "night"], n=80),
        "column 'n': 80 in adapter.4~night.* and 5 more; 96 in adapter.4~blueprint.* and 5 more",
    ),
    "a run whose number is not known": (
        lambda rows: each(rows[:1], n=None),
        "column 'n': no number in adapter.4~blueprint",
    ),
    "one run against fewer references": (
        lambda rows: each(rows[:1], m=100),
        "column 'm': 100 in adapter.4~blueprint.*; 185 in .*; needed: the same number of "
        "reference images in all finished runs of task 'blueprint'",
    ),
    "no number at all": (
        without("n"),
        "no number of samples in column 'n'; 'fd_effnet' depends on it",
    ),
}


@pytest.mark.parametrize(("change", "message"), UNEQUAL.values(), ids=UNEQUAL)
def test_unequal_numbers_of_images_are_refused(tmp_path, change, message):
    with pytest.raises(UserError) as caught:
        read(tmp_path, change)
    (problem,) = caught.value.problems
    assert problem.startswith(str(tmp_path / "runs.csv"))
    assert re.search(message, problem), problem


EQUAL = {
    "tasks of their own reference": (
        lambda rows: each([r for r in rows if r["task"] == "night"], m=100),
        {},
    ),
    "a failed run": (lambda rows: each(rows[:1], n=None, m=None, status="failed"), {}),
    "no number and no metric that depends on it": (
        without("n"),
        {"responses": ("clip_t", "kid_effnet"), "transform": {}},
    ),
}


@pytest.mark.parametrize(("change", "study"), EQUAL.values(), ids=EQUAL)
def test_what_can_be_compared_is_read(tmp_path, change, study):
    assert len(read(tmp_path, change, **study).runs) == 16


BAD_CURVES = {
    "no KID": ("run,n,fd_effnet\nRUN,5,1.0\n", "no column 'kid_effnet'; columns: run, n, fd"),
    "text": ("run,n,fd_effnet,kid_effnet\nRUN,5,far,0\n", "column 'fd_effnet': 'far' is no finite"),
    "endless": ("run,n,fd_effnet,kid_effnet\nRUN,5,inf,0\n", "column 'fd_effnet': 'inf' is no"),
    "empty cell": ("run,n,fd_effnet,kid_effnet\nRUN,5,1,\n", "'kid_effnet': 'an empty cell' is no"),
    "half a sample": ("run,n,fd_effnet,kid_effnet\nRUN,5.5,1,0\n", "'5.5' is no number of samples"),
    "stranger": ("run,n,fd_effnet,kid_effnet\nwho,5,1,0\n", "run 'who' is not in runs.csv"),
    "twice": ("run,n,fd_effnet,kid_effnet\nRUN,5,1,0\nRUN,5,2,0\n", "has n = 5 twice"),
}


@pytest.mark.parametrize(("text", "message"), BAD_CURVES.values(), ids=BAD_CURVES)
def test_a_bad_curve_is_named(tmp_path, text, message):
    read(tmp_path)
    with (tmp_path / "runs.csv").open() as file:
        run = next(csv.DictReader(file))["run"]
    (tmp_path / "against_n.csv").write_text(text.replace("RUN", run))
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    (problem,) = caught.value.problems
    assert problem.startswith(str(tmp_path / "against_n.csv")) and message in problem


# A metric on features whose weights the study does not name is refused for that.
LIKENESS = [
    name
    for name, row in metrics.METRICS.items()
    if row.rewards_copies and row.extractor not in metrics.NAMED
]


def problems_of(tmp_path, responses):
    content = yaml.safe_load((ROOT / "tests/data/positions.yaml").read_text())
    content["base"], content["judge"] = (str(ROOT / content[k]) for k in ("base", "judge"))
    content["analysis"] = {"factors": ["input"], "responses": responses}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    try:
        plan.load_study(tmp_path / "study.yaml")
    except UserError as error:
        return error.problems
    return []


@pytest.mark.parametrize("name", LIKENESS)
def test_clip_i_does_not_stand_alone(tmp_path, name):
    found = problems_of(tmp_path, ["fd_effnet", name])
    (problem,) = (p for p in found if "not measured" not in p)
    assert f"analysis.responses: {name} without a metric of the text or of diversity" in problem
    assert "copies its training images" in problem and "clip_t or diversity" in problem


@pytest.mark.parametrize("beside", ["clip_t", "diversity"])
def test_clip_i_stands_beside_text_or_diversity(tmp_path, beside):
    assert problems_of(tmp_path, ["clip_i", beside]) == []
    assert problems_of(tmp_path, ["fd_effnet"]) == []


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda p: p.stem)
def test_no_study_here_lets_clip_i_stand_alone(path):
    loaded = study.Study.model_validate(yaml.safe_load(path.read_text()))
    assert metrics.alone(loaded.analysis.responses) == []
