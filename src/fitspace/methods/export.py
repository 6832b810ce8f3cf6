"""Write an adapter in the formats of peft, diffusers and kohya, for use without fitspace."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from fitspace.bases.blocks import PROJECTIONS
from fitspace.core.errors import UserError
from fitspace.core.files import replacing
from fitspace.methods import registry, saving
from fitspace.methods.peft_layers import ADAPTER
from fitspace.methods.tuners import TUNERS

if TYPE_CHECKING:
    import torch

KOHYA = "kohya_lora.safetensors"
_KOHYA = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
LOADER = "fitspace.load_adapter(pipeline, PATH) puts it on any diffusers pipeline"


def export(source: str | Path, out: str | Path) -> list[Path]:
    """Write an adapter into the folder ``out`` for other libraries; returns the files.

    The scale is in the tensors: whoever reads them without the configuration has the same change.
    Methods of peft become ``adapter_config.json`` and ``adapter_model.safetensors``, for
    ``PeftModel.from_pretrained(denoiser, out)``. LoRA of families whose pipeline loads it also
    becomes ``pytorch_lora_weights.safetensors``, for ``pipeline.load_lora_weights(out)``, and that
    of a U-Net, but DoRA, ``kohya_lora.safetensors``, by kohya's names, for ComfyUI.

    Parameters
    ----------
    source : an adapter file, or the folder of a run's train stage.

    Raises
    ------
    UserError : no adapter of fitspace there, or one that these formats cannot hold.
    """
    source, out = Path(source), Path(out)
    path = source / "adapter.safetensors" if source.is_dir() else source
    facts, tensors = saving.read(path)
    method, settings = facts["method"], registry.validated(facts["method"], facts["settings"])
    if not hasattr(registry.get(method), "peft_config"):
        raise UserError(f"{path}: no other library reads the method {method!r}; {LOADER}")
    if "control" in facts:
        raise UserError(f"{path}: was trained with control: {facts['control']['kind']}; {LOADER}")
    if facts.get("extrapolated"):
        raise UserError(f"{path}: was trained with positions: extrapolated; {LOADER}")
    if facts["settings"].get("min_rank") is not None:
        raise UserError(f"{path}: no other library reads a rank that depends on time; {LOADER}")
    if foreign := [name for name in tensors if ADAPTER not in name.split(".")]:
        raise UserError(
            f"{path}: {foreign[0]} was trained together with the method, but the file formats hold "
            f"only the method; allowed: class_embedding: false in the study. {LOADER}"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out: {out} holds something already; allowed: a new or empty folder")
    from fitspace.core.imports import import_torchvision

    import_torchvision()
    parts = _by_layer(tensors)
    if hasattr(registry.get(method), "scale"):
        settings = _folded(path, method, settings, parts)
    config = registry.get(method).peft_config(settings, parts)
    config.inference_mode = True
    tuner = config.peft_type.name
    if not (row := TUNERS[tuner]).exports:
        raise UserError(f"{path}: peft's files do not hold what {tuner} draws; {LOADER}")
    _without_start(config, parts)
    # What all layers share is the tuner's own in peft's files.
    shared = {n: own.pop(n) for own in parts.values() for n in row.shared if n in own}
    state = {
        f"{layer}.{name}": tensor for layer, own in parts.items() for name, tensor in own.items()
    }
    written = _write_peft(config, state, shared, out)
    # diffusers has no loader for DiT and PixArt-Σ, whose layers have names of a U-Net's.
    unread = any(name.startswith("transformer_blocks.") and ".attn1." in name for name in state)
    loads = "family" in facts or not unread
    if method == "lora" and loads:
        written.append(_write_diffusers(config, state, out))
    if method == "lora" and not _of_transformer(state) and not settings.dora:
        written.append(_write_kohya(config, parts, out))
    return written


def _folded(path: Path, method: str, settings, parts: dict[str, dict[str, torch.Tensor]]):
    """Put the change's scale into the tensors; returns settings of which it is 1.

    Not every program reads the configuration beside the tensors: without it alpha is the rank.

    Raises UserError for a layer that has none of the tensors that carry it.
    """
    scale, names = registry.get(method).scale(settings)
    if scale != 1:
        for layer, own in parts.items():
            name = next((name for name in names if name in own), None)
            if name is None:
                raise UserError(f"{path}: {layer}: needed: {' or '.join(names)}")
            own[name] = own[name] * scale
            if (start := "lora_start.start_B") in own:
                own[start] = own[start] * scale
    plain = {"alpha": settings.rank}
    plain |= {"rslora": False, "init": "kaiming"} if method == "lora" else {}
    return settings.model_copy(update=plain)


def _without_start(config, parts: dict[str, dict[str, torch.Tensor]]) -> None:
    """Write s·(B·A − B0·A0) as one change of twice the rank, of which any reader makes the same."""
    import torch

    if not any("lora_start.start_A" in own for own in parts.values()):
        return
    for own in parts.values():
        a, b = own.pop("lora_start.start_A"), own.pop("lora_start.start_B")
        own["lora_A.weight"] = torch.cat([own["lora_A.weight"], a])
        own["lora_B.weight"] = torch.cat([own["lora_B.weight"], -b], 1)
        if config.use_rslora:  # its scale is alpha/√rank
            own["lora_B.weight"] *= math.sqrt(2)
    config.r *= 2
    config.lora_alpha *= 1 if config.use_rslora else 2
    config.init_lora_weights = True


def _by_layer(tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Path of a layer -> name in peft's files -> tensor.

    ``<layer>.lora_A.default.weight`` becomes ``lora_A.weight``, and DoRA's lengths become
    ``lora_magnitude_vector``. A layer that shares its A gets a copy from the layer before it.
    """
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in sorted(tensors.items()):
        before, _, after = name.partition(f".{ADAPTER}")
        layer, _, parameter = before.rpartition(".")
        suffix = "" if parameter == "lora_magnitude_vector" else after
        parts.setdefault(layer, {})[parameter + suffix] = tensor
    for layer, own in parts.items():
        if "lora_B.weight" in own and "lora_A.weight" not in own:
            parent, _, part = layer.rpartition(".")
            alike = next(group for group in PROJECTIONS if part in group)
            first = parts[f"{parent}.{alike[alike.index(part) - 1]}"]
            own["lora_A.weight"] = first["lora_A.weight"].clone()
    return parts


def _write_peft(
    config, state: dict[str, torch.Tensor], shared: dict[str, torch.Tensor], out: Path
) -> list[Path]:
    from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
    from safetensors.torch import save_file

    config.save_pretrained(out)
    with replacing(out / SAFETENSORS_WEIGHTS_NAME) as temporary:
        # PeftModel wraps the denoiser twice.
        named = {f"base_model.model.{name}": tensor for name, tensor in state.items()}
        named |= {f"base_model.{name}": tensor for name, tensor in shared.items()}
        save_file(named, temporary, metadata={"format": "pt"})
    return [out / CONFIG_NAME, out / SAFETENSORS_WEIGHTS_NAME]


def _write_diffusers(config, state: dict[str, torch.Tensor], out: Path) -> Path:
    from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline
    from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE

    # diffusers leaves loaded layers in training mode, so a dropout would be active.
    facts = config.to_dict() | {"lora_dropout": 0.0}
    # Only the denoiser's name goes into the file: all pipelines with a transformer write alike.
    if _of_transformer(state):
        StableDiffusion3Pipeline.save_lora_weights(
            out, transformer_lora_layers=state, transformer_lora_adapter_metadata=facts
        )
    else:
        StableDiffusionPipeline.save_lora_weights(
            out, unet_lora_layers=state, unet_lora_adapter_metadata=facts
        )
    return out / LORA_WEIGHT_NAME_SAFE


def _of_transformer(state: dict[str, torch.Tensor]) -> bool:
    """Whether the layers are those of a transformer's blocks, not of a U-Net."""
    return not any(name.startswith(("down_blocks.", "mid_block.", "up_blocks.")) for name in state)


def _write_kohya(config, parts: dict[str, dict[str, torch.Tensor]], out: Path) -> Path:
    """A U-Net's layers as kohya's scripts name them, each with its alpha."""
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for layer, own in parts.items():
        name = f"lora_unet_{layer.replace('.', '_')}"
        tensors |= {f"{name}.{_KOHYA[part]}": tensor for part, tensor in own.items()}
        tensors[f"{name}.alpha"] = torch.tensor(float(config.lora_alpha))
    with replacing(out / KOHYA) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    return out / KOHYA
