"""Whether a pipeline that is whole can be used, by its files and configurations alone: no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fitspace.bases.family import Family
from fitspace.core.errors import UserError
from fitspace.core.files import POINTER_CURE, is_pointer, read_json

# Components that make no image other: a filter of what is drawn, and an adapter for pictures.
_HARMLESS = ("safety_checker", "feature_extractor", "image_encoder")
# How diffusers and transformers call a component's weights; in parts, an index names them.
_OF_TRANSFORMERS = "model"
FLOW = "FlowMatchEulerDiscreteScheduler"
FLOW_DPM = "DPMSolverMultistepScheduler"
# What the latter says if it solves a flow, without randomness.
_DPM = {
    "use_flow_sigmas": True,
    "prediction_type": "flow_prediction",
    "algorithm_type": "dpmsolver++",
    "num_train_timesteps": 1000,
}
_OF_DIFFUSERS = "diffusion_pytorch_model"
MOST_TOKENS = 100_000  # transformers writes 1e30 where a tokenizer has no limit
# Their positions are numbered after that of the padding.
_PADDED = ("camembert", "roberta", "xlm-roberta", "xlm-roberta-xl")


def reads_text(component: str) -> bool:
    """Whether a component is one of a pipeline's text encoders."""
    return component.startswith("text_encoder")


def config(folder: Path, component: str) -> dict[str, Any]:
    """The configuration of one component of a resolved pipeline."""
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    return read_json(folder / component / name, finite=False)


def pixels(vae: Mapping[str, Any]) -> int:
    """Side [px] of what becomes one latent, by an autoencoder's configuration."""
    return 2 ** (len(vae[_halving(vae)]) - 1) * _squares(vae)


def _squares(vae: Mapping[str, Any]) -> int:
    """Side of the squares of latents that are taken as one, with their channels side by side."""
    return vae.get("patch_size", (1,))[0]


def _halving(vae: Mapping[str, Any]) -> str:
    """The key of an autoencoder's channels, of which each after the first halves an image."""
    keys = ("encoder_block_out_channels", "dim_mult")
    return next((key for key in keys if key in vae), "block_out_channels")


def _channels_of(vae: Mapping[str, Any]) -> Any:
    return vae.get("z_dim", vae.get("latent_channels", 4))


def strangers(index: dict[str, Any], known: Iterable[str]) -> list[str]:
    """Components that a model_index.json names and nobody here would use, such as a second text
    encoder: what a pipeline draws without them is another pipeline's."""
    known = {*known, *_HARMLESS}
    return [
        f"model_index.json: {name}: {item[1]}; allowed: a pipeline without it"
        for name, item in index.items()
        if isinstance(item, list) and len(item) == 2 and item[1] and name not in known
    ]


def problems(folder: Path, family: Family, index: dict[str, Any]) -> list[str]:
    """What keeps a pipeline from being used, each with its file and the key in it."""
    found = [
        f"{path.relative_to(folder)}: {POINTER_CURE}"
        for component in index
        for path in sorted((folder / component).glob("*"))
        if is_pointer(path)
    ]
    if found:
        return found
    components = (family.component, "vae", *(c for c in index if reads_text(c)))
    found = [problem for c in components for problem in _unread(folder, c)]
    read = {}
    for component in (*components, "scheduler"):
        try:
            read[component] = config(folder, component)
        except UserError as error:
            found += error.problems
    if found:
        return found
    checks = {
        family.component: [*family.problems(read[family.component]), *_latents(read, family)],
        "vae": _vae(read["vae"], index["vae"][1], family, read[family.component]),
        "scheduler": _flow(read["scheduler"], family)
        if family.flows
        else _scheduler(read["scheduler"], _learns_variance(read, family)),
        "text_encoder": _text(folder, read, family) if "text_encoder" in read else [],
    }
    file = {"scheduler": "scheduler/scheduler_config.json"}
    return [
        f"{file.get(component, f'{component}/config.json')}: {problem}"
        for component, wrong in checks.items()
        for problem in wrong
    ]


def _unread(folder: Path, component: str) -> list[str]:
    """Weights under names that are not looked for: a variant such as fp16 alone, a missing part."""
    kind = _OF_TRANSFORMERS if reads_text(component) else _OF_DIFFUSERS
    name = f"{kind}.safetensors"
    here = folder / component
    if (here / name).exists():
        return []
    index = here / f"{name}.index.json"
    if not index.exists():
        there = ", ".join(sorted(p.name for p in here.glob("*.safetensors")))
        return [f"{component}: {there}; needed: {name}"]
    try:
        parts = sorted({str(part) for part in read_json(index)["weight_map"].values()})
    except (UserError, KeyError, AttributeError, TypeError):
        return [f"{component}/{index.name}: no index of weights"]
    return [f"{component}/{part}: missing" for part in parts if not (here / part).exists()]


def _channels(read: dict[str, Any], family: Family) -> tuple[Any, Any]:
    """Channels of what a denoiser takes and gives, per latent where it gives squares of latents."""
    denoiser = read[family.component]
    taken = denoiser.get("in_channels", 4)
    if family.packs > 1 and denoiser.get("patch_size", 1) == family.packs:
        taken //= family.packs**2
    given = denoiser.get("out_channels")
    return taken, taken if given is None else given


def _learns_variance(read: dict[str, Any], family: Family) -> bool:
    taken, given = _channels(read, family)
    return given != taken


def _latents(read: dict[str, Any], family: Family) -> list[str]:
    side = read[family.component].get("sample_size")
    side_by_side = family.packs * _squares(read["vae"])
    latent = _channels_of(read["vae"]) * side_by_side**2
    (each, given), taken = _channels(read, family), read[family.component].get("in_channels", 4)
    found = []
    if family.side is None and (not isinstance(side, int) or side < 1):
        found.append(f"sample_size: {side!r}; allowed: the side of its latents, a whole number")
    if taken != latent:
        packed = f", of {side_by_side}x{side_by_side} latents" * (side_by_side > 1)
        found.append(
            f"in_channels: {taken!r}; allowed: {latent}, the latent channels of the vae{packed}"
        )
    elif given not in (each, 2 * each):
        found.append(
            f"out_channels: {given!r}; allowed: {each}, or {2 * each} with learned variances"
        )
    return found


def _vae(config: dict[str, Any], kind: str, family: Family, denoiser: dict[str, Any]) -> list[str]:
    found = [] if kind == family.vae else [f"_class_name: {kind}; allowed: {family.vae}"]
    for key in ("in_channels", "out_channels", "input_channels"):
        if (channels := config.get(key, 3)) != 3:
            found.append(f"{key}: {channels!r}; allowed: 3")
    shift = config.get("shift_factor")
    if family.shifted and not isinstance(shift, int | float):
        found.append(f"shift_factor: {shift!r}; allowed: a number")
    statistics = ("latents_mean", "latents_std")
    for key in statistics if family.normalised else ():
        if not isinstance(values := config.get(key), list) or len(values) != _channels_of(config):
            found.append(f"{key}: {values!r}; allowed: a list, a number for each latent channel")
    none = () if family.normalised else statistics
    for key in (*none, *(() if family.shifted else ("shift_factor",))):
        if config.get(key) not in (None, 0):
            found.append(
                f"{key}: {config[key]!r}; allowed: null, as nobody shifts latents so for a "
                f"{family.title}"
            )
    factor = config.get("scaling_factor", 1.0)
    if not isinstance(factor, int | float) or not factor > 0:
        found.append(f"scaling_factor: {factor!r}; allowed: a number above 0")
    if not isinstance(config.get(key := _halving(config)), list):
        return [*found, f"{key}: missing; allowed: a list of numbers"]
    if family.side is not None:
        unit = pixels(config) * family.packs * family.patch(denoiser)
        side = config.get("sample_size", family.side * pixels(config))
        if not isinstance(side, int) or side < 1 or side % unit:
            found.append(
                f"sample_size: {side!r}; allowed: the side of images [px], a multiple of {unit}"
            )
    return found


def _scheduler(config: dict[str, Any], learns_variance: bool) -> list[str]:
    if "beta_schedule" not in config:
        name = config.get("_class_name")
        return [f"{name} has no beta_schedule; allowed: DDPM and its solvers"]
    kind, found = config.get("prediction_type", "epsilon"), []
    if kind not in ("epsilon", "v_prediction"):
        found.append(f"prediction_type: {kind!r}; allowed: epsilon, v_prediction")
    if config.get("use_flow_sigmas"):
        found.append("use_flow_sigmas: true; allowed: false")
    if learns_variance and kind == "epsilon" and config.get("rescale_betas_zero_snr"):
        found.append(
            "rescale_betas_zero_snr: true with prediction_type epsilon; allowed: v_prediction, as "
            "the denoiser's learned variance has no bound at the last step"
        )
    return found


def _flow(config: dict[str, Any], family: Family) -> list[str]:
    name, other = config.get("_class_name"), family.steps == "solver"
    if name == FLOW_DPM and other:
        return [
            f"{key}: {config.get(key)!r}; allowed: {wanted!r}"
            for key, wanted in _DPM.items()
            if config.get(key) != wanted
        ]
    if name != FLOW:
        return [f"_class_name: {name}; allowed: {FLOW}" + f", {FLOW_DPM} for flows" * other]
    return [
        f"{key}: true; allowed: false"
        for key in ("invert_sigmas", "stochastic_sampling")
        if config.get(key)
    ]


def _text(folder: Path, read: dict[str, Any], family: Family) -> list[str]:
    if family.reading is not None:  # whether it fits is found out by running it
        return _kept(folder, family)
    config, found = read["text_encoder"], []
    width = next((config[k] for k in ("hidden_size", "d_model", "n_embd") if k in config), None)
    wanted = read[family.component].get("cross_attention_dim")
    if isinstance(width, int) and isinstance(wanted, int) and width != wanted:
        found.append(f"hidden_size: {width}; allowed: {wanted}, the denoiser's cross_attention_dim")
    try:
        tokens_of(folder)
    except UserError as error:
        found += error.problems
    return found


def _kept(folder: Path, family: Family) -> list[str]:
    try:
        family.reading.kept(folder)
    except UserError as error:
        return error.problems
    return []


def tokens_of(folder: Path) -> int:
    """How many tokens of a caption a pipeline's text encoder reads, by its configurations."""
    settings = folder / "tokenizer" / "tokenizer_config.json"
    limit = read_json(settings, finite=False).get("model_max_length") if settings.exists() else None
    return tokens_read(limit, config(folder, "text_encoder"))


def tokens_read(limit: Any, config: dict[str, Any]) -> int:
    """The smaller of a tokenizer's limit and its encoder's positions; one of the two may be unset.

    Raises
    ------
    UserError : neither says how long a caption may be.
    """
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and config.get("model_type") in _PADDED:
        positions -= (config.get("pad_token_id") or 0) + 1
    known = [n for n in (limit, positions) if isinstance(n, int | float) and 0 < n <= MOST_TOKENS]
    if not known:
        raise UserError(
            f"max_position_embeddings: {positions!r}, and the tokenizer's model_max_length is "
            f"{limit!r}; allowed: one of them from 1 to {MOST_TOKENS}"
        )
    return int(min(known))
