"""What the embedded bases share: the source domain as latents, training, samples.

A base is an ordinary diffusers pipeline folder. `unet`, `dit` and `mmdit` define what differs: the
model, the condition of a drawing, and whether the process is diffusion or flow matching.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fitspace import bases, training
from fitspace.core import rng
from fitspace.core.files import replacing, sha256, write_json
from fitspace.data.prepared import PreparedTask
from fitspace.recipes.world import autoencoder, judge, loop
from fitspace.recipes.world.drawings import SOURCE, Drawings
from fitspace.training import sampling

SHOWN = 48  # samples of a sheet


@dataclass(frozen=True)
class Solving:
    """A base's process, as diffusers' scheduler of this name is configured, and how it is sampled.

    ``title``: the solver, as prose writes it; ``sampling``: its steps and guidance, as studies use
    the bases.
    """

    title: str
    scheduler: str
    settings: dict[str, Any]
    sampling: dict[str, Any]


# Zero terminal SNR (2305.08891), so that adapters can move the mean colour of an image.
DIFFUSION = Solving(
    "DPM-Solver++",
    "DPMSolverMultistepScheduler",
    dict(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    ),
    dict(steps=10, guidance=3.0),
)
# Without a shift, which larger images need. Euler's method is of the first order: more steps.
FLOW = Solving(
    "Euler's method",
    "FlowMatchEulerDiscreteScheduler",
    dict(num_train_timesteps=1000, shift=1.0),
    dict(steps=20, guidance=3.0),
)


def solving(pipeline: Path) -> Solving:
    """How a base in a pipeline's folder is solved: by its family."""
    return FLOW if bases.family_in(pipeline).flows else DIFFUSION


@dataclass(frozen=True)
class Settings(loop.Schedule):
    """How a denoiser is trained; ``caption_dropout``: share of examples without a condition."""

    caption_dropout: float = 0.1


def source(
    vae: nn.Module,
    drawings: Drawings,
    captions: Tensor,
    groups: list[list[int]],
    conditions: bases.Conditions,
) -> PreparedTask:
    """All drawings in the source style, in the form in which training reads a task.

    ``captions``: each drawing's row of ``conditions``, whose row 0 is no condition.
    """
    mean, std = autoencoder.encode(vae, drawings.images[:, SOURCE])
    return PreparedTask(mean, std, captions, groups, conditions, prompts=[])


def train(
    model: nn.Module,
    task: PreparedTask,
    pipeline: Path,
    folder: Path,
    settings: Settings,
    made_of: dict[str, Any],
    shown: Sequence[int],
    description: str,
) -> loop.Trained:
    """Train a denoiser, or go on with it; ``pipeline`` has the scheduler and the autoencoder.

    ``shown``: rows of the task's conditions that the sheets show.
    """
    process, vae = bases.load_process(pipeline), bases.load_vae(pipeline)
    facts, predict = asdict(settings) | {"min_snr_gamma": None}, bases.family_of(model).predict

    def loss_at(step: int) -> Tensor:
        batch = training.make_batch(
            task, process, vae.config.scaling_factor, facts, settings.seed, step
        )
        predicted = predict(model, batch.noisy, batch.t, batch.conditions)
        return batch.losses(process, predicted).mean()

    def sheet(averaged: nn.Module, path: Path) -> None:
        sampling.sheet(sample(averaged, pipeline, task, list(shown)), path)

    scheduler = solving(pipeline).settings
    made_of = made_of | {"vae": weights_digest(pipeline / "vae"), "scheduler": scheduler}
    return loop.train(model, loss_at, settings, made_of, folder, sheet, description)


def weights_digest(component: Path) -> str:
    return sha256(component / "diffusion_pytorch_model.safetensors")


def sample(
    model: nn.Module, pipeline: Path, task: PreparedTask, rows: list[int], seed: int = 0
) -> np.ndarray:
    """Samples of the conditions ``rows`` at the studies' own settings: uint8 (n, h, w, 3)."""
    return sampling.generate(
        model,
        bases.load_vae(pipeline),
        bases.load_process(pipeline),
        task.told(rows),
        task.told(slice(1)),
        rng.initial_noise(seed, len(rows), tuple(task.mean.shape[1:])),
        **solving(pipeline).sampling,
    )


def shown_rows(count: int, number: int = SHOWN) -> list[int]:
    """The conditions, of ``count``, that a sheet shows: drawn at random, never row 0."""
    return (1 + rng.generator(0, "sheet").permutation(count)[:number]).tolist()


def precision(
    samples: np.ndarray, rows: np.ndarray, judge_folder: Path, drawings: Drawings
) -> dict[str, float]:
    """R-precision: how often the judge finds each sample's own caption among all captions.

    ``rows``: for each sample, the drawing with its caption. See :func:`judge.retrieval`.
    """
    from fitspace.metrics import clip

    loaded = clip.load(judge_folder)
    texts = judge.all_texts(loaded, drawings)
    return judge.retrieval(judge.embed(loaded.model.visual, samples), rows, SOURCE, texts, drawings)


@torch.no_grad()
def initialise(model: nn.Module, embedders: Sequence[nn.Module], zero: Sequence[nn.Module]) -> None:
    """A transformer's initial values as DiT has them (2212.09748, section 3).

    Linear layers and patches are drawn as Xavier has it, ``embedders`` from a narrow normal; the
    layers ``zero`` are zero, so that every block is the identity and the output zero.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    patches = model.pos_embed.proj
    nn.init.xavier_uniform_(patches.weight.view(len(patches.weight), -1))
    nn.init.zeros_(patches.bias)
    for layer in embedders:
        nn.init.normal_(layer.weight, std=0.02)
    for layer in zero:
        nn.init.zeros_(layer.weight)


# --- the pipeline folder --------------------------------------------------------------------


def assemble(pipeline: Path, vae: Path, index: dict[str, Any], solved: Solving = DIFFUSION) -> None:
    """Write the parts that all bases share: index, scheduler, and a copy of the autoencoder."""
    import diffusers

    scheduler = getattr(diffusers, solved.scheduler)(**solved.settings)
    scheduler.save_pretrained(pipeline / "scheduler")
    copy_files(vae, pipeline / "vae")
    common = {
        "scheduler": ["diffusers", solved.scheduler],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(pipeline / "model_index.json", index | common)


def save(
    trained: loop.Trained,
    settings: Settings,
    component: Path,
    prepared: Callable[[nn.Module], nn.Module] = lambda model: model,
) -> None:
    """Write a denoiser in diffusers' format, in half precision, with its training record.

    ``prepared``: function that changes the copy to be saved.
    """
    prepared(copy.deepcopy(trained.model)).half().save_pretrained(component)
    write_json(component / "training.json", trained.record(settings))


def copy_files(folder: Path, target: Path) -> None:
    """Copy a folder's files, each atomically, without a package's own and without its card."""
    shipped = folder / "model.safetensors" if (folder / "package.json").exists() else None
    files = [p for p in folder.iterdir() if p.is_file() and p.suffix not in (".md", ".png")]
    for file in sorted(p for p in files if p != shipped):
        with replacing(target / file.name) as temporary:
            shutil.copyfile(file, temporary)


def copy_pipeline(pipeline: Path, out: Path) -> None:
    """Copy a finished pipeline, its index last."""
    for component in sorted(p for p in pipeline.iterdir() if p.is_dir()):
        copy_files(component, out / component.name)
    copy_files(pipeline, out)
