"""The recipes of the embedded world at tiny size: killed and resumed alike, read by others."""

import copy
import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from fitspace import bases
from fitspace.core.errors import UserError
from fitspace.data import openmoji
from fitspace.recipes.world import (
    autoencoder,
    denoiser,
    dit,
    judge,
    loop,
    measures,
    mmdit,
    rewarder,
    texts,
    unet,
)
from fitspace.recipes.world import drawings as drawn
from fitspace.recipes.world.__main__ import main
from fitspace.recipes.world.card import RECIPES
from fitspace.stages import running
from fitspace.training import sampling

MODELS = Path(__file__).parents[2] / "models"

SMALL = autoencoder.CONFIG | dict(block_out_channels=(4, 4, 8, 8), norm_num_groups=4)
SMALL_UNET = unet.CONFIG | dict(block_out_channels=(8, 16), norm_num_groups=4)
SMALL_DIT = dit.CONFIG | dict(num_layers=2, num_attention_heads=2)
SMALL_MMDIT = mmdit.CONFIG | dict(num_layers=2, num_attention_heads=2, caption_projection_dim=32)
WANTED = ("tomato", "grinning face", "waving hand", "waving hand, dark skin tone", "kiss mark")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("world")


@pytest.fixture(scope="module")
def world(folder):
    captions = [row[1] for row in openmoji.catalogue()]
    return drawn.load(folder, rows=[captions.index(caption) for caption in WANTED])


@pytest.fixture(scope="module")
def vae(world, folder):
    settings = autoencoder.Settings(steps=3, batch_size=2, warmup_steps=1)
    trained = autoencoder.train(world, folder / "autoencoder", settings, SMALL)
    report = autoencoder.measure(trained.model, world)
    autoencoder.save(trained, report, settings, folder / "vae")
    return folder / "vae"


# --- drawings -------------------------------------------------------------------------------


def test_drawings_are_paired_and_cached(world, folder):
    assert world.images.shape == (5, 8, 64, 64, 3) and world.drawn.all()
    (cached,) = folder.glob("drawings~*.safetensors")
    before = cached.stat().st_mtime_ns
    captions = [row[1] for row in openmoji.catalogue()]
    again = drawn.load(folder, rows=[captions.index(caption) for caption in WANTED])
    assert cached.stat().st_mtime_ns == before
    assert again.key == world.key and np.array_equal(again.images, world.images)
    expected = openmoji.render(openmoji.catalogue()[captions.index("tomato")][3], "sepia", 64)
    assert np.array_equal(world.images[0, openmoji.STYLES.index("sepia")], expected)
    assert [len(rows) for rows in world.members()] == [1, 2, 1, 1]


def test_another_choice_of_drawings_is_another_cache(world, folder):
    assert drawn.load(folder, rows=[0]).key != world.key


def test_the_manifest_holds_figures_out_with_all_their_tones(world, folder):
    manifest = json.loads((folder / f"drawings~{world.key}.json").read_text())
    parts = {}
    for row in manifest["drawings"]:
        parts.setdefault(row["figure"], set()).add(row["part"])
    assert all(len(found) == 1 for found in parts.values())
    figures = {row[2] for row in openmoji.catalogue()}
    held_out = sum(drawn.part(figure) == "held out" for figure in figures) / len(figures)
    assert 0.08 < held_out < 0.12


# --- measures -------------------------------------------------------------------------------

LAB = {  # by colorimetry's tables, D65
    "red": ((255, 0, 0), (53.24, 80.09, 67.20)),
    "green": ((0, 255, 0), (87.73, -86.18, 83.18)),
    "blue": ((0, 0, 255), (32.30, 79.19, -107.86)),
    "white": ((255, 255, 255), (100.0, 0.0, 0.0)),
    "grey": ((119, 119, 119), (50.03, 0.0, 0.0)),
    "black": ((0, 0, 0), (0.0, 0.0, 0.0)),
}


@pytest.mark.parametrize(("rgb", "lab"), LAB.values(), ids=LAB)
def test_cielab(rgb, lab):
    found = measures.cielab(np.array(rgb, np.uint8))
    np.testing.assert_allclose(found, lab, atol=0.02)


def test_only_coloured_pixels_count_as_coloured():
    truth = np.full((1, 2, 2, 3), 255, np.uint8)
    truth[0, 0, 0] = (200, 30, 30)
    found = truth.copy()
    found[0, 1] = 0  # white turned black is no error of colour
    assert measures.colour_error(truth, found) == 0
    found[0, 0, 0] = (120, 70, 30)  # red turned brown is
    assert measures.colour_error(truth, found) > 30
    assert measures.colour_error(truth[:, 1:], found[:, 1:]) is None


def test_decibels():
    truth = np.zeros((2, 4, 4, 3), np.uint8)
    assert measures.decibels(truth, truth) == float("inf")
    assert measures.decibels(truth, truth + 255) == 0
    assert measures.decibels(truth, truth + 51) == pytest.approx(20 * np.log10(5))


# --- training -------------------------------------------------------------------------------


class Killed(Exception):
    pass


def parts(world, vae):
    """How each part is trained for six steps, into a folder."""
    return {
        "autoencoder": lambda out: autoencoder.train(
            world, out, autoencoder.Settings(steps=6, batch_size=2, warmup_steps=2), SMALL
        ),
        "rewarder": lambda out: rewarder.train(
            world, out, rewarder.Settings(steps=6, batch_size=4, warmup_steps=2, texts=3)
        ),
        "judge": lambda out: judge.train(
            world, out, judge.Settings(steps=6, batch_size=4, warmup_steps=2, texts=3)
        ),
        "unet": lambda out: unet.train(
            world, vae, out, unet.Settings(steps=6, batch_size=2, warmup_steps=2), SMALL_UNET
        ),
        "dit": lambda out: dit.train(
            world, vae, out, dit.Settings(steps=6, batch_size=2, warmup_steps=2), SMALL_DIT
        ),
        "mmdit": lambda out: mmdit.train(
            world, vae, out, mmdit.Settings(steps=6, batch_size=2, warmup_steps=2), SMALL_MMDIT
        ),
    }


SLOW = [
    pytest.param(part, marks=pytest.mark.slow) for part in ("judge", "mmdit", "rewarder", "unet")
]


@pytest.mark.parametrize("part", ["autoencoder", "dit", *SLOW])
def test_a_killed_training_ends_in_the_same_bits(part, world, vae, tmp_path, monkeypatch):
    train = parts(world, vae)[part]
    whole = train(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
        update = loop.Member.update

        def until_killed(member, step, loss):
            if step == 4:
                raise Killed
            update(member, step, loss)

        patch.setattr(loop.Member, "update", until_killed)
        with pytest.raises(Killed):
            train(tmp_path / "killed")
    resumed = train(tmp_path / "killed")
    assert resumed.losses == whole.losses and len(whole.losses) == 6
    ours, theirs = resumed.model.state_dict(), whole.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    log = (tmp_path / "killed" / "losses.csv").read_text().splitlines()
    assert log[0] == "step,loss,lr" and [float(r.split(",")[1]) for r in log[1:]] == whole.losses
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".pt", ".bin", ".pkl", ".ckpt")]


# How each shipped part is trained, from the drawings and the shipped autoencoder, and where its
# record is.
BEGINNINGS = {
    "autoencoder": (lambda world, _, out: autoencoder.train(world, out), "vae"),
    "judge": (lambda world, _, out: judge.train(world, out), "emoji-clip"),
    "rewarder": (lambda world, _, out: rewarder.train(world, out), "emoji-rewarder"),
    "unet": (unet.train, "emoji-unet/unet"),
    "dit": (dit.train, "emoji-dit/transformer"),
    "mmdit": (mmdit.train, "emoji-mmdit/transformer"),
}


@pytest.fixture(scope="module")
def every_drawing(tmp_path_factory):
    return drawn.load(tmp_path_factory.mktemp("all"))


@pytest.mark.slow
@pytest.mark.parametrize(("train", "shipped"), BEGINNINGS.values(), ids=BEGINNINGS)
def test_the_shipped_weights_are_of_this_recipe(
    train, shipped, every_drawing, tmp_path, monkeypatch
):
    """Its first steps have the losses on record, but for what another kind of CPU rounds otherwise.

    The rewarder starts from nothing at a high rate: what is rounded otherwise grows at once.
    """
    update, found = loop.Member.update, []

    def until_killed(member, step, loss):
        if step == 5:
            raise Killed
        found.append(loss)
        update(member, step, loss)

    monkeypatch.setattr(loop.Member, "update", until_killed)
    with pytest.raises(Killed):
        train(every_drawing, MODELS / "vae", tmp_path)
    recorded = json.loads((MODELS / shipped / "training.json").read_text())["losses"]
    rel = 1e-2 if shipped == "emoji-rewarder" else 1e-5
    assert found[0] == pytest.approx(recorded[0], rel=1e-5)
    assert found == pytest.approx(recorded[:5], rel=rel)


def test_other_settings_do_not_go_on_from_a_checkpoint(world, tmp_path):
    settings = autoencoder.Settings(steps=1, batch_size=1, warmup_steps=1)
    autoencoder.train(world, tmp_path, settings, SMALL)
    with pytest.raises(UserError, match="another run"):
        autoencoder.train(world, tmp_path, dataclasses.replace(settings, kl=1e-3), SMALL)


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path):
    model = torch.nn.Linear(2, 1)
    settings = loop.Schedule(steps=2, batch_size=1, lr=0.1, warmup_steps=1)
    with pytest.raises(UserError, match="nan at step 0"):
        loop.train(
            model, lambda step: model.weight.sum() * float("nan"), settings, {}, tmp_path,
            lambda model, path: None, "part",
        )  # fmt: skip


def test_the_learning_rate_follows_from_the_step(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    model = torch.nn.Linear(2, 1)
    settings = loop.Schedule(steps=12, batch_size=1, lr=0.1, warmup_steps=2)
    sheets = []
    loop.train(
        model, lambda step: model(torch.ones(1, 2)).square().sum(), settings, {}, tmp_path,
        lambda model, path: sheets.append(path.name), "part",
    )  # fmt: skip
    rates = [float(r.split(",")[2]) for r in (tmp_path / "losses.csv").read_text().split()[1:]]
    expected = [0.05, 0.1, *(0.05 * (1 + np.cos(np.pi * np.arange(10) / 10)))]
    np.testing.assert_allclose(rates, expected)
    assert sheets == ["000012.png"]


# --- autoencoder ----------------------------------------------------------------------------


def test_red_turned_brown_costs_more_than_the_same_error_of_luma():
    settings = autoencoder.Settings()
    luma = torch.full((1, 3, 4, 4), 0.1)
    hue = torch.tensor([0.1, -0.1, 0.1]).view(1, 3, 1, 1).expand_as(luma)
    loss = autoencoder.reconstruction_loss
    assert loss(hue, settings) > 1.3 * loss(luma, settings)
    assert loss(0 * luma, settings) == 0


@pytest.mark.slow
def test_the_shipped_autoencoder_is_as_good_as_its_card_says(tmp_path):
    """On every fortieth drawing; over all of them colours are within 6."""
    shipped = autoencoder.load(MODELS / "vae")
    some = drawn.load(tmp_path, rows=range(0, 3560, 40))
    found = autoencoder.measure(shipped, some)
    assert found["decibels"]["full"] >= 27 and min(found["decibels"].values()) >= 25
    assert found["colour_error"]["full"] <= 7 and found["dead"] == 0
    recorded = json.loads((MODELS / "vae/training.json").read_text())["measured"]
    assert recorded["colour_error"]["full"] <= 6
    for style, value in found["decibels"].items():
        assert value == pytest.approx(recorded["decibels"][style], abs=1.5), style


def test_plain_diffusers_loads_the_autoencoder(world, vae):
    model = autoencoder.load(vae)
    facts = json.loads((vae / "training.json").read_text())
    report = facts["measured"]
    assert report["colour_error"]["full"] > 0 and report["colour_error"]["line"] is None
    assert model.config.scaling_factor == report["scaling_factor"] > 0
    assert set(report["decibels"]) == set(report["colour_error"]) == set(openmoji.STYLES)
    assert len(report["variance"]) == 16 and 0 <= report["dead"] <= 16
    assert len(facts["losses"]) == facts["settings"]["steps"]
    mean, std = autoencoder.encode(model, world.in_style(0))
    assert mean.shape == std.shape == (5, 16, 8, 8)
    assert sampling.decoded(model, mean).shape == (5, 64, 64, 3)


def test_dead_channels_are_counted(world):
    model = autoencoder.new_model(SMALL)
    with torch.no_grad():  # three channels whose posterior is the prior, the others narrow
        model.quant_conv.weight[16:].zero_()
        model.quant_conv.bias[16:].zero_()
        model.quant_conv.bias[19:] = -6.0
    assert autoencoder.measure(model.eval(), world)["dead"] == 3


# --- bases ----------------------------------------------------------------------------------


def test_plain_diffusers_samples_the_unet(world, vae, tmp_path):
    from diffusers import DiffusionPipeline

    settings = unet.Settings(steps=1, batch_size=2, warmup_steps=1)
    unet.train(world, vae, tmp_path, settings, SMALL_UNET)
    pipeline = DiffusionPipeline.from_pretrained(
        bases.resolve(tmp_path / "pipeline"), use_safetensors=True, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        ["tomato"], num_inference_steps=2, output_type="np", height=64, width=64
    ).images
    assert images.shape == (1, 64, 64, 3) and np.isfinite(images).all()
    task = unet.source(tmp_path / "pipeline", world)
    assert sorted(len(group) for group in task.groups) == [1, 1, 1, 2]
    assert task.conditions["embeddings"].shape[::2] == (6, 384)


def test_six_skin_tones_count_as_two_items():
    rows = np.arange(6)
    split = np.array_split(rows, -(-len(rows) // unet.TONES_AT_ONCE))
    assert [len(part) for part in split] == [3, 3]


def test_plain_diffusers_samples_the_dit(world, vae, tmp_path):
    from diffusers import DiTPipeline

    settings = dit.Settings(steps=5, batch_size=2, warmup_steps=1, lr=0.05, ema=0.0)
    dit.train(world, vae, tmp_path, settings, SMALL_DIT)
    folder = tmp_path / "pipeline"
    pipeline = DiTPipeline.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    label = pipeline.get_label_ids(["tomato"])
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(5))
    images = pipeline(
        label, guidance_scale=3.0, num_inference_steps=2, output_type="np",
        generator=torch.Generator().manual_seed(5),
    ).images  # fmt: skip
    task = dit.source(folder, world)
    tomato = [1 + list(dit.names(world).values()).index("tomato")]
    ours = sampling.generate(
        bases.load_denoiser(folder), bases.load_vae(folder), bases.load_process(folder),
        task.told(tomato), task.told([0]),
        noise, steps=2, guidance=3.0,
    )  # fmt: skip
    assert images.shape == (1, 64, 64, 3)
    # Its guidance is ours: it finds no class where it looks for it.
    assert np.abs(np.rint(images * 255) - ours.astype(float)).max() <= 1
    assert set(bases.labels(folder)) == set(WANTED) - {"waving hand, dark skin tone"}
    tones = [i for i, c in enumerate(world.captions) if c.startswith("waving hand")]
    assert len(set(task.captions[tones].tolist())) == 1
    bases.load_denoiser(folder)  # refuses blocks whose embedders differ


def test_no_figure_has_the_number_of_no_class(world):
    figures = np.array([*openmoji.figures()][:1500])
    many = dataclasses.replace(world, captions=figures, figures=figures)
    numbers = list(dit.names(many))
    assert dit.NONE not in numbers and len(set(numbers)) == 1500 and max(numbers) == 1500
    assert dit.new_model(1500, SMALL_DIT).config.num_embeds_ada_norm == 1501


def test_plain_diffusers_samples_the_mmdit(world, vae, tmp_path):
    from diffusers import StableDiffusion3Pipeline

    settings = mmdit.Settings(steps=5, batch_size=2, warmup_steps=1, lr=0.05, ema=0.0)
    mmdit.train(world, vae, tmp_path, settings, SMALL_MMDIT)
    folder = bases.resolve(tmp_path / "pipeline")
    assert bases.problems(folder) == [] and bases.text_tokens(folder) == 2 * unet.TOKENS
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        folder, use_safetensors=True, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(5))
    images = pipeline(
        "tomato", guidance_scale=3.0, num_inference_steps=3, output_type="np", latents=noise,
        height=64, width=64, max_sequence_length=unet.TOKENS,
    ).images  # fmt: skip
    task = mmdit.source(folder, world)
    ours = sampling.generate(
        bases.load_denoiser(folder), bases.load_vae(folder), bases.load_process(folder),
        task.told([1 + world.captions.tolist().index("tomato")]), task.told([0]),
        noise, steps=3, guidance=3.0,
    )  # fmt: skip
    assert images.shape == (1, 64, 64, 3) and np.ptp(images) > 0
    assert np.abs(np.rint(images * 255) - ours.astype(float)).max() <= 1
    assert task.conditions["embeddings"].shape == (6, 2 * unet.TOKENS, 384)
    pooled = task.conditions["pooled"]
    assert pooled.shape == (6, 2 * mmdit.WIDTH) and len(pooled.unique(dim=0)) == 6
    first = denoiser.sample(bases.load_denoiser(folder), folder, task, [1, 2])
    assert first.shape == (2, 64, 64, 3)


def test_an_untrained_mmdit_predicts_nothing():
    model = mmdit.new_model(SMALL_MMDIT)
    draw = torch.Generator().manual_seed(0)
    noisy, told = torch.randn(2, 16, 8, 8, generator=draw), bases.family_of(model)
    blank = {n: torch.ones_like(v) for n, v in told.blank(model.config, 2, 3, noisy.dtype).items()}
    assert not told.predict(model, noisy, torch.tensor([1.0, 900.0]), blank).any()


def test_the_mmdits_half_precision_fits_beside_the_autoencoder():
    model = mmdit.new_model()
    assert 2 * sum(v.numel() for v in model.state_dict().values()) < 9e6  # bytes


def test_a_made_clip_averages_the_vectors_of_a_texts_words():
    words = {word: i for i, word in enumerate([*mmdit.MARKS, "red", "green", "apple"])}
    vectors = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    model = mmdit.averaging(vectors, words)

    def normal(x):
        return (x - x.mean(-1, keepdim=True)) / (
            x.var(-1, keepdim=True, correction=0) + 1e-5
        ).sqrt()

    text = "[CLS] red apple [SEP] [PAD] [PAD]"
    told = torch.tensor([[words[word] for word in text.split()]])
    with torch.no_grad():
        found = model(told, output_hidden_states=True)
    own = vectors[told[0, :4]]
    expected = normal(own[-1] + normal(own).mean(0))
    torch.testing.assert_close(found[0][0], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.hidden_states[-2][0], vectors[told[0]])


def test_the_made_clips_read_captions_as_minilm_does(world):
    from transformers import AutoTokenizer, BertTokenizer

    captions = [row[1] for row in openmoji.catalogue()]
    everything = dataclasses.replace(world, captions=np.array(captions))
    words = mmdit.vocabulary(everything)
    theirs, ours = AutoTokenizer.from_pretrained(unet.minilm()), BertTokenizer(vocab=words)
    pieces = [theirs.tokenize(caption) for caption in captions]
    assert [ours.tokenize(caption) for caption in captions] == pieces
    assert max(map(len, pieces)) <= unet.TOKENS - 2
    assert "[UNK]" not in ours.tokenize("a photo of sks, by nobody: 3/4!")
    vectors = mmdit.word_vectors(words, 2 * mmdit.WIDTH)
    assert vectors.square().mean() == pytest.approx(1)
    spread = vectors.square().sum(0)
    assert (spread[:-1] >= spread[1:]).all()  # the first components say most

    def likeness(one, other):
        pair = vectors[[words[one], words[other]]]
        return torch.cosine_similarity(pair[0], pair[1], dim=0)

    assert likeness("woman", "man") > likeness("woman", "flag")


# --- judge ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_open_clip_loads_the_judge_and_its_measures_are_its_own(world, vae, tmp_path):
    from fitspace.metrics import clip

    settings = judge.Settings(steps=30, batch_size=5, warmup_steps=5, texts=5, ema=0.7)
    trained = judge.train(world, tmp_path / "work", settings)
    judge.save(trained.model.clip, world, trained.record(settings), tmp_path / "judge")
    report = judge.measure(tmp_path / "judge", world, {"blank": np.zeros_like})
    assert set(report) == {"clean", "noised", "shifted", "blank"}
    clean = report["clean"]["full"]
    assert clean["figure"] >= 0.6 and clean["n"] == 5
    assert report["blank"]["full"]["figure"] <= 0.4  # one guess for all, at best of two drawings
    loaded = clip.load(tmp_path / "judge")
    images = torch.from_numpy(world.images[:, 0])
    rounded = copy.deepcopy(trained.model.clip.visual).half().float()  # as it is saved
    ours = judge.embed(rounded, world.images[:, 0])
    assert (clip.image_embeddings(loaded, images) * ours).sum(1).min() > 0.999
    drawn_samples = world.images[:, 0]  # samples as good as drawings are judged as drawings are
    found = denoiser.precision(drawn_samples, np.arange(5), tmp_path / "judge", world)
    assert found == clean


@pytest.fixture
def untrained(world, tmp_path):
    """A judge's folder after no step of its first half."""
    folder, learner = tmp_path / "first", judge.new_learner(len(world), seed=0)
    judge.save(learner.clip, world, {"losses": []}, folder)
    return folder


def test_texts_learn_what_the_finished_image_tower_sees(world, untrained, tmp_path, capsys):
    from fitspace.metrics import clip

    few = dict(warmup_steps=2, ema=0.5)
    vectors = texts.Vectors(steps=40, batch_size=8, **few)
    settings = texts.Settings(steps=60, batch_size=5, **few)
    trained, record = texts.train(untrained, world, tmp_path / "whole", vectors, settings)
    before = clip.load(untrained).model.visual.state_dict()
    after = trained.model.clip.visual.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    fitted = torch.nn.functional.normalize(trained.model.captions, dim=1)
    said = texts.plain(trained.model.clip, judge.tokens(world))
    assert (said * fitted).sum(1).min() > 0.9
    losses = record["texts"]["losses"]
    assert len(losses) == 60 and np.mean(losses[-5:]) < np.mean(losses[:5])
    assert "right figures, by style: " in capsys.readouterr().out


def test_texts_killed_go_on_to_the_same_bits(world, untrained, tmp_path, monkeypatch):
    few = dict(warmup_steps=1, ema=0.5)
    vectors = texts.Vectors(steps=4, batch_size=8, **few)
    settings = texts.Settings(steps=6, batch_size=5, **few)
    whole, _ = texts.train(untrained, world, tmp_path / "whole", vectors, settings)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    compute, steps = judge.text_loss, iter(range(3))

    def stop(*arguments):
        next(steps)
        return compute(*arguments)

    monkeypatch.setattr(judge, "text_loss", stop)
    with pytest.raises(StopIteration):
        texts.train(untrained, world, tmp_path / "killed", vectors, settings)
    monkeypatch.setattr(judge, "text_loss", compute)
    resumed, _ = texts.train(untrained, world, tmp_path / "killed", vectors, settings)
    ours, theirs = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


RETRIEVED = {  # similarity to the captions of a, a (another tone), b, c; their pictures ->
    # figure, caption, five
    "own": ([0.9, 0.1, 0.2, 0.3], "pqrs", (1, 1, 1)),
    "another tone": ([0.1, 0.9, 0.2, 0.3], "pqrs", (1, 0, 1)),
    "another figure": ([0.8, 0.1, 0.9, 0.3], "pqrs", (0, 0, 1)),
    "a tie of two tones": ([0.9, 0.9, 0.2, 0.3], "pqrs", (1, 0.5, 1)),
    "another figure of the same picture": ([0.8, 0.1, 0.9, 0.3], "pqps", (1, 1, 1)),
    "a tie with the same picture": ([0.9, 0.1, 0.9, 0.3], "pqps", (1, 1, 1)),
    "the same picture, then another figure": ([0.7, 0.1, 0.9, 0.8], "pqps", (1, 1, 1)),
}


@pytest.mark.parametrize(("row", "pictures", "expected"), RETRIEVED.values(), ids=RETRIEVED)
def test_retrieval(row, pictures, expected):
    told = judge.Texts(torch.eye(4), torch.eye(4)[:, None].expand(4, 8, 4))
    pixels = np.array([10 * ord(name) % 256 for name in pictures], np.uint8)
    images = np.broadcast_to(pixels[:, None, None, None, None], (4, 8, 2, 2, 3))
    figures, captions = np.array(["a", "a", "b", "c"]), np.arange(4).astype(str)
    shown = drawn.Drawings(images, np.ones((4, 8), bool), captions, figures, "key")
    found = judge.retrieval(torch.tensor([row]), np.array([0]), 0, told, shown)
    assert (found["figure"], found["caption"], found["caption5"]) == pytest.approx(expected)


def test_augmented_drawings_stay_drawings(world):
    draw = np.random.default_rng(0)
    images = world.images[:, 0].repeat(8, 0)
    found = judge.augment(images, draw, 64)
    assert found.shape == (40, 3, 64, 64) and -1 <= found.min() <= found.max() <= 1
    difference = (found - bases.to_model(images)).abs().mean((1, 2, 3))
    assert (difference > 0.01).all() and difference.mean() < 0.5


def test_every_caption_of_the_world_fits_the_judges_context(world):
    rows = openmoji.catalogue()
    everything = dataclasses.replace(world, captions=np.array([row[1] for row in rows]))
    tokenizer = judge.vocabulary(everything)
    lengths = [len(tokenizer.encode(judge.styled(row[1], "blueprint")).ids) for row in rows]
    assert max(lengths) <= judge.MODEL["text_cfg"]["context_length"]
    unknown = sum(judge.UNKNOWN in tokenizer.encode(row[1]).ids for row in rows)
    assert unknown == 0


# --- all together ---------------------------------------------------------------------------


@pytest.fixture
def tiny(world, monkeypatch):
    """The recipes at tiny size: two steps of each part, few drawings."""
    few = dict(steps=2, batch_size=2, warmup_steps=1)
    configs = {autoencoder: [SMALL], judge: [judge.JUDGE], rewarder: [], unet: [SMALL_UNET]}
    configs |= {dit: [SMALL_DIT], mmdit: [SMALL_MMDIT]}
    for part, config in configs.items():
        settings = part.Settings(**few)
        monkeypatch.setattr(part, "Settings", lambda settings=settings: settings)
        monkeypatch.setattr(part.train, "__defaults__", (settings, *config))
    both = texts.Vectors(**few), texts.Settings(**few)
    monkeypatch.setattr(texts.train, "__defaults__", both)
    monkeypatch.setattr(drawn, "load", lambda folder: world)


def test_a_part_that_another_process_trains_is_waited_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(drawn, "load", lambda _: None)
    monkeypatch.setattr(autoencoder, "train", lambda *_: pytest.fail("trained twice"))
    work, vae, said = tmp_path / "work", tmp_path / "models/vae", ""
    arguments = ["autoencoder", "--work", str(work), "--out", str(vae.parent)]
    with ThreadPoolExecutor() as pool:
        with running.locked(work / "autoencoder.lock"):
            waiting = pool.submit(main, arguments)
            while "waiting for autoencoder" not in said and not waiting.done():
                said += capsys.readouterr().err
            vae.mkdir(parents=True)
            (vae / "training.json").touch()
        assert waiting.result() == 0 and "waiting for autoencoder" in said


@pytest.mark.slow
def test_all_parts_are_made_once_and_their_cards_say_what_was_measured(tiny, tmp_path, capsys):
    places = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "models")]
    assert main(["unet", *places]) == 2
    assert "no finished autoencoder" in capsys.readouterr().err
    assert main(["autoencoder", "judge", "rewarder", "unet", "dit", "mmdit", *places]) == 0
    models = tmp_path / "models"
    shipped = ("emoji-unet/text_encoder", "emoji-mmdit/text_encoder_3")
    assert not any((models / place / "model.safetensors").exists() for place in shipped)
    weights = {p: p.stat().st_mtime_ns for p in models.rglob("*.safetensors")}
    made = {
        "vae",
        "emoji-clip",
        "emoji-rewarder",
        "unet",
        "transformer",
        "text_encoder",
        "text_encoder_2",
    }
    assert {p.parent.name for p in weights} == made
    parts = ["autoencoder", "judge", "rewarder", "unet", "dit", "mmdit", "cards"]
    assert main([*parts, *places]) == 0
    assert {p: p.stat().st_mtime_ns for p in weights} == weights
    measured = json.loads((models / "measured.json").read_text())
    assert set(measured) == {"autoencoder", "judge", "rewarder", *RECIPES}
    assert "caption" in measured["emoji-unet"] and "caption" not in measured["emoji-dit"]
    for name in ("vae", "emoji-clip", "emoji-rewarder", *RECIPES):
        card = (models / name / "README.md").read_text()
        assert "CC BY-SA 4.0" in card and "OpenMoji" in card and "None" not in card
        for line in card.splitlines():
            if line.startswith("!["):
                assert (models / name / line.partition("](")[2].rstrip(")")).exists()
        tables = [line for line in card.splitlines() if line.startswith("|")]
        assert tables and all(line.endswith("|") for line in tables)
    share = f"{100 * measured['emoji-unet']['figure']:.1f}%"
    assert share in (models / "emoji-unet/README.md").read_text()
