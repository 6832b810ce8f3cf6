"""The model card of an embedded base: measures and samples."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fitspace import bases, metrics
from fitspace.core import rng
from fitspace.core.files import canonical, replacing, write_text
from fitspace.core.pages import templates
from fitspace.data import openmoji, prepared
from fitspace.recipes import embedded
from fitspace.stages.prepare import prepare_task
from fitspace.stages.sidecars import verified
from fitspace.training import sampling

JUDGE = "models/emoji-clip-32"
SAMPLING = dict(steps=20, guidance=3.0)
COLUMNS = 8


def write_card(out: Path, work: Path = embedded.WORK) -> None:
    """Measure the finished base and write ``out/README.md`` with its figures.

    Samples all held-out captions and every category, at the settings that studies use.
    """
    stage = embedded.source_stage(out, work / out.name)
    if not stage.sidecar.exists():
        prepare_task(embedded.SOURCE, str(out), stage)
    verified(stage)
    data = prepared.load(stage)
    manifest = prepared.read_manifest(stage)
    categories = list(range(1, len(manifest["captions"])))  # rows of the conditions
    rows = {"categories": categories, "held-out": data.prompts}
    images = {name: _sample(out, data, chosen) for name, chosen in rows.items()}
    held_out = prepared.read_images(stage, manifest)
    captions = [manifest["captions"][row] for row in data.prompts]
    real = held_out[manifest["prompt_images"]]
    features = metrics.reference_features(real, captions, captions, JUDGE)
    for name, chosen in rows.items():
        labels = [manifest["captions"][row] for row in chosen]
        count = len(labels) if name == "categories" else 48
        _draw_sheet(images[name][:count], labels[:count], out / f"sheet-{name}.png")
    _draw_losses(out)
    card = _card(
        out,
        prompts=len(captions),
        sampled=_measured(images["held-out"], features),
        real=_measured(real, features),
        **_reconstruction(out),
    )
    write_text(out / "README.md", card)


def _measured(images: Any, features: dict[str, Any]) -> dict[str, float]:
    found = metrics.evaluate(images, features, JUDGE)
    return {name: v for name, v in found.items() if name in (*metrics.OF_HELD_OUT, "n")}


def _sample(out: Path, data: prepared.PreparedTask, rows: list[int]) -> np.ndarray:
    return sampling.generate(
        bases.load_denoiser(out),
        bases.load_vae(out),
        bases.load_process(out),
        data.told(rows),
        data.told(slice(1)),
        rng.initial_noise(embedded.SEED, len(rows), tuple(data.mean.shape[1:])),
        **SAMPLING,
    )


def _reconstruction(out: Path) -> dict[str, Any]:
    """How well the autoencoder reconstructs held-out emoji.

    ``errors``: mean squared error by style, pixels in [-1, 1]. ``red_green``: share of the
    variance of red minus green, over 4×4 patches of the source style, that is preserved.
    ``channels``: number of latent channels whose posterior is narrower than half the prior.
    """
    vae, errors = bases.load_vae(out), {}
    for style in openmoji.STYLES:
        drawn = openmoji.examples(style, embedded.SIZE)
        pixels = bases.to_model(np.stack([e.image for e in drawn if e.split == "test"]))
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

    rows = -(-len(images) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(10, 1.5 * rows), dpi=100)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, caption in zip(axes.flat, images, captions, strict=False):
        axis.imshow(image, interpolation="lanczos")
        axis.set_title("\n".join(textwrap.wrap(caption, 18)[:2]), fontsize=7)
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, metadata={"Software": None})
    plt.close(figure)


def _draw_losses(out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3), dpi=100)
    for axis, component in zip(axes, ("vae", bases.denoiser(out)), strict=True):
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
    environment = templates("fitspace.recipes", autoescape=False)  # Markdown
    vae, denoiser = (_training(out, c) for c in ("vae", bases.denoiser(out)))
    settings = {
        "autoencoder": vae["settings"],
        "denoiser": denoiser["settings"],
        "scheduler": embedded.SCHEDULER,
    }
    return environment.get_template(f"{out.name}.md").render(
        size=embedded.SIZE,
        seed=embedded.SEED,
        parameters=sum(p.numel() for p in bases.load_denoiser(out).parameters()),
        classes=len(bases.labels(out)),
        source=openmoji.source_version(by_class=True),
        style=embedded.SOURCE.style,
        attribution=openmoji.ATTRIBUTION,
        vae=vae,
        denoiser=denoiser,
        settings={name: canonical(value) for name, value in settings.items()},
        sampling=SAMPLING,
        **measured,
    )
