"""Whether a pipeline does what a study will ask of it: its parts loaded, and run once."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from fitspace.bases.family import Conditions
from fitspace.bases.finding import config, denoiser, digest, family, image_size, latent_shape
from fitspace.bases.loading import (
    decoded,
    encode_captions,
    encoded,
    load_denoiser,
    load_process,
    load_teller,
    load_text,
    load_vae,
)
from fitspace.core.errors import UserError
from fitspace.core.files import digest as digest_of
from fitspace.core.files import remember, remembered, sha256

# A pipeline is loaded for it: seconds, and more for a large one, that are taken once.
CACHE = Path("results/.cache/tried.json")


def problems(folder: Path, steps: int = 20) -> list[str]:
    """What goes wrong with a resolved pipeline when it is loaded and run: nothing, if it is sound.

    Weights are read whole, and none may be missing; the denoiser and the autoencoder are run on
    PyTorch's meta device, where tensors have shapes and no content; the solver takes so many
    ``steps``. Remembered in `CACHE` for as long as the pipeline, this module and its libraries
    stay what they are.
    """
    libraries = [version(name) for name in ("torch", "diffusers", "transformers")]
    key = digest_of([digest(folder), steps, libraries, sha256(Path(__file__))])
    known = remembered(CACHE)
    if key not in known:
        known[key] = _tried(folder, steps)
        remember(CACHE, remembered(CACHE) | {key: known[key]})
    return known[key]


def _tried(folder: Path, steps: int) -> list[str]:
    found: list[str] = []
    told = _attempt(found, denoiser(folder), lambda: _told(folder))
    _attempt(found, "vae", lambda: _latents(folder))
    if told is not None:
        _attempt(found, denoiser(folder), lambda: _predicted(folder, told))
    _attempt(found, "scheduler", lambda: _solver(folder, steps))
    return found


def _attempt(found: list[str], component: str, act: Any) -> Any:
    try:
        return act()
    except UserError as error:
        found += error.problems
    except Exception as error:  # of a configuration that nobody tried, anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        found.append(f"{component}: cannot be used: {reason}")
    return None


def _told(folder: Path) -> Conditions:
    """What the denoiser is told of nothing: the conditions of the empty caption, or of no class."""
    import torch

    if family(folder).by_class:
        return {"labels": torch.tensor([config(folder, denoiser(folder))["num_embeds_ada_norm"]])}
    if family(folder).reading is not None:
        return load_teller(folder)([""])
    tokenizer, encoder = load_text(folder)
    rows = encoder.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise UserError(
            f"tokenizer: {len(tokenizer)} tokens; allowed: {rows}, as many as the text encoder has"
        )
    condition = encode_captions(tokenizer, encoder, [""])
    if condition.ndim != 3:
        raise UserError(
            f"text_encoder: gives {tuple(condition.shape)} for one caption; allowed: (1, tokens, "
            "width), a vector for each token"
        )
    return {"embeddings": condition}


def _latents(folder: Path) -> None:
    import torch

    vae = load_vae(folder).to("meta")
    with torch.no_grad():
        size = image_size(folder)
        latents, _ = encoded(vae, torch.zeros(1, 3, size, size, device="meta"))
        wanted = (1, *latent_shape(folder))
        if (shape := tuple(latents.shape)) != wanted:
            raise UserError(f"vae: makes {shape} of an image of {size} px; needed: {wanted}")
        images = decoded(vae, latents)
    if (shape := tuple(images.shape)) != (1, 3, size, size):
        raise UserError(f"vae: makes {shape} of its own latents; needed: {(1, 3, size, size)}")


def _predicted(folder: Path, told: Conditions) -> None:
    import torch

    model = load_denoiser(folder).to("meta")
    x = torch.zeros(1, *latent_shape(folder), device="meta")
    told = {name: value.to("meta") for name, value in told.items()}
    with torch.no_grad():
        predicted = family(folder).predict(model, x, torch.zeros(1, device="meta").long(), told)
    channels = {x.shape[1], 2 * x.shape[1]}
    if predicted.shape[1] not in channels or predicted.shape[2:] != x.shape[2:]:
        raise UserError(
            f"{denoiser(folder)}: predicts {tuple(predicted.shape)} of {tuple(x.shape)}; needed: "
            "the same, or twice the channels"
        )


def _solver(folder: Path, steps: int) -> None:
    """The training process, and the solver run on latents of zeros."""
    import torch

    process = load_process(folder)
    x = torch.zeros(1, 1, 2, 2)
    process.mix(x, x, torch.tensor([process.steps - 1]))
    solver = process.solver(steps, "cpu")
    for t in solver.timesteps:
        x = solver.step(torch.zeros_like(x), t, x).prev_sample
    if not bool(x.isfinite().all()):
        raise UserError(f"scheduler: {steps} steps of its solver do not stay finite")
