"""A pipeline's parts, loaded frozen; and a denoiser without weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitspace.core import devices, texts
from fitspace.core.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from fitspace.bases.family import Conditions
    from fitspace.bases.process import Process

from fitspace.bases import usable
from fitspace.bases.families import family_of
from fitspace.bases.finding import (
    architecture,
    config,
    family_in,
    image_size,
    index_of,
    latent_shape,
)
from fitspace.bases.usable import FLOW, FLOW_DPM, tokens_of, tokens_read
from fitspace.core.files import read_json

SD_SCALING_FACTOR = 0.18215  # diffusers' default, for configurations older than the key
_ODD = ("missing", "mismatched", "unexpected")  # weights, as libraries tell of their loading


def load_denoiser(folder: Path, dtype: str = "float32") -> nn.Module:
    """The pipeline's U-Net or DiT, frozen, in evaluation mode; ``dtype`` as torch names it.

    A DiT's time and class embedders, which diffusers keeps once per block, are shared.
    """
    kind = family_in(folder)
    model = _load(folder, kind.component, kind.kind, dtype)
    kind.settle(model)
    return model


def load_vae(folder: Path) -> nn.Module:
    """The pipeline's autoencoder, frozen, float32, in evaluation mode."""
    return _load(folder, "vae", family_in(folder).vae, "float32")


def _load(folder: Path, component: str, kind: str, dtype: str) -> nn.Module:
    _prepare_imports()
    import diffusers
    import torch

    try:
        model, info = getattr(diffusers, kind).from_pretrained(
            folder,
            subfolder=component,
            torch_dtype=getattr(torch, dtype),
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder / component}: cannot be loaded: {_first_line(error)}") from None
    _all_loaded(folder / component, info)
    return model.requires_grad_(False).eval()


def _all_loaded(where: Path, info: dict[str, Any]) -> None:
    """Refuse a model some of whose weights are not in its files: they would be drawn at random."""
    odd = {what: sorted(map(str, info.get(f"{what}_keys") or ())) for what in _ODD}
    wrong = odd["missing"] + odd["mismatched"]
    if not wrong:
        return
    others = f"; in the files, and of no use: {_few(odd['unexpected'])}" * bool(odd["unexpected"])
    raise UserError(f"{where}: its files lack, or have in another shape: {_few(wrong)}{others}")


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")


def _prepare_imports() -> None:
    from fitspace.core.imports import import_torchvision

    import_torchvision()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def encoded(vae: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the latents of images in [-1, 1], (n, 3, h, w); the latter 0
    by an autoencoder whose latents have no distribution."""
    import torch

    if _of_frames(vae):
        found = vae.encode(images[:, :, None]).latent_dist
        return found.mean[:, :, 0], found.std[:, :, 0]
    found = vae.encode(images)
    if not hasattr(found, "latent_dist"):
        return found.latent, torch.zeros_like(found.latent)
    mean, std = found.latent_dist.mean, found.latent_dist.std
    if hasattr(vae, "bn"):
        squares = vae.config.patch_size[0]
        mean, std = (torch.nn.functional.pixel_unshuffle(x, squares) for x in (mean, std))
    return mean, std


def decoded(vae: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1] of latents as `encoded` gives them."""
    import torch

    if hasattr(vae, "bn"):
        latents = torch.nn.functional.pixel_shuffle(latents, vae.config.patch_size[0])
    if _of_frames(vae):
        return vae.decode(latents[:, :, None]).sample[:, :, 0]
    return vae.decode(latents).sample


def _of_frames(vae: nn.Module) -> bool:
    """Whether an autoencoder is one of videos: an image is a video of one frame."""
    return "temperal_downsample" in vae.config


Scaling = tuple["float | torch.Tensor", "float | torch.Tensor"]


def load_scaling(folder: Path) -> Scaling:
    """Factor and shift of a pipeline's latents, as `scaling_of` has them."""
    settings = config(folder, "vae")
    return scaling_of(load_vae(folder) if "batch_norm_eps" in settings else settings)


def scaling_of(vae: nn.Module | Mapping[str, Any]) -> Scaling:
    """Factor and shift by an autoencoder, or by its configuration where this says them: a
    denoiser's latents are ``factor·(latents - shift)``.

    An autoencoder with batch statistics, or with a mean and a deviation for each channel, has a
    factor and a shift for each channel, (c, 1, 1).
    """
    import torch

    if statistics := getattr(vae, "bn", None):
        variance = statistics.running_var + vae.config.batch_norm_eps
        return variance.rsqrt().reshape(-1, 1, 1), statistics.running_mean.reshape(-1, 1, 1)
    settings = getattr(vae, "config", vae)
    if settings.get("latents_std"):
        device = next(vae.parameters()).device if isinstance(vae, torch.nn.Module) else None
        std, mean = (
            torch.tensor(settings[key], device=device).reshape(-1, 1, 1)
            for key in ("latents_std", "latents_mean")
        )
        return 1 / std, mean
    return settings.get("scaling_factor", SD_SCALING_FACTOR), settings.get("shift_factor") or 0.0


def load_process(folder: Path) -> Process:
    """The process the pipeline was trained with.

    Raises
    ------
    UserError : a scheduler of another kind of process.
    """
    from fitspace.bases.process import Diffusion, FlowMatching

    settings = config(folder, "scheduler")
    name, path = settings.get("_class_name"), folder / "scheduler" / "scheduler_config.json"
    found = family_in(folder)
    if "beta_schedule" in settings and not found.flows:
        return Diffusion(settings)
    if name not in (FLOW, FLOW_DPM) or not found.flows:
        raise UserError(f"{path}: {name} has no beta_schedule; allowed: DDPM and its solvers")
    channels, _, side = latent_shape(folder)
    tokens = found.image_tokens(config(folder, found.component), side)
    counted = {"tokens": tokens, "channels": channels}[found.shifts_by]
    return FlowMatching(settings, counted, found.steps)


def load_teller(
    folder: Path, device: str | torch.device = "cpu"
) -> Callable[[Sequence[str]], Conditions]:
    """What makes of captions what the pipeline's denoiser is told, float32, on the CPU.

    A family that names a pipeline of diffusers asks its ``encode_prompt``. Of several text
    encoders one at a time is on the device, the others are in the machine's memory.
    """
    found = family_in(folder)
    if found.reading is None:
        tokenizer, encoder = load_text(folder)
        encoder.to(device)
        return lambda captions: {"embeddings": encode_captions(tokenizer, encoder, captions).cpu()}
    pipeline = load_reading(folder)
    parts = pipeline.components.values()
    encoders = [part for part in parts if hasattr(part, "get_input_embeddings")]
    devices.one_at_a_time(encoders, device)
    side, encode = image_size(folder), found.reading.encode
    return lambda captions: encode(pipeline, captions, device, side)


def load_reading(folder: Path) -> Any:
    """The pipeline of diffusers that a family names, with only what reads text."""
    _prepare_imports()
    import inspect

    import diffusers

    found, index = family_in(folder), index_of(folder)
    kind = getattr(diffusers, found.reading.pipeline)
    wanted = inspect.signature(kind.__init__).parameters
    parts = {name: None for name, p in wanted.items() if p.default is p.empty and name != "self"}
    options = read_json(folder / "model_index.json")
    parts |= {n: v for n, v in options.items() if n in wanted and isinstance(v, bool)}
    for component in found.components:
        if component in index and usable.reads_text(component):
            parts[component] = _load_encoder(folder, component)
        elif component in index and component.startswith("tokenizer"):
            parts[component] = load_tokenizer(folder, component)
        elif usable.reads_text(component):  # its width is the denoiser's to say
            parts[found.component] = from_config(str(folder))
    return kind(**parts)


def load_text(folder: Path) -> tuple[Any, nn.Module]:
    """The pipeline's tokenizer and text encoder; the encoder frozen, float32, evaluating."""
    return load_tokenizer(folder), _load_encoder(folder, "text_encoder")


def _load_encoder(folder: Path, component: str) -> nn.Module:
    import torch

    extra = {"use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
    encoder, info = _of_transformers(folder, component, "PreTrainedModel", **extra)
    _all_loaded(folder / component, info)
    return encoder.requires_grad_(False).eval()


def load_tokenizer(folder: Path, component: str = "tokenizer") -> Any:
    """One of the pipeline's tokenizers."""
    return _of_transformers(folder, component, "PreTrainedTokenizerBase")


def _of_transformers(folder: Path, component: str, parent: str, **extra: Any) -> Any:
    _prepare_imports()
    import transformers

    transformers.utils.logging.disable_progress_bar()
    library, name = index_of(folder).get(component, (None, None))
    kind = getattr(transformers, name, None) if library == "transformers" else None
    if not (isinstance(kind, type) and issubclass(kind, getattr(transformers, parent))):
        raise UserError(
            f"{folder / 'model_index.json'}: {component}: {name!r} of {library!r}; "
            f"allowed: a {parent} of transformers"
        )
    try:
        return kind.from_pretrained(folder / component, local_files_only=True, **extra)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder / component}: cannot be loaded: {_first_line(error)}") from None


def encode_captions(tokenizer: Any, encoder: nn.Module, captions: Sequence[str]) -> torch.Tensor:
    """What a StableDiffusionPipeline conditions on: (captions, tokens, dim).

    Captions are padded and cut to :func:`token_limit`; the attention mask is given only to encoders
    whose configuration asks for it.
    """
    import torch

    tokens = tokenizer(
        list(captions),
        padding="max_length",
        max_length=token_limit(tokenizer, encoder),
        truncation=True,
        return_tensors="pt",
    )
    masked = getattr(encoder.config, "use_attention_mask", False)
    with torch.no_grad():
        return encoder(
            tokens.input_ids.to(encoder.device),
            attention_mask=tokens.attention_mask.to(encoder.device) if masked else None,
        )[0]


def caption_tokens(folder: Path, captions: Sequence[str]) -> list[list[tuple[int, int]]]:
    """Position and id of each caption's own tokens, among those that the text encoder reads.

    Tokens that a tokenizer adds (start, end, padding) are not a caption's own.
    """
    read = load_tokenizer(folder)(
        list(captions),
        padding="max_length",
        max_length=tokens_of(folder),
        truncation=True,
        return_special_tokens_mask=True,
    )
    return [
        [(at, token) for at, (token, added) in enumerate(zip(ids, mask, strict=True)) if not added]
        for ids, mask in zip(read["input_ids"], read["special_tokens_mask"], strict=True)
    ]


def token_limit(tokenizer: Any, encoder: nn.Module) -> int:
    """How many tokens of a caption are read; see :func:`fitspace.bases.usable.tokens_read`."""
    return tokens_read(tokenizer.model_max_length, encoder.config.to_dict())


def cut_captions(folder: Path, captions: Sequence[str]) -> list[str]:
    """Notes on captions that a pipeline's text encoder, if it has one, does not read to the end."""
    found = family_in(folder)
    if found.by_class:
        return []
    if found.reading is None:
        tokenizer, encoder = load_text(folder)
        return _cut("the text encoder", tokenizer, token_limit(tokenizer, encoder), captions)
    notes = []
    for component, limit in found.reading.kept(folder).items():
        who = f"the text encoder{component.removeprefix('tokenizer').replace('_', ' ')}"
        notes += _cut(who, load_tokenizer(folder, component), limit, captions)
    return notes


def _cut(who: str, tokenizer: Any, limit: int, captions: Sequence[str]) -> list[str]:
    # Where texts are padded, by how much tells nothing of them.
    read = tokenizer(list(captions), max_length=limit, truncation=True)["input_ids"]
    whole = tokenizer(list(captions), truncation=False, verbose=False)["input_ids"]
    lengths = [len(tokens) for tokens in whole]
    return texts.cut(who, limit, captions, [tuple(ids) for ids in read], lengths)


def text_tokens(folder: Path) -> int:
    """How many text tokens a pipeline tells its denoiser."""
    found = family_in(folder)
    if found.by_class:
        return found.tokens
    if found.reading is None:
        return tokens_of(folder)
    return found.reading.tokens(found.reading.kept(folder))


def to_model(images: np.ndarray) -> torch.Tensor:
    """uint8 images (n, h, w, 3) to float32 in [-1, 1], shape (n, 3, h, w)."""
    import torch

    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def from_config(name: str) -> nn.Module:
    """A denoiser without weights, on the meta device, its parameters frozen.

    Name and errors as :func:`architecture` has them.
    """
    settings = architecture(name)
    _prepare_imports()
    import diffusers
    import torch

    with torch.device("meta"):
        model = getattr(diffusers, settings["_class_name"]).from_config(settings)
    family_of(model).settle(model)
    return model.requires_grad_(False).eval()
