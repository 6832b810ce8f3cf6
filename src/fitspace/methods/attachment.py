"""An attached method, and the settings that methods share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from fitspace.bases.families import FAMILIES
from fitspace.core.errors import UserError
from fitspace.methods.blocks import ALL, PATTERN

if TYPE_CHECKING:
    import torch
    from torch import nn


class MethodSettings(BaseModel):
    """Settings of a method: strict, closed and frozen, because they are part of a run's key.

    One that is in ``LATER`` is part of it only where it is not its default, so that the keys of
    studies that do not use it stay as they were.
    """

    LATER: ClassVar[tuple[str, ...]] = ()

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @classmethod
    def foreign(cls, family: str) -> set[str]:
        """The fields that have no meaning on this family: about what it is not told."""
        extras = {n: f.json_schema_extra or {} for n, f in cls.model_fields.items()}
        needs = {n: extra["told"] for n, extra in extras.items() if "told" in extra}
        return {n for n, condition in needs.items() if condition not in FAMILIES[family].told}

    def resolved(self, family: str) -> dict[str, Any]:
        """Every setting that has a meaning on this family, defaults included but `LATER`'s."""
        fields = type(self).model_fields
        unused = {name for name in self.LATER if getattr(self, name) == fields[name].default}
        return self.model_dump(exclude=self.foreign(family) | unused)


class BlockSettings(MethodSettings):
    """Settings of a method that can be put into parts of the denoiser."""

    LATER = ("blocks",)

    blocks: str = Field(
        ALL,
        max_length=1000,
        pattern=PATTERN,
        description="The parts of the denoiser that the method is put into: beginnings of its "
        "modules' names, joined by `+`, with a range of numbers if need be, as in "
        "`down_blocks+mid_block` or `transformer_blocks.0-2`; a share of the transformer blocks, "
        "as in `first 50%`; or `all`.",
    )


class PartialSettings(BlockSettings):
    """Settings of a method that leaves most of the base frozen."""

    class_embedding: bool = Field(
        True,
        description="Also train the table of class embeddings; only with a DiT base. Where the "
        "task has classes of its own the table is new, and has to be trained.",
        json_schema_extra={"told": "labels"},
    )


@dataclass
class Attachment:
    """A method that is attached to a model.

    Attributes
    ----------
    model : the denoiser, changed in place; everything in it except ``trainable`` is frozen.
    trainable : name -> parameter, sorted by name: exactly the parameters to train and save.
    identity_at_start : whether the model computes the same as the base before training.
    undo : restores the base.
    fold : writes the change into the base's weights, then detaches; None if it is not linear.
    dropouts : the method's own dropout layers, active during training only.
    frozen : name -> tensor that the method drew or computed and does not train; saved with the
        parameters, because another seed or machine gives other values.
    rates : name -> factor on the learning rate, for the parameters of which it is not 1.
    method, settings : of the attached method; set by :func:`fitspace.methods.attach`.
    metadata : metadata saved with the parameters, for an attachment that was loaded.
    attached : false once it was removed or merged.
    """

    model: nn.Module
    trainable: dict[str, nn.Parameter]
    identity_at_start: bool
    undo: Callable[[], None]
    fold: Callable[[], None] | None = None
    dropouts: list[nn.Module] = field(default_factory=list)
    frozen: dict[str, torch.Tensor] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    method: str = ""
    settings: MethodSettings | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    attached: bool = True

    def __post_init__(self) -> None:
        self.trainable = dict(sorted(self.trainable.items()))

    def remove(self) -> None:
        """Remove the method: the model is the frozen base again."""
        self.undo()
        self._release()

    def merge(self) -> None:
        """Fold the change into the base's weights, so that sampling costs no more than the base.

        Raises
        ------
        UserError : the method is not a linear change of the base's weights, or these are stored in
            fewer bits.
        """
        from fitspace.bases.quantized_layers import quantized

        if quantized(self.model):
            raise UserError(
                f"{self.method}: cannot be merged into weights of few bits, which would round it "
                "away; load it on the whole base and merge it there"
            )
        if self.fold is None:
            raise UserError(
                f"{self.method}: cannot be merged, because it is not a linear change of the base's "
                "weights"
            )
        self.fold()
        self._release()

    def _release(self) -> None:
        self.model.requires_grad_(False)
        self.trainable, self.frozen = {}, {}
        self.undo, self.attached = nothing, False
        self.model._fitspace_method = None


def nothing() -> None:
    """Undo or fold nothing, for a method that adds no parameters to the base."""


def restoring(parameters: dict[str, nn.Parameter]) -> Callable[[], None]:
    """Copy the values of base parameters to the CPU; returns the function that restores them."""
    import torch

    base = {n: p.detach().to("cpu", copy=True) for n, p in parameters.items() if not p.is_meta}

    @torch.no_grad()
    def restore() -> None:
        for name, value in base.items():
            parameters[name].copy_(value)

    return restore
