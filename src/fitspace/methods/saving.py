"""Write trained parameters to a file, and load them onto a model."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fitspace import bases
from fitspace.core.errors import UserError
from fitspace.core.files import canonical, every_tensor, opened, parse_json, replacing
from fitspace.core.reading import checked
from fitspace.methods.attachment import Attachment

if TYPE_CHECKING:
    import torch
    from torch import nn
from fitspace.methods.attaching import attach
from fitspace.methods.blocks import unknown_blocks
from fitspace.methods.registry import get, knob, validated
from fitspace.methods.strength import at, problems_of_strength, strengths

# One key: safetensors writes several in an order that differs from process to process.
_METADATA = "fitspace"
_WHAT = "an adapter written by fitspace"


def save(attachment: Attachment, path: str | Path, metadata: dict[str, str]) -> None:
    """Write the trainables as safetensors, with the method, its settings and ``metadata``.

    Equal parameters and metadata give equal bytes.
    """
    from safetensors.torch import save_file

    facts = _form(attachment) | {"metadata": metadata}
    held = attachment.trainable | attachment.frozen
    tensors = {n: p.detach().cpu().contiguous() for n, p in held.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={_METADATA: canonical(facts)})


def _form(attachment: Attachment) -> dict[str, Any]:
    """The facts of a file that say what the model is given; two of one form differ in values."""
    family = bases.family_of(attachment.model)
    facts = {
        "method": attachment.method,
        "settings": attachment.settings.resolved(family.name),
    }
    if family.named:
        facts["family"] = family.name
    if classes := bases.own_classes(attachment.model):
        facts["classes"] = classes
    if (scale := bases.scale(attachment.model)) != 1:
        facts["scale"] = scale
    if bases.extrapolates(attachment.model):
        facts["extrapolated"] = True
    if control := bases.control_of(attachment.model):
        facts["control"] = {"kind": control.kind, "channels": [*control.channels]}
    return facts


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read what :func:`save` wrote: its facts, and the parameters by name.

    The facts are ``method``, ``settings`` (a dict) and ``metadata``; also ``family`` where names of
    layers do not tell it, ``classes`` if the model had a class table of its own, ``scale`` if it
    was not at its base's size, ``extrapolated`` if its patches' positions then were, and
    ``control`` if it was told of an image.

    Raises
    ------
    UserError : a file that is missing or was not written by :func:`save`, or the parameters of a
        run that diverged.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; expected an adapter (safetensors)")
    with opened(path) as file:
        said = (file.metadata() or {}).get(_METADATA, "null")
        facts = parse_json(said, path, what=_WHAT)
        tensors = every_tensor(file)
    checked(facts, _Facts, path, _WHAT)
    _check_sizes(path, facts, tensors)
    if "diverged" in facts["metadata"]:
        raise UserError(f"{path}: is of a run that diverged: {facts['metadata']['diverged']}")
    return facts, tensors


class _Control(BaseModel):
    model_config = ConfigDict(strict=True)

    kind: Literal["controlnet", "concat"]
    channels: list[Annotated[int, Field(ge=1, le=4096)]] = Field(max_length=8)


class _Facts(BaseModel):
    """The facts that `save` writes into a file."""

    model_config = ConfigDict(strict=True)

    method: str
    settings: dict[str, Any]
    metadata: dict[str, str]
    classes: int = Field(1, ge=1)
    scale: int = Field(1, ge=1, le=4)
    extrapolated: bool = False
    family: str | None = None
    control: _Control | None = None


def _check_sizes(path: str | Path, facts: dict[str, Any], tensors: dict[str, Any]) -> None:
    """Check that the stated sizes are near the tensors', because memory is allocated by them.

    Raises UserError for a size that is not, and for settings that are invalid for the method.
    """
    try:
        settings = validated(facts["method"], facts["settings"])
    except UserError as error:
        raise UserError(f"{path}: {p}" for p in error.problems) from None
    largest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    said = {"classes + 1": facts["classes"] + 1} if "classes" in facts else {}
    channels = facts.get("control", {}).get("channels", [])
    said |= {f"control.channels[{i}]": count for i, count in enumerate(channels)}
    width = knob(facts["method"])
    if width is not None and (units := getattr(settings, width)) is not None:
        said[width] = units
    said |= getattr(get(facts["method"]), "sizes", lambda _: {})(settings)
    for name, size in said.items():
        if size > 2 * largest + 1:  # what is less differs in shape, and is named so
            raise UserError(f"{path}: not {_WHAT} ({name} is {size}; no tensor is near that size)")


def load(
    model: nn.Module,
    path: str | Path,
    strength: float = 1.0,
    blocks: str | None = None,
    instead_of: Attachment | None = None,
) -> Attachment:
    """Attach a saved method to the model that it was trained on, or to another of its shape.

    ``strength``, and the ``blocks`` of the model in which it is at work (None: all), as
    :mod:`fitspace.methods.strength` has them. The file takes the place of ``instead_of``. If both
    have one form (method, settings, class table, size, control) only values are copied, and the
    same attachment is returned; otherwise the old one is removed first.

    Raises
    ------
    UserError : as :func:`read`; every name and shape of the file's parameters that differs from
        the model's; a method that has no strength, blocks that the model has not; an
        ``instead_of`` that the model does not carry. Where only values were to be copied, the
        old ones are still there.
    """
    import torch

    facts, tensors = read(path)
    if instead_of is not None and (instead_of.model is not model or not instead_of.attached):
        raise UserError(
            f"instead_of: {instead_of.method!r} is not on this model (any more); load {path} "
            "without it"
        )
    if strength != 1 or blocks is not None:
        control = facts.get("control", {}).get("kind")
        found = problems_of_strength(facts["method"], facts["settings"], control)
        if blocks is not None:
            found += unknown_blocks(blocks, (name for name, _ in model.named_modules()))
        if found:
            raise UserError(f"{path}: {problem}" for problem in found)
    elif instead_of is not None and _same_form(instead_of, facts):
        return _with_values(instead_of, path, facts, tensors)
    if instead_of is not None:
        instead_of.remove()
    of_base = {name for name, _ in model.named_parameters()}
    undo = ExitStack()
    try:
        if "control" in facts:
            told = bases.Control(facts["control"]["kind"], tuple(facts["control"]["channels"]))
            undo.callback(bases.add_control(model, told, seed=0))
            of_base |= bases.control_parameters(model).keys()  # at zero, where it is untrained
        if "classes" in facts:
            undo.callback(bases.new_classes(model, facts["classes"], seed=0))
        if "scale" in facts:
            beyond = facts.get("extrapolated", False)
            undo.callback(bases.at_scale(model, facts["scale"], beyond))
        attachment = attach(model, facts["method"], facts["settings"], seed=0)
    except UserError as error:
        undo.close()
        raise UserError(f"{path}: {p}" for p in error.problems) from None
    undo.callback(attachment.undo)
    attachment.undo = undo.close
    held = attachment.trainable | attachment.frozen
    if found := _differences(tensors, held):
        attachment.remove()
        raise UserError(f"{path}: {p}" for p in found)
    if "classes" in facts:  # a table that is new has no values to go back to
        of_base.discard(bases.class_table(model)[0])
    with torch.no_grad():
        for name, share in strengths(held, strength, blocks).items():
            parameter = held[name]
            trained = tensors[name].to(parameter.device)
            own = parameter if name in of_base else None
            parameter.copy_(at(name, trained, own, facts["method"], share))
    attachment.metadata = facts["metadata"]
    return attachment


def _same_form(attachment: Attachment, facts: dict[str, Any]) -> bool:
    own = {name: fact for name, fact in facts.items() if name != "metadata"}
    return canonical(_form(attachment)) == canonical(own)


def _with_values(
    attachment: Attachment, path: str | Path, facts: dict[str, Any], tensors: dict[str, Any]
) -> Attachment:
    """An attachment with the values of another of its form."""
    import torch

    held = attachment.trainable | attachment.frozen
    if found := _differences(tensors, held):
        raise UserError(f"{path}: {p}" for p in found)
    with torch.no_grad():
        for name, parameter in held.items():
            parameter.copy_(tensors[name])
    attachment.metadata = facts["metadata"]
    return attachment


def _tell_pipeline(
    pipeline: Any, model: nn.Module, control: bases.Control, attachment: Attachment
) -> None:
    """Let a pipeline know how its denoiser is told of an image, until the adapter is removed."""
    undo = ExitStack()
    undo.callback(attachment.undo)
    if control.kind == "concat":
        channels = model.config.in_channels
        model.register_to_config(in_channels=2 * channels)
        undo.callback(model.register_to_config, in_channels=channels)
    elif hasattr(pipeline, "controlnet"):
        before = pipeline.controlnet
        pipeline.register_modules(controlnet=model.controlnet)
        undo.callback(pipeline.register_modules, controlnet=before)
    attachment.undo = undo.close


def _differences(saved: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    found = [f"{n}: missing, but the model has it" for n in sorted(wanted.keys() - saved.keys())]
    found += [f"{n}: the model has no such parameter" for n in sorted(saved.keys() - wanted.keys())]
    for name in sorted(saved.keys() & wanted.keys()):
        have, want = tuple(saved[name].shape), tuple(wanted[name].shape)
        if have != want:
            found.append(f"{name}: shape {have}; the model needs {want}")
    if len(found) > 10:
        found[10:] = [f"and {len(found) - 10} more parameters that differ"]
    return found


def load_adapter(
    pipeline: Any, path: str | Path, instead_of: Attachment | None = None
) -> Attachment:
    """Attach a trained adapter to a diffusers pipeline; ``.remove()`` removes it again.

    It takes the place of ``instead_of``, as in :func:`load`.

    One that was trained with ``control: controlnet`` has its ControlNetModel at
    ``pipeline.unet.controlnet`` then, for a StableDiffusionControlNetPipeline; one with ``control:
    concat`` makes the U-Net one of a StableDiffusionInstructPix2PixPipeline.

    Raises
    ------
    UserError : as :func:`load`, or a pipeline with neither a U-Net nor a transformer.
    """
    for name in bases.DENOISERS:
        if (model := getattr(pipeline, name, None)) is not None:
            attachment = load(model, path, instead_of=instead_of)
            if attachment is instead_of:
                return attachment  # the pipeline knows of it
            if control := bases.control_of(model):
                _tell_pipeline(pipeline, model, control, attachment)
            return attachment
    raise UserError(f"pipeline: {type(pipeline).__name__} has neither `unet` nor `transformer`")
