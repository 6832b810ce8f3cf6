"""Metrics that a study names, each against a library or its formula written out once more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from fitspace import metrics
from fitspace.core.errors import UserError
from fitspace.metrics import METRICS, Compared
from fitspace.metrics.extractors import Extraction
from fitspace.metrics.metric import GIVEN, IMAGES, PAIRS, TEXTS, TRAINING, UNTOUCHED
from fitspace.plan import build_plan
from fitspace.plan.checks import metric_problems, task_problems
from fitspace.study import Study

ROOT = Path(__file__).parents[2]
JUDGE = str(ROOT / "models/emoji-clip")
README = (ROOT / "params/README.md").read_text()
EMOJI = yaml.safe_load((ROOT / "tests/data/positions.yaml").read_text())
SUBJECT = yaml.safe_load((ROOT / "tests/data/dreambooth.yaml").read_text())
FURTHER = metrics.asked(METRICS)
N, P, D = 9, 12, 6  # samples, prompts, numbers per feature
# Prompt i has the held-out image i; prompts 2 and 5 have one caption and both of its images.
TRUE_PAIRS = [(i, i) for i in range(P) if i not in (2, 5)] + [(2, 2), (2, 5), (5, 2), (5, 5)]


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def seen():
    """Features of samples and references as a stage has them, and the same for NumPy."""
    draw = np.random.default_rng(0)
    here = {
        "samples": draw.normal(0.3, 1, (N, D)),
        "others": draw.normal(0, 1, (P, D)),
        "texts": draw.normal(0, 1, (P, D)),
        "training": draw.normal(0, 1, (40, D)),
        "held_out": draw.normal(0, 1, (30, D)),
    }
    here["samples"][:3] = here["training"][:3] + 0.01
    judged = {name: unit(rows) for name, rows in here.items()}
    reference = {
        "effnet": here["others"], "judge_images": judged["others"], "judge_texts": judged["texts"],
        "effnet_training": here["training"], "effnet_held_out": here["held_out"],
        "judge_training": judged["training"], "judge_held_out": judged["held_out"],
        "dinov2": here["others"],
    }  # fmt: skip
    reference = {name: torch.tensor(rows) for name, rows in reference.items()}
    reference["pairs"] = torch.tensor(sorted(TRUE_PAIRS))
    samples = {"judge": judged["samples"]} | dict.fromkeys(("effnet", "dinov2"), here["samples"])
    images = torch.zeros(N, 16, 16, 3, dtype=torch.uint8)
    features = {name: torch.tensor(rows) for name, rows in samples.items()}
    return Compared(images, reference, features.__getitem__), here, judged


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def _paired(x, y, **_):
    own = {i: [cosine(x[i], y[j]) for k, j in TRUE_PAIRS if k == i] for i in range(N)}
    return np.mean([np.mean(values) for values in own.values()])


def _similarity(x, y, **_):
    return np.mean([cosine(a, b) for a in x for b in y])


def _diversity(x, y, **_):
    return 1 - np.mean([cosine(x[i], x[j]) for i in range(N) for j in range(N) if i != j])


def _vendi(x, y, **_):
    from vendi_score import vendi

    return vendi.score_X(x)


def _prdc(x, y, **_):
    from prdc import compute_prdc

    return compute_prdc(y, x, nearest_k=5)


def _frechet(x, y, **_):
    from scipy.linalg import sqrtm

    one, other = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = sqrtm(one @ other).real
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(one + other - 2 * root)


def _cmmd(x, y, **_):
    def k(a, b):
        return np.mean([[np.exp(-((p - q) ** 2).sum() / 200) for q in b] for p in a])

    return 1000 * (k(x, x) + k(y, y) - 2 * k(x, y))


def _copies(x, y, training, held_out, **_):
    def nearest(rows):
        return np.array([min(np.linalg.norm(row - t) for t in training) for row in rows])

    return np.mean(nearest(x) < np.quantile(nearest(held_out), 0.05))


def _r_precision(x, y, texts, **_):
    return np.mean([np.argmax([a @ t for t in texts]) == i for i, a in enumerate(x)])


TRUTHS = {
    "paired_effnet": _paired,
    "similarity_effnet": _similarity,
    "diversity_effnet": _diversity,
    "vendi_effnet": _vendi,
    "vendi_judge": _vendi,
    "density_effnet": lambda x, y, **_: _prdc(x, y)["density"],
    "coverage_effnet": lambda x, y, **_: _prdc(x, y)["coverage"],
    "density_judge": lambda x, y, **_: _prdc(x, y)["density"],
    "fd_dinov2": _frechet,
    "fd_judge": _frechet,
    "cmmd": _cmmd,
    "copies_effnet": _copies,
    "copies_judge": _copies,
    "r_precision": _r_precision,
}


@pytest.mark.parametrize("name", TRUTHS)
def test_a_metric_is_its_formula(seen, name):
    compared, plain, judged = seen
    arrays = dict(judged if METRICS[name].extractor == "judge" else plain)
    expected = TRUTHS[name](arrays.pop("samples"), arrays.pop("others"), **arrays)
    assert METRICS[name].measure(compared) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_kernel_distance_of_whole_sets_is_its_formula():
    """1801.01401, section 4: unbiased, with the cubic polynomial kernel."""
    draw = np.random.default_rng(1)
    x, y = draw.normal(0.3, 1, (20, D)), draw.normal(0, 1, (20, D))
    k = lambda a, b: (a @ b.T / D + 1) ** 3  # noqa: E731
    off = ~np.eye(20, dtype=bool)
    expected = k(x, x)[off].mean() + k(y, y)[off].mean() - 2 * k(x, y).mean()
    compared = Compared(None, {"dinov2": torch.tensor(y)}, lambda _: torch.tensor(x))
    assert METRICS["kid_dinov2"].measure(compared) == pytest.approx(expected, rel=1e-6)


def test_equal_captions_are_one():
    """A judge cannot tell a caption from itself, whatever the last digit of a product is."""
    texts = torch.eye(3, dtype=torch.float64)[[0, 1, 1]]
    texts[2] *= 1 + 1e-9
    compared = Compared(None, {"judge_texts": texts}, lambda _: texts[:2])
    assert METRICS["r_precision"].measure(compared) == 1


def pictures(count, seed):
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(8, 1).repeat(8, 2)


def pixelwise(images, shown, name):
    reference = {"images": torch.from_numpy(shown), "pairs": torch.tensor(sorted(TRUE_PAIRS))}
    return METRICS[name].measure(Compared(torch.from_numpy(images), reference, None))


def by_pairs(value, images, shown):
    own = {i: [value(shown[j], images[i]) for k, j in TRUE_PAIRS if k == i] for i in range(N)}
    return np.mean([np.mean(values) for values in own.values()])


def test_pixels_are_compared_as_scikit_image_does():
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    images, shown = pictures(N, 1), pictures(P, 2)
    images[0] = shown[0] // 2
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    alike = lambda a, b: structural_similarity(a, b, channel_axis=2, **wang)  # noqa: E731
    for name, value in (("psnr", peak_signal_noise_ratio), ("ssim", alike)):
        expected = by_pairs(value, images, shown)
        assert pixelwise(images, shown, name) == pytest.approx(expected, rel=1e-6), name


def test_a_perfect_picture_has_a_finite_psnr():
    shown = pictures(P, 2)
    shown[5] = shown[2]
    assert pixelwise(shown[:N], shown, "psnr") == pytest.approx(10 * np.log10(12 * 255**2))
    assert pixelwise(shown[:N], shown, "ssim") == pytest.approx(1)
    assert pixelwise(shown[:N], shown, "perceptual_effnet") == 0


def test_the_perceptual_distance_is_lpips_without_weights_on_the_pinned_stages():
    """1801.03924, equation 1, with w = 1; the activations by timm's own extractor of stages."""
    import timm

    from fitspace.metrics import effnet

    network = timm.create_model("tf_efficientnet_lite0", features_only=True).eval()
    lacking = network.load_state_dict(effnet.load_network().state_dict(), strict=False)
    assert not lacking.missing_keys
    images, shown = pictures(N, 1), pictures(P, 2)

    @torch.inference_mode()
    def distance(a, b):
        found = 0.0
        pair = torch.from_numpy(np.stack([a, b])).permute(0, 3, 1, 2)
        for stage in network(effnet.preprocess(pair)):
            y, y0 = (x / np.sqrt((x**2).sum(0)) for x in stage.double().numpy())
            found += ((y - y0) ** 2).sum(0).mean()
        return found

    expected = by_pairs(distance, images, shown)
    assert pixelwise(images, shown, "perceptual_effnet") == pytest.approx(expected, rel=1e-5)
    assert expected > 0.1


# --- together -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """Small networks of random weights."""
    folder = tmp_path_factory.mktemp("weights")
    small = {
        "dinov2": dinov2("vit_small_patch14_dinov2", depth=1).state_dict(),
        "pickscore": transformers_clip().state_dict(),
        "dreamsim": {f"dino_vitb16.{name}": x for name, x in vit("", 224).items()},
        "imagereward": image_reward(),
    }
    paths = {name: folder / f"{name}.safetensors" for name in small}
    for name, weights in small.items():
        save_file(weights, paths[name])
    return paths


def transformers_clip():
    from transformers import CLIPConfig, CLIPModel

    sizes = {"num_hidden_layers": 2, "hidden_act": "gelu"}
    torch.manual_seed(0)
    text = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 1}
    vision = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    config = CLIPConfig(text_config=text | sizes, vision_config=vision | sizes, projection_dim=32)
    model = CLIPModel(config).eval()
    for kind, parameter in model.named_parameters():
        if kind.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def open_clip_clip():
    import open_clip

    torch.manual_seed(0)
    vision = {"image_size": 28, "patch_size": 14, "width": 128, "layers": 2, "head_width": 64}
    return open_clip.CLIP(32, vision, {"width": 64, "heads": 1, "layers": 2}).eval()


@pytest.mark.parametrize("form", [transformers_clip, open_clip_clip])
def test_a_preference_is_the_cosine_of_its_own_library(form, tmp_path):
    import open_clip

    from fitspace.metrics import preferences

    model, path = form(), tmp_path / "x.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    images, captions = torch.from_numpy(pictures(3, 4)), ["a red heart", "cat", "a boxing glove"]
    batch = preferences.clip.preprocess(preferences.load_judge(path, "pickscore"), images)
    tokens = open_clip.get_tokenizer("ViT-H-14")(captions)
    with torch.inference_mode():
        if form is transformers_clip:
            # Its own tokenizer puts other numbers behind a caption's end.
            ended = tokens.masked_fill(tokens == 0, 49406).where(tokens != 49407, tokens)
            seen = model(input_ids=ended, pixel_values=batch)
            expected = (seen.image_embeds * seen.text_embeds).sum(1)
        else:
            one, other = model.encode_image(batch, True), model.encode_text(tokens, True)
            expected = (one * other).sum(1)
    found = preferences.features(images, path, "pickscore")
    own = preferences.texts(captions, path, "pickscore")
    torch.testing.assert_close((found * own).sum(1), expected, rtol=1e-4, atol=1e-5)
    assert batch.shape == (3, 3, 28, 28) and expected.std() > 1e-3
    with pytest.raises(UserError, match="hpsv2: .* holds another network than a CLIP ViT"):
        save_file({"x": torch.zeros(1)}, path)
        preferences.load_judge(path, "hpsv2")


def dinov2(name, **sizes):
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, img_size=518, dynamic_img_size=True, **sizes)
    for kind, parameter in model.named_parameters():
        if kind.endswith(("gamma", "reg_token")):
            torch.nn.init.normal_(parameter)
    return model.eval()


FORMS = {
    "small": ("vit_small_patch14_dinov2", {"depth": 2}),
    "registers": ("vit_base_patch14_reg4_dinov2", {"depth": 1}),
    "gated": ("vit_giant_patch14_reg4_dinov2", {"depth": 1, "embed_dim": 128, "num_heads": 2}),
}


@pytest.mark.parametrize(("name", "sizes"), FORMS.values(), ids=FORMS)
def test_dinov2_is_timms(name, sizes, tmp_path):
    from PIL import Image

    from fitspace.metrics import dinov2 as ours

    model, path = dinov2(name, **sizes), tmp_path / "x.safetensors"
    save_file(model.state_dict(), path)
    images = pictures(2, 3) // 2 + 64  # no edge beyond black and white, where Pillow cuts twice
    large = [Image.fromarray(i).resize((224, 224), Image.Resampling.BICUBIC) for i in images]
    batch = torch.from_numpy(np.stack(large)).permute(0, 3, 1, 2) / 255
    mean, spread = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, SPREAD))
    # One grey level: Pillow rounds after each axis.
    found = ours.preprocess(torch.from_numpy(images))
    torch.testing.assert_close(found, (batch - mean) / spread, rtol=0, atol=2 / 255 / 0.224)
    with torch.inference_mode():
        # Another way through timm: the whole position embedding, interpolated at each call.
        expected = model(found)
    torch.testing.assert_close(
        ours.features(torch.from_numpy(images), path), expected, rtol=1e-4, atol=1e-4
    )
    assert expected.std() > 0.1


def drawn(shapes, seed=0):
    """Random tensors of some shapes, norms' weights about one."""
    torch.manual_seed(seed)
    return {name: torch.randn(shape) * 0.15 + ("norm" in name.lower() and name.endswith("weight"))
            for name, shape in shapes.items()}  # fmt: skip


def dense(name, width, to):
    return {f"{name}.weight": (to, width), f"{name}.bias": (to,)}


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def vit(before, side, width=128, depth=2):
    """Tensors of a transformer of images with patches of 16 px, as DINO and BLIP name them."""
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + (side // 16) ** 2, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, 16, 16), "patch_embed.proj.bias": (width,)}
    for i in range(depth):
        block = f"blocks.{i}."
        shapes |= norm(f"{block}norm1", width) | norm(f"{block}norm2", width)
        shapes |= dense(f"{block}attn.qkv", width, 3 * width)
        shapes |= dense(f"{block}attn.proj", width, width)
        shapes |= dense(f"{block}mlp.fc1", width, 4 * width)
        shapes |= dense(f"{block}mlp.fc2", 4 * width, width)
    return drawn({before + name: shape for name, shape in (shapes | norm("norm", width)).items()})


def image_reward(width=64, depth=2, layers=(64, 24, 1)):
    """Tensors as ImageReward.pt names them, those of no use too."""
    found = vit("blip.visual_encoder.", 64)
    shapes = {"word_embeddings.weight": (30524, width), "position_embeddings.weight": (512, width)}
    shapes = {f"embeddings.{name}": shape for name, shape in shapes.items()}
    shapes |= norm("embeddings.LayerNorm", width)
    for i in range(depth):
        layer = f"encoder.layer.{i}."
        for kind, seen in (("attention", width), ("crossattention", 128)):
            shapes |= dense(f"{layer}{kind}.self.query", width, width)
            shapes |= dense(f"{layer}{kind}.self.key", seen, width)
            shapes |= dense(f"{layer}{kind}.self.value", seen, width)
            shapes |= dense(f"{layer}{kind}.output.dense", width, width)
            shapes |= norm(f"{layer}{kind}.output.LayerNorm", width)
        shapes |= dense(f"{layer}intermediate.dense", width, 2 * width)
        shapes |= dense(f"{layer}output.dense", 2 * width, width)
        shapes |= norm(f"{layer}output.LayerNorm", width)
    found |= drawn({f"blip.text_encoder.{name}": shape for name, shape in shapes.items()}, 1)
    head = dense("mlp.layers.0", *layers[:2]) | dense("mlp.layers.2", *layers[1:])
    found["blip.text_encoder.embeddings.position_ids"] = torch.arange(512)[None]
    return found | drawn(
        head | dense("blip.text_proj", width, 8) | dense("blip.vision_proj", 128, 8)
    )


class Formula:
    """Transformers' formulas over tensors by name: 1706.03762, 1810.04805, 2010.11929."""

    def __init__(self, tensors, before):
        self.tensors, self.before = tensors, before

    def dense(self, name, x):
        w, b = (self.tensors[f"{self.before}{name}.{kind}"] for kind in ("weight", "bias"))
        return x @ w.T + b

    def norm(self, name, x, epsilon):
        w, b = (self.tensors[f"{self.before}{name}.{kind}"] for kind in ("weight", "bias"))
        spread = (x.var(-1, unbiased=False, keepdim=True) + epsilon).sqrt()
        return (x - x.mean(-1, keepdim=True)) / spread * w + b

    def gelu(self, x):
        return x * (1 + torch.erf(x / 2**0.5)) / 2

    def attention(self, query, key, value):
        heads = [x.unflatten(-1, (-1, 64)).transpose(0, 1) for x in (query, key, value)]
        weights = (heads[0] @ heads[1].mT / 8).softmax(-1)
        return (weights @ heads[2]).transpose(0, 1).flatten(1)

    def image(self, prepared):
        """The tokens of one image (3, h, w)."""
        own = lambda name: self.tensors[self.before + name]  # noqa: E731
        patches = prepared.unfold(1, 16, 16).unfold(2, 16, 16).permute(1, 2, 0, 3, 4).flatten(2)
        x = patches.flatten(0, 1) @ own("patch_embed.proj.weight").flatten(1).T
        x = torch.cat([own("cls_token")[0], x + own("patch_embed.proj.bias")]) + own("pos_embed")[0]
        for i in range(2):
            three = self.dense(f"blocks.{i}.attn.qkv", self.norm(f"blocks.{i}.norm1", x, 1e-6))
            x = x + self.dense(f"blocks.{i}.attn.proj", self.attention(*three.chunk(3, -1)))
            wide = self.dense(f"blocks.{i}.mlp.fc1", self.norm(f"blocks.{i}.norm2", x, 1e-6))
            x = x + self.dense(f"blocks.{i}.mlp.fc2", self.gelu(wide))
        return self.norm("norm", x, 1e-6)

    def text(self, tokens, seen):
        """The hidden states of one caption's tokens, which look at an image's."""
        x = self.tensors[f"{self.before}embeddings.word_embeddings.weight"][tokens]
        x = x + self.tensors[f"{self.before}embeddings.position_embeddings.weight"][: len(x)]
        x = self.norm("embeddings.LayerNorm", x, 1e-12)
        for i in range(2):
            for kind, other in (("attention", None), ("crossattention", seen)):
                layer, other = f"encoder.layer.{i}.{kind}", x if other is None else other
                parts = [self.dense(f"{layer}.self.query", x)]
                parts += [self.dense(f"{layer}.self.{name}", other) for name in ("key", "value")]
                added = self.dense(f"{layer}.output.dense", self.attention(*parts))
                x = self.norm(f"{layer}.output.LayerNorm", x + added, 1e-12)
            wide = self.gelu(self.dense(f"encoder.layer.{i}.intermediate.dense", x))
            added = self.dense(f"encoder.layer.{i}.output.dense", wide)
            x = self.norm(f"encoder.layer.{i}.output.LayerNorm", x + added, 1e-12)
        return x


def test_a_reward_is_its_formula(tmp_path):
    """2304.05977, section 3: BLIP, linear layers on the first token, the package's constants."""
    from fitspace.metrics import imagereward as ours

    weights, path = image_reward(), tmp_path / "x.safetensors"
    save_file(weights, path)
    images = torch.from_numpy(pictures(3, 4).repeat(2, 1).repeat(2, 2))  # of its size, 64 px
    captions = ["a red heart", "", "one " * 60]
    tokens = ours.texts(captions, path)
    assert tokens.shape == (3, 35) and tokens[2].min() > 0
    assert tokens[0].tolist()[:6] == [101, 1037, 2417, 2540, 102, 0]  # bert-base-uncased's
    mean, spread = (torch.tensor(v).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_SPREAD))
    expected = []
    for image, told in zip(images.permute(0, 3, 1, 2), tokens, strict=True):
        seen = Formula(weights, "blip.visual_encoder.").image((image / 255 - mean) / spread)
        first = Formula(weights, "blip.text_encoder.").text(told[told > 0], seen)[0]
        head = Formula(weights, "mlp.layers.")
        expected.append((head.dense("2", head.dense("0", first)) - 0.16717363) / 1.0333395)
    found = ours.scores(images, tokens.float(), path)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert found.std() > 1e-2
    with pytest.raises(UserError, match="imagereward: .* holds other weights than ImageReward's"):
        save_file({"x": torch.zeros(1)}, path)
        ours.load_network(path)


def test_dreamsim_is_its_package(tmp_path, monkeypatch):
    """The whole ensemble, its LoRA merged by params/README.md's lines."""
    from functools import partial

    from peft import LoraConfig, get_peft_model

    from fitspace.metrics import dreamsim as ours  # before theirs: it makes torchvision importable

    from dreamsim import model as theirs  # isort: skip
    from dreamsim.feature_extraction import (
        extractor,
        load_clip_as_dino,
        load_open_clip_as_dino,
        vision_transformer,
    )

    def small(**_):
        norm = partial(torch.nn.LayerNorm, eps=1e-6)
        return vision_transformer.VisionTransformer(
            patch_size=16, embed_dim=64, depth=12, num_heads=1, qkv_bias=True, norm_layer=norm
        )

    def of_random_weights(network):
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        return network

    def create(name, folder, of_clip=extractor.ViTExtractor.create_model):
        return of_random_weights(small()) if name.startswith("dino") else of_clip(name, folder)

    torch.manual_seed(0)
    for module, name in ((load_clip_as_dino, "clip"), (load_open_clip_as_dino, "open_clip")):
        monkeypatch.setattr(module, "vit_base", small)
        network = small()
        network.pos_drop = torch.nn.LayerNorm(64)
        tensors = of_random_weights(network).state_dict() | {"proj": torch.randn(64, 32)}
        torch.save({"state_dict": tensors}, tmp_path / f"{name}_vitb16_pretrain.pth.tar")
    monkeypatch.setattr(extractor.ViTExtractor, "create_model", staticmethod(create))
    form = theirs.dreamsim_args["model_config"]["ensemble"]
    model = theirs.PerceptualModel(
        **form, device="cpu", load_dir=str(tmp_path), normalize_embeds=True
    )
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["qkv"], init_lora_weights=False)
    model = get_peft_model(model, lora).eval()
    images = torch.from_numpy(pictures(3, 4).repeat(7, 1).repeat(7, 2))  # of its size, 224 px
    batch = images.permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        expected, distance = model.embed(batch), model(batch[:2], batch[1:])
    named = README.partition("merge_and_unload()")[2].partition("save_file")[0]
    assert "model.extractor_list" in named
    space = {"model": model.merge_and_unload()}
    exec("\n".join(line.strip() for line in named.splitlines()), space)
    path = tmp_path / "x.safetensors"
    save_file(space["tensors"], path)
    found = ours.features(images, path)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    reference = {"dreamsim": found[1:], "pairs": torch.tensor([(0, 0), (1, 1)])}
    compared = Compared(images[:2], reference, lambda _: found[:2])
    value = METRICS["dreamsim"].measure(compared)
    assert value == pytest.approx(distance.mean().item(), rel=1e-2) and value > 1e-4
    with pytest.raises(UserError, match="'dinov2_vitb14' is none of DreamSim's networks"):
        save_file({"dinov2_vitb14.cls_token": torch.zeros(1)}, path)
        ours.load_networks(path)


CLIP_MEAN, CLIP_SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


@pytest.mark.parametrize(
    ("tensors", "message"),
    [({"x": 1}, "holds other weights than timm's DINOv2"), (None, "cannot be read as safetensors")],
)
def test_other_weights_are_refused(tmp_path, tensors, message):
    from fitspace.metrics import dinov2 as ours

    path = tmp_path / "x.safetensors"
    path.write_bytes(b"PK")
    if tensors:
        save_file({name: torch.zeros(size) for name, size in tensors.items()}, path)
    with pytest.raises(UserError, match=message):
        ours.load_network(path)


@pytest.fixture(scope="module")
def whole(named, tmp_path_factory):
    """Every further metric of images by the real models; their features kept."""
    known = tuple(n for n in FURTHER if metrics.weights_for(n) in ("", *named))
    known = tuple(n for n in known if n not in metrics.beside_untouched(known))  # test_drift.py
    known = tuple(n for n in known if GIVEN not in METRICS[n].needs)  # test_edges.py
    shown, drawn = pictures(P, 2), pictures(N, 1)
    drawn[0] = shown[0]
    captions = [f"red square {i}" for i in range(P)]
    decoded = [("training", drawn[:5]), ("training", drawn[5:]), ("held_out", shown[1:])]
    kept = metrics.Kept(tmp_path_factory.mktemp("kept"), {"cpu": "this one"})
    arguments = (JUDGE, named, known)
    reference = metrics.reference_features(shown, captions, captions, *arguments, decoded, kept)
    found = metrics.evaluate(drawn, reference, *arguments, kept)
    return drawn, reference, arguments, kept, found


def test_all_are_measured_beside_the_standard_ones(whole, named, tmp_path):
    drawn, reference, (*_, known), _, found = whole
    assert set(metrics.measured(False, named, known)) <= set(found)
    assert all(np.isfinite(found[name]) for name in known)
    assert found["copies_effnet"] == found["copies_judge"] == 1  # they were trained on
    path = tmp_path / "features.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in reference.items()}, path)
    again = metrics.read_features(path, False, named, known)
    assert again.keys() == reference.keys()
    save_file(reference | {"pairs": reference["pairs"] + 1}, path)
    with pytest.raises(UserError, match="features.safetensors: pairs: needed"):
        metrics.read_features(path, False, named, known)


def test_a_metric_on_kept_features_runs_no_extractor(whole, monkeypatch):
    drawn, reference, arguments, kept, found = whole

    def refused(self, name, images):
        raise AssertionError(f"{name} ran again")

    monkeypatch.setattr(Extraction, "_computed", refused)
    assert metrics.evaluate(drawn, reference, *arguments, kept) == found
    with pytest.raises(AssertionError, match="judge ran again"):
        metrics.evaluate(drawn[:-1], reference, *arguments, kept)


def flipped(path):
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


# What happens to a file between two calls, or what is asked of the second.
KEPT = {
    "the same": (None, {}, 0),
    "other images": (None, {"images": torch.ones(3, 4, 4, 3, dtype=torch.uint8)}, 1),
    "another extractor": (None, {"identity": [2]}, 1),
    "another machine": (None, {"machine": {"cpu": "another"}}, 1),
    "a flipped bit": (flipped, {}, 1),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-8]), {}, 1),
    "another's features": (lambda path: save_file({"features": torch.ones(3, 2)}, path), {}, 1),
    "gone": (Path.unlink, {}, 1),
}


@pytest.mark.parametrize(("change", "asked", "runs"), KEPT.values(), ids=KEPT)
def test_only_what_is_sound_is_taken(tmp_path, change, asked, runs):
    ran = []

    def compute(name, images):
        ran.append(name)
        return images.float().mean((1, 2))[:, :2] + len(ran)

    images = torch.arange(3 * 4 * 4 * 3, dtype=torch.uint8).reshape(3, 4, 4, 3)

    def call(identity=(1,), machine=None, images=images):
        kept = metrics.Kept(tmp_path, machine or {"cpu": "this one"})
        return kept.of("x", list(identity), images, compute)

    first = call()
    (path,) = tmp_path.iterdir()
    if change is not None:
        change(path)
    second = call(**asked)
    assert len(ran) == 1 + runs
    assert torch.equal(first, second) == (runs == 0)
    assert torch.equal(call(**asked), second) and len(ran) == 1 + runs  # written anew


def test_features_that_cannot_be_kept_are_computed(tmp_path):
    (tmp_path / "file").write_text("")
    kept = metrics.Kept(tmp_path / "file" / "folder", {})
    images = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
    assert kept.of("x", [], images, lambda *_: torch.ones(1, 2)).sum() == 2


def test_a_subject_has_metrics_beside_the_standard_ones():
    subject, drawn = pictures(4, 2), pictures(12, 1)
    known = ("similarity_effnet", "vendi_judge")
    reference = metrics.subject_features(subject, ["a"] * 4, drawn[8:], JUDGE, {}, known)
    found = metrics.evaluate_subject(drawn, reference, JUDGE, {}, known)
    assert set(metrics.measured(True, (), known)) | {"n", "m"} == set(found)
    again = metrics.subject_features(drawn[:4], ["a"] * 4, drawn[8:], JUDGE, {}, known)
    same = np.asarray(unit(again["effnet"].double().numpy()))
    expected = (same @ unit(reference["effnet"].double().numpy()).T).mean()
    assert found["similarity_effnet"] == pytest.approx(expected, rel=1e-5)


# --- in a study ---------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(content=EMOJI, **changes):
    return build_plan(Study.model_validate(content | changes)).runs[0]


def test_they_are_part_of_what_evaluates_and_of_nothing_else(folder, monkeypatch):
    responses = EMOJI["analysis"] | {"responses": ["clip_t", "psnr"], "transform": {}}
    responses.pop("margins")
    plain, one, other = run(), run(metrics=["psnr", "cmmd"]), run(metrics=["cmmd", "psnr"])
    mentioned = run(metrics=["cmmd"], analysis=responses)
    for stage in ("prepare", "train", "sample"):
        assert getattr(plain, stage).key == getattr(one, stage).key
    for stage in ("reference", "evaluate"):
        keys = [getattr(r, stage).key for r in (plain, one, other, mentioned)]
        assert keys[1] == keys[2] == keys[3] != keys[0]
    assert one.reference.material["evaluator"]["further"] == {"cmmd": 1, "psnr": 1}
    raised = METRICS | {"psnr": METRICS["psnr"].__class__(**vars(METRICS["psnr"]) | {"version": 2})}
    monkeypatch.setattr(metrics, "METRICS", raised)
    assert run(metrics=["psnr", "cmmd"]).reference.key != one.reference.key


def test_a_subject_takes_those_that_are_for_it(folder):
    plain = run(SUBJECT)
    assert run(SUBJECT, metrics=["vendi_judge"]).reference.key != plain.reference.key
    both = Study.model_validate(SUBJECT | {"metrics": ["vendi_judge", "psnr"]})
    assert both.further_of(of_subject=True) == ("vendi_judge",)


REFUSED = {
    "unknown": ({"metrics": ["fad"]}, "metrics: 'fad' is no metric; allowed: fid, "),
    "standard": ({"metrics": ["clip_i"]}, "metrics: 'clip_i' is a standard metric; leave it out"),
    "on no task": (
        {"metrics": ["psnr"], "tasks": SUBJECT["tasks"]},
        "metrics: 'psnr' is measured on no task of the study",
    ),
    "weights without a metric": (
        {"hpsv2": "x.safetensors"},
        "hpsv2: 'x.safetensors': no metric of the study needs these weights; allowed: with one of "
        "hpsv2_score among metrics",
    ),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_measured_is_refused(changes, message):
    study = Study.model_validate(EMOJI | changes)
    assert any(p.startswith(message) for p in metric_problems(study) + task_problems(study))


MALFORMED = {
    "twice": ({"metrics": ["psnr", "psnr"]}, "metrics: 'psnr' stands more than once"),
    "no weights": ({"metrics": ["fd_dinov2"]}, "metrics: 'fd_dinov2': needs the key 'dinov2'"),
    "nothing": ({"metrics": []}, "at least 1 item"),
}


@pytest.mark.parametrize(("changes", "message"), MALFORMED.values(), ids=MALFORMED)
def test_what_cannot_stand_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Study.model_validate(EMOJI | changes)


def test_every_row_is_whole():
    assert set(METRICS[n].of for n in FURTHER) <= {("held out",), ("held out", "subject")}
    for name in FURTHER:
        row = METRICS[name]
        assert row.label and row.definition.endswith(".") and set(row.needs) <= {
            PAIRS, IMAGES, TRAINING, TEXTS, UNTOUCHED, GIVEN,
        }  # fmt: skip
