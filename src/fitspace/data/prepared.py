"""A prepared task: latents, conditions, held-out images and manifest, as files hold them.

Nothing downstream touches the autoencoder's encoder or the text encoder again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from fitspace import bases
from fitspace.bases.family import Conditions, picked
from fitspace.core.errors import UserError
from fitspace.core.files import (
    IMAGES,
    opened,
    read_json,
    read_tensors,
)
from fitspace.core.reading import Recorded, checked

if TYPE_CHECKING:
    from fitspace.plan import Stage


MIRRORED = ("mirrored_mean", "mirrored_std")  # as the file of latents names them
GIVEN = "given.safetensors"  # of a task that gives images: their pixels and latents


@dataclass(frozen=True)
class PreparedTask:
    """What training and sampling read of a task.

    The tensors are the files' own, mapped into memory: only what is used is read.

    Attributes
    ----------
    mean, std : float16, shape (n, c, h, w): the posterior of each training example's
        latents, not yet multiplied by the autoencoder's scaling factor.
    captions : int64, shape (n,): row of each example's caption in ``conditions``.
    groups : training examples' indices by group, drawn as one item each.
    conditions : what the denoiser is told: name -> tensor, first axis m, such as text embeddings,
        float16 (m, tokens, dim), or class labels, int64 (m,); row 0 is the empty caption, or no
        class.
    prompts : rows of ``conditions`` of the held-out captions, in a fixed shuffled order; the
        manifest's ``prompt_images`` are the rows of ``images.safetensors`` that show them.
    own_classes : how many classes the task has that are not the base's; None: the base's own.
    prior : indices of the class images that the base drew, for prior preservation.
    prior_weight : weight of their loss beside that of the examples in ``groups``.
    roles : of a DreamBooth task, in place of ``prompts``: rows of ``conditions`` by role.
    flip : probability that an example is mirrored when it is trained on.
    mirrored : mean and std of the mirrored training examples, as ``mean`` and ``std``; None
        without ``flip``.
    held_out : float16, shape (k, c, h, w): the means of the held-out images' latents.
    shown : for each of ``prompts``, the row of ``held_out`` that it describes.
    given, mirrored_given, given_held_out : the images that are given with the training examples,
        with their mirror images and with the held-out images, as the denoiser is told of them:
        pixels, uint8 (n, s, s, 3), or latents, float16 (n, c, h, w); None: it is not.
    """

    mean: torch.Tensor
    std: torch.Tensor
    captions: torch.Tensor
    groups: list[list[int]]
    conditions: Conditions
    prompts: list[int]
    own_classes: int | None = None
    prior: Sequence[int] = ()
    prior_weight: float = 0.0
    roles: dict[str, list[int]] = field(default_factory=dict)
    flip: float = 0.0
    mirrored: tuple[torch.Tensor, torch.Tensor] | None = None
    held_out: torch.Tensor | None = None
    shown: Sequence[int] = ()
    given: torch.Tensor | None = None
    mirrored_given: torch.Tensor | None = None
    given_held_out: torch.Tensor | None = None

    def preserving(self, weight: float | None) -> PreparedTask:
        """The task with another weight of prior preservation; of 0: without its class images;
        None: as it is."""
        if weight is None:
            return self
        return replace(self, prior=self.prior if weight else (), prior_weight=weight)

    def latents(
        self, examples: list[int], mirrored: Sequence[bool] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of these examples' latents, float32; of those that are
        ``mirrored``, if any, of their mirror images."""
        found = [self.mean[examples].float(), self.std[examples].float()]
        for value, mirror in zip(found, self.mirrored or (), strict=False):
            rows = [i for i, turned in enumerate(mirrored) if turned]
            value[rows] = mirror[[examples[i] for i in rows]].float()
        return found[0], found[1]

    def told(self, rows: Any) -> Conditions:
        """These rows of each condition, as a denoiser takes them; ``rows`` is a slice or a list."""
        found = picked(self.conditions, rows)
        return {name: v.float() if v.is_floating_point() else v for name, v in found.items()}

    def given_with(
        self, examples: list[int], mirrored: Sequence[bool] = (), without: Sequence[bool] = ()
    ) -> Conditions:
        """What the denoiser is told of the images given with these training examples; nothing of
        those ``without``: zeros."""
        if self.given is None:
            return {}
        found = _told_image(self.given[examples])
        turned = [i for i, mirror in enumerate(mirrored) if mirror]
        if turned and self.mirrored_given is not None:
            found[turned] = _told_image(self.mirrored_given[[examples[i] for i in turned]])
        elif turned:
            found[turned] = found[turned].flip(-1)
        found[[i for i, none in enumerate(without) if none]] = 0
        return {"given": found}

    def given_for(self, prompts: Sequence[int]) -> Conditions:
        """The same of the images given with held-out images: those of these of ``prompts``."""
        if self.given_held_out is None:
            return {}
        return {"given": _told_image(self.given_held_out[[self.shown[i] for i in prompts]])}


def _told_image(values: torch.Tensor) -> torch.Tensor:
    """Pixels (n, s, s, 3) as (n, 3, s, s) from 0 to 1; latents as they are. Float32, a copy."""
    if values.dtype != torch.uint8:
        return values.float()
    return values.permute(0, 3, 1, 2).float() / 255


class _Example(Recorded):
    caption: int
    group: str
    split: Literal["train", "test", "class"]


class _Manifest(Recorded):
    """What is read of a manifest again."""

    attribution: str
    captions: list[str]
    examples: list[_Example]
    prompts: list[int]
    flip: float = Field(0.0, ge=0, le=1)

    @property
    def rows(self) -> list[int]:
        """Of the captions."""
        return [*self.prompts, *(e.caption for e in self.examples)]

    @model_validator(mode="after")
    def _rows_are_there(self) -> _Manifest:
        _all_there("caption", self.rows, len(self.captions))
        return self


class _OfHeldOut(_Manifest):
    prompt_images: list[int]
    own_classes: int = Field(1, ge=1)
    roles: None = None

    @model_validator(mode="after")
    def _images_are_there(self) -> _OfHeldOut:
        if self.own_classes > len(self.captions):
            raise ValueError(f"own_classes: {self.own_classes}, of {len(self.captions)} captions")
        held_out = [e.caption for e in self.examples if e.split == "test"]
        _all_there("held-out image", self.prompt_images, len(held_out))
        if [held_out[i] for i in self.prompt_images] != self.prompts:
            raise ValueError("prompts are not the captions of prompt_images")
        return self


class _Roles(Recorded):
    subject: list[int] = Field(min_length=1)
    elsewhere: list[int] = Field(min_length=1)
    class_: list[int] = Field(min_length=1, alias="class")


class _OfSubject(_Manifest):
    prior_weight: float = Field(ge=0)
    own_classes: None = None
    roles: _Roles

    @property
    def rows(self) -> list[int]:
        roles = self.roles
        return [*super().rows, *roles.subject, *roles.elsewhere, *roles.class_]


def _all_there(what: str, rows: list[int], count: int) -> None:
    if wrong := [row for row in rows if not 0 <= row < count]:
        raise ValueError(f"{what} {wrong[0]} is named, of {count}")


def read_manifest(stage: Stage) -> dict:
    """The manifest of a prepared task. Raises UserError for what is none."""
    path, what = stage.folder / "manifest.json", "a prepared task's manifest"
    manifest = read_json(path, what=what)
    checked(manifest, _OfSubject if "dreambooth" in stage.material else _OfHeldOut, path, what)
    return manifest


def read_images(stage: Stage, manifest: dict[str, Any]) -> np.ndarray:
    """The images that a prepared task is judged by, uint8 (n, h, h, 3): those held out, or the
    subject's. Raises UserError for a file that is not of as many as the manifest says."""
    split = "train" if manifest.get("roles") else "test"
    count = sum(example["split"] == split for example in manifest["examples"])
    path = stage.folder / "images.safetensors"
    return read_tensors(path, IMAGES, "np", n=count)["images"]


def read_given(stage: Stage, manifest: dict[str, Any]) -> np.ndarray | None:
    """The images given with the held-out images, as `read_images`; None if the task gives none."""
    if not _gives(stage):
        return None
    splits = [example["split"] for example in manifest["examples"]]
    images = _read_given(stage, len(splits), manifest.get("flip"))["images"].numpy()
    return images[[split == "test" for split in splits]]


def _gives(stage: Stage) -> bool:
    return "given" in stage.material["source"]


def _read_given(
    stage: Stage, count: int, flip: float | None, **sizes: int
) -> dict[str, torch.Tensor]:
    names = ("mean", *([MIRRORED[0]] if flip else ()))
    wanted = {"images": "U8 n s s 3"} | dict.fromkeys(names, "F16 n c h h")
    return read_tensors(stage.folder / GIVEN, wanted, n=count, **sizes)


def load(
    stage: Stage, base: Path | None = None, scale: int = 1, control: str | None = None
) -> PreparedTask:
    """Read a prepared task; that its files are those of its sidecar is for the caller to see to.

    ``control``: how a denoiser is told of the images that the task gives.

    Raises
    ------
    UserError : what is no prepared task, or with ``base``, a resolved pipeline,
        none that it takes at that ``scale``.
    """
    manifest = read_manifest(stage)
    # Class images, which the base drew, stand behind the examples in groups.
    training = [e for e in manifest["examples"] if e["split"] != "test"]
    groups: dict[str, list[int]] = {}
    for i, example in enumerate(training):
        if example["split"] == "train":
            groups.setdefault(example["group"], []).append(i)
    sizes = {} if base is None else _sizes(base, scale)
    path = stage.folder / "latents.safetensors"
    flip = manifest.get("flip", 0.0)
    wanted = dict.fromkeys(("mean", "std", *(MIRRORED if flip else ())), "F16 n c h h")
    latents = read_tensors(path, wanted, n=len(manifest["examples"]), **sizes)
    path = stage.folder / "text.safetensors"
    conditions = read_tensors(path, _told(path, base), n=len(manifest["captions"]), **sizes)
    given: dict[str, torch.Tensor] = {}
    if control is not None:
        every = _read_given(stage, len(manifest["examples"]), flip, **sizes)
        by_pixels = control == "controlnet"
        of_all = every["images" if by_pixels else "mean"]
        given = {"given": of_all[: len(training)], "given_held_out": of_all[len(training) :]}
        given["mirrored_given"] = None if by_pixels else every.get(MIRRORED[0])
    classes, labels = manifest.get("own_classes", sizes.get("classes")), conditions.get("labels")
    if labels is not None and classes and not 0 <= labels.min() <= labels.max() <= classes:
        raise UserError(f"{path}: labels: needed: from 0 to {classes}")
    return PreparedTask(
        mean=latents["mean"][: len(training)],
        std=latents["std"][: len(training)],
        captions=torch.tensor([e["caption"] for e in training]),
        groups=list(groups.values()),
        conditions=conditions,
        prompts=manifest["prompts"],
        own_classes=manifest.get("own_classes"),
        prior=[i for i, e in enumerate(training) if e["split"] == "class"],
        prior_weight=manifest.get("prior_weight", 0.0),
        roles=manifest.get("roles") or {},
        flip=flip,
        mirrored=tuple(latents[name][: len(training)] for name in MIRRORED) if flip else None,
        held_out=latents["mean"][len(training) :],
        shown=manifest.get("prompt_images", ()),
        **given,
    )


def latents(stage: Stage, base: Path, scale: int = 1) -> dict[str, torch.Tensor]:
    """The mean latents of a task's ``training`` and ``held_out`` images: float16, (n, c, h, w).

    Raises UserError as :func:`load`.
    """
    manifest = read_manifest(stage)
    splits = [example["split"] for example in manifest["examples"]]
    names = ("mean", "std", *(MIRRORED if manifest.get("flip") else ()))
    wanted = dict.fromkeys(names, "F16 n c h h")
    path = stage.folder / "latents.safetensors"
    mean = read_tensors(path, wanted, n=len(splits), **_sizes(base, scale))["mean"]
    rows = {"training": "train", "held_out": "test"}
    return {name: mean[[s == split for s in splits]] for name, split in rows.items()}


def _told(path: Path, base: Path | None) -> dict[str, str]:
    """The conditions of a base's family, or without one of the family whose names a file has."""
    if base is not None:
        return bases.family_in(base).told
    with opened(path) as file:
        names = {*file.keys()}
    families = bases.FAMILIES.values()
    return next((f.told for f in families if f.told.keys() == names), next(iter(families)).told)


def _sizes(base: Path, scale: int) -> dict[str, int]:
    """Of what a base takes: latents (c, h, h), and what its family's conditions need."""
    config = bases.config(base, bases.denoiser(base))
    channels, side, _ = bases.latent_shape(base)
    found = {
        "c": channels,
        "h": side * scale,
        **{name: config.get(key) for name, key in bases.family_in(base).sizes.items()},
    }
    return {name: size for name, size in found.items() if isinstance(size, int)}
