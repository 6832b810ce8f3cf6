"""What differs from one family of denoisers to another, for all who are not of a family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

# What a denoiser is told of images beside the time step: name -> tensor, first axis the images.
Conditions = dict[str, "torch.Tensor"]


def picked(conditions: Conditions, rows: Any) -> Conditions:
    """These rows of each condition; ``rows`` is a slice or a list."""
    return {name: values[rows] for name, values in conditions.items()}


def _nothing(model: nn.Module) -> None:
    """Most models are what they should be as diffusers loads them."""


def _never(kind: str, config: dict[str, Any]) -> bool:
    return False


def _no_problems(config: dict[str, Any]) -> list[str]:
    return []


@dataclass(frozen=True)
class Family:
    """A family of denoisers.

    Attributes
    ----------
    name : in settings and messages.
    title : as prose writes it.
    component : the pipeline's folder that holds the denoiser.
    kind : the class of diffusers that loads it today.
    needs : components of its pipeline beside the denoiser, the autoencoder and the scheduler.
    told : what it is told beside the time step: names of its conditions, as prepared tasks have
        them, and their form there (see :func:`fitspace.core.files.read_tensors`).
    hand : conditions as the denoiser's keyword arguments.
    blank : conditions without content, for a denoiser's configuration, so many images and tokens.
    sizes : of the letters in ``told``: the configuration's keys that hold them.
    scales : whether it makes images of a multiple of its own side.
    controls : how it can be told of an image, see :mod:`fitspace.bases.control`; ``img2img`` tells
        it nothing.
    also : whether a denoiser saved as another class, with this configuration, is one of these.
    settle : called once with a model as diffusers loads it.
    problems : what in a denoiser's configuration nothing here knows how to use, as ``key: value;
        allowed``.
    """

    name: str
    title: str
    component: str
    kind: str
    needs: tuple[str, ...]
    told: dict[str, str]
    hand: Callable[[Conditions], dict[str, torch.Tensor]]
    blank: Callable[[Any, int, int, torch.dtype], Conditions]
    sizes: dict[str, str]
    scales: bool
    controls: tuple[str, ...] = ()
    also: Callable[[str, dict[str, Any]], bool] = _never
    settle: Callable[[nn.Module], None] = _nothing
    problems: Callable[[dict[str, Any]], list[str]] = _no_problems

    @property
    def by_class(self) -> bool:
        """Whether it is told classes, not words."""
        return "labels" in self.told
