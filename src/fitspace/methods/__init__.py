"""Methods of parameter-efficient fine-tuning, each a module behind one protocol.

A method is a module of this package with

- ``Settings``: a :class:`~fitspace.methods.attachment.MethodSettings`, every field described;
- ``trains``: whether anything is trained;
- ``problems(settings, family)``: why it cannot be built on a family of denoisers (``unet``
  or ``dit``), as messages; empty when it can;
- ``attach(model, settings, seed)``: change a model in place, see
  :class:`~fitspace.methods.attachment.Attachment`;
- ``budget``, where it has a width: the setting in which the count of trainable parameters is
  affine, see :mod:`fitspace.budget`;
- ``folds``, where several of it may be one batch on a GPU: hooks use the parameters of the module
  that they are given, and nothing is changed in place (``torch.vmap``).

A module put into this package is a method; CONTRIBUTING.md shows one.
Everything but ``attach`` works without torch, so that checking a study is cheap.
"""

from __future__ import annotations

import importlib
import pkgutil
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fitspace import bases
from fitspace.errors import UserError
from fitspace.files import canonical, opened, parse_json, replacing
from fitspace.methods.attachment import Attachment, MethodSettings, restoring

if TYPE_CHECKING:
    import torch
    from torch import nn


def discovered() -> dict[str, ModuleType]:
    """Name -> module of every method in this package, sorted: a new method is a new file.

    ``attachment`` and the ``*_layers`` modules, which import torch, are what methods are made of.
    """
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    own = [n for n in names if n != "attachment" and not n.endswith("_layers")]
    return {name: importlib.import_module(f"{__name__}.{name}") for name in own}


METHODS = discovered()
# One key: safetensors writes several in an order that differs from process to process.
_METADATA = "fitspace"
_WHAT = "an adapter written by fitspace"


def get(name: str) -> ModuleType:
    """The method of this name. Raises UserError for a name that is none."""
    try:
        return METHODS[name]
    except KeyError:
        raise UserError(f"method: {name!r}; allowed: {', '.join(METHODS)}") from None


def validated(method: str, settings: MethodSettings | dict[str, Any]) -> MethodSettings:
    """A method's settings as its own model. Raises UserError with every problem."""
    from fitspace.config import explain

    model = get(method).Settings
    if isinstance(settings, model):
        return settings
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        raise UserError(f"{method}.{p}" for p in explain(error, model)) from None


def problems(method: str, settings: MethodSettings, family: str) -> list[str]:
    """Why a method cannot be built so on a family of denoisers; empty when it can."""
    foreign = sorted(settings.model_fields_set & settings.foreign(family))
    return [
        f"{name}: has no meaning on a base of the family {family!r}; leave it out"
        for name in foreign
    ] + get(method).problems(settings, family)


def attach(
    model: nn.Module, method: str, settings: MethodSettings | dict[str, Any], seed: int
) -> Attachment:
    """Freeze a denoiser and attach a method to it, in place.

    Initial values depend on the seed and the parameter's name alone. The model's mode
    (training or evaluation) stays as it is.

    Raises
    ------
    UserError : settings that the method cannot have, or cannot have on this model; a model
        that carries a method already.
    """
    settings = validated(method, settings)
    family = bases.FAMILIES.get(type(model).__name__)
    if family is None:
        raise UserError(f"model: {type(model).__name__}; allowed: {', '.join(bases.FAMILIES)}")
    if found := problems(method, settings, family):
        raise UserError(found)
    if carried := getattr(model, "_fitspace_method", None):
        raise UserError(f"model: carries the method {carried!r} already; remove() it first")
    if bases.own_classes(model) and not getattr(settings, "class_embedding", True):
        raise UserError(
            "class_embedding: False; the model's class table is new, drawn at random: it has to "
            "be trained; allowed: True"
        )
    model.requires_grad_(False)
    if family == "dit":
        bases.share_embedders(model)
    attachment = get(method).attach(model, settings, seed)
    attachment.method, attachment.settings = method, settings
    if family == "dit" and getattr(settings, "class_embedding", False):
        _train_class_table(attachment)
    for parameter in attachment.trainable.values():
        parameter.requires_grad_(True)
    model._fitspace_method = method
    return attachment


def _train_class_table(attachment: Attachment) -> None:
    """Add the DiT's table of class embeddings to the trainables; undone with the method."""
    name, table = bases.class_table(attachment.model)
    undo = ExitStack()
    undo.callback(restoring({name: table}))
    undo.callback(attachment.undo)
    attachment.undo = undo.close
    attachment.trainable = dict(sorted((attachment.trainable | {name: table}).items()))


def save(attachment: Attachment, path: str | Path, metadata: dict[str, str]) -> None:
    """Write the trainables as safetensors, with the method, its settings and ``metadata``.

    Equal parameters and metadata give equal bytes.
    """
    from safetensors.torch import save_file

    facts = {
        "method": attachment.method,
        "settings": attachment.settings.resolved(bases.FAMILIES[type(attachment.model).__name__]),
        "metadata": metadata,
    }
    if classes := bases.own_classes(attachment.model):
        facts["classes"] = classes
    if (scale := bases.scale(attachment.model)) != 1:
        facts["scale"] = scale
    tensors = {n: p.detach().cpu().contiguous() for n, p in attachment.trainable.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={_METADATA: canonical(facts)})


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What :func:`save` wrote: its facts and the parameters by name.

    The facts are ``method``, ``settings`` (a dict), ``metadata``, and where the model had a
    class table of its own ``classes``, where it was not at its base's size ``scale``.

    Raises
    ------
    UserError : no such file, one not written by :func:`save`, or what is left of a run that
        diverged.
    """
    from fitspace.config import checked

    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; expected an adapter (safetensors)")
    with opened(path) as file:
        said = (file.metadata() or {}).get(_METADATA, "null")
        facts = parse_json(said, path, what=_WHAT)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    checked(facts, _Facts, path, _WHAT)
    _check_sizes(path, facts, tensors)
    if "diverged" in facts["metadata"]:
        raise UserError(f"{path}: is of a run that diverged: {facts['metadata']['diverged']}")
    return facts, tensors


class _Facts(BaseModel):
    """What `save` says of a file."""

    model_config = ConfigDict(strict=True)

    method: str
    settings: dict[str, Any]
    metadata: dict[str, str]
    classes: int = Field(1, ge=1)
    scale: int = Field(1, ge=1, le=4)


def _check_sizes(path: str | Path, facts: dict[str, Any], tensors: dict[str, Any]) -> None:
    """That the sizes said are near those of the tensors: memory is taken by what is said.

    Raises UserError for one that is not, and for settings that the method cannot have.
    """
    from fitspace.budget import knob

    try:
        settings = validated(facts["method"], facts["settings"])
    except UserError as error:
        raise UserError(f"{path}: {p}" for p in error.problems) from None
    largest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    said = {"classes + 1": facts["classes"] + 1} if "classes" in facts else {}
    if (width := knob(facts["method"])) is not None:
        said[width] = getattr(settings, width)
    for name, size in said.items():
        if size > 2 * largest + 1:  # what is less differs in shape, and is named so
            raise UserError(f"{path}: not {_WHAT} ({name} is {size}; no tensor is near that size)")


def load(model: nn.Module, path: str | Path) -> Attachment:
    """Attach a saved method to the model it was made for, or to another of its shape.

    Raises
    ------
    UserError : as :func:`read`, or a file whose parameters are not those of this model: every
        name and shape that differs.
    """
    import torch

    facts, tensors = read(path)
    undo = ExitStack()
    try:
        if "classes" in facts:
            undo.callback(bases.new_classes(model, facts["classes"], seed=0))
        if "scale" in facts:
            undo.callback(bases.at_scale(model, facts["scale"]))
        attachment = attach(model, facts["method"], facts["settings"], seed=0)
    except UserError as error:
        undo.close()
        raise UserError(f"{path}: {p}" for p in error.problems) from None
    undo.callback(attachment.undo)
    attachment.undo = undo.close
    if found := _differences(tensors, attachment.trainable):
        attachment.remove()
        raise UserError(f"{path}: {p}" for p in found)
    with torch.no_grad():
        for name, parameter in attachment.trainable.items():
            parameter.copy_(tensors[name])
    attachment.metadata = facts["metadata"]
    return attachment


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


def load_adapter(pipeline: Any, path: str | Path) -> Attachment:
    """Attach what fitspace trained to a diffusers pipeline; ``.remove()`` takes it off again.

    Raises
    ------
    UserError : as :func:`load`, or a pipeline with neither a U-Net nor a transformer.
    """
    for name in ("unet", "transformer"):
        if (model := getattr(pipeline, name, None)) is not None:
            return load(model, path)
    raise UserError(f"pipeline: {type(pipeline).__name__} has neither `unet` nor `transformer`")
