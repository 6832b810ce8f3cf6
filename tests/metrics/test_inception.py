"""FID's extractor against torch-fidelity's own, on random weights; how a study names it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from safetensors.torch import save_file

from fitspace import metrics
from fitspace.cli import main
from fitspace.core.errors import UserError
from fitspace.core.files import sha256
from fitspace.core.hub import NotHere
from fitspace.core.imports import import_torchvision
from fitspace.plan import build_plan, footprint
from fitspace.plan.footprint import Footprint
from fitspace.study import Study

import_torchvision()
import torch_fidelity  # noqa: E402
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # noqa: E402

from fitspace.metrics import inception  # noqa: E402
from fitspace.metrics.frechet import frechet_distance  # noqa: E402

ROOT = Path(__file__).parents[2]
JUDGE = str(ROOT / "models/emoji-clip")
README = (ROOT / "params/README.md").read_text()
EMOJI = yaml.safe_load((ROOT / "tests/data/positions.yaml").read_text())


@pytest.fixture(scope="module")
def pickled(tmp_path_factory):
    """Random weights, as torch-fidelity keeps its own."""
    path = tmp_path_factory.mktemp("weights") / "weights-inception-2015-12-05-6726825d.pth"
    torch.save(tiny.inception(path.with_suffix(".safetensors")), path)
    return path


@pytest.fixture(scope="module")
def weights(pickled):
    """The same, made by the command in params/README.md."""
    (command,) = re.findall(r"^    (python -c .*safetensors.*)$", README, re.MULTILINE)
    _, *arguments = shlex.split(command)
    out = pickled.with_name("models")
    out.mkdir()
    arguments[-1:] = [str(out / Path(arguments[-1]).name)]
    subprocess.run([sys.executable, *arguments], cwd=pickled.parent, check=True)
    return out / "inception-v3.safetensors"


def pictures(side, count=4, seed=0):
    """Distinct smooth images, uint8 (count, side, side, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    rows = np.arange(side) * 4 // side
    return coarse[:, rows][:, :, rows]


@pytest.mark.parametrize("side", [32, 320], ids=["enlarged", "shrunk"])
def test_features_are_torch_fidelitys_own(pickled, weights, side):
    images = torch.from_numpy(pictures(side, 2))
    theirs = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(pickled))
    (expected,) = theirs(images.permute(0, 3, 1, 2))
    found = inception.features(images, weights)
    assert found.shape == (2, 2048) and expected.std() > 1e-3
    torch.testing.assert_close(found.float(), expected, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def measured(weights):
    """Six images drawn, six real ones, and all metrics of them."""
    real, drawn = pictures(16, 6), pictures(16, 6, seed=1)
    captions, named = [f"picture {i}" for i in range(6)], {"inception": weights}
    reference = metrics.reference_features(real, captions, captions, JUDGE, named)
    assert reference["inception"].shape == (6, 2048)
    found = metrics.evaluate(drawn, reference, JUDGE, named)
    without = metrics.evaluate(drawn, reference, JUDGE)
    assert found == {"fid": found["fid"]} | without
    return drawn, real, found["fid"]


def test_fid_is_the_distance_of_torch_fidelitys_features(pickled, measured):
    *images, found = measured
    theirs = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(pickled))
    features = [theirs(torch.from_numpy(i).permute(0, 3, 1, 2))[0] for i in images]
    assert found == pytest.approx(frechet_distance(*features), rel=1e-6) and found > 1e-3


@pytest.mark.slow
def test_fid_is_torch_fidelitys_own(pickled, measured):
    class Dataset(torch.utils.data.Dataset):
        def __init__(self, images):
            self.images = torch.from_numpy(images).permute(0, 3, 1, 2)

        def __len__(self):
            return len(self.images)

        def __getitem__(self, i):
            return self.images[i]

    drawn, real, found = measured
    expected = torch_fidelity.calculate_metrics(
        input1=Dataset(drawn), input2=Dataset(real), fid=True, cuda=False, verbose=False,
        feature_extractor_weights_path=str(pickled), save_cpu_ram=True,
    )  # fmt: skip
    # Theirs takes the eigenvalues of a product of 2048 x 2048, here of rank 5.
    assert found == pytest.approx(expected["frechet_inception_distance"], rel=2e-5)


BAD = {
    "no safetensors": (lambda good: b"PK", "cannot be read as safetensors"),
    "other tensors": (None, "holds other weights than torch-fidelity's Inception-v3: Missing key"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_other_weights_are_refused(tmp_path, content, message):
    path = tmp_path / "x.safetensors"
    if content is None:
        save_file({"fc.bias": torch.zeros(1008)}, path)
    else:
        path.write_bytes(content(None))
    with pytest.raises(UserError, match=message):
        inception.load_network(path)


# --- in a study --------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(footprint, "measure", lambda *arguments: Footprint(1, 3, 0, 1, 1))
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def study(**changes) -> Study:
    return Study.model_validate(EMOJI | changes)


def test_its_digest_is_part_of_what_evaluates_and_of_nothing_else(folder):
    (folder / "a.safetensors").write_bytes(b"one")
    (folder / "b.safetensors").write_bytes(b"one")
    (folder / "c.safetensors").write_bytes(b"two")
    plans = {
        name: build_plan(study(**({} if name is None else {"inception": f"{name}.safetensors"})))
        for name in (None, *"abc")
    }
    runs = {name: plan.runs[0] for name, plan in plans.items()}
    for stage in ("prepare", "train", "sample"):
        assert len({getattr(run, stage).key for run in runs.values()}) == 1
    for stage in ("reference", "evaluate"):
        keys = {name: getattr(run, stage).key for name, run in runs.items()}
        assert keys["a"] == keys["b"] and len(set(keys.values())) == 3
    assert "inception" not in runs[None].reference.material["evaluator"]


def test_a_subject_has_no_fid_and_its_keys_do_not_depend_on_it(folder):
    subject = yaml.safe_load((ROOT / "tests/data/dreambooth.yaml").read_text())
    (folder / "a.safetensors").write_bytes(b"one")
    plain, named = (
        build_plan(Study.model_validate(subject | changes)).runs[0]
        for changes in ({}, {"inception": "a.safetensors"})
    )
    assert plain.evaluate.key == named.evaluate.key


def test_a_pin_is_held(folder, capsys):
    (folder / "a.safetensors").write_bytes(b"one")
    value = sha256("a.safetensors")
    Path("s.yaml").write_text(yaml.safe_dump(EMOJI | {"inception": "a.safetensors"}))
    assert main(["plan", "s.yaml"]) == 0
    assert f"inception_sha256: {value}" in capsys.readouterr().out
    build_plan(study(inception="a.safetensors", inception_sha256=value))
    with pytest.raises(UserError, match=f"inception_sha256: {'0' * 64}; 'a.safetensors' here is"):
        build_plan(study(inception="a.safetensors", inception_sha256="0" * 64))


def test_weights_that_are_not_here_stop_no_plan(folder, capsys):
    content = EMOJI | {"inception": "none.safetensors"}
    content["analysis"] = EMOJI["analysis"] | {"responses": ["fid", "clip_t"], "transform": {}}
    content["analysis"].pop("margins", None)
    Path("s.yaml").write_text(yaml.safe_dump(content))
    assert main(["check", "s.yaml"]) == 0
    said = capsys.readouterr().err
    assert "not here yet: inception: 'none.safetensors'" in said and "params/README.md" in said
    with pytest.raises(NotHere, match="inception"):
        metrics.identity(JUDGE, {"inception": "none.safetensors"})
    with pytest.raises(UserError, match="'none.safetensors' is not on this machine"):
        build_plan(Study.model_validate(content))
