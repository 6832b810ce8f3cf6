"""Attach a method to a denoiser."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from fitspace import bases
from fitspace.core.errors import UserError
from fitspace.methods.attachment import Attachment, MethodSettings, restoring

if TYPE_CHECKING:
    from torch import nn
from fitspace.methods.registry import get, problems, validated


def attach(
    model: nn.Module, method: str, settings: MethodSettings | dict[str, Any], seed: int
) -> Attachment:
    """Freeze a denoiser and attach a method to it, in place.

    On a denoiser that is told of an image (:mod:`fitspace.bases.control`) what the control needs is
    trained too; with a copy of the encoder the method is put into the copy, and all else is frozen.
    Initial values depend only on the seed and the parameter's name. The model's mode (training
    or evaluation) does not change.

    Raises
    ------
    UserError : settings that are invalid for the method or on this model; a model to which a
        method is attached already.
    """
    settings = validated(method, settings)
    family = bases.family_of(model)
    if found := problems(method, settings, family.name):
        raise UserError(found)
    if carried := getattr(model, "_fitspace_method", None):
        raise UserError(f"model: carries the method {carried!r} already; remove() it first")
    if bases.own_classes(model) and not getattr(settings, "class_embedding", True):
        raise UserError(
            "class_embedding: False; the model's class table is new, drawn at random: it has to "
            "be trained; allowed: True"
        )
    model.requires_grad_(False)
    family.settle(model)
    part = bases.taught_part(model)
    attachment = get(method).attach(model.get_submodule(part), settings, seed)
    if bases.control_of(model):
        _train_control(attachment, model, part)
    attachment.method, attachment.settings = method, settings
    if family.by_class and getattr(settings, "class_embedding", False):
        _train_class_table(attachment)
    for parameter in attachment.trainable.values():
        parameter.requires_grad_(True)
    model._fitspace_method = method
    return attachment


def _train_control(attachment: Attachment, model: nn.Module, part: str) -> None:
    """Let an attachment to a part of a model be one to the model, and train the control too."""
    own = bases.control_parameters(model)
    undo, fold = ExitStack(), attachment.fold
    undo.callback(restoring(own))
    undo.callback(attachment.undo)

    def fold_both() -> None:
        fold()
        bases.fold_control(model)

    for name in ("trainable", "frozen", "rates"):
        found = getattr(attachment, name)
        setattr(attachment, name, {f"{part}.{n}" if part else n: v for n, v in found.items()})
    attachment.model, attachment.undo = model, undo.close
    attachment.fold = None if fold is None else fold_both
    attachment.trainable = dict(sorted((attachment.trainable | own).items()))
    # What a copy of the encoder adds goes through convolutions that are zero.
    attachment.identity_at_start |= bool(part)


def _train_class_table(attachment: Attachment) -> None:
    """Add the base's table of class embeddings to the trainables; undone with the method's undo."""
    name, table = bases.class_table(attachment.model)
    undo = ExitStack()
    undo.callback(restoring({name: table}))
    undo.callback(attachment.undo)
    attachment.undo = undo.close
    attachment.trainable = dict(sorted((attachment.trainable | {name: table}).items()))
