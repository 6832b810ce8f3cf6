"""Build ``emoji-dit`` from nothing: autoencoder, then denoiser.

It is an ordinary DiT pipeline folder at 32×32 pixels, conditioned on the emoji's category.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from fitspace import bases, training
from fitspace.core.errors import UserError
from fitspace.core.files import digest, replacing, sha256, write_json
from fitspace.data import identity, openmoji, prepared
from fitspace.plan import STAGES, Stage
from fitspace.recipes import autoencoder
from fitspace.stages.prepare import prepare_task
from fitspace.stages.sidecars import verified
from fitspace.study import Task

SIZE, SEED = 32, 0
WORK = Path("results/base")
SOURCE = Task(name="source", source="openmoji", style=openmoji.SOURCE_STYLE)
_AUTOENCODER = dict(steps=3500, batch_size=16, lr=1e-3, seed=SEED)
_DENOISER = dict(
    lr_schedule="cosine",
    weight_decay=0.0,
    grad_clip=1.0,
    ema=0.9995,
    caption_dropout=0.1,
    min_snr_gamma=None,
    precision="fp32",
)
# Folder name -> how its two parts are trained.
AUTOENCODERS = {
    # A weaker pull to the prior keeps all eight channels in use, and red distinct from green.
    "emoji-dit": _AUTOENCODER | dict(kl_weight=1e-6),
}
DENOISERS = {
    "emoji-dit": _DENOISER | dict(steps=12_000, batch_size=64, lr=1e-3, warmup_steps=500),
}
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


def build_autoencoder(out: Path) -> None:
    """Train the autoencoder and write ``out/vae``, half precision, with its loss curve.

    The scaling factor is 1/std of the source style's latent means.
    """
    started = time.monotonic()
    training_images = {
        style: np.stack([e.image for e in openmoji.examples(style, SIZE) if e.split == "train"])
        for style in openmoji.STYLES
    }
    settings = AUTOENCODERS[_name(out)]
    model, losses = autoencoder.train(np.concatenate(list(training_images.values())), **settings)
    with torch.no_grad():
        latents = torch.cat(
            [
                model.encode(bases.to_model(part)).latent_dist.mean
                for part in np.array_split(training_images[openmoji.SOURCE_STYLE], 50)
            ]
        )
    model.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    facts = {"settings": settings, "losses": losses}
    facts["hours"] = round((time.monotonic() - started) / 3600, 3)
    with tempfile.TemporaryDirectory() as folder:
        model.half().save_pretrained(folder)
        write_json(Path(folder) / "training.json", facts)
        _copy(Path(folder), out / "vae")


def build_denoiser(out: Path, work: Path = WORK) -> None:
    """Train the denoiser on the source style and write the whole pipeline to ``out``.

    Expects ``out/vae``. ``work`` keeps the untrained pipeline, the prepared source task and the
    checkpoint, so that a killed build can be resumed.
    """
    work, settings = work / _name(out), DENOISERS[_name(out)]
    pipeline = work / "pipeline"
    torch.manual_seed(SEED)
    model = _new_denoiser(_name(out))
    _copy(out / "vae", pipeline / "vae")
    _assemble(pipeline)
    _save_denoiser(model, pipeline)
    bases.family_of(model).settle(model)

    stage = source_stage(out, work)
    if not stage.sidecar.exists():
        prepare_task(SOURCE, str(pipeline), stage)
    verified(stage)
    checkpoint = stage.folder / "checkpoint.safetensors"
    result = training.fit(
        model,
        dict(model.named_parameters()),
        prepared.load(stage),
        bases.load_process(pipeline),
        bases.load_vae(pipeline).config.scaling_factor,
        settings,
        SEED,
        checkpoint,
        checkpoint_seconds=60,
        description=out.name,
    )
    with torch.no_grad():
        for name, value in result.parameters.items():
            model.get_parameter(name).copy_(value)
    component = _save_denoiser(model.half(), pipeline)
    facts = {"settings": settings, "hours": round(result.seconds / 3600, 3)}
    write_json(component / "training.json", facts | {"losses": result.losses})
    for part in ("scheduler", component.name):
        _copy(pipeline / part, out / part)
    _copy(pipeline, out)
    checkpoint.unlink(missing_ok=True)


def _name(out: Path) -> str:
    if out.name not in DENOISERS:
        raise UserError(f"{out}: no embedded base; allowed names: {', '.join(DENOISERS)}")
    return out.name


def _new_denoiser(name: str) -> torch.nn.Module:
    import diffusers

    config = bases.named_config(name)
    model = getattr(diffusers, config["_class_name"]).from_config(config)
    _initialise_dit(model)
    return model


@torch.no_grad()
def _initialise_dit(model: torch.nn.Module) -> None:
    """DiT's initial values: every block the identity, the output zero (2212.09748, section 3)."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
            torch.nn.init.zeros_(module.bias)
    patches = model.pos_embed.proj
    torch.nn.init.xavier_uniform_(patches.weight.view(len(patches.weight), -1))
    torch.nn.init.zeros_(patches.bias)
    embedder = model.transformer_blocks[0].norm1.emb
    for table in (
        embedder.class_embedder.embedding_table,
        embedder.timestep_embedder.linear_1,
        embedder.timestep_embedder.linear_2,
    ):
        torch.nn.init.normal_(table.weight, std=0.02)
    for block in model.transformer_blocks:
        block.norm1.emb.load_state_dict(embedder.state_dict())
        torch.nn.init.zeros_(block.norm1.linear.weight)
    for layer in (model.proj_out_1, model.proj_out_2):
        torch.nn.init.zeros_(layer.weight)


def _save_denoiser(model: torch.nn.Module, pipeline: Path) -> Path:
    """Write the denoiser as diffusers does, with a DiT's shared embedder once per block."""
    component = bases.family_of(model).component
    model = copy.deepcopy(model)
    for block in getattr(model, "transformer_blocks", []):
        block.norm1.emb = copy.deepcopy(block.norm1.emb)
    model.save_pretrained(pipeline / component)
    return pipeline / component


def source_stage(out: Path, work: Path) -> Stage:
    """The prepared source task of a base as a stage, with its key, in the folder ``work``."""
    material = {
        "vae": sha256(out / "vae" / "diffusion_pytorch_model.safetensors"),
        "source": identity(SOURCE, by_class=True),
        "version": STAGES["prepare"].version,
    }
    key = digest(material)[:12]
    return Stage("prepare", work / f"source~{key}", key, material)


def _assemble(out: Path) -> None:
    """Write the pipeline folder, without the denoiser's and the autoencoder's weights."""
    from diffusers import DPMSolverMultistepScheduler

    DPMSolverMultistepScheduler(**SCHEDULER).save_pretrained(out / "scheduler")
    names = sorted({e.category for e in openmoji.examples(SOURCE.style, SIZE)})
    index = {
        "_class_name": "DiTPipeline",
        "id2label": {str(i): name for i, name in enumerate(names)},
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(out / "model_index.json", index)


def _copy(source: Path, target: Path) -> None:
    """Copy a folder's files one by one, each atomically."""
    for file in sorted(p for p in source.iterdir() if p.is_file()):
        with replacing(target / file.name) as temporary:
            shutil.copyfile(file, temporary)
