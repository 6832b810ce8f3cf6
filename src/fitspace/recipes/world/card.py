"""The cards of the embedded models: measures, and sheets of samples without any selection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fitspace import bases
from fitspace.core.files import canonical, read_json, replacing, write_text
from fitspace.core.pages import templates
from fitspace.data import openmoji
from fitspace.recipes.world import autoencoder, denoiser, dit, judge, mmdit, unet
from fitspace.recipes.world.drawings import ALIKE, SIZE, Drawings
from fitspace.training import sampling

SHEET = 96  # samples of a card
RECIPES = {"emoji-unet": unet, "emoji-dit": dit, "emoji-mmdit": mmdit}
_TOLD = {"emoji-unet": "caption", "emoji-dit": "figure", "emoji-mmdit": "caption"}


def write_base(folder: Path, drawings: Drawings, measured: dict[str, Any]) -> None:
    """Write a finished base's ``README.md`` and pictures; ``measured``: measures of all parts."""
    name, component, solved = folder.name, bases.denoiser(folder), denoiser.solving(folder)
    model, vae = bases.load_denoiser(folder), bases.load_vae(folder)
    task = RECIPES[name].source(folder, drawings)
    rows = denoiser.shown_rows(int(task.captions.max()), SHEET)
    sampling.sheet(denoiser.sample(model, folder, task, rows), folder / "sheet.png")
    trained = {part: read_json(folder / part / "training.json") for part in ("vae", component)}
    draw_losses({p: facts["losses"] for p, facts in trained.items()}, folder / "losses.png")
    _write(
        folder,
        attribution=openmoji.ATTRIBUTION,
        autoencoder=measured["autoencoder"],
        denoiser=trained[component] | {"parameters": _parameters(model)},
        drawings=len(drawings),
        figures=len(drawings.members()),
        packages=openmoji.source_version(),
        precision=measured[name],
        sampling=solved.sampling,
        scheduler=canonical(solved.settings),
        solver=solved.title,
        style=openmoji.SOURCE_STYLE,
        text_package=unet.TEXT_PACKAGE["package"],
        tokens=unet.TOKENS,
        told=_TOLD[name],
        vae=trained["vae"] | {"parameters": _parameters(vae)},
    )


def write_autoencoder(folder: Path, drawings: Drawings, measured: dict[str, Any]) -> None:
    """Write the finished autoencoder's ``README.md`` with its sheet of reconstructions."""
    vae = autoencoder.load(folder)
    autoencoder.draw(vae, drawings, autoencoder.shown(drawings), folder / "sheet.png")
    _write(
        folder,
        attribution=openmoji.ATTRIBUTION,
        autoencoder=measured["autoencoder"],
        drawings=len(drawings),
        packages=openmoji.source_version(),
        styles=openmoji.STYLES,
        vae=read_json(folder / "training.json") | {"parameters": _parameters(vae)},
    )


def write_judge(
    folder: Path,
    drawings: Drawings,
    report: dict[str, Any],
    design: judge.Design = judge.JUDGE,
) -> None:
    """Write a finished judge's ``README.md`` with its loss; ``report``: by `judge.measure`."""
    from fitspace.metrics import clip

    training = read_json(folder / "training.json")
    losses = {"both towers": training["losses"]}
    if "texts" in training:
        losses["texts"] = training["texts"]["losses"]
    draw_losses(losses, folder / "losses.png")
    _write(
        folder,
        alike=f"{ALIKE:g}",
        attribution=openmoji.ATTRIBUTION,
        drawings=len(drawings),
        example=judge.styled("waving hand", "blueprint"),
        model=design.model,
        noise=judge.NOISE,
        packages=openmoji.source_version(),
        parameters=_parameters(clip.load(folder).model),
        report=report,
        seen=design.seen,
        shift=judge.SHIFT,
        size=SIZE,
        styles=openmoji.STYLES,
        training=training,
    )


def _parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def _write(folder: Path, **facts: Any) -> None:
    environment = templates("fitspace.recipes.world", autoescape=False)  # Markdown
    text = environment.get_template(f"{folder.name}.md").render(**facts)
    write_text(folder / "README.md", text)


def draw_losses(losses: dict[str, list[float]], path: Path) -> None:
    """The loss of each part at each step, and its mean over 100 steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(losses), 3), layout="constrained")
    for axes, (part, values) in zip(
        np.atleast_1d(figure.subplots(1, len(losses))), losses.items(), strict=True
    ):
        axes.plot(values, alpha=0.2, linewidth=0.5)
        if len(values) >= 100:
            mean = np.convolve(values, np.full(100, 0.01), "valid")
            axes.plot(np.arange(99, len(values)), mean)
        axes.set(title=part, xlabel="step", ylabel="loss", yscale="log")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100, metadata={"Software": None})
